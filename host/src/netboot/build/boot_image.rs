//! `boot.img` and `boot.sig`: the boot folder as one file that a Pi's boot loader loads as a whole and can check.
//!
//! The limit of its size: Raspberry Pi documents 96 MB for all models (`boot_ramdisk`). The release notes of the Pi 4's boot
//! loader say 128 MB since 2022-03-10, the first that boots by HTTP; for the Pi 5 no other figure is published.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::boot_key::BootKey;
use super::fat;
use super::lint::{Finding, Weight};
use crate::netboot::boot_sig::{BOOT_IMG, BOOT_SIG, BootSig};
use crate::netboot::tftp::folder::{Folder, IMAGES, own_part};
use crate::sys::clock::now_ms;

/// The largest image that every boot loader with HTTP loads, in bytes.
pub(crate) const IMAGE_MAX: u64 = 96 << 20;
/// Files in one image, at most.
const FILES_MAX: usize = 5000;
/// Folders in each other, at most.
const DEPTH_MAX: usize = 8;

/// What is asked for of an image.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BootImageArgs {
    /// Make boot.img and boot.sig, too: the folder's files as one file, for HTTP boot and secure boot of the Pi 4 and 5
    #[arg(long)]
    pub boot_image: bool,
    /// RSA key that signs boot.img: a PEM file, 2048 bits, not encrypted; without it only the hash is in boot.sig, which
    /// boots neither by HTTP nor with secure boot
    #[arg(long, value_name = "FILE", requires = "boot_image")]
    pub boot_key: Option<std::path::PathBuf>,
    /// Model that boot.img is for; repeat [default: all, with all files of the folder]
    #[arg(long, value_name = "MODEL", requires = "boot_image")]
    pub boot_model: Vec<BootModel>,
    /// Pis 4 and 5 that boot by TFTP load boot.img as well, in place of single files (boot_ramdisk=1)
    #[arg(long, requires = "boot_image")]
    pub boot_ramdisk: bool,
}

/// A family of models whose boot loader loads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum BootModel {
    /// Pi 4, 400, CM4.
    Pi4,
    /// Pi 5, 500, CM5.
    Pi5,
}

impl BootModel {
    const ALL: [Self; 2] = [Self::Pi4, Self::Pi5];

    /// What it does not boot without, beside configuration and initramfs; one of each group.
    fn needs(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Pi4 => &[&["start4.elf"], &["fixup4.dat"], &["kernel8.img"]],
            Self::Pi5 => &[&["kernel_2712.img", "kernel8.img"]],
        }
    }

    /// The beginning of the names of its device trees.
    fn trees(self) -> &'static str {
        match self {
            Self::Pi4 => "bcm2711",
            Self::Pi5 => "bcm2712",
        }
    }

    /// What it lacks among these files; `None`: nothing.
    fn lacks(self, files: &[(String, Vec<u8>)]) -> Option<String> {
        let has = |wanted: &dyn Fn(&str) -> bool| files.iter().any(|(name, _)| wanted(name));
        let missing = self.needs().iter().find(|group| !has(&|name| group.contains(&name)));
        let tree = |name: &str| name.starts_with(self.trees()) && name.ends_with(".dtb");
        match missing {
            Some(group) => Some(group.join(" or ")),
            None if !has(&tree) => Some(format!("{}*.dtb", self.trees())),
            None => None,
        }
    }
}

/// Whether one of these models loads a file of this name; what is not known here is for all.
fn is_for(models: &BTreeSet<BootModel>, name: &str) -> bool {
    use BootModel::{Pi4, Pi5};
    let is = |start: &str, end: &str| name.starts_with(start) && name.ends_with(end);
    let (pi4, pi5) = (models.contains(&Pi4), models.contains(&Pi5));
    if is("start4", ".elf") || is("fixup4", ".dat") || is("bcm2711", ".dtb") {
        return pi4;
    }
    if is("bcm2712", ".dtb") || name == "kernel_2712.img" {
        return pi5;
    }
    // Of older models, and of 32 bits, which the agent cannot run on.
    let is_old = is("start", ".elf") || is("fixup", ".dat") || is("bcm27", ".dtb") || is("bcm28", ".dtb");
    !(is_old || name == "bootcode.bin" || is("kernel", ".img") && name != "kernel8.img")
}

/// An image and the file that belongs to it.
pub(super) struct BootImage {
    pub(super) image: Vec<u8>,
    pub(super) sig: String,
    pub(super) findings: Vec<Finding>,
}

/// What an image is made with: all that can be looked at before the folder is written.
pub(super) struct Recipe<'a> {
    args: &'a BootImageArgs,
    key: Option<BootKey>,
    made: Option<u64>,
    findings: Vec<Finding>,
}

impl<'a> Recipe<'a> {
    /// Reads the key, and `SOURCE_DATE_EPOCH`.
    ///
    /// # Errors
    /// If one of them cannot be used; the message says what to do.
    pub(super) fn new(args: &'a BootImageArgs) -> anyhow::Result<Self> {
        let made = fat::source_date()?;
        let (key, finding) = args.boot_key.as_deref().map(BootKey::read).transpose()?.unzip();
        Ok(Self { args, key, made, findings: finding.flatten().into_iter().collect() })
    }

    /// Makes the image of all that is in the folder; `config` in place of its `config.txt`.
    ///
    /// # Errors
    /// If a file or the image cannot be, or a model that was asked for could not boot it.
    pub(super) fn make(mut self, out: &Path, config: &str) -> anyhow::Result<BootImage> {
        let files = files(out, self.args, config, &mut self.findings)?;
        let image = fat::image(&files, IMAGE_MAX).context("making boot.img")?;
        let rsa2048 = self.key.map(|key| key.sign(&image)).transpose().context("signing boot.img")?;
        let made = self.made.unwrap_or_else(|| now_ms() / 1000);
        let sig = BootSig { sha256: Sha256::digest(&image).into(), made, rsa2048 }.to_string();
        Ok(BootImage { image, sig, findings: self.findings })
    }
}

