//! How much room an image needs.

use super::*;

#[test]
fn too_small_says_how_much_is_needed_and_that_is_enough() {
    let archive = noisy(60);
    let made = made(archive.path(), 0).unwrap();
    let needed = made.image.header().total_bytes;
    assert!(needed < 114 * MIB, "{needed}");
    let disk = garbage(needed);
    let small = area(disk.as_file(), disk.as_file(), needed - 4096);
    let failure = install_on(&faultless(&made.image), &made.image, &small).unwrap_err();
    let text = failure.to_string();
    assert!(failure.cause == Cause::TooSmall && text.contains(&format!("{needed} bytes")), "{text}");
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, needed);
    assert_equal(disk.path(), &made);
}

/// A tree by chance: directories in directories, files of all sizes, holes, links.
pub(super) fn by_chance(seed: u64) -> Tar {
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut next = |below: usize| {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % below
    };
    let mut tar = Tar::new();
    let mut directories = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    let (count, largest) = ([30, 300, 3000][next(3)], [10, 5000, 200_000][next(3)]);
    for i in 0..count {
        let parent = &directories[next(directories.len())];
        let name = format!("{parent}{}{i}", "n".repeat(next(40)));
        if name.len() > 99 {
            continue;
        }
        match next(10) {
            0 => {
                tar.push(name.as_bytes(), b'5', b"", b"");
                directories.push(format!("{name}/"));
            }
            1 if !files.is_empty() => {
                tar.push(name.as_bytes(), b'1', files[next(files.len())].as_bytes(), b"");
            }
            2 => {
                tar.push(name.as_bytes(), b'2', &b"target/".repeat(1 + next(13)), b"");
            }
            _ => {
                tar.push(name.as_bytes(), b'0', b"", &vec![b'0' + (i % 64) as u8; next(largest)]);
                files.push(name);
            }
        }
    }
    tar
}

#[test]
fn any_tree_fits_the_size_that_is_said_to_be_needed() {
    for seed in 0..24 {
        let archive = by_chance(seed).packed();
        // Sizes whose last group is short, too.
        let made = made(archive.path(), 0).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let size = made.image.header().total_bytes + seed * seed % 12 * 4096 * 4777;
        let disk = garbage(size);
        install(&faultless(&made.image), &made.image, &disk);
        e2fsck(disk.path(), OFFSET, size);
        assert_equal(disk.path(), &made);
    }
}

#[test]
fn two_hundred_thousand_tiny_files() {
    let mut tar = Tar::new();
    for i in 0..200_000 {
        let content = if i % 3 == 0 { &b""[..] } else { b"tiny" };
        tar.push(format!("d{}/file-{i}", i % 7).as_bytes(), b'0', b"", content);
    }
    let archive = tar.packed();
    let made = made(archive.path(), 0).unwrap();
    assert_eq!(made.image.header().entries, 200_000);
    let disk = garbage(0);
    disk.as_file().set_len(OFFSET + 2048 * MIB).unwrap();
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, 2048 * MIB);
    let found = compared(disk.path(), &made.archive);
    assert_eq!((found.differences, found.names, found.files), (0, 200_007, 200_000));
}

#[test]
fn attributes_that_ext4_has_no_room_for_are_named_and_not_taken_for_a_small_card() {
    let with = |bytes: usize| {
        let mut tar = Tar::new();
        tar.pax(b'x', &[("SCHILY.xattr.user.much", &vec![b'a'; bytes])]).file(b"carrier", b"");
        made(tar.packed().path(), 64 * MIB).map(drop)
    };
    with(3900).unwrap();
    let Err(error @ Error::Entry { .. }) = with(5000) else { panic!("5000 bytes in a block") };
    assert!(error.to_string().contains("carrier") && error.to_string().contains("4060"), "{error}");
}
