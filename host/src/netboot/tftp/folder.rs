//! From the name in a request to an open file, with no way out of the folder.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::sys::mac::Mac;

/// The folder that is served: `NAME` for all, `SERIAL/NAME` for one Pi.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// The folder of those with the files of single images.
pub const IMAGES: &str = "images";

/// An open file.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub file: File,
    /// Its length when it was opened.
    pub length: u64,
    /// Where it was, below the folder.
    pub name: String,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoFile {
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// The name could lead out of the folder.
    #[error("the name leads out of the folder")]
    Outside,
    /// Whoever asks is not in the device list.
    #[error("this Pi is not in the device list (--only-known)")]
    NotListed,
    /// `boot.img` and `boot.sig` do not belong together.
    #[error("boot.sig is not the one of this boot.img: they are being replaced, or damaged")]
    NoPair,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl From<Errno> for NoFile {
    fn from(e: Errno) -> Self {
        match e {
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR => Self::Missing,
            Errno::XDEV | Errno::LOOP => Self::Outside,
            e => Self::Unreadable(e.into()),
        }
    }
}

impl Folder {
    /// The folder at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens what is called `asked`. If that is `SERIAL/NAME`, it is looked for there first, and
    /// then as `NAME`: in the folder of the image that is meant for whoever asks, if there is one, else in the folder
    /// itself. Kernel and modules of one system and device trees of another would not boot, so it is never in both.
    ///
    /// # Errors
    /// [`NoFile`] if there is no such file, or it must not be sent.
    pub fn open(&self, asked: &str, image: Option<&str>) -> Result<Found, NoFile> {
        let name = clean(asked)?;
        let own = own_part(&name);
        if own.is_some() {
            match self.open_exactly(&name) {
                Err(NoFile::Missing) => {}
                found => return found,
            }
        }
        let common = own.map_or(&*name, |(_, common)| common);
        match image.and_then(|image| self.of_image(image)) {
            Some(folder) => self.open_exactly(&format!("{folder}/{common}")),
            None => self.open_exactly(common),
        }
    }

    /// Opens the file of this name in the folder in which another one was found.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_beside(&self, found: &str, name: &str) -> Result<Found, NoFile> {
        match found.rsplit_once('/') {
            Some((folder, _)) => self.open_exactly(&format!("{folder}/{name}")),
            None => self.open_exactly(name),
        }
    }

    /// The folder of an image, as it is called in this one; `None` if it has no folder.
    fn of_image(&self, image: &str) -> Option<String> {
        let is_name = !image.is_empty() && image != "." && image != ".." && !image.contains('/');
        let name = format!("{IMAGES}/{image}");
        (is_name && self.0.join(&name).is_dir()).then_some(name)
    }

    fn open_exactly(&self, name: &str) -> Result<Found, NoFile> {
        // Opened anew each time: whoever builds the folder anew may replace it as a whole.
        let folder = openat(CWD, &self.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Not blocked by a pipe that somebody left there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match openat2(&folder, name, flags, Mode::empty(), beneath) {
            Err(Errno::NOSYS | Errno::PERM) => step_by_step(folder, name, flags)?,
            opened => opened?,
        };
        let file = File::from(file);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(NoFile::Missing);
        }
        Ok(Found { file, length: found.len(), name: name.to_owned() })
    }
}

/// For kernels without `openat2`: no symbolic link is followed at all.
fn step_by_step(mut at: OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, NoFile> {
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        let flags = match parts.peek() {
            Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            None => flags,
        };
        at = openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(at)
}

/// A name below the folder: without empty parts, `.` and a leading `/`. The folder is the root of
/// all names, as with other TFTP servers.
fn clean(asked: &str) -> Result<String, NoFile> {
    if asked.contains(|c: char| c == '\\' || !piman_core::text::is_shown(c)) {
        return Err(NoFile::Outside);
    }
    let parts: Vec<&str> = asked.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(NoFile::Outside);
    }
    if parts.is_empty() {
        return Err(NoFile::Missing);
    }
    Ok(parts.join("/"))
}

