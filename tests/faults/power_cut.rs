//! The power is cut at any moment of an installation: what a real card could hold then never
//! counts as installed with anything missing, and the next start makes it whole.
//!
//! A card of our own below the kernel writes down every write and flush of one installation.
//! What was flushed is there after the cut; of the rest anything may be: all, nothing, some,
//! the last without the others, half of one. `PIMAN_POWER_CUTS` says how many cuts each of
//! the tests makes, on 200 in all at least.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use pi_agent::card::inspect::Card as Found;
use pi_agent::install::{Outcome, Plan};
use piman::images::sign;
use piman::netboot::dhcp::pool::Lease;
use piman::netboot::dhcp::store;
use piman::sys::mac::Mac;
use piman_core::hash::Hash;
use piman_tests::card::{Card, Cut, Event, Lie, Medium};
use piman_tests::chance::Random;
use piman_tests::disk::{Mounted, run};
use piman_tests::lab::{self, CARD, Root};

/// Cuts of one test.
const CUTS: usize = 60;

pub(crate) fn cuts() -> usize {
    std::env::var("PIMAN_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(CUTS)
}

/// Installs onto a card that writes down what happens to it.
pub(crate) fn record(before: Vec<u8>, plan: impl Fn(&Path) -> Plan) -> (Vec<Event>, Vec<u8>) {
    let card = Card::new(before, Lie::None);
    let outcome = lab::attempt(&plan(card.path())).unwrap();
    assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
    (card.take_events(), card.bytes())
}

/// Where the power is cut: after so many events, and what is left of the cached ones. At every
/// write and flush by which the installation becomes valid, and at others by chance.
fn moments(events: &[Event], count: usize) -> Vec<(usize, Cut)> {
    let is_proof =
        |e: &Event| matches!(e, Event::Write(_, b) if b.windows(13).any(|w| w == b"piman-proof 1"));
    let proof = events.iter().position(is_proof).expect("the proof is written");
    let mut moments = Vec::new();
    for at in proof - 1..events.len().min(proof + 9) {
        moments.extend([(at, Cut::All), (at, Cut::None), (at, Cut::Some(at as u64 * 7)), (at, Cut::Last)]);
    }
    moments.extend([(events.len(), Cut::None), (events.len(), Cut::All)]);
    let mut random = Random::new(events.len() as u64);
    while moments.len() < count {
        let at = 1 + random.below(proof as u64) as usize;
        let cuts = [Cut::Some(random.below(1 << 32)), Cut::ButFirst, Cut::All, Cut::None];
        moments.push((at, cuts[moments.len() % cuts.len()]));
    }
    moments.sort_by_key(|(at, _)| *at);
    moments
}

/// How the starts after the cuts found the card.
#[derive(Debug, Default)]
struct Tally {
    installed: usize,
    not_installed: usize,
}

/// Cuts the power at all the moments; gives the card as it is after each to `start`, with what happened.
pub(crate) fn each_cut(before: Vec<u8>, events: &[Event], start: &mut dyn FnMut(&Path, &str)) {
    let mut medium = Medium::new(before);
    let mut advanced = 0;
    let folder = lab::memory();
    let path = folder.path().join("card.img");
    for (at, cut) in moments(events, cuts()) {
        let flushed = events[..at].iter().rposition(|e| *e == Event::Flush).map_or(0, |n| n + 1);
        if flushed > advanced {
            medium.advance(&events[advanced..flushed]);
            advanced = flushed;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        medium.cut(&events[advanced..at], cut, &file);
        drop(file);
        start(&path, &format!("after event {at} of {}, {cut:?} of the cached writes", events.len()));
    }
}

/// Cuts the power at all the moments; after each the Pi starts again.
fn cut_and_start_again(
    before: Vec<u8>,
    events: &[Event],
    roots: &[&Root],
    plan: impl Fn(&Path) -> Plan,
) -> Tally {
    let mut tally = Tally::default();
    each_cut(before, events, &mut |path, what| match lab::attempt(&plan(path))
        .unwrap_or_else(|e| panic!("{what}: {e}"))
    {
        Outcome::Boot { card: Found::Installed(proof), .. } => {
            println!("{what}: installed");
            tally.installed += 1;
            let root = roots.iter().find(|r| r.id == proof.image).expect("one of the two");
            root.assert_on(path);
        }
        Outcome::Installed { image, .. } => {
            tally.not_installed += 1;
            assert_eq!(image, roots[0].id);
            roots[0].assert_on(path);
        }
        other => panic!("{what}: {other:?}"),
    });
    println!("{tally:?}");
    tally
}

/// The power is cut while a card that was empty is installed by this path.
fn onto_an_empty_card(path: &str) {
    let root = Root::new("new", 300_000);
    let server = root.serve(&[]);
    let plan = |card: &Path| lab::plan(&server, card, path);
    let (events, _) = record(vec![0; CARD as usize], plan);
    let tally = cut_and_start_again(vec![0; CARD as usize], &events, &[&root], plan);
    assert!(tally.installed > 1 && tally.not_installed > cuts() / 3, "{tally:?}");
}

/// The same on a card that has another system, and its proof.
fn over_another_system(path: &str, other_path: &str) {
    let (old, new) = (Root::new("old", 500_000), Root::new("new", 300_000));
    let server = old.serve(&[]);
    let (_, before) = record(vec![0; CARD as usize], |card| lab::plan(&server, card, other_path));
    drop(server);
    let server = new.serve(&[]);
    let again = |card: &Path| Plan { reinstall: true, ..lab::plan(&server, card, path) };
    let (events, _) = record(before.clone(), again);
    let tally = cut_and_start_again(before, &events, &[&new, &old], |card| lab::plan(&server, card, path));
    assert!(tally.installed > 1 && tally.not_installed > cuts() / 3, "{tally:?}");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn by_stream_onto_an_empty_card() {
    onto_an_empty_card("archive");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn by_image_onto_an_empty_card() {
    onto_an_empty_card("image");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn by_stream_over_another_system() {
    over_another_system("archive", "image");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn by_image_over_another_system() {
    over_another_system("image", "archive");
}

/// The image of a whole disk, on a card that had a system of ours in a partition.
#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn of_a_whole_disk_over_another_system() {
    let (old, new) = (Root::new("old", 500_000), Root::new("new", 300_000).into_disk_image());
    let server = old.serve(&[]);
    let (_, before) = record(vec![0; CARD as usize], |card| lab::plan(&server, card, "image"));
    drop(server);
    let server = new.serve_added();
    let again = |card: &Path| Plan { reinstall: true, ..lab::plan(&server, card, "auto") };
    let (events, _) = record(before.clone(), again);
    let tally = cut_and_start_again(before, &events, &[&new, &old], |card| lab::plan(&server, card, "auto"));
    assert!(tally.installed > 1 && tally.not_installed > cuts() / 3, "{tally:?}");
}

/// And the other way round.
#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn over_a_whole_disk() {
    let (old, new) = (Root::new("old", 500_000).into_disk_image(), Root::new("new", 300_000));
    let server = old.serve_added();
    let (_, before) = record(vec![0; CARD as usize], |card| lab::plan(&server, card, "auto"));
    drop(server);
    let server = new.serve(&[]);
    let again = |card: &Path| Plan { reinstall: true, ..lab::plan(&server, card, "image") };
    let (events, _) = record(before.clone(), again);
    let tally = cut_and_start_again(before, &events, &[&new, &old], |card| lab::plan(&server, card, "image"));
    assert!(tally.installed > 1 && tally.not_installed > cuts() / 3, "{tally:?}");
}

/// The server's own disk: once it said that a lease is kept or an image is signed, it is so after a power cut.
#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn what_the_server_keeps_is_there_after_a_power_cut() {
    const DISK: u64 = 32 << 20;
    let folder = lab::memory();
    let image = folder.path().join("disk.img");
    File::create(&image).unwrap().set_len(DISK).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image));
    let before = std::fs::read(&image).unwrap();
    let card = Card::new(before.clone(), Lie::None);
    // The kernel writes nothing by itself in the meantime.
    let mounted = Mounted::new(card.path(), 0, DISK, "noatime,commit=900");
    let leases = |until| {
        let lease = Lease { mac: Mac([0xb8, 0x27, 0xeb, 0, 0, 1]), until };
        BTreeMap::from([([10, 0, 0, 7].into(), lease)])
    };
    store::save(mounted.path(), &leases(1)).unwrap();
    run(Command::new("sync").arg("-f").arg(mounted.path()));
    let signature = format!(
        "untrusted comment: x\nRUQA{}AAA=\ntrusted comment: y\n{}AA==\n",
        "A".repeat(92),
        "A".repeat(84)
    );
    let id = Hash([7; 32]);
    let manifest =
        format!("piman-manifest 1\nimage {id}\nbytes 1\nunpacked 1\nentries 1\nname x\ncounter 1\n");
    let medium = Medium::new(before);
    let cut = |events: &[Event], look: &dyn Fn(&Path)| {
        let path = folder.path().join("cut.img");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        medium.cut(events, Cut::None, &file);
        drop(file);
        look(Mounted::new(&path, 0, DISK, "noatime").path());
    };
    // Without its folder a file that is renamed has its old content again: the cut is a real one.
    let mut renamed = tempfile::NamedTempFile::new_in(mounted.path()).unwrap();
    renamed.write_all(b"# nothing\n").unwrap();
    renamed.as_file().sync_data().unwrap();
    renamed.persist(mounted.path().join(store::FILE)).unwrap();
    let mut events = card.take_events();
    cut(&events, &|disk| assert_eq!(store::load(disk).unwrap(), leases(1)));
    store::save(mounted.path(), &leases(2)).unwrap();
    events.extend(card.take_events());
    cut(&events, &|disk| assert_eq!(store::load(disk).unwrap(), leases(2)));
    sign::keep(mounted.path(), &signature, &manifest).unwrap();
    events.extend(card.take_events());
    cut(&events, &|disk| assert!(sign::signed(disk, id).is_some(), "the signature is lost"));
}
