//! State folders, ports and configurations that cannot be used.

use super::*;

#[test]
fn a_state_folder_that_cannot_be_used() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, error) = refused(&mut Server::command(archive.path(), &file.join("state"), &[]));
    assert!(code == Some(1) && error.contains("cannot be written") && error.contains("--state"), "{error}");

    let read_only = folder.path().join("ro");
    fs::create_dir(&read_only).unwrap();
    let command = Server::command(archive.path(), &read_only, &[]);
    let (code, error) = if is_root() {
        // Root may write anywhere, except on a filesystem that nobody can write.
        let mut script = String::from("mount -t tmpfs -o ro none \"$0\" && exec \"$@\"");
        script.insert_str(0, "set -e; ");
        let mut unshare = Command::new("unshare");
        unshare
            .args(["-m", "sh", "-c", &script])
            .arg(&read_only)
            .arg(command.get_program())
            .args(command.get_args());
        refused(&mut unshare)
    } else {
        fs::set_permissions(&read_only, fs::Permissions::from_mode(0o555)).unwrap();
        refused(&mut { command })
    };
    assert!(code == Some(1) && error.contains("cannot be written") && error.contains("--state"), "{error}");

    let (code, error) =
        refused(Command::new(piman_tests::binaries::piman()).args(["devices", "--state"]).arg(folder.path()));
    assert!(code == Some(1) && error.contains("there is no state in"), "{error}");
}

#[test]
fn a_damaged_state_is_moved_aside() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("piman.db");
    for damage in [&b"this is no database at all, and was never one"[..], &[0xff; 50_000]] {
        // A good log of what was changed last would repair it.
        let _ = fs::remove_file(folder.path().join("piman.db-wal"));
        fs::write(&file, damage).unwrap();
        let mut command = Command::new(piman_tests::binaries::piman());
        let (code, error) = refused(command.args(["reinstall", "127.0.0.1", "--state"]).arg(folder.path()));
        assert!(code == Some(1) && error.contains("is damaged"), "{error}");
        let server = Server::start(archive.path(), folder.path(), &["--no-date"]);
        server.wait_log("is good");
        assert!(
            server.log().contains("is damaged") && server.log().contains("ordered again"),
            "{}",
            server.log()
        );
        server.piman(&["reinstall", "127.0.0.1"]);
        assert_eq!(decision(&server), FORMAT);
        let kept = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
        let kept = kept.filter(|p| fs::read(p).is_ok_and(|bytes| bytes == damage)).count();
        assert_eq!(kept, 1, "the damaged one is kept");
    }
    // While a server runs: it goes on, and begins anew.
    let server = Server::start(archive.path(), folder.path(), &["--no-date"]);
    server.wait_log("is good");
    assert_eq!(decision(&server), FORMAT);
    fs::remove_file(&file).unwrap();
    // The order is not lost before the server has seen it, and said so.
    let after = decision(&server);
    assert!(after == FORMAT || server.log().contains("was removed or replaced"), "{after}");
    server.wait_log("was removed or replaced");
    // Until the new one is there, commands fail.
    let says = |arguments: &[&str]| {
        let mut command = Command::new(piman_tests::binaries::piman());
        let output = command.args(arguments).arg("--state").arg(folder.path()).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    wait_until("a new one is begun", || says(&["reinstall", "127.0.0.1"]).is_some());
    assert_eq!(decision(&server), FORMAT);
    // And when its files are there but empty all of a sudden, while whoever writes still has all of it
    // in memory and notices nothing.
    let told = || says(&["device", "127.0.0.1"]).map_or(0, |text| text.matches("told to format").count());
    wait_until("what was decided is saved", || told() >= 2);
    for name in ["piman.db", "piman.db-wal"] {
        File::options().write(true).open(folder.path().join(name)).unwrap().set_len(0).unwrap();
    }
    assert!([BOOT, FORMAT].contains(&decision(&server).as_str()));
    wait_until("it is well again", || {
        decision(&server);
        says(&["reinstall", "127.0.0.1"]).is_some() && decision(&server) == FORMAT
    });
}

#[test]
fn ports_that_are_taken_or_not_permitted() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--control-port", "--rootfs-port", "--fetch-port"] {
        let (code, error) = refused(&mut Server::command(archive.path(), folder.path(), &[flag, &port]));
        assert_eq!(code, Some(1));
        assert!(error.contains(&format!("sport = :{port}")) && error.contains(flag), "{error}");
    }
    let mut foreign = Server::command(archive.path(), folder.path(), &[]);
    let (_, error) = refused(foreign.args(["--control-port", "4445"]));
    assert!(error.contains("cannot be used multiple times"), "{error}");
    let mut twice = Command::new(piman_tests::binaries::piman());
    twice
        .args(["serve", "--allow-unfit", "--listen", "192.0.2.1", "--control-port", "0", "--rootfs"])
        .arg(archive.path());
    let (_, error) = refused(twice.arg("--state").arg(folder.path()));
    assert!(error.contains("does not have that address"), "{error}");
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("piman.toml");
    for (text, says) in [
        ("rootsf = '/x'", "rootsf"),
        ("rootfs = '/x'\ncontrol-port = 'many'", "control-port"),
        ("rootfs = '/x'\ncontrol-port = 4444", "rootfs-port"),
        ("rootfs = '/does/not/exist'", "/does/not/exist"),
    ] {
        fs::write(&config, text).unwrap();
        let mut command = Command::new(piman_tests::binaries::piman());
        let (code, error) = refused(command.args(["serve", "--config"]).arg(&config));
        assert!(code == Some(1) && error.contains(says), "{error}");
    }
    let (code, _) =
        refused(Command::new(piman_tests::binaries::piman()).args(["serve", "--idle-timeout", "soon"]));
    assert_eq!(code, Some(2));
}
