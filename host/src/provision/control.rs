//! Control connections: the core's session, with what this server knows of the Pi.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

use piman_core::hash::Hash;
use piman_core::install::layout::filesystem_bytes;
use piman_core::install::manifest::{self, Manifest};
use piman_core::install::{
    Date, Event, Hello, InstallPolicy, Installation, Milestone, More, Offer, Plan, Question, REVISION, Stage,
    sums,
};
use piman_core::text::is_shown;
use piman_core::{Error, drive};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::images::build_queue::Availability;
use crate::images::sign;
use crate::images::source::{Archive, SourceState};
use crate::net::drain::InFlight;
use crate::net::socket::tune;
use crate::net::timeout::TalkState;
use crate::net::timeout::Timed;
use crate::provision::context::InstallContext;
use crate::provision::legacy::Advance;
use crate::state::{Change, DeviceEvent, Facts, Identity};
use crate::sys::clock::now_ms;

/// After how many seconds a Pi should ask again while its image is being prepared.
const ASK_AGAIN: u16 = 2;
/// The same while there is nothing to install and somebody has to see to it.
const ASK_MUCH_LATER: u16 = 30;
/// How many events of one connection are kept, and one more for each second it lasts.
const EVENTS_MAX: u64 = 100;
/// The longest line that is understood, in bytes. Our agents' longest is a failure (400 bytes of
/// text) or a greeting (4 names of 64); each connection has this room for as long as it lasts.
const LINE: usize = 640;
/// How much of a line of noise the debug log shows, in bytes.
const NOISE_SHOWN: usize = 120;

/// Talks to one Pi until it or the conversation ends.
pub async fn run(stream: TcpStream, address: IpAddr, service: Arc<InstallContext>) {
    tune(&stream);
    let date = if service.settings.date { local_time() } else { None };
    let last_identity = TalkState::default();
    let mut io = Timed::new(stream, &service.settings.timeouts, &last_identity);
    let mut guest = ControlConnection::new(&service, address, &last_identity);
    let mut buf = [0; LINE];
    match drive::serve(&mut io, &mut buf, date, &mut guest).await {
        Err(Error::Io(e)) if e.kind() == ErrorKind::TimedOut => {
            log::info!("{}: closed: {e}", guest.pi());
            return;
        }
        Ok(()) => log::debug!("{}: the connection has ended", guest.pi()),
        Err(e) => log::debug!("{}: {e}", guest.pi()),
    }
    guest.gone();
}

/// The local time of this machine, as the Pi's clock will show it.
fn local_time() -> Option<Date> {
    let now = jiff::Zoned::now();
    let small = |n: i8| u8::try_from(n).unwrap_or(0);
    let year = u16::try_from(now.year()).ok()?;
    let [month, day] = [now.month(), now.day()].map(small);
    let [hour, minute, second] = [now.hour(), now.minute(), now.second()].map(small);
    Date::new(year, month, day, hour, minute, second)
}

/// The Pi at the other end of one control connection.
struct ControlConnection<'a> {
    service: &'a InstallContext,
    address: IpAddr,
    /// Who it said it is, and what it can do.
    said: Option<Box<PiInfo>>,
    last_identity: &'a TalkState,
    since: Instant,
    events: u64,
    /// It was told to wait and asks again, so what it says first is known.
    quiet: bool,
    /// Why it has to wait, if something is wrong.
    wrong: String,
    installing: Option<InFlight>,
    /// What it was doing when it last said so.
    at: Option<Stage>,
    /// How far it is on its way into the system on its card.
    boot: Boot,
    /// What it is told to install.
    image: Option<Hash>,
    /// How that is called.
    installation: Option<Installation>,
    /// How many orders it carries out by that.
    orders: usize,
}

/// How far a Pi is that was told to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// It was not told to.
    No,
    /// It was told.
    Told,
    /// It has mounted its root filesystem since.
    Mounted,
}

struct PiInfo {
    pi: Identity,
    root_bytes: u64,
    image: bool,
    signed: bool,
}

impl<'a> ControlConnection<'a> {
    fn new(service: &'a InstallContext, address: IpAddr, last_identity: &'a TalkState) -> Self {
        Self {
            service,
            address,
            said: None,
            last_identity,
            since: Instant::now(),
            events: 0,
            quiet: false,
            wrong: String::new(),
            installing: None,
            at: None,
            boot: Boot::No,
            image: None,
            installation: None,
            orders: 0,
        }
    }

    fn pi(&self) -> Identity {
        self.said.as_ref().map_or_else(|| Identity::of(self.address), |s| s.pi.clone())
    }

    fn change(&self) -> Change {
        Change::of(self.pi())
    }

