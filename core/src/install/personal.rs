//! What makes a card one Pi's own: a bundle of items that the server renders for one Pi, and that the agent carries out
//! on the card after the image is there and before the proof.
//!
//! The agent knows no distribution: which files one reads is the server's business. A bundle is its heading and items,
//! one after another:
//!
//! ```text
//! piman-personal 1
//! file 0 420 3 13 6          the kind, its numbers, and the sizes of its strings in bytes; then the strings
//! 0:0/etc/hostnamelab-1      without anything between them, and a line feed
//! ```
//!
//! Anything else is refused: an agent never passes over what it does not understand. The BLAKE3 hash of the bytes names
//! a bundle; on the fetch port it is `fetch personal HASH 0 BYTES`.

use core::fmt;
#[cfg(feature = "alloc")]
use core::fmt::Write as _;

#[cfg(feature = "alloc")]
use alloc::{string::String, vec::Vec};

use crate::text;

/// The largest bundle, in bytes.
pub const BYTES_MAX: usize = 8 << 20;

const HEADING: &[u8] = b"piman-personal 1\n";
/// The longest first line of an item, in bytes.
const LINE_MAX: usize = 128;
/// The longest path, in bytes.
const PATH_MAX: usize = 4096;
/// The longest name of a user or a group, in bytes.
const NAME_MAX: usize = 32;

/// Of which filesystem a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Place {
    /// The root filesystem.
    Root,
    /// What the firmware boots from: the FAT partition of a card that boots by itself, else the folder of the root
    /// filesystem where the booted system has it.
    Boot,
}

/// What of a card's identity is made new, so that no two cards of one image share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Renew {
    /// The machine-id is empty, and the seed of random numbers gone: the system makes its own at the first boot.
    pub machine: bool,
    /// The host keys of SSH are gone, and made at the first boot.
    pub host_keys: bool,
    /// Random identifiers of the disk, its partitions and filesystems, with all references to them.
    pub disk: bool,
}

/// What an account is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct User<'a> {
    /// Its number; 0: any that is free, from 1000 on.
    pub id: u32,
    /// Without a password that could be typed.
    pub locked: bool,
    /// If it is there already its password stays.
    pub keeps_password: bool,
    /// Its name.
    pub name: &'a str,
    /// Its password as the shadow file has it; empty: the account is locked.
    pub password: &'a str,
    /// Its shell; empty: as others on the card have it.
    pub shell: &'a str,
    /// Further groups, with commas between them. One that the system has not is left out.
    pub groups: &'a str,
    /// For people.
    pub full_name: &'a str,
    /// Public keys of SSH that may log in, as lines.
    pub keys: &'a str,
}

/// One thing to do. Paths are absolute; on the card they never lead out of it. An owner is `USER:GROUP`, by numbers or by
/// names of the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Item<'a> {
    /// Makes the card's identity new.
    Identity(Renew),
    /// A folder with this owner and mode, made with its parents where it is not there.
    Folder {
        /// Where.
        place: Place,
        /// The permissions.
        mode: u32,
        /// Whose it is.
        owner: &'a str,
        /// Its path.
        path: &'a str,
    },
    /// A file, written whole or not at all. Missing folders are made.
    File {
        /// Where.
        place: Place,
        /// The permissions.
        mode: u32,
        /// Whose it is.
        owner: &'a str,
        /// Its path.
        path: &'a str,
        /// What is in it.
        content: &'a [u8],
    },
    /// A symbolic link in the root filesystem, in place of what is there unless that is a folder.
    Link {
        /// Its path.
        path: &'a str,
        /// Where it leads.
        target: &'a str,
    },
    /// Takes a file, a link or a whole folder away, if it is there.
    Remove {
        /// Where.
        place: Place,
        /// Its path.
        path: &'a str,
    },
    /// The first line of a file whose first field is `key` becomes `text`; without one `text` is put at the end.
    Line {
        /// Where.
        place: Place,
        /// What ends the first field; a space stands for any white space.
        separator: u8,
        /// The file.
        path: &'a str,
        /// The first field.
        key: &'a str,
        /// The new line, without its end.
        text: &'a str,
    },
    /// The word of the kernel's command line that is `key` or begins with `key=` becomes `text`; without one `text` is put at
    /// the end. Without a text it is taken away.
    Word {
        /// Which word.
        key: &'a str,
        /// The new one.
        text: &'a str,
    },
    /// An account, made or changed.
    User(User<'a>),
}

