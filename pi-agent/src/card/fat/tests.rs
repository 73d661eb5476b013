use super::*;
use fatfs::{FatType, FormatVolumeOptions, format_volume};
use std::os::unix::fs::FileExt;
use std::process::Command;

/// A disk of this size with a filesystem from byte 4096 on.
fn made(bytes: u64, kind: FatType) -> (tempfile::NamedTempFile, RootArea) {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(bytes + 4096).unwrap();
    let area = RootArea { offset: 4096, length: bytes };
    let options = FormatVolumeOptions::new().fat_type(kind).volume_id(1).volume_label(*b"bootfs     ");
    let options = options.bytes_per_cluster(if kind == FatType::Fat12 { 4096 } else { 512 });
    format_volume(Window::new(disk.as_file(), 4096, bytes), options).unwrap();
    (disk, area)
}

/// What the tool of others says.
fn assert_sound(disk: &File, area: &RootArea) {
    let mut bytes = vec![0; usize::try_from(area.length).unwrap()];
    disk.read_exact_at(&mut bytes, area.offset).unwrap();
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(copy.path(), bytes).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new("fsck.fat").env("PATH", path).arg("-n").arg(copy.path()).output() {
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout)),
        Err(e) => println!("fsck.fat is not asked: {e}"),
    }
}

const KINDS: [(u64, FatType); 3] =
    [(2 << 20, FatType::Fat12), (16 << 20, FatType::Fat16), (40 << 20, FatType::Fat32)];

#[test]
fn files_and_folders_of_every_kind_of_fat() {
    for (bytes, kind) in KINDS {
        let (disk, area) = made(bytes, kind);
        let disk = disk.as_file();
        let fat = Fat::open(disk, &area).unwrap();
        let large: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        fat.write("/cmdline.txt", b"one\n").unwrap();
        fat.write("/overlays/deep/A long name.dtbo", &large).unwrap();
        for n in 0..60 {
            fat.write(&format!("/overlays/file-with-a-long-name-{n}"), b"x").unwrap();
        }
        for text in [&b"two words\n"[..], b"", b"3"] {
            fat.write("/CMDLINE.TXT", text).unwrap();
            assert_eq!(fat.read("/cmdline.txt", 100).unwrap().unwrap(), text);
        }
        assert_eq!(fat.read("/overlays/deep/a long name.DTBO", 1 << 20).unwrap().unwrap(), large);
        assert!(
            fat.read("/overlays/deep/a long name.dtbo", 100).is_err() && fat.read("/overlays", 1).is_err()
        );
        assert_eq!(fat.read("/overlays/none/x", 1).unwrap(), None);
        for entry in fat.fs.root_dir().iter().map(Result::unwrap) {
            let year = entry.modified().date.year;
            assert!((2024..2108).contains(&year), "{} is of the year {year}", entry.file_name());
        }
        assert_eq!(fat.kind("/overlays/deep").unwrap(), Some(Kind::Folder));
        let mut names = fat.names("/").unwrap();
        names.sort();
        assert_eq!(names, ["CMDLINE.TXT", "overlays"]);
        for bad in ["/a:b", "/x?/y", "/end.", "/..", "/\u{1f600}"] {
            assert!(fat.write(bad, b"").is_err(), "{bad}");
        }
        for odd in ["/.hidden", "/\u{e4}\u{4e2d}", "/a.b.c.d", "/~", "/+,;=[]", "/aux"] {
            fat.write(odd, odd.as_bytes()).unwrap();
            assert_eq!(fat.read(odd, 100).unwrap().unwrap(), odd.as_bytes(), "{odd}");
        }
        let before = fat.free().unwrap();
        fat.remove("/overlays").unwrap();
        fat.remove("/overlays").unwrap();
        fat.remove("/cmdline.txt/no").unwrap();
        assert!(fat.free().unwrap() > before + 200_000 && fat.kind("/overlays").unwrap().is_none());
        // What stays is judged, too.
        fat.write("/stays/deep/er/file", b"x").unwrap();
        fat.folder("/stays/empty").unwrap();
        // A full one says so, and the old file is still there.
        let full = vec![1; usize::try_from(fat.free().unwrap()).unwrap() + 1];
        assert!(fat.write("/cmdline.txt", &full).is_err());
        assert_eq!(fat.read("/cmdline.txt", 100).unwrap().unwrap(), b"3");
        assert!(fat.names("/").unwrap().iter().all(|name| !name.contains(NEW) && !name.contains(OLD)));
        fat.close().unwrap();
        assert_sound(disk, &area);
        let fat = Fat::open(disk, &area).unwrap();
        assert_eq!(fat.read("/stays/deep/er/file", 1).unwrap().unwrap(), b"x");
        assert_eq!(fat.names("/stays/empty").unwrap(), [""; 0]);
        fat.write("/stays/empty/new", b"y").unwrap();
        fat.remove("/stays/deep").unwrap();
        fat.close().unwrap();
        assert_sound(disk, &area);
    }
}

