//! Where the root filesystem is mounted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Plan;

/// A folder to mount at. One that was made for this goes with it, after what is mounted there.
pub(super) struct Place {
    path: PathBuf,
    made: bool,
}

impl Place {
    /// Where a Pi boots from it, or else a folder of this installation alone.
    pub(super) fn of(plan: &Plan) -> Self {
        match &plan.boot_from {
            Some(path) => Self { path: path.clone(), made: false },
            None => Self::scratch(),
        }
    }

    /// A folder that nobody else has.
    pub(super) fn scratch() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pi-agent-{}-{count}", std::process::id());
        Self { path: std::env::temp_dir().join(name), made: true }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.made {
            // If something is still mounted there it stays, which `Mounted` has said.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}
