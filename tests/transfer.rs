//! The transfer service in memory: golden bytes, dialogues at every chop, both sides against
//! each other and against a model.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use piman_core::Error;
use piman_core::blocking;
use piman_core::error::PeerError;
use piman_core::hash::Hash;
use piman_core::transfer::{
    Download, End, Message, Name, Operation, REQUEST_LEN, Refusal, Server, Status, Storage, Upload, run,
};
use piman_tests::memory::{ROOM, Script, World};
use proptest::prelude::*;

/// A folder in memory.
#[derive(Debug, Default)]
struct Folder {
    complete: BTreeMap<String, Vec<u8>>,
    partial: BTreeMap<String, Vec<u8>>,
    taken: BTreeSet<String>,
    room: u64,
    /// Writes fail from this offset on.
    breaks_at: Option<u64>,
}

/// One transfer's view of a folder.
#[derive(Debug)]
struct Shelf {
    folder: Rc<RefCell<Folder>>,
    name: String,
    upload: bool,
}

impl Shelf {
    fn new(folder: &Rc<RefCell<Folder>>) -> Self {
        Self { folder: folder.clone(), name: String::new(), upload: false }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if self.upload {
            self.folder.borrow_mut().taken.remove(&self.name);
        }
    }
}

impl Storage for Shelf {
    async fn open(&mut self, name: &Name) -> Result<u64, Refusal> {
        self.name = name.to_string();
        let folder = self.folder.borrow();
        folder.complete.get(&self.name).map(|b| b.len() as u64).ok_or(Refusal::Refused)
    }

    async fn create(&mut self, name: &Name, keep: bool) -> Result<u64, Refusal> {
        let mut folder = self.folder.borrow_mut();
        let name = name.to_string();
        if folder.complete.contains_key(&name) {
            return Err(Refusal::Exists);
        }
        if !folder.taken.insert(name.clone()) {
            return Err(Refusal::Refused);
        }
        (self.name, self.upload) = (name, true);
        let partial = folder.partial.entry(self.name.clone()).or_default();
        if !keep {
            partial.clear();
        }
        Ok(partial.len() as u64)
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        let folder = self.folder.borrow();
        let from = if self.upload { &folder.partial } else { &folder.complete };
        let bytes = from.get(&self.name).and_then(|b| b.get(..bytes as usize)).ok_or(Refusal::Failed)?;
        Ok(Hash(*blake3::hash(bytes).as_bytes()))
    }

    async fn reserve(&mut self, start: u64, size: u64) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        if size - start > folder.room {
            return Err(Refusal::NoSpace);
        }
        let name = self.name.clone();
        folder.partial.get_mut(&name).ok_or(Refusal::Failed)?.truncate(start as usize);
        Ok(())
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        let folder = self.folder.borrow();
        let bytes = folder.complete.get(&self.name).and_then(|b| b.get(offset as usize..));
        let bytes = bytes.ok_or(Refusal::Failed)?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        if folder.breaks_at.is_some_and(|at| offset + bytes.len() as u64 > at) {
            return Err(Refusal::NoSpace);
        }
        let name = self.name.clone();
        let partial = folder.partial.get_mut(&name).ok_or(Refusal::Failed)?;
        assert_eq!(partial.len() as u64, offset);
        partial.extend_from_slice(bytes);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        let bytes = folder.partial.remove(&self.name).ok_or(Refusal::Failed)?;
        folder.complete.insert(self.name.clone(), bytes);
        Ok(())
    }
}

