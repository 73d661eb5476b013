//! The programs under test, as they are built: those in the folder `PIMAN_BIN_DIR`, if they have just been built,
//! or what cargo builds once for each run of a test binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The server's program, built as this test is.
///
/// # Panics
/// If it cannot be built.
pub fn piman() -> &'static Path {
    static PIMAN: OnceLock<PathBuf> = OnceLock::new();
    PIMAN.get_or_init(|| program("piman"))
}

/// The agent's program, built as this test is.
///
/// # Panics
/// If it cannot be built.
pub fn pi_agent() -> &'static Path {
    static PI_AGENT: OnceLock<PathBuf> = OnceLock::new();
    PI_AGENT.get_or_init(|| program("pi-agent"))
}

/// An example of the server's package, built as this test is.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    program(&format!("examples/{name}"))
}

/// Where the programs are, if somebody says so.
fn given() -> Option<PathBuf> {
    std::env::var_os("PIMAN_BIN_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

fn there(program: PathBuf) -> PathBuf {
    assert!(program.is_file(), "PIMAN_BIN_DIR: there is no {}", program.display());
    program
}

/// Cargo builds programs only for tests of their own package: so it is asked to once more, for all of them at
/// once, which takes a moment where they are fresh.
fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    there(given().unwrap_or_else(|| BUILT.get_or_init(build).clone()).join(name))
}

/// Builds as `cargo test --workspace` does, so that what the programs and the tests are made of is the same and is
/// built once; gives the folder of the profile.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.ancestors().nth(2).expect("tests run in target/PROFILE/deps");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("CARGO_BUILD_TARGET");
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile's folder is in target"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs the tests, so it is there");
    assert!(status.success(), "building the programs failed");
    profile.to_owned()
}
