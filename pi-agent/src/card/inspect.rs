//! The proof of a finished installation: one block in the root filesystem, written last,
//! and the check of a card for it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mkext4::reader::{Fs, ReadAt};
use mkext4::spec::ROOT_INO;
use piman_core::hash::Hash;
use piman_core::hosted::causes::in_one_line;
use piman_core::hosted::ext4::reader;
use piman_core::install::receipt::{NAME, Proof, SIZE};
use piman_core::install::{Found as Kind, Installation};
use rustix::fs::OFlags;

use super::content::filesystem::is_ext;
use super::content::source::{DiskSource, Region};
use super::content::{Contents, fingerprint};
use super::disk::{RootArea, RootNode, Window, is_root_withheld, open_to_read, read_only_node};
use super::disk::{root_in_table, sector_bytes};
use super::mount::Mounted;
use super::scratch_dir::ScratchDir;
use super::whole_disk::{self, WholeDisk};

/// What is on a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Card {
    /// Nothing at all.
    Blank,
    /// A finished installation.
    Installed(Proof),
    /// A finished installation whose filesystem is damaged.
    Damaged {
        /// What was installed.
        proof: Proof,
        /// What is wrong.
        why: String,
        /// Whether the kernel mounts it all the same.
        mounts: bool,
    },
    /// An installation that began and did not end.
    Incomplete,
    /// A system without a proof: installed by something else.
    Unmarked,
    /// Somebody else's, and why it is not ours.
    Foreign(String),
    /// It cannot be read, and why.
    Unreadable(String),
}

impl Card {
    /// Whether to report `IS_INSTALLED`. `trust_unmarked` takes a system without a proof
    /// for installed, as the old script did.
    #[must_use]
    pub fn is_installed(&self, trust_unmarked: bool) -> bool {
        match self {
            Self::Installed(_) | Self::Damaged { mounts: true, .. } => true,
            Self::Unmarked => trust_unmarked,
            _ => false,
        }
    }

    /// What the server is told that it is; a system without a proof that is trusted is one of ours.
    #[must_use]
    pub fn kind(&self, trust_unmarked: bool) -> Kind {
        match self {
            Self::Blank => Kind::Blank,
            Self::Installed(_) => Kind::Ours,
            Self::Unmarked if trust_unmarked => Kind::Ours,
            Self::Damaged { .. } => Kind::Damaged,
            Self::Incomplete => Kind::Incomplete,
            Self::Unmarked | Self::Foreign(_) => Kind::Foreign,
            Self::Unreadable(_) => Kind::Unreadable,
        }
    }

    /// The image that is installed.
    #[must_use]
    pub fn image(&self) -> Option<Hash> {
        self.proof().map(|proof| proof.image)
    }

    /// By which installation, if piman gave it a number.
    #[must_use]
    pub fn installation(&self) -> Option<Installation> {
        self.proof().and_then(|proof| proof.installation)
    }

    /// What made it one Pi's own, if anything did.
    #[must_use]
    pub fn personal(&self) -> Option<Hash> {
        self.proof().and_then(|proof| proof.personal)
    }

    /// The counter of the signed image that is installed; 0: there is none.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.proof().map_or(0, |proof| proof.counter)
    }

    /// Whether the image of a whole disk brought the partition with this number.
    pub(crate) fn brought(&self, number: u32) -> bool {
        let marks = self.proof().and_then(|proof| proof.disk.as_ref());
        marks.is_some_and(|marks| marks.parts.iter().any(|part| part.number == number))
    }

    /// Whether it is the image of a whole disk.
    pub(crate) fn is_whole_disk(&self) -> bool {
        self.proof().is_some_and(|proof| proof.disk.is_some())
    }

    fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Installed(proof) | Self::Damaged { proof, .. } => Some(proof),
            _ => None,
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("not installed: it is blank"),
            Self::Installed(p) => write!(f, "installed: image {:.16} by agent {}", p.image, p.agent),
            Self::Damaged { proof, why, mounts } => {
                let mounts = if *mounts { "the kernel mounts it" } else { "it cannot be booted" };
                write!(f, "installed and damaged: image {:.16}: {why}; {mounts}", proof.image)
            }
            Self::Incomplete => f.write_str("not installed: the installation was not finished"),
            Self::Unmarked => f.write_str("not installed: there is a system, but no proof that it is whole"),
            Self::Foreign(why) => write!(f, "not installed: {why}"),
            Self::Unreadable(why) => write!(f, "not readable: {why}"),
        }
    }
}

