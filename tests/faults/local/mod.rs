//! Another user of the server's machine, and what a peer can do to the operator's terminal.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use piman_tests::binaries;
use piman_tests::disk::is_root;
use piman_tests::server::Server;
use piman_tests::tar;

mod files;
mod privileges;
mod terminal;

/// An ordinary user: nobody.
const NOBODY: u32 = 65_534;

/// Runs the command as an ordinary user, who has a home that is not this one's.
fn as_nobody(command: &mut Command) -> Output {
    command.env_remove("HOME").uid(NOBODY).gid(NOBODY).output().expect("it starts")
}

/// A folder that every user may enter, with nothing else in it.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}
