//! The logging macros: each call goes to `log`, to `defmt`, to both or to
//! none, as the features say. Declared first, so that every module sees them.

macro_rules! emit {
    ($level:ident, $($arg:tt)*) => {{
        #[cfg(feature = "log")]
        ::log::$level!($($arg)*);
        #[cfg(feature = "defmt")]
        ::defmt::$level!($($arg)*);
        #[cfg(not(any(feature = "log", feature = "defmt")))]
        {
            let _ = ::core::format_args!($($arg)*);
        }
    }};
}

macro_rules! debug {
    ($($arg:tt)*) => { emit!(debug, $($arg)*) };
}

macro_rules! warning {
    ($($arg:tt)*) => { emit!(warn, $($arg)*) };
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::string::String;
    use std::vec::Vec;

    const DERIVED: &str = "#[cfg_attr(feature = \"defmt\", derive(defmt::Format))]";

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // Programs on computers log with `log`: what a probe reads out of a chip nobody reads out of them. Their
            // types hold paths, files and errors of `std`, which defmt does not know.
            if path.is_dir() && !path.ends_with("hosted") {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    /// The type that this line declares for everybody.
    fn declared(line: &str) -> Option<&str> {
        let rest = ["pub struct ", "pub enum ", "pub union "]
            .iter()
            .find_map(|p| line.trim_start().strip_prefix(p))?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
    }

    fn implements(source: &str, name: &str) -> bool {
        source.match_indices("defmt::Format for ").any(|(at, found)| {
            let rest = &source[at + found.len()..];
            rest.strip_prefix(name).is_some_and(|r| !r.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        })
    }

    /// That the implementations compile is checked with the feature, by clippy; this sees that none is missing.
    #[test]
    fn every_public_type_has_a_format_for_defmt() {
        let (mut files, mut seen, mut without) = (Vec::new(), 0, Vec::new());
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        for path in files {
            let source = fs::read_to_string(&path).unwrap();
            let mut derived = false;
            for line in source.lines() {
                if let Some(name) = declared(line) {
                    seen += 1;
                    if !derived && !implements(&source, name) {
                        without.push(std::format!("{}: {name}", path.display()));
                    }
                }
                let line = line.trim();
                // Attributes stay until the item that they are of.
                derived = line == DERIVED || derived && (line.starts_with('#') || line.starts_with("//"));
            }
        }
        assert!(seen > 100, "only {seen} types were found: the search is wrong");
        assert!(without.is_empty(), "add {DERIVED} to these, or an implementation:\n{}", without.join("\n"));
    }

    #[test]
    fn the_search_finds_what_it_is_for() {
        assert_eq!(declared("    pub struct Name<'a>(u8);"), Some("Name"));
        assert_eq!(declared("pub(crate) struct Name;"), None);
        let source = String::from("impl defmt::Format for Names<'_> {");
        assert!(implements(&source, "Names") && !implements(&source, "Name"));
    }
}
