//! Archives that are replaced, deleted, rewritten, damaged.

use super::*;

#[test]
fn an_archive_that_is_replaced_or_deleted_is_sent_to_its_end() {
    let lab = Lab::new(48 << 20, &[]);
    let old = lab.bytes();
    let mut running = lab.server.connect("rootfs");
    let mut begin = vec![0; 1 << 20];
    running.read_exact(&mut begin).unwrap();
    let new = tar::of_bytes(2 << 20);
    let beside = lab.archive.with_extension("new");
    fs::copy(new.path(), &beside).unwrap();
    fs::rename(&beside, &lab.archive).unwrap();
    // Whoever comes now gets the new one, as soon as it has been checked.
    assert_eq!(download(&lab.server).unwrap(), lab.bytes());
    let mut second = lab.server.connect("rootfs");
    second.read_exact(&mut [0; 1000]).unwrap();
    fs::remove_file(&lab.archive).unwrap();
    lab.server.wait_log("is gone; put it back");
    running.read_to_end(&mut begin).unwrap();
    assert!(begin == old, "{} of {} bytes", begin.len(), old.len());
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    assert_eq!(lab.decision(), BOOT, "there is nothing to install, so nothing is erased");
    wait_until("it is shown", || lab.server.piman(&["devices"]).contains("is gone; put it back"));
    fs::copy(new.path(), &beside).unwrap();
    fs::rename(&beside, &lab.archive).unwrap();
    wait_until("it is served again", || lab.decision() == FORMAT);
    assert_eq!(download(&lab.server).unwrap(), lab.bytes());
}

#[test]
fn an_archive_that_is_rewritten_in_its_place_is_broken_off() {
    let lab = Lab::new(48 << 20, &[]);
    for (what, change) in [
        ("rewritten", (|f: &File| f.write_all_at(b"x", 40 << 20)) as fn(&File) -> std::io::Result<()>),
        ("truncated", |f: &File| f.set_len(30 << 20)),
    ] {
        let good = lab.bytes();
        lab.server.piman(&["reinstall", "127.0.0.1"]);
        let mut running = lab.server.connect("rootfs");
        running.read_exact(&mut vec![0; 1 << 20]).unwrap();
        change(&File::options().write(true).open(&lab.archive).unwrap()).unwrap();
        let error = running.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}");
        // One byte of content that nothing in it sums up is just another archive.
        if what == "truncated" {
            wait_until("it is known to be bad", || lab.server.piman(&["devices"]).contains("is not usable"));
            assert_eq!(lab.decision(), BOOT, "{what}");
        }
        fs::write(&lab.archive, good).unwrap();
        wait_until("it is good again", || lab.decision() == FORMAT);
        lab.server.piman(&["reinstall", "--cancel", "127.0.0.1"]);
    }
}

#[test]
fn archives_that_cannot_be_installed_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (state, path) = (folder.path().join("state"), folder.path().join("rootfs.tgz"));
    let plain = folder.path().join("plain.tar");
    fs::write(&plain, tar::Tar::new().push(b"a", b'0', b"", b"b").end()).unwrap();
    let empty = folder.path().join("empty.tgz");
    fs::write(&empty, "").unwrap();
    for (archive, says) in [
        (path.as_path(), "there is no such file; name a .tar.gz or .tar.zst with --rootfs"),
        (folder.path(), "it is a folder; add it with `piman image add"),
        (&plain, "neither gzip nor zstd"),
        (&empty, "it is empty"),
        (Path::new("/dev/null"), "it is no file"),
    ] {
        let (code, error) = refused(&mut Server::command(archive, &state, &[]));
        assert_eq!(code, Some(1));
        assert!(error.contains(says) && error.contains(&*archive.to_string_lossy()), "{error}");
    }
    let mut none = Command::new(piman_tests::binaries::piman());
    let (code, error) = refused(none.arg("serve"));
    assert!(code == Some(1) && error.contains("--rootfs"), "{error}");
}

#[test]
fn a_damaged_archive_is_found_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(tar::of_bytes(3 << 20).path()).unwrap();
    let tar = folder.path().join("a.tar");
    fs::write(&tar, tar::Tar::new().push(b"a", b'0', b"", &good).end()).unwrap();
    assert!(Command::new("gzip").arg(&tar).status().unwrap().success());
    let gzip = fs::read(tar.with_extension("tar.gz")).unwrap();
    let mut crc = gzip.clone();
    let at = crc.len() - 8;
    crc[at] ^= 1;
    for (what, bytes) in
        [("truncated", &gzip[..gzip.len() / 2]), ("wrong CRC", &crc), ("cut zstd", &good[..good.len() - 9])]
    {
        let archive = folder.path().join("rootfs");
        fs::write(&archive, bytes).unwrap();
        let state = folder.path().join(what);
        let server = Server::start(&archive, &state, &["--no-date"]);
        server.wait_log("is not usable");
        assert!(server.log().contains("until it is replaced by a good one"), "{}", server.log());
        server.piman(&["reinstall", "127.0.0.1"]);
        assert_eq!(decision(&server), BOOT, "{what}: what is on the card stays");
        let devices = || server.piman(&["devices"]);
        let trouble = || devices().lines().any(|l| l.starts_with("archive ") && l.contains("is not usable"));
        wait_until("it is shown", || trouble() && devices().contains("not possible"));
        // Nothing of it goes out; whoever asks is served when there is something good.
        let mut early = server.connect("rootfs");
        early.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let nothing = early.read(&mut [0; 10]).unwrap_err().kind();
        assert!(matches!(nothing, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{what}: {nothing}");
        // Our own agent, with an empty card, is told to wait.
        let mut agent = server.connect("control");
        agent.write_all(b"PIMAN/1 hello serial=1234abcd paths=stream\nIS_UNINSTALLED\n").unwrap();
        let mut wait = [0; 13];
        agent.read_exact(&mut wait).unwrap();
        assert_eq!(&wait, b"PIMAN/1 wait ");
        fs::write(&archive, &gzip).unwrap();
        early.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut got = Vec::new();
        early.read_to_end(&mut got).unwrap();
        assert_eq!(got, gzip, "{what}");
        assert_eq!(decision(&server), FORMAT);
        wait_until("it is over", || !trouble());
    }
}
