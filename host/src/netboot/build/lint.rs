//! What is wrong with a boot folder before a Pi finds out: wrong machine, missing files, options.

use std::fmt;
use std::io::{Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::{Packing, boot_check};
use crate::netboot::tftp::folder::{IMAGES, own_part};
use crate::sys::mac::Mac;
use crate::sys::models::MODELS;

/// The largest initramfs that is not warned of: boot ROMs load it slowly, and old ones not at all.
const INITRAMFS_MAX: u64 = 30_000_000;
/// The most that a packed kernel may unpack to.
const KERNEL_MAX: u64 = 256 << 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Some Pis, or some uses, will not work.
    Warning,
    /// No Pi will boot.
    Error,
}

/// Something that is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub weight: Weight,
    /// In words.
    pub text: String,
}

impl Finding {
    pub(super) fn new(weight: Weight, text: impl Into<String>) -> Self {
        Self { weight, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight {
            Weight::Warning => "warning",
            Weight::Error => "error",
        };
        write!(f, "{weight}: {}", self.text)
    }
}

/// What the agent needs of a kernel, and what for. With `m` a module would do.
const OPTIONS: [(&str, &str); 7] = [
    ("CONFIG_BLK_DEV_INITRD", "unpack the initramfs"),
    ("CONFIG_DEVTMPFS", "have device nodes"),
    ("CONFIG_TMPFS", "have folders in memory"),
    ("CONFIG_MMC", "see the card"),
    ("CONFIG_MMC_BLOCK", "see the card"),
    ("CONFIG_EXT4_FS", "mount the root filesystem"),
    ("CONFIG_PACKET", "ask for an address"),
];

/// What unpacks the initramfs; of no use as a module.
const fn unpacker(packing: Packing) -> &'static str {
    match packing {
        Packing::Gzip => "CONFIG_RD_GZIP",
        Packing::Zstd => "CONFIG_RD_ZSTD",
    }
}

/// Looks whether the agent is a static program for 64-bit ARM.
#[must_use]
pub fn agent(bytes: &[u8]) -> Vec<Finding> {
    let error = |text: &str| vec![Finding::new(Weight::Error, format!("the agent {text}"))];
    let number = |at: usize, size: usize| {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    if bytes.get(..4) != Some(b"\x7fELF") {
        return error("is no Linux program; give --agent the binary `pi-agent`");
    }
    // 64 bit, little end first, AArch64.
    if (number(4, 1), number(5, 1), number(18, 2)) != (Some(2), Some(1), Some(183)) {
        return error("is for another processor; build it with `--target aarch64-unknown-linux-musl`");
    }
    let headers = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(at), Some(size), Some(count)) = headers else { return error("is cut") };
    let kind = |n: u64| number(usize::try_from(n.checked_mul(size)?.checked_add(at)?).ok()?, 4);
    let Some(kinds) = (0..count).map(kind).collect::<Option<Vec<_>>>() else { return error("is cut") };
    // The segment that names a dynamic linker.
    if kinds.contains(&3) {
        return error("needs a dynamic linker, which the initramfs does not have; build it static (musl)");
    }
    Vec::new()
}

/// Looks whether this is a kernel for 64-bit ARM that has what the agent needs; `modules`:
/// whether modules are in the initramfs, `packing`: how that is packed.
#[must_use]
pub fn kernel(name: &str, bytes: &[u8], modules: bool, packing: Packing) -> Vec<Finding> {
    let mut unpacked = Vec::new();
    let image = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut decoder = MultiGzDecoder::new(Cursor::new(bytes)).take(KERNEL_MAX);
        // What comes before an error is good enough to look at: the packed one is what boots.
        let _ = decoder.read_to_end(&mut unpacked);
        &unpacked
    } else {
        bytes
    };
    if image.get(0x24..0x28) == Some(&[0x18, 0x28, 0x6f, 0x01]) {
        return vec![Finding::new(
            Weight::Error,
            format!("{name} is a kernel for 32-bit ARM, and the agent is a 64-bit program; take kernel8.img"),
        )];
    }
    if image.get(56..60) != Some(b"ARM\x64") {
        return vec![Finding::new(
            Weight::Error,
            format!("{name} is no kernel for 64-bit ARM (an arm64 Image)"),
        )];
    }
    let Some(config) = embedded_config(image) else { return Vec::new() };
    let mut found = Vec::new();
    if value(&config, unpacker(packing)) != Some("y") {
        let text = format!(
            "{name} is without {}, needed to unpack the initramfs; take another --packing",
            unpacker(packing)
        );
        found.push(Finding::new(Weight::Error, text));
    }
    for (option, what) in OPTIONS {
        match value(&config, option) {
            Some("y") => {}
            Some("m") if modules => {}
            Some(_) => found.push(Finding::new(
                Weight::Warning,
                format!("{name} has {option} as a module, needed to {what}; give it with --modules, or take another kernel"),
            )),
            None => found.push(Finding::new(
                Weight::Warning,
                format!("{name} is without {option}, needed to {what}; take another kernel"),
            )),
        }
    }
    found
}

