//! POSIX access control lists: from the form that programs use to the one on ext4.

/// Entries of users and groups that are named carry a number.
const NAMED: [u16; 2] = [0x02, 0x08];
const PLAIN: [u16; 4] = [0x01, 0x04, 0x10, 0x20];
/// Those that say no more than the permissions.
const IN_MODE: [u16; 3] = [0x01, 0x04, 0x20];

/// The value of `system.posix_acl_access` or `..._default` as ext4 stores it; `Some(None)`
/// if it says no more than the permissions do and so is not stored (which only an access list
/// may), `None` if it is malformed.
pub(super) fn on_disk(value: &[u8], is_default: bool) -> Option<Option<Vec<u8>>> {
    let (version, entries) = value.split_first_chunk()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || !rest.is_empty() || entries.is_empty() {
        return None;
    }
    let mut bytes = 1_u32.to_le_bytes().to_vec();
    let mut needed = is_default;
    for entry in entries {
        let [tag_lo, tag_hi, perm_lo, perm_hi, id @ ..] = entry;
        let tag = u16::from_le_bytes([*tag_lo, *tag_hi]);
        if u16::from_le_bytes([*perm_lo, *perm_hi]) > 7 {
            return None;
        }
        bytes.extend([*tag_lo, *tag_hi, *perm_lo, *perm_hi]);
        if NAMED.contains(&tag) {
            bytes.extend(id);
        } else if !PLAIN.contains(&tag) {
            return None;
        }
        needed |= !IN_MODE.contains(&tag);
    }
    Some(needed.then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn named_users_keep_their_numbers() {
        let none = u32::MAX;
        let full = list(&[(1, 6, none), (2, 4, 1000), (4, 4, none), (0x10, 4, none), (0x20, 4, none)]);
        let stored = on_disk(&full, false).unwrap().unwrap();
        assert_eq!(stored.len(), 4 + 4 * 4 + 8);
        assert_eq!(stored[..4], [1, 0, 0, 0]);
        assert_eq!(stored[8..16], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        let minimal = list(&[(1, 6, none), (4, 4, none), (0x20, 4, none)]);
        assert_eq!(on_disk(&minimal, false), Some(None));
        assert!(on_disk(&minimal, true).unwrap().is_some());
    }

    #[test]
    fn malformed_lists() {
        let bad = [
            vec![],
            vec![2, 0, 0],
            list(&[]),
            list(&[(3, 4, 0)]),
            list(&[(1, 8, 0)]),
            list(&[(1, 4, 0)])[..11].to_vec(),
        ];
        for bad in bad {
            assert_eq!(on_disk(&bad, false), None, "{bad:?}");
        }
    }
}
