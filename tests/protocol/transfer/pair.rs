//! Both sides against each other and against a model.

use super::*;

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
    let (mut ours, mut theirs) = (MemoryStorage::new(client), MemoryStorage::new(server));
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
        let mut storage = MemoryStorage::new(&files);
        let _ = blocking::run(run(&mut script, &mut [0; 9], &mut Server::default(), &mut storage));
        drop(storage);
        prop_assert!(files.borrow().taken.is_empty());
        prop_assert_eq!(&files.borrow().complete["f"], b"0123456789");
    }
}
