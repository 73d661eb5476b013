//! What a disk calls itself, and what udev makes of that (60-persistent-storage.rules, and its helpers usb_id, ata_id).

use std::fs;
use std::path::Path;

use super::Bus;
use super::sysfs::read;

/// Its model, for people.
pub(super) fn model(folder: &Path) -> String {
    let name = ["device/model", "device/name"].iter().find_map(|name| read(folder, name));
    let maker = read(folder, "device/vendor").filter(|maker| !maker.starts_with("0x") && maker != "ATA");
    [maker, name].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What it calls itself, in each form that is usual.
pub(super) fn serials(folder: &Path) -> Vec<String> {
    let own = ["device/serial", "serial", "device/cid", "device/wwid", "wwid"].map(|name| read(folder, name));
    let usb = usb_device(folder).and_then(|usb| read(usb, "serial"));
    let unit = unit_serial(folder);
    let ata = identity(folder).map(|(_, serial)| serial);
    let mut all: Vec<String> =
        usb.into_iter().chain(own.into_iter().flatten()).chain(ata).chain(unit).collect();
    all.dedup();
    all
}

/// What udev calls it in /dev/disk/by-id.
pub(super) fn ids(folder: &Path, bus: Bus) -> Vec<String> {
    let from = |name: &str| read(folder, name);
    let mut ids = Vec::new();
    match bus {
        Bus::Mmc => {
            let name = from("device/name").map(|name| name + "_").unwrap_or_default();
            ids.extend(from("device/serial").map(|serial| format!("mmc-{name}{serial}")));
        }
        Bus::Nvme => {
            if let (Some(model), Some(serial)) = (from("device/model"), from("device/serial")) {
                ids.push(format!("nvme-{model}_{serial}"));
                ids.extend(from("nsid").map(|space| format!("nvme-{model}_{serial}_{space}")));
            }
            ids.extend(from("wwid").map(|wwid| format!("nvme-{wwid}")));
        }
        Bus::Usb => ids.extend(usb_ids(folder)),
        Bus::Sata => {
            let whole = identity(folder);
            // The model is cut there.
            let cut = || Some((from("device/model")?, unit_serial(folder)?));
            ids.extend(whole.or_else(cut).map(|(model, serial)| format!("ata-{model}_{serial}")));
        }
        Bus::Other => ids.extend(from("serial").map(|serial| format!("virtio-{serial}"))),
    }
    let wwn = from("device/wwid").and_then(|wwid| Some(wwid.strip_prefix("naa.")?.to_owned()));
    ids.extend(wwn.map(|number| format!("wwn-0x{number}")));
    ids.iter().map(|id| plain(id)).collect()
}

/// The names of a disk on USB: by what the disk says, or by what its case says.
fn usb_ids(folder: &Path) -> Vec<String> {
    let Some(usb) = usb_device(folder) else { return Vec::new() };
    let serial = read(usb, "serial").map(|serial| format!("_{serial}")).unwrap_or_default();
    // The target and the unit of HOST:BUS:TARGET:UNIT.
    let address = fs::canonicalize(folder.join("device")).ok();
    let address = address.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let unit = address.and_then(|address| address.splitn(3, ':').nth(2)).unwrap_or("0:0");
    let pairs = [(folder, "device/vendor", "device/model"), (usb, "manufacturer", "product")];
    let both = pairs.into_iter().filter_map(|(at, maker, model)| Some((read(at, maker)?, read(at, model)?)));
    both.map(|(maker, model)| format!("usb-{maker}_{model}{serial}-{unit}")).collect()
}

/// The folder of the USB device above a disk.
fn usb_device(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|above| above.join("idVendor").exists())
}

/// The serial number of a SCSI unit (page 0x80 of its vital product data).
fn unit_serial(folder: &Path) -> Option<String> {
    let page = fs::read(folder.join("device/vpd_pg80")).ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?).trim_matches(['\0', ' ']).to_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// The model and the serial number of an ATA disk, from its IDENTIFY data (in page 0x89), whose words have the second
/// character first.
fn identity(folder: &Path) -> Option<(String, String)> {
    const DATA: usize = 60;
    let page = fs::read(folder.join("device/vpd_pg89")).ok()?;
    let text = |words: std::ops::Range<usize>| {
        let bytes = page.get(DATA + 2 * words.start..DATA + 2 * words.end)?;
        let turned: Vec<u8> = bytes.as_chunks().0.iter().flat_map(|&[a, b]| [b, a]).collect();
        let text = String::from_utf8_lossy(&turned).trim_matches(['\0', ' ']).to_owned();
        Some(text).filter(|text| !text.is_empty())
    };
    Some((text(27..47)?, text(10..20)?))
}

/// A name as udev writes it. Its versions differ in whether several spaces become one `_`: here they do.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.trim().chars() {
        let c = if c.is_ascii_alphanumeric() || !c.is_ascii() || "#+-.:=@".contains(c) { c } else { '_' };
        if !(c == '_' && plain.ends_with('_')) {
            plain.push(c);
        }
    }
    plain
}

/// Whether two texts are the same name.
pub(super) fn same(one: &str, other: &str) -> bool {
    plain(one).eq_ignore_ascii_case(&plain(other))
}
