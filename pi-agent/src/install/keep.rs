//! The partition behind the root filesystem that an installation makes once, and that no later one touches.

use std::str::FromStr;

use anyhow::anyhow;
use piman_core::hosted::size::parse_size;
use piman_core::install::layout::SECTOR;
use piman_core::install::{Fingerprint, Found as Kind, Stage};

use super::Plan;
use crate::card::content::filesystem::detect;
use crate::card::content::source::{DiskSource, Region};
use crate::card::content::table::Part;
use crate::card::content::table_of;
use crate::card::disk::{Disk, RootArea};
use crate::card::inspect::Found;
use crate::failure::{Cause, Failure};
use crate::telemetry::display::size;

/// The longest label that an ext4 filesystem can have, in bytes.
const LABEL_MAX: usize = 16;

/// What is wanted of such a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// Nothing was said: there is to be none, and one that is there is not erased.
    #[default]
    Unsaid,
    /// There is to be none, whatever is there.
    None,
    /// There is to be one.
    Data {
        /// Its size, in bytes.
        bytes: u64,
        /// Its label.
        label: String,
    },
}

/// Reads `none`, or a size and perhaps a label, as `2G,work`.
impl FromStr for Keep {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (bytes, label) = text.split_once(',').unwrap_or((text, "data"));
        let bytes = parse_size(bytes).ok_or("not none, a size, or a size and a label as 2G,data")?;
        if bytes < 16 << 20 {
            return Err("a partition of less than 16M holds no filesystem");
        }
        let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if label.is_empty() || label.len() > LABEL_MAX || !plain {
            return Err("a label has 1 to 16 letters, digits, dots, dashes and underlines");
        }
        Ok(Self::Data { bytes, label: label.to_owned() })
    }
}

impl Keep {
    /// How many sectors of 512 bytes a layout has to leave for it.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.div_ceil(SECTOR),
            _ => 0,
        }
    }

    /// Its label, if there is to be one.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        if let Self::Data { label, .. } = self { Some(label) } else { None }
    }
}

/// Says which partition an installation leaves alone, byte for byte. What else there is beside boot and root
/// partition is erased only where somebody has decided so.
///
/// `ordered` is the fingerprint in the server's order. It is in every order: that somebody was shown what is erased it
/// says only where no order is made without.
///
/// With the image of a `whole_disk` nothing can be left alone; of one that is there the partitions that it brought go.
///
/// # Errors
/// [`Cause::Refused`] if the installation would erase what is to be kept, or what nobody has decided on.
pub(super) fn check(
    plan: &Plan,
    disk: &Disk,
    found: &Found,
    ordered: Option<Fingerprint>,
    whole_disk: bool,
) -> Result<Option<RootArea>, Failure> {
    if whole_disk && plan.keep.label().is_some() {
        return Err(refusal(format!(
            "the server installs the image of a whole disk, whose partition table has no place for what --keep-data keeps \
             on {disk}: {NONE}, or assign an archive to this Pi"
        )));
    }
    let wanted = disk.data_area(&plan.layout)?;
    if plan.keep == Keep::None {
        return Ok(None);
    }
    let source = DiskSource { file: disk.file(), bytes: disk.bytes(), sector: disk.sector() };
    let whole = Region::whole(&source);
    let kind = found.card.kind(plan.trust_unmarked);
    let decided = matches!(kind, Kind::Foreign | Kind::Unreadable)
        && ordered.is_some()
        && ordered == Fingerprint::new(found.print);
    let parts = match table_of(&whole) {
        Ok(table) => table.parts,
        Err(_) if decided => Vec::new(),
        Err(wrong) => {
            return Err(refusal(format!(
                "what there is behind the root partition of {disk} is not known, as its partition table cannot be read \
                 ({wrong}): {NONE}"
            )));
        }
    };
    let is_wanted = |part: &Part| part.number == NUMBER && wanted == Some(area(part));
    let kept = wanted.filter(|_| parts.iter().any(is_wanted));
    let is_ours = |part: &Part| matches!(part.number, 1 | 2) || found.card.brought(part.number);
    for part in parts.iter().filter(|part| !is_ours(part) && !is_wanted(part)) {
        let content = Content::of(&whole.part(part.offset, part.length));
        if !decided || content.is_named(plan) {
            return Err(refusal(lost(disk, part, &content, (wanted, kept))));
        }
    }
    if kept.is_some() {
        // Whether the new table will name it; nothing is written.
        let _ = disk.prepare(&plan.layout, kept)?;
        return Ok(kept);
    }
    let Some(wanted) = wanted else { return Ok(None) };
    // What lies in a system of ours goes with it.
    let ours = matches!(kind, Kind::Ours | Kind::Damaged);
    if ours && parts.iter().any(|part| contains(part, &wanted)) {
        return Ok(None);
    }
    let content = Content::of(&whole.part(wanted.offset, wanted.length));
    // An installation that was broken off may have made a filesystem that no table names yet.
    let is_left_over = kind == Kind::Incomplete && content.never_mounted && content.is_named(plan);
    if content.is_nothing || is_left_over || decided && !content.is_named(plan) {
        return Ok(None);
    }
    Err(refusal(format!(
        "where --keep-data expects what is to be kept, at byte {} of {disk}, there is {}, but the partition table does \
         not name it: put it back into the table as partition 3 ({} bytes); or, if it is not needed, erase it there \
         (wipefs), or say another size",
        wanted.offset, content.text, wanted.length
    )))
}