/// The configuration that a kernel was built with, if it carries it (CONFIG_IKCONFIG).
fn embedded_config(image: &[u8]) -> Option<String> {
    let marker = b"IKCFG_ST";
    let at = image.windows(marker.len()).position(|w| w == marker)? + marker.len();
    let mut text = String::new();
    MultiGzDecoder::new(image.get(at..)?).take(1 << 20).read_to_string(&mut text).ok();
    (!text.is_empty()).then_some(text)
}

fn value<'a>(config: &'a str, option: &str) -> Option<&'a str> {
    config.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='))
}

/// Looks whether a folder, and each for the Pis of one image in it, has everything that each model needs; and whether
/// the `boot.img` in it, in these and in those for single Pis can be booted.
#[must_use]
pub fn folder(path: &Path) -> Vec<Finding> {
    let mut found = one(path);
    let folders = |at: &str| {
        let entries = std::fs::read_dir(path.join(at)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir())
    };
    let named = |name: &Path, findings: Vec<Finding>| -> Vec<Finding> {
        let text = |text: String| format!("{}: {text}", name.display());
        findings.into_iter().map(|f| Finding { text: text(f.text), ..f }).collect()
    };
    for image in folders(IMAGES) {
        found.extend(named(&Path::new(IMAGES).join(image.file_name()), one(&image.path())));
    }
    for own in folders("") {
        let name = own.file_name();
        if name.to_str().is_some_and(|name| own_part(&format!("{name}/x")).is_some()) {
            found.extend(named(Path::new(&name), boot_check::boot_image(&own.path())));
        }
    }
    found
}

fn one(path: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let has = |name: &str| path.join(name).is_file();
    let initramfs = Packing::ALL.map(Packing::file).into_iter().find(|name| has(name));
    for name in ["config.txt", "cmdline.txt", initramfs.unwrap_or(Packing::Gzip.file())] {
        if !has(name) {
            let text = format!("there is no {name}; `piman netboot build --out {}` makes it", path.display());
            found.push(Finding::new(Weight::Error, text));
        }
    }
    if !["kernel8.img", "kernel_2712.img"].into_iter().any(has) {
        found.push(Finding::new(
            Weight::Error,
            "there is no kernel8.img; give one with --kernel or --firmware",
        ));
    }
    let missing = |files: &[&str]| -> Vec<String> {
        files.iter().filter(|f| !has(f)).map(|f| (*f).to_owned()).collect()
    };
    let lacks: Vec<(&str, Vec<String>)> =
        MODELS.iter().map(|(model, files)| (*model, missing(files))).collect();
    for (model, files) in lacks.into_iter().filter(|(_, files)| !files.is_empty()) {
        let text = format!(
            "a {model} will not boot: there is no {}; --firmware takes a folder that has it",
            files.join(", ")
        );
        found.push(Finding::new(Weight::Warning, text));
    }
    let name = initramfs.unwrap_or_default();
    let size = std::fs::metadata(path.join(name)).map_or(0, |m| m.len());
    if size > INITRAMFS_MAX {
        let text = format!(
            "{name} has {} MB; above 30 MB Pis are slow to load it or do not at all: leave modules out",
            size / 1_000_000
        );
        found.push(Finding::new(Weight::Warning, text));
    }
    found.extend(boot_check::boot_image(path));
    // What cannot be listed has no files either, which is said above.
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(text) = name.to_str().filter(|_| entry.path().is_dir()).and_then(nobody_asks) else {
            continue;
        };
        found.push(Finding::new(Weight::Warning, text));
    }
    found
}

/// The fewest hexadecimal digits that look like a part of a serial number, and not like a word.
const DIGITS_MIN: usize = 6;

