//! Leaves the unwind tables out of the agent for the initramfs: a panic ends it there, nothing
//! unwinds, and they are a seventh of its size.

use std::env::var;

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
}
