//! The parser of archives: what it reads, what it refuses, and that no bytes at all upset it.

use std::io::{self, BufReader, Read};

use embedded_io_adapters::std::FromStd;
use piman_core::archive::{Damage, Entry, Error, File, Kind, Reader, Segment, Time, Xattr};
use piman_tests::tar::{Header, Tar, seal, size};
use proptest::prelude::*;

/// All entries with their content, read through a buffer of this size.
fn read(archive: &[u8], buffer: usize) -> Result<Vec<(Entry, Vec<u8>)>, Error<io::Error>> {
    let mut reader = Reader::new(FromStd::new(BufReader::with_capacity(buffer, archive)));
    let mut out = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        loop {
            let piece = reader.content()?;
            let length = piece.len();
            if length == 0 {
                break;
            }
            content.extend_from_slice(piece);
            reader.consume(length);
        }
        out.push((entry, content));
    }
    reader.drain()?;
    Ok(out)
}

fn damage(archive: &[u8]) -> Damage {
    match read(archive, 512) {
        Err(Error::Damaged { damage, .. }) => damage,
        other => panic!("{other:?}"),
    }
}

fn one(archive: &[u8]) -> (Entry, Vec<u8>) {
    let entries = read(archive, 4096).unwrap();
    assert_eq!(entries.len(), 1);
    entries.into_iter().next().unwrap()
}

#[test]
fn pieces_do_not_matter() {
    let content: Vec<u8> = (0..3000_u32).map(|i| i as u8).collect();
    let mut tar = Tar::new();
    tar.file(b"a", &content).entry(b"d/", b'5', b"").file(b"d/empty", b"").entry(b"l", b'2', b"a");
    tar.pax(b'x', &[("path", b"long")]).file(b"short", b"x");
    let whole = read(&tar.end(), 1 << 16).unwrap();
    assert_eq!(whole.len(), 5);
    assert_eq!(whole[0].1, content);
    assert_eq!(whole[3].0.kind, Kind::Symlink(b"a".to_vec()));
    for buffer in [1, 7, 511, 513] {
        assert_eq!(read(&tar.end(), buffer).unwrap(), whole, "{buffer}");
    }
}

#[test]
fn what_is_not_read_is_skipped() {
    let mut tar = Tar::new();
    tar.file(b"a", &[1; 70_000]).file(b"b", &[2; 513]).file(b"c", b"see");
    let end = tar.end();
    let mut reader = Reader::new(FromStd::new(BufReader::with_capacity(1000, &*end)));
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut some = [0; 2];
        reader.read_exact(&mut some).unwrap();
        names.push((entry.path, some[0]));
    }
    assert_eq!(names, [(b"a".to_vec(), 1), (b"b".to_vec(), 2), (b"c".to_vec(), b's')]);
}

#[test]
fn every_truncation_is_told() {
    let mut tar = Tar::new();
    tar.file(b"a", &[1; 700]).pax(b'x', &[("path", b"p")]).file(b"b", b"");
    let whole = tar.end();
    for length in 0..whole.len() {
        // One block of zeros and then the end is an end, too: some archivers write no more.
        let result = read(&whole[..length], 100);
        if length == whole.len() - 512 {
            assert_eq!(result.unwrap().len(), 2);
        } else {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Damaged { damage: Damage::Truncated, .. }), "{length}: {error}");
        }
    }
}

#[test]
fn what_follows_the_end_is_passed_over() {
    let mut tar = Tar::new();
    tar.file(b"a", b"1");
    let mut bytes = tar.end();
    bytes.extend_from_slice(&[0xab; 10_000]);
    let mut reader = Reader::new(&*bytes);
    assert!(reader.next_entry().unwrap().is_some());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
    reader.drain().unwrap();
    assert_eq!(reader.position(), bytes.len() as u64);
}

#[test]
fn a_lone_block_of_zeros_is_damage() {
    let mut tar = Tar::new();
    tar.file(b"a", b"1").content(&[0; 512]).file(b"b", b"2");
    assert_eq!(damage(&tar.end()), Damage::LoneZeroBlock);
}

