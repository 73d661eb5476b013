//! What a file is, by how it begins; never by its name.

use anyhow::bail;
use piman_core::hosted::unpack::{Packing, packing};

use crate::images::disk_image;

/// A form in which an archive can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// gzip of tar.
    Gzip,
    /// zstd of tar.
    Zstd,
    /// xz of tar.
    Xz,
    /// bzip2 of tar.
    Bzip2,
    /// tar that is not packed.
    Tar,
    /// A folder.
    Folder,
    /// A container image: an OCI image layout.
    Oci,
    /// A container image as `docker save` writes it.
    DockerSave,
    /// An image of a disk, which is kept as what is used of it.
    DiskImage,
    /// zip, with an image of a disk in it.
    Zip,
}

impl Form {
    /// The form of what begins so; 2048 bytes are enough.
    ///
    /// # Errors
    /// If piman cannot take it, with what it is and what to do.
    pub(super) fn of(head: &[u8]) -> anyhow::Result<Self> {
        match packing(head) {
            Some(Packing::Gzip) => return Ok(Self::Gzip),
            Some(Packing::Zstd) => return Ok(Self::Zstd),
            None => {}
        }
        match head {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] if begins_bzip2(rest) => Ok(Self::Bzip2),
            [b'P', b'K', 3, 4, ..] => Ok(Self::Zip),
            _ if Self::is_disk(head) => Ok(Self::DiskImage),
            _ => Self::tar_only(head),
        }
    }

    /// The same for what has to be an archive.
    ///
    /// # Errors
    /// If it is something else, with what it is and what to do.
    pub(super) fn of_archive(head: &[u8]) -> anyhow::Result<Self> {
        match Self::of(head)? {
            Self::Zip | Self::DiskImage => Self::tar_only(head),
            form => Ok(form),
        }
    }

    /// The same for what was packed: another packing in it is not looked into.
    ///
    /// # Errors
    /// If it is no tar archive, with what it is and what to do.
    pub(super) fn tar_only(head: &[u8]) -> anyhow::Result<Self> {
        if is_tar(head) {
            return Ok(Self::Tar);
        }
        if let Some(what) = Self::image(head) {
            bail!(what);
        }
        let at = |offset: usize, magic: &[u8]| has(head, offset, magic);
        let what = match head {
            [] => bail!("it is empty"),
            _ if packing(head).is_some() || at(0, b"\xfd7zXZ\0") || at(0, b"BZh") => "something packed twice",
            _ if at(0, b"PK\x03\x04") => "a zip file",
            _ if at(0, b"7z\xbc\xaf\x27\x1c") => "a 7z file",
            _ if at(0, &[0x04, 0x22, 0x4d, 0x18]) => "an lz4 file",
            _ if at(0, &[0x5d, 0, 0]) => "an lzma file",
            _ if at(0, b"070701") || at(0, b"070707") => "a cpio archive",
            _ if head.iter().all(|b| *b == 0) => "nothing but zeros",
            _ => {
                let begin = head.get(..16).unwrap_or(head).escape_ascii();
                bail!(
                    "it is no archive: it begins with `{begin}`; give a tar archive, plain or in gzip, zstd, xz or \
                     bzip2, or a folder"
                );
            }
        };
        bail!("it is {what}: unpack it, and add the tar archive or the folder that is in it")
    }

    /// Whether what begins so is an image of a disk.
    pub(super) fn is_disk(head: &[u8]) -> bool {
        disk_image::begins(head) && !is_tar(head)
    }

    /// Says so if what begins like this is an image, and what to do.
    pub(super) fn image(head: &[u8]) -> Option<&'static str> {
        if is_tar(head) {
            None
        } else if Self::is_disk(head) {
            Some("it is an image of a disk within something else: unpack it, and add the image")
        } else if has(head, 1080, &[0x53, 0xef]) || has(head, 0, b"hsqs") {
            Some(
                "it is an image of a filesystem, not an archive: mount it, and add the folder where it is mounted",
            )
        } else {
            None
        }
    }

    /// Whether Pis can read it as it is.
    #[must_use]
    pub fn is_served(self) -> bool {
        matches!(self, Self::Gzip | Self::Zstd)
    }

    /// Whether it has layers.
    #[must_use]
    pub fn is_container(self) -> bool {
        matches!(self, Self::Oci | Self::DockerSave)
    }

    /// What the form is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip of tar",
            Self::Zstd => "zstd of tar",
            Self::Xz => "xz of tar",
            Self::Bzip2 => "bzip2 of tar",
            Self::Tar => "tar",
            Self::Folder => "a folder",
            Self::Oci => "a container image (OCI)",
            Self::DockerSave => "a container image (docker save)",
            Self::DiskImage => "an image of a disk",
            Self::Zip => "zip",
        }
    }

    pub(super) fn suffix(self) -> &'static str {
        if self == Self::Zstd { ".tar.zst" } else { ".tar.gz" }
    }
}

