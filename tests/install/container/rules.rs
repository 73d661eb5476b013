//! What layers become, one rule of the specification at a time.

use std::path::Path;
use std::process::Command;

use piman_tests::disk::run;
use piman_tests::tar::Tar;

use super::{GZIP, Layer, Layout, PLAIN};
use crate::forms::{copies, image};

/// Layers in words: entries are divided by spaces; `a/` is a directory, `a=x` a file with this content, `a->b` a
/// symbolic link, `a=>b` a hard link.
fn layer(words: &str) -> Layer {
    let mut tar = Tar::new();
    for word in words.split_whitespace() {
        if let Some((name, target)) = word.split_once("=>") {
            tar.entry(name.as_bytes(), b'1', target.as_bytes());
        } else if let Some((name, target)) = word.split_once("->") {
            tar.entry(name.as_bytes(), b'2', target.as_bytes());
        } else if let Some((name, content)) = word.split_once('=') {
            tar.file(name.as_bytes(), content.as_bytes());
        } else {
            tar.entry(word.as_bytes(), if word.ends_with('/') { b'5' } else { b'0' }, b"");
        }
    }
    Layer::new(if words.len().is_multiple_of(2) { GZIP } else { PLAIN }, &tar.end())
}

/// The same words for what an archive becomes, sorted; a hard link is told by its content.
fn unpacked(archive: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder.path()));
    let mut words = Vec::new();
    let mut left = vec![folder.path().to_owned()];
    while let Some(path) = left.pop() {
        let name = path.strip_prefix(folder.path()).unwrap().display().to_string();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            words.push(format!("{name}/"));
        } else if meta.is_symlink() {
            words.push(format!("{name}->{}", path.read_link().unwrap().display()));
        } else {
            words.push(format!("{name}={}", std::fs::read_to_string(&path).unwrap()));
        }
    }
    words.retain(|word| word != "/");
    words.sort();
    words.join(" ")
}

/// What the layers become, or the error.
fn merged(layers: &[&str]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    let layers: Vec<_> = layers.iter().map(|words| layer(words)).collect();
    layout.index(&[layout.image("linux/arm64", &layers)]);
    let (ok, text) = image(folder.path(), &["add", "--force", "--name", "x", "."], None);
    if !ok {
        assert!(copies(folder.path()).is_empty());
        return Err(text);
    }
    let [copy] = &copies(folder.path())[..] else { panic!("{text}") };
    Ok(unpacked(&folder.path().join("state/archives").join(copy)))
}

