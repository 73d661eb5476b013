//! A zip file with one disk image in it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use anyhow::{Context, bail, ensure};
use zip::ZipArchive;
use zip::read::{ZipFile, read_zipfile_from_stream};
use zip::result::ZipError;

use super::disk::Order;
use super::{Form, Imported, head};

/// As many files in it are looked at.
const FILES_MAX: usize = 4096;
/// As many are listed.
const LISTED: usize = 8;

/// Endings of images among other files.
const ENDINGS: [&str; 3] = [".img", ".raw", ".wic"];

fn is_image(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending)) && !name.starts_with("__macosx/")
}

/// Takes in the image of a zip file that can be read at any place.
pub(super) fn of_file(file: File, order: &Order<'_>, progress: &dyn Fn(u64)) -> anyhow::Result<Imported> {
    let context = || format!("{} is not usable", order.shown);
    let counted = BufReader::with_capacity(1 << 16, Seeking { file, progress });
    let mut archive = ZipArchive::new(counted).map_err(|e| words(&e)).with_context(context)?;
    ensure!(archive.len() <= FILES_MAX, "{} has more than {FILES_MAX} files in it", order.shown);
    let names: Vec<String> =
        archive.file_names().filter(|name| !name.ends_with('/')).map(str::to_owned).collect();
    let images: Vec<&String> = match &*names {
        [only] => vec![only],
        names => names.iter().filter(|name| is_image(name)).collect(),
    };
    let [image] = &*images else { bail!(not_one(order.shown, &images, &names)) };
    let mut image = archive.by_name(image).map_err(|e| words(&e)).with_context(context)?;
    take(&mut image, order)
}

/// The same for one that comes out of a pipe.
pub(super) fn of_pipe(mut pipe: &mut dyn Read, order: &Order<'_>) -> anyhow::Result<Imported> {
    let context = || format!("{} is not usable", order.shown);
    let (mut found, mut names, mut images) = (None, Vec::new(), Vec::new());
    while let Some(mut file) =
        read_zipfile_from_stream(&mut pipe).map_err(|e| words(&e)).with_context(context)?
    {
        let name = file.name().to_owned();
        ensure!(names.len() < FILES_MAX, "{} has more than {FILES_MAX} files in it", order.shown);
        if file.is_dir() {
            continue;
        }
        if is_image(&name) {
            images.push(name.clone());
            if images.len() == 1 {
                found = Some(take(&mut file, order)?);
            }
        }
        names.push(name);
        // What is left of it.
        io::copy(&mut file, &mut io::sink()).with_context(context)?;
    }
    // The list of what is in it follows.
    io::copy(&mut pipe, &mut io::sink()).with_context(context)?;
    match found.filter(|_| images.len() == 1) {
        Some(found) => Ok(found),
        None => bail!(not_one(order.shown, &images.iter().collect::<Vec<_>>(), &names)),
    }
}

fn take<R: Read>(file: &mut ZipFile<'_, R>, order: &Order<'_>) -> anyhow::Result<Imported> {
    let name = file.name().escape_debug().to_string();
    let shown = format!("{} in {}", name, order.shown);
    let order = Order { shown: &shown, ..*order };
    let head = head(file, &shown)?;
    if !Form::is_disk(&head) {
        // Which says what it is.
        Form::tar_only(&head).with_context(|| format!("{shown} is not usable"))?;
        bail!("{shown} is no image of a disk: unpack it, and add what is in it");
    }
    let at = head.len() as u64;
    order.unpack(&mut io::Cursor::new(head).chain(Unpacking { from: file, at }))
}

/// What is unpacked, with the place of what is wrong.
struct Unpacking<R> {
    from: R,
    /// How many bytes were unpacked.
    at: u64,
}

impl<R: Read> Read for Unpacking<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        let n = self.from.read(buf).map_err(|e| match e.kind() {
            InvalidData | InvalidInput | Other | UnexpectedEof => {
                let text =
                    format!("the zip file is damaged or cut, behind byte {} of what is in it: {e}", self.at);
                io::Error::new(e.kind(), text)
            }
            _ => e,
        })?;
        self.at += n as u64;
        Ok(n)
    }
}

fn not_one(shown: &str, images: &[&String], names: &[String]) -> String {
    let list = |names: &mut dyn Iterator<Item = &String>| {
        let mut shown: Vec<String> = names.take(LISTED + 1).map(|n| n.escape_debug().to_string()).collect();
        if shown.len() > LISTED {
            shown.truncate(LISTED);
            shown.push("...".into());
        }
        shown.join(", ")
    };
    if images.is_empty() {
        let names = list(&mut names.iter());
        return format!("{shown} is a zip file without an image of a disk (.img): in it are: {names}");
    }
    let images = list(&mut images.iter().copied());
    format!("{shown} is a zip file with more than one image, {images}: unpack it, and add one of them")
}

/// What the library says, in words.
fn words(e: &ZipError) -> anyhow::Error {
    match e {
        ZipError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            anyhow::anyhow!("the zip file ends too early")
        }
        ZipError::UnsupportedArchive(what) if what.contains("assword") || what.contains("ncrypt") => {
            anyhow::anyhow!("what is in the zip file is encrypted: unpack it, and add the image")
        }
        ZipError::UnsupportedArchive(what) if what.contains("local header") => {
            anyhow::anyhow!(
                "this zip file cannot be read from a pipe, since sizes follow the files: add it as a file"
            )
        }
        ZipError::CompressionMethodNotSupported(_) | ZipError::UnsupportedArchive(_) => {
            anyhow::anyhow!(
                "the zip file is packed in a way that is not known here ({e}): unpack it, and add the image"
            )
        }
        e => anyhow::anyhow!("the zip file is damaged or cut: {e}"),
    }
}

/// A file that says how far it was read.
struct Seeking<'p> {
    file: File,
    progress: &'p dyn Fn(u64),
}

impl Read for Seeking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        (self.progress)(self.file.stream_position()?);
        Ok(n)
    }
}

impl Seek for Seeking<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
