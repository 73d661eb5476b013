//! The card: disks, partitions, filesystems, and what is on them.
//!
//! | module | what lives there |
//! |---|---|
//! | [`choose`] | which disk is meant, by path, name or rule |
//! | [`disk`] | disks: what may be written, partitions, nodes to mount |
//! | `content` | what is on a disk, of whoever: tables, filesystems, and a fingerprint of it all |
//! | [`mount`] | the root filesystem where it is mounted |
//! | [`inspect`] | the proof of a finished installation, and the check for it |
//! | `whole_disk` | the same for the image of a whole disk, whose proof lies before its first partition |
//! | `replace_proof` | another proof in the place of that one |
//! | [`ext4`](piman_core::hosted::ext4) | empty filesystems without mounting |
//! | `fat` | the filesystem that the firmware boots from, read and written without the kernel |
//! | `random`, `identifier` | identifiers by chance, and as text |
//! | `scratch_dir` | folders to mount at that nobody else can reach |
//! | [`root_path`] | paths inside the installed system, with its links followed |
//! | `root_files` | files inside the installed system |

pub mod choose;
pub(crate) mod content;
pub mod disk;
pub(crate) mod fat;
pub(crate) mod identifier;
pub mod inspect;
pub mod mount;
pub(crate) mod random;
pub(crate) mod replace_proof;
pub(crate) mod root_files;
pub mod root_path;
pub(crate) mod scratch_dir;
pub(crate) mod whole_disk;
