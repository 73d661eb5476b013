//! Accounts of the system on a card, as `useradd` and `usermod` would make and change them.

mod table;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use piman_core::install::personal::User;
use rustix::fs::OFlags;

use crate::card::root_files::{self, Access, set_access};
use crate::card::root_path::resolve;
use table::{Fields, Table};

const PASSWD: &str = "/etc/passwd";
const SHADOW: &str = "/etc/shadow";
const GROUP: &str = "/etc/group";
const GSHADOW: &str = "/etc/gshadow";
/// The numbers of people, as Debian's adduser.conf has them.
const PEOPLE: std::ops::Range<u32> = 1000..60_000;
/// Subordinate numbers: where they begin, and how many one gets (login.defs).
const SUBORDINATES: (u32, u32) = (100_000, 65_536);
/// What nobody can type the password of.
const LOCKED: &str = "*";
/// What a home is called until it is whole.
const NEW_HOME: &str = ".piman-new";
/// The largest list of keys, in bytes.
const KEYS_MAX: u64 = 1 << 20;
/// The largest file of the skeleton, in bytes.
const SKELETON_FILE_MAX: u64 = 16 << 20;
/// How deep folders of the skeleton may be, and how many files it may have.
const SKELETON: (usize, usize) = (16, 4096);

/// The numbers of an owner, `USER:GROUP`, by the names that the card knows.
pub(super) fn owner(root: Option<&Path>, owner: &str) -> anyhow::Result<(u32, u32)> {
    let (user, group) = owner.split_once(':').context("an owner is USER:GROUP")?;
    let number = |file: &str, name: &str| {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let root = root.context("without a root filesystem there are no names of users")?;
        let table = Table::read(root, file)?;
        let found = table.find(name).and_then(|line| line.number(2));
        found.with_context(|| format!("{name} is not in {file} of the card"))
    };
    Ok((number(PASSWD, user)?, number(GROUP, group)?))
}

/// Makes an account, or changes one that is there.
pub(super) fn put(root: &Path, user: &User<'_>) -> anyhow::Result<()> {
    let mut passwd = Table::read(root, PASSWD)?;
    ensure!(passwd.is_there(), "the system has no {PASSWD}");
    let mut group = Table::read(root, GROUP)?;
    let is_new = passwd.find(user.name).is_none();
    let line = match passwd.find(user.name) {
        Some(line) => changed(root, line, user)?,
        None => new(root, user, &passwd, &group)?,
    };
    let owner = line.number(2).zip(line.number(3)).context("its line in /etc/passwd is damaged")?;
    let home = line.text(5).to_owned();
    if is_new && group.find(user.name).is_none() {
        group.put(Fields::new(&[user.name, "x", &owner.1.to_string(), ""]));
    }
    let mut gshadow = Table::read(root, GSHADOW)?;
    if is_new && gshadow.is_there() && gshadow.find(user.name).is_none() {
        gshadow.put(Fields::new(&[user.name, "!", "", ""]));
    }
    join(user, &mut group, &mut gshadow);
    let mut shadow = Table::read(root, SHADOW)?;
    let mut line = line;
    set_password(user, is_new, &mut line, &mut shadow);
    // The other tables are written first: after a power cut no account is in passwd alone.
    for table in [&group, &gshadow, &shadow] {
        table.write(root)?;
    }
    if is_new {
        subordinates(root, user.name)?;
    }
    passwd.put(line);
    passwd.write(root)?;
    let home = make_home(root, &home, owner).with_context(|| format!("making the home of {}", user.name))?;
    put_keys(root, &home, user.keys, owner).with_context(|| format!("giving {} its SSH keys", user.name))
}

/// The line of an account that is there, with what is to be another.
fn changed(root: &Path, line: &Fields, user: &User<'_>) -> anyhow::Result<Fields> {
    let mut line = line.clone();
    if user.id != 0 && line.number(2) != Some(user.id) {
        log::warn!("{} keeps its number {}: files of it have that", user.name, line.text(2));
    }
    if !user.full_name.is_empty() {
        line.set(4, user.full_name);
    }
    if !user.shell.is_empty() {
        check_shell(root, user.shell)?;
        line.set(6, user.shell);
    }
    Ok(line)
}