/// The number of the partition that is kept.
const NUMBER: u32 = 3;

const NONE: &str = "piman.keep_data=none (--keep-data none) lets it be erased";

fn refusal(text: String) -> Failure {
    Failure { stage: Stage::Disk, cause: Cause::Refused, error: anyhow!("{text}; nothing was changed") }
}

fn area(part: &Part) -> RootArea {
    RootArea { offset: part.offset, length: part.length }
}

/// Whether an area lies in a partition.
fn contains(part: &Part, area: &RootArea) -> bool {
    let end = |offset: u64, length: u64| offset.saturating_add(length);
    part.offset <= area.offset && end(area.offset, area.length) <= end(part.offset, part.length)
}

/// What an installation would erase, and what to do.
fn lost(
    disk: &Disk,
    part: &Part,
    content: &Content,
    (wanted, kept): (Option<RootArea>, Option<RootArea>),
) -> String {
    let (number, length, offset) = (part.number, size(part.length), part.offset);
    let place = format!("partition {number} of {disk}, {length} at byte {offset}, {}", content.text);
    match (wanted, kept) {
        (None, _) => format!(
            "{place}, is not what this installation would make or keep: say piman.keep_data=SIZE,LABEL (--keep-data) \
             with the size that it was made with to keep it; {NONE}"
        ),
        (Some(_), Some(_)) => format!(
            "{place}, would be erased, as only partition 3 is kept: move what it holds elsewhere, and take it out of \
             the partition table"
        ),
        (Some(wanted), None) => format!(
            "{place}, is not where --keep-data expects what is to be kept ({} at byte {}): say the size that it was \
             made with, or move what it holds elsewhere; {NONE}",
            size(wanted.length),
            wanted.offset
        ),
    }
}

/// What a part of a disk holds.
struct Content {
    text: String,
    label: Option<String>,
    is_nothing: bool,
    never_mounted: bool,
}

impl Content {
    fn of(region: &Region<'_>) -> Self {
        let content = |text, label| Self { text, label, is_nothing: false, never_mounted: false };
        match detect(region) {
            Ok(Some(found)) => {
                let never_mounted = found.kind.starts_with("ext") && never_mounted(region);
                let text = format!("{} \"{}\"", found.kind, found.label);
                Self { never_mounted, ..content(text, Some(found.label)) }
            }
            Ok(None) => Self { is_nothing: true, ..content("with nothing that is recognised".into(), None) },
            Err(wrong) => content(format!("what cannot be read ({wrong})"), None),
        }
    }

    /// Whether it is called as what is to be kept.
    fn is_named(&self, plan: &Plan) -> bool {
        self.label.is_some() && self.label.as_deref() == plan.keep.label()
    }
}

