//! Where the linker puts defmt's strings: in the file alone, not in the chip.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
