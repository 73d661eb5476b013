//! Which kernel modules go into an initramfs, in the order in which they are loaded.
//!
//! A kernel's own folder says by `modules.dep`, `modules.softdep` and `modules.alias` (depmod writes
//! them) what a module needs; `modules.builtin` names what needs no file.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// The largest module that is unpacked.
const MODULE_MAX: u64 = 64 << 20;
/// How much memory unpacking xz may take, in bytes; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// The modules of a folder, as `NNN-name.ko` and their bytes. `names` are looked up in a kernel's own
/// folder; without any it is a folder of modules only.
///
/// # Errors
/// If one is not there or cannot be read; the message says what to do.
pub fn collect(folder: &Path, names: &[String]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let paths = match (fs::read_to_string(folder.join("modules.dep")), names.is_empty()) {
        (Ok(dep), false) => Tree::read(folder, &dep).resolve(names)?,
        (Ok(_), true) => bail!(
            "{} is a kernel's folder with all its modules: name those that Pis need with --module, such as --module ext4",
            folder.display()
        ),
        (Err(_), true) => listed(folder)?,
        (Err(e), false) => bail!(
            "{} is no kernel's folder, in which --module could be looked up ({e}): give lib/modules/VERSION",
            folder.join("modules.dep").display()
        ),
    };
    let mut modules = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let (name, packing) = stem(path).with_context(|| {
            format!("{}: a module is called NAME.ko, or that and .gz, .xz or .zst", path.display())
        })?;
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let bytes = unpack(bytes, packing).with_context(|| format!("unpacking {}", path.display()))?;
        modules.push((format!("{n:03}-{name}.ko"), bytes));
    }
    Ok(modules)
}

/// Those of these names that the kernel of this folder has as modules: neither built in nor unknown to it.
///
/// # Errors
/// If the folder is no kernel's.
pub fn present(folder: &Path, names: &[&str]) -> anyhow::Result<Vec<String>> {
    let tree = Tree::open(folder)?;
    let has = |name: &&&str| {
        let name = plain(name);
        !tree.built_in.contains(&name) && (tree.files.contains_key(&name) || tree.aliases.contains_key(&name))
    };
    Ok(names.iter().filter(has).map(|name| (*name).to_owned()).collect())
}

/// The files of these modules and of all that they need, in the order in which they are loaded; they need not be there.
///
/// # Errors
/// If the kernel of this folder does not have one.
pub fn files(folder: &Path, names: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    Tree::open(folder)?.resolve(names)
}

/// As its file `order` says, or by name.
fn listed(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut names: Vec<String> = match fs::read_to_string(folder.join("order")) {
        Ok(text) => text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect(),
        Err(_) => {
            let what = || format!("reading the modules {}", folder.display());
            let mut names = Vec::new();
            for entry in fs::read_dir(folder).with_context(what)? {
                let name = entry.with_context(what)?.file_name().into_string();
                names.extend(name.ok().filter(|n| stem(Path::new(n)).is_some()));
            }
            names.sort();
            names
        }
    };
    if names.is_empty() {
        bail!("{} has no modules (*.ko)", folder.display());
    }
    if let Some(outside) = names.iter().find(|n| n.contains('/')) {
        bail!("{outside}: `order` names files of its own folder only");
    }
    Ok(names.drain(..).map(|n| folder.join(n)).collect())
}

/// A module's name and what is behind `.ko`, if the file is called like one.
fn stem(path: &Path) -> Option<(&str, &str)> {
    let (name, packing) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(packing, "" | ".gz" | ".xz" | ".zst").then_some((name, packing))
}

/// As modules are called in the kernel, where `-` and `_` are the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn unpack(bytes: Vec<u8>, packing: &str) -> anyhow::Result<Vec<u8>> {
    match packing {
        ".gz" => whole(MultiGzDecoder::new(&*bytes)),
        ".zst" => whole(zstd::Decoder::new(&*bytes)?),
        ".xz" => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
            whole(XzDecoder::new_stream(&*bytes, stream))
        }
        _ => Ok(bytes),
    }
}