/// What comes into the image.
fn files(
    out: &Path,
    args: &BootImageArgs,
    config: &str,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let asked: BTreeSet<BootModel> = args.boot_model.iter().copied().collect();
    let wanted = |name: &str| asked.is_empty() || is_for(&asked, name);
    let files = content(out, &wanted, findings);
    let mut files = files.with_context(|| format!("reading {}", out.display()))?;
    if let Some((_, bytes)) = files.iter_mut().find(|(name, _)| name == "config.txt") {
        *bytes = config.as_bytes().to_vec();
    }
    for model in &asked {
        if let Some(what) = model.lacks(&files) {
            bail!(
                "boot.img for {model:?} would not boot: there is no {what}; --firmware takes a folder that has it"
            );
        }
    }
    let lacks: Vec<String> = BootModel::ALL.iter().filter_map(|model| model.lacks(&files)).collect();
    ensure!(
        lacks.len() < BootModel::ALL.len(),
        "boot.img would boot neither a Pi 4 nor a Pi 5: there is no {}; --firmware takes a folder that has it",
        lacks.join(", and no ")
    );
    Ok(files)
}

/// Whether an image has none of this, which is in the topmost folder: what is for some Pis, the image itself, and what has
/// no complete name yet.
fn is_apart(name: &str) -> bool {
    let for_one = own_part(&format!("{name}/x")).is_some();
    name == BOOT_IMG || name == BOOT_SIG || name == IMAGES || name.starts_with('.') || for_one
}

/// The files of the folder that are for every Pi and are wanted, in the order of their names.
fn content(
    out: &Path,
    wanted: &dyn Fn(&str) -> bool,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = Folder::new(out);
    let mut files = Vec::new();
    let mut rest = vec![String::new()];
    let mut total = 0;
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(out.join(&at)).with_context(|| format!("listing {at}"))? {
            let entry = entry?;
            let Ok(last) = entry.file_name().into_string() else {
                bail!("{} is no name for FAT: rename or remove it", entry.path().display());
            };
            if at.is_empty() && is_apart(&last) {
                if own_part(&format!("{last}/x")).is_some() && entry.path().is_dir() {
                    let text = format!(
                        "the folder {last} is for one Pi, and boot.img has none of it: with --out {} --boot-image that Pi \
                         gets one of its own (HTTP_PATH={last})",
                        entry.path().display()
                    );
                    findings.push(Finding::new(Weight::Warning, text));
                }
                continue;
            }
            let name = if at.is_empty() { last } else { format!("{at}/{last}") };
            // Links are followed. Files that are not below the folder are refused when they are opened.
            if entry.path().is_dir() {
                ensure!(
                    name.split('/').count() <= DEPTH_MAX,
                    "{name}: more than {DEPTH_MAX} folders in each other"
                );
                rest.push(name);
                continue;
            }
            if !wanted(&name) {
                continue;
            }
            let found = folder.open(&name, None).with_context(|| format!("opening {name}"))?;
            total += found.length;
            ensure!(
                total <= IMAGE_MAX && files.len() < FILES_MAX,
                "there are more than {} MiB or {FILES_MAX} files, which no boot loader loads: choose models with \
                 --boot-model, or remove what Pis do not need",
                IMAGE_MAX >> 20
            );
            let mut bytes = Vec::new();
            // It may grow meanwhile.
            found
                .file
                .take(found.length)
                .read_to_end(&mut bytes)
                .with_context(|| format!("reading {name}"))?;
            files.push((name, bytes));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_models() {
        let names = [
            "bootcode.bin",
            "start.elf",
            "start_x.elf",
            "start4.elf",
            "start4cd.elf",
            "fixup.dat",
            "fixup4.dat",
            "bcm2710-rpi-3-b.dtb",
            "bcm2711-rpi-4-b.dtb",
            "bcm2712-rpi-5-b.dtb",
            "kernel.img",
            "kernel7l.img",
            "kernel8.img",
            "kernel_2712.img",
            "config.txt",
            "overlays/disable-bt.dtbo",
            "initramfs.cpio.gz",
        ];
        let all = ["kernel8.img", "config.txt", "overlays/disable-bt.dtbo", "initramfs.cpio.gz"];
        let pi4 = ["start4.elf", "start4cd.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"];
        let pi5 = ["bcm2712-rpi-5-b.dtb", "kernel_2712.img"];
        for (models, own) in [
            (&[BootModel::Pi4][..], pi4.to_vec()),
            (&[BootModel::Pi5], pi5.to_vec()),
            (&BootModel::ALL, [&pi4[..], &pi5].concat()),
        ] {
            let models: BTreeSet<_> = models.iter().copied().collect();
            let found: BTreeSet<_> = names.into_iter().filter(|name| is_for(&models, name)).collect();
            assert_eq!(found, all.into_iter().chain(own).collect(), "{models:?}");
        }
    }

    #[test]
    fn what_is_for_some_pis_stays_out() {
        for name in ["boot.img", "boot.sig", "images", ".tmpAbC", "abcdef01", "dc-a6-32-01-36-c2"] {
            assert!(is_apart(name), "{name}");
        }
        for name in ["config.txt", "overlays", "boot.img.old", "abcdef0"] {
            assert!(!is_apart(name), "{name}");
        }
    }
}
