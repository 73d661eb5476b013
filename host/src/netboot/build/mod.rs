//! `piman netboot build`: the folder that Pis fetch, made from agent, firmware and kernel.
//!
//! The same input gives the same bytes: no times, owners or order of a folder get in. Only `boot.sig` says when it was
//! made, unless `SOURCE_DATE_EPOCH` does.

mod boot_check;
pub mod boot_image;
mod boot_key;
pub mod cpio;
mod fat;
pub mod from_image;
pub mod lint;
pub mod modules;

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flate2::{Compression, GzBuilder};
use minisign::PublicKey;
use piman_core::install::KEY_FILE;

use boot_image::{BootImageArgs, Recipe};
use cpio::{Cpio, Kind};
use lint::{Finding, Weight};

use super::boot_sig::{BOOT_IMG, BOOT_SIG};
use crate::sys::files::replace;

/// How an initramfs is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Packing {
    /// Every kernel takes it.
    #[default]
    Gzip,
    /// Smaller, for kernels with CONFIG_RD_ZSTD (5.9 and newer).
    Zstd,
}

impl Packing {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The name of an initramfs that is packed so.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Gzip => "initramfs.cpio.gz",
            Self::Zstd => "initramfs.cpio.zst",
        }
    }
}

/// The folder of the firmware's changes to device trees, which `dtoverlay=` names.
const OVERLAYS: &str = "overlays";
/// Where modules are in the initramfs, in the order in which the agent loads them.
pub const MODULES: &str = "lib/modules/piman";

/// What a folder is made from.
#[derive(Debug, Clone, clap::Args)]
pub struct Ingredients {
    /// Folder to make or complete
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The static agent for 64-bit ARM; becomes /init
    #[arg(long, value_name = "FILE")]
    pub agent: PathBuf,
    /// Folder of the Raspberry Pi firmware: start*.elf, fixup*.dat, bootcode.bin, *.dtb, kernel*.img
    #[arg(long, value_name = "DIR")]
    pub firmware: Option<PathBuf>,
    /// Kernel for all models, in place of the firmware's
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Device tree, beside or in place of the firmware's; repeat
    #[arg(long, value_name = "FILE")]
    pub dtb: Vec<PathBuf>,
    /// Folder of kernel modules that the agent loads first: the kernel's own (lib/modules/VERSION) with
    /// --module, or one of *.ko files, taken as its file `order` says, or by name
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Public key: Pis that boot this install only what is signed by its secret key
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
    /// Module of the kernel's folder, taken with all that it depends on; repeat
    #[arg(long, value_name = "NAME")]
    pub module: Vec<String>,
    /// How the initramfs is packed
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    pub packing: Packing,
    /// More for the kernel's command line, such as `piman.server=192.168.1.2`
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// The folder as one file that boot loaders can check.
    #[command(flatten)]
    pub boot_image: BootImageArgs,
}

/// What was made.
#[derive(Debug)]
pub struct Built {
    /// Names and sizes, in order of names.
    pub files: Vec<(String, u64)>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Built {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (name, size) in &self.files {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{size:>10}  {name}");
        }
        for finding in &self.findings {
            let _ = writeln!(text, "{finding}");
        }
        text
    }
}

/// Makes the folder.
///
/// # Errors
/// If something cannot be read or written, or could not boot any Pi.
pub fn build(from: &Ingredients) -> anyhow::Result<Built> {
    let boot_image = &from.boot_image;
    let recipe = boot_image.boot_image.then(|| Recipe::new(boot_image)).transpose()?;
    let agent = read(&from.agent)?;
    if let (None, Some(name)) = (&from.modules, from.module.first()) {
        bail!(
            "--module {name} is looked up in the folder of --modules, or in an image with --from-image: name one"
        );
    }
    let modules = from.modules.as_deref().map(|folder| modules::collect(folder, &from.module));
    let modules = modules.transpose()?.unwrap_or_default();
    let mut secrets = Vec::new();
    if let Some(file) = &from.public_key {
        let key = read(file)?;
        let text = String::from_utf8_lossy(&key);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        PublicKey::from_base64(line)
            .with_context(|| format!("{} is no public key of minisign", file.display()))?;
        secrets.push((KEY_FILE.trim_start_matches('/'), 0o644, key));
    }
    let mut findings = lint::agent(&agent);
    let name = from.packing.file();
    let mut files = vec![(name.to_owned(), pack(&initramfs(&agent, &modules, &secrets)?, from.packing)?)];
    if let Some(folder) = &from.firmware {
        files.extend(firmware(folder, from.kernel.is_some())?);
    }
    if let Some(kernel) = &from.kernel {
        files.push(("kernel8.img".to_owned(), read(kernel)?));
    }
    for dtb in &from.dtb {
        let name = dtb.file_name().and_then(|n| n.to_str()).context("a device tree without a name")?;
        files.retain(|(other, _)| other != name);
        files.push((name.to_owned(), read(dtb)?));
    }
    let kernels = || files.iter().filter(|(name, _)| name.starts_with("kernel"));
    for (name, bytes) in kernels().filter(|(name, _)| name == "kernel8.img" || name == "kernel_2712.img") {
        findings.extend(lint::kernel(name, bytes, !modules.is_empty(), from.packing));
    }
    let pi5 = kernels().any(|(name, _)| name == "kernel_2712.img");
    files.push(("config.txt".to_owned(), config(pi5, from.packing, boot_image.boot_ramdisk).into_bytes()));
    files.push(("cmdline.txt".to_owned(), cmdline(&from.cmdline)?.into_bytes()));
    if let Some(error) = findings.iter().find(|f| f.weight == Weight::Error) {
        bail!("{}", error.text);
    }
    files.sort();
    fs::create_dir_all(&from.out).with_context(|| format!("making {}", from.out.display()))?;
    // Of an earlier build: nobody is to take it for this one.
    for other in Packing::ALL.into_iter().filter(|p| *p != from.packing) {
        let _ = fs::remove_file(from.out.join(other.file()));
    }
    let mut sizes = Vec::new();
    for (name, bytes) in files {
        write(&from.out, &name, &bytes)?;
        sizes.push((name, bytes.len() as u64));
    }
    if let Some(recipe) = recipe {
        let made = recipe.make(&from.out, &config(pi5, from.packing, false))?;
        findings.extend(made.findings);
        // A server that has both open gives each Pi the two that belong to each other.
        for (name, bytes) in [(BOOT_IMG, made.image), (BOOT_SIG, made.sig.into_bytes())] {
            write(&from.out, name, &bytes)?;
            sizes.push((name.to_owned(), bytes.len() as u64));
        }
    }
    findings.extend(lint::folder(&from.out));
    Ok(Built { files: sizes, findings })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A Pi that fetches the file meanwhile gets the old or the new one.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    let folder = path.parent().unwrap_or(folder);
    let written = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        replace(&path, 0o644, bytes)
    };
    written().with_context(|| format!("writing {}", path.display()))
}

