use super::*;

fn limits(transfers: usize, waiting: usize) -> Limits {
    Limits { transfers, waiting, per_address: 4, greetings: 8, ..Limits::default() }
}

fn enter(gate: &Arc<Admission>, host: u8, name: &str) -> Option<Turn> {
    match gate.enter(([10, 0, 0, host], 1000).into(), name) {
        Entry::New(turn) => Some(turn),
        Entry::Repeated => None,
    }
}

fn answered(gate: &Arc<Admission>, host: u8, name: &str) -> (Turn, Answered) {
    let turn = enter(gate, host, name).unwrap();
    let answered = turn.answered();
    (turn, answered)
}

#[tokio::test]
async fn who_waits_who_is_refused() {
    let gate = Admission::new(limits(1, 2));
    let (first, begin) = answered(&gate, 1, "a");
    assert_eq!(begin, Answered::Begin);
    assert!(enter(&gate, 1, "a").is_none(), "it is repeated");
    let (second, waits) = answered(&gate, 2, "a");
    assert_eq!(waits, Answered::Waits(1));
    let (third, waits) = answered(&gate, 3, "a");
    assert_eq!(waits, Answered::Waits(2));
    let (_refused, full) = answered(&gate, 4, "a");
    assert!(matches!(full, Answered::Refused(text) if text.contains("busy")));
    assert_eq!(gate.load(), Load { active: 1, waiting: 2, refused: 1 });
    // One that gives up, and one that is done.
    drop(second);
    drop(first);
    assert!(third.granted().await);
    assert_eq!(gate.load(), Load { active: 1, waiting: 0, refused: 1 });
}

#[test]
fn an_address_has_a_limit() {
    let gate = Admission::new(limits(100, 100));
    let begun: Vec<_> = ["a", "b", "c", "d"].map(|name| answered(&gate, 1, name)).into();
    assert!(begun.iter().all(|(_, answer)| *answer == Answered::Begin));
    assert!(matches!(answered(&gate, 1, "e").1, Answered::Refused(text) if text.contains("this address")));
    assert_eq!(answered(&gate, 2, "a").1, Answered::Begin);
}

#[test]
fn forged_requests_take_no_place_and_are_bounded() {
    let gate = Admission::new(limits(1, 1));
    let forged: Vec<_> = (0..200).filter_map(|host| enter(&gate, host, "a")).collect();
    assert_eq!(gate.load(), Load::default());
    assert_eq!(gate.lock().seats.len(), 8);
    assert_eq!(answered(&gate, 201, "a").1, Answered::Begin);
    // Those of one address push out their own alone.
    let gate = Admission::new(limits(1, 1));
    let other = enter(&gate, 2, "a").unwrap();
    let many: Vec<_> = (0..100).filter_map(|n| enter(&gate, 1, &n.to_string())).collect();
    assert_eq!(gate.lock().at([10, 0, 0, 1].into()).greeting, 4);
    assert_eq!(other.answered(), Answered::Begin);
    drop((forged, many, other));
    let current = gate.lock();
    assert!(current.seats.is_empty() && current.numbers.is_empty() && current.by_address.is_empty());
}

#[tokio::test]
async fn the_address_with_the_most_gives_way() {
    let gate = Admission::new(limits(8, 8));
    let mut greedy: Vec<_> = (0..8).map(|n| answered(&gate, 1 + n / 4, &n.to_string()).0).collect();
    greedy.iter().for_each(|turn| turn.moved(1 << 20));
    greedy[6].moved(100);
    let others: Vec<_> = (10..16).map(|host| answered(&gate, host, "a")).collect();
    assert!(others.iter().all(|(_, answer)| *answer == Answered::Begin));
    assert_eq!(gate.load().active, 8);
    greedy.swap_remove(6).ousted().await;
    let left = greedy.iter().filter(|turn| turn.stage().is_some()).count();
    assert_eq!(left, 2, "each of the two keeps one");
    // Everybody has one and moves: the next one waits.
    assert_eq!(answered(&gate, 99, "a").1, Answered::Waits(1));
}

#[test]
fn whoever_hardly_moves_gives_way_to_whoever_waits() {
    let gate = Admission::new(limits(2, 8));
    let (trickling, fast) = (answered(&gate, 1, "a").0, answered(&gate, 2, "a").0);
    let waiting = answered(&gate, 3, "a").0;
    let mut current = gate.lock();
    let began = Instant::now();
    for second in 1..=6 {
        let now = began + Duration::from_secs(second);
        for (turn, rate) in [(&trickling, 512), (&fast, 100_000)] {
            let Some(seat) = current.seats.get_mut(&turn.number) else { continue };
            seat.pace.note(second * rate, now);
        }
        current.promote(&gate.limits, now);
    }
    assert!(!current.seats.contains_key(&trickling.number));
    assert_eq!(current.seats[&fast.number].stage, Stage::Active);
    assert_eq!(current.seats[&waiting.number].stage, Stage::Active);
    drop(current);
    drop((trickling, fast, waiting));
}

#[test]
fn a_full_line_has_room_for_whoever_is_not_in_it() {
    let gate = Admission::new(limits(1, 4));
    let first = answered(&gate, 1, "a").0;
    first.moved(1 << 20);
    let line: Vec<_> = ["a", "b", "c", "d"].map(|name| answered(&gate, 2, name)).into();
    assert_eq!(gate.load().waiting, 4);
    assert_eq!(answered(&gate, 3, "a").1, Answered::Waits(4));
    assert!(line[3].0.stage().is_none(), "the last of the greedy one");
}
