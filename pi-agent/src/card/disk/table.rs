//! The partition table, and the boot partition's file system.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, bail};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::mbr::{self, FAT32_LBA, LINUX, Mbr, Partition};

use super::{Disk, RootArea, Window};

/// What an entry says of its partition: its type, its first sector, how many it has. The rest differs from one
/// program to another: places in cylinders, which nobody reads any more, and which one is active.
fn place(entry: &Partition) -> (u8, u32, u32) {
    (entry.kind, entry.first, entry.sectors)
}

/// The table that a layout makes, and what the disk has of it already.
pub(super) struct Planned {
    /// The table as it is to be.
    pub(super) table: Mbr,
    /// Whether the boot partition is in its place already.
    pub(super) keep_boot: bool,
}

impl Planned {
    /// `old` is the table that the disk has. One that says the same as ours stays as it is, whoever made it.
    pub(super) fn new(
        disk: &Disk,
        layout: &Layout,
        root: &RootArea,
        old: Option<Mbr>,
    ) -> anyhow::Result<Self> {
        let sector = disk.sector();
        let partition = |kind, offset: u64, length: u64| -> anyhow::Result<Partition> {
            if !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
                bail!(
                    "a partition of {length} bytes at byte {offset} does not fit the disk's sectors of {sector} bytes"
                );
            }
            Ok(Partition::new(kind, u32::try_from(offset / sector)?, u32::try_from(length / sector)?))
        };
        let boot = partition(FAT32_LBA, layout.boot_start * SECTOR, layout.boot_sectors * SECTOR)?;
        let root = partition(LINUX, root.offset, root.length)?;
        let none = Partition::default();
        let table = Mbr { partitions: [boot, root, none, none], ..Mbr::new(layout.disk_id) };
        let Some(mut old) = old else { return Ok(Self { table, keep_boot: false }) };
        if let [_, withheld, ..] = &mut old.partitions
            && (withheld.kind, withheld.first, withheld.sectors) == (LINUX, root.first, 0)
        {
            withheld.sectors = root.sectors;
        }
        let places = |table: &Mbr| table.partitions.map(|entry| place(&entry));
        let same = old.disk_id == table.disk_id && places(&old) == places(&table);
        let keep_boot = old.partitions.first().map(place) == Some(place(&boot));
        Ok(Self { table: if same { old } else { table }, keep_boot })
    }
}

impl Disk {
    /// Makes the boot partition's filesystem, unless the one that is there is to be kept and is one.
    pub(super) fn boot_partition(&self, layout: &Layout, keep: bool) -> anyhow::Result<()> {
        let length = layout.boot_sectors * SECTOR;
        let window = || Window::new(&self.file, layout.boot_start * SECTOR, length);
        if keep && self.has_boot_filesystem(layout) {
            return Ok(());
        }
        let sectors = u32::try_from(length / self.sector())?;
        let mut options = FormatVolumeOptions::new()
            .total_sectors(sectors)
            .bytes_per_sector(u16::try_from(self.sector())?)
            .volume_id(layout.disk_id)
            .volume_label(*b"BOOT       ");
        if self.sector() == SECTOR {
            options = shape(options, sectors);
        }
        fatfs::format_volume(window(), options)?;
        Ok(())
    }