/// The line of a new account.
fn new(root: &Path, user: &User<'_>, passwd: &Table, group: &Table) -> anyhow::Result<Fields> {
    let is_free = |id: u32| passwd.by_number(id).is_none();
    let own = group.find(user.name).map(|line| line.number(2).context("its line in /etc/group is damaged"));
    let own = own.transpose()?;
    let both = |id: u32| is_free(id) && (own.is_some() || group.by_number(id).is_none());
    let id = match user.id {
        0 => PEOPLE.clone().find(|id| both(*id)).context("there is no free number for an account")?,
        id if is_free(id) => id,
        id => bail!("the number {id} of {} is another account's", user.name),
    };
    // A group of its own, with the same number where that is free.
    let gid = match own {
        Some(gid) => gid,
        None if group.by_number(id).is_none() => id,
        None => PEOPLE
            .clone()
            .find(|gid| group.by_number(*gid).is_none())
            .context("there is no free number for a group")?,
    };
    let shell = match user.shell {
        "" => ["/bin/bash", "/bin/sh"].into_iter().find(|shell| resolve(root, Path::new(shell)).is_ok()),
        shell => {
            check_shell(root, shell)?;
            Some(shell)
        }
    };
    let home = format!("/home/{}", user.name);
    let (id, gid) = (id.to_string(), gid.to_string());
    Ok(Fields::new(&[user.name, "x", &id, &gid, user.full_name, &home, shell.unwrap_or("/bin/sh")]))
}

fn check_shell(root: &Path, shell: &str) -> anyhow::Result<()> {
    ensure!(resolve(root, Path::new(shell)).is_ok(), "the system has no shell {shell}");
    Ok(())
}

/// Puts the account into further groups, those that there are.
fn join(user: &User<'_>, group: &mut Table, gshadow: &mut Table) {
    for name in user.groups.split(',').filter(|name| !name.is_empty()) {
        if group.find(name).is_none() {
            log::warn!("the system has no group {name}: {} is not put into it", user.name);
            continue;
        }
        for table in [&mut *group, &mut *gshadow] {
            let Some(mut line) = table.find(name).cloned() else { continue };
            let members = line.text(3).to_owned();
            if !members.split(',').any(|member| member == user.name) {
                let all = if members.is_empty() {
                    user.name.to_owned()
                } else {
                    format!("{members},{}", user.name)
                };
                line.set(3, &all);
                table.put(line);
            }
        }
    }
}

/// In shadow where there is one, else in the account's own line.
fn set_password(user: &User<'_>, is_new: bool, line: &mut Fields, shadow: &mut Table) {
    if user.keeps_password && !is_new {
        return;
    }
    let password = if user.locked || user.password.is_empty() { LOCKED } else { user.password };
    if !shadow.is_there() {
        line.set(1, password);
        return;
    }
    line.set(1, "x");
    let day = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs()) / 86_400;
    // Day 0 would mean that it has to be changed at once.
    let day = if day > 0 { day.to_string() } else { String::new() };
    match shadow.find(user.name).cloned() {
        Some(entry) if entry.text(1) == password => {}
        Some(mut entry) => {
            entry.set(1, password);
            entry.set(2, &day);
            shadow.put(entry);
        }
        None => shadow.put(Fields::new(&[user.name, password, &day, "0", "99999", "7", "", "", ""])),
    }
}

/// Numbers for containers, where the system gives them to people.
fn subordinates(root: &Path, name: &str) -> anyhow::Result<()> {
    for file in ["/etc/subuid", "/etc/subgid"] {
        let mut table = Table::read(root, file)?;
        if !table.is_there() || table.find(name).is_some() {
            continue;
        }
        let (first, count) = SUBORDINATES;
        let end = |line: &Fields| line.number(1)?.checked_add(line.number(2)?);
        let start = table.lines().filter_map(end).max().unwrap_or(first).max(first);
        if start.checked_add(count).is_some() {
            table.put(Fields::new(&[name, &start.to_string(), &count.to_string()]));
            table.write(root)?;
        }
    }
    Ok(())
}

