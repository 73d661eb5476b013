use super::super::message::tests::{Opt, ask, ask_with, rom};
use super::*;

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn ip(last: u8) -> Ipv4Addr {
    [10, 0, 0, last].into()
}

fn option(code: u8, ip: Ipv4Addr) -> Opt {
    (code, ip.octets().to_vec())
}

fn net() -> Network {
    Network { me: ME, mask: [255, 255, 255, 0].into(), router: Some(ip(254)), dns: vec![ip(253)] }
}

fn pool(first: u8, last: u8) -> Pool {
    let fixed = ["b8:27:eb:00:00:99=10.0.0.50", "abcdef01=10.0.0.51"].map(|f| f.parse().unwrap());
    Pool::new(Some(Range { first: ip(first), last: ip(last) }), fixed.to_vec(), 3600, BTreeMap::new())
}

/// What comes of a request, in a word and an address. Nobody has an address that is probed.
#[track_caller]
fn ends(pool: &mut Pool, ask: &Ask, now: u64) -> (&'static str, Ipv4Addr) {
    let boot = Boot { file: "bootcode.bin".into(), everybody: false };
    let mut step = pool.handle(ask, &net(), &boot, now);
    if let Step::Probe(ip) = step {
        step = pool.probed(ask, ip, false, &net(), &boot, now);
    }
    match step {
        Step::Reply(reply) => {
            let kind = match reply.kind() {
                Kind::Offer => "offer",
                Kind::Ack => "ack",
                Kind::Nak => "nak",
                other => panic!("{other:?}"),
            };
            (kind, reply.header.your_address)
        }
        Step::Full | Step::Nothing(_) => ("nothing", Ipv4Addr::UNSPECIFIED),
        Step::Probe(ip) => panic!("{ip} again"),
    }
}

fn discover(last: u8) -> Ask {
    ask(Kind::Discover, last, &[])
}

fn selects(last: u8, requested: Ipv4Addr) -> Ask {
    let options = [option(code::SERVER, ME), option(code::REQUESTED_ADDRESS, requested)];
    ask(Kind::Request, last, &options)
}

fn init_reboot(last: u8, requested: Ipv4Addr) -> Ask {
    ask(Kind::Request, last, &[option(code::REQUESTED_ADDRESS, requested)])
}

fn renew(last: u8, address: Ipv4Addr) -> Ask {
    ask_with(Kind::Request, last, address, &[])
}

#[test]
fn from_discovery_to_a_lease_that_is_renewed_and_kept() {
    let mut pool = pool(10, 12);
    assert_eq!(ends(&mut pool, &discover(1), 0), ("offer", ip(10)));
    assert_eq!(pool.changes(), None, "an offer is no lease");
    assert_eq!(ends(&mut pool, &selects(1, ip(10)), 1), ("ack", ip(10)));
    assert_eq!(pool.changes().map(BTreeMap::len), Some(1));
    assert_eq!(ends(&mut pool, &renew(1, ip(10)), 1800), ("ack", ip(10)));
    assert_eq!(pool.changes().unwrap()[&ip(10)].until, 5400);
    // Long after: the same client gets the same address.
    assert_eq!(ends(&mut pool, &discover(2), 9000), ("offer", ip(11)));
    assert_eq!(ends(&mut pool, &discover(1), 9000), ("offer", ip(10)));
}

#[test]
fn what_a_client_is_told() {
    let mut pool = pool(10, 12);
    let boot = Boot { file: "bootcode.bin".into(), everybody: false };
    let asked = ask(Kind::Discover, 1, &rom());
    let Step::Probe(at) = pool.handle(&asked, &net(), &boot, 0) else { panic!() };
    let Step::Reply(reply) = pool.probed(&asked, at, false, &net(), &boot, 0) else { panic!() };
    for (code, want) in [
        (code::SUBNET_MASK, [255, 255, 255, 0]),
        (code::ROUTER, [10, 0, 0, 254]),
        (code::NAME_SERVER, [10, 0, 0, 253]),
        (code::LEASE_TIME, 3600_u32.to_be_bytes()),
        (code::RENEWAL_TIME, 1800_u32.to_be_bytes()),
        (code::REBINDING_TIME, 3150_u32.to_be_bytes()),
        (code::SERVER, [10, 0, 0, 1]),
        (code::BROADCAST, [10, 0, 0, 255]),
    ] {
        assert_eq!(reply.get(code), Some(&want[..]), "{code}");
    }
    assert!(reply.get(code::VENDOR).is_some());
    assert_eq!(reply.get(code::BOOT_SERVER), Some(&b"10.0.0.1"[..]));
    assert_eq!(reply.header.next_server, ME);
}