#[test]
fn pax_outranks_gnu_outranks_the_header() {
    let long = vec![b'n'; 300];
    let mut tar = Tar::new();
    tar.header(&Header { name: b"././@LongLink", kind: b'L', size: 301, ..Header::default() });
    tar.content(&[&long[..], b"\0"].concat());
    tar.file(b"short", b"1");
    tar.header(&Header { name: b"././@LongLink", kind: b'K', size: 300, ..Header::default() }).content(&long);
    tar.pax(b'x', &[("path", b"from pax"), ("uid", b"70000"), ("mtime", b"-1.25")]);
    tar.entry(b"short", b'2', b"target");
    let entries = read(&tar.end(), 512).unwrap();
    assert_eq!(entries[0].0.path, long);
    let (link, _) = &entries[1];
    assert_eq!(link.path, b"from pax");
    assert_eq!(link.kind, Kind::Symlink(long));
    assert_eq!(link.uid, 70_000);
    assert_eq!(link.mtime, Time { seconds: -2, nanos: 750_000_000 });
}

#[test]
fn global_headers_hold_until_they_are_changed() {
    let mut tar = Tar::new();
    tar.pax(b'g', &[("uid", b"5"), ("comment", b"git")]).file(b"a", b"");
    tar.pax(b'x', &[("uid", b"6")]).file(b"b", b"").file(b"c", b"");
    tar.pax(b'g', &[("uid", b"")]).file(b"d", b"");
    let uids: Vec<u32> = read(&tar.end(), 512).unwrap().iter().map(|(e, _)| e.uid).collect();
    assert_eq!(uids, [5, 6, 5, 1000]);
}

#[test]
fn types_that_are_rare() {
    let mut tar = Tar::new();
    tar.file(b"old directory/", b"").entry(b"contiguous", b'7', b"").entry(b"unknown", b'?', b"");
    tar.header(&Header { name: b"v7", kind: 0, magic: &[0; 8], ..Header::default() });
    tar.header(&Header { name: b"dump", kind: b'D', size: 600, ..Header::default() }).content(&[b'Y'; 600]);
    tar.header(&Header { name: b"label", kind: b'V', ..Header::default() });
    tar.header(&Header { name: b"null", kind: b'3', device: (1, 3), ..Header::default() });
    // Links have no content, whatever their size says.
    tar.header(&Header { name: b"hard", kind: b'1', link: b"v7", size: 9, ..Header::default() });
    let entries = read(&tar.end(), 512).unwrap();
    let kinds: Vec<&Kind> = entries.iter().map(|(e, _)| &e.kind).collect();
    let file = Kind::File(File { size: 0, sparse: None });
    let null = Kind::CharDevice { major: 1, minor: 3 };
    let hard = Kind::Hardlink(b"v7".to_vec());
    let dir = Kind::Directory;
    assert_eq!(kinds, [&dir, &file, &file, &file, &dir, &null, &hard]);
}

#[test]
fn sparse_files_in_all_four_ways() {
    let segments = vec![Segment { offset: 512, length: 512 }, Segment { offset: 1 << 33, length: 3 }];
    let data = [vec![1; 512], b"end".to_vec()].concat();
    let real = (1_u64 << 33) + 3;
    let name = ("GNU.sparse.name", &b"s"[..]);
    let real_text = real.to_string();
    let first = [("GNU.sparse.size", real_text.as_bytes()), ("GNU.sparse.numblocks", b"2")];
    let parts = [
        ("GNU.sparse.offset", &b"512"[..]),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"8589934592"),
        ("GNU.sparse.numbytes", b"3"),
    ];

    let mut zero_zero = Tar::new();
    zero_zero.pax(b'x', &[&first[..], &parts[..]].concat()).file(b"s", &data);
    let mut zero_one = Tar::new();
    let map = ("GNU.sparse.map", &b"512,512,8589934592,3"[..]);
    zero_one.pax(b'x', &[&first[..], &[name, map]].concat()).file(b"made up", &data);
    let mut one_zero = Tar::new();
    let version = [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")];
    let real_size = ("GNU.sparse.realsize", real_text.as_bytes());
    let mut content = b"2\n512\n512\n8589934592\n3\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(&data);
    one_zero.pax(b'x', &[&version[..], &[name, real_size]].concat()).file(b"made up", &content);
    let mut gnu = Tar::new();
    let stored = data.len() as u64;
    let mut block =
        Header { name: b"s", kind: b'S', size: stored, magic: b"ustar  \0", ..Header::default() }.block();
    for (i, number) in [512, 512, 1 << 33, 3].into_iter().enumerate() {
        block[386 + 12 * i..398 + 12 * i].copy_from_slice(&size(number));
    }
    block[345..386].fill(0);
    block[482] = 1;
    block[483..495].copy_from_slice(&size(real));
    seal(&mut block);
    gnu.0.extend_from_slice(&block);
    // One more block of the map, with only the end of the file in it.
    let mut more = [0; 512];
    more[..12].copy_from_slice(&size(real));
    more[12..24].copy_from_slice(&size(0));
    gnu.0.extend_from_slice(&more);
    gnu.content(&data);

    for (way, tar) in [("0.0", zero_zero), ("0.1", zero_one), ("1.0", one_zero), ("GNU", gnu)] {
        let (entry, content) = one(&tar.end());
        assert_eq!(entry.path, b"s", "{way}");
        assert_eq!(entry.kind, Kind::File(File { size: real, sparse: Some(segments.clone()) }), "{way}");
        assert_eq!(content, data, "{way}");
    }
}