/// What is wrong with a folder that seems to be for one Pi, if no Pi asks for it by this name: Pis ask by the last 8
/// digits of their serial number, or by their hardware address with `-`, in lower case.
fn nobody_asks(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let mac = lower.parse::<Mac>().map(|mac| mac.to_string().replace(':', "-"));
    let serial = || {
        // What some put in front of it: `0x`, `serial-`, `pi_`.
        let digits = lower.rsplit(|c: char| !c.is_ascii_hexdigit()).next().unwrap_or_default();
        let is_word = digits.len() < lower.len() && digits.len() < 8;
        (digits.len() >= DIGITS_MIN && !is_word && is_hex(digits)).then_some(digits)
    };
    let right = match mac {
        Ok(mac) => mac,
        Err(_) => {
            let digits = serial()?;
            match digits.get(digits.len().saturating_sub(8)..).filter(|last| last.len() == 8) {
                Some(last) => last.to_owned(),
                None => format!("{digits:0>8}"),
            }
        }
    };
    (right != name).then(|| {
        format!(
            "no Pi asks for the folder {name}: a Pi asks by the last 8 digits of its serial number, in lower case and \
             with nothing before them; if this one is for such a Pi, call it {right}"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    pub(crate) fn elf(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        elf
    }

    fn says(found: &[Finding], word: &str) -> bool {
        found.iter().any(|f| f.to_string().contains(word))
    }

    #[test]
    fn agents() {
        assert_eq!(agent(&elf(183, &[1, 2])), []);
        assert!(says(&agent(&elf(183, &[1, 3])), "dynamic linker"));
        assert!(says(&agent(&elf(62, &[1])), "another processor"));
        assert!(says(&agent(b"#!/bin/sh"), "no Linux program"));
        assert!(says(&agent(&elf(183, &[1])[..40]), "cut"));
        assert!(says(&agent(&elf(183, &[1, 1])[..100]), "cut"));
        let mut lie = elf(183, &[1, 2]);
        lie[32..40].fill(0xff);
        assert!(says(&agent(&lie), "cut"), "headers behind the end of all memory");
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn folders_of_single_pis() {
        for (name, right) in [
            ("10000000abcdef01", "abcdef01"),
            ("ABCDEF01", "abcdef01"),
            ("serial-abcdef01", "abcdef01"),
            ("0xabcdef01", "abcdef01"),
            ("bcdef01", "0bcdef01"),
            ("DC-A6-32-01-36-C2", "dc-a6-32-01-36-c2"),
            ("dc:a6:32:01:36:c2", "dc-a6-32-01-36-c2"),
        ] {
            let text = nobody_asks(name).unwrap_or_default();
            assert!(text.contains(name) && text.ends_with(right), "{name}: {text}");
        }
        for name in ["abcdef01", "dc-a6-32-01-36-c2", "overlays", "dead", "old-facade", "broadcom", "\u{e9}"]
        {
            assert_eq!(nobody_asks(name), None, "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("10000000ABCDEF01")).unwrap();
        std::fs::write(dir.path().join("10000000abcdef02"), "a file").unwrap();
        let found = folder(dir.path());
        assert_eq!(found.iter().filter(|f| f.text.contains("no Pi asks")).count(), 1);
    }

    #[test]
    fn kernels() {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        let look = |bytes: &[u8], modules| kernel("kernel8.img", bytes, modules, Packing::Gzip);
        assert_eq!(look(&image, false), []);
        assert_eq!(look(&gzip(&image), false), []);
        let all: String = OPTIONS.iter().map(|(option, _)| format!("{option}=y\n")).collect();
        let all = all + "CONFIG_RD_GZIP=y\n";
        let with = |config: &str| [&image[..], b"IKCFG_ST", &gzip(config.as_bytes()), b"IKCFG_ED"].concat();
        assert_eq!(look(&with(&all), false), []);
        let module = gzip(&with(&all.replace("EXT4_FS=y", "EXT4_FS=m")));
        assert!(says(&look(&module, false), "CONFIG_EXT4_FS as a module"));
        assert_eq!(look(&module, true), []);
        let without = with(&all.replace("CONFIG_PACKET=y", "# CONFIG_PACKET is not set"));
        assert!(says(&look(&without, false), "without CONFIG_PACKET"));
        assert!(says(&kernel("k", &with(&all), false, Packing::Zstd), "error: k is without CONFIG_RD_ZSTD"));
        let mut old = vec![0; 4096];
        old[0x24..0x28].copy_from_slice(&[0x18, 0x28, 0x6f, 0x01]);
        assert!(says(&kernel("kernel7.img", &old, false, Packing::Gzip), "32-bit"));
        assert!(says(&kernel("x", b"MZ", false, Packing::Gzip), "no kernel"));
    }
}
