//! The partition table, and the boot partition's file system.

use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, bail};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use piman_core::install::Stage;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::mbr::{self, FAT32_LBA, LINUX, Mbr, Partition};

use super::{Disk, RootArea, Window};
use crate::failure::{Cause, Failure, OrFail};

impl Disk {
    /// Writes the partition table and an empty boot partition. What the disk has of these already is left as it
    /// is, whoever made it: a boot partition in its place keeps what is in it.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit or the disk cannot be written.
    pub fn partition(&self, layout: &Layout) -> Result<RootArea, Failure> {
        let root = RootArea::of(layout, self.bytes)?;
        let table =
            table(layout, &root).or_fail(Stage::Partition, Cause::Disk, "making the partition table")?;
        let old = self.read_table().ok();
        let boot = |table: &Mbr| table.partitions.first().map(place);
        let keep = old.as_ref().is_some_and(|old| boot(old) == boot(&table));
        let same = old.is_some_and(|old| {
            old.disk_id == table.disk_id
                && old.partitions.iter().map(place).eq(table.partitions.iter().map(place))
        });
        if !same {
            self.write_table(layout, &table).or_fail(
                Stage::Partition,
                Cause::Disk,
                format!("writing the partition table of {self}"),
            )?;
        }
        let what = format!("making the boot partition of {self}");
        self.boot_partition(layout, keep).or_fail(Stage::Partition, Cause::Disk, what)?;
        self.sync(Stage::Partition)?;
        Ok(root)
    }

    fn read_table(&self) -> anyhow::Result<Mbr> {
        read_table(&self.file)
    }

    fn write_table(&self, layout: &Layout, table: &Mbr) -> anyhow::Result<()> {
        let mut sectors = table.write().to_vec();
        // 33 more sectors as zeros: where a GPT would be, which must not come back to life. A partition that begins
        // there may be one that is kept.
        let zeros = 34.min(layout.boot_start.max(1));
        sectors.resize(usize::try_from(zeros * SECTOR)?, 0);
        Window::new(&self.file, 0, self.bytes).write_all(&sectors)?;
        self.file.sync_all()?;
        Ok(())
    }

