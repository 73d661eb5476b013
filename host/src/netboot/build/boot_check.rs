//! What is wrong with the `boot.img` and the `boot.sig` of a folder.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::boot_image::IMAGE_MAX;
use super::lint::{Finding, Weight};
use crate::netboot::boot_sig::{BOOT_IMG, BOOT_SIG, BootSig, sha256};
use crate::sys::clock::now_ms;

/// Clocks, and copies of a whole folder, may differ by so much.
const SLACK: Duration = Duration::from_secs(60);
/// `boot.sig` should not be from later than this, in seconds from now.
const FUTURE: u64 = 24 * 3600;

/// Looks at the two, if there is one of them or `config.txt` asks for it.
pub(super) fn boot_image(path: &Path) -> Vec<Finding> {
    let (image, sig) = (path.join(BOOT_IMG), path.join(BOOT_SIG));
    let config = fs::read_to_string(path.join("config.txt")).unwrap_or_default();
    let wants = config.lines().any(|line| line.trim() == "boot_ramdisk=1");
    let error = |text: String| vec![Finding::new(Weight::Error, text)];
    match (image.is_file(), sig.is_file()) {
        (false, false) if wants => {
            return error(
                "config.txt has boot_ramdisk=1, and there is no boot.img: `piman netboot build --boot-image` makes it"
                    .into(),
            );
        }
        (false, false) => return Vec::new(),
        (false, true) => {
            return error(
                "there is boot.sig and no boot.img: `piman netboot build --boot-image` makes both".into(),
            );
        }
        (true, false) => {
            let text = "boot.img has no boot.sig, without which it boots neither by HTTP nor with secure boot: `piman \
                        netboot build --boot-image --boot-key KEY.pem` makes both";
            return vec![Finding::new(Weight::Warning, text)];
        }
        (true, true) => {}
    }
    match pair(&image, &sig) {
        Ok(sig) => {
            let mut found = dates(path, &image, &sig);
            if sig.rsa2048.is_none() {
                let text = "boot.sig has no signature: Pis boot such a boot.img neither by HTTP nor with secure boot; \
                            sign it with --boot-key";
                found.push(Finding::new(Weight::Warning, text));
            }
            found
        }
        Err(text) => error(text),
    }
}

/// Whether they belong together.
fn pair(image: &Path, sig: &Path) -> Result<BootSig, String> {
    let what = |e: std::io::Error| format!("boot.img and boot.sig cannot be read: {e}");
    let parsed = BootSig::parse(&fs::read(sig).map_err(what)?);
    let parsed = parsed.ok_or("boot.sig is damaged: build boot.img anew with --boot-image")?;
    let file = File::open(image).map_err(what)?;
    let length = file.metadata().map_err(what)?.len();
    if length > IMAGE_MAX {
        return Err(format!(
            "boot.img has {:.1} MiB, and boot loaders load {} MiB: leave modules and files out, or choose models with \
             --boot-model",
            length as f64 / f64::from(1 << 20),
            IMAGE_MAX >> 20
        ));
    }
    if sha256(&file, length).map_err(what)? != parsed.sha256 {
        return Err(
            "boot.sig is not the one of this boot.img, and Pis refuse it: build both anew with --boot-image"
                .into(),
        );
    }
    Ok(parsed)
}

/// Whether it is older than what it was made from, or from the future.
fn dates(path: &Path, image: &Path, sig: &BootSig) -> Vec<Finding> {
    let mut found = Vec::new();
    if sig.made > now_ms() / 1000 + FUTURE {
        let text =
            "boot.sig says that it was made in the future: is this clock right, or SOURCE_DATE_EPOCH wrong?";
        found.push(Finding::new(Weight::Warning, text));
    }
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let Some(made) = changed(image) else { return found };
    let newer = |path: &Path| changed(path).is_some_and(|at| at > made + SLACK);
    let entries = |at: &str| fs::read_dir(path.join(at)).into_iter().flatten().flatten();
    let files = entries("").chain(entries(super::OVERLAYS)).filter(|entry| entry.path().is_file());
    let newest = files.map(|entry| entry.path()).find(|file| !file.ends_with(BOOT_SIG) && newer(file));
    if let Some(name) = newest.as_deref().and_then(|file| file.strip_prefix(path).ok()) {
        let text = format!(
            "boot.img is older than {}, so Pis that boot it do not get that: build it anew with --boot-image, or remove it",
            name.display()
        );
        found.push(Finding::new(Weight::Warning, text));
    }
    found
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn what_does_not_belong_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let says = |words: &str| {
            let found = boot_image(path);
            assert!(found.iter().any(|f| f.to_string().contains(words)), "{words}: {found:?}");
        };
        let write = |name: &str, bytes: &[u8]| fs::write(path.join(name), bytes).unwrap();
        let sig = |made, rsa2048| {
            let sha256 = Sha256::digest(b"image").into();
            write("boot.sig", BootSig { sha256, made, rsa2048 }.to_string().as_bytes());
        };
        assert_eq!(boot_image(path), []);
        write("config.txt", b"[pi4]\nboot_ramdisk=1\n");
        says("error: config.txt has boot_ramdisk=1");
        sig(5, None);
        says("error: there is boot.sig and no boot.img");
        write("boot.img", b"image");
        says("warning: boot.sig has no signature");
        sig(5, Some(vec![1; 256]));
        assert_eq!(boot_image(path), []);
        sig(1 << 40, Some(vec![1; 256]));
        says("warning: boot.sig says that it was made in the future");
        write("boot.img", b"other");
        says("error: boot.sig is not the one of this boot.img");
        write("boot.sig", b"no");
        says("error: boot.sig is damaged");
        fs::remove_file(path.join("boot.sig")).unwrap();
        says("warning: boot.img has no boot.sig");
        write("boot.img", b"image");
        sig(5, Some(vec![1; 256]));
        let old = SystemTime::now() - 2 * SLACK;
        File::options().write(true).open(path.join("boot.img")).unwrap().set_modified(old).unwrap();
        says("warning: boot.img is older than config.txt");
        File::options().write(true).open(path.join("boot.img")).unwrap().set_len(IMAGE_MAX + 1).unwrap();
        says("error: boot.img has 96.0 MiB");
    }
}
