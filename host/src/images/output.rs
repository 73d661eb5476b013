//! The folder that files of an image are written into.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};

/// The largest file that is taken, in bytes.
const FILE_MAX: u64 = 256 << 20;
/// The most that is taken in all, in bytes.
const BYTES_MAX: u64 = 2 << 30;
/// The most files.
const FILES_MAX: usize = 20_000;

/// Where wanted files go, and how much has come.
pub(crate) struct Output<'a> {
    to: &'a Path,
    wanted: &'a dyn Fn(&str) -> Option<String>,
    names: Vec<String>,
    left: u64,
}

impl<'a> Output<'a> {
    pub(crate) fn new(to: &'a Path, wanted: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { to, wanted, names: Vec::new(), left: BYTES_MAX }
    }

    /// What a file is called here; `None`: it is not wanted.
    pub(crate) fn wants(&self, path: &str) -> Option<String> {
        (self.wanted)(path)
    }

    /// Writes a file whose size is `bytes`. What comes later under the same name replaces it.
    pub(crate) fn put(&mut self, name: String, bytes: u64, content: &mut dyn Read) -> anyhow::Result<()> {
        let path = self.admit(&name, bytes)?;
        let mut write = || -> io::Result<u64> {
            fs::create_dir_all(path.parent().unwrap_or(self.to))?;
            io::copy(&mut content.take(bytes), &mut File::create(&path)?)
        };
        let written = write().with_context(|| format!("writing {}", path.display()))?;
        ensure!(written == bytes, "{name} ends too early");
        self.names.push(name);
        Ok(())
    }

    /// The same with a content that is made in memory, if there is room for it.
    pub(crate) fn put_made(
        &mut self,
        name: String,
        bytes: u64,
        make: &mut dyn FnMut() -> io::Result<Vec<u8>>,
    ) -> anyhow::Result<()> {
        self.check(&name, bytes)?;
        let content = make().with_context(|| format!("reading {name}"))?;
        self.put(name, content.len() as u64, &mut &*content)
    }

    /// Whether there is room for one more.
    fn check(&self, name: &str, bytes: u64) -> anyhow::Result<()> {
        ensure!(bytes <= FILE_MAX, "{name} is larger than {} MiB", FILE_MAX >> 20);
        let fits = bytes <= self.left && self.names.len() < FILES_MAX;
        ensure!(fits, "there is more of it than any system boots with");
        // Names are made by whoever asks, from names of the image.
        let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(is_inside && !name.is_empty(), "{name:?} leads out of the folder");
        Ok(())
    }

    fn admit(&mut self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        self.check(name, bytes)?;
        self.left = self.left.saturating_sub(bytes);
        Ok(self.to.join(name))
    }

    pub(crate) fn names(mut self) -> Vec<String> {
        self.names.sort();
        self.names.dedup();
        self.names
    }
}
