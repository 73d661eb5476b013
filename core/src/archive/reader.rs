//! Reads an archive header by header, and passes on the content between them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use embedded_io::{BufRead, Error as _, ErrorKind};

use super::header::{BLOCK, Format, Header};
use super::pax::Pax;
use super::{Damage, Entry, Error, File, Kind, NAME_MAX, PAX_MAX, Time, Xattr, acl, sparse};

/// Reads an archive entry by entry.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes of the archive that were taken from `input`.
    at: u64,
    /// Stored bytes of the current entry that were not read, and the padding behind them.
    left: u64,
    padding: u64,
    /// The current entry, for errors.
    name: Vec<u8>,
    global: Pax,
    ended: bool,
    /// Says at the end of the input that its packing ended as it should.
    whole: Option<Arc<AtomicBool>>,
    unmarked: bool,
}

/// How far it is, whatever it reads from.
#[cfg(feature = "defmt")]
impl<R> defmt::Format for Reader<R> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Reader({=[u8]:a}, {} bytes read)", self.name.as_slice(), self.at)
    }
}

impl<R: BufRead> Reader<R> {
    /// A reader of the archive that `input` gives from its first byte. Content is passed on
    /// in the pieces that `input` gives, so give it a buffer of 64 KiB or more.
    pub fn new(input: R) -> Self {
        let (name, global) = (Vec::new(), Pax::default());
        Self { input, at: 0, left: 0, padding: 0, name, global, ended: false, whole: None, unmarked: false }
    }

    /// Takes an end before a header for the archive's end, too, if `whole` says by then that the packing of the input
    /// ended as it should ([`Decoder::telling_whole`](crate::hosted::unpack::Decoder::telling_whole)): some archivers
    /// leave the end marker out. So ends also what was cut before it was packed: ask
    /// [`is_unmarked`](Self::is_unmarked), unless somebody vouches for these bytes.
    #[must_use]
    pub fn ending_with(self, whole: Arc<AtomicBool>) -> Self {
        Self { whole: Some(whole), ..self }
    }