/// All of it, unless it is larger than any module is.
fn whole(packed: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    packed.take(MODULE_MAX + 1).read_to_end(&mut unpacked)?;
    ensure!(unpacked.len() as u64 <= MODULE_MAX, "it is larger than {} MiB when unpacked", MODULE_MAX >> 20);
    Ok(unpacked)
}

/// What a kernel's folder says of its modules, by their names.
struct Tree {
    folder: PathBuf,
    files: HashMap<String, (PathBuf, Vec<String>)>,
    before: HashMap<String, Vec<String>>,
    aliases: HashMap<String, String>,
    built_in: HashSet<String>,
}

impl Tree {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let dep = folder.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("reading {}", dep.display()))?;
        Ok(Self::read(folder, &dep))
    }

    fn read(folder: &Path, dep: &str) -> Self {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let name = |path: &str| stem(Path::new(path)).map(|(name, _)| plain(name));
        let mut files = HashMap::new();
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else { continue };
            let Some(module) = name(file) else { continue };
            // What is needed first stands last.
            let needs = needs.split_whitespace().rev().filter_map(name).collect();
            files.insert(module, (folder.join(file), needs));
        }
        let mut before = HashMap::new();
        for line in read("modules.softdep").lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else { continue };
            let first = words.skip_while(|w| *w != "pre:").skip(1).take_while(|w| !w.ends_with(':'));
            before.insert(plain(module), first.map(plain).collect());
        }
        let aliases = read("modules.alias");
        let aliases = aliases.lines().filter_map(|line| {
            let mut words = line.strip_prefix("alias ")?.split_whitespace();
            Some((plain(words.next()?), plain(words.next()?)))
        });
        let mut all = HashMap::new();
        for (alias, module) in aliases {
            // The first stays, as with modprobe.
            all.entry(alias).or_insert(module);
        }
        let built_in = read("modules.builtin").lines().filter_map(name).collect();
        Self { folder: folder.to_owned(), files, before, aliases: all, built_in }
    }

    /// The files of these modules and of all that they need, what is needed first.
    fn resolve(&self, names: &[String]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Order::default();
        for name in names {
            if !self.add(&plain(name), &mut order) {
                bail!("{} has no module {name}, and the kernel has none built in", self.folder.display());
            }
        }
        if order.too_deep {
            bail!(
                "{}: what modules need (modules.dep, modules.softdep) is nested more than {DEPTH_MAX} deep: run `depmod` anew",
                self.folder.display()
            );
        }
        Ok(order.files)
    }

    /// Whether there is such a module.
    fn add(&self, name: &str, order: &mut Order) -> bool {
        if self.built_in.contains(name) {
            return true;
        }
        let Some((file, needs)) = self.files.get(name) else {
            let real = self.aliases.get(name).filter(|real| *real != name);
            return real.is_some_and(|real| order.deeper(|order| self.add(real, order)));
        };
        if !order.seen.insert(name.to_owned()) {
            return true;
        }
        for wish in self.before.get(name).into_iter().flatten() {
            // Wishes only: the kernel may do without.
            order.deeper(|order| self.add(wish, order));
        }
        for need in needs {
            order.too_deep |= order.depth == DEPTH_MAX;
            order.deeper(|order| self.add(need, order));
        }
        order.files.push(file.clone());
        true
    }
}

#[derive(Default)]
struct Order {
    files: Vec<PathBuf>,
    seen: HashSet<String>,
    /// How many modules and aliases lie between here and the one that was asked for.
    depth: u32,
    too_deep: bool,
}

/// `depmod` writes all that a module needs into its line, so what it writes is hardly nested at all.
const DEPTH_MAX: u32 = 64;