#[test]
fn a_boot_rom_that_never_requests_keeps_what_it_was_offered() {
    let mut pool = pool(10, 11);
    assert_eq!(ends(&mut pool, &ask(Kind::Discover, 1, &rom()[..1]), 0), ("offer", ip(10)));
    assert_eq!(pool.changes().map(BTreeMap::len), Some(1), "it survives a restart");
    assert_eq!(ends(&mut pool, &discover(2), 100), ("offer", ip(11)));
    assert_eq!(ends_where(&mut pool, &discover(3), 100, |_| true), None, "all are in use");
    // The system that it booted asks again and has the same.
    assert_eq!(ends(&mut pool, &discover(1), 200), ("offer", ip(10)));
    assert_eq!(ends(&mut pool, &selects(1, ip(10)), 201), ("ack", ip(10)));
}

#[test]
fn fixed_addresses_by_hardware_address_and_serial_number() {
    let mut pool = pool(10, 60);
    assert_eq!(ends(&mut pool, &discover(0x99), 0), ("offer", ip(50)));
    let rom = ask(Kind::Discover, 2, &rom());
    assert_eq!(ends(&mut pool, &rom, 0), ("offer", ip(51)));
    for taken in [50, 51] {
        assert_eq!(ends(&mut pool, &selects(3, ip(taken)), 0).0, "nak");
    }
    // Its system says no serial number, but the lease is by its hardware address: no other may have it.
    assert_eq!(ends(&mut pool, &selects(0x99, ip(10)), 0).0, "nak", "it has another, fixed");
}

#[test]
fn a_restart() {
    let mut before = pool(10, 11);
    ends(&mut before, &discover(1), 0);
    ends(&mut before, &selects(1, ip(10)), 0);
    let leases = before.changes().unwrap().clone();
    let mut pool = Pool::new(before.range, Vec::new(), 3600, leases);
    assert_eq!(pool.holder(ip(10)), Some(discover(1).mac));
    assert_eq!(ends(&mut pool, &init_reboot(1, ip(10)), 10), ("ack", ip(10)));
    assert_eq!(ends(&mut pool, &init_reboot(2, ip(10)), 10).0, "nak", "it is another's");
    // Even if what was known is lost, a client goes on with an address that nobody else has.
    assert_eq!(ends(&mut pool, &renew(3, ip(11)), 10), ("ack", ip(11)));
}

#[test]
fn addresses_that_are_not_ours() {
    let mut pool = pool(10, 11);
    assert_eq!(ends(&mut pool, &init_reboot(1, ip(77)), 0).0, "nothing", "another server's, perhaps");
    assert_eq!(ends(&mut pool, &init_reboot(1, [192, 168, 9, 9].into()), 0).0, "nak", "it has moved here");
    let other = [option(code::SERVER, ip(9)), option(code::REQUESTED_ADDRESS, ip(10))];
    ends(&mut pool, &discover(1), 0);
    assert_eq!(ends(&mut pool, &ask(Kind::Request, 1, &other), 0).0, "nothing");
    assert_eq!(ends(&mut pool, &discover(2), 0), ("offer", ip(10)), "the offer was given up");
    for not_usable in [ME, ip(0), ip(255), ip(254)] {
        assert!(!net().is_usable(not_usable));
    }
}

#[test]
fn somebody_has_the_address_already() {
    let mut pool = pool(10, 12);
    let boot = Boot { file: String::new(), everybody: false };
    let asked = discover(1);
    let Step::Probe(first) = pool.handle(&asked, &net(), &boot, 0) else { panic!() };
    assert!(matches!(pool.handle(&asked, &net(), &boot, 0), Step::Nothing(_)), "it asks again meanwhile");
    let Step::Probe(second) = pool.probed(&asked, first, true, &net(), &boot, 0) else { panic!() };
    assert_eq!((first, second), (ip(10), ip(11)));
    let Step::Reply(reply) = pool.probed(&asked, second, false, &net(), &boot, 0) else { panic!() };
    assert_eq!(reply.header.your_address, ip(11));
    // The client itself finds that somebody has it.
    let declines = |ip| ask(Kind::Decline, 1, &[option(code::REQUESTED_ADDRESS, ip)]);
    ends(&mut pool, &selects(1, ip(11)), 1);
    assert_eq!(ends(&mut pool, &declines(ip(12)), 2).0, "nothing", "it never had that one");
    assert_eq!(ends(&mut pool, &declines(ip(11)), 2).0, "nothing");
    assert_eq!(ends(&mut pool, &discover(1), 3), ("offer", ip(12)));
    assert_eq!(ends(&mut pool, &discover(2), 3), ("offer", ip(12)), "it was not requested");
    assert_eq!(ends(&mut pool, &discover(1), 4), ("offer", ip(12)), "nor was this");
    assert_eq!(ends(&mut pool, &discover(2), 700), ("offer", ip(10)), "after a while it is tried again");
}

