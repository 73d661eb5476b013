//! A profile out of its TOML, with the files of the server that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use piman_core::install::personal::{self, BYTES_MAX};
use sha_crypt::{Sha512Params, sha512_crypt_b64};

use super::{At, Blob, CardPath, File, Folder, Mode, Profile, Secret, Verbatim};
use crate::images::personalise::template::Template;
use crate::sys::random;

/// The longest text of a profile, in bytes.
pub const TEXT_MAX: u64 = 1 << 20;
/// The most accounts, and keys of one.
const USERS_MAX: usize = 100;
/// The most files and folders, also in a folder that is taken over.
const FILES_MAX: usize = 10_000;
const SCRIPTS_MAX: usize = 100;
/// Folders in one another in a folder that is taken over.
const DEPTH_MAX: usize = 32;

/// What is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileError {
    /// The number of the line, from 1, where that is known.
    pub line: Option<usize>,
    /// The key in that line.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}")?;
            if let Some(key) = &self.key {
                write!(f, ", `{key}`")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ProfileError {}

impl From<String> for ProfileError {
    fn from(reason: String) -> Self {
        Self { line: None, key: None, reason }
    }
}

/// Where in a text an error is. The line itself is not repeated: it may have a secret.
fn place(text: &str, span: Option<Range<usize>>) -> (Option<usize>, Option<String>) {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return (None, None) };
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let is_key =
        |key: &&str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let key = line.split_once('=').map(|(key, _)| key.trim()).filter(is_key);
    (Some(before.matches('\n').count() + 1), key.map(str::to_owned))
}