/// What is on a card, and what people and the server are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub card: Card,
    /// Its table, its partitions and what is in them, in words.
    pub contents: String,
    /// A fingerprint of what is on it.
    pub print: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.card {
            Card::Blank | Card::Unreadable(_) => self.card.fmt(f),
            card => write!(f, "{card} ({})", self.contents),
        }
    }
}

/// Looks at a disk or a file in place of one, without writing anything.
///
/// # Errors
/// If it is no disk or cannot be opened: then nothing is known about it.
pub fn check(path: &Path) -> anyhow::Result<Card> {
    survey_path(path).map(|found| found.card)
}

/// Like [`check`], with all that was found.
///
/// # Errors
/// Like [`check`].
pub fn survey_path(path: &Path) -> anyhow::Result<Found> {
    let (file, bytes, used) = open_to_read(path)?;
    let node = |root: &RootArea| read_only_node(&file, root);
    // What is in use changes while it is looked at, and is mounted already.
    Ok(survey(&file, bytes, None, &[], if used { None } else { Some(&node) }))
}

/// Gives the root partition as something that the kernel can mount.
pub(crate) type Node<'a> = &'a dyn Fn(&RootArea) -> anyhow::Result<RootNode>;

/// Looks at an open disk of so many bytes, which calls itself `id`. `node` makes its root partition something that
/// the kernel can be asked about. `places` are further places, in bytes, that are empty on a blank disk.
pub(crate) fn survey(
    disk: &File,
    bytes: u64,
    id: Option<&str>,
    places: &[u64],
    node: Option<Node<'_>>,
) -> Found {
    let source = DiskSource { file: disk, bytes, sector: sector_bytes(disk) };
    let whole = Region::whole(&source);
    let contents = match Contents::of(&whole, places) {
        Ok(contents) => contents,
        Err(wrong) => {
            let print =
                fingerprint(&[&bytes.to_le_bytes(), id.unwrap_or_default().as_bytes(), b"unreadable"]);
            let why = wrong.to_string();
            return Found { card: Card::Unreadable(why.clone()), contents: why, print };
        }
    };
    let card = if contents.blank { Card::Blank } else { judge(disk, bytes, node) };
    let more = card.proof().map(Proof::encode).unwrap_or_default();
    let print = contents.print(bytes, id, &more);
    Found { card, contents: contents.text, print }
}

/// What is on an open disk of so many bytes, as far as it can be read without the kernel. A blank one counts as
/// foreign here.
#[must_use]
pub fn look(disk: &File, bytes: u64) -> Card {
    judge(disk, bytes, None)
}

fn judge(disk: &File, bytes: u64, node: Option<Node<'_>>) -> Card {
    if is_root_withheld(disk) {
        return Card::Incomplete;
    }
    match whole_disk::find(disk, bytes) {
        Ok(Some(found)) => of_whole_disk(disk, found, node),
        Ok(None) => of_root_filesystem(disk, bytes, node),
        // That matters only where no other proof is.
        Err(wrong) => match of_root_filesystem(disk, bytes, node) {
            Card::Foreign(_) | Card::Unmarked => Card::Unreadable(wrong.to_string()),
            card => card,
        },
    }
}

