//! The telemetry service in memory: golden bytes, dialogues at every chop, both sides against each other.

use std::convert::Infallible;

use piman_core::blocking;
use piman_core::telemetry::{Acks, Client, GREETING, Journal, PROCESSED, RECEIVED, open, send, serve};
use piman_tests::memory::{ROOM, Script, World};
use proptest::prelude::*;

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    full_after: Option<usize>,
}

impl Journal for &mut File {
    type Error = &'static str;

    async fn append(&mut self, records: &[u8]) -> Result<(), Self::Error> {
        assert_eq!(records.last(), Some(&b'\n'));
        if self.full_after.is_some_and(|n| self.bytes.len() + records.len() > n) {
            return Err("full");
        }
        self.bytes.extend_from_slice(records);
        Ok(())
    }
}

/// Repair the code and never this test: these bytes are in the field.
#[test]
fn golden_bytes() {
    assert_eq!(GREETING, b"Connection established");
    assert_eq!((RECEIVED, PROCESSED), (&b"data received"[..], &b"data processed"[..]));
}

#[test]
fn records_at_every_chop() {
    let input = b"1,2,3\r\n4,5,6\n\nlast";
    for chop in 1..=input.len() {
        let (mut script, mut file) = (Script::new(input, chop), File::default());
        let end = blocking::run(serve(&mut script, &mut [0; 64], &mut &mut file));
        assert_eq!(end, Ok(Ok(())));
        assert_eq!(file.bytes, b"1,2,3\r\n4,5,6\n\nlast\n", "in pieces of {chop}");
        let said = String::from_utf8(script.output).unwrap();
        let acks = said.strip_prefix("Connection established").unwrap();
        let count = acks.matches("data received").count() + acks.matches("data processed").count();
        assert_eq!(count, input.len().div_ceil(chop), "in pieces of {chop}");
    }
}

#[test]
fn what_could_not_be_written_is_not_acknowledged() {
    let (mut script, mut file) = (Script::new(b"1\n2\n3\n", 2), File::default());
    file.full_after = Some(4);
    let end = blocking::run(serve(&mut script, &mut [0; 64], &mut &mut file));
    assert_eq!(end, Ok(Err("full")));
    assert_eq!(script.output, b"Connection establisheddata processeddata processed");
    assert_eq!(file.bytes, b"1\n2\n");
}

#[test]
fn a_client_with_old_servers() {
    for says in [
        &b"Connection establisheddata receiveddata received"[..],
        b"Connection establisheddata processeddata processed",
    ] {
        // No server acknowledges what it has not got: the greeting is a read of its own.
        for chop in [1, 2, 11, 22] {
            let mut script = Script::new(says, chop);
            let mut client = Client::default();
            let done: Result<(), piman_core::Error<Infallible>> = blocking::run(async {
                open(&mut script, &mut client).await?;
                send(&mut script, &mut client, b"1\n").await?;
                Ok(())
            });
            assert_eq!(done, Ok(()), "in pieces of {chop}");
            assert_eq!(script.output, b"1\n");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the network cuts the pieces and whenever the line breaks: what was acknowledged is
    /// there, once and in order; sent again is only what was not.
    #[test]
    fn nothing_acknowledged_is_lost(
        lens in proptest::collection::vec(1usize..60, 1..40),
        chops in proptest::collection::vec((1usize..40, 1usize..2000), 1..8),
    ) {
        let records: Vec<Vec<u8>> = lens.iter().enumerate()
            .map(|(i, len)| [format!("{i}:").into_bytes(), vec![b'x'; *len], b"\n".to_vec()].concat())
            .collect();
        let (mut file, mut next) = (File::default(), 0);
        // A client that knows what it talks to, as after the first record with a moment's patience.
        let mut acks = Acks::Exact;
        for (i, (chop, cut)) in chops.iter().enumerate() {
            let cut = (i + 1 < chops.len()).then_some(*cut);
            let world = World::new();
            let (mut a, mut b) = world.stream(ROOM, *chop);
            a.cut_after(cut);
            let (mut talk, mut journal) = (Client::new(acks), &mut file);
            let said = async {
                let mut sent = 0;
                if open(&mut a, &mut talk).await.is_ok() {
                    for record in &records[next..] {
                        if send(&mut a, &mut talk, record).await.is_err() {
                            break;
                        }
                        sent += 1;
                    }
                }
                drop(a);
                sent
            };
            let kept = async {
                let end = serve(&mut b, &mut [0; 128], &mut journal).await;
                drop(b);
                end
            };
            next += world.both(said, kept).0;
            acks = talk.acks();
        }
        prop_assert_eq!(next, records.len());
        // Whole lines; a record that was not acknowledged may be there in part or twice.
        let text = String::from_utf8(file.bytes).unwrap();
        let mut wanted = records.iter().map(|r| std::str::from_utf8(r).unwrap().trim_end());
        let mut want = wanted.next();
        for line in text.lines() {
            if Some(line) == want {
                want = wanted.next();
            }
        }
        prop_assert_eq!(want, None);
    }
}