fn folder(files: &[(&str, &[u8])]) -> Rc<RefCell<Folder>> {
    let complete = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
    Rc::new(RefCell::new(Folder { complete, room: u64::MAX, ..Folder::default() }))
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn request(operation: u8, name: &[u8]) -> Vec<u8> {
    let mut bytes = vec![operation];
    bytes.extend_from_slice(name);
    bytes.resize(REQUEST_LEN, 0);
    bytes
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// What the server says to `input`, and how it ends, the same at every chop.
fn served(
    folder: impl Fn() -> Rc<RefCell<Folder>>,
    input: &[u8],
) -> (Vec<u8>, Result<End, PeerError>, Folder) {
    let mut before: Option<(Vec<u8>, _)> = None;
    for chop in (1..=64).chain([255, 256, 257, input.len().max(1)]) {
        let folder = folder();
        let mut script = Script::new(input, chop);
        let mut buf = [0; 50];
        let end = blocking::run(run(&mut script, &mut buf, &mut Server::default(), &mut Shelf::new(&folder)));
        let end = end.map_err(|e| match e {
            Error::Peer(e) => e,
            Error::Io(never) => match never {},
            other => panic!("{other:?}"),
        });
        let got = (script.output, end);
        if let Some(before) = &before {
            assert_eq!(&got, before, "in pieces of {chop}");
        }
        before = Some(got);
        if chop == input.len().max(1) {
            let (output, end) = before.unwrap();
            return (output, end, Rc::try_unwrap(folder).unwrap().into_inner());
        }
    }
    unreachable!()
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Repair the code and never this test: these bytes are in the field.
#[test]
fn golden_bytes() {
    let mut buf = [0xaa; REQUEST_LEN];
    let mut padded = b"Da.log".to_vec();
    padded.resize(256, 0);
    assert_eq!(Message::Request(Operation::Download, &name("a.log")).encode(&mut buf), padded);
    padded[0] = b'U';
    assert_eq!(Message::Request(Operation::Upload, &name("a.log")).encode(&mut buf), padded);
    padded[0] = b'R';
    assert_eq!(Message::Request(Operation::Ranges, &name("a.log")).encode(&mut buf), padded);
    let full = [b'n'; 255];
    let longest = Name::parse(&full).unwrap();
    let sent = Message::Request(Operation::Upload, &longest);
    assert_eq!(sent.encode(&mut buf), request(b'U', &full));
    for (status, byte) in [
        (Status::Go, b'T'),
        (Status::No, b'F'),
        (Status::Error, b'E'),
        (Status::Space, b'S'),
        (Status::Ranges, b'R'),
    ] {
        assert_eq!(Message::Status(status).encode(&mut buf), [byte]);
    }
    let hash = Hash([7; 32]);
    let size = 0x0102_0304_0506_0708;
    assert_eq!(Message::Offer(Status::Go, size).encode(&mut buf), b"T\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(Message::Size(size).encode(&mut buf), b"\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(Message::Want(258).encode(&mut buf), b"U\0\0\0\0\0\0\x01\x02");
    assert_eq!(
        Message::From(Status::Go, 258, 3).encode(&mut buf),
        b"T\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03"
    );
    assert_eq!(Message::Have(258, hash).encode(&mut buf), join(&[b"D\0\0\0\0\0\0\x01\x02", &[7; 32]]));
    assert_eq!(
        Message::Partial(Status::No, 258, hash).encode(&mut buf),
        join(&[b"F\0\0\0\0\0\0\x01\x02", &[7; 32]])
    );
}

#[test]
fn a_download_as_old_peers_do_it() {
    for size in [0usize, 1, 255, 256, 257, 3000] {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let make = || folder(&[("a b", &bytes)]);
        let said = served(make, &join(&[&request(b'D', b"a b\0 "), b"T"]));
        assert_eq!(said.0, join(&[b"T", &(size as u64).to_be_bytes(), &bytes]));
        assert_eq!(said.1, Ok(End::Done { start: 0, size: size as u64 }));
        let stopped = served(make, &join(&[&request(b'D', b"a b"), b"F"]));
        assert_eq!((stopped.0.len(), stopped.1), (9, Ok(End::Stopped)));
        let strange = served(make, &join(&[&request(b'D', b"a b"), b"x"]));
        assert_eq!((strange.0.len(), strange.1), (9, Ok(End::Strange)));
    }
}

#[test]
fn an_upload_as_old_peers_do_it() {
    for size in [0usize, 1, 255, 256, 257, 3000] {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let input = join(&[&request(b'U', b"new"), &(size as u64).to_be_bytes(), &bytes]);
        let (said, end, after) = served(|| folder(&[]), &input);
        assert_eq!((said.as_slice(), end), (&b"TT"[..], Ok(End::Done { start: 0, size: size as u64 })));
        assert_eq!(after.complete["new"], bytes);
        assert!(after.partial.is_empty() && after.taken.is_empty());
        // More than was said: what was said counts.
        let (_, end, after) = served(|| folder(&[]), &join(&[&input, b"and more"]));
        assert_eq!((end, &after.complete["new"]), (Ok(End::Done { start: 0, size: size as u64 }), &bytes));
        // Less than was said: nothing is visible.
        if size > 0 {
            let (_, end, after) = served(|| folder(&[]), &input[..input.len() - 1]);
            assert_eq!(end, Err(PeerError::Closed));
            assert!(after.complete.is_empty() && after.taken.is_empty());
        }
    }
}

#[test]
fn refusals_as_old_peers_know_them() {
    let make = || {
        let folder = folder(&[("there", b"x")]);
        folder.borrow_mut().taken.insert("busy".to_owned());
        folder.borrow_mut().room = 10;
        folder
    };
    let none = b"F\0\0\0\0\0\0\0\0";
    for bad in [&b"nothing"[..], b"busy", b"../there", b".there", b"a/b", b"a\nb", b"\xff", b""] {
        let (said, end, _) = served(make, &request(b'D', bad));
        assert_eq!((said.as_slice(), end), (&none[..], Ok(End::Refused(Refusal::Refused))));
    }
    for bad in [&b"busy"[..], b"../there", b".there", b"a/b", b"a\nb", b"\xff", b""] {
        let (said, end, _) = served(make, &request(b'U', bad));
        assert_eq!((said.as_slice(), end), (&b"F"[..], Ok(End::Refused(Refusal::Refused))));
    }
    assert_eq!(served(make, &request(b'U', b"there")).0, b"F");
    assert_eq!(served(make, &request(b'X', b"there")).0, b"E");
    let (said, end, after) = served(make, &join(&[&request(b'U', b"big"), &11u64.to_be_bytes()]));
    assert_eq!((said.as_slice(), end), (&b"TF"[..], Ok(End::Refused(Refusal::NoSpace))));
    assert!(!after.taken.contains("big"));
    let (said, ..) = served(make, &join(&[&request(b'U', b"big"), &u64::MAX.to_be_bytes()]));
    assert_eq!(said, b"TF");
}

#[test]
fn silence_and_ends_at_every_byte() {
    let make = || folder(&[("a", b"12345")]);
    let up = join(&[&request(b'U', b"b"), &5u64.to_be_bytes(), b"12345"]);
    let down = join(&[&request(b'D', b"a"), b"T"]);
    let ranges_down = join(&[&request(b'R', b"a"), b"D", &2u64.to_be_bytes(), &hash(b"12"), b"T"]);
    let ranges_up = join(&[&request(b'R', b"b"), b"U", &5u64.to_be_bytes(), &0u64.to_be_bytes(), b"12345"]);
    for whole in [up, down, ranges_down, ranges_up] {
        for cut in 0..whole.len() {
            let (_, end, after) = served(make, &whole[..cut]);
            assert!(matches!(end, Ok(End::Closed) | Err(PeerError::Closed)), "{end:?} after {cut}");
            assert_eq!((after.complete.len(), after.taken.len()), (1, 0));
        }
    }
}

#[test]
fn a_download_goes_on_only_if_it_is_the_same_file() {
    let make = || folder(&[("a", b"0123456789")]);
    let ask = |have: &[u8]| {
        join(&[&request(b'R', b"a"), b"D", &(have.len() as u64).to_be_bytes(), &hash(have), b"T"])
    };
    let answer = |start: u64, rest: &[u8]| join(&[b"RT", &10u64.to_be_bytes(), &start.to_be_bytes(), rest]);
    assert_eq!(served(make, &ask(b"012")).0, answer(3, b"3456789"));
    assert_eq!(served(make, &ask(b"0123456789")).0, answer(10, b""));
    assert_eq!(served(make, &ask(b"")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"01x")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"0123456789a")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"012")).1, Ok(End::Done { start: 3, size: 10 }));
    let lost = join(&[&request(b'R', b"b"), b"D", &3u64.to_be_bytes(), &hash(b"012")]);
    assert_eq!(served(make, &lost).0, join(&[b"RF", &[0; 16]]));
    let bad = join(&[&request(b'R', b".."), b"D", &3u64.to_be_bytes(), &hash(b"012")]);
    assert_eq!(served(make, &bad).0, join(&[b"RF", &[0; 16]]));
}

#[test]
fn an_upload_goes_on_only_if_it_is_the_same_file() {
    let make = || {
        let folder = folder(&[("same", b"0123456789")]);
        folder.borrow_mut().partial.insert("a".to_owned(), b"012".to_vec());
        folder
    };
    let ask = |name: &[u8], size: u64, start: u64, rest: &[u8]| {
        join(&[&request(b'R', name), b"U", &size.to_be_bytes(), &start.to_be_bytes(), rest])
    };
    let partial = |status: u8, have: u64, hash: &[u8]| join(&[b"R", &[status], &have.to_be_bytes(), hash]);
    let there = partial(b'T', 3, &hash(b"012"));
    let (said, end, after) = served(make, &ask(b"a", 10, 3, b"3456789"));
    assert_eq!((said, end), (join(&[&there, b"T"]), Ok(End::Done { start: 3, size: 10 })));
    assert_eq!(after.complete["a"], b"0123456789");
    let (said, end, after) = served(make, &ask(b"a", 10, 0, b"abcdefghij"));
    assert_eq!((said, end), (join(&[&there, b"T"]), Ok(End::Done { start: 0, size: 10 })));
    assert_eq!(after.complete["a"], b"abcdefghij");
    // Smaller than what is there: it is of another file.
    let (said, _, after) = served(make, &ask(b"a", 2, 0, b"01"));
    assert_eq!(said, join(&[&partial(b'T', 0, &[0; 32]), b"T"]));
    assert_eq!(after.complete["a"], b"01");
    // From anywhere else.
    assert_eq!(served(make, &ask(b"a", 10, 2, b"23456789")).1, Ok(End::Strange));
    // There already: the same as far as the size tells, and not.
    assert_eq!(served(make, &ask(b"same", 10, 0, b"")).0, partial(b'F', 10, &hash(b"0123456789")));
    assert_eq!(served(make, &ask(b"same", 9, 0, b"")).0, partial(b'F', 0, &[0; 32]));
    let full = || {
        let folder = make();
        folder.borrow_mut().room = 6;
        folder
    };
    assert_eq!(served(full, &ask(b"a", 10, 3, b"")).0, partial(b'S', 0, &[0; 32]));
    let breaks = || {
        let folder = make();
        folder.borrow_mut().breaks_at = Some(5);
        folder
    };
    let (said, end, after) = served(breaks, &ask(b"a", 10, 3, b"3456789"));
    assert_eq!((said, end), (join(&[&there, b"S"]), Ok(End::Broken(Refusal::NoSpace))));
    assert!(!after.complete.contains_key("a"));
}

/// A client against a server whose words are fixed, at every chop.
fn asked(upload: bool, ranges: bool, have: &[u8], says: &[u8]) -> (Vec<u8>, End, Folder) {
    let mut last = None;
    for chop in 1..=says.len().max(300) {
        let files = folder(if upload { &[("f", b"0123456789")] } else { &[] });
        if !upload {
            files.borrow_mut().partial.insert("f".to_owned(), have.to_vec());
        }
        let mut script = Script::new(says, chop);
        let mut shelf = Shelf::new(&files);
        let end = if upload {
            let mut machine = Upload::new(name("f"), ranges);
            blocking::run(run(&mut script, &mut [0; 7], &mut machine, &mut shelf))
        } else {
            let mut machine = Download::new(name("f"), ranges);
            blocking::run(run(&mut script, &mut [0; 7], &mut machine, &mut shelf))
        };
        drop(shelf);
        let end = end.unwrap_or(End::Closed);
        let now = (script.output, end, Rc::try_unwrap(files).unwrap().into_inner());
        if let Some((output, end, _)) = &last {
            assert_eq!((output, end), (&now.0, &now.1), "in pieces of {chop}");
        }
        last = Some(now);
    }
    last.unwrap()
}

#[test]
fn clients_with_old_servers() {
    let size = 10u64.to_be_bytes();
    let (said, end, after) = asked(false, false, b"junk", &join(&[b"T", &size, b"0123456789"]));
    assert_eq!((said, end), (join(&[&request(b'D', b"f"), b"T"]), End::Done { start: 0, size: 10 }));
    assert_eq!(after.complete["f"], b"0123456789");
    assert_eq!(asked(false, false, b"", b"F\0\0\0\0\0\0\0\0").1, End::Refused(Refusal::Refused));
    assert_eq!(asked(false, false, b"", b"E\0\0\0\0\0\0\0\0").1, End::Refused(Refusal::Failed));
    assert_eq!(asked(false, false, b"", b"xxxxxxxxx").1, End::Strange);
    assert_eq!(asked(false, false, b"", &join(&[b"T", &size, b"012345678"])).1, End::Closed);

    let (said, end, _) = asked(true, false, b"", b"TT");
    assert_eq!(said, join(&[&request(b'U', b"f"), &size, b"0123456789"]));
    assert_eq!(end, End::Done { start: 0, size: 10 });
    assert_eq!(asked(true, false, b"", b"F").1, End::Refused(Refusal::Refused));
    assert_eq!(asked(true, false, b"", b"E").1, End::Refused(Refusal::Failed));
    assert_eq!(asked(true, false, b"", b"TF").1, End::Refused(Refusal::NoSpace));
    assert_eq!(asked(true, false, b"", b"T").1, End::Closed);

    // It answers in any way, or not at all, to what it does not know.
    for upload in [true, false] {
        for says in [&b""[..], b"E", b"F\0\0\0\0\0\0\0\0", b"T"] {
            assert_eq!(asked(upload, true, b"012", says).1, End::NoRanges, "{says:?}");
        }
    }
}

#[test]
fn a_server_that_lies_about_where_it_goes_on_is_not_believed() {
    let size = 10u64.to_be_bytes();
    for start in [1u64, 2, 4, 11, u64::MAX] {
        let says = join(&[b"RT", &size, &start.to_be_bytes(), b"0123456789"]);
        assert_eq!(asked(false, true, b"012", &says).1, End::Strange, "{start}");
    }
    let says = join(&[b"RT", &2u64.to_be_bytes(), &3u64.to_be_bytes()]);
    assert_eq!(asked(false, true, b"012", &says).1, End::Strange);
    let says = join(&[b"RT", &11u64.to_be_bytes(), &hash(b"0123456789")]);
    assert_eq!(asked(true, true, b"", &says).1, End::Closed);
}

/// Both sides against each other, the line cut after `cut` bytes of the client or of the server.
fn attempt(
    up: bool,
    ranges: bool,
    client: &Rc<RefCell<Folder>>,
    server: &Rc<RefCell<Folder>>,
    chop: usize,
    cut: Option<usize>,
    whose: bool,
) -> Option<End> {
    let world = World::new();
    let (mut a, mut b) = world.stream(ROOM, chop);
    if whose {
        a.cut_after(cut)
    } else {
        b.cut_after(cut)
    }
    let (mut ours, mut theirs) = (Shelf::new(client), Shelf::new(server));
    let client = async {
        let end = if up {
            run(&mut a, &mut [0; 33], &mut Upload::new(name("f"), ranges), &mut ours).await
        } else {
            run(&mut a, &mut [0; 33], &mut Download::new(name("f"), ranges), &mut ours).await
        };
        drop(a);
        end
    };
    let server = async {
        let end = run(&mut b, &mut [0; 33], &mut Server::default(), &mut theirs).await;
        drop(b);
        end
    };
    world.both(client, server).0.ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// However often the line is cut, and whatever the receiver had before: at the end there is
    /// the sender's file, or nothing under that name.
    #[test]
    fn whatever_happens_the_file_is_whole_or_not_there(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        before in prop_oneof![
            Just(Vec::new()), proptest::collection::vec(any::<u8>(), 0..3000)],
        prefix in any::<Option<prop::sample::Index>>(),
        up in any::<bool>(),
        cuts in proptest::collection::vec((1usize..2500, any::<bool>(), 1usize..300, any::<bool>()), 0..6),
    ) {
        let (sender, receiver) = (folder(&[("f", &bytes)]), folder(&[]));
        let before = prefix.map_or(before, |i| bytes[..i.index(bytes.len() + 1)].to_vec());
        receiver.borrow_mut().partial.insert("f".to_owned(), before);
        let (client, server) = if up { (&sender, &receiver) } else { (&receiver, &sender) };
        for (cut, whose, chop, ranges) in cuts {
            let end = attempt(up, ranges, client, server, chop, Some(cut), whose);
            let there = receiver.borrow().complete.get("f").cloned();
            prop_assert!(there.is_none() || there.as_ref() == Some(&bytes));
            if matches!(end, Some(End::Done { .. } | End::Already { .. })) {
                prop_assert_eq!(there, Some(bytes.clone()));
            }
            prop_assert!(sender.borrow().taken.is_empty() && receiver.borrow().taken.is_empty());
        }
        let there = receiver.borrow().complete.contains_key("f");
        let end = attempt(up, true, client, server, 100, None, true);
        let size = bytes.len() as u64;
        match end {
            Some(End::Done { start, size: s }) => prop_assert!(!there && s == size && start <= size),
            Some(End::Already { size: s }) => prop_assert!(there && up && s == size),
            // A client that has the file whole does not ask for it in this model.
            Some(End::Broken(Refusal::Exists)) => prop_assert!(there && !up),
            other => prop_assert!(false, "{:?}", other),
        }
        prop_assert_eq!(&receiver.borrow().complete["f"], &bytes);
    }

    /// Any bytes end a session somehow, and never make a file that was not announced.
    #[test]
    fn any_bytes(input in proptest::collection::vec(any::<u8>(), 0..600), op in 0usize..4, chop in 1usize..64) {
        let mut input = input;
        if let (Some(first), Some(op)) = (input.first_mut(), b"DUR".get(op)) {
            *first = *op;
        }
        let files = folder(&[("f", b"0123456789")]);
        let mut script = Script::new(&input, chop);
        let mut shelf = Shelf::new(&files);
        let _ = blocking::run(run(&mut script, &mut [0; 9], &mut Server::default(), &mut shelf));
        drop(shelf);
        prop_assert!(files.borrow().taken.is_empty());
        prop_assert_eq!(&files.borrow().complete["f"], b"0123456789");
    }
}
