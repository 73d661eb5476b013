//! What must differ between cards of one image.
//!
//! | file | what lives there |
//! |---|---|
//! | `system` | machine-id, host keys, seeds |
//! | `ext4`, `fat` | identifiers of filesystems |
//! | `references` | where text names them |

mod ext4;
mod fat;
mod references;
mod system;

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use piman_core::install::personal::Renew;

use super::places::Places;
use crate::card::content::filesystem::{detect, is_ext};
use crate::card::content::source::Region;
use crate::card::content::table::{Kind, Table};
use crate::card::disk::{Disk, Planned, RootArea};
use crate::card::identifier;
use crate::card::random;
use references::Pair;

/// A text that names a disk is not longer, in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// New identifiers of a disk, its partitions and its filesystems.
#[derive(Debug, Default)]
pub(crate) struct Identifiers {
    pairs: Vec<Pair>,
    ext4: Vec<(RootArea, [u8; 16])>,
    fat: Vec<(RootArea, u32)>,
}

impl Identifiers {
    /// Notes another UUID for an ext4 filesystem, which is mounted now or not.
    pub(super) fn ext4(&mut self, disk: &File, area: RootArea, mounted: bool) -> anyhow::Result<()> {
        let (old, new) = (ext4::renewable(disk, &area, mounted)?, random::uuid()?);
        self.pairs.push((identifier::uuid(&old), identifier::uuid(&new)));
        self.ext4.push((area, new));
        Ok(())
    }

    /// Notes another serial number for a FAT filesystem.
    pub(super) fn fat(&mut self, disk: &File, area: RootArea) -> anyhow::Result<()> {
        let (old, new) = (fat::serial(disk, &area)?, random::number()?);
        self.pairs.push((identifier::serial(old), identifier::serial(new)));
        self.fat.push((area, new));
        Ok(())
    }

    /// Notes that the disk with an MBR has another number.
    pub(super) fn mbr(&mut self, old: u32, new: u32, partitions: impl Iterator<Item = u32>) {
        let pair = |n| (identifier::partition(old, n), identifier::partition(new, n));
        self.pairs.extend(partitions.map(pair));
    }

    /// Gives the table of a whole disk's image new identifiers, and notes some for the filesystems that an agent knows.
    /// What is in other partitions may be found by what it is called, and stays as it is.
    pub(super) fn whole_disk(
        &mut self,
        disk: &File,
        planned: &mut Planned<'_>,
        table: &Table,
        root: &RootArea,
    ) -> anyhow::Result<()> {
        let mut known = Vec::new();
        for part in &table.parts {
            let region = Region::whole(planned).part(part.offset, part.length);
            let area = RootArea { offset: part.offset, length: part.length };
            let is_fat = matches!(detect(&region), Ok(Some(found)) if found.kind == "vfat");
            let noted = match (is_ext(&region), is_fat) {
                (Ok(true), _) => self.ext4(disk, area, root.offset == area.offset),
                (_, true) => self.fat(disk, area),
                _ => continue,
            };
            known.push(part.number);
            if let Err(e) = noted {
                log::info!("the filesystem in partition {} keeps its identifier: {e:#}", part.number);
            }
        }
        match table.kind {
            Kind::Mbr => {
                let (old, new) = planned.renew_mbr()?;
                self.mbr(old, new, table.parts.iter().map(|part| part.number));
            }
            Kind::Gpt => {
                let renewed = planned.renew_gpt(&|number| known.contains(&number))?;
                let text = |(old, new)| (identifier::guid(&old), identifier::guid(&new));
                self.pairs.extend(renewed.into_iter().map(text));
            }
            Kind::None => {}
        }
        Ok(())
    }

    /// Puts the new ones into the texts on a card that name the old ones.
    pub(super) fn rewrite(&self, places: &Places<'_>) -> anyhow::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        places.each_text(TEXT_MAX, &mut |bytes| references::replace_in_file(bytes, &self.pairs))
    }

    /// Whether nothing gets another.
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Puts the new ones into the texts of another root filesystem on the disk, which is mounted at `root`.
    ///
    /// # Errors
    /// If one cannot be read or written.
    pub(crate) fn rewrite_in(&self, disk: &Disk, root: &Path) -> anyhow::Result<()> {
        self.rewrite(&Places::new(disk.file(), &[], Some(root)))
    }

    /// Writes them into the filesystems, which nobody has mounted any more.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write(&self, disk: &File) -> anyhow::Result<()> {
        for (area, serial) in &self.fat {
            let what = || format!("giving the filesystem at byte {} its serial number", area.offset);
            fat::renew(disk, area, *serial).with_context(what)?;
        }
        for (area, uuid) in &self.ext4 {
            let what = || format!("giving the filesystem at byte {} its UUID", area.offset);
            ext4::renew(disk, area, uuid).with_context(what)?;
        }
        Ok(())
    }
}

/// Takes away what the system on a card makes for itself.
pub(super) fn renew_system(root: &Path, renew: Renew) -> anyhow::Result<()> {
    if renew.machine {
        system::machine(root)?;
    }
    if renew.host_keys {
        system::host_keys(root)?;
    }
    Ok(())
}
