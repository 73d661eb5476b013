//! One channel: what a member sends, all others get.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piman_core::text::shown_or_space;

use super::settings::Kind;
use crate::messages::transport::{NotSent, Peer};
use crate::sys::lock::lock;

/// How long senders wait for a member that is behind. After that it must keep up by itself, or its queue is
/// full and it is disconnected.
const GRACE: Duration = Duration::from_secs(3);
/// The longest name of a member of a chat, in characters.
const NAME_MAX: usize = 32;
/// The most names that `/who` shows.
const SHOWN_MAX: usize = 100;

/// A channel and its members.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) name: String,
    kind: Kind,
    next: AtomicU64,
    members: Mutex<BTreeMap<u64, Member>>,
    /// Somebody is behind.
    pressed: AtomicBool,
    /// The server is ending: nobody reads who leaves.
    ending: AtomicBool,
}

#[derive(Debug)]
struct Member {
    peer: Peer,
    name: String,
    /// Since when it is behind.
    behind: Option<Instant>,
    /// It was too slow and gets nothing more.
    dropped: bool,
}

impl Channel {
    pub(super) fn new(name: String, kind: Kind) -> Self {
        Self {
            name,
            kind,
            next: AtomicU64::new(1),
            members: Mutex::default(),
            pressed: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }
    }

    /// No more news of members who leave.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// One more member; returns its number.
    pub(super) fn join(&self, peer: &Peer) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("guest-{id}");
        let count = {
            let mut members = lock(&self.members);
            members
                .insert(id, Member { peer: peer.clone(), name: name.clone(), behind: None, dropped: false });
            here(&members).count()
        };
        tracing::info!("messages: {}: {peer} has joined, {}", self.name, connections(count));
        if self.kind == Kind::Chat {
            // By this line `piman messages chat` knows that it may choose a name here.
            self.answer(id, peer, &format!("[piman] you are {name} ({})", connections(count)));
            self.spread(id, format!("[{name}] **joined the chat ({})", connections(count)).as_bytes());
        }
        id
    }

    /// One member less.
    pub(super) fn leave(&self, id: u64, peer: &Peer, why: &str) {
        let (gone, count) = {
            let mut members = lock(&self.members);
            (members.remove(&id), here(&members).count())
        };
        tracing::info!("messages: {}: {peer} has left{why}, {}", self.name, connections(count));
        if let Some(gone) = gone
            && self.kind == Kind::Chat
            && !self.ending.load(Ordering::Relaxed)
        {
            self.spread(id, format!("[{}] **left the chat ({})", gone.name, connections(count)).as_bytes());
        }
    }

    /// Takes a message of a member.
    pub(super) fn message(&self, id: u64, peer: &Peer, message: Vec<u8>) {
        match self.kind {
            Kind::Relay => self.spread(id, &message),
            Kind::Chat => self.send_from(id, peer, &message),
        }
    }

    /// Sends to all but one. A member whose queue is full is dropped: it must not hold up the others, and
    /// what waits for it must not grow.
    fn spread(&self, from: u64, message: &[u8]) {
        let message: Arc<[u8]> = message.into();
        let mut members = lock(&self.members);
        for (_, member) in members.iter_mut().filter(|(id, member)| **id != from && !member.dropped) {
            if member.peer.queue(Arc::clone(&message)) == Err(NotSent::Full) {
                tracing::warn!(
                    "messages: {}: {} reads too slowly, {} messages wait for it: it is disconnected",
                    self.name,
                    member.peer,
                    member.peer.waiting()
                );
                (member.dropped, member.behind) = (true, None);
                member.peer.cut();
            } else if member.peer.is_behind() {
                member.behind.get_or_insert_with(Instant::now);
                self.pressed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether a member is behind for which senders still wait.
    pub(super) fn is_congested(&self) -> bool {
        if !self.pressed.load(Ordering::Relaxed) {
            return false;
        }
        let mut members = lock(&self.members);
        let (mut behind, mut waits) = (false, false);
        for member in members.values_mut().filter(|m| !m.dropped) {
            if !member.peer.is_behind() {
                member.behind = None;
            }
            behind |= member.behind.is_some();
            waits |= member.behind.is_some_and(|since| since.elapsed() < GRACE);
        }
        self.pressed.store(behind, Ordering::Relaxed);
        waits
    }

    /// A line of a chat, or a command.
    fn send_from(&self, id: u64, peer: &Peer, message: &[u8]) {
        let text = String::from_utf8_lossy(message);
        // Other members' terminals show it: no escape sequences, and no second line that looks like
        // somebody else's.
        let text: String = text.trim_end().chars().map(shown_or_space).collect();
        match text.split_once(' ').unwrap_or((&text, "")) {
            ("/who", "") => self.answer(id, peer, &self.who()),
            ("/name", name) => self.rename(id, peer, name.trim()),
            _ => {
                let name = lock(&self.members).get(&id).map(|m| m.name.clone());
                if let Some(name) = name {
                    self.spread(id, format!("[{name}] {text}").as_bytes());
                }
            }
        }
    }

    /// Answers one member alone.
    fn answer(&self, id: u64, peer: &Peer, text: &str) {
        // A full queue is found by the next message to all.
        if let Err(e) = peer.queue(text.as_bytes()) {
            tracing::debug!("messages: {}: member {id} gets no answer: {e}", self.name);
        }
    }

    fn who(&self) -> String {
        let members = lock(&self.members);
        let names: Vec<&str> = here(&members).map(|m| m.name.as_str()).collect();
        let shown = names.get(..SHOWN_MAX).unwrap_or(&names).join(", ");
        let more = if names.len() > SHOWN_MAX { ", ..." } else { "" };
        format!("[piman] {}: {shown}{more}", connections(names.len()))
    }

    fn rename(&self, id: u64, peer: &Peer, name: &str) {
        let fits = !name.is_empty() && name.chars().count() <= NAME_MAX && !name.contains(['[', ']']);
        if !fits || name == "piman" {
            let text = format!("[piman] this cannot be a name: use 1 to {NAME_MAX} characters, no brackets");
            return self.answer(id, peer, &text);
        }
        let before = {
            let mut members = lock(&self.members);
            if members.iter().any(|(other, m)| *other != id && m.name == name) {
                drop(members);
                return self.answer(id, peer, &format!("[piman] the name {name} is taken"));
            }
            members.get_mut(&id).map(|m| std::mem::replace(&mut m.name, name.to_owned()))
        };
        if let Some(before) = before.filter(|before| before != name) {
            self.spread(id, format!("[{before}] **is now called {name}").as_bytes());
        }
    }
}

/// The members that get messages.
fn here(members: &BTreeMap<u64, Member>) -> impl Iterator<Item = &Member> {
    members.values().filter(|m| !m.dropped)
}

fn connections(count: usize) -> String {
    match count {
        1 => "1 active connection".into(),
        n => format!("{n} active connections"),
    }
}
