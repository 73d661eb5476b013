//! Who a Pi has shown to be on its control connection.
//!
//! A name belongs to the key that was first shown with it. Whoever says such a name and does not show this key is not
//! taken for that Pi: it waits for an operator.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use piman_core::install::trust::{Nonce, PublicKey, Said, ServerTrust};
use piman_core::install::{Clock, Hello, Notice, Report, Step};

use super::context::InstallContext;
use crate::state::Identity;
use crate::state::keys::PendingKey;
use crate::sys::clock::{now, now_ms};
use crate::sys::lock::lock;
use crate::sys::random;

/// How much of a line is kept until it counts, in bytes.
const HELD_MAX: usize = 640;

/// What a connection has shown.
#[derive(Default)]
pub(super) struct Proof {
    /// Only for a Pi that says the line for it.
    trust: Option<Box<ServerTrust>>,
    standing: Standing,
    /// What a Pi said that has not shown yet that it is the one.
    held: Vec<Box<[u8]>>,
    /// What goes in front of what is sent.
    head: String,
    /// While it is proven, what comes from its address is its own.
    here: Option<Here>,
}

/// The Pis that have shown who they are on a connection that is open, and from where: what their other connections do
/// is theirs.
#[derive(Debug, Clone, Default)]
pub struct ProvenPis(Arc<Mutex<HashMap<(IpAddr, String), usize>>>);

impl ProvenPis {
    /// Whether this Pi is connected.
    #[must_use]
    pub fn has(&self, pi: &Identity) -> bool {
        lock(&self.0).contains_key(&(pi.address, pi.key()))
    }

    fn hold(&self, pi: &Identity) -> Here {
        let of = (pi.address, pi.key());
        *lock(&self.0).entry(of.clone()).or_default() += 1;
        Here { pis: self.clone(), of }
    }
}

/// One connection; dropped with it.
struct Here {
    pis: ProvenPis,
    of: (IpAddr, String),
}

impl Drop for Here {
    fn drop(&mut self) {
        let mut pis = lock(&self.pis.0);
        if let Some(count) = pis.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                pis.remove(&self.of);
            }
        }
    }
}

/// Whether somebody is who it says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Standing {
    /// Nobody has a key for this name.
    #[default]
    Open,
    /// It has the key of the Pi with this name.
    Proven,
    /// It says this name, and that it has the key.
    Claimed(Box<str>),
    /// It says this name, and has not the key of the Pi that is called so.
    Wrong(Box<str>),
}

impl Proof {
    /// Whether a line is one of those by which a Pi shows who it is.
    pub(super) fn concerns(line: &[u8]) -> bool {
        line.trim_ascii().starts_with(b"PIMAN/1 trust")
    }

    /// What a line is worth; `None`: nothing, it is not to be acted on.
    pub(super) fn hear(&mut self, line: &[u8], service: &InstallContext, greeted: bool) -> Option<Said> {
        let Some(trust) = &mut self.trust else {
            if !greeted {
                let begun = ServerTrust::begin(line, || Nonce(random::bytes()));
                self.trust = begun.map(Box::new);
            }
            return if self.trust.is_some() { None } else { Some(Said::Plain) };
        };
        let was_proven = trust.is_proven();
        match trust.hear(line, &service.keys.now()) {
            Said::Consumed => None,
            Said::Forged => {
                tracing::warn!("a line on a control connection is not from whom it says: it does not count");
                None
            }
            // On this connection nobody else has a say any more.
            Said::Plain if was_proven => None,
            said => {
                self.hold(line);
                Some(said)
            }
        }
    }

    /// Keeps what counts only once it is known who said it.
    fn hold(&mut self, line: &[u8]) {
        let is_greeting = matches!(Report::parse(line), Report::Ours(Notice::Hello(_) | Notice::Disk { .. }));
        if is_greeting && self.held.len() < 2 && line.len() <= HELD_MAX {
            self.held.push(line.into());
        }
    }