impl Profile {
    /// Reads the TOML of a profile. Files of the server that it names are not read.
    ///
    /// # Errors
    /// What is wrong and in which line.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|e| {
            let (line, key) = place(text, e.span());
            // The parser's own words for what is no TOML may repeat the line; those of serde name types and fields.
            ProfileError { line, key, reason: e.message().to_owned() }
        })?;
        profile.check()?;
        Ok(profile)
    }

    /// What can only be seen of the whole.
    fn check(&self) -> Result<(), String> {
        let Self { users, files, folders, scripts, .. } = self;
        limit(users.len(), USERS_MAX, "accounts")?;
        limit(files.len().saturating_add(folders.len()), FILES_MAX, "files and folders")?;
        limit(scripts.len(), SCRIPTS_MAX, "scripts")?;
        once(users.iter().map(|u| &*u.name), "account")?;
        once(scripts.iter().map(|s| &*s.name), "script")?;
        once(files.iter().map(|f| (f.at, &*f.path)), "file")?;
        once(folders.iter().map(|f| (f.at, &*f.path)), "folder")?;
        for user in users {
            let name = &user.name;
            limit(user.ssh_keys.len(), USERS_MAX, "keys of one account")?;
            limit(user.groups.len(), USERS_MAX, "groups of one account")?;
            if user.password_hash.is_some() && user.password_file.is_some() {
                return Err(format!("account {name}: password-hash or password-file, not both"));
            }
            if user.password_hash.as_ref().is_some_and(|hash| !is_hash(hash.reveal())) {
                return Err(format!(
                    "account {name}: password-hash is no hash as in /etc/shadow (`openssl passwd -6` makes one; \
                     password-file takes a password)"
                ));
            }
        }
        if let Some(psk) = self.wifi.as_ref().and_then(|wifi| wifi.psk.as_ref()) {
            let psk = psk.reveal();
            let is_key = psk.len() == 64 && psk.bytes().all(|b| b.is_ascii_hexdigit());
            let is_password = (8..=63).contains(&psk.len()) && psk.bytes().all(|b| (32..127).contains(&b));
            if !is_key && !is_password {
                return Err(
                    "wifi: psk has 8 to 63 characters of ASCII, or is a key of 64 hexadecimal digits"
                        .to_owned(),
                );
            }
        }
        for File { path, content, from, template, .. } in files {
            one_of(&format!("file {path}"), content, from)?;
            check_template(&format!("file {path}"), content, *template)?;
        }
        for script in scripts {
            let what = format!("script {}", script.name);
            one_of(&what, &script.content, &script.from)?;
            check_template(&what, &script.content, script.template)?;
            if script.content.as_ref().is_some_and(|content| !content.bytes().starts_with(b"#!")) {
                return Err(format!("{what} does not begin with `#!` and an interpreter, such as #!/bin/sh"));
            }
        }
        if self.ntp.as_ref().is_some_and(|servers| servers.len() > 16) {
            return Err("ntp: there are more than 16 time servers".to_owned());
        }
        Ok(())
    }

    /// Reads the files of the server that it names, relative to `folder`, into it.
    ///
    /// # Errors
    /// What cannot be read, or is too large.
    pub fn take_in(mut self, folder: &Path) -> anyhow::Result<Self> {
        let mut room = Room(BYTES_MAX);
        for user in &mut self.users {
            if let Some(file) = user.password_file.take() {
                let password = room.read(&folder.join(&file))?;
                let password = password.split(|b| *b == b'\n').next().unwrap_or_default();
                ensure!(!password.is_empty(), "the password in {} is empty", file.display());
                user.password_hash = Some(hash_password(password)?);
            }
        }
        for file in &mut self.files {
            if let Some(from) = file.from.take() {
                file.content = Some(room.read(&folder.join(from))?.into());
            }
        }
        for script in &mut self.scripts {
            if let Some(from) = script.from.take() {
                script.content = Some(room.read(&folder.join(from))?.into());
            }
        }
        for mut tree in std::mem::take(&mut self.folders) {
            if let Some(from) = tree.from.take() {
                self.take_folder(&folder.join(from), &tree, &tree.path.clone(), &mut room, 0)?;
            }
            self.folders.push(tree);
        }
        for (verbatim, what) in [(&mut self.cloud_init, "cloud-init"), (&mut self.custom_toml, "custom-toml")]
        {
            if let Some(Verbatim::Path(path)) = verbatim {
                *verbatim = Some(room.verbatim(&folder.join(path), what)?);
            }
        }
        self.check().map_err(anyhow::Error::msg)?;
        Ok(self)
    }

    /// Takes over what is in a folder of the server.
    fn take_folder(
        &mut self,
        from: &Path,
        tree: &Folder,
        to: &str,
        room: &mut Room,
        depth: usize,
    ) -> anyhow::Result<()> {
        ensure!(depth < DEPTH_MAX, "{} has too many folders in one another", from.display());
        let reading = || format!("reading the folder {}", from.display());
        let mut entries =
            fs::read_dir(from).with_context(reading)?.collect::<Result<Vec<_>, _>>().with_context(reading)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("{} is not in UTF-8", path.display()))?;
            let card_path = CardPath::try_from(format!("{to}/{name}")).map_err(anyhow::Error::msg)?;
            let kind = entry.file_type().with_context(|| format!("looking at {}", path.display()))?;
            let mode = entry.metadata().with_context(|| format!("looking at {}", path.display()))?;
            let mode = mode.permissions().mode() & 0o7777;
            // What only its owner may read here is nobody else's there.
            let secret = mode & 0o077 == 0;
            let mode = Some(Mode(mode));
            let owner = tree.owner.clone();
            ensure!(
                self.files.len() + self.folders.len() < FILES_MAX,
                "there are more than {FILES_MAX} files and folders"
            );
            if kind.is_dir() {
                self.folders.push(Folder { path: card_path.clone(), at: tree.at, from: None, owner, mode });
                self.take_folder(&path, tree, &card_path, room, depth + 1)?;
            } else if kind.is_file() {
                let content = Some(room.read(&path)?.into());
                let file = File {
                    path: card_path,
                    at: tree.at,
                    content,
                    from: None,
                    owner,
                    mode,
                    template: false,
                    secret,
                };
                self.files.push(file);
            } else {
                bail!("{} is neither a file nor a folder", path.display());
            }
        }
        Ok(())
    }
}

fn limit(count: usize, most: usize, what: &str) -> Result<(), String> {
    if count <= most { Ok(()) } else { Err(format!("there are {count} {what}, and there can be {most}")) }
}

fn once<T: Ord + fmt::Debug>(all: impl Iterator<Item = T>, what: &str) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for one in all {
        let name = format!("{one:?}");
        if !seen.insert(one) {
            return Err(format!("{what} {name} is there twice"));
        }
    }
    Ok(())
}

fn one_of(what: &str, content: &Option<Blob>, from: &Option<PathBuf>) -> Result<(), String> {
    match (content, from) {
        (None, None) => Err(format!("{what} has no content: write content = \"...\" or from = \"FILE\"")),
        (Some(_), Some(_)) => Err(format!("{what}: content or from, not both")),
        _ => Ok(()),
    }
}

