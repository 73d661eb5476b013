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
/// The most entries of a list, more than any filesystem takes.
const MOST: usize = 500;

/// The attribute's value; `None` if it is no list, or too long a one. Who is named without a number is left out; if
/// nobody is left, neither is the mask, and the group may what the list let it.
pub(super) fn parse(text: &[u8]) -> Option<Vec<u8>> {
    let text = core::str::from_utf8(text).ok()?;
    let mut list: Vec<(u16, u32, u16)> = Vec::new();
    let mut left_out = false;
    for entry in text.split([',', '\n']) {
        // What follows says which of the permissions have an effect.
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if !entry.is_empty() {
            match parse_entry(entry.strip_prefix("default:").unwrap_or(entry))? {
                (tag, Some(id), may) => put(&mut list, (tag, id, may)),
                _ => left_out = true,
            }
            if list.len() > MOST {
                return None;
            }
        }
    }
    if left_out {
        warning!("entries of an access control list that name somebody without a number are left out");
        if !list.iter().any(|(tag, ..)| matches!(*tag, USER | GROUP)) {
            narrow(&mut list);
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

/// Takes away the mask, and from the group what the mask does: it limits nobody else.
fn narrow(list: &mut Vec<(u16, u32, u16)>) {
    if let Some(at) = list.iter().position(|(tag, ..)| *tag == MASK) {
        let (.., most) = list.remove(at);
        for group in list.iter_mut().filter(|(tag, ..)| *tag == GROUP_OBJ) {
            group.2 &= most;
        }
    }
}

/// In the order that the kernel wants. They are few: to sort them at the end takes more code.
fn put(list: &mut Vec<(u16, u32, u16)>, entry: (u16, u32, u16)) {
    let before = list.iter().filter(|known| (known.0, known.1) < (entry.0, entry.1)).count();
    list.insert(before, entry);
}

/// `user:lp:rw-:7`: who, by name, what they may, and their number, if it is known.
fn parse_entry(entry: &str) -> Option<(u16, Option<u32>, u16)> {
    let fields: Vec<&str> = entry.split(':').map(str::trim).collect();
    let (tag, name, may, number) = match fields[..] {
        [tag, name, may] => (tag, name, may, None),
        [tag, name, may, number] => (tag, name, may, Some(number)),
        // Some leave out an empty name.
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
        ("", _) => Some(NOBODY),
        (_, Some(number)) => number.parse().ok(),
        ("root", None) => Some(0),
        (name, None) => name.parse().ok(),
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
    Some((tag, id.filter(|id| name.is_empty() || *id != NOBODY), bits))
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
    fn who_has_no_number_is_left_out_and_the_group_gets_no_more() {
        let nobody = list(&[(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)]);
        for text in [
            "user::rw-,user:eve:rwx,group::r--,mask::rwx,other::---",
            "user::rw-,group::r-x,group:staff:rw-,mask::rw-,other::---",
            "user::rw-,user:eve:r--,group::r--,other::---",
            "user::rw-,user:4294967295:r--,group::r--,other::---",
            "user::rw-,user:eve:r--:many,group::r--,other::---",
        ] {
            assert_eq!(parse(text.as_bytes()), nobody, "{text}");
            assert_eq!(mode(0o670, &parse(text.as_bytes()).unwrap()), 0o640, "{text}");
        }
        let others = parse(b"user::rw-,user:eve:rwx,user:7:r--,group::r--,mask::rwx,other::---");
        let seven = [
            (USER_OBJ, 6, NOBODY),
            (USER, 4, 7),
            (GROUP_OBJ, 4, NOBODY),
            (MASK, 7, NOBODY),
            (OTHER, 0, NOBODY),
        ];
        assert_eq!(others, list(&seven));
    }

    #[test]
    fn a_list_has_an_end() {
        let named = |count: u32| {
            let mut text = std::string::String::from("user::rw-,group::r--,other::---");
            for id in 0..count {
                text.push_str(&std::format!(",user:{id}:r--"));
            }
            parse(text.as_bytes())
        };
        assert_eq!(named(496).map(|list| list.len()), Some(4 + 500 * 8));
        assert_eq!(named(498), None);
        assert_eq!(named(100_000), None);
    }

    #[test]
    fn what_is_none() {
        for bad in [
            "",
            "user::rw-",
            "user::rw-,user:1:r--,user:1:rw-,group::r--,other::---",
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