#[test]
fn layers_become_what_the_specification_says() {
    for (layers, want) in [
        // A whiteout hides what is below, wherever it stands, and nothing of its own layer.
        (&["a=1 b=2", ".wh.a"][..], "b=2"),
        (&["a=1 b=2", ".wh.a a=3"], "a=3 b=2"),
        (&["a=1 b=2", "a=3 .wh.a"], "a=3 b=2"),
        (&["d/ d/a=1 d/b/ d/b/c=2 e=", ".wh.d"], "e="),
        (&["d/ d/a=1", "d/ d/b=2 .wh.d"], "d/ d/b=2"),
        (&["d/ d/a=1", "d/b=2 .wh.d"], "d/ d/b=2"),
        (&["a=1", ".wh.a", "a=2", "b="], "a=2 b="),
        (&["a=1", ".wh.b nowhere/.wh.c a/.wh.d"], "a=1"),
        (&[".a=1 ..b=2 c=", ".wh..a .wh...b"], "c="),
        (&["a=1", ".wh.a/"], ""),
        // Opaque: what is in the directory below, and not what the same layer puts there.
        (&["d/ d/a=1 d/b/ d/b/c=2", "d/ d/.wh..wh..opq d/e=3"], "d/ d/e=3"),
        (&["d/ d/a=1 d/b/ d/b/c=2", "d/ d/e=3 d/b/d=4 d/.wh..wh..opq"], "d/ d/b/ d/b/d=4 d/e=3"),
        (&["a=1 d/b=2", ".wh..wh..opq c=3"], "c=3"),
        (&["d/a=1", "d/.wh..wh..opq", "d/b=2"], "d/ d/b=2"),
        (&["a=1", "new/ new/.wh..wh..opq new/b=2"], "a=1 new/ new/b=2"),
        // What AUFS kept for itself.
        (&["a=1 .wh..wh.aufs .wh..wh.plnk/ .wh..wh.plnk/1.2=x"], "a=1"),
        // One kind in place of another.
        (&["a/ a/b=1", "a=2"], "a=2"),
        (&["a=1", "a/ a/b=2"], "a/ a/b=2"),
        (&["a/ a/b=1 c/", "a->c"], "a->c c/"),
        (&["c/ c/x=1 a->c", "a/ a/b=2"], "a/ a/b=2 c/ c/x=1"),
        (&["c=1 a->c", "a=2"], "a=2 c=1"),
        (&["a/ a/b=1", "a/ a/c=2"], "a/ a/b=1 a/c=2"),
        // Hard links, also to what is hidden later.
        (&["a=1", "b=>a"], "a=1 b=1"),
        (&["a=1", "b=>./a c=>/b"], "a=1 b=1 c=1"),
        (&["a=1", "b=>a", ".wh.a"], "b=1"),
        (&["a=1 b=>a", "a=2"], "a=2 b=1"),
        (&["a=1", "a=>a"], "a=1"),
        (&["d/ d/a=1", "b=>d/a", ".wh.d"], "b=1"),
        (&["a->x b=>a"], "a->x b->x"),
        // A parent that is a link leads on, as in the system itself, and never out of it.
        (&["usr/lib/ lib->usr/lib", "lib/a=1"], "lib->usr/lib usr/ usr/lib/ usr/lib/a=1"),
        (&["usr/ lib->/usr", "lib/a=1 lib/b/"], "lib->/usr usr/ usr/a=1 usr/b/"),
        (&["usr/lib/a=1 lib->usr/lib", "lib/.wh.a"], "lib->usr/lib usr/ usr/lib/"),
        (&["a->/../../tmp", "a/b=1"], "a->/../../tmp tmp/ tmp/b=1"),
        (&["etc/ a->../../../etc", "a/passwd=1"], "a->../../../etc etc/ etc/passwd=1"),
        (&["etc/passwd=1 a->/etc", "a/.wh.passwd b="], "a->/etc b= etc/"),
        (&["a->b", "a/c=1"], "a->b b/ b/c=1"),
        // Not what a link led to that the same layer replaces.
        (&["c/ c/x=1 a->c", "a/ a/.wh..wh..opq a/b=2"], "a/ a/b=2 c/ c/x=1"),
        (&["c/ c/x=1 a->c", "a/.wh.x a/ a/b=2"], "a/ a/b=2 c/ c/x=1"),
        (&["c/s/ c/s/x=1 a->c", "a/s/.wh..wh..opq a/ a/s/ a/s/b=2"], "a/ a/s/ a/s/b=2 c/ c/s/ c/s/x=1"),
        (&["a=1", "", "b=2"], "a=1 b=2"),
    ] {
        match merged(layers) {
            Ok(found) => assert_eq!(found, want, "{layers:?}"),
            Err(e) => assert!(want.is_empty() && e.contains("hold nothing"), "{layers:?}: {e}"),
        }
    }
}

#[test]
fn what_cannot_be_put_anywhere_is_refused_with_its_layer() {
    for (layers, want) in [
        (&["a=1", "../b=1"][..], "`../b` leads out of the root by `..`"),
        (&["a=1", "b/../../c=1"], "leads out of the root by `..`"),
        (&["a=1", ".wh.."], "a whiteout of `.`, which cannot be hidden"),
        (&["a=1", "d/.wh..."], "a whiteout of `..`, which cannot be hidden"),
        (&["a=1", ".wh."], "a whiteout of ``, which cannot be hidden"),
        (&["a=1", "../.wh.x"], "leads out of the root by `..`"),
        (&["a=1", "../.wh..wh..opq"], "leads out of the root by `..`"),
        (&["a=1", ".wh.a/b=1"], "it is below a whiteout"),
        (&["a=1", "a/b=1"], "leads through something that is no directory"),
        (&["a->b b->a", "a/c=1"], "leads round in a circle of symbolic links"),
        (&["a=1", "b=>c"], "`b` is a link to `c`, which is missing"),
        (&["a=1", ".wh.a b=>a"], "`b` is a link to `a`, which is missing"),
        (&["a/", "b=>a"], "is a link to a directory"),
        (&["a=1", "b=>../../etc/passwd"], "leads out of the root by `..`"),
    ] {
        let text = merged(layers).unwrap_err();
        assert!(text.contains(want) && text.contains("layer 2 of 2 (sha256:"), "{layers:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
