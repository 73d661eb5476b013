//! A FAT filesystem with these files and nothing else, as boot loaders read it: no table of partitions before it, and the
//! same bytes for the same input.
//!
//! The crate `fatfs` makes it, without `mkfs.fat` and mtools. Clusters have 512 bytes, as Raspberry Pi's own tool makes
//! them; that is FAT16 up to 32 MiB and FAT32 above. FAT12 is not made: not every boot loader reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Write};
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Sectors, and clusters.
const SECTOR: u64 = 512;
/// One entry of a folder.
const ENTRY: u64 = 32;
/// UTF-16 units of a name in one entry.
const UNITS: u64 = 13;
/// Entries of the root folder of FAT16, at least.
const ROOT_MIN: u64 = 512;
/// Clusters that stay free at the end: boot loaders before 2024-01-18 (Pi 4) and 2024-01-22 (Pi 5) fail at a file that has
/// the last one.
const SPARE: u64 = 64;
/// The fewest clusters: with fewer it would be FAT12.
const FAT16_MIN: u64 = 8192;
/// The most that are FAT16, with a distance from the limit of 65,524.
const FAT16_MAX: u64 = 65_000;
/// The fewest that are FAT32, which begins at 65,525.
const FAT32_MIN: u64 = 66_000;
/// Reserved sectors in front, at most; as `fatfs` has them.
const RESERVED: u64 = 8;

/// The first moment that FAT can say, in seconds since 1970: 1980-01-01; and the first one that it cannot: 2108-01-01.
const TIMES: std::ops::Range<u64> = 315_532_800..4_354_819_200;

/// The time that all files have: `SOURCE_DATE_EPOCH`, or 1980-01-01.
#[derive(Debug)]
struct Fixed(OnceLock<DateTime>);

static FIXED: Fixed = Fixed(OnceLock::new());

const FIRST: DateTime = DateTime {
    date: Date { year: 1980, month: 1, day: 1 },
    time: Time { hour: 0, min: 0, sec: 0, millis: 0 },
};

impl TimeProvider for Fixed {
    fn get_current_date(&self) -> Date {
        self.get_current_date_time().date
    }

    fn get_current_date_time(&self) -> DateTime {
        *self.0.get_or_init(|| source_date().ok().flatten().and_then(date_time).unwrap_or(FIRST))
    }
}

/// What `SOURCE_DATE_EPOCH` says, if it is set: seconds since 1970, for builds that can be repeated.
///
/// # Errors
/// If it is no number of seconds that FAT has a date for.
pub(super) fn source_date() -> anyhow::Result<Option<u64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse::<u64>().ok());
    let seconds = seconds.filter(|seconds| TIMES.contains(seconds));
    seconds.map(Some).with_context(|| {
        format!(
            "SOURCE_DATE_EPOCH is {}: it must be seconds since 1970, between the years 1980 and 2107; or unset it",
            text.display()
        )
    })
}

/// As FAT has it, in UTC.
fn date_time(seconds: u64) -> Option<DateTime> {
    let at = Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    let at = TimeZone::UTC.to_datetime(at);
    let part = |n: i8| u16::try_from(n).ok();
    Some(DateTime {
        date: Date { year: u16::try_from(at.year()).ok()?, month: part(at.month())?, day: part(at.day())? },
        time: Time { hour: part(at.hour())?, min: part(at.minute())?, sec: part(at.second())?, millis: 0 },
    })
}

/// How large an image with these files is, in clusters of data and entries of the root folder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Need {
    clusters: u64,
    root_entries: u64,
}

/// The folders that these names are in, each with the entries in it.
fn folders<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, u64> {
    let mut folders = BTreeMap::from([("", 0)]);
    let mut seen = BTreeSet::new();
    for name in names {
        let mut ends: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
        ends.push(name.len());
        for end in ends {
            let Some(path) = name.get(..end).filter(|path| seen.insert(*path)) else { continue };
            let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
            let units = last.encode_utf16().count() as u64;
            *folders.entry(folder).or_default() += 1 + units.div_ceil(UNITS);
            if end < name.len() {
                // Itself and the folder above it.
                folders.entry(path).or_insert(2);
            }
        }
    }
    folders
}

fn need(files: &[(String, Vec<u8>)]) -> Need {
    let mut need = Need::default();
    for (folder, entries) in folders(files.iter().map(|(name, _)| name.as_str())) {
        if folder.is_empty() {
            // One for the label; and it may end in the middle of a sector.
            need.root_entries = (entries + 1).next_multiple_of(SECTOR / ENTRY).max(ROOT_MIN);
            need.clusters += (entries + 1).div_ceil(SECTOR / ENTRY);
        } else {
            need.clusters += entries.div_ceil(SECTOR / ENTRY);
        }
    }
    need.clusters += files.iter().map(|(_, bytes)| (bytes.len() as u64).div_ceil(SECTOR)).sum::<u64>();
    need
}

