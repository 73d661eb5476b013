//! Who gets which address, decided without clock or socket.

use std::collections::{BTreeMap, HashMap, HashSet};
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
/// How long an address is not looked at again that was wanted for another client and is in use.
const IN_USE_S: u64 = 60;
/// How many addresses are looked at for one request.
const LOOKS_MAX: u8 = 4;
/// How many messages of one client are answered in so many seconds: none asks so often that has a purpose.
const ASKS_MAX: u8 = 20;
const ASKS_S: u64 = 10;
/// Of how many clients that is remembered.
const ASKING_MAX: usize = 8192;
/// A lease that would end so little later than before, in seconds, ends as before.
const STEP_S: u64 = 10;
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
    /// Addresses that were offered, kept for the client, and never requested; since when.
    unrequested: HashMap<Ipv4Addr, u64>,
    clashes: HashMap<Ipv4Addr, u64>,
    known: HashSet<Mac>,
    /// In which span of time clients have asked how often.
    asking: HashMap<Mac, (u64, u8)>,
    changed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    ip: Ipv4Addr,
    until: u64,
    probing: bool,
    /// How many addresses were looked at for it.
    looks: u8,
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

    /// These clients are known: their addresses are never given to others.
    pub fn set_known(&mut self, known: HashSet<Mac>) {
        self.known = known;
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
        if self.asks_too_often(ask.mac, now) {
            return Step::Nothing("it asks too often");
        }
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
                if let Some(ip) = ask.address()
                    && let Some(lease) = self.leases.get_mut(&ip).filter(|lease| lease.mac == ask.mac)
                {
                    lease.until = now;
                    self.clashes.remove(&ip);
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

    fn asks_too_often(&mut self, mac: Mac, now: u64) -> bool {
        let span = now / ASKS_S;
        if self.asking.len() >= ASKING_MAX {
            self.asking.clear();
        }
        let asked = self.asking.entry(mac).or_insert((span, 0));
        if asked.0 != span {
            *asked = (span, 0);
        }
        asked.1 = asked.1.saturating_add(1);
        asked.1 > ASKS_MAX
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

    /// Its client uses the address, which was wanted for another one.
    fn in_use(&mut self, ip: Ipv4Addr, now: u64) {
        self.clashes.insert(ip, now + IN_USE_S);
        // A boot ROM uses what it was offered without a word.
        self.unrequested.remove(&ip);
        if let Some(lease) = self.leases.get_mut(&ip) {
            lease.until = lease.until.max(now + ROM_OFFER_S);
            self.changed = true;
        }
    }

    fn fixed(&self, ask: &Ask) -> Option<Ipv4Addr> {
        self.fixed.iter().find(|f| ask.is(f.who)).map(|f| f.ip)
    }

    fn lease(&self, mac: Mac) -> Option<(Ipv4Addr, Lease)> {
        self.leases.iter().find(|(_, lease)| lease.mac == mac).map(|(ip, lease)| (*ip, *lease))
    }

    /// Whether this client may have the address, leaving out whether somebody simply uses it.
    fn may_have(&self, ask: &Ask, ip: Ipv4Addr, net: &Network, now: u64) -> bool {
        let others = |mac: Mac| mac != ask.mac;
        let lease = self.leases.get(&ip).filter(|lease| others(lease.mac));
        self.is_for(ask, ip, net, lease.is_some())
            && (self.fixed(ask).is_some()
                || !lease.is_some_and(|lease| lease.until > now || self.known.contains(&lease.mac))
                    && !self.offers.iter().any(|(mac, offer)| others(*mac) && offer.ip == ip))
    }

    /// Whether this client could have the address if nobody else had it; `theirs`: somebody else has it.
    fn is_for(&self, ask: &Ask, ip: Ipv4Addr, net: &Network, theirs: bool) -> bool {
        // Somebody uses it, and that may be the one who has it.
        let clash = self.clashes.contains_key(&ip) && (theirs || !self.leases.contains_key(&ip));
        if !net.is_usable(ip) || clash {
            return false;
        }
        match self.fixed(ask) {
            Some(fixed) => fixed == ip,
            None => self.range.is_some_and(|r| r.contains(ip)) && !self.fixed.iter().any(|f| f.ip == ip),
        }
    }

    /// The address that a client gets: its own, the one it would like, one that nobody had, the one that has been free
    /// for longest; and at last one that was offered and never requested, or that a client has which nobody knows.
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
        let offered: HashMap<Ipv4Addr, (Mac, &Offer)> =
            self.offers.iter().map(|(m, o)| (o.ip, (*m, o))).collect();
        let all = (range.first.to_bits()..=range.last.to_bits()).map(Ipv4Addr::from_bits);
        let usable = all.filter(|ip| self.is_for(ask, *ip, net, self.leases.contains_key(ip)));
        usable
            .filter_map(|ip| Some((self.rank(ip, offered.get(&ip).copied(), now)?, ip)))
            .min()
            .map(|(_, ip)| ip)
    }

    /// How readily an address is given to another client, the lowest first; `None`: not at all.
    fn rank(&self, ip: Ipv4Addr, offered: Option<(Mac, &Offer)>, now: u64) -> Option<(u8, u64)> {
        let lease = self.leases.get(&ip);
        let known = |mac: Mac| self.known.contains(&mac);
        if lease.is_some_and(|lease| known(lease.mac)) || offered.is_some_and(|(mac, _)| known(mac)) {
            return None;
        }
        if let Some((_, offer)) = offered {
            // Its client has not requested it yet; the longer ago it was offered, the less it will.
            return (!offer.probing).then_some((2, offer.until));
        }
        match lease {
            None => Some((0, 0)),
            Some(lease) if lease.until <= now => Some((1, lease.until)),
            Some(_) => match self.unrequested.get(&ip) {
                Some(since) => Some((2, *since)),
                None => Some((3, self.leases.get(&ip)?.until)),
            },
        }
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
        let looks = offer.map_or(0, |o| o.looks) + 1;
        self.offers.retain(|_, other| other.ip != ip);
        self.offers.insert(ask.mac, Offer { ip, until: now + LOOK_S, probing: true, looks });
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
        let Some(looks) = self.offers.get(&ask.mac).filter(|offer| offer.ip == ip).map(|offer| offer.looks)
        else {
            return Step::Nothing("it asked for something else meanwhile");
        };
        if taken {
            match self.leases.get(&ip) {
                Some(lease) if lease.mac != ask.mac => {
                    self.in_use(ip, now);
                    self.offers.remove(&ask.mac);
                }
                _ => self.clash(ip, ask.mac, now),
            }
            if looks >= LOOKS_MAX {
                return Step::Full;
            }
            let step = self.discover(ask, net, boot, now);
            if let Some(offer) = self.offers.get_mut(&ask.mac) {
                offer.looks += looks;
            }
            return step;
        }
        self.offer(ask, ip, net, boot, now)
    }

    fn offer(&mut self, ask: &Ask, ip: Ipv4Addr, net: &Network, boot: &Boot, now: u64) -> Step {
        let rom = ask.is_pxe();
        let until = now + if rom { ROM_OFFER_S } else { OFFER_S };
        self.offers.retain(|_, other| other.ip != ip);
        self.offers.insert(ask.mac, Offer { ip, until, probing: false, looks: 0 });
        // Whoever had it does not answer there, and is not known.
        if self.leases.get(&ip).is_some_and(|lease| lease.mac != ask.mac) {
            self.leases.remove(&ip);
            self.changed = true;
        }
        if rom {
            // As good as a lease, and kept like one, until another client needs it and nobody answers there.
            let requested =
                self.leases.get(&ip).is_some_and(|l| l.mac == ask.mac && !self.unrequested.contains_key(&ip));
            self.keep(ip, ask.mac, until);
            if !requested {
                self.unrequested.insert(ip, now);
            }
        }
        Step::Reply(Box::new(self.grant(ask, Kind::Offer, ip, net, boot)))
    }

    fn keep(&mut self, ip: Ipv4Addr, mac: Mac, until: u64) {
        let before = self.leases.get(&ip).filter(|lease| lease.mac == mac).map(|lease| lease.until);
        // Not for every message of a client that asks again and again: an address is looked at before another gets it.
        let until = match before {
            Some(before) if until <= before.saturating_add(STEP_S) => before,
            _ => until,
        };
        let count = self.leases.len();
        self.leases.retain(|other, lease| *other == ip || lease.mac != mac);
        self.changed |= count != self.leases.len() || before != Some(until);
        self.leases.insert(ip, Lease { mac, until });
        self.unrequested.retain(|other, _| *other != ip && self.leases.contains_key(other));
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
            let offered = self.offers.remove(&ask.mac).is_some_and(|offer| offer.ip == wanted)
                || self.leases.get(&wanted).is_some_and(|lease| lease.mac == ask.mac);
            self.keep(wanted, ask.mac, now + u64::from(self.lease_s));
            if !offered {
                // One packet alone says little of whether this client is there.
                self.unrequested.insert(wanted, now);
            }
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
mod tests;
