//! Leaves the unwind tables out of the agent for the initramfs: a panic ends it there, nothing
//! unwinds, and they are a seventh of its size. And says what this machine lacks for a unit test, as the build
//! script of the tests does.

use std::env::{split_paths, var, var_os};
use std::fs::File;
use std::path::PathBuf;

/// Where an ordinary user does not look for programs.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

fn main() {
    println!("cargo::rerun-if-changed=no-unwind-tables.ld");
    // Cargo does not tell that a profile aborts; only the profile `agent` is for size.
    let aborts = var("OPT_LEVEL").is_ok_and(|level| level == "z");
    // Another linker than that of `.cargo/config.toml` has other options.
    let lld = var("RUSTC_LINKER").is_ok_and(|linker| linker.ends_with("rust-lld"));
    if let (true, true, Ok(folder)) = (aborts, lld, var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-T{folder}/no-unwind-tables.ld");
        println!("cargo::rustc-link-arg-bins=--no-eh-frame-hdr");
    }
    println!("cargo::rustc-check-cfg=cfg(lacks, values(\"sfdisk\", \"root\"))");
    for variable in ["PIMAN_REQUIRE", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let path = var_os("PATH").unwrap_or_default();
    let sfdisk =
        split_paths(&path).chain(SYSTEM.map(PathBuf::from)).any(|folder| folder.join("sfdisk").is_file());
    // Loop devices are what is needed root for.
    let root = File::options().read(true).write(true).open("/dev/loop-control").is_ok();
    for (name, here) in [("sfdisk", sfdisk), ("root", root)] {
        if !here && var("PIMAN_REQUIRE").as_deref() != Ok("1") {
            println!("cargo::rustc-cfg=lacks=\"{name}\"");
        }
    }
}
