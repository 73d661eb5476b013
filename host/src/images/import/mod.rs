//! Archives as they are published and made: tar packed in any usual way or not at all, a folder, a pipe.
//!
//! gzip and zstd are what Pis read, so such a file is served from where it is. Every other archive is packed once more,
//! as gzip, which every old Pi reads, too, and kept in the state folder. An image of a disk is kept as what is used of it.
//!
//! | module | what lives there |
//! |---|---|
//! | `form` | what a file is, by how it begins |
//! | `unpacking` | the tar archive in it, with the place of what is wrong |
//! | `kept` | the files of the state folder |
//! | `disk` | images of disks |
//! | `zipped` | one of them in a zip file |

mod disk;
mod form;
mod kept;
mod unpacking;
mod zipped;

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use flate2::{Compression, GzBuilder};
use piman_core::hosted::unpack::Decoder;

use crate::images::disk_image::Bmap;
use crate::sys::files::is_full;
pub use form::Form;
pub use kept::{Kept, sweep};
use unpacking::{Counting, image_in, tar_in};

/// As many bytes of a file say what it is.
const HEAD: usize = 2048;
/// As many bytes of a packed one hold its beginning: a block of zstd, and some.
const PACKED_HEAD: u64 = 256 << 10;
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

/// An archive that can be served.
pub struct Imported {
    /// Where it is.
    pub path: PathBuf,
    /// What it was.
    pub form: Form,
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
/// `name`. `bmap`: that of a disk image, if not the one beside its file. `progress` gets the number of bytes that were
/// read.
///
/// # Errors
/// If it is nothing that holds an archive or a disk image, is damaged or ends too early, which is said with the place;
/// if the copy cannot be written.
pub fn import(
    input: Input,
    state: &Path,
    name: &str,
    bmap: Option<&Path>,
    progress: &dyn Fn(u64),
) -> anyhow::Result<Imported> {
    let shown = input.shown();
    let mut map = bmap.map(Bmap::open).transpose()?;
    let no_map = || match bmap {
        Some(_) => bail!("--bmap is for an image of a disk, which {shown} is not"),
        None => Ok(()),
    };
    let mut source: Box<dyn Read> = match input {
        Input::Folder(path) => {
            no_map()?;
            let mut tar = Tar::of(&path)?;
            let mut stdout = tar.stdout()?;
            let head = head(&mut stdout, &shown)?;
            let kept = repack(head, &mut stdout, &shown, state, name, progress)?;
            tar.finish(&shown)?;
            return Ok(Imported {
                path: kept.path().into(),
                form: Form::Folder,
                kept: Some(kept),
                notes: Vec::new(),
            });
        }
        Input::Card(path) => {
            let (card, length) = disk::open_card(&path)?;
            let order = disk::Order { shown: &shown, state, name, bmap: map.as_ref() };
            return order.copy(&card, length, progress);
        }
        Input::File(path) => {
            let mut file = File::open(&path).with_context(|| format!("opening {shown}"))?;
            let form =
                Form::of(&head(&mut file, &shown)?).with_context(|| format!("{shown} is not usable"))?;
            file.rewind().with_context(|| format!("reading {shown}"))?;
            let packed = File::open(&path).with_context(|| format!("opening {shown}"))?;
            if form.is_served() && !packs_disk(packed, &shown)? {
                no_map()?;
                return Ok(Imported { path, form, kept: None, notes: Vec::new() });
            }
            if map.is_none() {
                map = disk::bmap_beside(&path)?;
            }
            let order = disk::Order { shown: &shown, state, name, bmap: map.as_ref() };
            match form {
                Form::DiskImage => {
                    let length = file.metadata().with_context(|| format!("reading {shown}"))?.len();
                    return order.copy(&file, length, progress);
                }
                Form::Zip => return zipped::of_file(file, &order, progress),
                _ => Box::new(file),
            }
        }
        Input::Pipe(pipe) => Box::new(pipe),
    };
    let order = disk::Order { shown: &shown, state, name, bmap: map.as_ref() };
    let mut begin = head(&mut source, &shown)?;
    let form = Form::of(&begin).with_context(|| format!("{shown} is not usable"))?;
    if form.is_served() {
        // As much as what it begins with when it is unpacked can take.
        let more = (&mut source).take(PACKED_HEAD).read_to_end(&mut begin);
        more.with_context(|| format!("reading {shown}"))?;
    }
    let is_disk = form.is_served() && packs_disk(&*begin, &shown)?;
    let mut counting = Counting::new(io::Cursor::new(begin).chain(source), progress);
    let kept = match form {
        Form::DiskImage => return order.unpack(&mut counting),
        Form::Zip => return zipped::of_pipe(&mut counting, &order),
        _ if is_disk => return order.unpack(&mut image_in(form, counting)?),
        _ if form.is_served() => copy(&mut counting, &shown, state, name, form)?,
        _ => {
            let mut tar = tar_in(form, counting)?;
            let head = head(&mut tar, &shown)?;
            if Form::is_disk(&head) {
                return order.unpack(&mut io::Cursor::new(head).chain(tar));
            }
            repack(head, &mut *tar, &shown, state, name, &|_| ())?
        }
    };
    no_map()?;
    Ok(Imported { path: kept.path().into(), form, kept: Some(kept), notes: Vec::new() })
}

/// Whether what is packed in gzip or zstd is an image of a disk. What is wrong with an archive is found by who reads all
/// of it.
fn packs_disk(packed: impl Read, shown: &str) -> anyhow::Result<bool> {
    let mut head = Vec::with_capacity(HEAD);
    // As far as it goes.
    let _ = Decoder::new(packed).and_then(|tar| tar.take(HEAD as u64).read_to_end(&mut head));
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

fn copy(from: &mut dyn Read, shown: &str, state: &Path, name: &str, form: Form) -> anyhow::Result<Kept> {
    let kept = Kept::new(state, name, form.suffix())?;
    let mut to = BufWriter::with_capacity(1 << 18, kept.file());
    pass(from, &mut to, shown, &kept, u64::MAX, &|_| ())?;
    to.flush().map_err(|e| kept.unwritten(&e))?;
    drop(to);
    kept.sync()?;
    Ok(kept)
}

/// Packs a tar archive that begins with `head` once more.
fn repack(
    head: Vec<u8>,
    tar: &mut dyn Read,
    shown: &str,
    state: &Path,
    name: &str,
    progress: &dyn Fn(u64),
) -> anyhow::Result<Kept> {
    Form::tar_only(&head).with_context(|| format!("{shown} is not usable"))?;
    let kept = Kept::new(state, name, Form::Gzip.suffix())?;
    // Nothing of when and where, so that the same archive always gets the same identity.
    let packer = GzBuilder::new().write(kept.file(), Compression::new(6));
    let mut to = BufWriter::with_capacity(1 << 18, packer);
    pass(&mut io::Cursor::new(head).chain(tar), &mut to, shown, &kept, UNPACKED_MAX, progress)?;
    let packer = to.into_inner().map_err(|e| kept.unwritten(e.error()))?;
    packer.finish().map_err(|e| kept.unwritten(&e))?;
    kept.sync()?;
    Ok(kept)
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
    let (mut buf, mut total) = (vec![0; 1 << 18], 0);
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).with_context(|| format!("{shown} is not usable")),
        };
        total += n as u64;
        ensure!(
            total <= most,
            "{shown} unpacks to more than {most} bytes, which no card holds; nothing was added"
        );
        to.write_all(buf.get(..n).unwrap_or_default()).map_err(|e| kept.unwritten(&e))?;
        progress(total);
    }
}

