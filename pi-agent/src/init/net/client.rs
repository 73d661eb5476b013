//! The DHCP client of one interface as a machine without clock or socket (RFC 2131): answers in,
//! questions to send out. It never gives up; who runs it does.
//!
//! Times T1 and T2 are half and seven eighths of the lease, as RFC 2131 has them by default.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::message::{Asker, Kind, Question, Reply, ask};
use piman_core::hosted::backoff::Backoff;

/// Between repeated questions; a switch that learns passes nothing on for 50 s.
const REPEAT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// How long to wait, after the first offer, for one that says where piman is.
const SETTLE: Duration = Duration::from_millis(500);
/// After so many questions about one address without an answer, all begins again.
const TRIES: u32 = 4;
/// How long is between two tries to renew a lease at least.
const RENEW_MIN: Duration = Duration::from_secs(30);

/// An address, for a while, and what came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The bits of it that name the network.
    pub prefix: u8,
    /// The way out of the network.
    pub router: Option<Ipv4Addr>,
    /// Where names are looked up.
    pub dns: Vec<Ipv4Addr>,
    /// Where piman is, by what the servers said.
    pub boot: Option<String>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// For how long.
    pub time: Duration,
}

/// To whom a question goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// To everybody on the interface.
    Everybody,
    /// To the server that gave the lease.
    Server(Ipv4Addr),
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The address is ours, or ours for longer.
    Bound(Lease),
    /// The address is not ours any more.
    Lost,
}

#[derive(Debug)]
enum State {
    /// Servers are asked for; what they offered.
    Selecting { offer: Option<Box<Reply>>, settled: Duration },
    /// An offer is taken, or an address from before asked for again (without a server).
    Requesting { wants: Ipv4Addr, server: Option<Ipv4Addr>, tries: u32 },
    /// There is an address.
    Bound { lease: Lease, since: Duration },
}

/// A client. Times are counted from whenever the caller likes.
#[derive(Debug)]
pub struct Client {
    who: Asker,
    state: State,
    begun: Duration,
    /// When something is to be sent next.
    due: Duration,
    backoff: Backoff,
    /// Whether it matters to hear where piman is.
    seeks_piman: bool,
    /// Where piman is, by its own word.
    marked: Option<String>,
}

impl Client {
    /// Asks for an address; for `before`, if there is one, as after a restart (RFC 2131, 3.2).
    /// `seeks_piman`: it is not known yet where piman is.
    #[must_use]
    pub fn new(who: Asker, before: Option<Ipv4Addr>, seeks_piman: bool, now: Duration) -> Self {
        let state = match before {
            Some(wants) => State::Requesting { wants, server: None, tries: 0 },
            None => State::Selecting { offer: None, settled: Duration::MAX },
        };
        let backoff = Backoff::new(REPEAT.0, REPEAT.1);
        Self { who, state, begun: now, due: now, backoff, seeks_piman, marked: None }
    }

    /// When [`poll`](Self::poll) has something to do.
    #[must_use]
    pub const fn due(&self) -> Duration {
        self.due
    }

    fn restart(&mut self, now: Duration) {
        self.state = State::Selecting { offer: None, settled: Duration::MAX };
        self.due = now + self.backoff.wait();
    }

    /// What is to be sent now, if anything is.
    pub fn poll(&mut self, now: Duration) -> Option<(Vec<u8>, To)> {
        if now < self.due {
            return None;
        }
        let seconds = u16::try_from((now.saturating_sub(self.begun)).as_secs()).unwrap_or(u16::MAX);
        if let State::Selecting { offer: Some(offer), settled } = &self.state
            && now >= *settled
            && let (Some(wants), server @ Some(_)) = (offer.address, offer.server)
        {
            self.backoff.reset();
            self.state = State::Requesting { wants, server, tries: 0 };
        }
        if matches!(self.state, State::Requesting { tries: TRIES, .. }) {
            self.state = State::Selecting { offer: None, settled: Duration::MAX };
        }
        let (question, to) = match &mut self.state {
            State::Selecting { .. } => (Question::new(Kind::Discover), To::Everybody),
            State::Requesting { wants, server, tries } => {
                *tries += 1;
                let wants = Some(*wants);
                (Question { wants, server: *server, ..Question::new(Kind::Request) }, To::Everybody)
            }
            State::Bound { lease, since } => {
                let over = *since + lease.time;
                // From T2 on anybody may renew it.
                let to = match now + lease.time / 8 < over {
                    true => To::Server(lease.server),
                    false => To::Everybody,
                };
                // Half of what is left (RFC 2131, 4.4.5); and after the end it may come back, too.
                self.due = now + (over.saturating_sub(now) / 2).max(RENEW_MIN);
                let has = Some(lease.address);
                let question = Question { has, seconds, ..Question::new(Kind::Request) };
                return Some((ask(&self.who, &question), to));
            }
        };
        self.due = now + self.backoff.wait();
        Some((ask(&self.who, &Question { seconds, ..question }), to))
    }

