//! Records out of a growing file, like `tail -F`, or of standard input: in constant memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use piman_core::telemetry::RECORD_MAX;

/// How often it is looked for more.
const LOOK: Duration = Duration::from_millis(100);
/// The longest record with its newline; a longer one is sent in several.
const ROOM: usize = RECORD_MAX;
/// What is read at once.
const PIECE: usize = 4 * ROOM;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A record with its newline.
    Record(&'a [u8]),
    /// Nothing yet: wait a little, or a moment.
    Wait(Duration),
    /// Nothing more will come.
    End,
}

/// A place in a file: everything before it has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Of which file.
    pub inode: u64,
    /// Bytes from its start.
    pub offset: u64,
}

/// Cuts bytes into records, each with a newline.
#[derive(Debug)]
struct Records {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    scanned: usize,
}

impl Default for Records {
    fn default() -> Self {
        Self { buf: vec![0; PIECE], start: 0, end: 0, scanned: 0 }
    }
}

impl Records {
    /// Where more bytes go; never empty when `next` has none.
    fn spare(&mut self) -> &mut [u8] {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.scanned -= self.start;
        self.start = 0;
        // One byte is kept for the newline of a last record that has none.
        let room = self.buf.len() - 1;
        self.buf.get_mut(self.end..room).unwrap_or_default()
    }

    fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len() - 1);
    }

    /// The place of the next record, and how many bytes of the file it is.
    fn next(&mut self) -> Option<(std::ops::Range<usize>, usize)> {
        let fresh = self.buf.get(self.scanned..self.end)?;
        let newline = fresh.iter().position(|&b| b == b'\n').map(|at| self.scanned + at + 1);
        let stop = newline.unwrap_or(self.end);
        if stop - self.start > ROOM {
            // Too long for one. The byte that makes way for the newline is the first of the next.
            return Some((self.start..self.start + ROOM - 1, ROOM - 1));
        }
        self.scanned = stop;
        newline.map(|stop| (self.start..stop, stop - self.start))
    }

    /// The last record, that has no newline.
    fn rest(&mut self) -> Option<(std::ops::Range<usize>, usize)> {
        (self.end > self.start).then_some((self.start..self.end, self.end - self.start))
    }

    /// Takes a record away; it ends in a newline.
    fn take(&mut self, (range, bytes): (std::ops::Range<usize>, usize), out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.buf.get(range).unwrap_or_default());
        if out.last() != Some(&b'\n') {
            out.push(b'\n');
        }
        self.start += bytes;
        self.scanned = self.scanned.max(self.start);
    }

    fn clear(&mut self) {
        (self.start, self.end, self.scanned) = (0, 0, 0);
    }
}

/// Where records come from.
#[derive(Debug)]
pub struct Follow {
    from: From,
    records: Records,
    record: Vec<u8>,
    mark: Mark,
}

#[derive(Debug)]
enum From {
    /// Anything that is read to its end.
    Stream(Box<dyn Source>, bool),
    File {
        path: PathBuf,
        open: Option<File>,
        follow: bool,
        read: u64,
    },
}

trait Source: Read + Send + std::fmt::Debug {}
impl<T: Read + Send + std::fmt::Debug> Source for T {}

impl Follow {
    /// Follows the file at `path`, which need not be there yet; with `follow` it never ends. What
    /// was taken before, up to `mark`, is not taken again if it is still the same file.
    #[must_use]
    pub fn file(path: &Path, follow: bool, mark: Option<Mark>) -> Self {
        let from = From::File { path: path.to_owned(), open: None, follow, read: 0 };
        Self { from, records: Records::default(), record: Vec::new(), mark: mark.unwrap_or_default() }
    }

    /// Takes what comes from `source` until it ends.
    #[must_use]
    pub fn stream(source: impl Read + Send + std::fmt::Debug + 'static) -> Self {
        let from = From::Stream(Box::new(source), false);
        Self { from, records: Records::default(), record: Vec::new(), mark: Mark::default() }
    }

