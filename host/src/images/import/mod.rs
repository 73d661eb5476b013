//! Archives as they are published and made: tar packed in any usual way or not at all, a folder, a pipe, a container
//! image.
//!
//! gzip and zstd are what Pis read, so such a file is served from where it is. Every other archive is packed once more,
//! as gzip, which every old Pi reads, too, and kept in the state folder. An image of a disk is kept as what is used of it.
//!
//! | module | what lives there |
//! |---|---|
//! | `form` | what a file is, by how it begins |
//! | `unpacking` | the tar archive in it, with the place of what is wrong |
//! | `folder` | packing a folder |
//! | `container` | the layers of a container image as one archive |
//! | `spool` | what comes out of a pipe and is read twice |
//! | `kept` | the files of the state folder |
//! | `disk` | images of disks |
//! | `zipped` | one of them in a zip file |

mod container;
mod disk;
mod folder;
mod form;
mod kept;
mod spool;
mod unpacking;
mod zipped;

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::{Context, bail, ensure};
use flate2::{Compression, GzBuilder};

use crate::images::disk_image::Bmap;
use crate::sys::files::is_full;
use container::{Container, Store, scan};
use folder::Tar;
pub use form::Form;
pub use kept::{Kept, sweep};
use spool::Spool;
use unpacking::{Counting, unpacked};

/// As many bytes of a file say what it is.
const HEAD: usize = 2048;
/// As many bytes of a packed one hold its beginning: a block of zstd, and some.
const PACKED_HEAD: u64 = 256 << 10;
/// As many bytes are passed on at once.
const BLOCK: usize = 1 << 18;
/// More than this no archive or image may unpack to, in bytes: no card holds it, and a small file can claim any size.
const UNPACKED_MAX: u64 = 1 << 40;

/// Where an archive comes from.
pub enum Input {
    /// A file that stays where it is.
    File(PathBuf),
    /// What comes out of a pipe.
    Pipe(File),
    /// A folder with a root filesystem.
    Folder(PathBuf),
    /// A card in a reader, or another disk.
    Card(PathBuf),
}

/// What is wanted of what may be several images, or for another processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'w> {
    /// The name of one of several container images.
    pub tag: Option<&'w str>,
    /// Also what is for no Pi.
    pub force: bool,
    /// The bmap of a disk image, if not the one beside its file.
    pub bmap: Option<&'w Path>,
}

/// An archive that can be served.
pub struct Imported {
    /// Where it is.
    pub path: PathBuf,
    /// What it was.
    pub form: Form,
    /// Which of several it was, if it was a container image.
    pub what: Option<String>,
    /// Set if it is a copy of ours; until [`Kept::keep`] it is removed when this is dropped.
    pub kept: Option<Kept>,
    /// What was remarkable and is not so any more in the copy.
    pub notes: Vec<String>,
}

impl Input {
    /// What is at a path; `-` is standard input.
    ///
    /// # Errors
    /// If it cannot be opened, or cannot have an archive in it.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if path == Path::new("-") {
            // As a file, so that it is read without a lock and a buffer of its own.
            let stdin = rustix::io::dup(io::stdin()).context("opening standard input")?;
            return Ok(Self::Pipe(stdin.into()));
        }
        let opening = || format!("opening {shown}");
        let kind = fs::metadata(path).with_context(opening)?.file_type();
        if kind.is_dir() {
            return Ok(Self::Folder(path.canonicalize().with_context(opening)?));
        }
        if kind.is_file() {
            return Ok(Self::File(path.canonicalize().with_context(opening)?));
        }
        ensure!(
            !kind.is_block_device(),
            "{shown} is a disk: `piman image add --from-card {shown}` copies what is used of it; or mount its root \
             filesystem, and add the folder where it is mounted"
        );
        Ok(Self::Pipe(File::open(path).with_context(opening)?))
    }

    /// How many bytes will be read, if that is known.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::File(path) => fs::metadata(path).ok().map(|m| m.len()),
            Self::Pipe(_) | Self::Folder(_) | Self::Card(_) => None,
        }
    }

    /// The name that it would have.
    #[must_use]
    pub fn stem(&self) -> Option<&str> {
        match self {
            Self::File(path) => path.file_name()?.to_str()?.split('.').next(),
            Self::Folder(path) => path.file_name()?.to_str(),
            Self::Pipe(_) | Self::Card(_) => None,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::File(path) | Self::Folder(path) | Self::Card(path) => path.display().to_string(),
            Self::Pipe(_) => "what was piped in".into(),
        }
    }
}

