//! The filesystem that the firmware boots from, read and written without the kernel, which need not know it.
//!
//! | file | what lives there |
//! |---|---|
//! | `clock` | the date that files get |
//! | `overlay` | changes that are whole whenever the power is cut |
//! | `check` | whether one is whole enough to be changed |

mod check;
mod clock;
mod overlay;

use std::cell::Cell;
#[cfg(test)]
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};

use anyhow::{Context, bail, ensure};
use fatfs::{Dir, FileSystem, FsOptions};
use piman_core::text::is_fat_name;

use super::disk::{RootArea, Window};
use clock::Clock;
use overlay::{Kept, Overlay};

/// What a file is called until it is whole.
const NEW: &str = ".piman-new";
/// And of the one that it replaces.
const OLD: &str = ".piman-old";
/// How much is copied at once, in bytes.
const PIECE: usize = 64 << 10;
/// How deep folders may be in each other.
const DEPTH_MAX: usize = 128;

/// A filesystem of a partition. Nobody else may use it meanwhile.
pub(crate) struct Fat<'d> {
    fs: FileSystem<Overlay<'d>>,
    /// What is not written yet.
    kept: Option<Kept>,
    disk: &'d File,
    area: RootArea,
    /// Whether a folder was made.
    untidy: Cell<bool>,
    /// What was written, for tests that want to know.
    #[cfg(test)]
    recorded: RefCell<Option<Vec<overlay::Step>>>,
}

/// What a name in a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
}

impl<'d> Fat<'d> {
    /// Looks at all of it before it is used.
    ///
    /// # Errors
    /// If there is no FAT filesystem, or it is damaged.
    pub(crate) fn open(disk: &'d File, area: &RootArea) -> anyhow::Result<Self> {
        Self::with(disk, area, Some(Kept::default()))
    }

    /// The same to be filled, for a card that does not count as installed: what is written is written at once.
    ///
    /// # Errors
    /// Like [`open`](Self::open).
    pub(crate) fn to_fill(disk: &'d File, area: &RootArea) -> anyhow::Result<Self> {
        Self::with(disk, area, None)
    }

    fn with(disk: &'d File, area: &RootArea, kept: Option<Kept>) -> anyhow::Result<Self> {
        let window = || Window::new(disk, area.offset, area.length);
        let what = || format!("the FAT filesystem at byte {}", area.offset);
        check::check(&window()).with_context(|| format!("{} is damaged: fsck.fat repairs it", what()))?;
        let overlay = Overlay::new(window(), kept.clone());
        let fs = FileSystem::new(overlay, FsOptions::new().time_provider(&Clock)).with_context(what)?;
        Ok(Self {
            fs,
            kept,
            disk,
            area: *area,
            untidy: Cell::new(false),
            #[cfg(test)]
            recorded: RefCell::default(),
        })
    }