#[test]
fn an_address_given_back_is_the_last_to_be_given_to_another() {
    let mut pool = pool(10, 11);
    for (pi, at) in [(1, 10), (2, 11)] {
        ends(&mut pool, &discover(pi), 0);
        ends(&mut pool, &selects(pi, ip(at)), 0);
    }
    assert_eq!(ends(&mut pool, &ask_with(Kind::Release, 1, ip(11), &[]), 1).0, "nothing");
    assert_eq!(ends_where(&mut pool, &discover(3), 1, |_| true), None, "only its own can be given back");
    ends(&mut pool, &ask_with(Kind::Release, 1, ip(10), &[]), 2);
    assert_eq!(ends(&mut pool, &discover(3), 3), ("offer", ip(10)));
    assert_eq!(ends(&mut pool, &ask_with(Kind::Inform, 9, ip(99), &[]), 4).0, "ack");
}

/// What comes of a request when these addresses are in use.
#[track_caller]
fn ends_where(pool: &mut Pool, ask: &Ask, now: u64, in_use: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let boot = Boot { file: "bootcode.bin".into(), everybody: false };
    let mut step = pool.handle(ask, &net(), &boot, now);
    for _ in 0..10 {
        match step {
            Step::Probe(ip) => step = pool.probed(ask, ip, in_use(ip), &net(), &boot, now),
            Step::Reply(reply) => return Some(reply.header.your_address),
            Step::Full | Step::Nothing(_) => return None,
        }
    }
    panic!("it looks for ever");
}

fn full(kind: Kind, options: &[Opt]) -> Pool {
    let mut pool = pool(10, 40);
    for n in 0..31 {
        let options = if kind == Kind::Request {
            vec![option(code::REQUESTED_ADDRESS, ip(10 + n))]
        } else {
            options.to_vec()
        };
        assert!(ends_where(&mut pool, &ask(kind, 100 + n, &options), 0, |_| false).is_some());
    }
    pool
}

#[test]
fn one_packet_an_address_does_not_exhaust_the_range() {
    for mut pool in [full(Kind::Discover, &[]), full(Kind::Discover, &rom()[..1]), full(Kind::Request, &[])] {
        assert_eq!(ends(&mut pool, &discover(1), 5), ("offer", ip(10)), "the oldest");
        assert_eq!(ends(&mut pool, &selects(1, ip(10)), 6), ("ack", ip(10)));
        // What was requested goes after all that was not.
        for n in 0..30 {
            let (_, given) = ends(&mut pool, &discover(2 + n), 7 + u64::from(n));
            assert_ne!(given, ip(10), "{n}");
        }
    }
}

#[test]
fn a_boot_rom_that_uses_what_it_was_offered_keeps_it() {
    let mut pool = pool(10, 11);
    let rom = |last| ask(Kind::Discover, last, &rom()[..1]);
    assert_eq!(ends(&mut pool, &rom(1), 0), ("offer", ip(10)));
    assert_eq!(ends(&mut pool, &rom(100), 1), ("offer", ip(11)));
    // It answers when it is looked whether somebody has the address.
    assert_eq!(ends_where(&mut pool, &rom(101), 2, |at| at == ip(10)), Some(ip(11)));
    assert_eq!(ends_where(&mut pool, &rom(102), 3, |_| true), None, "all are in use");
    assert_eq!(ends(&mut pool, &rom(1), 4), ("offer", ip(10)), "and it is offered the same again");
}

#[test]
fn known_pis_have_addresses_before_unknown_clients_and_never_lose_them() {
    let mut pool = pool(10, 40);
    pool.set_known([discover(1).mac, discover(2).mac].into());
    ends(&mut pool, &discover(1), 0);
    assert_eq!(ends(&mut pool, &selects(1, ip(10)), 0), ("ack", ip(10)));
    // Everything else is leased by requests, again and again, long after the known one's lease is over.
    for now in [10, 100_000, 100_010] {
        for n in 0..100 {
            let at = ends(&mut pool, &discover(100 + n), now).1;
            ends(&mut pool, &selects(100 + n, at), now);
            assert_ne!(at, ip(10));
        }
    }
    assert!(ends(&mut pool, &discover(1), 100_020) == ("offer", ip(10)));
    let (_, second) = ends(&mut pool, &discover(2), 100_020);
    assert_ne!(second, Ipv4Addr::UNSPECIFIED, "an unknown one gives way");
    ends(&mut pool, &selects(2, second), 100_020);
    for n in 0..100 {
        assert_ne!(ends(&mut pool, &discover(100 + n), 200_000).1, second);
    }
}

#[test]
fn a_client_that_asks_without_end_is_not_answered_without_end() {
    let mut pool = pool(10, 12);
    let rom = ask(Kind::Discover, 1, &rom()[..1]);
    let answered = (0..1000).filter(|_| ends(&mut pool, &rom, 5).0 == "offer").count();
    assert_eq!(answered, usize::from(ASKS_MAX));
    assert!(pool.changes().is_some());
    assert_eq!(ends(&mut pool, &discover(2), 5).0, "offer", "others are");
    assert_eq!(ends(&mut pool, &rom, 5 + ASKS_S).0, "offer", "and it is after a while");
    assert!(pool.changes().is_none(), "nothing is written for that");
}
