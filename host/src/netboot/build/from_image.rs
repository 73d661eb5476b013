//! Kernel, device trees, firmware and modules out of the image that the Pis get, so that they always belong together.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::{Ingredients, OVERLAYS, is_firmware, is_overlay, modules};
use crate::netboot::kernel::releases;

/// What drives the cards, disks and networks of Pis, and what the agent needs besides; of these an initramfs gets what a
/// kernel has as modules.
const DRIVERS: [&str; 33] = [
    "ext4",
    "af_packet",
    "mmc_block",
    "bcm2835",
    "sdhci-iproc",
    "sdhci-brcmstb",
    "reset-raspberrypi",
    "gpio-raspberrypi-exp",
    "raspberrypi-power",
    "pcie-brcmstb",
    "xhci-pci",
    "xhci-plat-hcd",
    "phy-generic",
    "dwc2",
    "uas",
    "usb-storage",
    "sd_mod",
    "nvme",
    "genet",
    "bcmgenet",
    "mdio-bcm-unimac",
    "bcm7xxx",
    "broadcom",
    "macb",
    "rp1",
    "rp1-pci",
    "lan78xx",
    "microchip",
    "smsc95xx",
    "smsc",
    "r8152",
    "ax88179_178a",
    "bcm2835-rng",
];

/// Where everything lies in the folder that it is taken into.
const FIRMWARE: &str = "firmware";
const KERNEL: &str = "kernel";
const TREES: &str = "trees";
const MODULES: &str = "modules";

/// What a kernel says of its modules.
const LISTS: [&str; 4] = ["modules.dep", "modules.softdep", "modules.alias", "modules.builtin"];

/// Takes the files of an image for which a closure has a name, into a folder.
pub type Extract<'a> = dyn FnMut(&dyn Fn(&str) -> Option<String>) -> anyhow::Result<Vec<String>> + 'a;

/// The same ingredients with those of an image, whose files `extract` takes into `folder`. What is named besides is
/// taken, too: a kernel in place of the image's, firmware where the image has none, further modules.
///
/// # Errors
/// If the image has no kernel for 64-bit Pis, or not the modules of that kernel.
pub fn complete(from: Ingredients, folder: &Path, extract: &mut Extract<'_>) -> anyhow::Result<Ingredients> {
    let found = extract(&boot_file)?;
    let firmware = folder.join(FIRMWARE);
    fs::create_dir_all(&firmware).with_context(|| format!("making {}", firmware.display()))?;
    let kernels = match &from.kernel {
        Some(kernel) => vec![only(kernel, folder)?],
        None => kernels(folder)?,
    };
    trees(folder, &found, &kernels)?;
    if let Some(more) = &from.firmware {
        for (name, bytes) in super::firmware(more, true)? {
            let to = firmware.join(&name);
            if !to.exists() {
                fs::create_dir_all(to.parent().unwrap_or(&firmware))
                    .and_then(|()| fs::write(&to, bytes))
                    .with_context(|| format!("writing {}", to.display()))?;
            }
        }
    }
    let (release, names) = needed(folder, &kernels, &from.module)?;
    let tree = folder.join(MODULES).join(&release);
    if !names.is_empty() {
        let files = modules::files(&tree, &names)?;
        let wanted = |path: &str| {
            let name = format!("{MODULES}/{}", module_file(path)?);
            files.contains(&folder.join(&name)).then_some(name)
        };
        extract(&wanted)?;
    }
    let own = |kernel: &Kernel| (!kernel.in_firmware).then(|| kernel.path.clone());
    Ok(Ingredients {
        firmware: Some(firmware),
        kernel: kernels.first().and_then(own),
        modules: (!names.is_empty()).then_some(tree),
        module: names,
        ..from
    })
}

