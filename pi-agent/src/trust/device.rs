//! The key pair of this Pi, by which servers know it again. It is kept on the card behind the counter against older
//! images, where no installation erases it, for one serial number or hardware address alone: a card that moves to
//! another Pi takes no name with it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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
    /// Whether it is on the card.
    pub is_kept: bool,
}

/// Not the secret.
impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { floor, is_kept, .. } = self;
        write!(f, "Device(kept: {is_kept}, {floor:?})")
    }
}

impl Device {
    /// What is on the disk for this Pi, else a new key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn of(disk: &File, identity: &Identity) -> io::Result<Self> {
        let of = fingerprint(identity);
        match read(disk).filter(|found| found.of == of) {
            Some(found) => Ok(found),
            None => Ok(Self { secret: random::bytes()?, of, floor: Floor::default(), is_kept: false }),
        }
    }

    /// One with this secret, which was kept elsewhere.
    #[must_use]
    pub fn with_secret(secret: [u8; 32]) -> Self {
        Self { secret, of: [0; 16], floor: Floor::default(), is_kept: true }
    }

    /// The secret, to be kept where only root can read it.
    #[must_use]
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
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
        self.is_kept = is_free_at(disk, PLACE, (layout, whole_disk), HEADING)?;
        if self.is_kept {
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
        let text = [&HEADING[..], &self.secret, &self.of, &time.to_le_bytes(), &since.to_le_bytes()].concat();
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
        let found = Device { secret: *secret, of: *of, floor, is_kept: true };
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
        let mut device = Device::of(&disk, &pi("10000000abcdef01")).unwrap();
        assert!(!device.is_kept, "nothing is written unasked");
        assert_ne!(device, Device::of(&disk, &pi("10000000abcdef01")).unwrap());
        assert!(device.learn(Floor { time: 5 * DAY, since: 0 }));
        assert!(!device.learn(Floor { time: 5 * DAY + 7, since: 0 }));
        assert!(device.keep(&disk, &layout, None).unwrap());
        assert_eq!(Device::of(&disk, &pi("10000000ABCDEF01")).unwrap(), device);
        let other = Device::of(&disk, &pi("10000000abcdef02")).unwrap();
        assert!(!other.is_kept && other.secret != device.secret);
        // What is damaged is another key.
        disk.write_all_at(&[1], PLACE + 20).unwrap();
        assert_ne!(Device::of(&disk, &pi("10000000abcdef01")).unwrap().secret, device.secret);
    }

    #[test]
    fn what_others_have_there_stays() {
        let (disk, layout) = (disk(), Layout::default());
        let mut device = Device::of(&disk, &pi("10000000abcdef01")).unwrap();
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