fn check_template(what: &str, content: &Option<Blob>, template: bool) -> Result<(), String> {
    let Some(content) = content.as_ref().filter(|_| template) else { return Ok(()) };
    let text = content.text().ok_or_else(|| format!("{what} is a template, and no text"))?;
    Template::file(text).map(drop).map_err(|e| format!("{what}: {e}"))
}

/// Whether it is a hash as `/etc/shadow` has it: `$ID$...`, without what ends a field or a line.
fn is_hash(text: &str) -> bool {
    let mut parts = text.split('$');
    let (first, id) = (parts.next(), parts.next());
    let is_good = |b: u8| b.is_ascii_graphic() && b != b':';
    first == Some("")
        && id.is_some_and(|id| (1..=8).contains(&id.len()))
        && parts.next_back().is_some_and(|hash| hash.len() >= 20)
        && text.len() <= 512
        && text.bytes().all(is_good)
}

/// Hashes a password as every Linux reads it (SHA-512, as `openssl passwd -6`).
///
/// # Errors
/// If it is longer than such a hash takes.
pub fn hash_password(password: &[u8]) -> anyhow::Result<Secret> {
    const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    ensure!(password.len() <= 512, "a password is longer than 512 bytes");
    let bytes: [u8; 16] = random::bytes();
    let salt: String =
        bytes.iter().filter_map(|b| DIGITS.get(usize::from(b & 63))).map(|b| char::from(*b)).collect();
    let rounds = Sha512Params::new(5000).map_err(|e| anyhow::anyhow!("hashing a password: {e:?}"))?;
    let hash = sha512_crypt_b64(password, salt.as_bytes(), &rounds);
    let hash = hash.map_err(|e| anyhow::anyhow!("hashing a password: {e:?}"))?;
    Ok(Secret::new(format!("$6${salt}${hash}")))
}

/// How many bytes may still be taken in.
struct Room(usize);

impl Room {
    fn read(&mut self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let reading = || format!("reading {}", path.display());
        let file = fs::File::open(path).with_context(reading)?;
        ensure!(file.metadata().with_context(reading)?.is_file(), "{} is no file", path.display());
        let mut bytes = Vec::new();
        file.take(self.0 as u64 + 1).read_to_end(&mut bytes).with_context(reading)?;
        self.0 = self.0.checked_sub(bytes.len()).with_context(|| {
            format!("{}: a profile and its files have at most {} MiB", path.display(), BYTES_MAX >> 20)
        })?;
        Ok(bytes)
    }

    /// A file, or all files of a folder that cloud-init reads.
    fn verbatim(&mut self, path: &Path, what: &str) -> anyhow::Result<Verbatim> {
        const CLOUD_INIT: [&str; 4] = ["user-data", "meta-data", "network-config", "vendor-data"];
        let mut files = BTreeMap::new();
        if what == "custom-toml" {
            files.insert("custom.toml".to_owned(), self.read(path)?.into());
            return Ok(Verbatim::Files(files));
        }
        for name in CLOUD_INIT {
            if path.join(name).exists() {
                files.insert(name.to_owned(), self.read(&path.join(name))?.into());
            }
        }
        ensure!(
            !files.is_empty(),
            "{} has none of {}: {what} names a folder with files as NoCloud has them",
            path.display(),
            CLOUD_INIT.join(", ")
        );
        Ok(Verbatim::Files(files))
    }
}

impl File {
    /// On which filesystem, as items have it.
    #[must_use]
    pub fn place(&self) -> personal::Place {
        self.at.into()
    }
}