    /// What was heard.
    pub fn handle(&mut self, message: &[u8], now: Duration) -> Option<Event> {
        let reply = Reply::parse(message, &self.who)?;
        match (&mut self.state, reply.kind) {
            (State::Selecting { offer, settled }, Kind::Offer) => {
                if reply.marked && self.marked.is_none() {
                    self.marked = boot_server(&reply);
                }
                // One that gives no address only says where piman is.
                if reply.address.is_some() && reply.server.is_some() && (offer.is_none() || reply.marked) {
                    *offer = Some(Box::new(reply));
                    *settled = (now + SETTLE).min(*settled);
                }
                if offer.is_some() {
                    if !self.seeks_piman || self.marked.is_some() {
                        *settled = now;
                    }
                    self.due = *settled;
                }
                None
            }
            (State::Requesting { wants, server, .. }, Kind::Ack) => {
                let right = reply.address == Some(*wants) && (server.is_none() || reply.server == *server);
                right.then(|| self.bind(reply, now))?
            }
            (State::Requesting { server, .. }, Kind::Nak) => {
                let right = server.is_none() || reply.server == *server;
                right.then(|| {
                    self.restart(now);
                    Event::Lost
                })
            }
            (State::Bound { lease, .. }, Kind::Ack) => {
                (reply.address == Some(lease.address)).then(|| self.bind(reply, now))?
            }
            (State::Bound { .. }, Kind::Nak) => {
                // Nothing is begun anew: who uses the address has to say whether it can be given up.
                self.due = Duration::MAX;
                Some(Event::Lost)
            }
            _ => None,
        }
    }

    fn bind(&mut self, reply: Reply, now: Duration) -> Option<Event> {
        let address = reply.address?;
        let mask = reply.mask.map_or_else(|| class_prefix(address), |m| m.to_bits().leading_ones() as u8);
        let boot = self.marked.clone().or_else(|| boot_server(&reply));
        let lease = Lease {
            address,
            prefix: mask,
            router: reply.router,
            dns: reply.dns.to_vec(),
            boot,
            server: reply.server?,
            time: Duration::from_secs(reply.seconds.unwrap_or(u32::MAX).max(4).into()),
        };
        self.due = now + lease.time / 2;
        self.state = State::Bound { lease: lease.clone(), since: now };
        Some(Event::Bound(lease))
    }
}

fn boot_server(reply: &Reply) -> Option<String> {
    reply.boot_server().map(|name| name.as_str().to_owned())
}