    /// Whether the archive ended without its end marker.
    pub const fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// The next entry; `None` when the archive has ended with its end marker.
    ///
    /// # Errors
    /// [`Error::Read`] if `input` fails, [`Error::Damaged`] if the archive is at fault. The
    /// end of `input` before the end marker is [`Damage::Truncated`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error<R::Error>> {
        self.skip_content()?;
        self.name.clear();
        let mut said = Said { pax: self.global.clone(), ..Said::default() };
        while !self.ended {
            let mut block = [0; BLOCK];
            match self.fill_block(&mut block)? {
                BLOCK => {}
                0 if !said.anything && self.whole.as_ref().is_some_and(|whole| whole.load(Relaxed)) => {
                    (self.ended, self.unmarked) = (true, true);
                    warning!("the archive has no end marker");
                    break;
                }
                _ => return Err(self.damage(Damage::Truncated)),
            }
            if block == [0; BLOCK] {
                self.end()?;
                if said.anything {
                    return Err(self.damage(Damage::Truncated));
                }
                break;
            }
            let header = Header::new(&block).map_err(|d| self.damage(d))?;
            match header.kind() {
                b'L' => said.path = Some(self.long_name(&header)?),
                b'K' => said.link = Some(self.long_name(&header)?),
                b'x' | b'X' => {
                    let records = self.records(&header, &mut said.pax_bytes)?;
                    said.pax.apply(&records).map_err(|d| self.damage(d))?;
                }
                b'g' => {
                    let records = self.records(&header, &mut said.pax_bytes)?;
                    self.global.apply(&records).map_err(|d| self.damage(d))?;
                    // Each header has its limit, but what they say together stays to the end of the archive.
                    if self.global.xattr_bytes() > PAX_MAX {
                        return Err(self.damage(Damage::TooLong("list of global extended attributes")));
                    }
                    if self.global.sparse.is_told() {
                        return Err(self.damage(Damage::Pax("a global header about a sparse file")));
                    }
                    // Without losing what was said of the entry itself, which comes after.
                    if !said.anything {
                        said.pax = self.global.clone();
                    }
                    continue;
                }
                b'V' => {
                    self.open_content(header.size().map_err(|d| self.damage(d))?);
                    self.skip_content()?;
                    continue;
                }
                b'M' | b'N' => return Err(self.damage(Damage::Unsupported("an archive of several volumes"))),
                _ => return self.entry(&header, said).map(Some),
            }
            said.anything = true;
        }
        Ok(None)
    }

    /// The next piece of the current entry's content, as it lies in the input's buffer;
    /// empty at its end. Say with [`consume`](Self::consume) how much of it was used.
    ///
    /// # Errors
    /// As [`next_entry`](Self::next_entry).
    pub fn content(&mut self) -> Result<&[u8], Error<R::Error>> {
        if self.left == 0 {
            return Ok(&[]);
        }
        if fill(&mut self.input).map_err(Error::Read)?.is_empty() {
            return Err(self.damage(Damage::Truncated));
        }
        // Asked again, since the first borrow would outlive the error above.
        let piece = self.input.fill_buf().map_err(Error::Read)?;
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
        Ok(piece.get(..length).unwrap_or_default())
    }

    /// Says that the first `n` bytes of [`content`](Self::content) were used; more than it
    /// gave must not be said.
    pub fn consume(&mut self, n: usize) {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(n);
        self.input.consume(n);
        self.left -= n as u64;
        self.at += n as u64;
    }

    /// Bytes of the archive that were read so far.
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Reads whatever follows, to the very end of the input, and passes it over: what packed
    /// the archive has its checksum there, and what sends it counts every byte.
    ///
    /// # Errors
    /// [`Error::Read`] if `input` fails.
    pub fn drain(&mut self) -> Result<(), Error<R::Error>> {
        (self.left, self.padding, self.ended) = (0, 0, true);
        loop {
            let length = fill(&mut self.input).map_err(Error::Read)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
            self.at += length as u64;
        }
    }

    /// What the archive was read from.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Turns a header and what was said before it into an entry.
    fn entry(&mut self, header: &Header<'_>, said: Said) -> Result<Entry, Error<R::Error>> {
        let Said { pax, path, link, .. } = said;
        let path = pax.sparse.name.clone().or(pax.path.clone()).or(path).unwrap_or_else(|| {
            let mut name = Vec::with_capacity(128);
            header.name(&mut name);
            name
        });
        self.name.extend_from_slice(&path);
        if path.is_empty() {
            return Err(self.damage(Damage::NoName));
        }
        let fields = || {
            let uid = pax.uid.map_or_else(|| header.uid(), Ok)?;
            let gid = pax.gid.map_or_else(|| header.gid(), Ok)?;
            let whole = || Ok(Time { seconds: header.mtime()?, nanos: 0 });
            Ok((header.mode()?, uid, gid, pax.mtime.map_or_else(whole, Ok)?))
        };
        let (mode, uid, gid, mtime) = fields().map_err(|d: Damage| self.damage(d))?;
        let link = pax.link.clone().or(link).unwrap_or_else(|| header.link().to_vec());
        let kind = self.kind(header, &pax, &path, link)?;
        let mut xattrs = pax.xattrs;
        let may_have = !matches!(kind, Kind::Symlink(_) | Kind::Hardlink(_));
        let access = pax.access.filter(|_| may_have).map(|list| (acl::ACCESS, list));
        let default = pax.default.filter(|_| kind == Kind::Directory).map(|list| (acl::DEFAULT, list));
        for (name, value) in access.into_iter().chain(default) {
            if !xattrs.iter().any(|known| known.name == name) {
                xattrs.push(Xattr { name: name.to_vec(), value });
            }
        }
        let access = xattrs.iter().find(|known| known.name == acl::ACCESS);
        let mode = access.map_or(mode, |list| acl::mode(mode, &list.value));
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs })
    }

    fn kind(
        &mut self,
        header: &Header<'_>,
        pax: &Pax,
        path: &[u8],
        link: Vec<u8>,
    ) -> Result<Kind, Error<R::Error>> {
        let device = || Ok((header.major()?, header.minor()?));
        // Links, devices, directories and pipes have no content, whatever their size says.
        Ok(match header.kind() {
            b'1' | b'2' if link.is_empty() => {
                return Err(self.damage(Damage::Unsupported("a link to nothing")));
            }
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => {
                let (major, minor) = device().map_err(|d: Damage| self.damage(d))?;
                Kind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device().map_err(|d: Damage| self.damage(d))?;
                Kind::BlockDevice { major, minor }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // A directory with a list of its files, from an incremental GNU archive.
            b'D' => {
                self.open_content(self.stored(header, pax)?);
                self.skip_content()?;
                Kind::Directory
            }
            // Before there was a type for directories, they were files with a name like this. Their size
            // says nothing, as GNU tar and bsdtar have it.
            b'\0' | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            _ => Kind::File(self.file(header, pax)?),
        })
    }

    fn file(&mut self, header: &Header<'_>, pax: &Pax) -> Result<File, Error<R::Error>> {
        let stored = self.stored(header, pax)?;
        self.open_content(stored);
        let (size, map) = if header.kind() == b'S' && header.format() == Format::Gnu {
            let size = header.real_size().map_err(|d| self.damage(d))?;
            (size, self.gnu_map(header)?)
        } else if pax.sparse.is_told() {
            let size = pax.sparse.size.ok_or_else(|| self.damage(Damage::Sparse("no size")))?;
            let map = match (pax.sparse.major, pax.sparse.minor, &pax.sparse.map) {
                (Some(1), Some(0), _) => self.map_in_content()?,
                (None | Some(0), _, Some(map)) => map.clone(),
                // Nothing but a hole.
                (None | Some(0), _, None) => sparse::Map::default(),
                _ => return Err(self.damage(Damage::Unsupported("this version of sparse files"))),
            };
            (size, map)
        } else {
            return Ok(File { size: stored, sparse: None });
        };
        let segments = map.finish(size, self.left).map_err(|d| self.damage(d))?;
        Ok(File { size, sparse: Some(segments) })
    }

    /// GNU's own format: four parts in the header, 21 in each block that follows.
    fn gnu_map(&mut self, header: &Header<'_>) -> Result<sparse::Map, Error<R::Error>> {
        let mut map = sparse::Map::default();
        let (fields, mut more) = header.sparse();
        map.push_block(fields).map_err(|d| self.damage(d))?;
        while more {
            let block = self.block()?;
            let (fields, rest) = block.split_at(21 * 24);
            map.push_block(fields).map_err(|d| self.damage(d))?;
            more = rest.first().is_some_and(|b| *b != 0);
        }
        Ok(map)
    }

    /// pax format 1.0: the map stands before the data, and counts as content.
    fn map_in_content(&mut self) -> Result<sparse::Map, Error<R::Error>> {
        let mut prefix = sparse::Prefix::default();
        loop {
            self.left = self
                .left
                .checked_sub(BLOCK as u64)
                .ok_or_else(|| self.damage(Damage::Sparse("the map is longer than the content")))?;
            let block = self.block()?;
            if prefix.push(&block).map_err(|d| self.damage(d))? {
                return Ok(prefix.finish());
            }
        }
    }

    fn stored(&self, header: &Header<'_>, pax: &Pax) -> Result<u64, Error<R::Error>> {
        pax.size.map_or_else(|| header.size(), Ok).map_err(|d| self.damage(d))
    }

    fn open_content(&mut self, stored: u64) {
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    fn skip_content(&mut self) -> Result<(), Error<R::Error>> {
        while self.left > 0 {
            let length = self.content()?.len();
            self.consume(length);
        }
        self.left = core::mem::take(&mut self.padding);
        while self.left > 0 {
            let length = self.content()?.len();
            self.consume(length);
        }
        Ok(())
    }

    /// The rest of the end marker: a second block of zeros, or the end of the input.
    fn end(&mut self) -> Result<(), Error<R::Error>> {
        self.ended = true;
        let mut block = [0; BLOCK];
        match self.fill_block(&mut block)? {
            0 => Ok(()),
            BLOCK if block == [0; BLOCK] => Ok(()),
            BLOCK => Err(self.damage(Damage::LoneZeroBlock)),
            _ => Err(self.damage(Damage::Truncated)),
        }
    }

    fn long_name(&mut self, header: &Header<'_>) -> Result<Vec<u8>, Error<R::Error>> {
        let mut name = self.meta(header, NAME_MAX as u64 + 1, "name")?;
        let length = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(length);
        Ok(name)
    }

    fn records(&mut self, header: &Header<'_>, so_far: &mut u64) -> Result<Vec<u8>, Error<R::Error>> {
        let records = self.meta(header, PAX_MAX - *so_far, "pax header")?;
        *so_far += records.len() as u64;
        Ok(records)
    }

    /// The content of an entry that speaks about another one.
    fn meta(
        &mut self,
        header: &Header<'_>,
        max: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, Error<R::Error>> {
        let size = header.size().map_err(|d| self.damage(d))?;
        if size > max {
            return Err(self.damage(Damage::TooLong(what)));
        }
        self.open_content(size);
        let mut content = Vec::new();
        while self.left > 0 {
            let piece = self.content()?;
            content.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
        self.skip_content()?;
        Ok(content)
    }

    /// One block; the end of the input is the archive's fault.
    fn block(&mut self) -> Result<[u8; BLOCK], Error<R::Error>> {
        let mut block = [0; BLOCK];
        match self.fill_block(&mut block)? {
            BLOCK => Ok(block),
            _ => Err(self.damage(Damage::Truncated)),
        }
    }

    /// Reads a block as far as there is one.
    fn fill_block(&mut self, block: &mut [u8; BLOCK]) -> Result<usize, Error<R::Error>> {
        let mut filled = 0;
        while let Some(spare) = block.get_mut(filled..).filter(|s| !s.is_empty()) {
            match copy(fill(&mut self.input).map_err(Error::Read)?, spare) {
                0 => break,
                n => {
                    self.input.consume(n);
                    filled += n;
                }
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    fn damage(&self, damage: Damage) -> Error<R::Error> {
        Error::Damaged { at: self.at, entry: self.name.clone(), damage }
    }
}

/// The content of the current entry. Errors are those of [`Reader::content`], as
/// `From<Error> for io::Error` has them.
#[cfg(feature = "std")]
impl<R: BufRead<Error = std::io::Error>> std::io::Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = copy(self.content()?, buf);
        self.consume(n);
        Ok(n)
    }
}

/// As many bytes as both have.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..n), from.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

/// What the headers before an entry's own said about it.
#[derive(Default)]
struct Said {
    pax: Pax,
    pax_bytes: u64,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    anything: bool,
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], R::Error> {
    loop {
        match input.fill_buf() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => break,
        }
    }
    input.fill_buf()
}
