use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::*;

fn made(kind: FatType, bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    let options = FormatVolumeOptions::new().fat_type(kind).bytes_per_cluster(512);
    let options = if kind == FatType::Fat12 { options.bytes_per_cluster(4096) } else { options };
    fatfs::format_volume(&file, options).unwrap();
    let fs = FileSystem::new(file.try_clone().unwrap(), FsOptions::new()).unwrap();
    for i in 0..9_u8 {
        let mut made = fs.root_dir().create_file(&format!("file {i}")).unwrap();
        made.write_all(&vec![i; 100_000]).unwrap();
    }
    fs.root_dir().remove("file 4").unwrap();
    fs.unmount().unwrap();
    file
}

#[test]
fn the_used_clusters_make_the_same_filesystem() {
    for (kind, bytes) in [(FatType::Fat12, 8 << 20), (FatType::Fat16, 20 << 20), (FatType::Fat32, 48 << 20)] {
        let file = made(kind, bytes);
        let (runs, end) = used(&Area::new(&file, bytes)).unwrap();
        let total: u64 = runs.iter().map(|(start, end)| end - start).sum();
        assert!(end <= bytes && total < 2_500_000, "{kind:?}: {total}");
        let copy = tempfile::tempfile().unwrap();
        copy.write_all_at(&vec![0xa5; usize::try_from(bytes).unwrap()], 0).unwrap();
        for (start, end) in runs {
            let mut piece = vec![0; usize::try_from(end - start).unwrap()];
            file.read_exact_at(&mut piece, start).unwrap();
            copy.write_all_at(&piece, start).unwrap();
        }
        let fs = FileSystem::new(copy, FsOptions::new()).unwrap();
        for i in (0..9_u8).filter(|i| *i != 4) {
            let mut content = Vec::new();
            use std::io::Read;
            fs.root_dir().open_file(&format!("file {i}")).unwrap().read_to_end(&mut content).unwrap();
            assert!(content == vec![i; 100_000], "{kind:?}: {i}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_not_believed() {
    type Change = (FatType, u64, &'static [u8], &'static str);
    let changes: [Change; 7] = [
        (FatType::Fat32, 0x20, &[0, 0, 0xff, 0xff], "larger"),
        (FatType::Fat32, 40, &[0x80], "on purpose"),
        (FatType::Fat32, 65, &[1], "was not unmounted"),
        (FatType::Fat16, 37, &[1], "was not unmounted"),
        (FatType::Fat16, 22, &[1, 0], "too short"),
        (FatType::Fat16, 19, &[100, 0], "number of clusters"),
        (FatType::Fat16, 510, &[0], "boot sector"),
    ];
    for (kind, at, bytes, want) in changes {
        let file = made(kind, if kind == FatType::Fat32 { 48 << 20 } else { 20 << 20 });
        let length = file.metadata().unwrap().len();
        file.write_all_at(bytes, at).unwrap();
        let e = format!("{:#}", used(&Area::new(&file, length)).unwrap_err());
        assert!(e.contains(want) || e.contains("sectors"), "{want}: {e}");
    }
    // The tables differ.
    let file = made(FatType::Fat32, 48 << 20);
    let boot = Area::new(&file, 48 << 20).bytes::<512>(0).unwrap();
    file.write_all_at(&[9], u64::from(le16(&boot, 14)) * 512 + 400).unwrap();
    assert!(used(&Area::new(&file, 48 << 20)).unwrap_err().to_string().contains("tables differ"));
}
