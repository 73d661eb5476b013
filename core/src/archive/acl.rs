//! Access control lists as archives write them, in words (POSIX 1003.1e draft 17, `SCHILY.acl.*`), turned into the
//! extended attribute by which the kernel takes them.

use alloc::vec::Vec;

/// The attribute of who may use a file, and of what is made in a directory.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The number of those that name nobody.
const NOBODY: u32 = u32::MAX;

/// The attribute's value; `None` if it is no list, or names somebody whose number it does not say.
pub(super) fn parse(text: &[u8]) -> Option<Vec<u8>> {
    let text = core::str::from_utf8(text).ok()?;
    let mut list: Vec<(u16, u32, u16)> = Vec::new();
    for entry in text.split([',', '\n']) {
        // What follows says which of the permissions have an effect.
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if !entry.is_empty() {
            put(&mut list, parse_entry(entry.strip_prefix("default:").unwrap_or(entry))?);
        }
    }
    let has = |wanted| list.iter().any(|(tag, ..)| *tag == wanted);
    if ![USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(has) {
        return None;
    }
    if (has(USER) || has(GROUP)) && !has(MASK) {
        // What they may at most is what they may.
        let named = list.iter().filter(|(tag, ..)| matches!(*tag, USER | GROUP | GROUP_OBJ));
        let all = named.fold(0, |all, (.., may)| all | may);
        put(&mut list, (MASK, NOBODY, all));
    }
    if list.windows(2).any(|pair| matches!(pair, [a, b] if (a.0, a.1) == (b.0, b.1))) {
        return None;
    }
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, id, may) in list {
        value.extend(tag.to_le_bytes());
        value.extend(may.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

/// In the order that the kernel wants. They are few: to sort them at the end takes more code.
fn put(list: &mut Vec<(u16, u32, u16)>, entry: (u16, u32, u16)) {
    let before = list.iter().filter(|known| (known.0, known.1) < (entry.0, entry.1)).count();
    list.insert(before, entry);
}

/// `user:lp:rw-:7`: who, by name, what they may, and their number.
fn parse_entry(entry: &str) -> Option<(u16, u32, u16)> {
    let fields: Vec<&str> = entry.split(':').map(str::trim).collect();
    let (tag, name, may, number) = match fields[..] {
        [tag, name, may] => (tag, name, may, None),
        [tag, name, may, number] => (tag, name, may, Some(number)),
        // Some leave the name out where there is none.
        [tag @ ("other" | "o" | "mask" | "m"), may] => (tag, "", may, None),
        _ => return None,
    };
    let tag = match (tag, name.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return None,
    };
    let id = match (name, number) {
        ("", _) => NOBODY,
        (_, Some(number)) => number.parse().ok()?,
        ("root", None) => 0,
        (name, None) => name.parse().ok()?,
    };
    let mut bits = 0;
    for c in may.chars() {
        bits |= match c {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    // That number would be nobody's.
    (name.is_empty() || id != NOBODY).then_some((tag, id, bits))
}

/// The permissions of what has this list: the kernel sets them with it.
pub(super) fn mode(mode: u32, list: &[u8]) -> u32 {
    let entries = list.get(4..).unwrap_or_default().as_chunks::<8>().0;
    let of = |wanted: u16| {
        let found = entries.iter().find(|[a, b, ..]| u16::from_le_bytes([*a, *b]) == wanted);
        found.map(|[_, _, may, ..]| u32::from(may & 7))
    };
    match (of(USER_OBJ), of(MASK).or(of(GROUP_OBJ)), of(OTHER)) {
        (Some(user), Some(group), Some(other)) => mode & !0o777 | user << 6 | group << 3 | other,
        _ => mode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Option<Vec<u8>> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, may, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(may.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        Some(bytes)
    }

    #[test]
    fn lists_in_words() {
        let full = list(&[
            (USER_OBJ, 6, NOBODY),
            (USER, 6, 7),
            (GROUP_OBJ, 4, NOBODY),
            (MASK, 6, NOBODY),
            (OTHER, 4, NOBODY),
        ]);
        for text in [
            "user::rw-\nuser:lp:rw-:7\ngroup::r--\nmask::rw-\nother::r--\n",
            "o:r--, u::rw-, g::r--, u:7:rw-, m:rw-",
            "user::rw-,user:7:rw-:7 #effective:rw-,group::r--,mask::rw-,other::r--",
        ] {
            assert_eq!(parse(text.as_bytes()), full, "{text}");
            assert_eq!(mode(0o4777, &parse(text.as_bytes()).unwrap()), 0o4664, "{text}");
        }
        let masked = parse(b"user::rwx,user:root:-w-,group::r-x,other::---").unwrap();
        assert_eq!(mode(0o700, &masked), 0o770);
        let plain = list(&[(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 5, NOBODY)]);
        assert_eq!(parse(b"default:user::rwx,default:group::r-x,default:other::r-x"), plain);
    }

    #[test]
    fn what_is_none() {
        for bad in [
            "",
            "user::rw-",
            "user::rw-,user:eve:r--,group::r--,other::---",
            "user::rw-,user:1:r--,user:1:rw-,group::r--,other::---",
            "user::rw-,user:4294967295:r--,group::r--,other::---",
            "user::rws,group::r--,other::---",
            "user,group::r--,other::---",
            "owner::rw-,group::r--,other::---",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(b"\xff"), None);
        assert_eq!(mode(0o640, b"\x02\0\0\0\x01"), 0o640);
    }
}
