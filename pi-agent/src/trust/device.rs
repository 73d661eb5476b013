//! The key pair of this Pi, by which servers know it again. It is kept on the card behind the counter against older
//! images, where no installation erases it, for one serial number or hardware address alone: a card that moves to
//! another Pi takes no name with it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, ensure};
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::trust::{DeviceKey, Floor};

use super::rollback::{AT, UNDER_WAY, is_free_at};
use crate::card::disk::is_root_withheld;
use crate::card::random;
use crate::identity::Identity;

const HEADING: &[u8; 16] = b"piman-device 1\n\0";

/// How much time passes until the moment that a Pi knows to have passed is written again, in seconds: a card lives of
/// few writes.
const DAY: u64 = 24 * 3600;

/// What servers know this Pi by, and what it knows of time and revocations.
#[derive(Clone, PartialEq, Eq)]
pub struct Device {
    secret: [u8; 32],
    /// For whom the key was made.
    of: [u8; 16],
    /// What it knew when it was kept.
    pub floor: Floor,
    /// Whether it is on the card, or where no card matters.
    pub is_kept: bool,
    /// Whether the secret is kept elsewhere: then no card has it, and every card's rest is this Pi's.
    is_elsewhere: bool,
}

/// The longest file that has a secret, in bytes.
const SECRET_MAX: u64 = 4096;
/// The fewest bytes of a secret.
const SECRET_MIN: usize = 16;
/// What a secret that others keep is made a key for.
const CONTEXT: &str = "piman 2026 device key";

/// Not the secret.
impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { floor, is_kept, .. } = self;
        write!(f, "Device(kept: {is_kept}, {floor:?})")
    }
}