/// Why bytes are not a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BadBundle {
    /// It does not begin as a bundle of a known version does.
    Heading,
    /// It is larger than [`BYTES_MAX`].
    TooLarge,
    /// This item, counted from 0, cannot be understood or asks for what may not be.
    Item(u32),
}

impl fmt::Display for BadBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heading => f.write_str("this is no bundle of a version known here"),
            Self::TooLarge => write!(f, "the bundle is larger than {BYTES_MAX} bytes"),
            Self::Item(index) => write!(f, "item {index} of the bundle cannot be understood"),
        }
    }
}

impl core::error::Error for BadBundle {}

/// A whole bundle.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bundle<'a> {
    items: &'a [u8],
}

impl<'a> Bundle<'a> {
    /// Reads a bundle, all items of it.
    ///
    /// # Errors
    /// [`BadBundle`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadBundle> {
        if bytes.len() > BYTES_MAX {
            return Err(BadBundle::TooLarge);
        }
        let items = text::after(bytes, HEADING).ok_or(BadBundle::Heading)?;
        let (mut rest, mut index) = (items, 0);
        while !rest.is_empty() {
            rest = next(rest).ok_or(BadBundle::Item(index))?.1;
            index += 1;
        }
        Ok(Self { items })
    }

    /// What is to be done, in this order.
    pub fn items(&self) -> impl Iterator<Item = Item<'a>> + use<'a> {
        let mut rest = self.items;
        core::iter::from_fn(move || {
            let (item, after) = next(rest)?;
            rest = after;
            Some(item)
        })
    }

    /// Whether it does no more than make the card's identity new, which needs nobody's trust.
    #[must_use]
    pub fn is_identity_only(&self) -> bool {
        self.items().all(|item| matches!(item, Item::Identity(_)))
    }
}

