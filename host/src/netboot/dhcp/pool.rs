//! Who gets which address, decided without clock or socket.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use piman_core::dhcp::{Header, Kind, code};

use super::message::{Ask, Reply};
use super::network::Network;
use super::proxy::Boot;
use super::{Fixed, Range};
use crate::sys::mac::Mac;

/// How long an offer is kept for a client that requests it next.
const OFFER_S: u64 = 60;
/// How long for a Pi's boot ROM: it may use what it was offered without ever requesting it.
const ROM_OFFER_S: u64 = 900;
/// How long an address may be looked at. A client whose look was lost is not kept waiting for longer.
const LOOK_S: u64 = 10;
/// How long an address is left alone that somebody has who did not get it from here.
const CLASH_S: u64 = 600;

/// An address that somebody has, or had and gets again if nobody else needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who.
    pub mac: Mac,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// What to do about a request.
#[derive(Debug, Clone)]
pub enum Step {
    /// Send this.
    Reply(Box<Reply>),
    /// Find out whether somebody has this address, then call [`Pool::probed`].
    Probe(Ipv4Addr),
    /// Say nothing, since no address is left.
    Full,
    /// Say nothing; why, for the log.
    Nothing(&'static str),
}

/// The addresses of a network. Times are seconds since 1970.
#[derive(Debug, Default)]
pub struct Pool {
    range: Option<Range>,
    fixed: Vec<Fixed>,
    lease_s: u32,
    leases: BTreeMap<Ipv4Addr, Lease>,
    offers: HashMap<Mac, Offer>,
    clashes: HashMap<Ipv4Addr, u64>,
    changed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    ip: Ipv4Addr,
    until: u64,
    probing: bool,
}

impl Pool {
    /// A pool; `leases` are from before a restart.
    #[must_use]
    pub fn new(
        range: Option<Range>,
        fixed: Vec<Fixed>,
        lease_s: u32,
        leases: BTreeMap<Ipv4Addr, Lease>,
    ) -> Self {
        Self { range, fixed, lease_s, leases, ..Self::default() }
    }

    /// The leases, if they have changed since the last call.
    pub fn changes(&mut self) -> Option<&BTreeMap<Ipv4Addr, Lease>> {
        std::mem::take(&mut self.changed).then_some(&self.leases)
    }

    /// Whose address this is, as far as is known.
    #[must_use]
    pub fn holder(&self, ip: Ipv4Addr) -> Option<Mac> {
        self.leases.get(&ip).map(|lease| lease.mac)
    }

    /// Decides about a request.
    pub fn handle(&mut self, ask: &Ask, net: &Network, boot: &Boot, now: u64) -> Step {
        self.offers.retain(|_, offer| offer.until > now);
        self.clashes.retain(|_, until| *until > now);
        match ask.kind {
            Kind::Discover => self.discover(ask, net, boot, now),
            Kind::Request => self.request(ask, net, boot, now),
            Kind::Decline => {
                if let Some(ip) = ask.requested() {
                    self.clash(ip, ask.mac, now);
                }
                Step::Nothing("it found that somebody else has its address")
            }
            Kind::Release => {
                if let Some(lease) = ask.address().and_then(|ip| self.leases.get_mut(&ip))
                    && lease.mac == ask.mac
                {
                    lease.until = now;
                    self.changed = true;
                }
                Step::Nothing("it gave its address back")
            }
            // It has an address from elsewhere, and only asks for the rest.
            Kind::Inform => {
                let mut reply = ask.reply(Kind::Ack, net.me);
                net.describe(&mut reply);
                if boot.is_for(ask) {
                    ask.add_boot(&mut reply, net.me, &boot.file);
                }
                Step::Reply(Box::new(reply))
            }
            _ => Step::Nothing("not a client's message"),
        }
    }

