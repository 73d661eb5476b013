//! Path A: the archive as every server sends it, extracted into a filesystem made here.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{anyhow, bail};
use piman_core::install::{Offer, Stage};

use super::erase::erase_proof;
use super::{Done, Plan};
use crate::disk::Disk;
use crate::ext4;
use crate::failure::{Cause, Failure, OrFail};
use crate::mount::Mounted;
use crate::progress::Progress;
use crate::proof::{Proof, Way};
use crate::stream::{self, Expected};

pub(super) fn install(
    plan: &Plan,
    disk: &Disk,
    offer: Option<Offer>,
    progress: &Arc<Progress>,
) -> Result<Done, Failure> {
    // Nothing is erased before the server has shown that it sends an archive.
    let source =
        connect(plan, offer).or_fail(Stage::Disk, Cause::Network, "asking the server for the archive")?;
    progress.begin(Stage::Partition, 0);
    let root = erase_proof(disk, &plan.layout)?;
    progress.begin(Stage::Filesystem, 0);
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs())).unwrap_or(0);
    ext4::format(disk.file(), root.offset, root.length, "root", now).or_fail(
        Stage::Filesystem,
        Cause::Disk,
        format!("making the root filesystem on {disk}"),
    )?;
    let node = disk.root_node(&root)?;
    progress.begin(Stage::Mount, 0);
    let place = plan.boot_from.clone().unwrap_or_else(scratch);
    let scratch = Scratch(plan.boot_from.is_none().then_some(&*place));
    let mounted = Mounted::new(&node, &place)?;
    drop(node);

    let expected = offer.map(|o| Expected { hash: o.id, bytes: o.bytes });
    let directory = mounted.directory().or_fail(Stage::Transfer, Cause::Disk, "extracting")?;
    let summary = stream::install(source, expected, directory, progress)?;

    progress.begin(Stage::Sync, 0);
    mounted.sync().or_fail(Stage::Sync, Cause::Disk, format!("bringing everything to {disk}"))?;
    progress.begin(Stage::Commit, 0);
    let proof = Proof::now(summary.hash, Way::Stream, offer.and_then(|o| o.more.installation));
    mounted.write_proof(&proof).or_fail(
        Stage::Commit,
        Cause::Disk,
        format!("writing the proof to {disk}"),
    )?;
    disk.sync(Stage::Commit)?;
    let root = if plan.boot_from.is_some() {
        Some(mounted)
    } else {
        drop(mounted);
        None
    };
    drop(scratch);
    Ok(Done {
        image: summary.hash,
        way: Way::Stream,
        received: summary.bytes,
        written: summary.unpacked_bytes,
        root,
    })
}

/// Connects to the rootfs port and waits for the first bytes of an archive.
fn connect(plan: &Plan, offer: Option<Offer>) -> anyhow::Result<TcpStream> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let stream = plan.server.connect(offer.map_or(plan.server.rootfs_port, |o| o.rootfs_port))?;
    stream.set_read_timeout(Some(super::IDLE_TIMEOUT))?;
    let mut start = [0; 4];
    let deadline = Instant::now() + super::IDLE_TIMEOUT;
    loop {
        let n = stream.peek(&mut start).map_err(|e| anyhow!(e).context("waiting for its first bytes"))?;
        match start.get(..n).unwrap_or_default() {
            [] => {
                bail!("the server closed the connection without sending anything: it has no archive to send")
            }
            s if s.starts_with(&GZIP) || s.starts_with(&ZSTD) => return Ok(stream),
            s if !(GZIP.starts_with(s) || ZSTD.starts_with(s)) => {
                bail!("the server sends something that is neither gzip nor zstd; nothing was erased")
            }
            _ if Instant::now() > deadline => bail!("the server sends nothing more"),
            _ => thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

/// Removes the folder that was made to mount at, after what is mounted there.
pub(super) struct Scratch<'a>(pub(super) Option<&'a Path>);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            // If something is still mounted there it stays, which `Mounted` has said.
            let _ = std::fs::remove_dir(place);
        }
    }
}

/// A folder to mount at, of this installation alone.
pub(super) fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("pi-agent-{}-{count}", std::process::id()))
}
