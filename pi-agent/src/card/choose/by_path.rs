//! Where a disk is connected, as udev says it (its builtin path_id): from the nearest bus to the outermost.

use std::fs;
use std::path::Path;

/// What udev calls the place of a disk; `None` if nothing above it has a lasting address.
pub(super) fn of(folder: &Path, sys: &Path) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    // Of a chain of devices on one bus the nearest counts.
    let mut taken = "";
    let sys = fs::canonicalize(sys).ok()?;
    let mut is_addressed = false;
    for above in folder.ancestors().take_while(|above| **above != *sys) {
        let Some(bus) = subsystem(above) else { continue };
        let Some(name) = above.file_name().and_then(|name| name.to_str()) else { continue };
        let part = match bus.as_str() {
            "scsi" => scsi(name, above),
            "usb" if name.contains(':') => name.split_once('-').map(|(_, at)| ("usb", format!("usb-0:{at}"))),
            "nvme" => space(folder).map(|space| ("nvme", format!("nvme-{space}"))),
            "pci" => Some(("pci", format!("pci-{name}"))),
            "platform" => Some(("platform", format!("platform-{name}"))),
            _ => None,
        };
        let Some((kind, part)) = part.filter(|(kind, _)| *kind != taken) else { continue };
        taken = kind;
        is_addressed |= matches!(kind, "pci" | "platform" | "usb");
        parts.push(part);
    }
    parts.reverse();
    is_addressed.then(|| parts.join("-"))
}

/// The bus of a device.
fn subsystem(folder: &Path) -> Option<String> {
    let link = fs::read_link(folder.join("subsystem")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// The address of a SCSI device, HOST:BUS:TARGET:UNIT. The number of the host counts from the first one of its
/// controller; disks on SATA are named by their port.
fn scsi(name: &str, folder: &Path) -> Option<(&'static str, String)> {
    let (host, rest) = name.split_once(':')?;
    let port = folder.ancestors().find_map(|above| above.file_name()?.to_str()?.strip_prefix("ata"));
    if let Some(port) = port.filter(|port| port.parse::<u32>().is_ok()) {
        let port = fs::read_to_string(format_port(folder, port)?).ok().unwrap_or_else(|| port.to_owned());
        return Some(("scsi", format!("ata-{}", port.trim())));
    }
    let own =
        folder.ancestors().find(|above| above.file_name().is_some_and(|n| *n == *format!("host{host}")))?;
    let beside = fs::read_dir(own.parent()?).ok()?.flatten();
    let hosts = beside.filter_map(|e| e.file_name().to_str()?.strip_prefix("host")?.parse::<u32>().ok());
    let first = hosts.min()?;
    Some(("scsi", format!("scsi-{}:{rest}", host.parse::<u32>().ok()?.saturating_sub(first))))
}

/// Where the number of a port on its controller is; the `N` of `ataN` counts those of all controllers.
fn format_port(folder: &Path, port: &str) -> Option<std::path::PathBuf> {
    let name = format!("ata{port}");
    let own = folder.ancestors().find(|above| above.file_name().is_some_and(|n| *n == *name))?;
    Some(own.join("ata_port").join(&name).join("port_no"))
}

/// The number of an NVMe disk's name space.
fn space(folder: &Path) -> Option<String> {
    super::sysfs::read(folder, "nsid")
}

/// Whether two texts are the same place. Newer versions of udev have several names for one.
pub(super) fn same(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        let text = text.replace("-usbv1-", "-usb-").replace("-usbv2-", "-usb-").replace("-usbv3-", "-usb-");
        match text.rsplit_once("-ata-") {
            Some((controller, port)) => {
                format!("{controller}-ata-{}", port.strip_suffix(".0").unwrap_or(port))
            }
            None => text,
        }
    };
    plain(one) == plain(other)
}
