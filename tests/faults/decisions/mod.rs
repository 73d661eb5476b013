//! Pi and server are killed, or lose their power, around a decision: whatever is left of either, nothing
//! was erased without a reason that is on record, and what was acknowledged is there.
//!
//! The server's state is on an ext4 of its own, which ext4's own shutdown cuts off without writing anything more. The
//! Pi's disk, where its power is cut, writes down what reaches it, and loses some of what was not flushed.
//! Each round is made by a number and `PIMAN_DECISION_SEED`; `PIMAN_DECISION_KILLS` says how many there are.

mod full;
mod room;
mod round;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use room::Room;
use round::{Round, Tally};

/// Rounds.
const ROUNDS: usize = 200;
/// So many rooms at a time: what they wait for is mostly a disk or a program's start.
const ROOMS: usize = 2;

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn nothing_is_erased_without_a_reason_on_record() {
    let seed = variable("PIMAN_DECISION_SEED", 13) as u64;
    let rounds = variable("PIMAN_DECISION_KILLS", ROUNDS);
    // One alone, by its number.
    let only = std::env::var("PIMAN_DECISION_ONLY").ok().and_then(|n| n.parse::<usize>().ok());
    println!("PIMAN_DECISION_SEED={seed} PIMAN_DECISION_KILLS={rounds}");
    let (began, next) = (Instant::now(), AtomicUsize::new(0));
    let tally = std::thread::scope(|scope| {
        let room = |archive_path| {
            let next = &next;
            scope.spawn(move || {
                let mut room = Room::new(archive_path);
                let mut tally = Tally::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= rounds {
                        return tally;
                    }
                    if only.is_none_or(|only| only == number) {
                        Round::new(seed, number).run(&mut room, &mut tally);
                    }
                }
            })
        };
        let rooms: Vec<_> = (0..ROOMS).map(|n| room(n % 2 == 1)).collect();
        rooms.into_iter().map(|room| room.join().expect("a round has failed")).sum::<Tally>()
    });
    println!("{tally:?} in {:.1} s", began.elapsed().as_secs_f64());
    if rounds >= ROUNDS && only.is_none() {
        // It was about something.
        assert!(
            tally.cuts >= rounds / 4
                && tally.pi_cuts >= rounds / 4
                && tally.erased >= rounds / 5
                && tally.kept >= rounds / 5,
            "{tally:?}"
        );
        assert!(tally.half_done >= rounds / 20 && tally.acknowledged >= rounds / 5, "{tally:?}");
    }
}