/// If the first part of a name says which Pi asks (a serial number of 8 or 16 digits, or a hardware
/// address with `-`, as Pis can be set to): that, and the rest.
#[must_use]
pub fn own_part(name: &str) -> Option<(&str, &str)> {
    let (first, rest) = name.trim_start_matches('/').split_once('/')?;
    let serial = matches!(first.len(), 8 | 16) && first.bytes().all(|b| b.is_ascii_hexdigit());
    let mac = || !first.contains(':') && first.parse::<Mac>().is_ok();
    (serial || mac()).then_some((first, rest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let boot = dir.path().join("boot");
        fs::create_dir_all(boot.join("abcdef01")).unwrap();
        fs::create_dir_all(boot.join("overlays")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(boot.join("kernel8.img"), "kernel").unwrap();
        fs::write(boot.join("config.txt"), "common").unwrap();
        fs::write(boot.join("abcdef01/config.txt"), "its own").unwrap();
        fs::write(boot.join("overlays/a.dtbo"), "o").unwrap();
        symlink("../secret", boot.join("out")).unwrap();
        symlink(dir.path().join("secret"), boot.join("absolute")).unwrap();
        symlink("..", boot.join("up")).unwrap();
        symlink("kernel8.img", boot.join("inside")).unwrap();
        let folder = Folder::new(&boot);
        (dir, folder)
    }

    fn text(folder: &Folder, name: &str) -> Option<(String, String)> {
        let mut found = folder.open(name, None).ok()?;
        let mut text = String::new();
        io::Read::read_to_string(&mut found.file, &mut text).unwrap();
        assert_eq!(found.length, text.len() as u64);
        Some((found.name, text))
    }

    #[test]
    fn its_own_file_first_and_then_the_common_one() {
        let (_dir, folder) = folder();
        let is = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(text(&folder, "abcdef01/config.txt"), is("abcdef01/config.txt", "its own"));
        assert_eq!(text(&folder, "abcdef01/kernel8.img"), is("kernel8.img", "kernel"));
        assert_eq!(text(&folder, "11111111/config.txt"), is("config.txt", "common"));
        assert_eq!(text(&folder, "dc-a6-32-01-36-c2/overlays/a.dtbo"), is("overlays/a.dtbo", "o"));
        assert_eq!(text(&folder, "/kernel8.img"), is("kernel8.img", "kernel"));
        assert_eq!(text(&folder, "./overlays//a.dtbo"), is("overlays/a.dtbo", "o"));
        assert_eq!(text(&folder, "inside"), is("inside", "kernel"));
        let beside = |found: &str| folder.open_beside(found, "config.txt").unwrap().name;
        assert_eq!([beside("kernel8.img"), beside("abcdef01/x")], ["config.txt", "abcdef01/config.txt"]);
    }

    #[test]
    fn all_files_of_one_image_or_none() {
        let (_dir, folder) = folder();
        let lab = folder.path().join("images/lab");
        fs::create_dir_all(&lab).unwrap();
        fs::write(lab.join("kernel8.img"), "lab's").unwrap();
        let text = |asked: &str, image: &str| {
            let mut found = folder.open(asked, Some(image)).ok()?;
            let mut text = String::new();
            io::Read::read_to_string(&mut found.file, &mut text).unwrap();
            Some(text)
        };
        for (asked, image, content) in [
            ("abcdef01/kernel8.img", "lab", Some("lab's")),
            ("kernel8.img", "lab", Some("lab's")),
            ("abcdef01/config.txt", "lab", Some("its own")),
            ("config.txt", "lab", None),
            ("11111111/overlays/a.dtbo", "lab", None),
            ("11111111/overlays/a.dtbo", "other", Some("o")),
            ("kernel8.img", "..", Some("kernel")),
            ("kernel8.img", "", Some("kernel")),
            ("kernel8.img", "lab/../lab", Some("kernel")),
        ] {
            assert_eq!(text(asked, image).as_deref(), content, "{asked} of {image}");
        }
    }

    #[test]
    fn there_is_no_way_out() {
        let (_dir, folder) = folder();
        for name in [
            "../secret",
            "abcdef01/../../secret",
            "/../secret",
            "..",
            "out",
            "absolute",
            "up/secret",
            "..\\secret",
            "abcdef01/up/secret",
            "a\nb",
            "11111111/out",
        ] {
            assert!(
                matches!(folder.open(name, None), Err(NoFile::Outside)),
                "{name}: {:?}",
                folder.open(name, None)
            );
        }
        for name in
            ["secret", "/etc/passwd", "abcdef01", "overlays", "", "/", "config.txt/x", "abcdef01/none"]
        {
            assert!(
                matches!(folder.open(name, None), Err(NoFile::Missing)),
                "{name}: {:?}",
                folder.open(name, None)
            );
        }
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let (_dir, folder) = folder();
        let open = |name| {
            let at = openat(CWD, folder.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
            step_by_step(at, name, OFlags::RDONLY | OFlags::CLOEXEC)
        };
        assert!(open("overlays/a.dtbo").is_ok());
        for name in ["out", "up/secret", "inside"] {
            assert!(open(name).is_err(), "{name}");
        }
    }
}
