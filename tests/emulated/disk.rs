//! Disks that others laid out, as their tools see them: the table by sfdisk, what the firmware boots from by mtools.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use piman_tests::contents::admin;
use piman_tests::disk::{e2fsck, run};

/// A partition, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// What it is called in the table: `PARTUUID`.
    pub(crate) id: String,
}

/// A table that sfdisk has nothing to say against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) id: String,
    pub(crate) parts: Vec<Part>,
}

impl Table {
    pub(crate) fn of(disk: &Path) -> Self {
        let verified = run(admin("sfdisk").arg("--verify").arg(disk));
        let said = String::from_utf8([verified.stdout, verified.stderr].concat()).unwrap();
        assert!(said.contains("No errors detected"), "{said}");
        let json = run(admin("sfdisk").arg("--json").arg(disk)).stdout;
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let table = &json["partitiontable"];
        let id = |value: &serde_json::Value| value.as_str().unwrap().to_lowercase();
        let disk_id = id(&table["id"]);
        let parts = table["partitions"].as_array().unwrap().iter().enumerate().map(|(n, part)| Part {
            start: part["start"].as_u64().unwrap() * 512,
            length: part["size"].as_u64().unwrap() * 512,
            // In an MBR it follows from that of the disk.
            id: part
                .get("uuid")
                .map_or_else(|| format!("{}-{:02x}", disk_id.trim_start_matches("0x"), n + 1), id),
        });
        Self { parts: parts.collect(), id: disk_id.clone() }
    }

    /// The one that the firmware boots from.
    pub(crate) fn boot(&self) -> &Part {
        &self.parts[0]
    }
}

/// What blkid finds in a partition, such as `UUID` and `LABEL`.
pub(crate) fn facts(disk: &Path, part: &Part) -> BTreeMap<String, String> {
    let mut blkid = admin("blkid");
    blkid.args(["--probe", "--output", "export"]);
    blkid.args(["--offset", &part.start.to_string(), "--size", &part.length.to_string()]).arg(disk);
    let text = String::from_utf8(run(&mut blkid).stdout).unwrap();
    let facts = text.lines().filter_map(|line| line.split_once('=')).filter(|(key, _)| *key != "DEVNAME");
    facts.map(|(key, value)| (key.into(), value.into())).collect()
}

/// Judges the filesystem of a partition.
pub(crate) fn judge(disk: &Path, part: &Part) {
    match facts(disk, part)["TYPE"].as_str() {
        "ext4" => e2fsck(disk, part.start, part.length),
        "vfat" => {
            let copy = disk.with_extension("fat");
            take(disk, part, &copy);
            run(admin("fsck.fat").arg("-n").arg(&copy));
            fs::remove_file(copy).unwrap();
        }
        other => panic!("a filesystem {other}"),
    }
}

/// Copies a partition into a file of its own.
pub(crate) fn take(disk: &Path, part: &Part, to: &Path) {
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse"]);
    dd.arg(format!("skip={}", part.start)).arg(format!("count={}", part.length));
    dd.arg(format!("if={}", disk.display())).arg(format!("of={}", to.display()));
    run(&mut dd);
}

/// A file of the partition that the firmware boots from, if it is there.
pub(crate) fn boot_file(disk: &Path, name: &str) -> Option<Vec<u8>> {
    let output = mtool("mcopy", disk).args([&format!("::{name}"), "-"]).output().unwrap();
    output.status.success().then_some(output.stdout)
}

fn mtool(program: &str, disk: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-i").arg(format!("{}@@{}", disk.display(), Table::of(disk).boot().start));
    command
}

/// What the firmware of a Pi 3 loads and says to the kernel.
#[derive(Debug)]
pub(crate) struct BootFiles {
    pub(crate) kernel: String,
    pub(crate) initramfs: String,
    pub(crate) command_line: String,
}

/// The device tree of a Pi 3B, as the kernel names it.
pub(crate) const DEVICE_TREE: &str = "bcm2837-rpi-3-b.dtb";

impl BootFiles {
    /// By `config.txt`, as the firmware reads it.
    pub(crate) fn of(disk: &Path) -> Self {
        let text = |name: &str| {
            let bytes = boot_file(disk, name).unwrap_or_else(|| panic!("no {name}"));
            String::from_utf8(bytes).unwrap()
        };
        let (mut kernel, mut initramfs, mut automatic) = ("kernel8.img".to_owned(), None, false);
        let mut is_for_us = true;
        for line in text("config.txt").lines().map(str::trim) {
            match line.split_once(['=', ' ']) {
                _ if line.starts_with('[') => is_for_us = ["[all]", "[pi3]"].contains(&line),
                _ if !is_for_us => {}
                Some(("kernel", name)) => kernel = name.trim().to_owned(),
                Some(("initramfs", rest)) => {
                    initramfs = rest.split_whitespace().next().map(ToOwned::to_owned);
                }
                Some(("auto_initramfs", value)) => automatic = value == "1",
                _ => {}
            }
        }
        // `kernelX.img` becomes `initramfsX`.
        let by_name = || kernel.replace("kernel", "initramfs").trim_end_matches(".img").to_owned();
        let initramfs = initramfs.or_else(|| automatic.then(by_name)).expect("an initramfs");
        Self { kernel, initramfs, command_line: text("cmdline.txt").trim().to_owned() }
    }

    /// Writes the kernel, the initramfs and the device tree to files of these names in a folder.
    pub(crate) fn write(&self, disk: &Path, folder: &Path) {
        let all = [(&*self.kernel, "kernel"), (&self.initramfs, "initramfs"), (DEVICE_TREE, "device-tree")];
        for (name, to) in all {
            let content = boot_file(disk, name).unwrap_or_else(|| panic!("no {name} to boot from"));
            fs::write(folder.join(to), content).unwrap();
        }
    }
}

/// How large the ext4 filesystem that begins there is, in bytes, by its superblock.
pub(crate) fn filesystem_bytes(disk: &Path, start: u64) -> u64 {
    let mut superblock = [0; 32];
    File::open(disk).unwrap().read_exact_at(&mut superblock, start + 1024).unwrap();
    let number = |at: usize| u64::from(u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap()));
    number(4) * (1024 << number(24))
}
