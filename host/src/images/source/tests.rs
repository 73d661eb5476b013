use super::*;
use crate::images::fitness::Severity;

/// An archive of one folder, with its end marker or without.
fn packed(end: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut block = [0_u8; 512];
    for (at, field) in
        [(0, &b"etc/"[..]), (100, b"0000755"), (108, b"0"), (116, b"0"), (124, b"0"), (136, b"0")]
    {
        block[at..at + field.len()].copy_from_slice(field);
    }
    block[156] = b'5';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&block).unwrap();
    encoder.write_all(end).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_archive_without_its_end_marker_is_taken_with_a_remark() {
    let whole = inspect(&packed(&[0; 1024])[..]).unwrap().fitness;
    assert!(whole.findings.iter().all(|f| f.kind != "no-end-marker"), "{whole:?}");
    let cut = inspect(&packed(&[])[..]).unwrap().fitness;
    assert_eq!(cut.findings.first().map(|f| &*f.kind), Some("no-end-marker"), "{cut:?}");
    assert!(cut.findings.iter().all(|f| f.kind != "no-end-marker" || f.severity == Severity::Warning));
    // Behind its first member, an archive of several ends as one that has no more.
    let several = [packed(&[]), packed(&[0; 1024])].concat();
    assert_eq!(inspect(&several[..]).unwrap().entries, 2);
    assert!(inspect(&[packed(&[]), packed(&[])].concat()[..]).is_err());
}

#[test]
fn what_cannot_be_opened_is_news_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rootfs.tgz");
    fs::create_dir(&path).unwrap();
    let source = Source::at(&path);
    let count = || *source.news.borrow();
    let look = || match source.servable() {
        SourceState::Bad(reason) => reason,
        other => panic!("{other:?}"),
    };
    // Whoever waits for a good one and looks at each news would never sleep.
    assert!(look().contains("it is no file"));
    assert!(look().contains("it is no file"));
    assert_eq!(count(), 0);
    fs::remove_dir(&path).unwrap();
    assert!(look().contains("is gone"), "it is bad in another way now");
    assert!(look().contains("is gone"));
    assert_eq!(count(), 1);
    fs::write(&path, "something").unwrap();
    assert!(matches!(source.servable(), SourceState::Checking(_)));
    assert!(matches!(source.servable(), SourceState::Checking(_)));
    assert_eq!(count(), 2);
}