/// Whenever replacing a file is broken off, the old or the new one is found, and can be replaced again.
#[test]
fn a_file_that_was_being_replaced_is_not_lost() {
    for (bytes, kind) in KINDS {
        let (disk, area) = made(bytes, kind);
        let disk = disk.as_file();
        let fat = Fat::open(disk, &area).unwrap();
        for (there, want) in
            [(&[NEW, OLD][..], "new"), (&[OLD], "old"), (&[NEW], "new"), (&["", NEW], "whole")]
        {
            for end in there {
                let content = if end.is_empty() { "whole" } else { end.strip_prefix(".piman-").unwrap() };
                fat.write(&format!("/cmdline.txt{end}"), content.as_bytes()).unwrap();
            }
            assert_eq!(fat.read("/cmdline.txt", 100).unwrap().unwrap(), want.as_bytes(), "{there:?}");
            fat.write("/cmdline.txt", b"root=/dev/mmcblk0p2").unwrap();
            assert_eq!(fat.names("/").unwrap().iter().filter(|name| name.starts_with("cmdline")).count(), 1);
            fat.remove("/cmdline.txt").unwrap();
        }
        fat.close().unwrap();
        assert_sound(disk, &area);
    }
}

#[test]
fn a_chain_without_an_end_and_what_belongs_to_two_are_found() {
    for (bytes, kind) in KINDS {
        let (disk, area) = made(bytes, kind);
        let disk = disk.as_file();
        let fat = Fat::open(disk, &area).unwrap();
        fat.write("/folder/file", &[7; 5000]).unwrap();
        fat.write("/other", &[8; 5000]).unwrap();
        fat.close().unwrap();
        let mut sector = [0; 512];
        disk.read_exact_at(&mut sector, area.offset).unwrap();
        let short = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
        let table = area.offset + short(14) * 512;
        // Whatever three bytes of the table say, it is known for what it is, or it is whole.
        let mut refused = 0;
        for cluster in 2..12 {
            for value in [2_u32, 3, 5, 0x0fff_fff0, 0] {
                let (at, width) = match kind {
                    FatType::Fat12 => (table + cluster * 3 / 2, 1),
                    FatType::Fat16 => (table + cluster * 2, 2),
                    FatType::Fat32 => (table + cluster * 4, 4),
                };
                let mut before = vec![0; width];
                disk.read_exact_at(&mut before, at).unwrap();
                disk.write_all_at(&value.to_le_bytes()[..width], at).unwrap();
                match Fat::open(disk, &area) {
                    Err(e) => {
                        refused += 1;
                        assert!(format!("{e:#}").contains("fsck.fat repairs it"), "{e:#}");
                    }
                    Ok(fat) => {
                        let _ = fat.read("/folder/file", 1 << 20);
                        fat.names("/folder").unwrap();
                    }
                }
                disk.write_all_at(&before, at).unwrap();
            }
        }
        assert!(refused > 15, "{kind:?}: {refused}");
        Fat::open(disk, &area).unwrap();
    }
}

#[test]
fn any_bytes_are_a_filesystem_or_none() {
    let (disk, area) = made(2 << 20, FatType::Fat12);
    let disk = disk.as_file();
    let fat = Fat::open(disk, &area).unwrap();
    fat.write("/a/b/c", &[7; 9000]).unwrap();
    fat.close().unwrap();
    let mut good = vec![0; 64 << 10];
    disk.read_exact_at(&mut good, area.offset).unwrap();
    let mut seed = 11_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for _ in 0..500 {
        let mut bytes = good.clone();
        for _ in 0..=random() % 3 {
            let at = [random() % 64, random() % 4096, random() % bytes.len()][random() % 3];
            bytes[at] = [0, 0xff, 1, random() as u8][random() % 4];
        }
        disk.write_all_at(&bytes, area.offset).unwrap();
        if let Ok(fat) = Fat::open(disk, &area) {
            let _ = fat.read("/a/b/c", 1 << 20);
            let _ = fat.write("/a/new", b"text");
            let _ = fat.remove("/a");
        }
    }
}