/// Makes what can be served out of what is given. A copy is made in the folder `archives` of `state`, and begins with
/// `name`. `progress` gets the number of bytes that were read.
///
/// # Errors
/// If it is nothing that holds an archive or a disk image, is damaged or ends too early, which is said with the place; if
/// it is not clear which of several images is meant; if the copy cannot be written.
pub fn import(
    input: Input,
    state: &Path,
    name: &str,
    wish: &Wish<'_>,
    progress: &dyn Fn(u64),
) -> anyhow::Result<Imported> {
    let import = Import { shown: input.shown(), state, name, wish, progress };
    let imported = match input {
        Input::Folder(path) => import.folder(&path),
        Input::File(path) => import.file(path),
        Input::Pipe(pipe) => import.pipe(pipe),
        Input::Card(path) => import.card(&path),
    }?;
    ensure!(
        wish.tag.is_none() || imported.form.is_container(),
        "{} is {}, not a container image, which alone has a --tag; nothing was added",
        import.shown,
        imported.form.name()
    );
    ensure!(
        wish.bmap.is_none() || imported.form == Form::DiskImage,
        "--bmap is for an image of a disk, and {} is {}; nothing was added",
        import.shown,
        imported.form.name()
    );
    Ok(imported)
}

/// What is made, and how.
struct Import<'i> {
    /// What is given, as the operator calls it.
    shown: String,
    state: &'i Path,
    name: &'i str,
    wish: &'i Wish<'i>,
    progress: &'i dyn Fn(u64),
}

