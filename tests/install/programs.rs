//! The programs as they are used: `piman serve` and `pi-agent install`, a real Debian, a real
//! block device; judged by e2fsck, the kernel and GNU tar.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use pi_agent::card::disk::{RootArea, root_in_table};
use pi_agent::card::inspect::{self, Card};
use piman_core::install::receipt::Way;
use piman_tests::binaries;
use piman_tests::disk::LoopDevice;
use piman_tests::disk::{Mounted, e2fsck, run};
use piman_tests::reader::assert_reads;
use piman_tests::server::{Server, wait_until};
use piman_tests::tree::{assert_same, installed};

const SERIAL: &str = "00000000cafe0002";

/// A root filesystem of Debian: `PIMAN_TEST_ROOTFS`, or made once with mmdebstrap and kept in
/// the target folder.
fn debian() -> &'static Path {
    static DEBIAN: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        if let Some(given) = std::env::var_os("PIMAN_TEST_ROOTFS") {
            return given.into();
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian.tgz");
        if kept.exists() {
            return kept;
        }
        let new = kept.with_extension("new");
        let script = format!(
            "mmdebstrap --quiet --variant=minbase --include=systemd-sysv,udev,kmod,iputils-ping \
             $(. /etc/os-release; echo $VERSION_CODENAME) - | gzip -1 > {0} && tar -tzf {0} >/dev/null",
            new.display()
        );
        run(Command::new("bash").args(["-o", "pipefail", "-c", &script]));
        fs::rename(&new, &kept).unwrap();
        kept
    };
    DEBIAN.get_or_init(make)
}

