//! The programs under test, as they are built.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The server's program, built as this test is.
///
/// # Panics
/// If it cannot be built.
pub fn piman() -> &'static Path {
    static PIMAN: OnceLock<PathBuf> = OnceLock::new();
    PIMAN.get_or_init(|| built("piman"))
}

/// The agent's program, built as this test is.
///
/// # Panics
/// If it cannot be built.
pub fn pi_agent() -> &'static Path {
    static PI_AGENT: OnceLock<PathBuf> = OnceLock::new();
    PI_AGENT.get_or_init(|| built("pi-agent"))
}

/// An example of the server's package, built as this test is.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let profile = build(&["--package", "piman", "--example", name]);
    profile.join("examples").join(name)
}

/// Cargo builds programs only for tests of their own package: so it is asked to once more,
/// which takes a moment where they are fresh.
fn built(package: &str) -> PathBuf {
    // As they are where all packages are built at once.
    let features = if package == "pi-agent" { "serial,bluetooth" } else { "bluetooth" };
    build(&["--package", package, "--features", features]).join(package)
}

/// Builds, and gives the folder of the profile.
fn build(what: &[&str]) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.ancestors().nth(2).expect("tests run in target/PROFILE/deps");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet"]).args(what);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("CARGO_BUILD_TARGET");
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile's folder is in target"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs the tests, so it is there");
    assert!(status.success(), "building {what:?} failed");
    profile.to_owned()
}
