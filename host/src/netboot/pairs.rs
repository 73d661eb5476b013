//! `boot.img` and `boot.sig` that belong together, for each client from the first of them on to the last.
//!
//! A boot loader fetches `boot.sig`, and then `boot.img` over another connection. If the folder is built anew between the
//! two, it gets the image that it began with: it stays open although it was replaced.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::boot_sig::{BOOT_IMG, BOOT_SIG, BootSig, SIG_MAX, sha256};
use super::tftp::folder::{Folder, Found, NoFile};
use crate::sys::lock::lock;

/// For how long after the last request a client gets the pair that it began with: longer than any download takes.
const REMEMBERED: Duration = Duration::from_secs(1800);
/// For how many clients that is remembered.
const CLIENTS_MAX: usize = 4096;
/// Of how many folders the latest pair is kept.
const FOLDERS_MAX: usize = 1024;

/// The two files of one build.
#[derive(Debug)]
pub(super) struct Pair {
    /// Where they are: a folder below the served one, or nothing for itself.
    pub(super) folder: String,
    pub(super) sig: Arc<[u8]>,
    pub(super) image: Arc<File>,
    pub(super) length: u64,
    /// The hash of the image.
    pub(super) sha256: [u8; 32],
}

/// What says that a file is the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    id: (u64, u64),
    length: u64,
    times: [(i64, i64); 2],
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let found: Metadata = file.metadata()?;
        let times = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
        Ok(Self { id: (found.dev(), found.ino()), length: found.len(), times })
    }
}

/// What was found in a folder last.
#[derive(Debug, Default)]
struct Latest {
    /// The last pair that was one.
    pair: Option<Arc<Pair>>,
    /// The files that were looked at last, whether they are one or not: they need not be hashed again.
    seen: Option<[Stamp; 2]>,
}

#[derive(Debug, Default)]
struct Known {
    latest: HashMap<String, Latest>,
    begun: HashMap<(IpAddr, String), (Arc<Pair>, Instant)>,
}

/// All pairs of a folder.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    known: Mutex<Known>,
    /// One image is hashed at a time: who waits for this finds it hashed.
    hashing: Mutex<()>,
}

impl Pairs {
    /// The pair that this client gets who asks for `name`, which is one of the two, at the path `asked`; `None`: there is no
    /// `boot.sig`, so that `boot.img` is a file like others. Blocks for as long as an image is read that has just been
    /// built.
    ///
    /// # Errors
    /// [`NoFile`] if there is none, or what is there is no pair and never was one.
    pub(super) fn of(
        &self,
        folder: &Folder,
        ip: IpAddr,
        asked: &str,
        image: Option<&str>,
    ) -> Result<Option<Arc<Pair>>, NoFile> {
        let (path, name) = asked.rsplit_once('/').map_or(("", asked), |(path, name)| (path, name));
        let sig = match folder.open(&format!("{path}/{BOOT_SIG}"), image) {
            Err(NoFile::Missing) if name == BOOT_IMG => return Ok(None),
            found => found?,
        };
        let at = sig.name.rsplit_once('/').map_or("", |(at, _)| at).to_owned();
        if name == BOOT_IMG
            && let Some(pair) = self.begun(ip, &at)
        {
            return Ok(Some(pair));
        }
        let pair = self.latest(folder, &at, sig)?;
        self.begin(ip, Arc::clone(&pair));
        Ok(Some(pair))
    }

    /// The pair that a client began with.
    fn begun(&self, ip: IpAddr, at: &str) -> Option<Arc<Pair>> {
        let mut known = lock(&self.known);
        let (pair, last) = known.begun.get_mut(&(ip, at.to_owned()))?;
        if last.elapsed() >= REMEMBERED {
            return None;
        }
        *last = Instant::now();
        Some(Arc::clone(pair))
    }

    fn begin(&self, ip: IpAddr, pair: Arc<Pair>) {
        let mut known = lock(&self.known);
        let begun = &mut known.begun;
        begun.retain(|_, (_, last)| last.elapsed() < REMEMBERED);
        if begun.len() >= CLIENTS_MAX {
            let oldest = begun.iter().min_by_key(|(_, (_, last))| *last).map(|(who, _)| who.clone());
            oldest.map(|who| begun.remove(&who));
        }
        begun.insert((ip, pair.folder.clone()), (pair, Instant::now()));
    }

    /// The pair that is in the folder now, or was there last, if what is there now is none.
    fn latest(&self, folder: &Folder, at: &str, sig: Found) -> Result<Arc<Pair>, NoFile> {
        let image = match folder.open_beside(&sig.name, BOOT_IMG) {
            Ok(image) => image,
            Err(e) => return self.before(at).ok_or(e),
        };
        let seen = [Stamp::of(&sig.file)?, Stamp::of(&image.file)?];
        if let Some(known) = self.seen(at, &seen) {
            return known;
        }
        let _one_at_a_time = lock(&self.hashing);
        if let Some(known) = self.seen(at, &seen) {
            return known;
        }
        let pair = read(at, sig, image, &seen)?;
        if pair.is_none() {
            let place = folder.path().join(at);
            tracing::warn!(
                "{}: boot.sig is not the one of boot.img: are they being replaced? `piman doctor` says more",
                place.display()
            );
        }
        let mut known = lock(&self.known);
        if known.latest.len() >= FOLDERS_MAX && !known.latest.contains_key(at) {
            known.latest.clear();
        }
        let latest = known.latest.entry(at.to_owned()).or_default();
        latest.seen = Some(seen);
        latest.pair = pair.map(Arc::new).or_else(|| latest.pair.take());
        latest.pair.clone().ok_or(NoFile::NoPair)
    }