    /// Who somebody is that says this; and what it may be taken for.
    pub(super) fn judge(&mut self, said: Identity, service: &InstallContext) -> Result<Identity, String> {
        let nobody = Identity::of(said.address);
        self.standing = Standing::Open;
        let keys = service.recorder.keys_of(&said).map_err(|e| format!("reading the keys of Pis: {e}"))?;
        let mut said = said;
        if let Some(owner) = &keys.of_mac {
            tracing::warn!(
                "{said}: its hardware address is that of {owner}, which has a key: it is left out"
            );
            said.mac = None;
        }
        let (Some(own), false) = (keys.own, said.serial.is_none() && said.mac.is_none()) else {
            return Ok(said);
        };
        let shown = self.key();
        let name = said.key().into_boxed_str();
        if shown == Some(own) {
            if self.trust.as_ref().is_some_and(|trust| trust.is_proven()) {
                self.standing = Standing::Proven;
                self.here = Some(service.proven.hold(&said));
                return Ok(said);
            }
            self.standing = Standing::Claimed(name);
        } else {
            let (device, at) = (name.to_string(), now_ms());
            let pending = PendingKey { device, key: shown, address: said.address, first_ms: at, last_ms: at };
            service.recorder.pending_key(pending);
            self.standing = Standing::Wrong(name);
        }
        Ok(nobody)
    }

    pub(super) fn key(&self) -> Option<PublicKey> {
        Some(self.trust.as_ref()?.claim()?.key)
    }

    /// It has shown that it has its key: what it said before counts now. The key belongs to its name from now on, if
    /// the Pi keeps it and nobody else has the name.
    pub(super) fn proven(&mut self, pi: &Identity, service: &InstallContext) -> Vec<Box<[u8]>> {
        match &self.standing {
            Standing::Claimed(_) => {
                return std::mem::take(&mut self.held);
            }
            Standing::Open => self.pin(pi, service),
            Standing::Proven | Standing::Wrong(_) => {}
        }
        Vec::new()
    }

    fn pin(&mut self, pi: &Identity, service: &InstallContext) {
        let claim = self.trust.as_ref().and_then(|trust| trust.claim());
        let Some(claim) = claim.filter(|claim| claim.is_kept && (pi.serial.is_some() || pi.mac.is_some()))
        else {
            return;
        };
        match tokio::task::block_in_place(|| service.recorder.pin(pi, claim.key)) {
            Ok(true) => {
                tracing::info!("{pi}: its key is {:.12} from now on", claim.key);
                self.standing = Standing::Proven;
                self.here = Some(service.proven.hold(pi));
            }
            Ok(false) => self.standing = Standing::Wrong(pi.key().into()),
            Err(e) => tracing::error!("{pi}: its key is not kept: {e}"),
        }
    }

    /// Whether orders are signed on this connection.
    pub(super) fn signs(&self, service: &InstallContext) -> bool {
        self.trust.is_some() && service.keys.now().certificate().is_some()
    }

    pub(super) const fn is_proven(&self) -> bool {
        matches!(self.standing, Standing::Proven)
    }

    /// Whether nothing that it says is to be taken for what the Pi says that it pretends to be; and why, and what to do.
    pub(super) fn refusal(&self) -> Option<String> {
        let (name, what) = match &self.standing {
            Standing::Open | Standing::Proven => return None,
            Standing::Claimed(name) => (name, "does not show that it has it"),
            Standing::Wrong(name) if self.key().is_some() => (name, "has another one"),
            Standing::Wrong(name) => (name, "shows none"),
        };
        Some(format!(
            "{name} has a key, and what says this name here {what}; if it is the same Pi (with a new card, say): piman \
             devices approve {name}"
        ))
    }

    /// Makes what goes in front of what a step sends.
    pub(super) fn prepare(&mut self, step: &Step, reason: &str, service: &InstallContext) {
        self.head.clear();
        if let (Some(trust), Some(command)) = (&self.trust, step.command(reason)) {
            let clock = Clock { seconds: now().as_secs(), nanos: now().subsec_nanos() };
            self.head = trust.head(&command, clock, &service.keys.now());
        }
    }

    pub(super) fn head(&self) -> &str {
        &self.head
    }
}

/// The names that a Pi says it has, as far as they can be names: a serial number is one, a hardware address is one, and
/// neither is another Pi's address.
pub(super) fn names(hello: &Hello<'_>) -> [Option<Box<str>>; 2] {
    let is_serial =
        |name: &&str| (8..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
    let serial = hello.serial.filter(is_serial).map(|name| name.to_ascii_lowercase().into());
    let mac = hello.mac.and_then(|name| name.parse::<crate::sys::mac::Mac>().ok());
    // Names are compared exactly, so they are kept in one spelling.
    [serial, mac.map(|mac| mac.to_string().into())]
}