/// The network's part of an address whose mask nobody said, in bits: by its class, as long ago.
#[must_use]
pub const fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{WHO, answer};
    use super::*;

    const SERVER: &[u8] = b"\x36\x04\x0a\0\0\x01";
    const REST: &[u8] = b"\x01\x04\xff\xff\xff\0\x33\x04\0\0\x0e\x10";
    const PIMAN: &[u8] = b"\x3c\x05piman";

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn says(kind: Kind, last: u8, more: &[&[u8]]) -> Vec<u8> {
        let address = if last == 0 { [0; 4] } else { [10, 0, 0, last] };
        answer(address, [0; 4], &[&[53, 1, kind.number()], SERVER, REST, &more.concat(), &[255]].concat())
    }

    /// The kind of the question that is sent now, and to whom.
    #[track_caller]
    fn asks(client: &mut Client, at: u64) -> (Kind, To) {
        let (bytes, to) = client.poll(ms(at)).expect("a question");
        assert_eq!(bytes[240..242], [53, 1]);
        (Kind::from_number(bytes[242]), to)
    }

    fn client() -> Client {
        Client::new(WHO, None, false, ms(0))
    }

    #[test]
    fn from_nothing_to_an_address_that_is_renewed() {
        let mut client = client();
        assert_eq!(asks(&mut client, 0), (Kind::Discover, To::Everybody));
        assert_eq!(client.poll(ms(1)), None);
        assert_eq!(client.handle(&says(Kind::Ack, 5, &[]), ms(1)), None, "nothing was asked for");
        client.handle(&says(Kind::Offer, 5, &[]), ms(2));
        assert_eq!(asks(&mut client, 2), (Kind::Request, To::Everybody));
        assert_eq!(client.handle(&says(Kind::Ack, 6, &[]), ms(3)), None, "another address");
        let Some(Event::Bound(lease)) = client.handle(&says(Kind::Ack, 5, &[]), ms(3)) else { panic!() };
        assert_eq!((lease.address, lease.prefix), ([10, 0, 0, 5].into(), 24));
        assert_eq!((lease.time, client.due()), (ms(3_600_000), ms(1_800_003)));
        // T1: its server; T2: anybody.
        assert_eq!(asks(&mut client, 1_800_003), (Kind::Request, To::Server([10, 0, 0, 1].into())));
        assert_eq!(client.due(), ms(2_700_003));
        assert_eq!(asks(&mut client, 3_200_000), (Kind::Request, To::Everybody));
        assert!(matches!(client.handle(&says(Kind::Ack, 5, &[]), ms(3_300_000)), Some(Event::Bound(_))));
        assert_eq!(client.due(), ms(5_100_000));
        assert_eq!(client.handle(&says(Kind::Nak, 0, &[]), ms(5_200_000)), Some(Event::Lost));
        assert_eq!(client.poll(ms(9_999_999)), None, "no other address is taken while one is in use");
    }

    #[test]
    fn questions_are_repeated_for_ever() {
        let mut client = client();
        let mut at = 0;
        for n in 0..1000 {
            assert_eq!(asks(&mut client, at).0, Kind::Discover);
            let next = u64::try_from(client.due().as_millis()).unwrap() + 1;
            let wait = next - at;
            assert!((900..=8_001).contains(&wait) && (n > 0 || wait <= 2_001), "{n}: {wait}");
            at = next;
        }
    }

    #[test]
    fn who_does_not_confirm_is_left() {
        let mut client = client();
        asks(&mut client, 0);
        client.handle(&says(Kind::Offer, 5, &[]), ms(1));
        let mut kinds = Vec::new();
        for n in 1..=5 {
            kinds.push(asks(&mut client, n * 10_000).0);
        }
        assert_eq!(kinds, [Kind::Request, Kind::Request, Kind::Request, Kind::Request, Kind::Discover]);
        client.handle(&says(Kind::Offer, 5, &[]), ms(50_001));
        asks(&mut client, 50_001);
        assert_eq!(client.handle(&says(Kind::Nak, 0, &[]), ms(50_002)), Some(Event::Lost));
        assert_eq!(client.poll(ms(50_003)), None, "a server that says no is not flooded");
        assert_eq!(asks(&mut client, 60_000).0, Kind::Discover);
    }

    #[test]
    fn an_address_from_before() {
        let before = Some([10, 0, 0, 5].into());
        let mut client = Client::new(WHO, before, false, ms(0));
        let (bytes, _) = client.poll(ms(0)).unwrap();
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(has(&[50, 4, 10, 0, 0, 5]) && !has(&[54, 4]), "no server is named");
        assert!(matches!(client.handle(&says(Kind::Ack, 5, &[]), ms(1)), Some(Event::Bound(_))));
        let mut client = Client::new(WHO, before, false, ms(0));
        asks(&mut client, 0);
        assert_eq!(client.handle(&says(Kind::Nak, 0, &[]), ms(1)), Some(Event::Lost));
        assert_eq!(asks(&mut client, 10_000).0, Kind::Discover);
    }

    #[test]
    fn where_piman_is_may_be_said_by_another() {
        // The server's offer comes first, piman's a little later; it gives no address.
        let mut client = Client::new(WHO, None, true, ms(0));
        asks(&mut client, 0);
        client.handle(&says(Kind::Offer, 5, &[b"\x42\x06router"]), ms(100));
        assert_eq!((client.poll(ms(101)), client.due()), (None, ms(600)));
        let marked = answer([0; 4], [10, 0, 0, 9], &[&[53, 1, 2], SERVER, PIMAN, &[255]].concat());
        client.handle(&marked, ms(200));
        assert_eq!(asks(&mut client, 200).0, Kind::Request);
        let Some(Event::Bound(lease)) = client.handle(&says(Kind::Ack, 5, &[b"\x42\x06router"]), ms(201))
        else {
            panic!()
        };
        assert_eq!(lease.boot.as_deref(), Some("10.0.0.9"));
        // If nobody says it, the server's own word counts.
        let mut client = Client::new(WHO, None, true, ms(0));
        asks(&mut client, 0);
        client.handle(&says(Kind::Offer, 5, &[]), ms(100));
        assert_eq!(asks(&mut client, 600).0, Kind::Request);
        let ack = says(Kind::Ack, 5, &[b"\x42\x06router"]);
        let Some(Event::Bound(lease)) = client.handle(&ack, ms(601)) else { panic!() };
        assert_eq!(lease.boot.as_deref(), Some("router"));
    }

    #[test]
    fn what_is_missing_is_made_up_with_care() {
        let mut client = client();
        asks(&mut client, 0);
        let bare = |kind: Kind| answer([172, 16, 0, 5], [0; 4], &[&[53, 1, kind.number()], SERVER].concat());
        client.handle(&bare(Kind::Offer), ms(1));
        asks(&mut client, 1);
        let Some(Event::Bound(lease)) = client.handle(&bare(Kind::Ack), ms(2)) else { panic!() };
        assert_eq!((lease.prefix, lease.boot), (16, None));
        assert!(lease.time > Duration::from_secs(1 << 31), "no end");
        assert_eq!([10, 172, 192].map(|a| class_prefix([a, 0, 0, 1].into())), [8, 16, 24]);
    }
}