/// Whether nobody has mounted an ext4 filesystem since it was made.
fn never_mounted(region: &Region<'_>) -> bool {
    const MOUNTED: u64 = 0x42c;
    region.u32(MOUNTED).is_ok_and(|time| time == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let data = |bytes, label: &str| Ok(Keep::Data { bytes, label: label.into() });
        assert_eq!("none".parse(), Ok(Keep::None));
        assert_eq!("2G".parse(), data(2 << 30, "data"));
        assert_eq!("64M,var-lib.x_1".parse(), data(64 << 20, "var-lib.x_1"));
        for bad in ["", "2X", "1M", "2G,", "2G,a b", "2G,seventeen-letters", "2G,a,b", "2G,\u{e4}"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
        assert_eq!(Keep::Unsaid.sectors(), 0);
        assert_eq!("16M".parse::<Keep>().unwrap().sectors(), 32_768);
    }

    use std::os::unix::fs::FileExt;

    use piman_core::install::layout::{Layout, TableKind};

    use crate::card::inspect::Card;

    const CARD: u64 = 200 << 20;
    const LVM: u8 = 0x8e;

    fn plan(keep: &str, table: TableKind) -> Plan {
        let args = ["install", "--server", "x", "--disk", "y"].map(std::ffi::OsString::from);
        let Ok(crate::cli::Order::Install(plan, ..)) = crate::cli::parse(args) else { panic!("no plan") };
        let keep = if keep.is_empty() { Keep::Unsaid } else { keep.parse().unwrap() };
        let layout = Layout { data_sectors: keep.sectors(), table, ..Layout::default() };
        Plan { keep, layout, ..*plan }
    }

    /// A disk with the partitions of this plan.
    fn made(folder: &tempfile::TempDir, bytes: u64, plan: &Plan) -> Disk {
        let disk = Disk::create(&folder.path().join("card"), bytes).unwrap();
        let begun = disk.begin(&plan.layout, None).unwrap();
        disk.partition(&plan.layout, &begun).unwrap();
        if let Some(label) = plan.keep.label() {
            disk.make_data(&plan.layout, &begun, label, 1).unwrap();
        }
        disk.show_root(&begun).unwrap();
        disk
    }

    /// An entry of the MBR: type, first sector, sectors.
    fn entry(disk: &Disk, number: u64, kind: u8, first: u32, sectors: u32) {
        let mut bytes = [0; 16];
        bytes[4] = kind;
        bytes[8..12].copy_from_slice(&first.to_le_bytes());
        bytes[12..].copy_from_slice(&sectors.to_le_bytes());
        disk.file().write_all_at(&bytes, 446 + 16 * (number - 1)).unwrap();
    }

    fn asked(plan: &Plan, disk: &Disk, card: Card, ordered: u64) -> Result<Option<RootArea>, Failure> {
        let found = Found { card, contents: "MBR table".into(), print: 5 };
        check(plan, disk, &found, Fingerprint::new(ordered), false)
    }

    fn refused(result: Result<Option<RootArea>, Failure>, words: &[&str]) {
        let failure = result.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.cause, Cause::Refused, "{text}");
        for word in words.iter().chain(&["nothing was changed"]) {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    fn unmarked(trust_unmarked: bool, plan: &Plan) -> Plan {
        Plan { trust_unmarked, ..plan.clone() }
    }

    #[test]
    fn a_partition_of_whatever_type_is_kept_or_stops_the_installation() {
        let folder = tempfile::tempdir().unwrap();
        let (keeping, unsaid) = (plan("20M,work", TableKind::Mbr), plan("", TableKind::Mbr));
        let disk = made(&folder, CARD, &keeping);
        let area = disk.data_area(&keeping.layout).unwrap().unwrap();
        let (first, sectors) = ((area.offset / SECTOR) as u32, (area.length / SECTOR) as u32);
        disk.file().write_all_at(b"LABELONE", area.offset + 512).unwrap();
        disk.file().write_all_at(&[0; 2], area.offset + 0x438).unwrap();
        for kind in [0x83, LVM, 0x05, 0xda] {
            entry(&disk, 3, kind, first, sectors);
            let any = [Card::Incomplete, Card::Unmarked, Card::Foreign("x".into())];
            for card in any {
                assert_eq!(asked(&keeping, &disk, card.clone(), 6).unwrap(), Some(area), "{kind}");
                refused(asked(&unsaid, &disk, card, 6), &["partition 3 of", "LVM", "keep_data=none"]);
            }
            // What nobody was shown, although every order names the content.
            for card in [Card::Incomplete, Card::Unmarked] {
                refused(asked(&unmarked(true, &unsaid), &disk, card, 5), &["partition 3 of", "LVM"]);
            }
            // Who was shown it has decided.
            for card in [Card::Unmarked, Card::Foreign("x".into()), Card::Unreadable("x".into())] {
                assert_eq!(asked(&unsaid, &disk, card, 5).unwrap(), None);
            }
            let none = plan("none", TableKind::Mbr);
            assert_eq!(asked(&none, &disk, Card::Incomplete, 6).unwrap(), None);
        }
        // Another size, and one more.
        refused(
            asked(&plan("21M,work", TableKind::Mbr), &disk, Card::Incomplete, 6),
            &["the size that it was made"],
        );
        entry(&disk, 4, 0x83, first - 4096, 2048);
        refused(asked(&keeping, &disk, Card::Incomplete, 6), &["partition 4 of", "only partition 3 is kept"]);
        // Its type and its bytes stay.
        entry(&disk, 4, 0, 0, 0);
        entry(&disk, 3, LVM, first, sectors);
        let whole = |disk: &Disk| {
            let mut bytes = vec![0; usize::try_from(area.length).unwrap()];
            disk.file().read_exact_at(&mut bytes, area.offset).unwrap();
            let mut third = [0; 16];
            disk.file().read_exact_at(&mut third, 446 + 32).unwrap();
            (bytes, third)
        };
        let before = whole(&disk);
        let begun = disk.begin(&keeping.layout, Some(area)).unwrap();
        assert_eq!(whole(&disk), before);
        disk.partition(&keeping.layout, &begun).unwrap();
        disk.make_data(&keeping.layout, &begun, "work", 1).unwrap();
        disk.show_root(&begun).unwrap();
        assert!(whole(&disk) == before, "it was touched");
    }

    #[test]
    fn what_the_table_does_not_name_is_not_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let keeping = plan("20M,work", TableKind::Mbr);
        let disk = made(&folder, CARD, &keeping);
        let area = disk.data_area(&keeping.layout).unwrap().unwrap();
        entry(&disk, 3, 0, 0, 0);
        let foreign = || Card::Foreign("x".into());
        let put = |bytes: &[u8], at: u64| disk.file().write_all_at(bytes, area.offset + at).unwrap();
        // What an installation left that was broken off, and what somebody used.
        assert_eq!(asked(&keeping, &disk, Card::Incomplete, 6).unwrap(), None);
        put(&[1; 4], 0x42c);
        refused(asked(&keeping, &disk, Card::Incomplete, 5), &["\"work\"", "does not name it"]);
        // Nobody wanted one of this name erased.
        refused(asked(&keeping, &disk, foreign(), 5), &["\"work\""]);
        put(b"LUKS\xba\xbe\0\x02", 0);
        for card in [Card::Incomplete, Card::Unmarked, foreign()] {
            refused(asked(&keeping, &disk, card, 6), &["encrypted (LUKS)", "does not name it"]);
        }
        assert_eq!(asked(&keeping, &disk, foreign(), 5).unwrap(), None);
        // Within a system of ours it goes with that.
        let start = keeping.layout.root_start;
        entry(&disk, 2, 0x83, start as u32, (CARD / SECTOR - start) as u32);
        assert_eq!(asked(&unmarked(true, &keeping), &disk, Card::Unmarked, 5).unwrap(), None);
        refused(asked(&keeping, &disk, foreign(), 6), &["encrypted (LUKS)"]);
        // What cannot be read is not nothing.
        disk.file().set_len(area.offset).unwrap();
        let source = DiskSource { file: disk.file(), bytes: CARD, sector: SECTOR };
        let content = Content::of(&Region::whole(&source).part(area.offset, area.length));
        assert!(!content.is_nothing && content.text.contains(&area.offset.to_string()), "{}", content.text);
        for plan in [keeping, plan("", TableKind::Mbr)] {
            refused(asked(&plan, &disk, foreign(), 6), &["its partition table cannot be read"]);
            assert_eq!(asked(&plan, &disk, foreign(), 5).unwrap(), None);
        }
    }

    /// On a disk of exactly 2 TiB both kinds of table have it in the same place.
    #[test]
    fn what_the_new_table_would_not_name_stops_it_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mbr, auto) = (plan("20M,work", TableKind::Mbr), plan("20M,work", TableKind::Auto));
        let disk = made(&folder, 1 << 41, &mbr);
        let area = disk.data_area(&mbr.layout).unwrap().unwrap();
        assert_eq!(disk.data_area(&auto.layout).unwrap(), Some(area));
        assert_eq!(asked(&mbr, &disk, Card::Incomplete, 6).unwrap(), Some(area));
        let first = || {
            let mut bytes = vec![0; 1 << 20];
            disk.file().read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = first();
        refused(asked(&auto, &disk, Card::Incomplete, 6), &["of another kind"]);
        refused(disk.begin(&auto.layout, Some(area)).map(|_| None), &["of another kind"]);
        let other = RootArea { offset: area.offset - (1 << 20), ..area };
        refused(disk.begin(&mbr.layout, Some(other)).map(|_| None), &["has it no more"]);
        assert!(first() == before, "something was written");
        // The table is lost between the look and the order.
        disk.file().write_all_at(&[0; 2], 510).unwrap();
        let before = first();
        refused(disk.begin(&mbr.layout, Some(area)).map(|_| None), &["no partition table that can be read"]);
        assert!(first() == before, "something was written");
    }
}
