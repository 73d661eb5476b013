//! A small but real root filesystem for a first try: a few thousand entries of
//! all kinds, about 100 MB, made here.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// 2026-01-01T00:00:00Z: the archive is the same however often it is made.
const MADE: u64 = 1_767_225_600;

const PACKAGES: u32 = 120;
const FILES: u32 = 24;
const LIBRARIES: u32 = 40;
const LIBRARY_BYTES: usize = 2 << 20;

/// Writes the archive to `path`.
///
/// # Errors
/// If it cannot be written.
pub(super) fn make(path: &Path) -> anyhow::Result<()> {
    let what = || format!("making a root filesystem at {}", path.display());
    let file = File::create(path).with_context(what)?;
    let gzip = GzEncoder::new(BufWriter::with_capacity(1 << 20, file), Compression::fast());
    let mut root = Root { tar: Builder::new(gzip), random: 0x9e37_79b9_7f4a_7c15 };
    root.fill().with_context(what)?;
    let file = root.tar.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all().with_context(what)
}

struct Root<W: Write> {
    tar: Builder<W>,
    random: u64,
}

impl<W: Write> Root<W> {
    fn fill(&mut self) -> anyhow::Result<()> {
        for dir in [
            "",
            "bin",
            "dev",
            "etc",
            "home/pi",
            "lib",
            "proc",
            "root",
            "run",
            "sbin",
            "sys",
            "usr/lib",
            "usr/share/doc",
            "var/log",
        ] {
            self.dir(&format!("./{dir}"), 0o755)?;
        }
        self.dir("./tmp", 0o1777)?;
        self.programs()?;
        for (name, text) in [
            ("etc/hostname", "demo-pi\n"),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\npi:x:1000:1000::/home/pi:/bin/sh\n"),
            ("etc/fstab", "/dev/mmcblk0p2 / ext4 defaults,noatime 0 1\n"),
            ("etc/os-release", "NAME=\"piman demo\"\nID=piman-demo\n"),
        ] {
            self.file(&format!("./{name}"), 0o644, text.as_bytes())?;
        }
        self.file("./etc/shadow", 0o640, b"root:*:20000:0:99999:7:::\n")?;
        self.node("./dev/null", EntryType::Char, (1, 3))?;
        self.node("./dev/console", EntryType::Char, (5, 1))?;
        self.node("./dev/mmcblk0", EntryType::Block, (179, 0))?;
        self.node("./run/initctl", EntryType::Fifo, (0, 0))?;
        for package in 0..PACKAGES {
            let dir = format!("./usr/share/doc/package-{package:03}");
            self.dir(&dir, 0o755)?;
            for file in 0..FILES {
                let bytes = self.text((package * 97 + file * 431) as usize % 20_000);
                self.file(&format!("{dir}/chapter-{file:02}.txt"), 0o644, &bytes)?;
            }
            self.link(EntryType::Link, &format!("{dir}/first.txt"), &format!("{dir}/chapter-00.txt"))?;
            self.link(EntryType::Symlink, &format!("{dir}/latest"), "chapter-23.txt")?;
        }
        for library in 0..LIBRARIES {
            let bytes = self.binary(LIBRARY_BYTES);
            self.file(&format!("./usr/lib/libdemo{library}.so.1.0"), 0o755, &bytes)?;
            self.link(
                EntryType::Symlink,
                &format!("./usr/lib/libdemo{library}.so"),
                &format!("libdemo{library}.so.1.0"),
            )?;
        }
        let long = format!("./home/pi/{}/{}", "a-rather-long-name-".repeat(8), "and-another-one-".repeat(12));
        self.file(&long, 0o600, b"names may be long\n")?;
        self.extended("./home/pi/annotated", &[("user.note", b"an extended attribute\nof two lines")])
    }

    /// This system's own static busybox if it has one, so that the card could really boot.
    fn programs(&mut self) -> anyhow::Result<()> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox"];
        match busybox.iter().find_map(|p| std::fs::read(p).ok()) {
            Some(bytes) => {
                self.file("./bin/busybox", 0o755, &bytes)?;
                for name in ["sh", "ls", "cat", "mount", "ps", "vi"] {
                    self.link(EntryType::Symlink, &format!("./bin/{name}"), "busybox")?;
                }
                self.link(EntryType::Symlink, "./sbin/init", "../bin/busybox")?;
            }
            None => self.file("./bin/sh", 0o755, b"#!/bin/true\n")?,
        }
        let bytes = self.binary(60_000);
        self.file("./bin/su", 0o4755, &bytes)
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(MADE);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = Self::header(EntryType::Regular, mode, bytes.len() as u64);
        Ok(self.tar.append_data(&mut header, name, bytes)?)
    }

    fn dir(&mut self, name: &str, mode: u32) -> anyhow::Result<()> {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        Ok(self.tar.append_data(&mut header, format!("{name}/"), io::empty())?)
    }

    fn link(&mut self, kind: EntryType, name: &str, target: &str) -> anyhow::Result<()> {
        let mut header = Self::header(kind, 0o777, 0);
        Ok(self.tar.append_link(&mut header, name, target)?)
    }

    fn node(&mut self, name: &str, kind: EntryType, (major, minor): (u32, u32)) -> anyhow::Result<()> {
        let mut header = Self::header(kind, 0o660, 0);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        Ok(self.tar.append_data(&mut header, name, io::empty())?)
    }

    fn extended(&mut self, name: &str, attributes: &[(&str, &[u8])]) -> anyhow::Result<()> {
        let names: Vec<String> = attributes.iter().map(|(n, _)| format!("SCHILY.xattr.{n}")).collect();
        self.tar.append_pax_extensions(
            names.iter().map(String::as_str).zip(attributes.iter().map(|(_, v)| *v)),
        )?;
        self.file(name, 0o644, b"this file has an extended attribute\n")
    }

    fn next(&mut self) -> u64 {
        // xorshift64: numbers that look random and are the same every time.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn text(&mut self, length: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "the", "card", "is", "written", "once", "and", "read", "many", "times", "by", "a", "small",
            "computer", "in", "this", "room\n",
        ];
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            let word = WORDS.get((self.next() % 16) as usize).copied().unwrap_or_default();
            text.extend_from_slice(word.as_bytes());
            text.push(b' ');
        }
        text
    }

    /// Half of it repeats, as machine code does.
    fn binary(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length {
            let n = self.next();
            bytes.extend_from_slice(&n.to_le_bytes());
            bytes.extend_from_slice(&(n & 0x00ff_0000_00ff).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_whole_archive_of_all_kinds_and_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.tgz"), folder.path().join("b.tgz"));
        make(&a).unwrap();
        make(&b).unwrap();
        assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&a).unwrap()));
        let mut kinds = std::collections::BTreeMap::new();
        let mut bytes = 0;
        for entry in tar.entries().unwrap() {
            let entry = entry.unwrap();
            *kinds.entry(format!("{:?}", entry.header().entry_type())).or_insert(0) += 1;
            bytes += entry.size();
        }
        assert_eq!(kinds.len(), 7, "{kinds:?}");
        assert!(kinds["Regular"] > 2500 && bytes > 90 << 20, "{kinds:?}, {bytes} bytes");
    }
}
