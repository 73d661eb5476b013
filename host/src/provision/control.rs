//! Control connections: the core's session, with what this server knows of the Pi.

mod outcome;

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

use piman_core::Error;
use piman_core::hash::Hash;
use piman_core::install::drive;
use piman_core::install::trust::{PublicKey, Said};
use piman_core::install::{
    Clock, Date, Event, Hello, InstallPolicy, Installation, Milestone, Notice, Plan, Question, Report, Stage,
    Step,
};
use piman_core::text::shown_or_space;
use tokio::net::TcpStream;
use tokio::time::Instant;

use outcome::stage;

use crate::images::boot_from::boot_of;
use crate::images::fitness::BootFrom;
use crate::net::drain::InFlight;
use crate::net::socket::tune;
use crate::net::timeout::TalkState;
use crate::net::timeout::Timed;
use crate::provision::context::InstallContext;
use crate::provision::legacy::Advance;
use crate::provision::proof::{Proof, names};
use crate::state::archive_facts::Content;
use crate::state::{About, Change, DeviceEvent, Facts, Identity};
use crate::sys::clock::{now, now_ms};

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
    let settings = service.settings();
    let date = if settings.date { local_time() } else { None };
    let last_identity = TalkState::default();
    let mut io = Timed::new(stream, &settings.timeouts, &last_identity);
    let mut guest = ControlConnection::new(&service, address, &last_identity);
    let mut buf = [0; LINE];
    match drive::serve(&mut io, &mut buf, date, &mut guest).await {
        Err(Error::Io(e)) if e.kind() == ErrorKind::TimedOut => {
            tracing::info!("{}: closed: {e}", guest.pi());
            return;
        }
        Ok(()) => tracing::debug!("{}: the connection has ended", guest.pi()),
        Err(e) => tracing::debug!("{}: {e}", guest.pi()),
    }
    guest.gone();
}

/// The local time of this machine, as an old Pi's clock will show it. `TZ` says in which zone.
fn local_time() -> Option<Date> {
    let now = jiff::Zoned::now();
    let small = |n: i8| u8::try_from(n).unwrap_or(0);
    let year = u16::try_from(now.year()).ok()?;
    let [month, day] = [now.month(), now.day()].map(small);
    let [hour, minute, second] = [now.hour(), now.minute(), now.second()].map(small);
    Date::new(year, month, day, hour, minute, second)
}

/// The Pi at the other end of one control connection.
pub(super) struct ControlConnection<'a> {
    pub(super) service: &'a InstallContext,
    address: IpAddr,
    /// Who it said it is, and what it can do.
    pub(super) said: Option<Box<PiInfo>>,
    last_identity: &'a TalkState,
    since: Instant,
    events: u64,
    /// It was told to wait and asks again, so what it says first is known.
    quiet: bool,
    /// Why it has to wait if somebody has to see to it, or the recorded reason why it is formatted.
    pub(super) wrong: String,
    /// What is on its disk, in its words.
    pub(super) disk: Box<str>,
    installing: Option<InFlight>,
    /// What it was doing when it last said so.
    at: Option<Stage>,
    /// How far it is on its way into the system on its card.
    boot: Boot,
    /// How that is called.
    pub(super) installation: Option<Installation>,
    /// How many orders it carries out by that.
    pub(super) orders: usize,
    /// Why it is not known whether an order is completed by what is on its disk.
    pub(super) unread: Option<Box<str>>,
    /// What is decided for its card; a Pi that says nothing has no memory for it.
    own: Option<Box<Own>>,
    /// Who it has shown to be, in the same way.
    proof: Option<Box<Proof>>,
}

