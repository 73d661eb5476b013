//! What is kept and signed, in any form: what was written is read as it was, and bytes of anybody are either exactly
//! what would be written or nothing.

use std::os::unix::fs::FileExt;

use pi_agent::init::Options;
use pi_agent::trust;
use piman::state::archive_facts::Stamp;
use piman_core::hash::Hash;
use piman_core::install::Installation;
use piman_core::install::layout::Layout;
use piman_core::install::manifest::{Draft, Manifest, split};
use piman_core::install::receipt::{DiskMarks, PARTS_MAX, PartMark, Proof, Way};
use piman_core::install::summing::{ChunkHasher, ChunkHashes};
use piman_core::install::sums::{CHUNK, SUM};
use piman_core::rpc::auth::{Handshake, Verdict, verify};
use piman_core::rpc::{Codec, DEPTH_MAX, Memory, Slot, WEIGHT_MAX, postcard};
use piman_tests::chance::noise;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[!-~]{1,64}"
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn proof() -> impl Strategy<Value = Proof> {
    let installation = prop::option::of(any::<u64>().prop_map(Installation));
    let path = prop_oneof![Just(Way::Archive), Just(Way::Image)];
    let part = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(number, offset, content)| PartMark {
        number,
        offset,
        content,
    });
    let disk = (any::<u8>(), prop::collection::vec(part, 1..=PARTS_MAX));
    let disk = prop::option::of(disk.prop_map(|(root, parts)| DiskMarks { root, parts }));
    let personal = prop::option::of(hash());
    (hash(), path, "[0-9.a-z-]{1,20}", any::<u64>(), installation, any::<u64>(), personal, disk).prop_map(
        |(image, path, agent, time, installation, counter, personal, disk)| Proof {
            image,
            path,
            agent,
            time,
            installation,
            counter,
            personal,
            disk,
        },
    )
}