    /// Takes note of what happened. Whoever reports without end is heard, not recorded.
    fn happened(&mut self, kind: &str, text: String, mut change: Change) {
        self.events += 1;
        if self.quiet || self.events > EVENTS_MAX + self.since.elapsed().as_secs() {
            log::debug!("{}: {text}", change.identity);
        } else {
            let level = if matches!(kind, "error" | "failed") { log::Level::Error } else { log::Level::Info };
            log::log!(level, "{}: {text}", change.identity);
            change.events.push(DeviceEvent { at_ms: now_ms(), kind: kind.into(), text });
        }
        self.service.recorder.note(change);
    }

    fn hello(&mut self, hello: Hello<'_>) {
        // Names are compared exactly, so they are kept in one spelling.
        let name = |n: Option<&str>| n.map(|n| n.to_ascii_lowercase().into_boxed_str());
        let pi = Identity { serial: name(hello.serial), mac: name(hello.mac), address: self.address };
        self.service.last_identity.put(self.address, pi.clone());
        self.quiet = self.service.waiting.find(&pi.key()).is_some();
        self.said = Some(Box::new(PiInfo {
            pi,
            root_bytes: hello.root_bytes,
            image: hello.paths.image,
            signed: hello.can.signed,
        }));
        let facts = Facts {
            model: hello.model.map(Into::into),
            agent: hello.agent.map(Into::into),
            disk_bytes: hello.disk_bytes,
            root_bytes: hello.root_bytes,
            card: hello.card,
        };
        let mut text = String::from("here");
        // Writing to a string does not fail.
        let _ = match hello.model {
            Some(model) => write!(text, ": {}", model.replace('_', " ")),
            None => Ok(()),
        };
        let _ = match hello.card {
            Some(card) => write!(text, ", with image {card:.12} on its card"),
            None => write!(text, ", without an image on its card"),
        };
        self.happened("hello", text, Change { facts: Some(facts), ..self.change() });
        // Its report was lost, or this server was not there to hear it: the card tells.
        if let (Some(card), Some(_)) = (hello.card, hello.installation)
            && self.service.recorder.is_given(&self.pi(), hello.installation)
        {
            self.installed(card, hello.installation);
        }
    }

    /// It waits no more.
    fn decided(&mut self) {
        self.quiet = false;
        if self.said.is_some() {
            self.service.waiting.remove(&self.pi().key());
        }
    }

    /// Why nothing can be installed now, if so.
    fn alert(&mut self, what: &str, reason: &str) {
        let text = format!("{what}: {reason}");
        if self.service.waiting.find(&self.pi().key()).is_some_and(|known| known != text) {
            self.quiet = false;
        }
        self.wrong.clone_from(&text);
        let change = Change { error: Some(Some(text.as_str().into())), ..self.change() };
        self.happened("error", text, change);
    }

    /// What there is for this Pi beside the archive itself.
    fn prepare(&self, archive: &Arc<Archive>, id: Hash) -> Availability {
        match &self.said {
            // It takes what is signed, and no image that is made only now.
            Some(said) if said.signed => {
                let size = filesystem_bytes(said.root_bytes);
                let tables = |signed: Vec<u8>| {
                    let manifest = manifest::split(&signed).and_then(|(_, text)| Manifest::parse(text))?;
                    manifest
                        .tables()
                        .filter(|(of, _)| *of == size)
                        .find_map(|(_, t)| self.service.builds.offer_of(t))
                };
                let signed = sign::signed(&self.service.settings.state, id).filter(|_| said.image);
                signed.and_then(tables).map_or(Availability::Archive, Availability::Ready)
            }
            Some(said) if said.image && said.root_bytes > 0 => {
                self.service.builds.prepare(archive, id, filesystem_bytes(said.root_bytes))
            }
            _ => Availability::Archive,
        }
    }

    /// What a Pi is told of an archive beyond revision 0.
    fn more(&self, archive: &Archive) -> More {
        let Some(facts) = archive.facts() else { return More::default() };
        let signed = sign::signed(&self.service.settings.state, facts.id).unwrap_or_default();
        let manifest = manifest::split(&signed).and_then(|(_, text)| Manifest::parse(text));
        More {
            revision: REVISION,
            manifest_bytes: u32::try_from(signed.len()).unwrap_or(0),
            counter: manifest.map_or(0, |m| m.counter),
            sums_chunk: if sums::table_bytes(archive.bytes()).is_some() { sums::CHUNK } else { 0 },
            unpacked_bytes: facts.unpacked_bytes,
            entries: facts.entries,
            installation: self.installation,
            erase: None,
        }
    }

    /// What is meant for this Pi.
    fn servable(&self) -> SourceState {
        self.service.catalog.of(&self.pi()).map_or_else(SourceState::Bad, |source| source.servable())
    }