impl From<At> for personal::Place {
    fn from(at: At) -> Self {
        match at {
            At::Root => Self::Root,
            At::Boot => Self::Boot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_line_and_key_and_without_secrets() {
        let hash = "$6$salt$0123456789012345678901234567890";
        for (text, says) in [
            ("hostname = 'a_b'", "line 1, `hostname`: `a_b` is no host name"),
            ("\n\nhostnam = 'x'", "line 3, `hostnam`: unknown field `hostnam`"),
            ("[wifi]\nssid = 'x'\npsk = 12345678", "line 3, `psk`: write it in quotes"),
            ("[wifi]\nssid = 'x'\npsk = 'hunter2'", "wifi: psk has 8 to 63"),
            ("[wifi]\nssid = 'x'\npsk = 'hunter2 without its end", "line 3, `psk`"),
            ("[wifi]\npsk = 'hunter2x'", "missing field `ssid`"),
            ("[[users]]\nname = 'Ä'", "line 2, `name`: `Ä` is no name"),
            ("[[users]]\nname = 'a'\npassword-hash = 'hunter2'", "account a: password-hash is no hash"),
            ("[[users]]\nname = 'a'\n[[users]]\nname = 'a'", "account \"a\" is there twice"),
            ("[[users]]\nname = 'a'\nsudo = 'yes'", "line 3, `sudo`: write true, false or"),
            ("[[files]]\npath = '/a'", "file /a has no content"),
            ("[[files]]\npath = '../a'\ncontent = ''", "line 2, `path`: `../a` is no path"),
            ("[[files]]\npath = '/a'\ncontent = '{{x}}'\ntemplate = true", "`{{x}}` is not known"),
            ("[[files]]\npath = '/a'\ncontent = 'x'\nmode = '999'", "line 4, `mode`: `999` is no mode"),
            ("[[scripts]]\nname = 'a'\ncontent = 'echo'", "script a does not begin with `#!`"),
            ("identity = 'new'", "line 1, `identity`: unknown variant `new`"),
        ] {
            let error = Profile::parse(text).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{text}: {error}");
        }
        let good = format!("[[users]]\nname = 'a'\nsudo = 'without-password'\npassword-hash = '{hash}'");
        let profile = Profile::parse(&good).unwrap();
        assert!(profile.users[0].sudo.is_allowed());
        assert!(!format!("{profile:?}").contains("salt"));
    }

    #[test]
    fn files_of_the_server_are_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        put("password", b"geheim \xc3\xbc\nsecond line\n");
        put("tree/sub/raw", b"\xff\x00");
        put("tree/script", b"#!/bin/sh\n");
        fs::set_permissions(dir.path().join("tree/script"), fs::Permissions::from_mode(0o750)).unwrap();
        put("seed/user-data", b"#cloud-config\n");
        put("seed/readme", b"");
        let text = "cloud-init = 'seed'\n[[users]]\nname = 'a'\npassword-file = 'password'\n
            [[folders]]\npath = '/srv/x'\nfrom = 'tree'\nowner = 'a'\n[[files]]\npath = '/m'\nfrom = 'tree/sub/raw'";
        let profile = Profile::parse(text).unwrap().take_in(dir.path()).unwrap();
        assert!(profile.users[0].password_hash.as_ref().unwrap().reveal().starts_with("$6$"));
        let files: Vec<_> =
            profile.files.iter().map(|f| (&*f.path, f.content.as_ref().unwrap().bytes())).collect();
        assert_eq!(
            files,
            [("/m", &b"\xff\x00"[..]), ("/srv/x/script", b"#!/bin/sh\n"), ("/srv/x/sub/raw", b"\xff\x00")]
        );
        assert_eq!(profile.files[1].mode, Some(Mode(0o750)));
        assert_eq!(
            profile.cloud_init.as_ref().unwrap().files().map(|(name, _)| name).collect::<Vec<_>>(),
            ["user-data"]
        );
        // In the state it is the same.
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
        for (text, says) in [
            ("[[files]]\npath = '/m'\nfrom = 'none'", "none"),
            ("[[files]]\npath = '/m'\nfrom = 'tree'", "is no file"),
            ("cloud-init = 'tree'", "none of user-data"),
        ] {
            let error = Profile::parse(text).unwrap().take_in(dir.path()).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{text}: {error:#}");
        }
        put("large", &vec![0; BYTES_MAX + 1]);
        let error = Profile::parse("[[files]]\npath = '/m'\nfrom = 'large'").unwrap().take_in(dir.path());
        assert!(error.unwrap_err().to_string().contains("at most 8 MiB"));
    }

    #[test]
    fn a_password_is_hashed_as_others_do() {
        let hash = hash_password("geheim ü".as_bytes()).unwrap();
        let salt = hash.reveal().split('$').nth(2).unwrap();
        let openssl =
            std::process::Command::new("openssl").args(["passwd", "-6", "-salt", salt, "geheim ü"]).output();
        // Not everybody has it.
        if let Ok(theirs) = openssl {
            assert_eq!(String::from_utf8(theirs.stdout).unwrap().trim(), hash.reveal());
        }
        assert!(is_hash(hash.reveal()) && hash != hash_password("geheim ü".as_bytes()).unwrap());
        assert!(hash_password(&[b'x'; 513]).is_err());
    }
}
