//! What a bmap says, kept behind the image in our own copy of it: where it had no content, the copy has holes, and only
//! this tells them from zeros that a card needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 8] = *b"PIMANMAP";
/// Magic, bytes of the image, number of runs.
const END: u64 = 24;
/// More runs than this are joined.
const RUNS_MAX: usize = 1 << 16;

/// Runs of bytes, as beginning and end.
type Runs = Vec<(u64, u64)>;

/// Writes what is mapped behind an image of so many bytes.
///
/// # Errors
/// If it cannot be written.
pub fn write(file: &File, length: u64, mapped: &[(u64, u64)]) -> io::Result<()> {
    let mapped = super::joined(mapped.to_vec(), RUNS_MAX);
    let numbers = mapped.iter().flat_map(|(start, end)| [*start, *end]).chain([length, mapped.len() as u64]);
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    bytes.extend(MAGIC);
    file.write_all_at(&bytes, length)
}

/// How long the image in a file of so many bytes is, and what is mapped in it, if that is said.
pub(super) fn split(file: &File, length: u64) -> io::Result<(u64, Option<Runs>)> {
    let none = Ok((length, None));
    let mut end = [0; END as usize];
    let Some(at) = length.checked_sub(END) else { return none };
    file.read_exact_at(&mut end, at)?;
    let [image, count, magic] = [0, 8, 16].map(|from| end.get(from..from + 8).unwrap_or_default());
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let (image, count) = (number(image), number(count));
    let is_one = magic == MAGIC && count <= RUNS_MAX as u64 && image.checked_add(count * 16) == Some(at);
    if !is_one {
        return none;
    }
    let mut bytes = vec![0; usize::try_from(count * 16).unwrap_or(0)];
    file.read_exact_at(&mut bytes, image)?;
    let runs: Runs = bytes
        .as_chunks::<16>()
        .0
        .iter()
        .map(|run| (number(run), number(run.get(8..).unwrap_or_default())))
        .collect();
    let sorted = runs.iter().all(|(start, end)| start < end) && runs.is_sorted_by(|a, b| a.1 < b.0);
    Ok(if sorted { (image, Some(runs)) } else { (length, None) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_an_image() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(split(&file, 1 << 20).unwrap(), (1 << 20, None));
        let mapped = vec![(0, 4096), (8192, 1 << 20)];
        write(&file, 1 << 20, &mapped).unwrap();
        let length = file.metadata().unwrap().len();
        assert_eq!(length, (1 << 20) + 32 + END);
        assert_eq!(split(&file, length).unwrap(), (1 << 20, Some(mapped)));
        assert_eq!(split(&file, length - 1).unwrap().1, None);
        write(&file, 1 << 20, &[(4096, 4096)]).unwrap();
        let length = file.metadata().unwrap().len();
        assert_eq!(split(&file, length).unwrap().1, None);
        assert_eq!(split(&file, 3).unwrap(), (3, None));
    }
}