/// A text with one byte changed, left out or put in.
fn damaged(text: &str, at: usize, byte: u8, how: u8) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len();
    match how % 3 {
        0 => bytes[at] = byte,
        1 => drop(bytes.remove(at)),
        _ => bytes.insert(at, byte),
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn manifests(
        (image, name) in (hash(), name()),
        [bytes, unpacked_bytes, entries, counter] in any::<[u64; 4]>(),
        devices in prop::collection::vec(name(), 0..4),
        tables in prop::collection::vec((any::<u64>(), hash()), 0..4),
        (at, byte, how) in any::<(usize, u8, u8)>(),
    ) {
        let draft = Draft { image, bytes, unpacked_bytes, entries, name: &name, counter, devices: &devices, tables: &tables };
        let text = draft.to_string();
        let read = Manifest::parse(&text).expect("it was written so");
        prop_assert_eq!((read.image, read.bytes, read.unpacked_bytes), (image, bytes, unpacked_bytes));
        prop_assert_eq!((read.entries, read.name, read.counter), (entries, name.as_str(), counter));
        prop_assert!(read.devices().eq(devices.iter().map(String::as_str)));
        prop_assert!(read.tables().eq(tables.iter().copied()));
        for device in &devices {
            prop_assert!(read.is_for(Some(device), None) && read.is_for(None, Some(device)));
        }
        prop_assert_eq!(read.is_for(Some("nobody has white space"), None), devices.is_empty());
        let signed = format!("a\nb\nc\nd\n{text}");
        prop_assert_eq!(split(signed.as_bytes()), Some(("a\nb\nc\nd\n", text.as_str())));

        // Whatever a changed one is taken for, it says exactly what is written there.
        if let Ok(text) = std::str::from_utf8(&damaged(&text, at, byte, how))
            && let Some(read) = Manifest::parse(text)
        {
            let (devices, tables): (Vec<_>, Vec<_>) = (read.devices().collect(), read.tables().collect());
            let draft = Draft {
                image: read.image,
                bytes: read.bytes,
                unpacked_bytes: read.unpacked_bytes,
                entries: read.entries,
                name: read.name,
                counter: read.counter,
                devices: &devices,
                tables: &tables,
            };
            prop_assert!(draft.to_string().eq_ignore_ascii_case(text), "{text}");
        }
    }

    #[test]
    fn proofs(proof in proof(), bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..piman_core::install::receipt::SIZE) {
        let block = proof.encode();
        prop_assert_eq!(block.len(), piman_core::install::receipt::SIZE);
        prop_assert_eq!(Proof::parse(&block), Some(proof.clone()));
        // A block that was written in part is refused, or says which image it is.
        let mut half = block;
        half[cut..].fill(0);
        if let Some(read) = Proof::parse(&half) {
            prop_assert_eq!((read.image, read.path), (proof.image, proof.path));
        }
        let _ = Proof::parse(&bytes);
        let _ = Proof::parse(&[b"piman-proof 1\n", &bytes[..]].concat());
    }

    #[test]
    fn stamps(numbers in (any::<[u64; 3]>(), any::<[i64; 4]>()), text in "[0-9 -]{0,80}") {
        let ([device, inode, bytes], [a, b, c, d]) = numbers;
        let written = format!("{device} {inode} {bytes} {a} {b} {c} {d}");
        prop_assert_eq!(Stamp::parse(&written).expect("it is written so").to_string(), written);
        if let Some(stamp) = Stamp::parse(&text) {
            prop_assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        }
    }

    /// The kernel command line has words of everybody: none of them hides ours, and none is a fault.
    #[test]
    fn command_lines(
        before in "[ -~]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300),
        (port, host) in (1_u16.., "[a-z][a-z0-9.-]{0,40}"),
    ) {
        let _ = Options::parse(&bytes);
        let before = before.replace(['"', '-'], "");
        let options = Options::parse(format!("{before} piman.server={host}:{port} piman.service={port}").as_bytes());
        let server = options.server.expect("it is given");
        prop_assert_eq!((server.name, server.port), (host, Some(port)));
        prop_assert_eq!(options.service_port, Some(port));
        prop_assert!(options.complaints.len() <= before.split_whitespace().count());
    }

    /// What a peer that has not logged in may send is read without a fault, and logs nobody in.
    #[test]
    fn logins_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut slots = vec![Slot::default(); 2 * bytes.len() + 16];
        let memory = Memory {
            slots: &mut slots, stack: &mut [], memo: &mut [], text: &mut [],
            depth_max: DEPTH_MAX, weight_max: WEIGHT_MAX,
        };
        if let Ok((value, used)) = postcard::decode_first(&bytes, memory) {
            prop_assert!((1..=bytes.len()).contains(&used));
            prop_assert!(!verify(Some("a password that is not among these bytes, so long is it"), value));
            let mut buf = vec![0; 1 << 12];
            for again in [Handshake::parse(value).map(|h| Codec::Postcard.encode(&h, &mut buf).is_ok()),
                          Verdict::parse(value).map(|v| Codec::Postcard.encode(&v, &mut buf).is_ok())] {
                prop_assert!(again.unwrap_or(true));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Chunk hashes: those of the archive pass, in whatever pieces it came, and one other bit does not.
    #[test]
    fn chunk_hashes(
        bytes in 1..4 * u64::from(CHUNK), piece in 1..2 * CHUNK as usize, (at, bit) in (any::<prop::sample::Index>(), 0_u8..8),
    ) {
        let all = noise(bytes as usize, bytes);
        let mut summing = ChunkHasher::new();
        all.chunks(piece).for_each(|piece| summing.update(piece));
        let (id, table) = summing.finish();
        prop_assert_eq!(id, Hash(*blake3::hash(&all).as_bytes()));
        let sums = ChunkHashes::parse(id, bytes, &table).expect("they give the hash");
        let mut other = all.clone();
        let at = at.index(all.len());
        other[at] ^= 1 << bit;
        for index in 0..sums.chunks() {
            let range = sums.range(index);
            let range = range.start as usize..range.end as usize;
            prop_assert!(sums.is(index, &all[range.clone()]));
            prop_assert_eq!(sums.is(index, &other[range.clone()]), !range.contains(&at));
        }
        if let Some(last) = table.len().checked_sub(1) {
            let mut wrong = table.clone();
            wrong[at % (last + 1)] ^= 1 << bit;
            prop_assert!(ChunkHashes::parse(id, bytes, &wrong).is_err());
            prop_assert!(ChunkHashes::parse(id, bytes, &table[..last + 1 - SUM]).is_err());
        }
    }

    /// The counter that a card remembers: it only grows, and a damaged one is refused.
    #[test]
    fn counters(counters in prop::collection::vec(any::<u64>(), 1..6), at in 0_u64..56, bit in 0_u8..8) {
        let disk = tempfile::tempfile().unwrap();
        let size = 128 << 20;
        disk.set_len(size).unwrap();
        let mut highest = 0;
        for counter in counters {
            highest = highest.max(counter);
            trust::remember(&disk, counter, &Layout::default(), None).unwrap();
            prop_assert_eq!(trust::rollback_counter(&disk, size), highest);
        }
        let mut byte = [0];
        disk.read_exact_at(&mut byte, 64 * 512 + at).unwrap();
        disk.write_all_at(&[byte[0] ^ (1 << bit)], 64 * 512 + at).unwrap();
        prop_assert_eq!(trust::rollback_counter(&disk, size), 0);
    }
}