/// The home outside of the root, made from the skeleton where it is not there.
fn make_home(root: &Path, home: &str, owner: (u32, u32)) -> anyhow::Result<PathBuf> {
    let path = Path::new(home);
    ensure!(path.is_absolute() && path.file_name().is_some(), "{home:?} can be no home");
    if let Ok(there) = resolve(root, path)
        && there.is_dir()
    {
        return Ok(there);
    }
    let place = root_files::place(root, path)?;
    let folder = place.parent().context("a home is in a folder")?;
    // Under another name until it is whole: a home that is there is never made again.
    let new = folder.join(NEW_HOME);
    match fs::symlink_metadata(&new) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&new)?,
        Ok(_) => fs::remove_file(&new)?,
        Err(e) => root_files::unless_absent(Err(e))?,
    }
    let skeleton = resolve(root, Path::new("/etc/skel")).ok().filter(|skeleton| skeleton.is_dir());
    fs::create_dir(&new)?;
    if let Some(skeleton) = skeleton {
        let mut left = SKELETON.1;
        copy_skeleton(&skeleton, &new, owner, SKELETON.0, &mut left)?;
    }
    set_access(&File::open(&new)?, Access { mode: 0o700, owner })?;
    // With the content of its files.
    rustix::fs::syncfs(File::open(&new)?)?;
    fs::rename(&new, &place)?;
    File::open(folder)?.sync_all()?;
    Ok(place)
}

fn copy_skeleton(
    from: &Path,
    to: &Path,
    owner: (u32, u32),
    depth: usize,
    left: &mut usize,
) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        ensure!(depth > 0 && *left > 0, "/etc/skel has too many files");
        *left -= 1;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            fs::create_dir(&target)?;
            copy_skeleton(&source, &target, owner, depth - 1, left)?;
            set_access(&File::open(&target)?, Access { owner, ..Access::of(&meta) })?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(owner.0), Some(owner.1))?;
        } else if meta.is_file() {
            let flags = OFlags::NOFOLLOW.bits().cast_signed();
            let mut input = OpenOptions::new().read(true).custom_flags(flags).open(&source)?;
            let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
            let mut bytes = Vec::new();
            (&mut input).take(SKELETON_FILE_MAX + 1).read_to_end(&mut bytes)?;
            ensure!(bytes.len() as u64 <= SKELETON_FILE_MAX, "{} is too large", source.display());
            output.write_all(&bytes)?;
            set_access(&output, Access { owner, mode: meta.mode() & 0o777 })?;
        }
    }
    Ok(())
}

/// Adds the keys that are not there yet. The home is the account's own: no link in it is followed.
fn put_keys(root: &Path, home: &Path, keys: &str, owner: (u32, u32)) -> anyhow::Result<()> {
    let mut keys = keys.lines().map(str::trim).filter(|key| !key.is_empty()).peekable();
    if keys.peek().is_none() {
        return Ok(());
    }
    let folder = home.join(".ssh");
    match fs::symlink_metadata(&folder) {
        Ok(meta) => ensure!(meta.is_dir(), "its .ssh is no folder"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir(&folder)?,
        Err(e) => return Err(e.into()),
    }
    set_access(&File::open(&folder)?, Access { mode: 0o700, owner })?;
    let file = folder.join("authorized_keys");
    let inside = Path::new("/").join(file.strip_prefix(root)?);
    let is_link = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_symlink());
    let found = if is_link { None } else { root_files::read(root, &inside, KEYS_MAX)? };
    let mut bytes = found.map(|found| found.bytes).unwrap_or_default();
    for key in keys {
        if !bytes.split(|b| *b == b'\n').any(|line| line.trim_ascii() == key.as_bytes()) {
            if bytes.last().is_some_and(|b| *b != b'\n') {
                bytes.push(b'\n');
            }
            bytes.extend(key.bytes());
            bytes.push(b'\n');
        }
    }
    Ok(root_files::write(&file, Access { mode: 0o600, owner }, &bytes)?)
}

#[cfg(test)]
mod tests;
