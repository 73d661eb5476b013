//! What is not for this root, or cannot be made in it.

use super::*;

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_proof_of_an_archived_card_is_left_out() {
    let mut tar = Tar::new();
    tar.file(b".piman-proof", b"another's").entry(b"here", b'2', b".").file(b"here/.piman-proof", b"too");
    tar.file(b"./.piman-proof", b"and so").file(b"etc/.piman-proof", b"not ours").file(b"last", b"file");
    let dir = TempDir::new().unwrap();
    // As it is while an installation goes on.
    fs::write(dir.path().join(".piman-proof"), "").unwrap();
    extract(&gzip(&tar.end()), dir.path()).unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read(".piman-proof"), "");
    assert_eq!(read("etc/.piman-proof"), "not ours");
    assert_eq!(read("last"), "file");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_link_to_a_directory_is_followed_as_long_as_it_stays_below() {
    let mut tar = Tar::new();
    tar.entry(b"usr/", b'5', b"").entry(b"usr/lib/", b'5', b"").entry(b"lib", b'2', b"usr/lib");
    tar.file(b"lib/modules/x", b"1").entry(b"lib/y", b'1', b"lib/modules/x");
    let dir = same_as_gnu(&tar.end(), without_times_of_directories);
    assert_eq!(fs::read(dir.path().join("usr/lib/y")).unwrap(), b"1");
    assert_eq!(dir.path().join("usr/lib").metadata().unwrap().mtime(), 1_700_000_000);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn nothing_is_written_out_of_the_root() {
    let outside = TempDir::new().unwrap();
    let away = outside.path().as_os_str().as_bytes();
    let up = [b"../".repeat(40), away[1..].to_vec()].concat();
    let (up_link, absolute) = (&up[..], away);
    for target in [absolute, up_link] {
        for kind in [b'0', b'5', b'6', b'2'] {
            let mut tar = Tar::new();
            tar.pax(b'x', &[("linkpath", target)]).entry(b"way", b'2', b"x");
            tar.entry(b"way/out", kind, b"target");
            let (_dir, text) = refused(&tar.end());
            assert!(text.contains("`way/out`") && text.contains("out of the root"), "{text}");
        }
        // As the source of a hard link.
        fs::write(outside.path().join("secret"), "s").unwrap();
        let mut tar = Tar::new();
        tar.pax(b'x', &[("linkpath", target)]).entry(b"way", b'2', b"x");
        tar.entry(b"mine", b'1', b"way/secret");
        let (dir, text) = refused(&tar.end());
        assert!(text.contains("`mine`") && text.contains("way/secret"), "{text}");
        assert!(!dir.path().join("mine").exists());
        fs::remove_file(outside.path().join("secret")).unwrap();
    }
    for name in [&b"../out"[..], b"a/../../out", b"/..", b"a/.."] {
        let mut tar = Tar::new();
        tar.entry(b"a/", b'5', b"").file(name, b"");
        let (_dir, text) = refused(&tar.end());
        assert!(text.contains(&format!("`{}`", name.escape_ascii())) && text.contains(".."), "{text}");
        let mut tar = Tar::new();
        tar.entry(b"link", b'1', name);
        assert!(refused(&tar.end()).1.contains("`link`"));
    }
    // A link itself may lead anywhere; a file in its place does not follow it.
    let mut tar = Tar::new();
    let target = [away, b"/victim"].concat();
    tar.pax(b'x', &[("linkpath", &target)]).entry(b"f", b'2', b"x").file(b"f", b"mine");
    let (dir, result) = extract_new(&tar.end());
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_cannot_be_created_is_named() {
    let mut missing = Tar::new();
    missing.file(b"a", b"").entry(b"l", b'1', b"no/such/file");
    let (_dir, text) = refused(&missing.end());
    assert!(text.contains("`l`") && text.contains("`no/such/file`"), "{text}");
    let mut missing = Tar::new();
    missing.entry(b"l", b'1', b"nothing");
    let (_dir, text) = refused(&missing.end());
    assert!(text.contains("`l`") && text.contains("`nothing`"), "{text}");
    let mut directory = Tar::new();
    directory.entry(b"d/", b'5', b"").entry(b"l", b'1', b"d");
    assert!(refused(&directory.end()).1.contains("which is a directory"));
    let mut full = Tar::new();
    full.file(b"d/f", b"").file(b"d", b"");
    assert!(refused(&full.end()).1.contains("not empty"));
    let mut through = Tar::new();
    through.file(b"f", b"").file(b"f/g", b"");
    let text = refused(&through.end()).1;
    assert!(text.contains("`f/g`") && text.contains("not a directory"), "{text}");
    let mut circle = Tar::new();
    circle.entry(b"a", b'2', b"b").entry(b"b", b'2', b"a").file(b"a/f", b"");
    assert!(refused(&circle.end()).1.contains("circle"));
    let mut root = Tar::new();
    root.file(b"./.", b"");
    assert!(refused(&root.end()).1.contains("root itself"));
    let mut deep = Tar::new();
    deep.pax(b'x', &[("path", &b"d/".repeat(1000))]).file(b"x", b"");
    assert!(refused(&deep.end()).1.contains("directories deep"));
    let mut long = Tar::new();
    long.pax(b'x', &[("path", &[b'n'; 256])]).file(b"x", b"");
    assert!(refused(&long.end()).1.contains("255 bytes"));
    let mut nobody = Tar::new();
    nobody.pax(b'x', &[("uid", b"4294967295")]).file(b"x", b"");
    assert!(refused(&nobody.end()).1.contains("owner"));
    let mut device = Tar::new();
    device.header(&Header { name: b"dev", kind: b'4', device: (4096, 0), ..Header::default() });
    assert!(refused(&device.end()).1.contains("device number"));
}
