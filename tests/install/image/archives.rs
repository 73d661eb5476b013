//! Archives of which no image can be made, and images that differ from them.

use super::*;

#[test]
fn archives_that_no_image_can_be_made_of() {
    let error = |tar: &Tar| made(tar.packed().path(), 64 * MIB).map(drop).unwrap_err();
    let named = error(Tar::new().push(b"ok", b'0', b"", b"").push(b"dir/caf\xe9", b'0', b"", b"x"));
    assert!(named.leaves_stream() && named.to_string().contains(r"dir/caf\xe9"), "{named}");
    let target = error(Tar::new().push(b"link", b'2', b"caf\xe9", b""));
    assert!(target.leaves_stream() && target.to_string().contains(r"caf\xe9"), "{target}");
    let out = error(Tar::new().push(b"../../etc/passwd", b'0', b"", b"x"));
    assert!(!out.leaves_stream() && out.to_string().contains(".."), "{out}");
    let missing = error(Tar::new().push(b"name", b'1', b"other", b""));
    assert!(
        !missing.leaves_stream() && missing.to_string().contains("`other`, which is missing"),
        "{missing}"
    );
}

#[test]
fn damaged_archives_leave_nothing_behind() {
    let whole = fs::read(noisy(6).path()).unwrap();
    for (what, bytes) in [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("no archive", b"<html>404</html>".repeat(100)),
        ("empty", Vec::new()),
        ("flipped", {
            let mut bytes = whole.clone();
            bytes[whole.len() / 3] ^= 0x40;
            bytes
        }),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        // Noise that flips in a stored block is only found by zstd's checksum, if there is one;
        // then the image is of what the archive says.
        match made(file.path(), 64 * MIB) {
            Err(Error::Archive(_)) => {}
            Err(e) => panic!("{what}: {e}"),
            Ok(_) => assert_eq!(what, "flipped"),
        }
    }
    // A gzip archive has a checksum always.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), vec![b'g'; 3 << 20]).unwrap();
    let path = folder.path().with_extension("bad.tgz");
    pack(folder.path(), &path, &["-z"], &[]);
    let mut bytes = fs::read(&path).unwrap();
    let crc = bytes.len() - 6;
    bytes[crc] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = made(&path, 64 * MIB).map(drop).unwrap_err();
    assert!(matches!(error, Error::Archive(_)), "{error:?}");
    fs::remove_file(path).unwrap();
}

#[test]
fn another_archive_than_was_said_and_being_stopped() {
    let archive = noisy(6);
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path()).unwrap();
    let file = File::open(archive.path()).unwrap();
    let (progress, stop) = (ext4::Progress::new(), AtomicBool::new(false));
    let wrong = images.build(&file, Hash([7; 32]), &progress, &stop);
    assert!(matches!(wrong, Err(Error::Changed)));
    let stopped = images.build(&file, hash_of(&file), &progress, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(fs::read_dir(state.path().join("images")).unwrap().count(), 0);
}

#[test]
fn differences_are_found_and_named() {
    let archive = noisy(6);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let disk = garbage(64 * MIB);
    install(&faultless(&made.image), &made.image, &disk);
    // What `file-1` is full of.
    let bytes = fs::read(disk.path()).unwrap();
    let at = bytes.windows(4096).position(|w| w.iter().all(|b| *b == b'b')).unwrap();
    disk.as_file().write_all_at(b"!", at as u64 + 77).unwrap();
    let found = compared(disk.path(), &made.archive);
    assert_eq!((found.differences, found.told), (1, vec!["file-1: other content".to_owned()]));
    let mut other = Tar::new();
    other.push(b"file-0", b'2', b"somewhere", b"").push(b"file-99", b'0', b"", b"");
    let found = compared(disk.path(), &File::open(other.packed().path()).unwrap());
    assert_eq!(found.differences, 7, "{:?}", found.told);
}

#[test]
fn a_filesystem_that_would_fill_the_memory_is_not_compared() {
    let archive = noisy(1);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let disk = garbage(64 * MIB);
    install(&faultless(&made.image), &made.image, &disk);
    let mut superblock = [0; 1024];
    disk.as_file().read_exact_at(&mut superblock, OFFSET + 1024).unwrap();
    // Without checksums anything can be written into it.
    let ro_compat = u32::from_le_bytes(superblock[0x64..0x68].try_into().unwrap());
    let unchecked = ro_compat & !mkext4::spec::ro_compat::METADATA_CSUM;
    disk.as_file().write_all_at(&unchecked.to_le_bytes(), OFFSET + 1024 + 0x64).unwrap();
    assert_equal(disk.path(), &made);
    let mut whole = vec![0; 64 * MIB as usize];
    disk.as_file().read_exact_at(&mut whole, OFFSET).unwrap();
    let fs = mkext4::reader::Fs::open(&whole[..]).unwrap();
    let place =
        |inode: u32| OFFSET + fs.group_desc(0).unwrap().inode_table * 4096 + u64::from(inode - 1) * 256;
    let (root, file) = (mkext4::spec::ROOT_INO, fs.resolve("/file-0").unwrap());
    for (inode, at, value, what) in [
        (root, 0x6c, 1, "bytes in inode 2"),   // a directory of 4 GiB
        (root, 0x2e, 3, "extents of depth 3"), // and one in a deep tree
        (file, 0x2e, 5, "extents of depth 5"),
    ] {
        let mut before = [0];
        disk.as_file().read_exact_at(&mut before, place(inode) + at).unwrap();
        disk.as_file().write_all_at(&[value], place(inode) + at).unwrap();
        let (progress, stop) = (ext4::Progress::new(), AtomicBool::new(false));
        let error = ext4::compare(disk.as_file(), OFFSET, &made.archive, &progress, &stop).unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(what), "{what}: {error}");
        disk.as_file().write_all_at(&before, place(inode) + at).unwrap();
    }
    assert_equal(disk.path(), &made);
}