    /// Gives it its orders, and its installation a name. Nothing on a card is erased for an order
    /// of which it would not be known that it was carried out.
    fn give(&mut self) -> Result<(), String> {
        // Waits until it is on the disk; meanwhile other threads decide.
        match tokio::task::block_in_place(|| self.service.recorder.give(&self.pi())) {
            Ok((orders, number)) => {
                (self.orders, self.installation) = (orders, Some(number));
                Ok(())
            }
            Err(e) => Err(format!("that it is told so cannot be kept: {e}")),
        }
    }

    fn installed(&mut self, id: Hash, number: Option<Installation>) {
        self.installing = None;
        let pi = self.pi();
        let ordered = if self.service.recorder.complete(&pi, number) > 0 { " as ordered" } else { "" };
        let change = Change {
            stage: Some("installed".into()),
            image: Some(id),
            error: Some(None),
            progress: Some((0, 0)),
            ..Change::of(pi)
        };
        self.happened("installed", format!("installed{ordered}: image {id:.12} is on its card"), change);
    }
}

impl ControlConnection<'_> {
    fn reinstall_ordered(&mut self) -> bool {
        let open = self.service.recorder.open_orders(&self.pi());
        if open.is_empty() {
            return false;
        }
        // What is on a card is erased only for something that is known to be good.
        let possible = match self.servable() {
            SourceState::Good(archive, id) => match self.prepare(&archive, id) {
                Availability::Impossible(reason) => Err(reason),
                _ => Ok(()),
            },
            SourceState::Checking(_) if self.said.is_some() => Ok(()),
            SourceState::Checking(_) => {
                self.alert("a reinstall is ordered, later", "the archive is still being checked");
                return false;
            }
            SourceState::Bad(reason) => Err(reason),
        };
        // An old Pi cannot be told to wait, so this is the last moment at which it can be refused.
        let possible = possible.and_then(|()| if self.said.is_none() { self.give() } else { Ok(()) });
        match possible {
            Ok(()) => true,
            Err(reason) => {
                self.alert("a reinstall is ordered but not possible", &reason);
                false
            }
        }
    }

    fn plan(&mut self, hello: bool) -> Plan {
        let (archive, id) = match self.servable() {
            SourceState::Good(archive, id) => (archive, id),
            SourceState::Checking(percent) => return Plan::Wait { seconds: ASK_AGAIN, percent },
            SourceState::Bad(reason) => {
                // An old Pi has nothing to lose here; its download waits for a good archive.
                self.alert("nothing can be installed", &reason);
                return Plan::Wait { seconds: ASK_MUCH_LATER, percent: 0 };
            }
        };
        self.image = Some(id);
        if !hello {
            if let Err(reason) = self.give() {
                log::error!("{}: {reason}", self.pi());
            }
            return Plan::Format(None);
        }
        let image = match self.prepare(&archive, id) {
            Availability::Ready(image) => Some(image),
            Availability::Making(percent) => return Plan::Wait { seconds: ASK_AGAIN, percent },
            Availability::Archive => None,
            Availability::Impossible(reason) => {
                self.alert("nothing can be installed on this card", &reason);
                return Plan::Wait { seconds: ASK_MUCH_LATER, percent: 0 };
            }
        };
        if let Err(reason) = self.give() {
            self.alert("nothing is installed", &reason);
            return Plan::Wait { seconds: ASK_MUCH_LATER, percent: 0 };
        }
        Plan::Format(Some(Offer {
            id,
            bytes: archive.bytes(),
            rootfs_port: self.service.rootfs_port,
            fetch_port: self.service.fetch_port,
            image,
            more: self.more(&archive),
        }))
    }
}