/// The size of the image, in bytes, for so many clusters.
fn size(clusters: u64, root_entries: u64) -> u64 {
    let clusters = match clusters + SPARE {
        few if few <= FAT16_MAX => few.max(FAT16_MIN),
        many => many.max(FAT32_MIN),
    };
    let entry_bytes = if clusters <= FAT16_MAX { 2 } else { 4 };
    let tables = 2 * ((clusters + 2) * entry_bytes).div_ceil(SECTOR);
    (RESERVED + tables + root_entries * ENTRY / SECTOR + clusters) * SECTOR
}

/// Makes the image of these files, which are in order of their names; folders are separated by `/`.
///
/// # Errors
/// If it would have more than `most` bytes, if FAT cannot have a name or has two of these for one, or if `fatfs` cannot
/// make it.
pub(super) fn image(files: &[(String, Vec<u8>)], most: u64) -> anyhow::Result<Vec<u8>> {
    let mut names = BTreeMap::new();
    for (name, _) in files {
        // FAT does not tell upper case from lower case.
        if let Some(other) = names.insert(name.to_lowercase(), name) {
            bail!("{other} and {name} are one name for FAT: remove one of them");
        }
    }
    let Need { clusters, root_entries } = need(files);
    let size = size(clusters, root_entries);
    ensure!(
        size <= most,
        "it would have {:.1} MiB, and boot loaders load {} MiB: choose models with --boot-model, or leave modules and \
         files out",
        size as f64 / f64::from(1 << 20),
        most >> 20
    );
    let mut disk = Cursor::new(vec![0; usize::try_from(size)?]);
    let options = FormatVolumeOptions::new()
        .bytes_per_cluster(u32::try_from(SECTOR)?)
        .max_root_dir_entries(u16::try_from(root_entries).context("too many files for the root folder")?)
        .volume_label(*b"PIMAN BOOT ")
        .volume_id(volume_id(files));
    format_volume(&mut disk, options).context("making the filesystem")?;
    make_folders(&mut disk, folders(files.iter().map(|(name, _)| name.as_str())).into_keys())?;
    disk.set_position(0);
    let filesystem = FileSystem::new(&mut disk, FsOptions::new().time_provider(&FIXED))?;
    for (name, bytes) in files {
        let write = || -> std::io::Result<()> {
            let mut file = filesystem.root_dir().create_file(name)?;
            file.write_all(bytes)?;
            file.flush()
        };
        write().with_context(|| format!("writing {name} into it"))?;
    }
    filesystem.unmount().context("completing the filesystem")?;
    Ok(disk.into_inner())
}

/// Makes these folders, each after the one that it is in.
///
/// `fatfs` gives `.` and `..` long names, too, which no FAT has: `fsck.fat` finds it, and boot loaders may stumble. So each
/// folder is put right as soon as it is made, when it has nothing but these four entries.
fn make_folders<'a>(
    disk: &mut Cursor<Vec<u8>>,
    folders: impl Iterator<Item = &'a str>,
) -> anyhow::Result<()> {
    // Clusters are taken one after another.
    let mut from = 0;
    for folder in folders.filter(|folder| !folder.is_empty()) {
        disk.set_position(0);
        let filesystem = FileSystem::new(&mut *disk, FsOptions::new().time_provider(&FIXED))?;
        filesystem.root_dir().create_dir(folder).with_context(|| format!("making the folder {folder}"))?;
        filesystem.unmount()?;
        let mut sectors = disk.get_mut().chunks_exact_mut(usize::try_from(SECTOR)?).enumerate().skip(from);
        let (at, sector) = sectors
            .find(|(_, sector)| has_long_dots(sector))
            .with_context(|| format!("the folder {folder} is not where it was made"))?;
        let entry = usize::try_from(ENTRY)?;
        sector.copy_within(entry..2 * entry, 0);
        sector.copy_within(3 * entry..4 * entry, entry);
        sector.get_mut(2 * entry..).unwrap_or_default().fill(0);
        if !folder.contains('/') {
            // The root folder is 0 here, also where it has a number.
            for number in [entry + 20..entry + 22, entry + 26..entry + 28] {
                sector.get_mut(number).unwrap_or_default().fill(0);
            }
        }
        from = at + 1;
    }
    Ok(())
}