impl Device {
    /// What is on the disk for this Pi, else a new key. `plan` is what was said before a disk was known: a secret that
    /// is kept elsewhere stays.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn of(disk: &File, identity: &Identity, plan: Option<&Self>) -> io::Result<Self> {
        let of = fingerprint(identity);
        let found = read(disk).filter(|found| found.of == of);
        let floor = found.as_ref().map(|found| found.floor).unwrap_or_default();
        if let Some(elsewhere) = plan.filter(|plan| plan.is_elsewhere) {
            return Ok(Self { of, floor, ..elsewhere.clone() });
        }
        match found.filter(|found| found.secret != [0; 32]) {
            Some(found) => Ok(found),
            None => Ok(Self { secret: random::bytes()?, of, floor, is_kept: false, is_elsewhere: false }),
        }
    }

    /// One with a secret that was kept from another start.
    #[must_use]
    pub fn with_secret(secret: [u8; 32]) -> Self {
        Self { secret, of: [0; 16], floor: Floor::default(), is_kept: true, is_elsewhere: false }
    }

    /// One whose secret is in a file that no installation changes: the rows of the Pi's one-time programmable memory as
    /// the kernel shows them, or what a TPM has unsealed. What is in the file goes nowhere; the key is made of its hash.
    ///
    /// # Errors
    /// If it cannot be read, has fewer than 16 or more than 4096 bytes, or they are all the same: nothing was
    /// programmed.
    pub fn elsewhere(file: &Path) -> anyhow::Result<Self> {
        let name = file.display();
        let mut bytes = Vec::new();
        let open = File::open(file).with_context(|| format!("reading this Pi's key from {name}"))?;
        let read = open.take(SECRET_MAX + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("reading this Pi's key from {name}"))?;
        ensure!(
            bytes.len() >= SECRET_MIN && bytes.len() as u64 <= SECRET_MAX,
            "{name} has {} bytes: a key for this Pi has {SECRET_MIN} to {SECRET_MAX}",
            bytes.len()
        );
        ensure!(
            bytes.iter().any(|byte| Some(byte) != bytes.first()),
            "{name} has the same byte all over: no key was programmed there"
        );
        let secret = blake3::derive_key(CONTEXT, &bytes);
        Ok(Self { is_elsewhere: true, ..Self::with_secret(secret) })
    }

    /// The secret, to be kept where only root can read it; `None` if that is elsewhere already.
    #[must_use]
    pub fn secret(&self) -> Option<&[u8; 32]> {
        Some(&self.secret).filter(|_| !self.is_elsewhere)
    }

    /// The key pair; `None` if these random bytes give none.
    #[must_use]
    pub fn key(&self) -> Option<DeviceKey> {
        DeviceKey::new(self.secret)
    }

    /// Takes note of what the Pi knows by now; whether that is worth a write.
    pub fn learn(&mut self, floor: Floor) -> bool {
        let is_worth_it = floor.since > self.floor.since || floor.time >= self.floor.time + DAY;
        if is_worth_it {
            self.floor = floor;
        }
        is_worth_it
    }

    /// Keeps it on a disk; whether there was room for it. `whole_disk` is the size of a disk that holds the image of a
    /// whole disk, in bytes: that may have something of its own in that place.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub fn keep(&mut self, disk: &File, layout: &Layout, whole_disk: Option<u64>) -> io::Result<bool> {
        let is_free = is_free_at(disk, PLACE, (layout, whole_disk), HEADING)?;
        self.is_kept = is_free || self.is_elsewhere;
        if is_free {
            let sector = self.sector();
            let mut before = [0; SECTOR as usize];
            disk.read_exact_at(&mut before, PLACE)?;
            if before != sector {
                disk.write_all_at(&sector, PLACE)?;
                disk.sync_data()?;
            }
        }
        Ok(self.is_kept)
    }

    /// Puts it into a first block that stands for a disk whose image is being written.
    pub fn put_under_way(&self, block: &mut [u8]) {
        let place = block.iter_mut().skip((UNDER_WAY + SECTOR) as usize);
        place.zip(self.sector()).for_each(|(place, byte)| *place = byte);
    }

    fn sector(&self) -> [u8; SECTOR as usize] {
        let Floor { time, since } = self.floor;
        let secret = self.secret().copied().unwrap_or_default();
        let text = [&HEADING[..], &secret, &self.of, &time.to_le_bytes(), &since.to_le_bytes()].concat();
        let sum = blake3::hash(&text);
        let mut sector = [0; SECTOR as usize];
        sector.iter_mut().zip(text.iter().chain(sum.as_bytes())).for_each(|(place, byte)| *place = *byte);
        sector
    }
}

/// Where it is on a card.
const PLACE: u64 = AT + SECTOR;

