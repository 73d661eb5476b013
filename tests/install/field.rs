//! Archives as the field has them: what is in them is there afterwards, by both paths.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use pi_agent::install::Outcome;
use piman_core::install::layout::SECTOR;
use piman_tests::binaries;
use piman_tests::disk::{Mounted, run};
use piman_tests::lab::{self, attempt};
use piman_tests::server::{Server, wait_until};

/// Runs a script of bash in a folder.
fn script(folder: &Path, text: &str) {
    run(Command::new("bash").args(["-eo", "pipefail", "-c", text]).current_dir(folder));
}

/// Installs an archive by both paths, and looks at what is there.
fn by_both_paths(archive: &Path, look: impl Fn(&str, &Path)) {
    let folder = lab::memory();
    let server = Server::start(archive, &folder.path().join("state"), &[]);
    server.wait_log("is good");
    for path in ["archive", "image"] {
        let card = folder.path().join("card.img");
        File::create(&card).unwrap().set_len(lab::CARD).unwrap();
        let outcome = attempt(&lab::plan(&server, &card, path)).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        let mounted = Mounted::new(&card, lab::layout().root_start * SECTOR, lab::ROOT, "noatime");
        look(path, mounted.path());
        drop(mounted);
        fs::remove_file(&card).unwrap();
    }
}

fn lists(folder: &Path) -> String {
    let names = ["file", "d", "d/inside", "d/sub", "plain"];
    let output = run(Command::new("getfacl").arg("-n").args(names).current_dir(folder));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn access_control_lists_are_those_that_gnu_tar_restores() {
    let folder = tempfile::tempdir().unwrap();
    script(
        folder.path(),
        "mkdir -p r/bin r/d/sub && echo x >r/file && echo x >r/d/inside && echo x >r/plain && chmod 4755 r/plain
         setfacl -m u:1001:rw,g:2007:r r/file && setfacl -m u:1001:rwx,m::rx r/d && setfacl -d -m g:2042:rx,u:0:rwx r/d
         setfacl -m g:2042:w r/d/inside && chmod 600 r/d/inside
         tar --acls --numeric-owner --format=pax -C r -czf gnu.tgz .
         bsdtar --acls --numeric-owner -C r -czf bsd.tgz .
         mkdir want && tar --acls --numeric-owner -C want -xpf gnu.tgz",
    );
    let want = lists(&folder.path().join("want"));
    assert!(want.contains("user:1001:rw-") && want.contains("default:group:2042:r-x"), "{want}");
    for name in ["gnu.tgz", "bsd.tgz"] {
        by_both_paths(&folder.path().join(name), |path, root| {
            assert_eq!(lists(root), want, "{name}: {path}")
        });
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_archive_without_an_end_is_taken_with_a_remark() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    script(
        folder,
        "mkdir -p r/bin && seq 40000 >r/numbers && echo 7 >r/last && tar -C r --sort=name -cf whole.tar .",
    );
    let whole = fs::read(folder.join("whole.tar")).unwrap();
    let blocks = whole.chunks(512).rposition(|block| block.iter().any(|b| *b != 0)).unwrap() + 1;
    fs::write(folder.join("no-end.tar"), &whole[..blocks * 512]).unwrap();
    script(
        folder,
        "gzip -k no-end.tar && zstd -q --check no-end.tar
         head -c 51200 no-end.tar | gzip >two.tar.gz && tail -c +51201 no-end.tar | gzip >>two.tar.gz
         head -c -1 no-end.tar.gz >cut.tar.gz",
    );
    for name in ["no-end.tar.gz", "no-end.tar.zst"] {
        by_both_paths(&folder.join(name), |path, root| {
            let numbers = fs::read_to_string(root.join("numbers")).unwrap();
            assert!(numbers.ends_with("\n40000\n"), "{name} by {path}");
            assert!(root.join("bin").is_dir(), "{name} by {path}");
        });
    }
    // It is said, and is no reason to refuse it.
    let cut = folder.join("no-end.tar.gz");
    let mut add = Command::new(binaries::piman());
    add.args(["image", "add", "--force", "--state"]).arg(folder.join("state-added")).arg(&cut);
    let output = add.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("the archive has no end marker"), "{text}");
    // What cannot be whole, nobody can have.
    for name in ["two.tar.gz", "cut.tar.gz"] {
        let state = folder.join(format!("state-{name}"));
        let server = Server::start(&folder.join(name), &state, &[]);
        let refused = || server.log().contains("is not usable");
        wait_until("it is refused", || refused() || server.log().contains("is good"));
        assert!(!server.log().contains("is good"), "{name}: {}", server.log());
    }
}
