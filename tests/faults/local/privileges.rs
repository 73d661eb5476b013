//! What a running server may still do.

use super::*;

/// The value of a line of `/proc/PID/task/*/status`, of every thread.
fn of_threads(server: &Server, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let values = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next().unwrap_or_default().to_owned())
    });
    values.collect()
}

fn all_are(server: &Server, name: &str, value: &str) {
    let found = of_threads(server, name);
    assert!(found.len() > 2 && found.iter().all(|v| v == value), "{name}: {found:?}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_of_root_keeps_few_capabilities() {
    let folder = open_folder();
    let archive = tar::of_bytes(1000);
    let server = Server::start(archive.path(), &folder.path().join("state"), &["--no-date"]);
    server.wait_log("capabilities kept: CAP_DAC_OVERRIDE; no new privileges");
    for name in ["CapPrm", "CapEff"] {
        all_are(&server, name, "0000000000000002");
    }
    all_are(&server, "CapAmb", "0000000000000000");
    all_are(&server, "NoNewPrivs", "1");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_with_a_user_has_nothing_of_root() {
    let folder = open_folder();
    let archive = tar::of_bytes(1000);
    let rootfs = folder.path().join("rootfs.tgz");
    fs::copy(archive.path(), &rootfs).unwrap();
    fs::set_permissions(&rootfs, Permissions::from_mode(0o644)).unwrap();
    let state = folder.path().join("state");
    let server = Server::start(&rootfs, &state, &["--no-date", "--user", "65534"]);
    server.wait_log("capabilities kept: none; no new privileges");
    server.wait_log("is good");
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        all_are(&server, name, "0000000000000000");
    }
    all_are(&server, "Uid", "65534");
    all_are(&server, "Gid", "65534");
    // What root orders beside it, it reads.
    server.piman(&["reinstall", "127.0.0.1"]);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(fs::symlink_metadata(&path).unwrap().uid(), NOBODY, "{}", path.display());
    }
    drop(server);
    let mut other = Server::command(&rootfs, &state, &["--user", "1"]);
    let output = other.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("chown -R"), "{error}");
}
