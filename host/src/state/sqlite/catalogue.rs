//! Images, who gets which, and what is known of archives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use piman_core::hash::Hash;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{GROUP_OF, NAME_RANK, signed, unsigned};
use crate::images::fitness::BootFrom;
use crate::state::archive_facts::{Content, Stamp};
use crate::state::{About, Catalogue, Choice, Edit, Identity, Registered};
use crate::sys::clock::now_ms;

pub(super) fn path(row: &Row<'_>, at: usize) -> rusqlite::Result<PathBuf> {
    Ok(PathBuf::from(OsStr::from_bytes(row.get_ref(at)?.as_bytes()?)))
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn read(db: &Connection) -> rusqlite::Result<Catalogue> {
    let mut query = db.prepare_cached(&format!(
        "SELECT {ABOUT}, name, path, is_default, added_ms, takes_unfit FROM images ORDER BY name"
    ))?;
    let images = query.query_map([], |row| {
        let (name, is_default, takes_unfit) = (row.get(4)?, row.get(6)?, row.get(8)?);
        let (path, added_ms) = (path(row, 5)?, unsigned(row, 7)?);
        Ok(Registered { name, path, is_default, added_ms, takes_unfit, about: about_in(row)? })
    })?;
    let images = images.collect::<rusqlite::Result<_>>()?;
    let mut query = db.prepare_cached("SELECT who, is_group, image FROM choices ORDER BY is_group, who")?;
    let choices = query
        .query_map([], |row| Ok(Choice { who: row.get(0)?, is_group: row.get(1)?, image: row.get(2)? }))?;
    let choices = choices.collect::<rusqlite::Result<_>>()?;
    let mut query = db.prepare_cached("SELECT device, family FROM members ORDER BY family, device")?;
    let members = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Catalogue { images, choices, members: members.collect::<rusqlite::Result<_>>()? })
}

/// The columns of what an operator says of an image.
const ABOUT: &str = "description, release, boot, boot_bytes";

fn about_in(row: &Row<'_>) -> rusqlite::Result<About> {
    let (boot, bytes): (Option<String>, Option<i64>) = (row.get(2)?, row.get(3)?);
    Ok(About {
        description: row.get(0)?,
        release: row.get(1)?,
        boot: boot.as_deref().and_then(BootFrom::from_word),
        boot_bytes: bytes.and_then(|n| u64::try_from(n).ok()),
    })
}

pub(super) fn about(db: &Connection, path: &Path) -> rusqlite::Result<About> {
    let mut query =
        db.prepare_cached(&format!("SELECT {ABOUT} FROM images WHERE path = ?1 ORDER BY name LIMIT 1"))?;
    Ok(query.query_row([bytes(path)], about_in).optional()?.unwrap_or_default())
}

/// A Pi's own image, else its group's, else the default.
pub(super) fn image_of(db: &Connection, pi: &Identity) -> rusqlite::Result<Option<PathBuf>> {
    let mut query = db.prepare_cached(&format!(
        "SELECT path, 1 AS rank, {NAME_RANK} AS name FROM images JOIN choices ON image = images.name
             WHERE NOT is_group AND who IN (?1, ?2, ?3)
         UNION ALL SELECT path, 2, 0 FROM images JOIN choices ON image = images.name
             WHERE is_group AND who = {GROUP_OF}
         UNION ALL SELECT path, 3, 0 FROM images WHERE is_default ORDER BY rank, 3 LIMIT 1",
    ))?;
    query.query_row(params![pi.serial, pi.mac, pi.address.to_string()], |row| path(row, 0)).optional()
}

/// Returns whether there was something to change.
pub(super) fn edit(db: &mut Connection, edit: &Edit) -> rusqlite::Result<bool> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let changed = change(&work, edit)?;
    work.commit()?;
    Ok(changed > 0)
}

