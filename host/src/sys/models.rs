//! The models of Pis.

/// Which files a model's firmware needs beside a kernel and its configuration.
pub const MODELS: [(&str, &[&str]); 3] = [
    ("Pi 3", &["bootcode.bin", "start.elf", "fixup.dat", "bcm2710-rpi-3-b.dtb", "bcm2710-rpi-3-b-plus.dtb"]),
    ("Pi 4", &["start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"]),
    ("Pi 5", &["bcm2712-rpi-5-b.dtb"]),
];