    /// Somebody else has this address.
    fn clash(&mut self, ip: Ipv4Addr, mac: Mac, now: u64) {
        let known = self.leases.get(&ip).is_some_and(|l| l.mac == mac)
            || self.offers.get(&mac).is_some_and(|o| o.ip == ip);
        // Whoever declines must have been given it, or anybody could empty the pool.
        if !known {
            return;
        }
        self.clashes.insert(ip, now + CLASH_S);
        if self.leases.get(&ip).is_some_and(|l| l.mac == mac) {
            self.leases.remove(&ip);
            self.changed = true;
        }
        self.offers.remove(&mac);
    }

    fn fixed(&self, ask: &Ask) -> Option<Ipv4Addr> {
        self.fixed.iter().find(|f| ask.is(f.who)).map(|f| f.ip)
    }

    fn lease(&self, mac: Mac) -> Option<(Ipv4Addr, Lease)> {
        self.leases.iter().find(|(_, lease)| lease.mac == mac).map(|(ip, lease)| (*ip, *lease))
    }

    /// Whether this client may have the address, leaving out whether somebody simply uses it.
    fn may_have(&self, ask: &Ask, ip: Ipv4Addr, net: &Network, now: u64) -> bool {
        if !net.is_usable(ip) || self.clashes.contains_key(&ip) {
            return false;
        }
        if let Some(fixed) = self.fixed(ask) {
            return fixed == ip;
        }
        let others = |mac: Mac| mac != ask.mac;
        self.range.is_some_and(|r| r.contains(ip))
            && !self.fixed.iter().any(|f| f.ip == ip)
            && !self.leases.get(&ip).is_some_and(|l| others(l.mac) && l.until > now)
            && !self.offers.iter().any(|(mac, offer)| others(*mac) && offer.ip == ip)
    }

    /// The address that a client gets: its own, the one it would like, one that nobody had, and
    /// at last the one that has been free for longest.
    fn choose(&self, ask: &Ask, net: &Network, now: u64) -> Option<Ipv4Addr> {
        let may = |ip: &Ipv4Addr| self.may_have(ask, *ip, net, now);
        let own = [
            self.fixed(ask),
            self.lease(ask.mac).map(|(ip, _)| ip),
            self.offers.get(&ask.mac).map(|o| o.ip),
            ask.requested(),
        ];
        if let Some(ip) = own.into_iter().flatten().find(may) {
            return Some(ip);
        }
        let range = self.range?;
        let all = || (range.first.to_bits()..=range.last.to_bits()).map(Ipv4Addr::from_bits);
        all().filter(|ip| !self.leases.contains_key(ip)).find(may).or_else(|| {
            let free = all().filter(may).filter_map(|ip| Some((self.leases.get(&ip)?.until, ip)));
            free.min().map(|(_, ip)| ip)
        })
    }

    fn discover(&mut self, ask: &Ask, net: &Network, boot: &Boot, now: u64) -> Step {
        let offer = self.offers.get(&ask.mac).copied();
        if offer.is_some_and(|o| o.probing) {
            return Step::Nothing("its address is being looked at");
        }
        let Some(ip) = self.choose(ask, net, now) else {
            return Step::Full;
        };
        let in_use = self.leases.get(&ip).is_some_and(|l| l.mac == ask.mac && l.until > now);
        if in_use || offer.is_some_and(|o| o.ip == ip) {
            return self.offer(ask, ip, net, boot, now);
        }
        self.offers.insert(ask.mac, Offer { ip, until: now + LOOK_S, probing: true });
        Step::Probe(ip)
    }

    /// The address of [`Step::Probe`] cannot be looked at now: the client begins anew when it asks again.
    pub fn not_probed(&mut self, ask: &Ask) {
        self.offers.remove(&ask.mac);
    }

    /// It is known now whether somebody has the address that [`Step::Probe`] was about.
    pub fn probed(
        &mut self,
        ask: &Ask,
        ip: Ipv4Addr,
        taken: bool,
        net: &Network,
        boot: &Boot,
        now: u64,
    ) -> Step {
        if self.offers.get(&ask.mac).is_none_or(|offer| offer.ip != ip) {
            return Step::Nothing("it asked for something else meanwhile");
        }
        if taken {
            self.clash(ip, ask.mac, now);
            return self.discover(ask, net, boot, now);
        }
        self.offer(ask, ip, net, boot, now)
    }