/// What a file that has to do with booting is called in the folder.
fn boot_file(path: &str) -> Option<String> {
    let boot = path.strip_prefix("boot/");
    if let Some(name) = boot.map(|rest| rest.strip_prefix("firmware/").unwrap_or(rest)) {
        let overlay = name.strip_prefix(OVERLAYS).and_then(|rest| rest.strip_prefix('/'));
        return match overlay {
            Some(name) => is_overlay(name).then(|| format!("{FIRMWARE}/{OVERLAYS}/{name}")),
            None if name.contains('/') => None,
            None if is_firmware(name) => Some(format!("{FIRMWARE}/{name}")),
            None if name.starts_with("vmlinuz") => Some(format!("{KERNEL}/{name}")),
            None => None,
        };
    }
    let path = path.strip_prefix("usr/").unwrap_or(path);
    // Where Debian and Ubuntu have them.
    let tree = path.strip_prefix("lib/linux-image-").or_else(|| path.strip_prefix("lib/firmware/"));
    if let Some((release, rest)) = tree.and_then(|tree| tree.split_once('/')) {
        let name = rest.rsplit('/').next().unwrap_or_default();
        let is_pi = name.starts_with("bcm27") || name.starts_with("bcm28");
        return match (is_pi && name.ends_with(".dtb"), is_overlay(name) && rest.contains("/overlays/")) {
            (true, _) => Some(format!("{TREES}/{release}/{name}")),
            (_, true) => Some(format!("{TREES}/{release}/{OVERLAYS}/{name}")),
            _ => None,
        };
    }
    let name = module_file(path)?;
    let is_list = LISTS.iter().any(|list| name.split_once('/').is_some_and(|(_, rest)| rest == *list));
    is_list.then(|| format!("{MODULES}/{name}"))
}

/// The path of a file below the folder of all modules.
fn module_file(path: &str) -> Option<&str> {
    path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")
}

/// A kernel that Pis get.
struct Kernel {
    path: PathBuf,
    /// Whether it lies there under the name that the firmware looks for.
    in_firmware: bool,
    /// What it calls itself; empty if it does not say.
    release: String,
}

fn only(kernel: &Path, folder: &Path) -> anyhow::Result<Kernel> {
    // Looked at in a folder of its own, under a name that kernels have.
    let place = folder.join("own");
    let copy = || -> std::io::Result<_> {
        fs::create_dir_all(&place)?;
        fs::copy(kernel, place.join("vmlinuz"))?;
        releases(&place)
    };
    let found = copy().with_context(|| format!("reading {}", kernel.display()))?;
    let release = found.into_iter().next().map(|(_, release)| release).unwrap_or_default();
    Ok(Kernel { path: kernel.to_owned(), in_firmware: false, release })
}

/// Those of the firmware's own names; else the newest of the others.
fn kernels(folder: &Path) -> anyhow::Result<Vec<Kernel>> {
    let list = |name: &str| {
        let folder = folder.join(name);
        let found = if folder.is_dir() { releases(&folder) } else { Ok(Vec::new()) };
        found.with_context(|| format!("reading the kernels in {}", folder.display()))
    };
    let firmware = folder.join(FIRMWARE);
    let all = list(FIRMWARE)?;
    let release =
        |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, r)| r.clone()).unwrap_or_default();
    let own = ["kernel8.img", "kernel_2712.img"].into_iter().filter(|name| firmware.join(name).is_file());
    let own: Vec<Kernel> = own
        .map(|name| Kernel { path: firmware.join(name), in_firmware: true, release: release(name) })
        .collect();
    if !own.is_empty() {
        return Ok(own);
    }
    let mut others = list(KERNEL)?;
    others.sort_by(|(_, a), (_, b)| by_version(a, b));
    let (name, release) = others.pop().context(
        "the image has no kernel that could be read (kernel8.img or vmlinuz-* in /boot/firmware or /boot): give one \
         with --kernel",
    )?;
    Ok(vec![Kernel { path: folder.join(KERNEL).join(name), in_firmware: false, release }])
}

/// The order of releases: numbers in them by their size.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.map(|w| (w.parse().unwrap_or(0), w.to_owned())).collect()
    };
    parts(a).cmp(&parts(b))
}