impl Order {
    /// Looks at one that another leads to; `false` if that goes on for too long.
    fn deeper(&mut self, look: impl FnOnce(&mut Self) -> bool) -> bool {
        if self.depth == DEPTH_MAX {
            return false;
        }
        self.depth += 1;
        let found = look(self);
        self.depth -= 1;
        found
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use liblzma::read::XzEncoder;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write(
            "modules.dep",
            b"fs/ext4.ko: fs/mbcache.ko fs/jbd2.ko.gz\nfs/mbcache.ko:\nfs/jbd2.ko.gz: lib/crc-16.ko.zst\n\
              lib/crc-16.ko.zst:\ncrypto/crc32c_generic.ko:\n",
        );
        write("modules.softdep", b"# by hand\nsoftdep ext4 pre: crc32c post: other\n");
        write(
            "modules.alias",
            b"alias crc32c crc32c_generic\nalias crc32c slow\nalias round around\nalias around round\n",
        );
        write("modules.builtin", b"kernel/drivers/mmc/core/mmc_core.ko\n");
        for folder in ["fs", "lib", "crypto"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(b"jbd2").unwrap();
        write("fs/jbd2.ko.gz", &gzip.finish().unwrap());
        write("lib/crc-16.ko.zst", &zstd::bulk::compress(b"crc", 1).unwrap());
        for name in ["fs/ext4.ko", "fs/mbcache.ko", "crypto/crc32c_generic.ko"] {
            write(name, name.as_bytes());
        }
        dir
    }

    #[test]
    fn what_modules_need_may_not_be_nested_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let chain = |length: u32| -> String {
            (0..length)
                .map(|i| format!("m{i}.ko: m{}.ko\n", i + 1))
                .chain([format!("m{length}.ko:\n")])
                .collect()
        };
        let resolve = |length| Tree::read(dir.path(), &chain(length)).resolve(&["m0".into()]);
        assert_eq!(resolve(DEPTH_MAX).unwrap().len(), DEPTH_MAX as usize + 1);
        let error = resolve(100_000).unwrap_err().to_string();
        assert!(error.contains("nested more than 64 deep"), "{error}");
    }

    #[test]
    fn a_module_is_whole_or_refused() {
        assert_eq!(unpack(b"as it is".to_vec(), "").unwrap(), b"as it is");
        let mut xz = Vec::new();
        XzEncoder::new(&b"a module"[..], 6).read_to_end(&mut xz).unwrap();
        assert_eq!(unpack(xz.clone(), ".xz").unwrap(), b"a module");
        for end in 0..xz.len() {
            assert!(unpack(xz[..end].to_vec(), ".xz").is_err(), "cut at {end}");
        }
        assert_eq!(whole(std::io::repeat(0).take(MODULE_MAX)).unwrap().len() as u64, MODULE_MAX);
        let error = whole(std::io::repeat(0)).unwrap_err().to_string();
        assert!(error.contains("larger than 64 MiB"), "{error}");
    }

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let dir = tree();
        let found = collect(dir.path(), &["mmc-core".into(), "ext4".into(), "jbd2".into()]).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let want = ["000-crc32c_generic.ko", "001-crc-16.ko", "002-jbd2.ko", "003-mbcache.ko", "004-ext4.ko"];
        assert_eq!(names, want);
        assert_eq!((&*found[1].1, &*found[2].1), (&b"crc"[..], &b"jbd2"[..]), "unpacked");
    }

    #[test]
    fn what_is_not_there_is_said() {
        let dir = tree();
        let says = |names: &[&str], word: &str| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let error = format!("{:#}", collect(dir.path(), &names).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        };
        says(&["ext5"], "no module ext5");
        says(&["round"], "no module round");
        says(&[], "--module ext4");
        fs::remove_file(dir.path().join("modules.dep")).unwrap();
        says(&["ext4"], "lib/modules/VERSION");
        says(&[], "no modules (*.ko)");
        fs::write(dir.path().join("order"), "fs/ext4.ko\n").unwrap();
        says(&[], "its own folder");
        fs::write(dir.path().join("order"), "ext4.kox\n").unwrap();
        fs::write(dir.path().join("ext4.kox"), "").unwrap();
        says(&[], "is called NAME.ko");
        fs::write(dir.path().join("order"), "a.ko.xz\n").unwrap();
        fs::write(dir.path().join("a.ko.xz"), "no xz").unwrap();
        says(&[], "xz");
    }
}
