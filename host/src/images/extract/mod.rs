//! Single files of an image, written into a folder: what boots Pis from the network comes from the system that they get.

mod archive;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;

use crate::images::disk_image;
use crate::images::output::Output;

/// As much of a file's beginning says what it is.
const HEAD: usize = 2048;

/// Writes files of the archive or disk image at `image` into the folder `to`, and returns their names there, in order.
/// `wanted` is asked with each file's path in the system, without a slash in front, and says what it is called below
/// `to`. What is in the partition that a disk image boots from is at `boot/firmware/`. Links are passed over.
///
/// # Errors
/// If something cannot be read or written, or there is more of it than any system boots with.
pub fn extract(
    image: &Path,
    wanted: &dyn Fn(&str) -> Option<String>,
    to: &Path,
) -> anyhow::Result<Vec<String>> {
    let shown = image.display();
    let file = File::open(image).with_context(|| format!("opening {shown}"))?;
    let mut head = [0; HEAD];
    let length = file.read_at(&mut head, 0).with_context(|| format!("reading {shown}"))?;
    let mut output = Output::new(to, wanted);
    let done = match disk_image::begins(head.get(..length).unwrap_or_default()) {
        true => disk_image::extract(&file, &mut output),
        false => archive::extract(&file, &mut output),
    };
    done.with_context(|| format!("taking files from {shown}"))?;
    Ok(output.names())
}