    /// Whether there is a FAT filesystem in the boot partition's place that ends in it.
    pub(super) fn has_boot_filesystem(&self, layout: &Layout) -> bool {
        let window = Window::new(&self.file, layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
        FileSystem::new(window, FsOptions::new()).is_ok()
    }
}

/// The type and the clusters of a filesystem in sectors of 512 bytes.
fn shape(options: FormatVolumeOptions, sectors: u32) -> FormatVolumeOptions {
    // The type of the partition says FAT32 with LBA; it takes 65,525 clusters at least.
    let fat_type = if sectors > 66_600 { FatType::Fat32 } else { FatType::Fat16 };
    let options = match sectors {
        8401.. => options.fat_type(fat_type),
        // Of some sizes clusters of 1 KiB would be too many for FAT12, and too few for FAT16.
        8193..8401 => options.bytes_per_cluster(2048),
        _ => options,
    };
    if sectors > 66_600 && sectors < 532_480 { options.bytes_per_cluster(512) } else { options }
}

/// Reads the table in a disk's first sector.
pub(super) fn read_table(disk: &File) -> anyhow::Result<Mbr> {
    let mut sector = [0; mbr::BYTES];
    Window::new(disk, 0, SECTOR).read_exact(&mut sector).context("reading the partition table")?;
    Ok(Mbr::read(&sector)?)
}

/// Where the partition table of a disk of so many bytes has the root partition.
#[must_use]
pub fn root_in_table(disk: &File, bytes: u64) -> Option<RootArea> {
    let [_, root, ..] = read_table(disk).ok()?.partitions;
    let sector = super::sector_bytes(disk);
    let area = RootArea { offset: u64::from(root.first) * sector, length: u64::from(root.sectors) * sector };
    (root.kind == LINUX && area.offset > 0 && area.length > 0 && area.offset + area.length <= bytes)
        .then_some(area)
}

/// Reads a layout as `sfdisk --dump` writes it: `label-id`, and two partitions with `start=`
/// and `size=` in sectors; without a size the second reaches to the end of the disk.
///
/// # Errors
/// Says the line that cannot be used.
pub fn parse_layout(text: &str) -> anyhow::Result<Layout> {
    let mut layout = Layout { root_sectors: None, ..Layout::default() };
    let mut partitions = Vec::new();
    let mut scale = 1;
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
        } else if let Some(bytes) = line.strip_prefix("sector-size:") {
            let bytes: u64 = bytes.trim().parse().with_context(bad)?;
            if !matches!(bytes, 512 | 4096) {
                bail!("{}: only 512 and 4096 are possible", bad());
            }
            scale = bytes / SECTOR;
        } else if line.contains("start=") {
            partitions.push(partition_line(line).with_context(bad)?);
        } else if !(line.is_empty() || line.starts_with('#') || is_header(line)) {
            bail!("{}: not understood", bad());
        }
    }
    let [(boot_start, Some(boot_sectors)), (root_start, root_sectors)] = partitions[..] else {
        bail!("the layout must have two partitions, the first with a size");
    };
    // Sectors of a layout are those of 512 bytes.
    let scaled =
        |sectors: u64| sectors.checked_mul(scale).context("the layout has a number that is too large");
    Ok(Layout {
        boot_start: scaled(boot_start)?,
        boot_sectors: scaled(boot_sectors)?,
        root_start: scaled(root_start)?,
        root_sectors: root_sectors.map(scaled).transpose()?,
        ..layout
    })
}

fn is_header(line: &str) -> bool {
    ["device:", "unit:", "first-lba:", "last-lba:", "grain:"].iter().any(|h| line.starts_with(h))
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
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// The default layout as sfdisk writes it: with cylinders, and with the first partition active.
    const DUMP: &str = "label: dos\nlabel-id: 0x5f5d7a31\nunit: sectors\n\n\
                        start= 8192, size= 88472, type=c, bootable\nstart= 98304, type=83\n";

    fn partition(disk: &Disk, layout: &Layout) {
        let begun = disk.begin(layout).unwrap();
        disk.partition(layout, &begun).unwrap();
        disk.show_root(&begun).unwrap();
    }

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
        partition(&disk, &layout);
        let ours = read_table(disk.file()).unwrap();
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
        let theirs = read_table(disk.file()).unwrap();
        assert_ne!(theirs, ours);
        partition(&disk, &layout);
        assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
        assert_eq!(read_table(disk.file()).unwrap(), theirs, "it says what is wanted");
        // Another name, another root partition, and one too many: the table is ours then, and the files stay.
        sfdisk(
            &disk,
            "label: dos\nstart= 8192, size= 88472, type=c\nstart= 98304, size= 4096\nstart= 106496\n",
        );
        partition(&disk, &layout);
        assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
        assert_eq!(read_table(disk.file()).unwrap(), ours);
        // A boot partition of another size is another one.
        let shorter = Layout { boot_sectors: 80_000, ..layout };
        partition(&disk, &shorter);
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
            partition(&disk, &layout);
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
        let before = read_table(disk.file()).is_err();
        let failure = disk.begin(&layout(41)).unwrap_err().to_string();
        assert!(failure.contains("the boot partition is too small"), "{failure}");
        assert_eq!(read_table(disk.file()).is_err(), before, "nothing was written");
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