    fn boot_partition(&self, layout: &Layout, keep: bool) -> anyhow::Result<()> {
        let window = || Window::new(&self.file, layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
        if keep && FileSystem::new(window(), FsOptions::new()).is_ok() {
            return Ok(());
        }
        let sectors = u32::try_from(layout.boot_sectors)?;
        // The type of the partition says FAT32 with LBA; it takes 65,525 clusters at least.
        let fat_type = if sectors > 66_600 { FatType::Fat32 } else { FatType::Fat16 };
        let mut options = FormatVolumeOptions::new()
            .total_sectors(sectors)
            .volume_id(layout.disk_id)
            .volume_label(*b"BOOT       ");
        if sectors > 8400 {
            options = options.fat_type(fat_type);
        } else if sectors > 8192 {
            // Of some sizes clusters of 1 KiB would be too many for FAT12, and too few for FAT16.
            options = options.bytes_per_cluster(2048);
        }
        if sectors > 66_600 && sectors < 532_480 {
            options = options.bytes_per_cluster(512);
        }
        fatfs::format_volume(window(), options)?;
        Ok(())
    }
}

fn table(layout: &Layout, root: &RootArea) -> anyhow::Result<Mbr> {
    let partition = |kind, first: u64, sectors: u64| -> anyhow::Result<Partition> {
        Ok(Partition::new(kind, u32::try_from(first)?, u32::try_from(sectors)?))
    };
    let boot = partition(FAT32_LBA, layout.boot_start, layout.boot_sectors)?;
    let root = partition(LINUX, layout.root_start, root.length / SECTOR)?;
    let none = Partition::default();
    Ok(Mbr { partitions: [boot, root, none, none], ..Mbr::new(layout.disk_id) })
}

fn read_table(disk: &File) -> anyhow::Result<Mbr> {
    let mut sector = [0; mbr::BYTES];
    Window::new(disk, 0, SECTOR).read_exact(&mut sector).context("reading the partition table")?;
    Ok(Mbr::read(&sector)?)
}

/// What an entry says of its partition: its type, its first sector, how many it has. The rest differs from one
/// program to another: places in cylinders, which nobody reads any more, and which one is active.
fn place(entry: &Partition) -> (u8, u32, u32) {
    (entry.kind, entry.first, entry.sectors)
}

/// Where the partition table of a disk of so many bytes has the root partition.
#[must_use]
pub fn root_in_table(disk: &File, bytes: u64) -> Option<RootArea> {
    let [_, root, ..] = read_table(disk).ok()?.partitions;
    let area = RootArea { offset: u64::from(root.first) * SECTOR, length: u64::from(root.sectors) * SECTOR };
    (root.kind == LINUX && area.offset > 0 && area.length > 0 && area.offset + area.length <= bytes)
        .then_some(area)
}

/// The partitions of a disk that begins so, in a few words.
pub(super) fn describe(start: &[u8]) -> Option<String> {
    let table = Mbr::read(start.first_chunk()?).ok()?;
    let parts: Vec<String> = (1..)
        .zip(&table.partitions)
        .filter(|(_, p)| p.is_used())
        .map(|(i, p)| format!("{i}: type {:x}, {} MiB", p.kind, u64::from(p.sectors) >> 11))
        .collect();
    Some(parts.join("; "))
}

/// Reads a layout as `sfdisk --dump` writes it: `label-id`, and two partitions with `start=`
/// and `size=` in sectors; without a size the second reaches to the end of the disk.
///
/// # Errors
/// Says the line that cannot be used.
pub fn parse_layout(text: &str) -> anyhow::Result<Layout> {
    let mut layout = Layout { root_sectors: None, ..Layout::default() };
    let mut partitions = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let bad = || format!("line {number} of the layout: {line}");
        let line = line.trim();
        if let Some(id) = line.strip_prefix("label-id:") {
            let id = id.trim().trim_start_matches("0x");
            layout.disk_id = u32::from_str_radix(id, 16).with_context(bad)?;
        } else if let Some(label) = line.strip_prefix("label:") {
            if label.trim() != "dos" {
                bail!("{}: only dos (MBR) is possible", bad());
            }
        } else if line.contains("start=") {
            partitions.push(partition_line(line).with_context(bad)?);
        } else if !(line.is_empty() || line.starts_with('#') || is_header(line)) {
            bail!("{}: not understood", bad());
        }
    }
    let [(boot_start, Some(boot_sectors)), (root_start, root_sectors)] = partitions[..] else {
        bail!("the layout must have two partitions, the first with a size");
    };
    Ok(Layout { boot_start, boot_sectors, root_start, root_sectors, ..layout })
}

fn is_header(line: &str) -> bool {
    ["device:", "unit:", "sector-size:", "first-lba:", "last-lba:", "grain:"]
        .iter()
        .any(|h| line.starts_with(h))
}

