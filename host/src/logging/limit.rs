//! How many lines of a kind are logged: what peers on the network cause must not fill a disk.
//!
//! A kind is a place in the source, with the event that the line is about. Each address has a number of lines of each
//! kind, and all of them together have one, too; both grow again with time. What is left out is counted, and said.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::Level;
use tracing::callsite::Identifier;

use super::line::Fields;

/// Lines of one kind by one address: at once, and a second after that.
const OF_ONE: Rate = Rate { burst: 100.0, per_second: 1.0 };
/// Lines of one kind in all: a large room may be switched on at once.
const OF_ALL: Rate = Rate { burst: 2000.0, per_second: 20.0 };
/// How many addresses and kinds are remembered.
const KEYS_MAX: usize = 8192;
/// How often it is said what was left out, and of how many kinds.
const SAY: Duration = Duration::from_secs(10);
const KINDS_SAID: usize = 8;
/// In how many words of a message an address is looked for.
const WORDS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// What a line is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) callsite: Identifier,
    pub(super) target: String,
    event: String,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    lines: f64,
    at: Instant,
}

impl Left {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.lines, self.at) = ((self.lines + more).min(rate.burst), now);
        let some = self.lines >= 1.0;
        self.lines -= if some { 1.0 } else { 0.0 };
        some
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.lines + seconds * rate.per_second >= rate.burst
    }
}

/// What was logged lately.
#[derive(Debug, Default)]
pub(super) struct Limit {
    kinds: HashMap<Kind, Left>,
    addresses: HashMap<(Kind, IpAddr), Left>,
    left_out: HashMap<Kind, u64>,
    said: Option<Instant>,
}

impl Kind {
    pub(super) fn of(callsite: Identifier, target: &str, fields: &Fields) -> Self {
        let event = fields.get("event").and_then(Value::as_str).unwrap_or_default();
        Self { callsite, target: target.to_owned(), event: event.to_owned() }
    }

    fn name(&self) -> String {
        if self.event.is_empty() { self.target.clone() } else { format!("{} {}", self.target, self.event) }
    }
}

impl Limit {
    /// Whether a line is to be written.
    pub(super) fn admits(&mut self, level: Level, kind: &Kind, fields: &Fields, now: Instant) -> bool {
        // Whoever asks for more than the usual lines wants all of them.
        if level > Level::INFO {
            return true;
        }
        if self.kinds.len() + self.addresses.len() >= KEYS_MAX {
            self.kinds.retain(|_, left| !left.is_full(OF_ALL, now));
            self.addresses.retain(|_, left| !left.is_full(OF_ONE, now));
        }
        let full = self.addresses.len() >= KEYS_MAX;
        let fresh = |rate: Rate| Left { lines: rate.burst, at: now };
        if let Some(address) = address(fields) {
            let key = (kind.clone(), address);
            let here = match self.addresses.get_mut(&key) {
                Some(left) => left.take(OF_ONE, now),
                None if full => false,
                None => self.addresses.entry(key).or_insert(fresh(OF_ONE)).take(OF_ONE, now),
            };
            if !here {
                *self.left_out.entry(kind.clone()).or_default() += 1;
                return false;
            }
        }
        let admitted = self.kinds.entry(kind.clone()).or_insert(fresh(OF_ALL)).take(OF_ALL, now);
        if !admitted {
            *self.left_out.entry(kind.clone()).or_default() += 1;
        }
        admitted
    }

    /// What was left out, now and then.
    pub(super) fn left_out(&mut self, now: Instant) -> Option<String> {
        if self.left_out.is_empty() || self.said.is_some_and(|at| now.duration_since(at) < SAY) {
            return None;
        }
        self.said = Some(now);
        let mut kinds: Vec<(u64, String)> =
            self.left_out.drain().map(|(kind, count)| (count, kind.name())).collect();
        kinds.sort_by(|a, b| b.cmp(a));
        let all: u64 = kinds.iter().map(|(count, _)| count).sum();
        let most: Vec<String> =
            kinds.iter().take(KINDS_SAID).map(|(count, name)| format!("{count} of {name}")).collect();
        Some(format!(
            "{all} lines were left out, too many of one kind or of one address: {}",
            most.join(", ")
        ))
    }
}

/// The address that a line is about.
fn address(fields: &Fields) -> Option<IpAddr> {
    if let Some(address) = fields.get("address").and_then(Value::as_str) {
        return address.parse().ok();
    }
    fields.message().split_whitespace().take(WORDS).find_map(|word| {
        let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '[' && c != ']');
        let socket = || word.parse::<SocketAddr>().ok().map(|address| address.ip());
        word.parse().ok().or_else(socket)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::callsite::Callsite;
    use tracing::subscriber::Interest;

    struct Here;

    impl Callsite for Here {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nothing is logged")
        }
    }

    static HERE: Here = Here;

    fn line(text: &str, event: &str) -> (Kind, Fields) {
        let fields = Fields::new(text, [("event", event.into())]);
        (Kind::of(Identifier(&HERE), "piman::rpc", &fields), fields)
    }

    #[test]
    fn an_address_does_not_fill_the_log_and_others_are_heard() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let mut logged = |text: &str, event, now| {
            let (kind, fields) = line(text, event);
            limit.admits(Level::INFO, &kind, &fields, now)
        };
        let many = (0..10_000).filter(|n| logged(&format!("rpc: 10.0.0.9: lost {n}"), "lost", now)).count();
        assert_eq!(many, 100);
        assert!(logged("rpc: 10.0.0.1: lost", "lost", now));
        assert!(logged("rpc: 10.0.0.9:4000: another event", "denied", now), "it is of another kind");
        let minute = now + Duration::from_secs(60);
        let later = (0..10_000).filter(|_| logged("rpc: 10.0.0.9: lost", "lost", minute)).count();
        assert_eq!(later, 60);
        assert_eq!(
            limit.left_out(minute).unwrap().split(':').next().unwrap(),
            "19840 lines were left out, too many of one kind or of one address"
        );
        assert_eq!(limit.left_out(minute), None);
    }

    #[test]
    fn all_addresses_together_have_a_limit_and_memory_too() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let mut logged = 0;
        for n in 0..100_000_u32 {
            let (kind, fields) = line(&format!("rpc: {}: lost", IpAddr::from(n.to_be_bytes())), "lost");
            logged += usize::from(limit.admits(Level::WARN, &kind, &fields, now));
        }
        assert_eq!(logged, 2000);
        assert!(limit.addresses.len() <= KEYS_MAX);
        let (kind, fields) = line("rpc: 10.0.0.1: lost", "lost");
        assert!(limit.admits(Level::DEBUG, &kind, &fields, now), "whoever debugs sees all");
    }
}
