//! The disk that a rule of `piman.disk=` chose, which stays the one until the Pi is switched off: if it drops off in the
//! middle of an installation, the next attempt waits for it and does not take what is left.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::wait;
use crate::card::choose::{NoDisk, Which};

/// Where it is kept: in the initramfs, which is gone when another system runs.
pub(super) const FILE: &str = "/run/piman-disk";

/// Waits for the disk that is meant; what a rule chose is kept in `file`. Where no disk is found, what comes back is
/// none, and why: which disks there are is not looked at again without waiting until they settle.
pub(super) fn wait_for(which: &Which, file: &Path, deadline: Duration) -> Which {
    let kept = recall(which, file);
    let wanted = kept.as_ref().unwrap_or(which);
    let mut settling = wait::Settling::default();
    let why = match wait::wait_for("the disk", deadline, || wait::chosen(wanted, &mut settling)) {
        Ok(Ok(found)) => match keep(which, &found, file) {
            Ok(()) => return found,
            Err(e) => NoDisk::None(format!("{}, where the disk is noted for later: {e}", file.display())),
        },
        Ok(Err(why)) => why,
        Err(lacking) if kept.is_some() => {
            NoDisk::None(format!("{lacking}; to choose again, switch the Pi off and on"))
        }
        Err(lacking) => NoDisk::None(lacking),
    };
    log::error!("{why}");
    // A path is no other disk, and opening it says best what is wrong with it.
    if matches!(which, Which::Path(_)) { which.clone() } else { Which::No(why) }
}

/// What this rule chose before.
fn recall(rule: &Which, file: &Path) -> Option<Which> {
    let text = fs::read_to_string(file).ok().filter(|_| rule.is_rule())?;
    let (known, identity) = text.split_once('\n')?;
    (known == rule.to_string()).then(|| Which::Chosen(identity.to_owned()))
}

/// Keeps what a rule chose: the whole of it or nothing.
fn keep(rule: &Which, found: &Which, file: &Path) -> io::Result<()> {
    let (true, Which::Chosen(identity)) = (rule.is_rule(), found) else { return Ok(()) };
    let new = file.with_extension("new");
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
    fs::write(&new, format!("{rule}\n{identity}"))?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_chose_is_kept_for_that_rule() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run/disk");
        let chosen = Which::Chosen("31457280 bytes, 0x1f2e".into());
        assert_eq!(recall(&Which::Largest, &file), None);
        let path = Which::Path("/dev/sda".into());
        keep(&path, &path, &file).unwrap();
        assert!(!file.exists());
        keep(&Which::Largest, &chosen, &file).unwrap();
        keep(&Which::Largest, &chosen, &file).unwrap();
        assert_eq!(recall(&Which::Largest, &file), Some(chosen));
        assert_eq!(recall(&Which::Auto, &file), None);
        assert_eq!(recall(&path, &file), None);
        fs::write(&file, "largest").unwrap();
        assert_eq!(recall(&Which::Largest, &file), None);
    }

    #[test]
    fn while_the_chosen_disk_is_away_no_other_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        keep(&Which::Largest, &Which::Chosen("1 bytes, none has it".into()), &file).unwrap();
        let found = wait_for(&Which::Largest, &file, Duration::from_millis(1));
        let Which::No(NoDisk::None(why)) = &found else { panic!("{found}") };
        assert!(why.contains("chosen first (1 bytes, none has it)"), "{why}");
        assert!(why.ends_with("; to choose again, switch the Pi off and on"), "{why}");
        let failure = found.open_path().unwrap_err();
        assert_eq!(failure.to_string(), format!("{why}; nothing was changed"));
        assert!(!failure.cause.is_passing());
    }

    #[test]
    fn a_rule_that_did_not_settle_is_not_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        let found = wait_for(&Which::Auto, &file, Duration::from_millis(1));
        assert!(
            matches!(&found, Which::No(NoDisk::None(why)) if why.contains("looking which disks")),
            "{found}"
        );
        assert!(!file.exists());
        let path = Which::Path(folder.path().join("none"));
        assert_eq!(wait_for(&path, &file, Duration::from_millis(1)), path);
    }
}
