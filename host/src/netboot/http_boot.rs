//! Which file a boot loader gets by HTTP: `boot.sig` and `boot.img`, and any other of the boot folder, by the rules of TFTP.
//!
//! A Pi's boot loader asks for `/HTTP_PATH/boot.sig` and `/HTTP_PATH/boot.img`, and says nothing of itself but the model
//! of its board. So a Pi has files of its own if its `HTTP_PATH` is its serial number; else it is known by its hardware
//! address. Without `HTTP_PATH` it asks for `/net_install/...`, which is the folder itself, too.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::boot_events::Timeline;
use super::boot_sig::{BOOT_IMG, BOOT_SIG, hex};
use super::image_folder::ImageFolders;
use super::only_known::OnlyKnown;
use super::pairs::Pairs;
use super::tftp::What;
use super::tftp::folder::{Folder, NoFile};

/// What a boot loader asks for if its configuration has no path.
const USUAL_PATH: &str = "net_install/";

/// A file for a client.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub bytes: Bytes,
    /// How many there are.
    pub length: u64,
    /// Where it was, below the folder.
    pub name: String,
    /// What changes when its bytes do.
    pub tag: String,
    /// When it was changed last, if that is known.
    pub modified: Option<SystemTime>,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum Bytes {
    /// In the file.
    File(Arc<File>),
    /// In memory.
    Memory(Arc<[u8]>),
}

/// Finds the files, and takes notes of what became of them.
pub struct HttpBoot {
    folder: Folder,
    only_known: Option<Arc<OnlyKnown>>,
    images: Arc<ImageFolders>,
    timeline: Arc<Timeline>,
    pairs: Pairs,
}

impl HttpBoot {
    pub(super) fn new(
        folder: Folder,
        only_known: Option<Arc<OnlyKnown>>,
        images: Arc<ImageFolders>,
        timeline: Arc<Timeline>,
    ) -> Self {
        Self { folder, only_known, images, timeline, pairs: Pairs::default() }
    }

    /// The file for this path. It may have to wait for a disk, and for the hash of an image.
    ///
    /// # Errors
    /// [`NoFile`] if there is none, or it must not be sent; that is noted.
    pub fn open(&self, ip: IpAddr, path: &str) -> Result<Opened, NoFile> {
        let asked = path.trim_start_matches('/');
        let refused = self.only_known.as_ref().and_then(|known| known.refuses_file(ip, asked));
        if let Some(name) = refused {
            self.timeline.http(ip, asked, &What::Refused(name));
            return Err(NoFile::NotListed);
        }
        let mut opened = self.find(ip, asked);
        if let (Err(NoFile::Missing), Some(rest)) = (&opened, asked.strip_prefix(USUAL_PATH)) {
            opened = self.find(ip, rest);
        }
        opened.inspect_err(|e| match e {
            NoFile::Missing => self.timeline.http(ip, asked, &What::Missing),
            // Anybody asks for anything: that is no news of a Pi.
            NoFile::Outside | NoFile::NotListed => tracing::debug!("{ip}: http: {asked}: {e}"),
            NoFile::NoPair | NoFile::Unreadable(_) => {
                self.timeline.http(ip, asked, &What::Failed(e.to_string()));
            }
        })
    }

    fn find(&self, ip: IpAddr, asked: &str) -> Result<Opened, NoFile> {
        let image = self.images.of(ip, asked);
        let last = asked.rsplit('/').next().unwrap_or_default();
        if matches!(last, BOOT_IMG | BOOT_SIG)
            && let Some(pair) = self.pairs.of(&self.folder, ip, asked, image.as_deref())?
        {
            let (bytes, length, tag) = match last {
                BOOT_SIG => {
                    let tag = blake3::hash(&pair.sig).to_string();
                    (Bytes::Memory(Arc::clone(&pair.sig)), pair.sig.len() as u64, tag)
                }
                _ => (Bytes::File(Arc::clone(&pair.image)), pair.length, hex(&pair.sha256)),
            };
            let name = match pair.folder.as_str() {
                "" => last.to_owned(),
                at => format!("{at}/{last}"),
            };
            return Ok(Opened { bytes, length, name, tag, modified: None });
        }
        let found = self.folder.open(asked, image.as_deref())?;
        let about = found.file.metadata()?;
        let tag = format!("{:x}-{:x}-{:x}.{:x}", about.ino(), about.len(), about.mtime(), about.mtime_nsec());
        let (length, name, modified) = (found.length, found.name, about.modified().ok());
        Ok(Opened { bytes: Bytes::File(Arc::new(found.file)), length, name, tag, modified })
    }

    /// A client has the file, to its end, or not all of it.
    pub fn sent(&self, ip: IpAddr, path: &str, what: &What) {
        self.timeline.http(ip, path.trim_start_matches('/'), what);
    }
}
