//! Files that others can read, lock or put there.

use super::*;

#[test]
fn the_state_is_its_owners_alone_whatever_the_umask() {
    let folder = open_folder();
    let (archive, state) = (tar::of_bytes(1000), folder.path().join("state"));
    let command = Server::command(archive.path(), &state, &["--no-date"]);
    let mut open = Command::new("sh");
    open.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let server = Server::start_by(&mut open, &state);
    server.wait_log("is good");
    server.piman(&["reinstall", "127.0.0.1"]);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        files += 1;
    }
    assert!(files >= 2, "a database and a lock file at least");
    if !is_root() {
        return;
    }
    let program = folder.path().join("piman");
    fs::copy(binaries::piman(), &program).unwrap();
    let output = as_nobody(Command::new(&program).args(["devices", "--state"]).arg(&state));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("is for root alone") && error.contains("sudo -u root"), "{error}");
    let lock = as_nobody(Command::new("flock").args(["-n", "-s"]).arg(&state).arg("true"));
    assert!(!lock.status.success(), "another user has no lock on it");
}

#[test]
fn a_state_of_an_earlier_version_is_narrowed_and_an_open_folder_is_named() {
    let folder = open_folder();
    let (archive, state) = (tar::of_bytes(1000), folder.path().join("state"));
    drop(Server::start(archive.path(), &state, &["--no-date"]));
    let database = state.join("piman.db");
    fs::set_permissions(&database, Permissions::from_mode(0o664)).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(archive.path(), &state, &["--no-date"]);
    server.wait_log("other users of this machine may enter the state folder");
    assert!(server.log().contains("chmod 0700"), "{}", server.log());
    assert_eq!(fs::metadata(&database).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_list_of_reinstalls_that_another_could_have_put_there_is_not_read() {
    let folder = open_folder();
    let (archive, secret) = (tar::of_bytes(1000), folder.path().join("secret"));
    fs::write(&secret, "root:hash-of-root\n10.9.8.7\n").unwrap();
    let list = folder.path().join("reinstall.txt");
    symlink(&secret, &list).unwrap();
    let options = ["--no-date", "--reinstall-file", list.to_str().unwrap()];
    let server = Server::start(archive.path(), &folder.path().join("state"), &options);
    server.wait_log("is a link, which is not followed");
    fs::remove_file(&list).unwrap();
    let new = folder.path().join("new");
    let put = |mode: u32| {
        fs::copy(&secret, &new).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, &list).unwrap();
    };
    put(0o666);
    server.wait_log("can be written by others than its owner");
    if is_root() {
        put(0o644);
        std::os::unix::fs::lchown(&list, Some(NOBODY), None).unwrap();
        server.wait_log("belongs to user 65534");
    }
    assert!(!server.log().contains("10.9.8.7"), "nothing was ordered: {}", server.log());
    put(0o644);
    server.wait_log("reinstall.txt:1: this line is no IPv4 address");
    server.wait_log("a reinstall of 10.9.8.7 is ordered");
    assert!(!server.log().contains("hash-of-root"), "{}", server.log());
}