/// A small archive and the server that has it.
fn small(folder: &Path) -> Server {
    let script = "mkdir -p r/bin r/etc && head -c 3000000 /dev/urandom > r/bin/data && echo x > r/etc/hostname \
                  && tar -C r -czf r.tgz .";
    run(Command::new("sh").args(["-c", script]).current_dir(folder));
    Server::start(&folder.join("r.tgz"), &folder.join("state"), &[])
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "debian", ignore = "needs mmdebstrap, or a root filesystem in PIMAN_TEST_ROOTFS")]
fn a_real_debian_by_both_paths_onto_a_block_device() {
    const SIZE: u64 = 2 << 30;
    let archive = debian();
    let folder = tempfile::tempdir().unwrap();
    let extracted = folder.path().join("extracted");
    fs::create_dir(&extracted).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-xpf"]).arg(archive).arg("-C").arg(&extracted);
    run(tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]));
    let want = installed(&extracted);
    assert!(want.len() > 3000, "{} entries", want.len());

    let server = Server::start(archive, &folder.path().join("state"), &[]);
    for (path, way) in [("image", Way::Image), ("archive", Way::Archive)] {
        let disk = LoopDevice::new(SIZE);
        run(server.agent(disk.path(), SERIAL).args(["--path", path, "--reinstall"]));
        let Card::Installed(found) = inspect::check(disk.path()).unwrap() else { panic!("{path}: no proof") };
        assert_eq!(found.path, way);
        let file = File::open(disk.path()).unwrap();
        let RootArea { offset, length } = root_in_table(&file, SIZE).unwrap();
        drop(file);
        e2fsck(disk.path(), offset, length);
        assert_reads(disk.path(), offset, &want);
        let mounted = Mounted::new(disk.path(), offset, length, "init_itable=0");
        assert_same(&installed(mounted.path()), &want);

        // It is a filesystem to live with: filled to the end, emptied, checked again.
        let mut filler = File::create(mounted.path().join("filler")).unwrap();
        let piece = vec![0x5a; 1 << 20];
        while filler.write_all(&piece).is_ok() {}
        drop(filler);
        mounted.wait_for_lazy_init();
        run(Command::new("sync").arg("-f").arg(mounted.path()));
        fs::remove_file(mounted.path().join("filler")).unwrap();
        run(Command::new("touch").arg("-r").arg(&extracted).arg(mounted.path()));
        assert_same(&installed(mounted.path()), &want);
        drop(mounted);
        e2fsck(disk.path(), offset, length);
        let devices = || server.piman(&["devices"]);
        wait_until("it is listed", || devices().contains(SERIAL) && devices().contains("installed"));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_disk_in_use_is_refused_and_one_that_holds_something_needs_a_yes() {
    let folder = tempfile::tempdir().unwrap();
    let server = small(folder.path());
    let disk = LoopDevice::new(512 << 20);
    let refused = |more: &[&str]| {
        let output = server.agent(disk.path(), SERIAL).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    run(Command::new("mkfs.ext4").args(["-q"]).arg(disk.path()));
    let before = blake3::hash(&fs::read(disk.path()).unwrap());
    let said = refused(&[]);
    assert!(said.contains("say --yes to erase it; nothing was changed"), "{said}");
    assert_eq!(blake3::hash(&fs::read(disk.path()).unwrap()), before);

    let place = folder.path().join("mnt");
    fs::create_dir(&place).unwrap();
    run(Command::new("mount").arg(disk.path()).arg(&place));
    let said = refused(&["--yes"]);
    assert!(said.contains("is mounted at") && said.contains("nothing was changed"), "{said}");
    run(Command::new("umount").arg(&place));

    let backing = folder.path().join("card.img");
    File::create(&backing).unwrap().set_len(512 << 20).unwrap();
    let device = LoopDevice::of(&backing);
    let output = server.agent(&backing, SERIAL).output().unwrap();
    drop(device);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is made of it"), "{said}");

    run(server.agent(disk.path(), SERIAL).arg("--yes"));
    let check = Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(disk.path()).output();
    assert_eq!(check.unwrap().status.code(), Some(0));
}

#[test]
fn an_ordinary_user_installs_a_file_and_the_second_time_is_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = small(folder.path());
    let card = folder.path().join("card.img");
    let agent = |more: &[&str]| {
        let output = run(server.agent(&card, SERIAL).args(["--size", "512M", "--path", "image"]).args(more));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(agent(&[]).starts_with("installed image"));
    let said = agent(&[]);
    assert!(said.starts_with("the server says boot"), "{said}");
    server.piman(&["reinstall", SERIAL]);
    assert!(agent(&[]).starts_with("installed image"), "ordered");
    assert!(agent(&[]).starts_with("the server says boot"), "the order is done with");
    assert!(agent(&["--reinstall"]).starts_with("installed image"), "asked for here");

    let check = |disk: &Path| {
        let output = Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(disk).output();
        output.unwrap().status.code()
    };
    assert_eq!(check(&card), Some(0));
    let empty = folder.path().join("empty.img");
    File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(check(&empty), Some(1));
    assert_eq!(check(&folder.path().join("nowhere")), Some(2));
}

#[test]
fn the_server_is_told_to_stop_during_eight_installations_and_lets_them_finish() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = small(folder.path());
    // So that the image is there when all eight come.
    run(server.agent(folder.path().join("first.img"), "00000000000000ff").args(["--size", "512M"]));
    let agents: Vec<_> = (0..8)
        .map(|i| {
            let card = folder.path().join(format!("card{i}.img"));
            let mut agent = server.agent(&card, &format!("000000000000000{i}"));
            let child =
                agent.args(["--size", "512M", "--path", "image", "--retries", "0"]).stderr(Stdio::piped());
            (card, child.spawn().unwrap())
        })
        .collect();
    // As soon as each of them has been told to format.
    let told = |i: usize| {
        let serial = format!("serial=000000000000000{i} ");
        server.log().lines().any(|line| line.contains("told to format") && line.contains(&serial))
    };
    wait_until("all eight were told to format", || (0..8).all(told));
    server.terminate();
    for (card, agent) in agents {
        let output = agent.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(matches!(inspect::check(&card).unwrap(), Card::Installed(_)));
    }
    assert!(server.ended(Duration::from_secs(120)).success());
}

/// The end of a pipe that nobody reads any more, as of `piman devices | head -1`.
fn nobody_reads() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn an_output_that_nobody_reads_is_no_reason_to_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let state = path("state");
    drop(Server::start_services(Path::new(&state), &["--rpc-port", "0"]));
    let card = path("card");
    let ends = |program: &Path, line: &[&str]| {
        let mut command = Command::new(program);
        command.args(line).env_remove("RUST_LOG").stdin(Stdio::null());
        command.stdout(nobody_reads()).stderr(nobody_reads()).status().unwrap().code()
    };
    // It logs that nobody answers, and says so at its end.
    let mut install = vec!["install", "--server", "127.0.0.1", "--control-port", "1", "--serial", "1"];
    install.extend(["--disk", &card, "--size", "256M", "--retries", "1", "--yes"]);
    for (line, code) in [
        (&install[..], Some(1)),
        (&["check", "--disk", &path("none")], Some(2)),
        (&["nonsense"], Some(2)),
        (&["init"], Some(2)),
    ] {
        assert_eq!(ends(binaries::pi_agent(), line), code, "pi-agent {line:?}");
    }
    for (line, code) in [
        (&["devices", "--state", &state][..], Some(0)),
        (&["devices", "--state", &state, "--json"], Some(0)),
        (&["device", "--state", &state, "nobody"], Some(1)),
        (&["devices", "--state", &path("none")], Some(1)),
        (&["nonsense"], Some(2)),
        (&["--help"], Some(0)),
    ] {
        assert_eq!(ends(binaries::piman(), line), code, "piman {line:?}");
    }
}
