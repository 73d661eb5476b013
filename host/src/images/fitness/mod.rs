//! Whether what an archive holds can run on a Pi: judged when it is added, before a card is touched.
//!
//! | file | what lives there |
//! |---|---|
//! | `boot_folder` | the boot files of an archive, as an agent copies them to a boot partition |
//! | `evidence` | what is kept of an archive while it is read |
//! | `judge` | the findings |
//! | `lookup` | a path in the system that the archive would become, through its links |
//! | `system` | what kind of system it is, and whether a card with it boots by itself |

mod boot_folder;
mod evidence;
mod judge;
mod lookup;
mod system;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use evidence::Evidence;
pub use system::{BOOT_MAX, Boot, BootFrom, Has, Kind, RootAccess, System};

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It may work otherwise than expected.
    Warning,
    /// It cannot boot: not installed unless the operator insists.
    Unfit,
}

/// One thing that is wrong with a system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How serious it is.
    pub severity: Severity,
    /// Its kind, one word with hyphens, for scripts.
    pub kind: String,
    /// What is wrong and what to do, for people.
    pub text: String,
}

/// The kind of a system without a program that can become process 1.
const NO_INIT: &str = "no-init";
/// The kind of an archive without an end marker.
const NO_END: &str = "no-end-marker";

/// The kind of a mount of an archive's root or boot partition that names a disk which will not exist.
const MISSING_OWN_DISK: &str = "missing-own-disk";
/// The kind of a root on the kernel's command line that will not exist.
const MISSING_ROOT: &str = "missing-root";

/// The kind of a disk image with a damaged table, which a copy has whole.
const BROKEN_TABLE: &str = "broken-table";

impl Finding {
    /// Whether it says that no program can become process 1.
    pub(crate) fn is_no_init(&self) -> bool {
        self.kind == NO_INIT
    }

    /// Whether it does not hold on a card that boots by itself, where the agent writes which partitions there are.
    #[must_use]
    fn is_mended_on_cards(&self) -> bool {
        [MISSING_OWN_DISK, MISSING_ROOT].contains(&self.kind.as_str())
    }

    /// Whether our own copy does not have it any more.
    pub(crate) fn is_repaired(&self) -> bool {
        self.kind == BROKEN_TABLE
    }

    /// The table at the beginning of a disk image is damaged, and that at its end is used.
    pub(crate) fn broken_table() -> Self {
        Self {
            severity: Severity::Warning,
            kind: BROKEN_TABLE.into(),
            text: "its GPT at the beginning is damaged; the copy at its end is used in its place".into(),
        }
    }

    /// Whether it says that the archive has no end marker.
    pub(crate) fn is_no_end(&self) -> bool {
        self.kind == NO_END
    }

    /// The archive has no end marker. Its packing ends as it should, or it would be damaged: a remark.
    pub(crate) fn no_end() -> Self {
        Self {
            severity: Severity::Warning,
            kind: NO_END.into(),
            text: "the archive has no end marker: its packing is whole, and some archivers never write the marker; \
                   if tar was ended while gzip or zstd went on, the last files are missing: compare the end of \
                   `tar -tvf ARCHIVE` with what was packed"
                .into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What was found of a system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fitness {
    /// What is wrong, the most serious first.
    pub findings: Vec<Finding>,
    /// For which processors its process 1 is, as ELF numbers them: one, or none if it could not be found.
    pub machine: Option<u16>,
    /// The kernels that it has modules for (`/lib/modules`), sorted.
    pub kernels: Vec<String>,
    /// What kind of system it is.
    pub system: System,
}

impl Fitness {
    /// Adds one before the others.
    pub(crate) fn add_first(&mut self, finding: Finding) {
        self.findings.insert(0, finding);
    }

    /// What is wrong with an image from which cards boot so. `is_disk`: it brings its own partitions.
    pub fn findings_for(&self, from: BootFrom, is_disk: bool) -> impl Iterator<Item = &Finding> {
        let is_mended = from == BootFrom::Card && !is_disk;
        self.findings.iter().filter(move |finding| !(is_mended && finding.is_mended_on_cards()))
    }

    /// Why it cannot boot; `None` if it can, as far as can be seen.
    #[must_use]
    pub fn unfit(&self) -> Option<String> {
        let unfit = self.findings.iter().filter(|f| f.severity == Severity::Unfit);
        let texts: Vec<_> = unfit.map(|f| f.text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}
