//! Messages of a framed connection while they come in, within the limits of memory.

use std::future::{Ready, ready};
use std::sync::atomic::{AtomicUsize, Ordering};

use piman_core::messages::{MessageSink, Piece};
use piman_core::rpc::auth::LOGIN_MAX;

use super::engine::MESSAGE_MAX;

/// A connection may hold so many bytes of messages that are not handled yet.
const PART: usize = 64 << 10;
/// Beyond that it may hold so many.
const CONNECTION_MAX: usize = 4 * MESSAGE_MAX;
/// What is kept of a message that is dropped: which call it belongs to.
const HEAD: usize = 256;
/// Of how many at once; of more than these the peer is told nothing.
const HEADS_MAX: usize = 1000;
/// Beyond [`PART`] all connections together may hold so many: a thousand peers that each send most of a long
/// message must not take all memory.
pub(super) const PARTS_MAX: usize = 64 << 20;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 32;
/// What all connections hold beyond their [`PART`].
static PARTS: AtomicUsize = AtomicUsize::new(0);

/// The part of [`PARTS_MAX`] that one connection has taken.
#[derive(Debug, Default)]
pub(super) struct Share(usize);

impl Share {
    /// Takes what `bytes` need; whether there was enough.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        if bytes > CONNECTION_MAX {
            return false;
        }
        let need = bytes.saturating_sub(PART);
        if need <= self.0 {
            return true;
        }
        let more = need - self.0;
        let taken = PARTS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|sum| *sum <= PARTS_MAX)
        });
        if taken.is_ok() {
            self.0 = need;
        }
        taken.is_ok()
    }

    pub(super) fn give_back(&mut self) {
        PARTS.fetch_sub(std::mem::take(&mut self.0), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Why a long message is not taken at the moment.
pub(super) fn too_much() -> String {
    format!(
        "more than {} MB of one peer, or {} MB of all, are waiting in long messages: send it again later",
        CONNECTION_MAX >> 20,
        PARTS_MAX >> 20
    )
}

/// What came of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mail {
    /// It is here.
    Whole(Vec<u8>),
    /// There was no room for it; its beginning.
    Dropped(Vec<u8>),
}

/// The messages that came in the course of one step.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    logged_in: bool,
    mail: Vec<Mail>,
    /// The message that has not come whole.
    part: Vec<u8>,
    /// In the middle of a message that is dropped.
    drops: bool,
    /// The bytes of all of them.
    held: usize,
    share: Share,
    flooded: bool,
}

impl Mailbox {
    /// For a connection whose login is still to come: no more than one login is taken.
    pub(super) fn login() -> Self {
        Self::default()
    }

    /// For a connection after its login.
    pub(super) fn open() -> Self {
        Self { logged_in: true, ..Self::default() }
    }

    /// From now on messages may have their full length.
    pub(super) fn logged_in(&mut self) {
        self.logged_in = true;
    }

    /// Whether more has come than is taken before the login.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded
    }

    /// Whether a message has come.
    pub(super) fn is_empty(&self) -> bool {
        self.mail.is_empty()
    }

    /// The messages that have come; they must be handled at once.
    pub(super) fn take(&mut self) -> Vec<Mail> {
        self.held = self.part.len();
        if self.held == 0 {
            self.share.give_back();
        }
        std::mem::take(&mut self.mail)
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        if self.logged_in { self.share.take(bytes) } else { bytes <= LOGIN_MAX }
    }

    /// There is no room for the rest of this message, of which these bytes are next.
    fn drop_part(&mut self, next: &[u8]) {
        self.drops = true;
        self.flooded = !self.logged_in;
        self.held = self.held.saturating_sub(self.part.len());
        let mut head = std::mem::take(&mut self.part);
        if self.flooded
            || self.mail.iter().filter(|mail| matches!(mail, Mail::Dropped(_))).count() >= HEADS_MAX
        {
            return;
        }
        head.truncate(HEAD);
        let more = HEAD - head.len();
        head.extend_from_slice(next.get(..more).unwrap_or(next));
        head.shrink_to_fit();
        self.part = head;
    }

    fn put(&mut self, piece: Piece<'_>) {
        let cost = piece.bytes.len() + if piece.offset == 0 { OVERHEAD } else { 0 };
        if !self.drops && self.has_room(self.held + cost) {
            // Memory grows with what has come, and not with what was announced.
            self.part.extend_from_slice(piece.bytes);
            self.held += cost;
        } else if !self.drops {
            self.drop_part(piece.bytes);
        }
        if piece.is_last() {
            let part = std::mem::take(&mut self.part);
            match (std::mem::take(&mut self.drops), part.is_empty()) {
                (false, _) => self.mail.push(Mail::Whole(part)),
                (true, false) => self.mail.push(Mail::Dropped(part)),
                (true, true) => {}
            }
        }
    }
}

impl MessageSink for Mailbox {
    fn piece(&mut self, piece: Piece<'_>) -> impl Future<Output = ()> {
        self.put(piece);
        let done: Ready<()> = ready(());
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(mailbox: &mut Mailbox, bytes: &[u8]) {
        let size = bytes.len() as u32;
        let mut offset = 0;
        for bytes in bytes.chunks(2048) {
            mailbox.put(Piece { size, offset, bytes });
            offset += bytes.len() as u32;
        }
    }

    #[test]
    fn before_the_login_a_login_and_no_more() {
        let mut mailbox = Mailbox::login();
        send(&mut mailbox, &[1; 100]);
        assert_eq!(mailbox.take(), [Mail::Whole(vec![1; 100])]);
        for _ in 0..10_000 {
            mailbox.put(Piece { size: 0, offset: 0, bytes: &[] });
        }
        assert!(mailbox.is_flooded() && mailbox.mail.len() <= LOGIN_MAX / OVERHEAD);
        let mut mailbox = Mailbox::login();
        send(&mut mailbox, &vec![1; MESSAGE_MAX]);
        assert!(mailbox.is_flooded() && mailbox.is_empty() && mailbox.part.capacity() <= LOGIN_MAX);
    }

    #[test]
    fn one_connection_and_all_together_have_a_limit() {
        let mut mailbox = Mailbox::open();
        let long = vec![1; MESSAGE_MAX];
        for _ in 0..8 {
            send(&mut mailbox, &long);
        }
        assert!(mailbox.held <= CONNECTION_MAX + PART, "{}", mailbox.held);
        let mail = mailbox.take();
        let (whole, dropped) = mail.split_at(3);
        assert!(whole.iter().all(|m| matches!(m, Mail::Whole(_))));
        // Whoever waits for an answer gets one: it is known of each which call it was.
        assert_eq!(dropped, [0; 5].map(|_| Mail::Dropped(long[..HEAD].into())));
        assert_eq!(mailbox.share.0, 0);
        // Short ones fit whatever others hold.
        let others: Vec<_> = (0..PARTS_MAX / MESSAGE_MAX + 1)
            .map(|_| {
                let mut other = Mailbox::open();
                other.put(Piece { size: u32::MAX, offset: 0, bytes: &long });
                other
            })
            .collect();
        assert!(PARTS.load(Ordering::Relaxed) <= PARTS_MAX);
        send(&mut mailbox, &[1; 1000]);
        assert_eq!(mailbox.take(), [Mail::Whole(vec![1; 1000])]);
        drop(others);
        assert_eq!(PARTS.load(Ordering::Relaxed), 0);
    }
}