/// Where the boot folder has no device trees, those that came with the kernel.
fn trees(folder: &Path, found: &[String], kernels: &[Kernel]) -> anyhow::Result<()> {
    let firmware = folder.join(FIRMWARE);
    let is_tree =
        |name: &String| name.starts_with(FIRMWARE) && name.ends_with(".dtb") && !name.contains(OVERLAYS);
    let release = kernels.first().map_or("", |kernel| kernel.release.as_str());
    let from = format!("{TREES}/{release}/");
    if found.iter().any(is_tree) || release.is_empty() {
        return Ok(());
    }
    for (name, rest) in found.iter().filter_map(|name| Some((name, name.strip_prefix(&from)?))) {
        let to = firmware.join(rest);
        let copy = || {
            fs::create_dir_all(to.parent().unwrap_or(&firmware))
                .and_then(|()| fs::copy(folder.join(name), &to))
        };
        copy().with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}

/// The modules that Pis need of the image: of which release, and which.
fn needed(folder: &Path, kernels: &[Kernel], more: &[String]) -> anyhow::Result<(String, Vec<String>)> {
    let mut all: Vec<(&str, Vec<String>)> = Vec::new();
    for release in kernels.iter().map(|kernel| kernel.release.as_str()).filter(|release| !release.is_empty())
    {
        let tree = folder.join(MODULES).join(release);
        if !tree.join("modules.dep").is_file() {
            ensure!(
                more.is_empty(),
                "the image has no modules of its kernel {release} (/lib/modules/{release})"
            );
            continue;
        }
        let mut names = modules::present(&tree, &DRIVERS)?;
        names.extend(more.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
        if !names.is_empty() {
            all.push((release, names));
        }
    }
    if let [(one, _), (other, _), ..] = all.as_slice() {
        bail!(
            "the image has two kernels that need modules, {one} and {other}, and an initramfs has room for those of one: \
             say with --kernel which, and make a folder for each"
        );
    }
    Ok(all.pop().map(|(release, names)| (release.to_owned(), names)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_do_with_booting() {
        for (path, name) in [
            ("boot/firmware/start4.elf", "firmware/start4.elf"),
            ("boot/kernel8.img", "firmware/kernel8.img"),
            ("boot/firmware/overlays/disable-bt.dtbo", "firmware/overlays/disable-bt.dtbo"),
            ("boot/vmlinuz-6.1.0-9-arm64", "kernel/vmlinuz-6.1.0-9-arm64"),
            ("usr/lib/linux-image-6.1.0/broadcom/bcm2711-rpi-4-b.dtb", "trees/6.1.0/bcm2711-rpi-4-b.dtb"),
            (
                "lib/firmware/6.8.0-raspi/device-tree/broadcom/bcm2711-rpi-4-b.dtb",
                "trees/6.8.0-raspi/bcm2711-rpi-4-b.dtb",
            ),
            ("lib/firmware/6.8.0-raspi/device-tree/overlays/a.dtbo", "trees/6.8.0-raspi/overlays/a.dtbo"),
            ("usr/lib/modules/6.1.0/modules.dep", "modules/6.1.0/modules.dep"),
        ] {
            assert_eq!(boot_file(path).as_deref(), Some(name), "{path}");
        }
        for path in [
            "boot/firmware/cmdline.txt",
            "boot/firmware/initramfs8",
            "boot/firmware/current/start4.elf",
            "boot/overlays/README",
            "usr/lib/linux-image-6.1.0/rockchip/rk3399-pinebook-pro.dtb",
            "lib/firmware/brcm/bcm43xx-0.fw",
            "lib/modules/6.1.0/kernel/fs/ext4/ext4.ko",
            "lib/modules/6.1.0/a/modules.dep",
            "home/boot/vmlinuz",
        ] {
            assert_eq!(boot_file(path), None, "{path}");
        }
        assert_eq!(module_file("usr/lib/modules/6.1.0/kernel/a.ko"), Some("6.1.0/kernel/a.ko"));
    }

    #[test]
    fn the_newest_by_its_numbers() {
        let mut all = ["6.10.2-v8", "6.9.12-v8", "6.9.2-v8", "6.12.0"];
        all.sort_by(|a, b| by_version(a, b));
        assert_eq!(all, ["6.9.2-v8", "6.9.12-v8", "6.10.2-v8", "6.12.0"]);
    }
}