    /// What is at this path; `None`: nothing.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn kind(&self, path: &str) -> io::Result<Option<Kind>> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(None) };
        match find(&parent, name)? {
            Some((true, _)) => Ok(Some(Kind::Folder)),
            Some((false, _)) => Ok(Some(Kind::File)),
            None => Ok(None),
        }
    }

    /// The names in a folder; none if it is not there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let root = self.fs.root_dir();
        let folder = match path.trim_matches('/') {
            "" => root,
            inner => match root.open_dir(inner) {
                Ok(folder) => folder,
                Err(_) => return Ok(Vec::new()),
            },
        };
        let names = folder.iter().map(|entry| entry.map(|entry| entry.file_name()));
        let is_real = |name: &io::Result<String>| !matches!(name.as_deref(), Ok("." | ".."));
        names.filter(is_real).collect()
    }

    /// A file of at most `max` bytes; `None` if it does not exist.
    ///
    /// # Errors
    /// The disk's, or if it is a folder or larger.
    pub(crate) fn read(&self, path: &str, max: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(None) };
        self.restore(&parent, name)?;
        match find(&parent, name)? {
            None => return Ok(None),
            Some((is_folder, length)) => {
                ensure!(!is_folder, "{path} is a folder");
                ensure!(length <= max, "{path} has {length} bytes, more than {max}");
            }
        }
        let mut bytes = Vec::new();
        parent.open_file(name)?.take(max).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes a file with the folders that it needs. Whenever this is broken off, the old one or the new one is there.
    ///
    /// # Errors
    /// The disk's; if it is full, or FAT cannot have such a name.
    pub(crate) fn write(&self, path: &str, mut bytes: &[u8]) -> anyhow::Result<()> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        check_name(name)?;
        let is_there = self.read(path, bytes.len() as u64).ok().flatten().as_deref() == Some(bytes);
        if is_there && self.count(path)? == 1 {
            return Ok(());
        }
        let folder = self.make_folder(folder)?;
        let new = format!("{name}{NEW}");
        absent_or(folder.remove(&new))?;
        absent_or(folder.remove(&format!("{name}{OLD}")))?;
        if let Err(e) = copy(&mut bytes, &folder, &new) {
            // Of no use, and the disk may be full of it.
            absent_or(folder.remove(&new))?;
            self.commit()?;
            return Err(e);
        }
        // There are two where this was broken off before.
        while find(&folder, name)?.is_some() {
            folder.remove(name)?;
        }
        folder.rename(&new, &folder, name)?;
        self.commit()
    }

    /// How many files or folders have this name.
    fn count(&self, path: &str) -> io::Result<usize> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(0) };
        let names = parent.iter().map(|entry| entry.map(|entry| is_called(&entry.file_name(), name)));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().filter(|is_it| *is_it).count())
    }

    /// Writes what was kept back, in its order.
    fn commit(&self) -> anyhow::Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let window = Window::new(self.disk, self.area.offset, self.area.length);
        for step in overlay::steps(&window, &kept.borrow())? {
            for (at, bytes) in &step {
                window.write_all_at(*at, bytes).context("writing to the boot partition")?;
            }
            self.disk.sync_data().context("writing to the boot partition")?;
            #[cfg(test)]
            if let Some(recorded) = &mut *self.recorded.borrow_mut() {
                recorded.push(step);
            }
        }
        kept.borrow_mut().clear();
        Ok(())
    }

    /// Puts a file back that was being replaced when that was broken off.
    fn restore(&self, folder: &Dir<'_, Overlay<'d>>, name: &str) -> anyhow::Result<()> {
        if find(folder, name)?.is_none() {
            for other in [NEW, OLD].map(|end| format!("{name}{end}")) {
                if find(folder, &other)?.is_some() {
                    folder.rename(&other, folder, name)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Copies a file that is not there yet, for a filesystem that nobody uses before all of it is there.
    ///
    /// # Errors
    /// Like [`Self::write`].
    pub(crate) fn copy(&self, path: &str, from: &mut impl Read) -> anyhow::Result<()> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        check_name(name)?;
        copy(from, &self.make_folder(folder)?, name)?;
        self.commit()
    }

    /// A folder, made with its parents.
    ///
    /// # Errors
    /// Like [`Self::write`].
    pub(crate) fn folder(&self, path: &str) -> anyhow::Result<()> {
        self.make_folder(path)?;
        self.commit()
    }

    fn make_folder(&self, path: &str) -> anyhow::Result<Dir<'_, Overlay<'d>>> {
        let mut folder = self.fs.root_dir();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            check_name(name)?;
            if find(&folder, name)?.is_none() {
                self.untidy.set(true);
            }
            folder = folder.create_dir(name).with_context(|| format!("making the folder {path}"))?;
        }
        Ok(folder)
    }

    /// Takes away a file, or a folder with all that is in it, if it is there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn remove(&self, path: &str) -> anyhow::Result<()> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(()) };
        while let Some((is_folder, _)) = find(&parent, name)? {
            if is_folder {
                empty(parent.open_dir(name)?)?;
            }
            parent.remove(name)?;
        }
        self.commit()
    }

    /// The room that is left, in bytes.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn free(&self) -> io::Result<u64> {
        let stats = self.fs.stats()?;
        Ok(u64::from(stats.free_clusters()) * u64::from(stats.cluster_size()))
    }

    /// The size of its clusters, in bytes.
    pub(crate) fn cluster(&self) -> u64 {
        self.fs.cluster_size().into()
    }

    /// Writes what is only in memory.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.commit()?;
        let Self { fs, kept, disk, area, untidy, .. } = self;
        fs.unmount()?;
        if let Some(kept) = kept {
            let window = Window::new(disk, area.offset, area.length);
            // How much is free, which is a hint.
            for (at, bytes) in overlay::steps(&window, &kept.borrow())?.into_iter().flatten() {
                window.write_all_at(at, &bytes)?;
            }
        }
        if untidy.get() {
            check::tidy(&Window::new(disk, area.offset, area.length))?;
        }
        Ok(())
    }

    /// The folder of a path, if it is there, and the name in it.
    fn parent<'p>(&self, path: &'p str) -> io::Result<Option<(Dir<'_, Overlay<'d>>, &'p str)>> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent = self.fs.root_dir();
        for name in folder.split('/').filter(|name| !name.is_empty()) {
            match find(&parent, name)? {
                Some((true, _)) => parent = parent.open_dir(name)?,
                _ => return Ok(None),
            }
        }
        Ok(Some((parent, name)))
    }
}

