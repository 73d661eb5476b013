//! Container images, as an OCI image layout and as `docker save` writes them: their layers are put one over the other,
//! as the OCI image specification (1.1, "Image Layer Filesystem Changeset") has it, and become one tar archive. Nothing
//! is unpacked into a filesystem, so that nobody has to be root.
//!
//! The layers are read twice: to find out which entry of which layer is at each path in the end, and to write those.
//!
//! | file | what lives there |
//! |---|---|
//! | `store` | the parts of an image, in an archive or in a folder |
//! | `digest` | SHA-256 |
//! | `json` | indexes, manifests and configurations |
//! | `choose` | which image, of several |
//! | `layer` | the entries of a layer, checked |
//! | `whiteout` | entries that hide others |
//! | `tree` | what the layers become |
//! | `write` | the archive of it |

mod choose;
mod digest;
mod json;
mod layer;
mod store;
mod tree;
mod whiteout;
mod write;

use std::cell::Cell;
use std::io::{BufWriter, Write};
use std::sync::atomic::AtomicU64;

use anyhow::ensure;

use super::{Form, UNPACKED_MAX, Wish};
use choose::choose;
use layer::Layer;
pub(super) use store::{Store, scan};
use tree::Tree;

/// An image whose layers were read and put one over the other.
pub(super) struct Container {
    /// What it was.
    pub(super) form: Form,
    /// Which image it is.
    pub(super) what: String,
    layers: Vec<Layer>,
    tree: Tree,
    limits: Limits,
}

/// What all layers of an image may have together.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes when they are unpacked.
    unpacked: u64,
    entries: u64,
    /// Bytes of names and of what else is kept of entries.
    names: u64,
}

/// Each entry takes some 200 bytes of memory beside its name.
const LIMITS: Limits = Limits { unpacked: UNPACKED_MAX, entries: 4_000_000, names: 512 << 20 };

impl Container {
    /// Chooses an image and reads it; `None` if the store has something else in it. `progress` gets the
    /// number of bytes that were read, half of them, since there is another half to come.
    ///
    /// # Errors
    /// If it is not clear which one is meant, it is not for a Pi, it is damaged, or not understood.
    pub(super) fn open(
        store: &Store,
        wish: &Wish<'_>,
        progress: &dyn Fn(u64),
    ) -> anyhow::Result<Option<Self>> {
        Self::limited(store, wish, LIMITS, progress)
    }

    fn limited(
        store: &Store,
        wish: &Wish<'_>,
        limits: Limits,
        progress: &dyn Fn(u64),
    ) -> anyhow::Result<Option<Self>> {
        let Some(chosen) = choose(store, wish)? else { return Ok(None) };
        let (room, count) = (Cell::new(limits.unpacked), AtomicU64::new(0));
        let mut tree = Tree::new(limits);
        for (number, layer) in chosen.layers.iter().enumerate() {
            tree.apply(number, layer, &room, &count, &|at| progress(at / 2))?;
        }
        ensure!(!tree.is_empty(), "its layers hold nothing together");
        let choose::Chosen { form, what, layers } = chosen;
        Ok(Some(Self { form, what, layers, tree, limits }))
    }

    /// The bytes of all layers as they are stored.
    pub(super) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.length).sum()
    }

    /// Writes the archive. The bytes of layers that are read are added to `count`.
    ///
    /// # Errors
    /// Of reading and of writing.
    pub(super) fn write(&self, count: &AtomicU64, to: impl Write) -> anyhow::Result<()> {
        let mut to = BufWriter::with_capacity(1 << 18, to);
        write::write(&self.tree, &self.layers, self.limits.unpacked, count, &mut to)
    }
}

#[cfg(test)]
mod tests;
