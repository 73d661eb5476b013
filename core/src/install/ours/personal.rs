//! Where the bundle is that makes a card one Pi's own.

use super::{Installation, number, put, put_installation};
use crate::hash::Hash;
use crate::text::{Sink, ToText};

/// A bundle on the fetch port ([`personal`](crate::install::personal)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Personal {
    /// BLAKE3 of it, which names it when fetching.
    pub hash: Hash,
    /// Its size, in bytes.
    pub bytes: u32,
}

impl Personal {
    /// Reads the fields into `place`, where they stay; `false` if one is missing.
    pub(super) fn read(&mut self, fields: &[u8]) -> bool {
        self.bytes = number(fields, "personal-bytes").unwrap_or(0);
        self.bytes > 0 && self.hash.read(fields, "personal")
    }

    pub(super) fn put(to: &mut impl Sink, personal: Option<Self>) {
        let Some(Self { hash, bytes }) = personal else { return };
        to.text(" personal=");
        hash.write_text(to);
        put(to, " personal-bytes=", bytes.into());
    }
}

/// A bundle for the system that is on the card, before it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BootPersonal {
    /// The bundle.
    pub personal: Personal,
    /// The port that sends it.
    pub fetch_port: u16,
    /// How this is called; the proof on the card names it.
    pub installation: Option<Installation>,
}

impl BootPersonal {
    /// Reads the fields into it, where they stay; `false` if one is missing.
    pub(in crate::install) fn read(&mut self, fields: &[u8]) -> bool {
        self.fetch_port = number(fields, "fetch").unwrap_or(0);
        self.installation = Installation::field(fields);
        self.fetch_port > 0 && self.personal.read(fields)
    }
}

impl ToText for BootPersonal {
    fn write_text(&self, to: &mut impl Sink) {
        to.text(super::MARK);
        to.text(" personal");
        Personal::put(to, Some(self.personal));
        put(to, " fetch=", self.fetch_port.into());
        put_installation(to, self.installation);
    }
}