#[test]
fn limits() {
    let mut tar = Tar::new();
    tar.header(&Header { name: b"L", kind: b'L', size: 5000, ..Header::default() });
    assert_eq!(damage(&tar.end()), Damage::TooLong("name"));
    let mut tar = Tar::new();
    tar.header(&Header { name: b"x", kind: b'x', size: (1 << 20) + 1, ..Header::default() });
    assert_eq!(damage(&tar.end()), Damage::TooLong("pax header"));
    // Also if it comes in pieces.
    let mut tar = Tar::new();
    let value = vec![b'v'; 600_000];
    tar.pax(b'x', &[("SCHILY.xattr.user.a", &value)]).pax(b'x', &[("SCHILY.xattr.user.b", &value)]);
    assert_eq!(damage(&tar.end()), Damage::TooLong("pax header"));
    let mut tar = Tar::new();
    let names: Vec<String> = (0..5000).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|n| (&**n, &b""[..])).collect();
    tar.pax(b'x', &records).file(b"a", b"");
    assert_eq!(damage(&tar.end()), Damage::TooLong("list of extended attributes"));
    // Global ones stay, so that all of them together have a limit; one that comes again takes the place of the first.
    let mut tar = Tar::new();
    for name in ["SCHILY.xattr.user.a", "SCHILY.xattr.user.a", "SCHILY.xattr.user.b"] {
        tar.pax(b'g', &[(name, &value)]).file(b"a", b"");
    }
    assert_eq!(damage(&tar.end()), Damage::TooLong("list of global extended attributes"));
}