/// A kind of item: its word, how many numbers it has, and how many strings.
type Kind = (&'static str, usize, usize);

const IDENTITY: Kind = ("identity", 1, 0);
const FOLDER: Kind = ("folder", 2, 2);
const FILE: Kind = ("file", 2, 3);
const LINK: Kind = ("link", 0, 2);
const REMOVE: Kind = ("remove", 1, 1);
const LINE: Kind = ("line", 2, 3);
const WORD: Kind = ("word", 0, 2);
const USER: Kind = ("user", 2, 6);

const KINDS: [Kind; 8] = [IDENTITY, FOLDER, FILE, LINK, REMOVE, LINE, WORD, USER];

const LOCKED: u32 = 1;
const KEEPS_PASSWORD: u32 = 2;

/// The first item, and what follows it.
fn next(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let end = bytes.iter().take(LINE_MAX).position(|b| *b == b'\n')?;
    let (line, mut rest) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    let mut words = line.split(|b| *b == b' ');
    let word = words.next()?;
    let (word, number_count, string_count) = KINDS.into_iter().find(|(w, ..)| w.as_bytes() == word)?;
    let mut numbers = [0_u32; 2];
    for number in numbers.get_mut(..number_count)? {
        *number = text::parse(words.next()?)?.try_into().ok()?;
    }
    let mut strings: [&[u8]; 6] = [b""; 6];
    for string in strings.get_mut(..string_count)? {
        let length = usize::try_from(text::parse(words.next()?)?).ok()?;
        (*string, rest) = rest.split_at_checked(length)?;
    }
    let item = item(word, numbers, strings)?;
    (words.next().is_none() && is_sound(&item)).then_some((item, text::after(rest, b"\n")?))
}

fn item<'a>(word: &str, [first, second]: [u32; 2], strings: [&'a [u8]; 6]) -> Option<Item<'a>> {
    let string = |index: usize| core::str::from_utf8(strings.get(index)?).ok();
    let place = match first {
        0 => Some(Place::Root),
        1 => Some(Place::Boot),
        _ => None,
    };
    let kind = KINDS.into_iter().find(|(w, ..)| *w == word)?;
    Some(match kind {
        IDENTITY if first < 8 => {
            Item::Identity(Renew { machine: first & 1 != 0, host_keys: first & 2 != 0, disk: first & 4 != 0 })
        }
        FOLDER => Item::Folder { place: place?, mode: second, owner: string(0)?, path: string(1)? },
        FILE => {
            let [_, _, content, ..] = strings;
            Item::File { place: place?, mode: second, owner: string(0)?, path: string(1)?, content }
        }
        LINK => Item::Link { path: string(0)?, target: string(1)? },
        REMOVE => Item::Remove { place: place?, path: string(0)? },
        LINE => Item::Line {
            place: place?,
            separator: second.try_into().ok()?,
            path: string(0)?,
            key: string(1)?,
            text: string(2)?,
        },
        WORD => Item::Word { key: string(0)?, text: string(1)? },
        USER if second < 4 => Item::User(User {
            id: first,
            locked: second & LOCKED != 0,
            keeps_password: second & KEEPS_PASSWORD != 0,
            name: string(0)?,
            password: string(1)?,
            shell: string(2)?,
            groups: string(3)?,
            full_name: string(4)?,
            keys: string(5)?,
        }),
        _ => return None,
    })
}

/// Whether no part of an item could mean something else on the card.
fn is_sound(item: &Item<'_>) -> bool {
    match *item {
        Item::Identity(_) => true,
        Item::Folder { mode, owner, path, .. } | Item::File { mode, owner, path, .. } => {
            mode <= 0o7777 && is_owner(owner) && is_path(path)
        }
        Item::Link { path, target } => is_path(path) && is_line(target) && !target.is_empty(),
        Item::Remove { path, .. } => is_path(path),
        Item::Line { separator, path, key, text, .. } => {
            let is_field =
                |b: u8| b != separator && b != b'\n' && !(separator == b' ' && b.is_ascii_whitespace());
            is_path(path) && !key.is_empty() && key.bytes().all(is_field) && is_line(text)
        }
        Item::Word { key, text } => {
            let is_word = |word: &str| word.bytes().all(|b| b.is_ascii_graphic());
            !key.is_empty() && is_word(key) && is_word(text) && !key.contains('=')
        }
        Item::User(user) => {
            let User { name, password, shell, groups, full_name, keys, .. } = user;
            let is_field = |field: &str| is_line(field) && !field.contains(':');
            is_name(name)
                && [password, shell, full_name].into_iter().all(is_field)
                && (groups.is_empty() || groups.split(',').all(is_name))
                && !keys.contains('\0')
        }
    }
}

/// Whether it is an absolute path below the root that names something, without `.` and `..`.
#[must_use]
pub fn is_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    path.len() <= PATH_MAX
        && !path.contains('\0')
        && rest.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

/// Whether it can be the name of a user or a group.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(is_inner)
        && !name.starts_with(|c: char| c == '-' || c == '.' || c.is_ascii_digit())
}

fn is_owner(owner: &str) -> bool {
    let is_one =
        |one: &str| is_name(one) || text::parse(one.as_bytes()).is_some_and(|n| u32::try_from(n).is_ok());
    owner.split_once(':').is_some_and(|(user, group)| is_one(user) && is_one(group))
}

fn is_line(text: &str) -> bool {
    !text.bytes().any(|b| matches!(b, b'\n' | b'\r' | b'\0'))
}

