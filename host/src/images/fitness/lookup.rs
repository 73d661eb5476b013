//! A path in the system that an archive would become, as the system itself will see it: absolute links begin
//! at its root, and `..` of the root is the root.

use std::collections::VecDeque;

use crate::images::ext4::tree::{Id, Kind, ROOT, Tree};

/// Symbolic links that a path may lead through, as Linux has it.
const LINKS_MAX: u32 = 40;

/// Why there is nothing at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// This part of the way does not exist.
    Part(String),
    /// This symbolic link leads to something that does not exist.
    Link(String),
    /// Links lead round in a circle.
    Circle,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Part(_) => f.write_str("does not exist"),
            Self::Link(link) => write!(f, "is a symbolic link to `{link}`, which does not exist"),
            Self::Circle => f.write_str("leads round in a circle of symbolic links"),
        }
    }
}

/// What is at `path`, links followed.
pub(super) fn lookup(tree: &Tree, path: &str) -> Result<Id, Missing> {
    let mut parts: VecDeque<&str> = path.split('/').collect();
    let mut way = vec![ROOT];
    let mut links = 0;
    let mut last_link = None;
    while let Some(part) = parts.pop_front() {
        match part {
            "" | "." => continue,
            ".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        let at = way.last().copied().unwrap_or(ROOT);
        let missing = || match last_link {
            Some(link) => Missing::Link(str::to_owned(link)),
            None => Missing::Part(part.to_owned()),
        };
        let id = tree.child(at, part).ok_or_else(missing)?;
        match tree.kind(id) {
            Some(Kind::Symlink(target)) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Missing::Circle);
                }
                if target.starts_with('/') {
                    way.truncate(1);
                }
                last_link = Some(target);
                target.split('/').rev().for_each(|part| parts.push_front(part));
            }
            _ => way.push(id),
        }
    }
    Ok(way.last().copied().unwrap_or(ROOT))
}