/// For whom a key is.
fn fingerprint(identity: &Identity) -> [u8; 16] {
    let name = identity.serial.as_deref().or(identity.mac.as_deref()).unwrap_or_default();
    let hash = blake3::hash(name.trim().to_ascii_lowercase().as_bytes());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn read(disk: &File) -> Option<Device> {
    let under_way = is_root_withheld(disk).then_some(UNDER_WAY + SECTOR);
    [Some(PLACE), under_way].into_iter().flatten().find_map(|at| {
        let mut sector = [0; SECTOR as usize];
        disk.read_exact_at(&mut sector, at).ok()?;
        let (heading, rest) = sector.split_first_chunk::<16>()?;
        let (secret, rest) = rest.split_first_chunk::<32>()?;
        let (of, rest) = rest.split_first_chunk::<16>()?;
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (since, _) = rest.split_first_chunk::<8>()?;
        let floor = Floor { time: u64::from_le_bytes(*time), since: u64::from_le_bytes(*since) };
        let found = Device { secret: *secret, of: *of, floor, is_kept: true, is_elsewhere: false };
        (heading == HEADING && found.sector() == sector).then_some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::install::mbr::{LINUX, Mbr, Partition};

    fn disk() -> File {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(4 << 20).unwrap();
        disk
    }

    fn pi(serial: &str) -> Identity {
        Identity { serial: Some(serial.into()), ..Identity::default() }
    }

    #[test]
    fn the_key_stays_and_is_one_pis() {
        let (disk, layout) = (disk(), Layout::default());
        let mut device = Device::of(&disk, &pi("10000000abcdef01"), None).unwrap();
        assert!(!device.is_kept, "nothing is written unasked");
        assert_ne!(device, Device::of(&disk, &pi("10000000abcdef01"), None).unwrap());
        assert!(device.learn(Floor { time: 5 * DAY, since: 0 }));
        assert!(!device.learn(Floor { time: 5 * DAY + 7, since: 0 }));
        assert!(device.keep(&disk, &layout, None).unwrap());
        assert_eq!(Device::of(&disk, &pi("10000000ABCDEF01"), None).unwrap(), device);
        let other = Device::of(&disk, &pi("10000000abcdef02"), None).unwrap();
        assert!(!other.is_kept && other.secret != device.secret);
        // What is damaged is another key.
        disk.write_all_at(&[1], PLACE + 20).unwrap();
        assert_ne!(Device::of(&disk, &pi("10000000abcdef01"), None).unwrap().secret, device.secret);
    }

    #[test]
    fn what_is_kept_elsewhere_is_on_no_card() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("otp");
        let write = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
        for (bytes, want) in [
            (&[0; 32][..], "no key was programmed"),
            (b"short and bad", "13 bytes"),
            (&[1; 5000], "4097 bytes"),
        ] {
            write(bytes);
            let said = format!("{:#}", Device::elsewhere(&file).unwrap_err());
            assert!(said.contains(want), "{said}");
        }
        let missing = Device::elsewhere(&folder.path().join("none")).unwrap_err();
        assert!(format!("{missing:#}").contains("this Pi's key"), "{missing:#}");
        write(&[*b"0123456789abcdef"; 2].concat());
        let (disk, layout, of) = (disk(), Layout::default(), pi("10000000abcdef01"));
        let plan = Device::elsewhere(&file).unwrap();
        let mut device = Device::of(&disk, &of, Some(&plan)).unwrap();
        assert!(device.is_kept && device.secret().is_none() && device.secret == plan.secret);
        // What is learnt is kept on the card, and the secret is not.
        assert!(device.learn(Floor { time: 5 * DAY, since: 7 }));
        assert!(device.keep(&disk, &layout, None).unwrap());
        let mut found = [0; 512];
        disk.read_exact_at(&mut found, PLACE).unwrap();
        assert_eq!(found[..48], [&HEADING[..], &[0; 32]].concat());
        assert_eq!(Device::of(&disk, &of, Some(&plan)).unwrap(), device);
        // Without the file it is somebody else, who knows the time.
        let other = Device::of(&disk, &of, None).unwrap();
        assert!(!other.is_kept && other.secret != device.secret && other.secret != [0; 32]);
        assert_eq!(other.floor, device.floor);
    }

    #[test]
    fn what_others_have_there_stays() {
        let (disk, layout) = (disk(), Layout::default());
        let mut device = Device::of(&disk, &pi("10000000abcdef01"), None).unwrap();
        let mut table = Mbr::new(0);
        table.partitions[0] = Partition::new(LINUX, 2048, 1000);
        disk.write_all_at(&table.write(), 0).unwrap();
        disk.write_all_at(b"a boot loader", PLACE).unwrap();
        assert!(!device.keep(&disk, &layout, Some(4 << 20)).unwrap());
        let mut found = [0; 13];
        disk.read_exact_at(&mut found, PLACE).unwrap();
        assert_eq!(&found, b"a boot loader");
        disk.write_all_at(&[0; 13], PLACE).unwrap();
        assert!(device.keep(&disk, &layout, Some(4 << 20)).unwrap());
        let early = Layout { boot_start: 65, ..layout };
        assert!(!device.keep(&disk, &early, None).unwrap());
    }
}