/// The root filesystem of an open disk: that of a whole disk's image, or the one where our layouts have it.
#[must_use]
pub(crate) fn root(disk: &File, bytes: u64) -> Option<RootArea> {
    match whole_disk::find(disk, bytes) {
        Ok(Some(found)) => found.root,
        Ok(None) | Err(_) => root_in_table(disk, bytes),
    }
}

/// What there is where the proof of a whole disk's image is, and what that is bound to.
fn of_whole_disk(disk: &File, found: WholeDisk, node: Option<Node<'_>>) -> Card {
    let proof = found.proof;
    // What the kernel's ext4 does not know is not looked into.
    let Some(root) = found.root else { return Card::Installed(proof) };
    let Read { damage, mounts, .. } = by_reader(disk, &root);
    match (node.and_then(|node| by_kernel(node, &root)), damage) {
        (Some(Err(why)), _) => Card::Damaged { proof, why, mounts: false },
        (_, Some(why)) => Card::Damaged { proof, why, mounts },
        (_, None) => Card::Installed(proof),
    }
}

fn of_root_filesystem(disk: &File, bytes: u64, node: Option<Node<'_>>) -> Card {
    let Some(root) = root_in_table(disk, bytes) else {
        return Card::Foreign("there is no partition table with a root partition".into());
    };
    let source = DiskSource { file: disk, bytes, sector: sector_bytes(disk) };
    match is_ext(&Region::whole(&source).part(root.offset, root.length)) {
        Ok(true) => {}
        Ok(false) => return Card::Foreign("there is no root filesystem that the kernel's ext4 knows".into()),
        Err(wrong) => return Card::Unreadable(wrong.to_string()),
    }
    let read = by_reader(disk, &root);
    match node.and_then(|node| by_kernel(node, &root)) {
        Some(Ok(view)) => conclude(view, read.damage.map(|damage| (damage, read.mounts))),
        Some(Err(refusal)) => match (proof(&read.view), &read.view.proof) {
            (Some(proof), _) => Card::Damaged { proof, why: refusal, mounts: false },
            (None, Some(_)) => Card::Incomplete,
            (None, None) => Card::Foreign(refusal),
        },
        // The reader alone knows less than the kernel.
        None => match (read.damage.or(read.unknown), proof(&read.view)) {
            (Some(why), Some(proof)) => Card::Damaged { proof, why, mounts: false },
            (Some(why), None) => Card::Foreign(why),
            (None, _) => conclude(read.view, None),
        },
    }
}

/// What is in a root directory.
#[derive(Debug, Default)]
struct View {
    /// The content of the proof's file, if there is one.
    proof: Option<Vec<u8>>,
    /// Whether it looks like that of a system.
    system: bool,
}

fn proof(view: &View) -> Option<Proof> {
    Proof::parse(view.proof.as_ref()?)
}

fn conclude(view: View, damage: Option<(String, bool)>) -> Card {
    match (proof(&view), damage) {
        (Some(proof), Some((why, mounts))) => Card::Damaged { proof, why, mounts },
        (Some(proof), None) => Card::Installed(proof),
        (None, _) if view.proof.is_some() => Card::Incomplete,
        (None, Some((why, _))) => Card::Foreign(why),
        (None, None) if view.system => Card::Unmarked,
        (None, None) => Card::Foreign("the root filesystem holds no system".into()),
    }
}

/// What our own reader sees, without the kernel.
#[derive(Debug, Default)]
struct Read {
    view: View,
    /// What is wrong with the filesystem.
    damage: Option<String>,
    /// Whether the kernel mounts it in spite of that.
    mounts: bool,
    /// Why the reader cannot read it, which says nothing of the filesystem.
    unknown: Option<String>,
}