    /// What is known of these very files.
    fn seen(&self, at: &str, seen: &[Stamp; 2]) -> Option<Result<Arc<Pair>, NoFile>> {
        let known = lock(&self.known);
        let latest = known.latest.get(at).filter(|latest| latest.seen.as_ref() == Some(seen))?;
        Some(latest.pair.clone().ok_or(NoFile::NoPair))
    }

    fn before(&self, at: &str) -> Option<Arc<Pair>> {
        lock(&self.known).latest.get(at)?.pair.clone()
    }
}

/// Reads both; `None`: they do not belong together, or are being written.
fn read(at: &str, sig: Found, image: Found, seen: &[Stamp; 2]) -> Result<Option<Pair>, NoFile> {
    let mut bytes = Vec::new();
    sig.file.try_clone()?.take(SIG_MAX as u64).read_to_end(&mut bytes)?;
    let Some(parsed) = BootSig::parse(&bytes) else { return Ok(None) };
    let sha256 = sha256(&image.file, image.length)?;
    let now = [Stamp::of(&sig.file)?, Stamp::of(&image.file)?];
    if sha256 != parsed.sha256 || now != *seen {
        return Ok(None);
    }
    let (sig, image, length) = (bytes.into(), Arc::new(image.file), image.length);
    Ok(Some(Pair { folder: at.to_owned(), sig, image, length, sha256 }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        crate::sys::files::replace(&folder.join(name), 0o644, bytes).unwrap();
    }

    fn sig(image: &[u8]) -> String {
        BootSig { sha256: Sha256::digest(image).into(), made: 5, rsa2048: None }.to_string()
    }

    fn build(folder: &Path, image: &[u8]) {
        write(folder, BOOT_IMG, image);
        write(folder, BOOT_SIG, sig(image).as_bytes());
    }

    fn text(pair: &Pair) -> String {
        let mut bytes = vec![0; usize::try_from(pair.length).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&*pair.image, &mut bytes, 0).unwrap();
        assert_eq!(*pair.sig, *sig(&bytes).as_bytes());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_client_gets_what_it_began_with() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, pairs) = (Folder::new(dir.path()), Pairs::default());
        let client = |n: u8| IpAddr::from([10, 0, 0, n]);
        let get = |n: u8, asked: &str| pairs.of(&folder, client(n), asked, None);
        let gets = |n: u8, asked: &str| text(&get(n, asked).unwrap().unwrap());
        assert!(matches!(get(1, "boot.sig"), Err(NoFile::Missing)));
        write(dir.path(), BOOT_IMG, b"unsigned");
        assert!(matches!(get(1, "boot.img"), Ok(None)), "a file like others");

        build(dir.path(), b"one");
        assert_eq!(gets(1, "boot.sig"), "one");
        // Half of the next build: everybody still gets the first.
        write(dir.path(), BOOT_IMG, b"two");
        assert_eq!(gets(2, "boot.sig"), "one");
        assert_eq!(gets(1, "boot.img"), "one");
        write(dir.path(), BOOT_SIG, sig(b"two").as_bytes());
        assert_eq!(gets(1, "boot.img"), "one");
        assert_eq!(gets(3, "boot.sig"), "two");
        assert_eq!(gets(4, "boot.img"), "two", "without boot.sig before");
        assert_eq!(gets(2, "boot.img"), "one");
        // It begins again.
        assert_eq!(gets(1, "boot.sig"), "two");
        assert_eq!(gets(1, "boot.img"), "two");
        // The image is away for a moment.
        fs::remove_file(dir.path().join(BOOT_IMG)).unwrap();
        assert_eq!(gets(5, "boot.sig"), "two");
    }

    #[test]
    fn what_never_was_a_pair_is_none_and_is_hashed_once() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, pairs) = (Folder::new(dir.path()), Pairs::default());
        let get = || pairs.of(&folder, [10, 0, 0, 1].into(), "boot.sig", None);
        write(dir.path(), BOOT_IMG, b"one");
        write(dir.path(), BOOT_SIG, sig(b"two").as_bytes());
        for _ in 0..2 {
            assert!(matches!(get(), Err(NoFile::NoPair)));
        }
        let latest = lock(&pairs.known).latest.get("").map(|l| (l.pair.is_some(), l.seen.is_some()));
        assert_eq!(latest, Some((false, true)));
        // Overwritten in place, as `cp` does it.
        fs::write(dir.path().join(BOOT_SIG), sig(b"one")).unwrap();
        assert!(get().is_ok());
    }

    #[test]
    fn each_folder_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, pairs) = (Folder::new(dir.path()), Pairs::default());
        for (at, image) in [("", "all"), ("abcdef01", "its own"), ("images/lab", "lab's")] {
            let at = dir.path().join(at);
            fs::create_dir_all(&at).unwrap();
            build(&at, image.as_bytes());
        }
        let get = |asked: &str, image| {
            text(&pairs.of(&folder, [10, 0, 0, 1].into(), asked, image).unwrap().unwrap())
        };
        for asked in ["boot.sig", "boot.img", "boot.sig"] {
            let own = |at: &str, image| get(&format!("{at}{asked}"), image);
            assert_eq!(own("", None), "all");
            assert_eq!(own("abcdef01/", None), "its own");
            assert_eq!(own("11111111/", None), "all");
            assert_eq!(own("11111111/", Some("lab")), "lab's");
        }
        assert!(matches!(pairs.of(&folder, [10, 0, 0, 1].into(), "../boot.img", None), Err(NoFile::Outside)));
    }
}