/// Returns how many rows were changed.
fn change(work: &Transaction<'_>, edit: &Edit) -> rusqlite::Result<usize> {
    let known = |name: &str| {
        work.query_row("SELECT count(*) FROM images WHERE name = ?1", [name], |row| row.get::<_, bool>(0))
    };
    Ok(match edit {
        Edit::Add { name, path, takes_unfit, about } => work.execute(
            "INSERT INTO images (name, path, added_ms, takes_unfit, description, release, boot, boot_bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (name) DO UPDATE SET path = ?2, added_ms = ?3, takes_unfit = ?4, description = ?5,
                release = ?6, boot = ?7, boot_bytes = ?8",
            params![
                name,
                bytes(path),
                signed(now_ms()),
                takes_unfit,
                about.description,
                about.release,
                about.boot.map(BootFrom::word),
                about.boot_bytes.map(signed),
            ],
        )?,
        Edit::Remove { name } => {
            work.execute("DELETE FROM choices WHERE image = ?1", [name])?;
            work.execute("DELETE FROM images WHERE name = ?1", [name])?
        }
        Edit::Default { name: Some(name) } if !known(name)? => 0,
        Edit::Default { name } => work
            .execute("UPDATE images SET is_default = (name IS ?1) WHERE is_default OR name IS ?1", [name])?,
        Edit::Choose { image: Some(image), .. } if !known(image)? => 0,
        Edit::Choose { who, is_group, image: Some(image) } => work.execute(
            "INSERT OR REPLACE INTO choices (who, is_group, image) VALUES (?1, ?2, ?3)",
            params![who, is_group, image],
        )?,
        Edit::Choose { who, is_group, image: None } => {
            work.execute("DELETE FROM choices WHERE who = ?1 AND is_group = ?2", params![who, is_group])?
        }
        Edit::Join { device, group: Some(group) } => {
            leave(work, device)?;
            work.execute("INSERT INTO members (device, family) VALUES (?1, ?2)", params![device, group])?
        }
        Edit::Join { device, group: None } => leave(work, device)?,
    })
}

/// Takes a Pi out of its group, by whichever of its names it joined that.
fn leave(work: &Transaction<'_>, device: &str) -> rusqlite::Result<usize> {
    work.execute(
        "WITH pi AS (SELECT key, serial, mac FROM devices WHERE ?1 IN (key, serial, mac))
         DELETE FROM members WHERE device = ?1 OR device IN
             (SELECT key FROM pi UNION SELECT serial FROM pi UNION SELECT mac FROM pi)",
        [device],
    )
}

pub(super) fn known(db: &Connection, path: &Path) -> rusqlite::Result<Option<(Stamp, Content)>> {
    let mut query = db.prepare_cached(
        "SELECT stamp, id, unpacked_bytes, entries, sums, fitness FROM archives WHERE path = ?1",
    )?;
    let found = query.query_row([bytes(path)], |row| {
        let (stamp, id): (String, String) = (row.get(0)?, row.get(1)?);
        // What cannot be read is found out again.
        let Some(fitness) = serde_json::from_str(&row.get::<_, String>(5)?).ok() else { return Ok(None) };
        let facts = |id| -> rusqlite::Result<Content> {
            Ok(Content {
                id,
                unpacked_bytes: unsigned(row, 2)?,
                entries: unsigned(row, 3)?,
                sums: row.get(4)?,
                fitness,
            })
        };
        Ok(Stamp::parse(&stamp).zip(Hash::parse(&id).map(facts).transpose()?))
    });
    Ok(found.optional()?.flatten())
}

pub(super) fn keep(db: &Connection, path: &Path, stamp: &Stamp, facts: &Content) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO archives (path, stamp, id, unpacked_bytes, entries, sums, fitness)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        bytes(path),
        stamp.to_string(),
        facts.id.to_string(),
        signed(facts.unpacked_bytes),
        signed(facts.entries),
        facts.sums,
        serde_json::to_string(&facts.fitness).unwrap_or_default(),
    ])?;
    Ok(())
}