/// GNU tar over a folder: it knows owners, ACLs, attributes, links and holes.
struct Tar(Child);

impl Tar {
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let child = Command::new("tar")
            .args([
                "--create",
                "--file=-",
                "--numeric-owner",
                "--sort=name",
                "--sparse",
                "--acls",
                "--xattrs",
            ])
            .args(["--xattrs-include=*", "--one-file-system", "--warning=no-file-ignored", "--directory"])
            .arg(folder)
            .arg(".")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Ok(Self(child)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!("packing a folder needs GNU tar, which is not installed (apt install tar)")
            }
            Err(e) => Err(e).context("starting tar"),
        }
    }

    fn stdout(&mut self) -> anyhow::Result<impl Read + use<>> {
        self.0.stdout.take().context("tar has no output")
    }

    /// What tar could not read it names itself, on standard error.
    fn finish(mut self, shown: &str) -> anyhow::Result<()> {
        let status = self.0.wait().context("waiting for tar")?;
        ensure!(
            status.success(),
            "{shown} could not be packed whole ({status}); tar says above what it could not read; nothing was added"
        );
        Ok(())
    }
}

impl Drop for Tar {
    fn drop(&mut self) {
        // Already over, as a rule; if not, nobody reads what it packs any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kept {
    fn unwritten(&self, e: &io::Error) -> anyhow::Error {
        let advice = if is_full(e) { ": free some space, or use another --state" } else { "" };
        anyhow::anyhow!("writing {}: {e}{advice}; nothing was added", self.path().display())
    }
}
