//! Archives in every form that `piman image add` takes, packed by the tools of others: what is on the card is the
//! same. What is damaged, cut or something else is refused with its place, and leaves nothing behind.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use pi_agent::install::Outcome;
use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::lab::{self, Root, attempt};
use piman_tests::server::Server;

pub(crate) fn script(folder: &Path, text: &str) {
    run(Command::new("bash").args(["-eo", "pipefail", "-c", text]).current_dir(folder));
}

/// `piman image`, with a state folder that is called `state`; whether it succeeded, and what it printed.
pub(crate) fn image(folder: &Path, arguments: &[&str], stdin: Option<&str>) -> (bool, String) {
    let stdin = stdin.map_or_else(Stdio::null, |name| File::open(folder.join(name)).unwrap().into());
    let (command, more) = arguments.split_first().unwrap();
    let output = Command::new(binaries::piman())
        .args(["image", command, "--state", "state"])
        .args(more)
        .current_dir(folder)
        .stdin(stdin)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// The copies that the state folder has.
pub(crate) fn copies(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join("state/archives")) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder with `a.tar`, and its content in `a`.
fn packed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    script(
        folder.path(),
        "mkdir -p a/etc a/bin && head -c 3000000 /dev/urandom >a/etc/noise && seq 300000 >a/etc/numbers
         ln a/etc/noise a/etc/again && truncate -s 5M a/etc/hole && tar -C a --sort=name -cf a.tar .",
    );
    folder
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn every_form_is_the_same_on_the_card() {
    let root = Root::new("forms", 1_000_000);
    let folder = root.archive.parent().unwrap();
    script(
        folder,
        "gunzip -c root.tgz >plain.tar && xz -c plain.tar >called.tar.gz
         xz -T2 --block-size=100KiB -C sha256 -c plain.tar >blocks.txz
         (head -c 99999 plain.tar | xz; tail -c +100000 plain.tar | xz -0 -C none) >two.tar.xz
         (head -c 99999 plain.tar | bzip2; tail -c +100000 plain.tar | bzip2 -1) >two.tbz
         zstd -q plain.tar",
    );
    for (file, stdin, form, paths) in [
        ("plain.tar", None, "it was tar;", &["archive"][..]),
        ("called.tar.gz", None, "xz", &["image"]),
        ("blocks.txz", None, "xz", &["archive"]),
        ("two.tar.xz", None, "xz", &["image"]),
        ("two.tbz", None, "bzip2", &["archive"]),
        ("root", None, "a folder", &["archive", "image"]),
        ("-", Some("plain.tar"), "it was tar;", &["image"]),
        ("-", Some("plain.tar.zst"), "zstd", &["archive"]),
    ] {
        let (ok, text) = image(folder, &["add", "--force", "--name", "lab", file], stdin);
        assert!(
            ok && text.contains(form) && text.contains("/state/archives/lab-"),
            "{file} {stdin:?}: {text}"
        );
        assert_eq!(copies(folder).len(), 1, "the copy before is gone");
        let mut serve = Command::new(binaries::piman());
        serve
            .args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"])
            .arg(root.state())
            .args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
        let server = Server::start_by(&mut serve, &root.state());
        server.wait_log("is good");
        let cards = lab::memory();
        let card = cards.path().join("card.img");
        for path in paths {
            File::create(&card).unwrap().set_len(lab::CARD).unwrap();
            let outcome = attempt(&lab::plan(&server, &card, path)).unwrap();
            assert!(matches!(outcome, Outcome::Installed { .. }), "{file} by {path}: {outcome:?}");
            root.assert_on(&card);
        }
    }
    assert_eq!(image(folder, &["remove", "lab"], None).1.matches("is removed").count(), 1);
    assert!(copies(folder).is_empty());
}

#[test]
fn what_is_damaged_or_cut_is_refused_with_its_place_and_leaves_nothing() {
    let folder = packed();
    let folder = folder.path();
    script(
        folder,
        "xz -k a.tar && bzip2 -k a.tar
         for f in a.tar a.tar.xz a.tar.bz2; do
             head -c 2000000 $f >cut.$f
             cp $f bad.$f && printf XXXX | dd of=bad.$f bs=1 seek=2000001 conv=notrunc status=none
             cat $f /etc/passwd >more.$f
         done
         blocks=$(($(stat -c %s a.tar) - 10240)) && head -c $blocks a.tar >open.tar; true
         tar -C a --sort=name -b 1 -cf tight.tar . && head -c -1024 tight.tar >open.tar
         xz -k open.tar && xz --lzma2=dict=512MiB -c a.tar >huge.xz
         truncate -s 9M disk.img && printf '\\x55\\xaa' | dd of=disk.img bs=1 seek=510 conv=notrunc status=none
         xz -k disk.img && gzip -k disk.img && gzip -c a.tar | xz >twice.xz && : >empty && head -c 4000 /dev/zero >zeros
         head -c 20 a.tar.xz >short.xz && head -c 6 a.tar.bz2 >short.bz2",
    );
    for (file, want) in [
        ("cut.a.tar", "at byte 2000000"),
        ("cut.a.tar.xz", "ends too early, after 2000000 bytes"),
        ("cut.a.tar.bz2", "ends too early, after 2000000 bytes"),
        ("bad.a.tar.xz", "damaged before byte"),
        ("bad.a.tar.bz2", "damaged before byte 2"),
        ("more.a.tar.xz", "something else follows the packed data"),
        ("more.a.tar.bz2", "something else follows the packed data"),
        ("open.tar", "end marker"),
        ("open.tar.xz", "end marker"),
        ("huge.xz", "256 MiB of memory: unpack it with `xz -d`"),
        ("disk.img", "its partition table (MBR, at byte 0) has no partition"),
        ("disk.img.xz", "its partition table (MBR, at byte 0) has no partition"),
        ("disk.img.gz", "its partition table (MBR, at byte 0) has no partition"),
        ("twice.xz", "packed twice"),
        ("empty", "it is empty"),
        ("zeros", "nothing but zeros"),
        ("short.xz", "too early, after 20 bytes"),
        ("short.bz2", "too early, after 6 bytes"),
        ("absent.tar", "opening absent.tar"),
    ] {
        for piped in [false, true] {
            if piped && file == "absent.tar" {
                continue;
            }
            let (name, stdin) = if piped { ("-", Some(file)) } else { (file, None) };
            let (ok, text) = image(folder, &["add", "--force", "--name", "x", name], stdin);
            assert!(!ok && text.contains(want), "{file}: {text}");
            assert!(!text.contains("state/archives"), "the file of the user is named: {text}");
            assert_eq!(text.lines().filter(|line| !line.contains(" WARN ")).count(), 1, "{text}");
        }
    }
    let (_, text) = image(folder, &["add", "--force", "-"], Some("a.tar"));
    assert!(text.contains("--name NAME"), "{text}");
    assert!(copies(folder).is_empty(), "{:?}", copies(folder));
    assert_eq!(image(folder, &["list"], None).1.lines().count(), 0, "no image was added");
}

#[test]
fn copies_go_with_their_images_and_files_of_others_stay() {
    let folder = packed();
    let folder = folder.path();
    script(folder, "xz -k a.tar && gzip -k a.tar");
    let add = |name: &str, file: &str| {
        let (ok, text) = image(folder, &["add", "--force", "--name", name, file], None);
        assert!(ok, "{text}");
    };
    add("one", "a.tar.xz");
    add("two", "a.tar.xz");
    assert_eq!(copies(folder).len(), 2);
    // What a command left that was killed; and one that another command makes right now.
    fs::write(folder.join("state/archives/one-gone.tar.gz"), "x").unwrap();
    let making = File::create(folder.join("state/archives/one-made.tar.gz")).unwrap();
    rustix::fs::flock(&making, rustix::fs::FlockOperation::LockExclusive).unwrap();
    add("two", "a.tar.gz");
    let left = copies(folder);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left.contains(&"one-made.tar.gz".into()) && left.iter().all(|n| n.starts_with("one-")),
        "{left:?}"
    );
    // A program that another test starts right now has the file as well, for a moment: closing it is not enough.
    rustix::fs::flock(&making, rustix::fs::FlockOperation::Unlock).unwrap();
    drop(making);
    let (_, text) = image(folder, &["remove", "two"], None);
    assert!(text.contains("its file stays") && folder.join("a.tar.gz").exists(), "{text}");
    let (_, text) = image(folder, &["remove", "one"], None);
    assert!(text.contains("state/archives/one-") && text.contains("is removed"), "{text}");
    assert!(copies(folder).is_empty(), "{:?}", copies(folder));
}