fn partition_line(line: &str) -> anyhow::Result<(u64, Option<u64>)> {
    let fields = line.split_once(" : ").map_or(line, |(_, fields)| fields);
    let (mut start, mut size) = (None, None);
    for field in fields.split(',') {
        match field.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("start", v)) => start = Some(v.parse().context("start= is no number of sectors")?),
            Some(("size", v)) => size = Some(v.parse().context("size= is no number of sectors")?),
            Some(("type" | "Id" | "uuid" | "name", _)) | None => {}
            Some((other, _)) => bail!("{other}= is not known"),
        }
    }
    Ok((start.context("start= is missing")?, size))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The default layout as sfdisk writes it: with cylinders, and with the first partition active.
    const DUMP: &str = "label: dos\nlabel-id: 0x5f5d7a31\nunit: sectors\n\n\
                        start= 8192, size= 88472, type=c, bootable\nstart= 98304, type=83\n";

    fn sfdisk(disk: &Disk, dump: &str) {
        let mut command = Command::new("sfdisk");
        // Where it is, an ordinary user does not look.
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        // It stands aside for whoever has the disk locked.
        command
            .args(["--quiet", "--no-reread", "--no-tell-kernel", "--lock=no", "--wipe=never"])
            .arg(disk.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn boot<T>(disk: &Disk, layout: &Layout, look: impl FnOnce(&FileSystem<Window<'_>>) -> T) -> T {
        let window = Window::new(disk.file(), layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
        look(&FileSystem::new(window, FsOptions::new()).unwrap())
    }

    #[test]
    #[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
    fn a_boot_partition_of_another_program_keeps_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
        let layout = Layout::default();
        disk.partition(&layout).unwrap();
        let ours = disk.read_table().unwrap();
        boot(&disk, &layout, |fs| {
            fs.root_dir().create_file("config.txt").unwrap().write_all(b"arm_64bit=1").unwrap();
        });
        let kept = |layout: &Layout| {
            boot(&disk, layout, |fs| {
                let mut text = String::new();
                fs.root_dir().open_file("config.txt").ok()?.read_to_string(&mut text).ok()?;
                Some(text)
            })
        };
        sfdisk(&disk, DUMP);
        let theirs = disk.read_table().unwrap();
        assert_ne!(theirs, ours);
        disk.partition(&layout).unwrap();
        assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
        assert_eq!(disk.read_table().unwrap(), theirs, "it says what is wanted");
        // Another name, another root partition, and one too many: the table is ours then, and the files stay.
        sfdisk(
            &disk,
            "label: dos\nstart= 8192, size= 88472, type=c\nstart= 98304, size= 4096\nstart= 106496\n",
        );
        disk.partition(&layout).unwrap();
        assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
        assert_eq!(disk.read_table().unwrap(), ours);
        // A boot partition of another size is another one.
        let shorter = Layout { boot_sectors: 80_000, ..layout };
        disk.partition(&shorter).unwrap();
        assert_eq!(kept(&shorter), None);
    }

    #[test]
    fn the_table_is_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
        // What was there before is gone, up to where a GPT would end.
        Window::new(disk.file(), 0, SECTOR * 40).write_all(&[0xaa; 512 * 40]).unwrap();
        for (layout, entries) in [
            (
                Layout::default(),
                "317a5d5f0000 000000000c0000000020000098590100 00000000830000000080010000800200",
            ),
            (
                Layout {
                    disk_id: 0x0102_0304,
                    boot_start: 2048,
                    boot_sectors: 8192,
                    root_start: 16384,
                    root_sectors: Some(4096),
                },
                "040302010000 000000000c0000000008000000200000 00000000830000000040000000100000",
            ),
        ] {
            disk.partition(&layout).unwrap();
            let mut start = vec![0; 512 * 40];
            Window::new(disk.file(), 0, SECTOR * 40).read_exact(&mut start).unwrap();
            let hex: String = start[440..510].iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, format!("{}{}", entries.replace(' ', ""), "00".repeat(32)));
            assert_eq!(start[510..512], [0x55, 0xaa]);
            let zeros = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
            assert!(zeros(&start[..440]) && zeros(&start[512..34 * 512]));
            assert!(start[34 * 512..].iter().all(|b| *b == 0xaa), "what lies behind is another's");
        }
    }

    #[test]
    fn every_boot_partition_that_fits_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
        let layout = |boot_sectors| Layout { boot_sectors, ..Layout::default() };
        // Around each change of the FAT's type.
        for sectors in (42..50).chain(8190..8250).chain(8395..8405).chain(66_590..66_620) {
            let layout = layout(sectors);
            layout.root_on(disk.bytes()).unwrap();
            disk.boot_partition(&layout, false).unwrap_or_else(|e| panic!("{sectors} sectors: {e:#}"));
            boot(&disk, &layout, |fs| assert!(fs.stats().unwrap().free_clusters() > 0, "{sectors} sectors"));
        }
        let before = disk.read_table().is_err();
        let failure = disk.partition(&layout(41)).unwrap_err().to_string();
        assert!(failure.contains("the boot partition is too small"), "{failure}");
        assert_eq!(disk.read_table().is_err(), before, "nothing was written");
    }

    #[test]
    fn the_old_dump() {
        let dump = "label: dos\nlabel-id: 0x5f5d7a31\ndevice: /dev/mmcblk0\nunit: sectors\n\n\
                    /dev/mmcblk0p1 : start=        8192, size=       88472, type=c\n\
                    /dev/mmcblk0p2 : start=       98304, type=83\n";
        assert_eq!(parse_layout(dump).unwrap(), Layout::default());
        let sized = dump.replace("98304,", "98304, size= 4096,");
        assert_eq!(parse_layout(&sized).unwrap().root_sectors, Some(4096));
    }

    #[test]
    fn bad_layouts_name_the_line() {
        for (bad, word) in [
            ("label: gpt\n", "line 1"),
            ("label-id: zz", "line 1"),
            ("\nhello", "line 2"),
            ("p1 : start=x, size=1", "start="),
            ("p1 : start=1, size=1, colour=red", "colour"),
            ("p1 : start=1, size=1", "two partitions"),
            ("p1 : start=1\np2 : start=9", "two partitions"),
        ] {
            let error = format!("{:#}", parse_layout(bad).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