fn by_reader(disk: &File, root: &RootArea) -> Read {
    let window = Window::new(disk, root.offset, root.length);
    let mut read = Read::default();
    let mut state = [0; 2];
    // Whatever else it has: the kernel writes down what it found.
    if window.read_exact_at(STATE, &mut state).is_ok() && state[0] & HAS_ERRORS != 0 {
        read.damage = Some("the kernel has found errors in the root filesystem".into());
        read.mounts = true;
    }
    let fs = match reader::open(Replayed(window)) {
        Ok(fs) => fs,
        Err(mkext4::Error::Unsupported(what)) => {
            read.unknown = Some(format!("the root filesystem has {what}"));
            return read;
        }
        Err(e) => {
            read.unknown = Some(format!("the root filesystem cannot be read ({e})"));
            return read;
        }
    };
    let sb = fs.superblock();
    if sb.blocks_count.saturating_mul(4096) > root.length {
        read.damage = Some("the root filesystem is larger than its partition".into());
        read.mounts = false;
    } else if let Some(wrong) = broken(&fs, journal_waits(disk, root)) {
        read.damage = Some(format!("the root filesystem is damaged: {wrong}"));
        read.mounts = false;
    }
    if let Err(e) = reader::small(&fs, ROOT_INO, reader::BYTES_MAX) {
        read.unknown = Some(format!("the root directory cannot be read ({e})"));
        return read;
    }
    match (file_in_root(&fs, NAME), fs.lookup(ROOT_INO, b"bin")) {
        (Ok(proof), Ok(bin)) => read.view = View { proof, system: bin.is_some() },
        (Err(e), _) | (_, Err(e)) => {
            read.unknown = Some(format!("the root directory cannot be read ({e})"));
        }
    }
    read
}

/// What the kernel sees when it mounts the root filesystem and writes nothing; an error is what it says. `None`: it
/// cannot be asked.
fn by_kernel(node: Node<'_>, root: &RootArea) -> Option<Result<View, String>> {
    let place = ScratchDir::scratch().ok()?;
    let node = node(root).inspect_err(|e| log::debug!("the kernel cannot be asked: {e:#}")).ok()?;
    let mounted = match Mounted::to_look_at(&node, place.path()) {
        Ok(mounted) => mounted,
        Err(e) if e.downcast_ref() == Some(&rustix::io::Errno::PERM) => return None,
        Err(e) => return Some(Err(refusal(e, "the kernel does not mount the root filesystem"))),
    };
    let system = root_directory(mounted.place())
        .map_err(|e| refusal(e.into(), "the kernel cannot read the root directory"));
    let proof =
        || mounted_proof(mounted.place()).map_err(|e| refusal(e.into(), "the kernel cannot read the proof"));
    Some(system.and_then(|system| Ok(View { proof: proof()?, system })))
}

fn refusal(e: anyhow::Error, what: &'static str) -> String {
    in_one_line(e.context(what).as_ref())
}

/// Reads all of a root directory; says whether it looks like that of a system.
fn root_directory(place: &Path) -> io::Result<bool> {
    let mut system = false;
    for entry in std::fs::read_dir(place)? {
        system |= entry?.file_name() == "bin";
    }
    Ok(system)
}