impl Import<'_> {
    fn folder(&self, path: &Path) -> anyhow::Result<Imported> {
        let is_system = ["bin", "etc", "usr"].iter().any(|name| path.join(name).is_dir());
        if !is_system && let Some(image) = self.container(&Store::folder(path)?)? {
            return Ok(image);
        }
        let mut tar = Tar::of(path)?;
        let kept = self.repack(&mut tar.stdout()?, self.progress)?;
        tar.finish(&self.shown)?;
        Ok(kept.of(Form::Folder))
    }

    fn file(&self, path: PathBuf) -> anyhow::Result<Imported> {
        let shown = &self.shown;
        let open = || File::open(&path).with_context(|| format!("opening {shown}"));
        let form = Form::of(&head(&mut open()?, shown)?).with_context(|| format!("{shown} is not usable"))?;
        if let Some(image) = self.disk_in(form, &path)? {
            return Ok(image);
        }
        // What is damaged is found, with its place, by who reads it below.
        let plain = unpacked(form, Counting::new(open()?, &|_| ()));
        if let Ok(Some(parts)) = plain.and_then(|plain| Ok(scan(plain)?)) {
            let file = if form == Form::Tar {
                open()?
            } else {
                let mut plain = unpacked(form, Counting::new(open()?, self.progress))?;
                Spool::all(&mut plain, self)?
            };
            if let Some(image) = self.container(&Store::Tar(Arc::new(file), parts))? {
                return Ok(image);
            }
        }
        let file = open()?;
        if form.is_served() {
            return Ok(Imported { path, form, what: None, kept: None, notes: Vec::new() });
        }
        let kept = self.repack(&mut *unpacked(form, Counting::new(file, self.progress))?, &|_| ())?;
        Ok(kept.of(form))
    }

    fn pipe(&self, mut pipe: File) -> anyhow::Result<Imported> {
        let shown = &self.shown;
        let mut begin = head(&mut pipe, shown)?;
        let form = Form::of(&begin).with_context(|| format!("{shown} is not usable"))?;
        let mut is_disk = form == Form::DiskImage;
        if form.is_served() {
            // As much as what it begins with when it is unpacked can take.
            let more = (&mut pipe).take(PACKED_HEAD).read_to_end(&mut begin);
            more.with_context(|| format!("reading {shown}"))?;
            is_disk = packs_disk(form, &*begin, shown)?;
        }
        let mut counting = Counting::new(io::Cursor::new(begin).chain(pipe), self.progress);
        let map = self.wish.bmap.map(Bmap::open).transpose()?;
        let order = self.order(map.as_ref());
        if form == Form::Zip {
            return zipped::of_pipe(&mut counting, &order);
        }
        if is_disk {
            return order.unpack(&mut *unpacked(form, counting)?);
        }
        if form.is_served() {
            let kept = self.copy(&mut counting, form)?;
            let image = self.file(kept.path().into())?;
            return Ok(if image.kept.is_some() { image } else { kept.of(form) });
        }
        let mut tar = unpacked(form, counting)?;
        let begin = head(&mut tar, shown)?;
        let is_disk = Form::is_disk(&begin);
        let mut tar = io::Cursor::new(begin).chain(tar);
        if is_disk {
            return order.unpack(&mut tar);
        }
        let mut spool = Spool::new(tar, self)?;
        let parts = scan(&mut spool).map_err(|e| spool.fault(e, self))?;
        if let Some(parts) = parts {
            let file = spool.file()?;
            if let Some(image) = self.container(&Store::Tar(Arc::new(file), parts))? {
                return Ok(image);
            }
        }
        Ok(self.repack(&mut spool.again()?, &|_| ())?.of(form))
    }

    fn card(&self, path: &Path) -> anyhow::Result<Imported> {
        let map = self.wish.bmap.map(Bmap::open).transpose()?;
        let (card, length) = disk::open_card(path)?;
        self.order(map.as_ref()).copy(&card, length, self.progress)
    }

    /// The image of a disk that a file is, or has packed in it; `None` if it is something else.
    fn disk_in(&self, form: Form, path: &Path) -> anyhow::Result<Option<Imported>> {
        let shown = &self.shown;
        let open = || File::open(path).with_context(|| format!("opening {shown}"));
        let is_packed = match form {
            Form::DiskImage | Form::Zip => false,
            _ if packs_disk(form, open()?, shown)? => true,
            _ => return Ok(None),
        };
        let map = self.wish.bmap.map_or_else(|| disk::bmap_beside(path), |map| Bmap::open(map).map(Some))?;
        let order = self.order(map.as_ref());
        let file = open()?;
        let image = if is_packed {
            order.unpack(&mut *unpacked(form, Counting::new(file, self.progress))?)
        } else if form == Form::Zip {
            zipped::of_file(file, &order, self.progress)
        } else {
            let length = file.metadata().with_context(|| format!("reading {shown}"))?.len();
            order.copy(&file, length, self.progress)
        };
        image.map(Some)
    }

    fn order<'o>(&'o self, bmap: Option<&'o Bmap>) -> disk::Order<'o> {
        disk::Order { shown: &self.shown, state: self.state, name: self.name, bmap }
    }

    /// The container image in a store; `None` if the store has something else in it.
    fn container(&self, store: &Store) -> anyhow::Result<Option<Imported>> {
        let container = Container::open(store, self.wish, self.progress)
            .with_context(|| format!("{} is not usable", self.shown))?;
        let Some(container) = container else { return Ok(None) };
        let (from, to) = io::pipe().context("making a pipe")?;
        let (count, before) = (AtomicU64::new(0), container.bytes() / 2);
        let (written, kept) = thread::scope(|scope| {
            let writer = thread::Builder::new().name("container".into());
            let writer =
                writer.spawn_scoped(scope, || container.write(&count, to)).context("starting a thread")?;
            let mut from = from;
            let kept = self.repack(&mut from, &|_| (self.progress)(before + count.load(Relaxed) / 2));
            // If it was not read to its end, the writer ends by that.
            drop(from);
            anyhow::Ok((writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), kept))
        })?;
        // What could not be written because nobody reads it any more, is that one's fault.
        let is_unread = |e: &anyhow::Error| {
            e.chain()
                .filter_map(|cause| cause.downcast_ref::<io::Error>())
                .any(|e| e.kind() == ErrorKind::BrokenPipe)
        };
        match written {
            Err(e) if !(is_unread(&e) && kept.is_err()) => {
                Err(e).with_context(|| format!("{} is not usable", self.shown))
            }
            _ => Ok(Some(Imported { what: Some(container.what), ..kept?.of(container.form) })),
        }
    }

    fn copy(&self, from: &mut dyn Read, form: Form) -> anyhow::Result<Kept> {
        let kept = Kept::new(self.state, self.name, form.suffix())?;
        let mut to = BufWriter::with_capacity(BLOCK, kept.file());
        pass(from, &mut to, &self.shown, &kept, u64::MAX, &|_| ())?;
        to.flush().map_err(|e| kept.unwritten(&e))?;
        drop(to);
        kept.sync()?;
        Ok(kept)
    }

    fn repack(&self, tar: &mut dyn Read, progress: &dyn Fn(u64)) -> anyhow::Result<Kept> {
        let head = head(tar, &self.shown)?;
        Form::tar_only(&head).with_context(|| format!("{} is not usable", self.shown))?;
        let kept = Kept::new(self.state, self.name, Form::Gzip.suffix())?;
        // Nothing of when and where, so that the same archive always gets the same identity.
        let packer = GzBuilder::new().write(kept.file(), Compression::new(6));
        let mut to = BufWriter::with_capacity(BLOCK, packer);
        pass(&mut io::Cursor::new(head).chain(tar), &mut to, &self.shown, &kept, UNPACKED_MAX, progress)?;
        let packer = to.into_inner().map_err(|e| kept.unwritten(e.error()))?;
        packer.finish().map_err(|e| kept.unwritten(&e))?;
        kept.sync()?;
        Ok(kept)
    }
}