#[test]
fn what_no_archive_should_hold() {
    let mut no_name = Tar::new();
    no_name.file(b"", b"");
    assert_eq!(damage(&no_name.end()), Damage::NoName);
    let mut no_target = Tar::new();
    no_target.entry(b"a", b'2', b"");
    assert!(matches!(damage(&no_target.end()), Damage::Unsupported(_)));
    let mut volumes = Tar::new();
    volumes.entry(b"a", b'M', b"");
    assert!(matches!(damage(&volumes.end()), Damage::Unsupported(_)));
    let mut pax_of_nothing = Tar::new();
    pax_of_nothing.pax(b'x', &[("path", b"a")]);
    assert_eq!(damage(&pax_of_nothing.end()), Damage::Truncated);
    let mut sparse = Tar::new();
    sparse.pax(b'x', &[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,20")]).file(b"a", &[0; 20]);
    assert!(matches!(damage(&sparse.end()), Damage::Sparse(_)));
    let mut bytes = Tar::new().file(b"a", b"1").end();
    bytes[0] ^= 1;
    assert_eq!(damage(&bytes), Damage::Checksum);
    let error = read(&bytes, 512).unwrap_err();
    assert!(io::Error::from(error).to_string().contains("checksum"));
}

#[test]
fn an_error_names_the_entry_and_the_place() {
    let mut tar = Tar::new();
    tar.file(b"first", b"1");
    let mut bytes = tar.end();
    bytes.truncate(600);
    let text = read(&bytes, 512).unwrap_err().to_string();
    assert!(text.contains("`first`") && text.contains("truncated"), "{text}");
}

/// Any entry that our writer can write.
fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let path = prop::collection::vec(1..=255_u8, 1..200).prop_filter("a directory", |p| !p.ends_with(b"/"));
    let target = prop::collection::vec(1..=255_u8, 1..200);
    let kind = prop_oneof![
        Just(Kind::File(File { size: 0, sparse: None })),
        Just(Kind::Directory),
        Just(Kind::Fifo),
        target.clone().prop_map(Kind::Symlink),
        target.prop_map(Kind::Hardlink),
        (0..4096_u32, 0..0o777_7777_u32).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
    ];
    let xattr = ("user\\.[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..300));
    let xattrs = prop::collection::btree_map(xattr.0, xattr.1, 0..4);
    let mtime = (-1_000_000_000_000..1_000_000_000_000_i64, 0..1_000_000_000_u32);
    let content = prop::collection::vec(any::<u8>(), 0..2000);
    ((path, kind, 0..0o10000_u32), (any::<u32>(), any::<u32>(), mtime, xattrs), content).prop_map(
        |((path, kind, mode), (uid, gid, (seconds, nanos), xattrs), content)| {
            let kind = match kind {
                Kind::File(_) => Kind::File(File { size: content.len() as u64, sparse: None }),
                other => other,
            };
            let content = if matches!(kind, Kind::File(_)) { content } else { Vec::new() };
            let xattrs =
                xattrs.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect();
            (Entry { path, kind, mode, uid, gid, mtime: Time { seconds, nanos }, xattrs }, content)
        },
    )
}

fn write(tar: &mut Tar, entry: &Entry, content: &[u8]) {
    let Time { seconds, nanos } = entry.mtime;
    // A time before 1970 is written as a negative number with its own fraction.
    let mtime = match (seconds < 0, nanos) {
        (false, _) => format!("{seconds}.{nanos:09}"),
        (true, 0) => seconds.to_string(),
        (true, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    };
    let (uid, gid) = (entry.uid.to_string(), entry.gid.to_string());
    let keys: Vec<String> =
        entry.xattrs.iter().map(|x| format!("SCHILY.xattr.{}", String::from_utf8_lossy(&x.name))).collect();
    let mut records: Vec<(&str, &[u8])> = vec![
        ("path", &entry.path),
        ("mtime", mtime.as_bytes()),
        ("uid", uid.as_bytes()),
        ("gid", gid.as_bytes()),
    ];
    records.extend(keys.iter().zip(&entry.xattrs).map(|(key, x)| (&**key, &*x.value)));
    let (kind, link, device) = match &entry.kind {
        Kind::File(_) => (b'0', None, (0, 0)),
        Kind::Hardlink(target) => (b'1', Some(target), (0, 0)),
        Kind::Symlink(target) => (b'2', Some(target), (0, 0)),
        Kind::CharDevice { major, minor } => (b'3', None, (*major, *minor)),
        Kind::BlockDevice { major, minor } => (b'4', None, (*major, *minor)),
        Kind::Directory => (b'5', None, (0, 0)),
        Kind::Fifo => (b'6', None, (0, 0)),
    };
    records.extend(link.map(|target| ("linkpath", &**target)));
    tar.pax(b'x', &records);
    let size = content.len() as u64;
    tar.header(&Header { kind, mode: entry.mode, size, device, ..Header::default() }).content(content);
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(any_entry(), 0..6), buffer in 1..2000_usize) {
        let mut tar = Tar::new();
        for (entry, content) in &entries {
            write(&mut tar, entry, content);
        }
        prop_assert_eq!(read(&tar.end(), buffer).unwrap(), entries);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes, 512);
    }

    /// Headers with a right checksum, and anything else wrong.
    #[test]
    fn any_header_is_read_or_refused(
        blocks in prop::collection::vec((prop::collection::vec(any::<u8>(), 512), "[0-9LKxgXVSDM]"), 1..5),
        calm in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        for (block, kind) in &blocks {
            let mut block: [u8; 512] = block[..].try_into().unwrap();
            block[156] = kind.as_bytes()[0];
            if calm {
                // Numbers that are numbers, so that more than the first field is looked at.
                for at in [100, 108, 116, 329, 337] {
                    block[at..at + 8].copy_from_slice(b"0000644\0");
                }
                block[124..136].copy_from_slice(b"00000000777\0");
                block[136..148].copy_from_slice(b"00000000777\0");
                block[257..265].copy_from_slice(b"ustar  \0");
            }
            seal(&mut block);
            bytes.extend_from_slice(&block);
        }
        let _ = read(&bytes, 512);
    }

    #[test]
    fn any_pax_header_is_read_or_refused(records in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut tar = Tar::new();
        tar.header(&Header { name: b"x", kind: b'x', size: records.len() as u64, ..Header::default() });
        tar.content(&records).file(b"a", b"1");
        let _ = read(&tar.end(), 512);
    }
}