/// The proof's file where it is mounted; what is no file of its size is an empty one.
fn mounted_proof(place: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match File::options().read(true).custom_flags(flags).open(place.join(NAME)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    let mut block = Vec::new();
    if meta.is_file() && meta.len() == SIZE as u64 {
        file.take(meta.len()).read_to_end(&mut block)?;
    }
    Ok(Some(block))
}

/// What is wrong with a filesystem, by a quick look at the descriptors of its groups. `journal_waits` says that these are
/// only right after it was replayed.
fn broken<R: ReadAt>(fs: &Fs<R>, journal_waits: bool) -> Option<String> {
    let sb = fs.superblock();
    let has_sums = sb.feature_ro_compat & mkext4::spec::ro_compat::METADATA_CSUM != 0;
    let wrong = |group: &u64| {
        let Ok((raw, group_desc)) = fs.group_desc_raw(*group).and_then(|r| Ok((r, fs.group_desc(*group)?)))
        else {
            return true;
        };
        let outside = [group_desc.block_bitmap, group_desc.inode_bitmap, group_desc.inode_table]
            .iter()
            .any(|block| !(1..sb.blocks_count).contains(block));
        let number = u32::try_from(*group).unwrap_or(u32::MAX);
        outside || has_sums && descriptor_sum(fs.fs_seed(), number, raw) != group_desc.checksum
    };
    let group = (0..sb.group_count()).find(wrong).filter(|_| !journal_waits)?;
    Some(format!("the descriptor of its group {group} is wrong"))
}

/// The checksum of a group's descriptor, without the two bytes where it is.
fn descriptor_sum(seed: u32, group: u32, raw: &[u8]) -> u16 {
    use mkext4::csum::crc32c_raw;
    const PLACE: usize = 0x1e;
    let sum = crc32c_raw(seed, &group.to_le_bytes());
    let sum = crc32c_raw(sum, raw.get(..PLACE).unwrap_or_default());
    let sum = crc32c_raw(sum, &[0; 2]);
    crc32c_raw(sum, raw.get(PLACE + 2..).unwrap_or_default()) as u16
}

/// Whether the root filesystem of a disk was not unmounted, so that its journal has to be
/// replayed before it is what it should be.
#[must_use]
pub fn has_journal_to_replay(disk: &File, bytes: u64) -> bool {
    root(disk, bytes).is_some_and(|root| journal_waits(disk, &root))
}

fn journal_waits(disk: &File, root: &RootArea) -> bool {
    let mut sb = [0; 1024];
    let read = Window::new(disk, root.offset, root.length).read_exact_at(SUPERBLOCK, &mut sb);
    read.is_ok() && sb.get(MAGIC) == Some(&[0x53, 0xef]) && sb[INCOMPAT] & NEEDS_RECOVERY != 0
}

const SUPERBLOCK: u64 = 1024;
/// Where the superblock says whether the kernel found errors.
const STATE: u64 = SUPERBLOCK + 0x3a;
const HAS_ERRORS: u8 = 2;
/// Where the superblock says what it is, and what must be known to read it.
const MAGIC: std::ops::Range<usize> = 0x38..0x3a;
const INCOMPAT: usize = 0x60;
const NEEDS_RECOVERY: u8 = 4;

/// The content of a small file in the root directory.
fn file_in_root<R: ReadAt>(fs: &Fs<R>, name: &str) -> mkext4::Result<Option<Vec<u8>>> {
    let Some(number) = fs.lookup(ROOT_INO, name.as_bytes())? else { return Ok(None) };
    let inode = fs.inode(number)?;
    if inode.size != SIZE as u64 {
        return Ok(Some(Vec::new()));
    }
    reader::small(fs, number, SIZE as u64)?;
    fs.read_file(number).map(Some)
}

/// A filesystem as it is after its journal was replayed, as far as its superblock says: a
/// system that was switched off has a journal to replay, which the reader would refuse. The
/// proof and the directory it is in were on the medium before the proof counted.
struct Replayed<'d>(Window<'d>);

impl ReadAt for Replayed<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        const CHECKSUM: usize = 0x3fc;
        self.0.read_exact_at(offset, buf)?;
        let (SUPERBLOCK, Ok(sb)) = (offset, <&mut [u8; 1024]>::try_from(buf)) else { return Ok(()) };
        if sb[INCOMPAT] & NEEDS_RECOVERY != 0
            && mkext4::csum::superblock(&sb[..]).to_le_bytes() == sb[CHECKSUM..]
        {
            sb[INCOMPAT] &= !NEEDS_RECOVERY;
            let sum = mkext4::csum::superblock(&sb[..]).to_le_bytes();
            sb[CHECKSUM..].copy_from_slice(&sum);
        }
        Ok(())
    }
}