/// Whether a sector begins with a long name, `.`, another one, and `..`, and has no more.
fn has_long_dots(sector: &[u8]) -> bool {
    const LONG_NAME: u8 = 0x0f;
    let mut entries = sector.chunks_exact(32);
    let mut next = |is: &dyn Fn(&[u8]) -> bool| entries.next().is_some_and(is);
    let is_long = |entry: &[u8]| entry.get(11) == Some(&LONG_NAME);
    next(&is_long)
        && next(&|entry| entry.starts_with(b".          "))
        && next(&is_long)
        && next(&|entry| entry.starts_with(b"..         "))
        && next(&|entry| entry.iter().all(|byte| *byte == 0))
}

/// Other files, another number: by their names and bytes.
fn volume_id(files: &[(String, Vec<u8>)]) -> u32 {
    let mut hash = blake3::Hasher::new();
    for (name, bytes) in files {
        hash.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    let mut id = [0; 4];
    hash.finalize_xof().fill(&mut id);
    u32::from_le_bytes(id)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use fatfs::FatType;

    use super::*;

    fn file(name: &str, length: usize) -> (String, Vec<u8>) {
        (name.to_owned(), (0..length).map(|n| (n % 251) as u8).collect())
    }

    #[test]
    fn all_files_are_in_it_and_the_end_is_free() {
        let overlays = (0..300).map(|n| file(&format!("overlays/a-rather-long-name-{n:03}.dtbo"), 700 + n));
        let small: Vec<_> = [file("config.txt", 90), file("deep/er/x", 0), file("deep/and/deeper/y", 5000)]
            .into_iter()
            .chain(overlays)
            .collect();
        let mut large = small.clone();
        large.push(file("start4.elf", 40 << 20));
        for (mut files, kind) in [(small, FatType::Fat16), (large, FatType::Fat32)] {
            files.sort();
            let bytes = image(&files, 96 << 20).unwrap();
            assert_eq!(bytes, image(&files, 96 << 20).unwrap());
            let filesystem = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
            assert_eq!((filesystem.fat_type(), filesystem.cluster_size()), (kind, 512));
            assert!(filesystem.stats().unwrap().free_clusters() >= 60, "{:?}", filesystem.stats().unwrap());
            for (name, bytes) in &files {
                let mut read = Vec::new();
                filesystem.root_dir().open_file(name).unwrap().read_to_end(&mut read).unwrap();
                assert!(read == *bytes, "{name}");
            }
            for entry in filesystem.root_dir().iter().map(Result::unwrap).filter(|e| e.is_dir()) {
                let names: Vec<_> = entry.to_dir().iter().take(2).map(|e| e.unwrap().file_name()).collect();
                assert_eq!(names, [".", ".."], "the first two");
            }
            let entry = filesystem.root_dir().iter().find_map(|e| e.ok().filter(|e| e.is_file())).unwrap();
            assert_eq!(entry.modified().date.year, 1980);
        }
    }

    #[test]
    fn around_the_limit_of_fat16_there_is_no_gap() {
        for clusters in [FAT16_MAX - SPARE, FAT16_MAX - SPARE + 1, FAT32_MIN, 65_524, 65_525] {
            let length = usize::try_from((clusters - 1) * SECTOR).unwrap();
            let files = [file("a", length)];
            assert_eq!(need(&files), Need { clusters, root_entries: ROOT_MIN });
            let bytes = image(&files, 96 << 20).unwrap();
            let filesystem = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
            let free = u64::from(filesystem.stats().unwrap().free_clusters());
            assert!(free >= SPARE - 1, "{clusters}: {free}");
        }
    }

    #[test]
    fn what_fat_cannot_have() {
        let fails = |files: &[(String, Vec<u8>)], most| format!("{:#}", image(files, most).unwrap_err());
        assert!(fails(&[file("README", 1), file("readme", 1)], 96 << 20).contains("one name"));
        assert!(fails(&[file("a:b", 1)], 96 << 20).contains("a:b"));
        assert!(fails(&[file("a", 9 << 20)], 8 << 20).contains("boot loaders load 8 MiB"));
    }

    #[test]
    fn dates() {
        let at = date_time(1_700_000_000).unwrap();
        assert_eq!((at.date.year, at.date.month, at.date.day), (2023, 11, 14));
        assert_eq!((at.time.hour, at.time.min, at.time.sec), (22, 13, 20));
        let ends = [TIMES.start, TIMES.end - 1].map(|s| date_time(s).unwrap().date.year);
        assert_eq!(ends, [1980, 2107]);
    }
}