/// Whether what is packed is an image of a disk. What is wrong with an archive is found by who reads all of it.
fn packs_disk(form: Form, packed: impl Read, shown: &str) -> anyhow::Result<bool> {
    let mut head = Vec::with_capacity(HEAD);
    // As far as it goes.
    let plain = unpacked(form, Counting::new(packed, &|_| ()));
    let _ = plain.map(|plain| plain.take(HEAD as u64).read_to_end(&mut head));
    if Form::is_disk(&head) {
        return Ok(true);
    }
    match Form::image(&head) {
        Some(what) => bail!("{shown} is not usable: {what}"),
        None => Ok(false),
    }
}

/// How something begins.
fn head(from: &mut dyn Read, shown: &str) -> anyhow::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    from.take(HEAD as u64).read_to_end(&mut head).with_context(|| format!("reading {shown}"))?;
    Ok(head)
}

/// Passes everything on: what cannot be read and what cannot be written are different faults.
fn pass(
    from: &mut dyn Read,
    to: &mut dyn Write,
    shown: &str,
    kept: &Kept,
    most: u64,
    progress: &dyn Fn(u64),
) -> anyhow::Result<()> {
    let (mut buf, mut total) = (Vec::with_capacity(BLOCK), 0);
    loop {
        buf.clear();
        // Whole blocks: what a pipe gives at once differs, and what a packer makes of it differs with that.
        let read = from.take(BLOCK as u64).read_to_end(&mut buf);
        read.with_context(|| format!("{shown} is not usable"))?;
        if buf.is_empty() {
            return Ok(());
        }
        total += buf.len() as u64;
        ensure!(
            total <= most,
            "{shown} unpacks to more than {most} bytes, which no card holds; nothing was added"
        );
        to.write_all(&buf).map_err(|e| kept.unwritten(&e))?;
        progress(total);
    }
}

impl Kept {
    /// What is served then.
    fn of(self, form: Form) -> Imported {
        Imported { path: self.path().into(), form, what: None, kept: Some(self), notes: Vec::new() }
    }

    fn unwritten(&self, e: &io::Error) -> anyhow::Error {
        let advice = if is_full(e) { ": free some space, or use another --state" } else { "" };
        anyhow::anyhow!("writing {}: {e}{advice}; nothing was added", self.path().display())
    }
}