/// Whether this is the name, not by case, as whoever reads it.
fn is_called(found: &str, name: &str) -> bool {
    found.chars().flat_map(char::to_uppercase).eq(name.chars().flat_map(char::to_uppercase))
}

/// Whether a name in a folder is a folder, and how long it is, in bytes.
fn find(folder: &Dir<'_, Overlay<'_>>, name: &str) -> io::Result<Option<(bool, u64)>> {
    for entry in folder.iter() {
        let entry = entry?;
        if is_called(&entry.file_name(), name) || is_called(&entry.short_file_name(), name) {
            return Ok(Some((entry.is_dir(), entry.len())));
        }
    }
    Ok(None)
}

/// Takes away all that is in a folder, the innermost first.
fn empty(folder: Dir<'_, Overlay<'_>>) -> io::Result<()> {
    let mut todo = vec![folder];
    while let Some(folder) = todo.last() {
        let Some((name, is_folder)) = first(folder)? else {
            todo.pop();
            continue;
        };
        // The library takes some names for paths, and follows them.
        if check_name(&name).is_err() || todo.len() > DEPTH_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "a folder is damaged"));
        }
        match is_folder.then(|| folder.open_dir(&name)).transpose()? {
            Some(inner) if first(&inner)?.is_some() => todo.push(inner),
            _ => folder.remove(&name)?,
        }
    }
    Ok(())
}

/// What comes first in a folder, and whether it is one itself.
fn first(folder: &Dir<'_, Overlay<'_>>) -> io::Result<Option<(String, bool)>> {
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.as_str(), "." | "..") {
            return Ok(Some((name, entry.is_dir())));
        }
    }
    Ok(None)
}

fn copy(from: &mut impl Read, folder: &Dir<'_, Overlay<'_>>, name: &str) -> anyhow::Result<()> {
    let what = || format!("writing {name} on the boot partition");
    let mut file = folder.create_file(name).with_context(what)?;
    file.truncate().with_context(what)?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).with_context(|| format!("reading {name}")),
        };
        file.write_all(piece.get(..length).unwrap_or_default()).with_context(what)?;
    }
    file.flush().with_context(what)
}

/// Whether FAT can have such a name; whoever made the library lets folders have others.
fn check_name(name: &str) -> anyhow::Result<()> {
    if !is_fat_name(name) {
        bail!("{name:?} can be no name on the boot partition, which is a FAT filesystem");
    }
    Ok(())
}

fn absent_or(result: io::Result<()>) -> io::Result<()> {
    super::root_files::unless_absent(result)
}

#[cfg(test)]
mod tests;