/// Up to six strings as bytes.
#[cfg(feature = "alloc")]
fn strings<'a>(some: &[&'a str]) -> [&'a [u8]; 6] {
    let mut all: [&[u8]; 6] = [b""; 6];
    all.iter_mut().zip(some).for_each(|(to, from)| *to = from.as_bytes());
    all
}

#[cfg(feature = "alloc")]
impl<'a> Item<'a> {
    fn encode(&self) -> (Kind, [u32; 2], [&'a [u8]; 6]) {
        match self {
            Self::Identity(Renew { machine, host_keys, disk }) => {
                let flags = u32::from(*machine) | u32::from(*host_keys) << 1 | u32::from(*disk) << 2;
                (IDENTITY, [flags, 0], strings(&[]))
            }
            Self::Folder { place, mode, owner, path } => {
                (FOLDER, [*place as u32, *mode], strings(&[owner, path]))
            }
            Self::File { place, mode, owner, path, content } => {
                let mut all = strings(&[owner, path]);
                all[2] = content;
                (FILE, [*place as u32, *mode], all)
            }
            Self::Link { path, target } => (LINK, [0; 2], strings(&[path, target])),
            Self::Remove { place, path } => (REMOVE, [*place as u32, 0], strings(&[path])),
            Self::Line { place, separator, path, key, text } => {
                (LINE, [*place as u32, (*separator).into()], strings(&[path, key, text]))
            }
            Self::Word { key, text } => (WORD, [0; 2], strings(&[key, text])),
            Self::User(User {
                id,
                locked,
                keeps_password,
                name,
                password,
                shell,
                groups,
                full_name,
                keys,
            }) => {
                let flags =
                    if *locked { LOCKED } else { 0 } | if *keeps_password { KEEPS_PASSWORD } else { 0 };
                (USER, [*id, flags], strings(&[name, password, shell, groups, full_name, keys]))
            }
        }
    }
}

/// A bundle that is being written (feature `alloc`).
#[cfg(feature = "alloc")]
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Draft {
    #[cfg_attr(feature = "defmt", defmt(Debug2Format))]
    bytes: Vec<u8>,
}

#[cfg(feature = "alloc")]
impl Default for Draft {
    fn default() -> Self {
        Self { bytes: HEADING.to_vec() }
    }
}

/// Its size alone: passwords are in it.
#[cfg(feature = "alloc")]
impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} bytes)", self.bytes.len())
    }
}

#[cfg(feature = "alloc")]
impl Draft {
    /// Adds an item.
    ///
    /// # Errors
    /// [`BadBundle::Item`] if no agent would take it, [`BadBundle::TooLarge`] if it has no room.
    pub fn add(&mut self, item: &Item<'_>) -> Result<(), BadBundle> {
        if !is_sound(item) {
            return Err(BadBundle::Item(self.count()));
        }
        let ((word, number_count, string_count), numbers, strings) = item.encode();
        let strings = || strings.iter().take(string_count);
        let size: usize = strings().map(|s| s.len()).sum();
        if self.bytes.len().saturating_add(size).saturating_add(LINE_MAX) > BYTES_MAX {
            return Err(BadBundle::TooLarge);
        }
        let mut line = String::from(word);
        // Writing to a String cannot fail.
        numbers.iter().take(number_count).for_each(|n| _ = write!(line, " {n}"));
        strings().for_each(|s| _ = write!(line, " {}", s.len()));
        line.push('\n');
        self.bytes.extend_from_slice(line.as_bytes());
        strings().for_each(|s| self.bytes.extend_from_slice(s));
        self.bytes.push(b'\n');
        Ok(())
    }

    fn count(&self) -> u32 {
        Bundle::parse(&self.bytes).map_or(0, |bundle| bundle.items().fold(0, |n, _| n + 1))
    }

    /// The bundle.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests;
