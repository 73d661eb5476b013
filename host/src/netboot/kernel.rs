//! Which kernels a boot folder has.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;

/// The largest kernel that is looked into, packed and unpacked, in bytes.
const KERNEL_MAX: u64 = 256 << 20;
/// The longest name of a release.
const RELEASE_MAX: usize = 64;
/// What every kernel says of itself, before its release.
const BANNER: &[u8] = b"Linux version ";

/// The names and releases of the kernels in a folder, as far as they can be read: a kernel that unpacks itself does
/// not show its release.
///
/// # Errors
/// If the folder or a kernel in it cannot be read.
pub fn releases(folder: &Path) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_kernel = name.starts_with("kernel") && name.ends_with(".img") || name.starts_with("vmlinuz");
        if is_kernel
            && entry.metadata()?.is_file()
            && let Some(release) = release(File::open(entry.path())?)?
        {
            found.push((name, release));
        }
    }
    found.sort();
    Ok(found)
}

/// The release of a kernel.
fn release(mut file: impl Read) -> io::Result<Option<String>> {
    let mut packed = Vec::new();
    file.by_ref().take(KERNEL_MAX).read_to_end(&mut packed)?;
    let mut kernel = Vec::new();
    if packed.starts_with(&[0x1f, 0x8b]) {
        // A signature may follow the packed kernel: what was unpacked until then is enough.
        let _ = GzDecoder::new(&packed[..]).take(KERNEL_MAX).read_to_end(&mut kernel);
    } else {
        kernel = packed;
    }
    let at = kernel.windows(BANNER.len()).position(|w| w == BANNER).map(|at| at + BANNER.len());
    let text = at.and_then(|at| kernel.get(at..)).unwrap_or_default();
    let text = text.get(..RELEASE_MAX).unwrap_or(text);
    let end = text.iter().position(|b| !b.is_ascii_graphic()).unwrap_or(text.len());
    let text = text.get(..end).filter(|t| !t.is_empty());
    Ok(text.and_then(|t| str::from_utf8(t).ok()).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn the_release_of_a_kernel() {
        let mut image = vec![7; 100_000];
        image.extend_from_slice(b"Linux version 6.12.25-v8+ (builder@host) (gcc) #1 SMP\0");
        image.extend(vec![9; 100]);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&image).unwrap();
        let mut packed = packed.finish().unwrap();
        packed.extend_from_slice(b"signature");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel8.img"), &packed).unwrap();
        fs::write(folder.path().join("vmlinuz-old"), &image).unwrap();
        fs::write(folder.path().join("kernel7.img"), b"packed by itself").unwrap();
        fs::write(folder.path().join("config.txt"), &image).unwrap();
        let release = || "6.12.25-v8+".to_owned();
        let want = vec![("kernel8.img".to_owned(), release()), ("vmlinuz-old".to_owned(), release())];
        assert_eq!(releases(folder.path()).unwrap(), want);
        for odd in [&b"Linux version "[..], b"Linux version \xff", b"", b"\x1f\x8b", b"Linux versio"] {
            assert_eq!(super::release(odd).unwrap(), None);
        }
    }
}