/// What is decided for a card.
#[derive(Default)]
pub(super) struct Own {
    /// What the Pi is told to install.
    pub(super) image: Option<Hash>,
    /// What an operator says of the image that it gets.
    pub(super) about: About,
    /// When it was rendered last, in milliseconds since 1970; 0: it was not.
    pub(super) rendered_ms: u64,
    /// Whether it is applied to what is on the card already.
    pub(super) is_applied: bool,
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

pub(super) struct PiInfo {
    pi: Identity,
    pub(super) disk_bytes: u64,
    pub(super) root_bytes: u64,
    /// It can extract an archive.
    pub(super) stream: bool,
    pub(super) image: bool,
    pub(super) signed: bool,
    /// It can write the image of a whole disk.
    pub(super) whole_disk: bool,
    /// It can make a card its own.
    pub(super) personal: bool,
    /// The image on its card, and as which installation it has it.
    pub(super) card: Option<Hash>,
    pub(super) installation: Option<Installation>,
    /// It can make an image as large as its partition.
    pub(super) grows: bool,
    /// It can begin with an image that is still being made.
    pub(super) early: bool,
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
            disk: Box::default(),
            installing: None,
            at: None,
            boot: Boot::No,
            installation: None,
            orders: 0,
            unread: None,
            own: None,
            proof: None,
        }
    }

    pub(super) fn pi(&self) -> Identity {
        self.said.as_ref().map_or_else(|| Identity::of(self.address), |s| s.pi.clone())
    }

    /// What is decided for its card.
    pub(super) fn own(&mut self) -> &mut Own {
        self.own.get_or_insert_default()
    }

    /// When what makes its card its own was rendered last, in milliseconds since 1970; 0: it was not.
    pub(super) fn rendered_ms(&self) -> u64 {
        self.own.as_ref().map_or(0, |own| own.rendered_ms)
    }

    /// Whether its profile is applied to what is on its card already.
    fn is_applied(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.is_applied)
    }

    /// From what a card with this image boots, and how large the boot partition is that is filled for it, in bytes.
    pub(super) fn boot_of(&self, content: &Content) -> (BootFrom, u64) {
        boot_of(content, self.own.as_ref().map_or(&About::default(), |own| &own.about))
    }

    fn change(&self) -> Change {
        let is_proven = self.proof.as_ref().is_some_and(|proof| proof.is_proven());
        Change { is_proven, ..Change::of(self.pi()) }
    }

    /// Why nothing that is meant for the Pi that it says it is is meant for it.
    pub(super) fn refusal(&self) -> Option<String> {
        self.proof.as_ref()?.refusal()
    }

    /// The key that it says it has: what is sealed for that, only its holder can read.
    pub(super) fn key(&self) -> Option<PublicKey> {
        self.proof.as_ref().and_then(|proof| proof.key())
    }

    /// Whether what this Pi is told is signed for it.
    pub(super) fn signs(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.signs(self.service))
    }

    /// It has shown that it has its key.
    fn vouched(&mut self) {
        let pi = self.pi();
        let Some(proof) = &mut self.proof else { return };
        for line in proof.proven(&pi, self.service) {
            match Report::parse(&line) {
                Report::Ours(Notice::Hello(hello)) => self.hello(hello),
                Report::Ours(Notice::Disk { text }) => self.disk(text),
                _ => {}
            }
        }
    }

    /// Takes note of what happened. Whoever reports without end is heard, not recorded.
    fn happened(&mut self, kind: &str, text: String, mut change: Change) {
        self.events += 1;
        if self.quiet || self.events > EVENTS_MAX + self.since.elapsed().as_secs() {
            tracing::debug!("{}: {text}", change.identity);
        } else {
            change.identity.log(kind, &text);
            change.events.push(DeviceEvent { at_ms: now_ms(), kind: kind.into(), text });
        }
        self.service.recorder.note(change);
    }

    fn hello(&mut self, hello: Hello<'_>) {
        self.unread = None;
        let [serial, mac] = names(&hello);
        let said = Identity { serial, mac, address: self.address };
        let judged = self.proof.get_or_insert_default().judge(said, self.service);
        let pi = judged.unwrap_or_else(|e| {
            self.unread = Some(e.into());
            Identity::of(self.address)
        });
        self.service.last_identity.put(self.address, pi.clone());
        if !self.service.names.said(&pi) {
            tracing::debug!("{pi}: another address uses this name");
        }
        self.quiet = self.service.waiting.find(&pi.key()).is_some();
        self.said = Some(Box::new(PiInfo {
            pi,
            disk_bytes: hello.disk_bytes,
            root_bytes: hello.root_bytes,
            stream: hello.paths.stream,
            image: hello.paths.image,
            signed: hello.can.signed,
            whole_disk: hello.can.disk && hello.paths.image,
            personal: hello.can.personal,
            card: hello.card,
            installation: hello.installation,
            grows: hello.can.grow,
            early: hello.can.early,
        }));
        if self.refusal().is_some() || self.unread.is_some() {
            // It is said again when the Pi has shown who it is; an error of the state is said by the decision.
            return;
        }
        let facts = Facts {
            model: hello.model.map(Into::into),
            agent: hello.agent.map(Into::into),
            disk_bytes: hello.disk_bytes,
            root_bytes: hello.root_bytes,
            card: hello.card,
            found: hello.found,
            print: hello.print,
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
        if let Some(card) = hello.card {
            match self.service.recorder.is_claimed(&self.pi(), hello.installation) {
                Ok(true) => self.installed(card, hello.installation),
                Ok(false) => {}
                // Or an order would be carried out again that the card shows to be completed.
                Err(e) => self.unread = Some(e.to_string().into()),
            }
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
    pub(super) fn alert(&mut self, what: &str, reason: &str) {
        let text = format!("{what}: {reason}");
        if self.service.waiting.find(&self.pi().key()).is_some_and(|known| known != text) {
            self.quiet = false;
        }
        self.wrong.clone_from(&text);
        let change = Change { error: Some(Some(text.as_str().into())), ..self.change() };
        self.happened("error", text, change);
    }

    /// It says what is on its disk.
    fn disk(&mut self, text: &str) {
        // From the network, for terminals.
        self.disk = text.chars().map(shown_or_space).collect();
        let text = format!("on its disk: {}", self.disk);
        let change = Change { disk: Some(self.disk.clone()), ..self.change() };
        self.happened("disk", text, change);
    }
}

impl InstallPolicy for ControlConnection<'_> {
    fn clock(&mut self) -> Option<Clock> {
        if !self.service.settings().date {
            return None;
        }
        let now = now();
        Some(Clock { seconds: now.as_secs(), nanos: now.subsec_nanos() })
    }

    fn decide(&mut self, question: &Question) -> Plan {
        self.decide_once(question)
    }

    fn reason(&self) -> &str {
        &self.wrong
    }

    fn hear(&mut self, line: &[u8]) -> bool {
        let greeted = self.said.is_some();
        // An old Pi has no memory for it.
        if self.proof.is_none() && !Proof::concerns(line) {
            return true;
        }
        let said = self.proof.get_or_insert_default().hear(line, self.service, greeted);
        if said == Some(Said::Vouched) {
            self.vouched();
        }
        said.is_some()
    }

    fn prepare(&mut self, step: &Step) {
        if let Some(proof) = &mut self.proof {
            proof.prepare(step, &self.wrong, self.service);
        }
    }

    fn head(&self) -> &str {
        self.proof.as_ref().map_or("", |proof| proof.head())
    }

    fn note(&mut self, event: Event<'_>) {
        let is_talk = matches!(
            event,
            Event::Hello(_) | Event::Found { .. } | Event::Wait | Event::Failed { .. } | Event::Noise(_)
        );
        if !is_talk && self.refusal().is_some() {
            // It may be anybody.
            tracing::debug!("{}: has not shown who it is: {event:?}", self.address);
            return;
        }
        match event {
            Event::Noise(line) => {
                let shown = line.get(..NOISE_SHOWN).unwrap_or(line);
                tracing::debug!("{}: noise: {}", self.address, shown.escape_ascii());
            }
            Event::TooLong => tracing::debug!("{}: noise: a line without an end", self.address),
            Event::Hello(hello) => self.hello(hello),
            Event::Disk(text) => self.disk(text),
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
                let change = Change { progress: Some((0, 0)), waits: Some(None), ..self.change() };
                let change = stage("booting", change);
                let text =
                    if self.is_applied() { "told to apply its profile and to boot" } else { "told to boot" };
                self.happened("boot", text.into(), change);
            }
            Event::Format => self.told_to_format(),
            Event::Wait => self.told_to_wait(),
            // That it got the time says nothing of whether its clock could be set.
            Event::Milestone(Milestone::ReceivedDate) => tracing::debug!("{}: got the time", self.pi()),
            Event::Milestone(Milestone::SetDate) => {
                let change = self.change();
                self.happened("milestone", "has set its clock".into(), change);
            }
            Event::Milestone(milestone) => self.milestone(milestone),
            Event::Progress { stage: at, done, total } => {
                let change = Change { progress: Some((done, total)), ..self.change() };
                let change = stage(at.word(), change);
                if self.at.replace(at) == Some(at) {
                    self.service.recorder.note(change);
                } else {
                    self.service.recorder.news(change);
                }
            }
            Event::Committed { .. } if self.is_applied() => self.personalised(self.rendered_ms()),
            Event::Committed { id, installation } => self.committed(id, installation),
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
            other => tracing::debug!("{}: {other:?}", self.address),
        }
    }
}

#[cfg(test)]
mod tests;