    fn offer(&mut self, ask: &Ask, ip: Ipv4Addr, net: &Network, boot: &Boot, now: u64) -> Step {
        let rom = ask.is_pxe();
        let until = now + if rom { ROM_OFFER_S } else { OFFER_S };
        self.offers.insert(ask.mac, Offer { ip, until, probing: false });
        if rom {
            // As good as a lease, and kept like one.
            self.keep(ip, ask.mac, until);
        }
        Step::Reply(Box::new(self.grant(ask, Kind::Offer, ip, net, boot)))
    }

    fn keep(&mut self, ip: Ipv4Addr, mac: Mac, until: u64) {
        let until = self.leases.get(&ip).filter(|l| l.mac == mac).map_or(until, |l| l.until.max(until));
        self.leases.retain(|other, lease| *other == ip || lease.mac != mac);
        self.leases.insert(ip, Lease { mac, until });
        self.changed = true;
    }

    fn grant(&self, ask: &Ask, kind: Kind, ip: Ipv4Addr, net: &Network, boot: &Boot) -> Reply {
        let mut reply = ask.reply(kind, net.me);
        reply.header.your_address = ip;
        if let Some(address) = ask.address() {
            reply.header.client_address = address;
        }
        for (code, seconds) in [
            (code::LEASE_TIME, self.lease_s),
            (code::RENEWAL_TIME, self.lease_s / 2),
            (code::REBINDING_TIME, self.lease_s / 8 * 7),
        ] {
            reply.set(code, &seconds.to_be_bytes());
        }
        net.describe(&mut reply);
        if boot.is_for(ask) {
            ask.add_boot(&mut reply, net.me, &boot.file);
        }
        reply
    }

    fn request(&mut self, ask: &Ask, net: &Network, boot: &Boot, now: u64) -> Step {
        let wanted = match (ask.server(), ask.requested(), ask.address()) {
            (Some(server), ..) if server != net.me => {
                self.offers.remove(&ask.mac);
                return Step::Nothing("it takes the offer of another server");
            }
            (_, Some(ip), _) | (_, None, Some(ip)) => ip,
            (_, None, None) => return Step::Nothing("it does not say which address"),
        };
        if self.may_have(ask, wanted, net, now) {
            self.offers.remove(&ask.mac);
            self.keep(wanted, ask.mac, now + u64::from(self.lease_s));
            return Step::Reply(Box::new(self.grant(ask, Kind::Ack, wanted, net, boot)));
        }
        let ours = self.range.is_some_and(|r| r.contains(wanted)) || self.fixed(ask).is_some();
        if ask.server().is_none() && net.contains(wanted) && !ours {
            return Step::Nothing("another server may know about that address");
        }
        let mut reply = ask.reply(Kind::Nak, net.me);
        // So that it is heard: the client has no address that is right (RFC 2131, 4.3.2).
        reply.header.flags |= Header::BROADCAST;
        Step::Reply(Box::new(reply))
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(ends(&mut pool, &discover(3), 100), ("nothing", Ipv4Addr::UNSPECIFIED), "all are in use");
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
        assert_eq!(
            ends(&mut pool, &init_reboot(1, [192, 168, 9, 9].into()), 0).0,
            "nak",
            "it has moved here"
        );
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
        assert_eq!(ends(&mut pool, &discover(2), 3).0, "nothing");
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
        assert_eq!(ends(&mut pool, &discover(3), 1).0, "nothing", "only its own can be given back");
        ends(&mut pool, &ask_with(Kind::Release, 1, ip(10), &[]), 2);
        assert_eq!(ends(&mut pool, &discover(3), 3), ("offer", ip(10)));
        assert_eq!(ends(&mut pool, &ask_with(Kind::Inform, 9, ip(99), &[]), 4).0, "ack");
    }
}
