//! Chunks, connections and disks that fail, and tables that are wrong.

use super::*;

#[test]
fn a_chunk_that_comes_damaged_is_fetched_again() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let bad = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&bad);
    // Every third answer, the table's too.
    let server = FetchServer::new(Arc::clone(&made.image), move |_, n| match n % 3 {
        0 => Fault::Flip(count.fetch_add(1, SeqCst) * 7919),
        1 => Fault::Wait,
        _ => Fault::None,
    });
    let disk = garbage(80 * MIB);
    let summary = install(&server, &made.image, &disk);
    assert!(summary.repaired > 1 && summary.broken == 0, "{summary:?}");
    let again = bad.load(SeqCst);
    assert_eq!(server.requests().len() - again, summary.chunks as usize + 1, "nothing is fetched twice");
    e2fsck(disk.path(), OFFSET, 80 * MIB);
    assert_equal(disk.path(), &made);
}

#[test]
fn a_stored_chunk_that_rots_is_named() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let table = Table::parse(made.image.table()).unwrap();
    let (index, victim) = (0..).zip(table.iter()).find(|(_, e)| e.stored == e.length).unwrap();
    let files = fs::read_dir(made.state.path().join("images")).unwrap().map(|e| e.unwrap().path());
    let chunks = files.into_iter().find(|p| p.extension().is_some_and(|e| e == "chunks")).unwrap();
    File::options().write(true).open(chunks).unwrap().write_all_at(b"rot", victim.position + 99).unwrap();
    assert_eq!(made.image.damaged().unwrap(), [index]);
    let disk = garbage(80 * MIB);
    let server = faultless(&made.image);
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 80 * MIB)).unwrap_err();
    assert_eq!(failure.cause, Cause::Image);
    let text = failure.to_string();
    assert!(text.contains(&format!("chunk {index} (byte {} of", victim.offset)), "{text}");
    assert_eq!(
        server.requests().iter().filter(|r| r.offset == victim.position && r.kind == Kind::Chunks).count(),
        6
    );
    assert!(mkext4_open(disk.path()).is_err());
}

#[test]
fn a_connection_may_break_anywhere() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    for seed in [1, 77, 4242] {
        // Two of three answers break, at places of all kinds.
        let server = FetchServer::new(Arc::clone(&made.image), move |_, n| match (n + seed) % 3 {
            0 => Fault::None,
            _ => Fault::Cut(
                n.wrapping_mul(seed).wrapping_mul(2_654_435_761) % 5_000_000
                    * usize::from(!n.is_multiple_of(4)),
            ),
        });
        let disk = garbage(80 * MIB);
        let summary = install(&server, &made.image, &disk);
        assert!(summary.broken > 2, "{summary:?}");
        assert_eq!(summary.fetched_bytes, made.image.header().stored_bytes, "nothing is fetched twice");
        assert_equal(disk.path(), &made);
    }
    // For ever broken: bounded.
    let server = FetchServer::new(Arc::clone(&made.image), |_, _| Fault::Cut(3));
    let disk = garbage(80 * MIB);
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 80 * MIB)).unwrap_err();
    assert!(failure.cause.is_passing());
    assert_eq!(server.requests().len(), pi_agent::fetch::UNHEARD_TIMES as usize + 1, "{failure}");
    let server =
        FetchServer::new(Arc::clone(&made.image), |_, n| if n < 4 { Fault::None } else { Fault::No });
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 80 * MIB)).unwrap_err();
    assert!(failure.cause.is_passing() && failure.to_string().contains("image any more"), "{failure}");
}

#[test]
fn what_is_on_the_card_already_is_neither_fetched_nor_written() {
    let archive = noisy(40);
    let made = made(archive.path(), 128 * MIB).unwrap();
    let disk = garbage(128 * MIB);
    let first = install(&faultless(&made.image), &made.image, &disk);
    assert_eq!(first.reused, 0);
    let server = faultless(&made.image);
    let second = install(&server, &made.image, &disk);
    // Growth has changed what says which blocks are used.
    assert_eq!((second.reused, second.chunks), (first.chunks - 2, first.chunks), "all but the first two");
    assert!(second.written_bytes <= 5 << 20 && second.fetched_bytes < 1 << 20, "{second:?}");
    assert_equal(disk.path(), &made);
    // Some blocks have changed since.
    for at in [20, 33, 61] {
        disk.as_file().write_all_at(b"changed", OFFSET + at * MIB + 5).unwrap();
    }
    let third = install(&faultless(&made.image), &made.image, &disk);
    assert!((first.chunks - 5..first.chunks - 2).contains(&third.reused), "{third:?}");
    assert_equal(disk.path(), &made);
    e2fsck(disk.path(), OFFSET, 128 * MIB);
}