/// All of a step that a disk may have when its power is cut in it: none, all, each alone, all but each, some by chance.
fn parts_of(count: usize) -> Vec<Vec<bool>> {
    let mut chosen = vec![vec![false; count], vec![true; count]];
    for n in 0..count {
        chosen.extend([true, false].map(|one| (0..count).map(|m| (m == n) == one).collect::<Vec<_>>()));
    }
    chosen.extend((1..4_usize).map(|turn| (0..count).map(|n| (n * 7 + turn) % 3 == 0).collect()));
    chosen.truncate(24);
    chosen
}

#[test]
fn whenever_the_power_is_cut_all_files_are_whole() {
    let long: Vec<u8> = (0..9000_u32).map(|n| (n % 253) as u8).collect();
    for (bytes, kind) in KINDS {
        let (disk, area) = made(bytes, kind);
        let file = disk.as_file();
        let fat = Fat::open(file, &area).unwrap();
        // Names at all places of a sector, and holes between them.
        for n in 0..20 {
            fat.write(&format!("/file with a long name {n}"), b"before").unwrap();
        }
        (0..20).step_by(3).for_each(|n| fat.remove(&format!("/file with a long name {n}")).unwrap());
        fat.write("/cmdline.txt", b"before").unwrap();
        fat.write("/folder/one", b"before").unwrap();
        fat.close().unwrap();
        type Work = fn(&Fat<'_>, &[u8]) -> anyhow::Result<()>;
        let works: [(&str, Work); 5] = [
            ("/cmdline.txt", |fat, long| fat.write("/cmdline.txt", long)),
            ("/file with a long name 10", |fat, _| fat.write("/file with a long name 10", b"after")),
            ("/new/deep/er", |fat, long| fat.write("/new/deep/er", long)),
            ("/folder", |fat, _| fat.remove("/folder")),
            ("/another name that is long", |fat, _| fat.write("/another name that is long", b"")),
        ];
        for (path, work) in works {
            let mut all = vec![0; usize::try_from(area.length).unwrap()];
            file.read_exact_at(&mut all, area.offset).unwrap();
            // What would be written, of a disk that is not: only the copy in memory is.
            let copy = tempfile::tempfile().unwrap();
            copy.write_all_at(&all, area.offset).unwrap();
            let fat = Fat::open(&copy, &area).unwrap();
            *fat.recorded.borrow_mut() = Some(Vec::new());
            work(&fat, &long).unwrap();
            let steps = fat.recorded.take().unwrap();
            assert!(!steps.is_empty(), "{path}");
            for step in &steps {
                for chosen in parts_of(step.len()) {
                    let torn = tempfile::tempfile().unwrap();
                    torn.write_all_at(&all, area.offset).unwrap();
                    for ((at, bytes), _) in step.iter().zip(&chosen).filter(|(_, is_there)| **is_there) {
                        torn.write_all_at(bytes, area.offset + at).unwrap();
                    }
                    let what = format!("{kind:?} {path} {chosen:?}");
                    let fat = Fat::open(&torn, &area).unwrap_or_else(|e| panic!("{what}: {e:#}"));
                    let found = fat.read("/cmdline.txt", 1 << 20).unwrap().expect("it is there");
                    assert!(found == b"before" || found == long, "{what}");
                    let found = fat.read("/file with a long name 10", 100).unwrap().expect("it is there");
                    assert!(found == b"before" || found == b"after", "{what}");
                    // Another try ends it.
                    work(&fat, &long).unwrap_or_else(|e| panic!("{what}: {e:#}"));
                    fat.close().unwrap();
                    let fat = Fat::open(&torn, &area).unwrap();
                    let count = usize::from(path != "/folder");
                    assert_eq!(fat.count(path).unwrap(), count, "{what}");
                    let names = fat.names("/").unwrap();
                    assert!(names.iter().all(|name| !name.contains(NEW)), "{what}: {names:?}");
                }
                for (at, bytes) in step {
                    let at = usize::try_from(*at).unwrap();
                    all[at..][..512].copy_from_slice(bytes);
                }
            }
            let fat = Fat::open(file, &area).unwrap();
            work(&fat, &long).unwrap();
            fat.close().unwrap();
            assert_sound(file, &area);
        }
    }
}