    /// Up to where records have been taken, the one that was returned last included.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The next record. It is taken when this returns; who cannot send it keeps it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn pull(&mut self) -> io::Result<Next<'_>> {
        loop {
            if let Some(found) = self.records.next() {
                return Ok(self.taken(found));
            }
            match &mut self.from {
                From::Stream(_, true) => {
                    return Ok(match self.records.rest() {
                        Some(rest) => self.taken(rest),
                        None => Next::End,
                    });
                }
                From::Stream(source, ended) => match source.read(self.records.spare()) {
                    Ok(0) => *ended = true,
                    Ok(n) => self.records.filled(n),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                },
                From::File { path, open: open @ None, follow, read } => match File::open(&*path) {
                    Ok(file) => {
                        let metadata = file.metadata()?;
                        if !metadata.is_file() {
                            return Err(io::Error::other("it is not a plain file"));
                        }
                        let same = self.mark.inode == metadata.ino() && self.mark.offset <= metadata.len();
                        let offset = if same { self.mark.offset } else { 0 };
                        self.mark = Mark { inode: metadata.ino(), offset };
                        *read = offset;
                        *open = Some(file);
                    }
                    Err(e) if *follow && e.kind() == io::ErrorKind::NotFound => return Ok(Next::Wait(LOOK)),
                    Err(e) => return Err(e),
                },
                From::File { path, open: open @ Some(_), follow, read } => {
                    let Some(file) = open else { continue };
                    let n = file.read_at(self.records.spare(), *read)?;
                    if n > 0 {
                        *read += n as u64;
                        self.records.filled(n);
                        continue;
                    }
                    if file.metadata()?.len() < *read {
                        // It was truncated: it begins anew.
                        (self.mark.offset, *read) = (0, 0);
                        self.records.clear();
                        continue;
                    }
                    let other = match std::fs::metadata(&*path) {
                        Ok(now) => now.ino() != self.mark.inode,
                        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
                        Err(e) => return Err(e),
                    };
                    if !other && *follow {
                        return Ok(Next::Wait(LOOK));
                    }
                    // What was written to the old file before the new one took its place is there by
                    // now: looked at once more, then its last record is whole without a newline.
                    let n = file.read_at(self.records.spare(), *read)?;
                    if n > 0 {
                        *read += n as u64;
                        self.records.filled(n);
                        continue;
                    }
                    if let Some(rest) = self.records.rest() {
                        return Ok(self.taken(rest));
                    }
                    if !other {
                        return Ok(Next::End);
                    }
                    *open = None;
                    self.records.clear();
                    self.mark = Mark::default();
                }
            }
        }
    }

    fn taken(&mut self, found: (std::ops::Range<usize>, usize)) -> Next<'_> {
        self.mark.offset += found.1 as u64;
        self.records.take(found, &mut self.record);
        Next::Record(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn all(follow: &mut Follow) -> Vec<String> {
        let mut out = Vec::new();
        while let Next::Record(record) = follow.pull().unwrap() {
            out.push(String::from_utf8(record.to_vec()).unwrap());
        }
        out
    }

    #[test]
    fn a_growing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut follow = Follow::file(&path, true, None);
        assert_eq!(follow.pull().unwrap(), Next::Wait(LOOK));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"1\n2\n3").unwrap();
        assert_eq!(all(&mut follow), ["1\n", "2\n"]);
        file.write_all(b"4\n").unwrap();
        assert_eq!(all(&mut follow), ["34\n"]);
        // Truncated.
        file.set_len(0).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(all(&mut follow), [""; 0]);
        file.write_all(b"5\n6").unwrap();
        assert_eq!(all(&mut follow), ["5\n"]);
        // Rotated: what is written to the old one before the new one is there counts.
        fs::rename(&path, dir.path().join("f.1")).unwrap();
        file.write_all(b"7\nlast").unwrap();
        assert_eq!(all(&mut follow), ["67\n"]);
        fs::write(&path, "new\n").unwrap();
        assert_eq!(all(&mut follow), ["last\n", "new\n"]);
        // A restart goes on where it was.
        let mut again = Follow::file(&path, true, Some(follow.mark()));
        assert_eq!(all(&mut again), [""; 0]);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(all(&mut again), ["more\n"]);
        assert_eq!(all(&mut Follow::file(&path, true, None)), ["new\n", "more\n"]);
    }

    #[test]
    fn a_stream_ends() {
        let mut follow = Follow::stream(&b"1\n\n2"[..]);
        assert_eq!(all(&mut follow), ["1\n", "\n", "2\n"]);
        assert_eq!(follow.pull().unwrap(), Next::End);
    }

    #[test]
    fn nothing_of_a_long_record_is_lost() {
        for len in [ROOM - 2, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM, 10 * ROOM + 7] {
            let line = "x".repeat(len) + "\nnext\n";
            let mut follow = Follow::stream(io::Cursor::new(line.clone().into_bytes()));
            let records = all(&mut follow);
            assert!(records.iter().all(|r| r.len() <= ROOM && r.ends_with('\n')));
            assert_eq!(records.last().unwrap(), "next\n");
            let glued: String = records.iter().map(|r| r.trim_end()).collect();
            assert_eq!(glued, line.replace('\n', ""), "{len}");
        }
    }
}
