//! An image that is installed while the server still makes it.

use piman_core::install::table::Header;
use piman_tests::fetch::begun;

use super::*;

/// The tables of an image, one after another, with so many chunks; the last one is whole.
fn tables(image: &Image, chunks: &[u32]) -> Vec<Vec<u8>> {
    chunks.iter().map(|n| begun(image, *n)).chain([image.table().to_vec()]).collect()
}

#[test]
fn it_is_installed_as_it_comes() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let all = made.image.header().chunks;
    // The last one brings no chunk, only that it was the last.
    for stages in [&[1][..], &[1, 2, 5], &[3, all - 1, all]] {
        let tables = tables(&made.image, stages);
        let server = FetchServer::with_tables(Arc::clone(&made.image), tables, |_, _| Fault::None);
        let disk = garbage(80 * MIB);
        let summary = install(&server, &made.image, &disk);
        assert_eq!((summary.chunks, summary.broken), (all, 0));
        assert_eq!(summary.fetched_bytes, made.image.header().stored_bytes, "nothing is fetched twice");
        let next = server.requests().iter().filter(|r| r.kind == Kind::Next).count();
        assert_eq!(next, stages.len());
        e2fsck(disk.path(), OFFSET, 80 * MIB);
        assert_equal(disk.path(), &made);
    }
}

#[test]
fn connections_break_at_any_stage() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    for seed in [3, 50, 977] {
        let fault = move |_: &_, n: usize| match (n + seed) % 3 {
            0 => Fault::Wait,
            1 => Fault::Cut(n.wrapping_mul(seed).wrapping_mul(2_654_435_761) % 3_000_000),
            _ => Fault::None,
        };
        let server =
            FetchServer::with_tables(Arc::clone(&made.image), tables(&made.image, &[1, 3, 4]), fault);
        let disk = garbage(80 * MIB);
        let summary = install(&server, &made.image, &disk);
        assert!(summary.broken > 2, "{summary:?}");
        assert_eq!(summary.fetched_bytes, made.image.header().stored_bytes, "nothing is fetched twice");
        assert_equal(disk.path(), &made);
    }
}

#[test]
fn what_the_card_holds_is_known_at_every_stage() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let disk = garbage(80 * MIB);
    install(&faultless(&made.image), &made.image, &disk);
    let tables = tables(&made.image, &[3, 4]);
    let server = FetchServer::with_tables(Arc::clone(&made.image), tables, |_, _| Fault::None);
    let summary = install(&server, &made.image, &disk);
    // But the metadata, which growing changed and which is all that the first table has.
    assert!(summary.reused + 4 >= summary.chunks, "{summary:?}");
    assert_equal(disk.path(), &made);
}

/// What an agent does with these tables, one after another; nothing it wrote may count.
fn refused(image: &Arc<Image>, tables: Vec<Vec<u8>>) -> Failure {
    let server = FetchServer::with_tables(Arc::clone(image), tables, |_, _| Fault::None);
    let disk = garbage(80 * MIB);
    let failure = install_on(&server, image, &area(disk.as_file(), disk.as_file(), 80 * MIB)).unwrap_err();
    assert!(mkext4_open(disk.path()).is_err());
    failure
}

#[test]
fn another_image_never_follows_and_it_has_to_get_on() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let image = &made.image;
    // One byte of a chunk that was written is said to be another.
    let mut other = begun(image, 4);
    other[HEADER + 60] ^= 1;
    let larger = {
        let header = Table::parse(image.table()).unwrap().header();
        let header = Header { total_bytes: header.total_bytes + 4096, ..header };
        [&header.encode()[..], &image.table()[HEADER..]].concat()
    };
    // Only the sums have changed; and chunks are taken back.
    let mut still = begun(image, 3);
    still[24] ^= 1;
    for next in [other, larger, still, begun(image, 1)] {
        let failure = refused(image, vec![begun(image, 3), next, image.table().to_vec()]);
        assert_eq!(failure.cause, Cause::Image, "{failure}");
        assert!(failure.to_string().contains("another image than it began with"), "{failure}");
    }
    // The build failed.
    let failure = refused(image, vec![begun(image, 3)]);
    assert!(failure.cause.is_passing() && failure.to_string().contains("no longer"), "{failure}");
}