#[test]
fn tables_that_are_not_the_one_offered() {
    let archive = noisy(4);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let disk = garbage(80 * MIB);
    let untouched = blake3::hash(&fs::read(disk.path()).unwrap());
    let (offer, id) = (made.image.offer(), made.image.header().archive);
    let attempt = |offer: ImageOffer, id: Hash, room: u64, server: &FetchServer| {
        let area = area(disk.as_file(), disk.as_file(), room);
        let progress = Progress::new();
        let failure =
            agent::install(|| server.connect(), &order(&offer, id, &progress), &area, |_| panic!("erased"));
        let failure = failure.unwrap_err();
        (failure.cause, failure.to_string())
    };
    let good = faultless(&made.image);
    let (cause, text) = attempt(offer, Hash([1; 32]), 80 * MIB, &good);
    assert!(cause == Cause::Image && text.contains("another archive"), "{text}");
    let (cause, text) = attempt(offer, id, MIB, &good);
    assert!(
        cause == Cause::TooSmall && text.contains(&format!("{} bytes", made.image.header().total_bytes)),
        "{text}"
    );
    let (cause, text) = attempt(ImageOffer { table_bytes: u32::MAX, ..offer }, id, 80 * MIB, &good);
    assert!(cause == Cause::Image && text.contains("too large"), "{text}");
    let (cause, text) = attempt(ImageOffer { table: Hash([2; 32]), ..offer }, id, 80 * MIB, &good);
    assert!(cause == Cause::Network && text.contains("such image"), "{text}");
    let tampered = FetchServer::new(Arc::clone(&made.image), |_, _| Fault::Flip(HEADER + 17));
    let (cause, text) = attempt(offer, id, 80 * MIB, &tampered);
    assert!(cause == Cause::Image && text.contains("hash"), "{text}");
    assert_eq!(blake3::hash(&fs::read(disk.path()).unwrap()), untouched, "the disk was touched");
}

/// A medium that fails on cue.
pub(super) struct Failing<'a> {
    pub(super) area: Area<'a>,
    pub(super) writes_left: AtomicUsize,
    pub(super) error: rustix::io::Errno,
}

impl Medium for Failing<'_> {
    fn length(&self) -> u64 {
        self.area.length()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.area.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let left = self.writes_left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        left.map_err(|_| self.error)?;
        self.area.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.area.sync()
    }
}

#[test]
fn a_disk_that_fails_is_said_and_never_valid() {
    let archive = noisy(24);
    let made = made(archive.path(), 80 * MIB).unwrap();
    let server = faultless(&made.image);
    for writes in [0, 1, 5] {
        for error in [rustix::io::Errno::NOSPC, rustix::io::Errno::IO] {
            let disk = garbage(80 * MIB);
            let area = area(disk.as_file(), disk.as_file(), 80 * MIB);
            let failing = Failing { area, writes_left: writes.into(), error };
            let failure = install_on(&server, &made.image, &failing).unwrap_err();
            assert_eq!(failure.cause, Cause::Disk);
            let what = io::Error::from(error).to_string();
            assert!(failure.to_string().contains(&what), "{failure}");
            assert!(mkext4_open(disk.path()).is_err());
        }
    }
    // While the proof is written: the same.
    let disk = garbage(80 * MIB);
    let area = area(disk.as_file(), disk.as_file(), 80 * MIB);
    let pending = install_on(&server, &made.image, &area).unwrap();
    let failing = Failing { area, writes_left: 1.into(), error: rustix::io::Errno::IO };
    assert_eq!(agent::commit(&failing, &pending, &proof(&made.image)).unwrap_err().stage, Stage::Commit);
    assert!(mkext4_open(disk.path()).is_err());
    failing.writes_left.store(2, SeqCst);
    agent::commit(&failing, &pending, &proof(&made.image)).unwrap();
    assert_equal(disk.path(), &made);
}
