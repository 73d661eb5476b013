//! What all transfers of a server share: the folder, the limits, the rules, who is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::admission::{Admission, Load};
use super::folder::{Folder, own_part};
use super::limits::Limits;
use super::path::Paths;
use crate::netboot::image_folder::ImageFolders;
use crate::netboot::only_known::OnlyKnown;

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who asked.
    pub peer: SocketAddr,
    /// For what, as it was sent.
    pub asked: String,
    /// What became of it.
    pub what: What,
    /// Whether the client has answered: then its address is its own, and not one that somebody wrote into a packet.
    pub proven: bool,
    /// How much there was to do besides.
    pub load: Load,
}

impl Report {
    /// The serial number or hardware address in front of the name, if there is one.
    #[must_use]
    pub fn own_part(&self) -> Option<&str> {
        own_part(&self.asked).map(|(own, _)| own)
    }
}

/// What became of a request.
#[derive(Debug, Clone)]
pub enum What {
    /// The client has all of it.
    Sent {
        /// Where the file was in the folder.
        name: String,
        /// Its length in bytes.
        bytes: u64,
        /// From the request to the last acknowledgement.
        took: Duration,
        /// Blocks that were sent more than once.
        sent_twice: u64,
    },
    /// It waits for its turn; so many others are first. Another report follows.
    Waiting(u32),
    /// There is no such file, which is an everyday thing.
    Missing,
    /// The client asked for the size only, or changed its mind.
    Stopped,
    /// It is not in the device list, under this name.
    Refused(String),
    /// It failed, or was refused for another reason.
    Failed(String),
}

/// Who is told of everything that happened.
pub type Tell = Arc<dyn Fn(Report) + Send + Sync>;

pub(super) struct Server {
    pub(super) folder: Folder,
    pub(super) limits: Limits,
    pub(super) tell: Tell,
    pub(super) gate: Arc<Admission>,
    pub(super) paths: Paths,
    pub(super) rules: Rules,
}

/// Who gets what.
#[derive(Default)]
pub struct Rules {
    /// Those alone are answered that it does not refuse; `None`: all.
    pub only_known: Option<Arc<OnlyKnown>>,
    /// Who boots from the folder of an image; `None`: nobody.
    pub images: Option<Arc<ImageFolders>>,
}

impl Server {
    pub(super) fn report(&self, peer: SocketAddr, asked: String, what: What, proven: bool) {
        (self.tell)(Report { peer, asked, what, proven, load: self.gate.load() });
    }
}