impl InstallPolicy for ControlConnection<'_> {
    fn decide(&mut self, question: &Question) -> Plan {
        if question.installed && !self.reinstall_ordered() {
            return Plan::Boot;
        }
        match self.plan(question.hello) {
            // It has nothing to lose; its download waits for a good archive.
            Plan::Wait { .. } if !question.hello => Plan::Format(None),
            plan => plan,
        }
    }

    fn note(&mut self, event: Event<'_>) {
        let stage = |stage: &str, change: Change| Change { stage: Some(stage.into()), ..change };
        match event {
            Event::Noise(line) => {
                let shown = line.get(..NOISE_SHOWN).unwrap_or(line);
                log::debug!("{}: noise: {}", self.address, shown.escape_ascii());
            }
            Event::TooLong => log::debug!("{}: noise: a line without an end", self.address),
            Event::Hello(hello) => self.hello(hello),
            Event::Found { installed } => {
                self.last_identity.report();
                if self.said.is_none() {
                    // Whoever had this address before, this one gives no name.
                    self.service.last_identity.put(self.address, Identity::of(self.address));
                }
                let text =
                    if installed { "reports a system on its card" } else { "reports no system on its card" };
                let change = self.change();
                self.happened("found", text.into(), change);
            }
            Event::Boot => {
                self.decided();
                self.boot = Boot::Told;
                let change = stage("booting", Change { progress: Some((0, 0)), ..self.change() });
                self.happened("boot", "told to boot".into(), change);
            }
            Event::Format => {
                self.decided();
                self.boot = Boot::No;
                let pi = self.pi();
                if self.said.is_none() {
                    self.service.installs.told(self.address);
                }
                self.installing = Some(self.service.drain.installation());
                let mut text = String::from("told to format");
                if self.orders > 0 {
                    text.push_str(", as ordered");
                }
                let change = Change { image: self.image, progress: Some((0, 0)), ..Change::of(pi) };
                self.happened("format", text, stage("formatting", change));
            }
            Event::Wait => {
                let pi = self.pi();
                let change = stage("waiting", Change::of(pi.clone()));
                self.happened("wait", "told to wait and ask again".into(), change);
                self.service.waiting.put(pi.key(), std::mem::take(&mut self.wrong));
            }
            // That it got the time says nothing of whether its clock could be set.
            Event::Milestone(Milestone::ReceivedDate) => log::debug!("{}: got the time", self.pi()),
            Event::Milestone(Milestone::SetDate) => {
                let change = self.change();
                self.happened("milestone", "has set its clock".into(), change);
            }
            Event::Milestone(milestone) => {
                self.last_identity.report();
                match milestone {
                    Milestone::ReceivedBoot => self.installing = None,
                    Milestone::FinishedMounting if self.boot == Boot::Told => self.boot = Boot::Mounted,
                    _ => {}
                }
                let words = milestone.word().to_ascii_lowercase().replace('_', " ");
                let change = stage(&words, self.change());
                self.happened("milestone", words, change);
            }
            Event::Progress { stage: at, done, total } => {
                let change = Change { progress: Some((done, total)), ..self.change() };
                let change = stage(at.word(), change);
                if self.at.replace(at) == Some(at) {
                    self.service.recorder.note(change);
                } else {
                    self.service.recorder.news(change);
                }
            }
            Event::Committed { id, installation } => self.installed(id, installation),
            Event::Failed { stage: at, text } => self.failed(at, text),
            Event::Formatted => {
                self.last_identity.end();
                self.installing = None;
                if self.said.is_some() {
                    return; // It says `committed`.
                }
                let change = stage("formatted", self.change());
                self.happened("formatted", "reports the end".into(), change);
                self.service.advance(self.address, Advance::Formatted);
            }
            other => log::debug!("{}: {other:?}", self.address),
        }
    }
}

impl ControlConnection<'_> {
    /// It closed the connection.
    fn gone(&mut self) {
        if self.boot == Boot::Mounted {
            let change = Change { stage: Some("booted".into()), error: Some(None), ..self.change() };
            let text = "booted, as far as can be seen: it mounted its root filesystem and hung up";
            self.happened("booted", text.into(), change);
        }
    }

    fn failed(&mut self, at: Stage, text: &str) {
        self.installing = None;
        // From the network, for terminals.
        let text: String = text.chars().map(|c| if is_shown(c) { c } else { ' ' }).collect();
        let text = format!("failed ({}): {text}", at.word());
        let change =
            Change { stage: Some("failed".into()), error: Some(Some(text.as_str().into())), ..self.change() };
        self.happened("failed", text, change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::install::{Can, Fingerprint, Found, Notice, Paths, TEXT_MAX};

    /// What a Pi that says nothing costs, in bytes.
    fn size<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_longest_lines_of_our_agents_fit() {
        let name = "x".repeat(64);
        let hello = Hello {
            serial: Some(&name),
            mac: Some(&name),
            model: Some(&name),
            agent: Some(&name),
            disk_bytes: u64::MAX,
            root_bytes: u64::MAX,
            card_id: Some(&name),
            card: Some(Hash([255; 32])),
            installation: Some(Installation(u64::MAX)),
            paths: Paths { stream: true, image: true },
            can: Can { signed: true, answer: true },
            revision: u16::MAX,
            found: Some(Found::Incomplete),
            print: Fingerprint::new(u64::MAX),
        };
        let text = "x".repeat(TEXT_MAX + 1);
        let failed = Notice::Failed { stage: Stage::Filesystem, text: &text };
        for notice in [Notice::Hello(hello), Notice::Disk { text: &text }, failed] {
            assert!(notice.to_string().len() + 2 <= LINE);
        }
    }

    #[test]
    fn ten_thousand_idle_connections_need_little_memory() {
        let bytes = size(run);
        assert!(bytes <= 2000, "{bytes} bytes");
    }
}