fn firmware(folder: &Path, own_kernel: bool) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files =
        matching(folder, |name| is_firmware(name) && !(own_kernel && name.starts_with("kernel")))?;
    if files.is_empty() {
        bail!(
            "{} has no firmware: it needs the folder `boot` of the Raspberry Pi firmware, with start4.elf and others",
            folder.display()
        );
    }
    let overlays = folder.join(OVERLAYS);
    if overlays.is_dir() {
        let found = matching(&overlays, is_overlay)?;
        files.extend(found.into_iter().map(|(name, bytes)| (format!("{OVERLAYS}/{name}"), bytes)));
    }
    Ok(files)
}

/// Whether a Pi's firmware, or the kernel that it starts, asks for a file of this name.
fn is_firmware(name: &str) -> bool {
    let is = |start: &str, end: &str| name.starts_with(start) && name.ends_with(end);
    let loads = is("kernel", ".img") || is("start", ".elf") || is("fixup", ".dat") || is("", ".dtb");
    loads || name == "bootcode.bin"
}

fn is_overlay(name: &str) -> bool {
    !name.contains('/') && (name.ends_with(".dtbo") || name.ends_with(".dtb"))
}

/// The files of a folder whose names are wanted.
fn matching(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let what = || format!("reading the firmware {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(what)? {
        let entry = entry.with_context(what)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if wanted(&name) && entry.path().is_file() {
            let bytes = read(&entry.path())?;
            files.push((name, bytes));
        }
    }
    Ok(files)
}

fn initramfs(
    agent: &[u8],
    modules: &[(String, Vec<u8>)],
    secrets: &[(&str, u32, Vec<u8>)],
) -> anyhow::Result<Vec<u8>> {
    let pack = || -> std::io::Result<Vec<u8>> {
        let mut cpio = Cpio::new(Vec::new());
        for name in ["dev", "mnt", "proc", "run", "sys", "tmp"] {
            cpio.add(name, 0o755, Kind::Folder)?;
        }
        // The kernel opens it for /init before anything is mounted.
        cpio.add("dev/console", 0o600, Kind::Device(5, 1))?;
        cpio.add("init", 0o755, Kind::File(agent))?;
        if !secrets.is_empty() {
            cpio.add("etc", 0o755, Kind::Folder)?;
            cpio.add("etc/piman", 0o755, Kind::Folder)?;
        }
        for (name, mode, bytes) in secrets {
            cpio.add(name, *mode, Kind::File(bytes))?;
        }
        if !modules.is_empty() {
            for (at, _) in MODULES.match_indices('/') {
                cpio.add(MODULES.get(..at).unwrap_or_default(), 0o755, Kind::Folder)?;
            }
            cpio.add(MODULES, 0o755, Kind::Folder)?;
        }
        for (name, bytes) in modules {
            cpio.add(&format!("{MODULES}/{name}"), 0o644, Kind::File(bytes))?;
        }
        cpio.finish()
    };
    pack().context("packing the initramfs")
}

fn pack(archive: &[u8], packing: Packing) -> anyhow::Result<Vec<u8>> {
    let packed = match packing {
        Packing::Gzip => {
            let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
            gzip.write_all(archive).and_then(|()| gzip.finish())
        }
        // Windows of 8 MiB, of which kernels take 128.
        Packing::Zstd => zstd::bulk::compress(archive, 19),
    };
    packed.context("packing the initramfs")
}

/// `ramdisk`: whether models that can load `boot.img` and nothing else.
fn config(pi5: bool, packing: Packing, ramdisk: bool) -> String {
    let initramfs = packing.file();
    let mut text = format!(
        "# Made by `piman netboot build`; options of your own go into a folder named like the\n\
         # serial number of the Pi, as SERIAL/config.txt.\n\
         [all]\narm_64bit=1\nenable_uart=1\nauto_initramfs=0\nkernel=kernel8.img\n\
         initramfs {initramfs} followkernel\n"
    );
    if pi5 {
        text.push_str("[pi5]\nkernel=kernel_2712.img\n[all]\n");
    }
    if ramdisk {
        text.push_str("[pi4]\nboot_ramdisk=1\n[pi5]\nboot_ramdisk=1\n[all]\n");
    }
    text
}

fn cmdline(more: &str) -> anyhow::Result<String> {
    if more.contains('\n') {
        bail!("--cmdline must be one line");
    }
    let base = "console=serial0,115200 console=tty1 panic=10";
    Ok(format!("{base} {}", more.trim()).trim_end().to_owned() + "\n")
}