/// Whether a block of bzip2 begins so, or its end if there is none; also one that is cut.
fn begins_bzip2(rest: &[u8]) -> bool {
    let rest = rest.get(..6).unwrap_or(rest);
    [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"].iter().any(|magic| magic.starts_with(rest))
}

fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

/// Whether the first 512 bytes are a tar header: their checksum says so, in archives of every age.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else { return false };
    let digits = block.get(148..156).unwrap_or_default();
    let digits = digits.split(|b| !b.is_ascii_digit()).find(|d| !d.is_empty()).unwrap_or_default();
    let stored = digits.iter().fold(0_u32, |sum, d| sum << 3 | u32::from(d & 7));
    let sum = |byte: fn(u8) -> i64| -> i64 {
        let of = |(at, b): (usize, &u8)| if (148..156).contains(&at) { i64::from(b' ') } else { byte(*b) };
        block.iter().enumerate().map(of).sum()
    };
    // Some old archivers added the bytes as signed ones.
    !digits.is_empty()
        && (sum(i64::from) == i64::from(stored) || sum(|b| i64::from(b as i8)) == i64::from(stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..4].copy_from_slice(b"file");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn forms_by_their_beginnings() {
        for (head, form) in [
            (&b"\x1f\x8b\x08"[..], Form::Gzip),
            (b"\x28\xb5\x2f\xfd", Form::Zstd),
            (b"\xfd7zXZ\0\0\x04", Form::Xz),
            (b"BZh91AY&SY", Form::Bzip2),
            (b"BZh9\x17\x72\x45\x38\x50\x90", Form::Bzip2),
            (b"PK\x03\x04", Form::Zip),
            // Older than `ustar`.
            (&header(), Form::Tar),
        ] {
            assert_eq!(Form::of(head).unwrap(), form, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn what_is_not_taken_is_named() {
        let at = |offset: usize, magic: &[u8]| {
            let mut head = vec![1; 2048];
            head[offset..offset + magic.len()].copy_from_slice(magic);
            head
        };
        let mut damaged = header();
        damaged[3] ^= 1;
        for (head, want) in [
            (vec![], "empty"),
            (vec![0; 2048], "zeros"),
            (at(1080, &[0x53, 0xef]), "image of a filesystem"),
            (at(0, b"BZhello"), "packed twice"),
            (damaged, "no archive: it begins with `fil"),
            (b"#!/bin/sh".to_vec(), "no archive: it begins with `#!/bin/sh`"),
        ] {
            let e = Form::of(&head).unwrap_err().to_string();
            assert!(e.contains(want), "{want}: {e}");
        }
        for head in [at(510, &[0x55, 0xaa]), at(512, b"EFI PART")] {
            assert_eq!(Form::of(&head).unwrap(), Form::DiskImage);
        }
        assert!(Form::tar_only(b"\x1f\x8b\x08").unwrap_err().to_string().contains("packed twice"));
    }
}
