//! Names in texts that stand for facts of a Pi: `{ordinal:02}` in a host name, `{{ordinal:02}}` in a file.

use std::fmt::Write as _;

/// The longest host name, in bytes (RFC 1123: one label).
const HOST_MAX: usize = 63;
/// The widest number, in digits.
const WIDTH_MAX: usize = 9;

/// What is known of a Pi.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its serial number, in lower case.
    pub serial: Option<String>,
    /// Its hardware address, `b8:27:eb:00:00:01`.
    pub mac: Option<String>,
    /// Its group.
    pub group: Option<String>,
    /// Its number among all Pis.
    pub ordinal: u32,
    /// Its host name, once it is known.
    pub hostname: Option<String>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    Serial,
    Mac,
    Group,
    Ordinal(usize),
    Hostname,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece<'t> {
    Text(&'t str),
    Fact(Fact),
}

/// A text with names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template<'t> {
    pieces: Vec<Piece<'t>>,
    is_host_name: bool,
}

impl<'t> Template<'t> {
    /// Reads the pattern of a host name.
    ///
    /// # Errors
    /// Says what is wrong with it, also if no host name can come of it.
    pub fn host_name(text: &'t str) -> Result<Self, String> {
        let template = Self { is_host_name: true, ..Self::read(text, "{", "}")? };
        let example = Facts {
            serial: Some("0".into()),
            mac: Some("00:00:00:00:00:00".into()),
            group: Some("g".into()),
            ..Facts::default()
        };
        template.fill(&example).map(|_| template)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn file(text: &'t str) -> Result<Self, String> {
        Self::read(text, "{{", "}}")
    }

    fn read(text: &'t str, open: &str, close: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(open) {
            let unended = || format!("a `{open}` has no `{close}` behind it");
            let (name, behind) = after.split_once(close).ok_or_else(unended)?;
            let fact = fact(name.trim()).ok_or_else(|| {
                format!(
                    "`{open}{}{close}` is not known: there are serial, mac, group, ordinal, ordinal:02, hostname",
                    name.chars().take(40).collect::<String>().escape_debug()
                )
            })?;
            pieces.extend([Piece::Text(before), Piece::Fact(fact)]);
            rest = behind;
        }
        pieces.push(Piece::Text(rest));
        Ok(Self { pieces, is_host_name: false })
    }

    /// The text for this Pi.
    ///
    /// # Errors
    /// If something is not known of it, or no host name comes of it.
    pub fn fill(&self, facts: &Facts) -> Result<String, String> {
        let mut out = String::new();
        let known = |what: &str, fact: &Option<String>| {
            fact.clone().ok_or_else(|| format!("its {what} is needed, and it has none that is known"))
        };
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Fact(Fact::Serial) => out += &known("serial number", &facts.serial)?,
                // Colons cannot stand in a host name.
                Piece::Fact(Fact::Mac) if self.is_host_name => {
                    out += &known("hardware address", &facts.mac)?.replace(':', "");
                }
                Piece::Fact(Fact::Mac) => out += &known("hardware address", &facts.mac)?,
                Piece::Fact(Fact::Group) => out += &known("group", &facts.group)?,
                Piece::Fact(Fact::Hostname) => out += &known("host name", &facts.hostname)?,
                Piece::Fact(Fact::Ordinal(width)) => {
                    // Writing to a string does not fail.
                    let _ = write!(out, "{:0width$}", facts.ordinal);
                }
            }
        }
        if self.is_host_name {
            is_host_name(&out)?;
        }
        Ok(out)
    }
}

fn fact(name: &str) -> Option<Fact> {
    Some(match name.split_once(':').unwrap_or((name, "")) {
        ("serial", "") => Fact::Serial,
        ("mac", "") => Fact::Mac,
        ("group", "") => Fact::Group,
        ("hostname", "") => Fact::Hostname,
        ("ordinal", "") => Fact::Ordinal(0),
        ("ordinal", width) => Fact::Ordinal(width.parse().ok().filter(|w| *w <= WIDTH_MAX)?),
        _ => return None,
    })
}

/// A host name, as RFC 1123 has one label of it.
fn is_host_name(name: &str) -> Result<(), String> {
    let good = (1..=HOST_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(format!(
        "`{}` is no host name: letters, digits and hyphens, no hyphen at either end, {HOST_MAX} characters at most",
        name.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            serial: Some("10000000abcdef01".into()),
            mac: Some("b8:27:eb:00:00:01".into()),
            group: Some("lab".into()),
            ordinal: 7,
            hostname: Some("lab-07".into()),
        }
    }

    #[test]
    fn host_names() {
        for (pattern, name) in [
            ("lab", "lab"),
            ("{group}-{ordinal:02}", "lab-07"),
            ("{ordinal}", "7"),
            ("pi-{mac}", "pi-b827eb000001"),
            ("{serial}", "10000000abcdef01"),
        ] {
            assert_eq!(
                Template::host_name(pattern).unwrap().fill(&facts()).as_deref(),
                Ok(name),
                "{pattern}"
            );
        }
        for (pattern, says) in [
            ("", "no host name"),
            ("a_b", "no host name"),
            ("-a", "no host name"),
            ("a.b", "no host name"),
            ("{ordinal", "no `}` behind it"),
            ("{ip}", "`{ip}` is not known"),
            ("{ordinal:99}", "not known"),
            ("a\nb", "no host name"),
        ] {
            assert!(Template::host_name(pattern).unwrap_err().contains(says), "{pattern}");
        }
        let bare = Facts { ordinal: 1, ..Facts::default() };
        let error = Template::host_name("{group}-x").unwrap().fill(&bare).unwrap_err();
        assert_eq!(error, "its group is needed, and it has none that is known");
        let odd = Facts { group: Some("a_b".into()), ..bare };
        assert!(Template::host_name("{group}").unwrap().fill(&odd).unwrap_err().contains("`a_b` is no host"));
    }

    #[test]
    fn files() {
        let text = "a={ordinal} {{ serial }} ${x} {{mac}} {{hostname}}\n";
        let filled = Template::file(text).unwrap().fill(&facts()).unwrap();
        assert_eq!(filled, "a={ordinal} 10000000abcdef01 ${x} b8:27:eb:00:00:01 lab-07\n");
        assert!(Template::file("{{ nothing }}").is_err() && Template::file("{{serial").is_err());
    }
}
