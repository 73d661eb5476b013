//! What cannot become a system on a Pi is refused when it is added, with what to do, and no card is touched for it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use piman_tests::binaries;
use piman_tests::server::Server;
use piman_tests::tar::{Header, Tar};

/// The first bytes of a static program, by ELF's number for its processor: enough to be judged, not to run.
fn elf(machine: u16) -> Vec<u8> {
    let mut elf = vec![0; 128];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18..20].copy_from_slice(&machine.to_le_bytes());
    elf
}

const AARCH64: u16 = 183;
const X86_64: u16 = 62;

fn program(tar: &mut Tar, name: &str, content: &[u8]) {
    let size = content.len() as u64;
    tar.header(&Header { name: name.as_bytes(), mode: 0o755, size, ..Header::default() }).content(content);
}

/// A system for a Pi, as small as one can be.
fn system(below: &str) -> Tar {
    let mut tar = Tar::new();
    for folder in ["etc/", "sbin/"] {
        tar.entry(format!("{below}{folder}").as_bytes(), b'5', b"");
    }
    program(&mut tar, &format!("{below}sbin/init"), &elf(AARCH64));
    tar.file(format!("{below}etc/hostname").as_bytes(), b"pi\n");
    tar
}

/// The same with one more file.
fn with(name: &str, content: &[u8]) -> Tar {
    let mut tar = system("");
    tar.file(name.as_bytes(), content);
    tar
}

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn archive(&self, name: &str, tar: &[u8]) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.tar.gz"));
        let mut packed = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
        packed.write_all(tar).unwrap();
        packed.finish().unwrap();
        path
    }

    /// Whether it was added, and what was printed.
    fn add(&self, archive: &Path, more: &[&str]) -> (bool, String) {
        let mut command = Command::new(binaries::piman());
        command
            .args(["image", "add", "--state"])
            .arg(self.folder.path().join("state"))
            .arg(archive)
            .args(more);
        let out = command.output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8(text).unwrap())
    }

    fn list(&self) -> String {
        let mut command = Command::new(binaries::piman());
        command.args(["image", "list", "--state"]).arg(self.folder.path().join("state"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }
}

#[test]
fn what_cannot_boot_is_refused_when_it_is_added() {
    let lab = Lab::new();
    let init = |link: &str| {
        let mut tar = Tar::new();
        tar.entry(b"sbin/", b'5', b"").entry(b"sbin/init", b'2', link.as_bytes());
        tar
    };
    let other = |machine: u16| {
        let mut tar = Tar::new();
        program(&mut tar, "sbin/init", &elf(machine));
        tar
    };
    let mut script = Tar::new();
    program(&mut script, "sbin/init", b"#!/bin/busybox sh\n");
    let mut not_executable = Tar::new();
    not_executable.file(b"sbin/init", &elf(AARCH64));
    let mut disk = vec![0; 5000];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut filesystem = vec![0; 5000];
    filesystem[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    let single = |name: &str, content: &[u8]| {
        let mut tar = Tar::new();
        tar.file(name.as_bytes(), content);
        tar
    };
    for (name, tar, words) in [
        ("no-init", single("etc/hostname", b"pi"), "none of /sbin/init, "),
        ("init-for-x86-64", other(X86_64), "a program for x86-64, which no Raspberry Pi is"),
        ("init-for-mips", other(8), "a program for MIPS"),
        (
            "link-to-nothing",
            init("../lib/systemd/systemd"),
            "a symbolic link to `../lib/systemd/systemd`, which does",
        ),
        ("link-to-itself", init("init"), "round in a circle"),
        ("script-without-shell", script, "needs /bin/busybox, which does not exist"),
        ("not-executable", not_executable, "/sbin/init is not executable"),
        ("one-top-folder", system("rootfs/"), "in one folder, `rootfs`"),
        ("disk-image", single("os.img", &disk), "a disk image inside (`os.img`)"),
        ("filesystem", single("./root.ext4", &filesystem), "the image of a filesystem inside"),
        ("packed", single("os.img.xz", b"\xfd7zXZ\0more"), "another packed file inside"),
    ] {
        let archive = lab.archive(name, &tar.end());
        let (added, text) = lab.add(&archive, &[]);
        assert!(!added && text.contains(words), "{name}: {text}");
        assert!(text.contains("is not fit for a Pi") && text.contains("--force"), "{name}: {text}");
        assert_eq!(lab.list().lines().filter(|l| l.contains(name)).count(), 0, "{name}");
        let (added, text) = lab.add(&archive, &["--force"]);
        assert!(added && text.contains("warning: ") && text.contains(words), "{name}: {text}");
    }
}

#[test]
fn what_nothing_could_extract_is_refused_also_by_force() {
    let lab = Lab::new();
    let mut hard = system("");
    hard.entry(b"etc/hard", b'1', b"etc/missing");
    let mut nul = system("");
    nul.pax(b'x', &[("path", b"etc/a\0b")]).file(b"etc/a", b"x");
    let mut deep = system("");
    for depth in [499_usize, 600] {
        deep.pax(b'x', &[("path", "d/".repeat(depth).as_bytes())]).entry(b"d/", b'5', b"");
    }
    let mut nobody = system("");
    nobody.pax(b'x', &[("uid", b"4294967295")]).file(b"etc/nobody", b"x");
    for (name, tar, words) in [
        ("dot-dot", with("etc/../../evil", b"x").end(), "leads out of the root by `..`"),
        ("hard-link-to-nothing", hard.end(), "a link to `etc/missing`, which is missing"),
        ("nul", nul.end(), "holds a NUL byte"),
        ("deep", deep.end(), "in more than 500 folders"),
        ("uid-minus-one", nobody.end(), "`etc/nobody` belongs to user 4294967295"),
        ("no-entries", Tar::new().end(), "there is nothing in it"),
    ] {
        let archive = lab.archive(name, &tar);
        for more in [&[][..], &["--force"]] {
            let (added, text) = lab.add(&archive, more);
            assert!(!added && text.contains(words), "{name}: {text}");
        }
    }
}

#[test]
fn what_can_boot_is_taken_with_what_is_odd_about_it() {
    let lab = Lab::new();
    let mut debian = Tar::new();
    debian.entry(b"./lib", b'2', b"usr/lib").entry(b"./sbin", b'2', b"usr/sbin");
    debian.entry(b"./usr/sbin/init", b'2', b"/lib/systemd/systemd");
    program(&mut debian, "./usr/lib/systemd/systemd", &elf(AARCH64));
    let mut script = Tar::new();
    program(&mut script, "bin/sh", &elf(40));
    program(&mut script, "sbin/init", b"#! /bin/sh -e\n");
    let mut old_folders = system("");
    let old = |name| Header { name, kind: 0, size: 1, mode: 0o755, magic: &[0; 8], ..Header::default() };
    old_folders.header(&old(b"old/")).header(&old(b"next/")).file(b"next/file", b"here\n");
    let mut kernel = with("boot/vmlinuz-6.12.1-rpi", b"kernel");
    kernel.entry(b"lib/modules/6.6.0-rpi/", b'5', b"");
    let fstab = "# all disks\nproc /proc proc defaults 0 0\nPARTUUID=4e639091-01 /boot vfat defaults 0 2\n\
                 LABEL=data /data ext4 nofail 0 2\n/dev/mmcblk0p2 / ext4 defaults 0 1\n";
    for (name, tar, words) in [
        ("debian", debian, &[][..]),
        ("script", script, &[]),
        ("old-folders", old_folders, &["with 7 entries"]),
        ("kernel", kernel, &["warning: /boot has kernels without modules", "6.12.1-rpi"]),
        (
            "fstab",
            with("etc/fstab", fstab.as_bytes()),
            &["warning: /etc/fstab mounts PARTUUID=4e639091-01 at /boot"],
        ),
        (
            "cmdline",
            with("boot/cmdline.txt", b"quiet root=PARTUUID=4e639091-02 ro"),
            &["root=PARTUUID=4e639091-02"],
        ),
    ] {
        let (added, text) = lab.add(&lab.archive(name, &tar.end()), &[]);
        assert!(added, "{name}: {text}");
        assert!(words.iter().all(|w| text.contains(w)), "{name}: {text}");
        assert_eq!(
            text.matches("warning").count(),
            words.iter().filter(|w| !w.contains("entries")).count().min(1)
        );
    }
}

#[test]
fn what_an_agent_writes_on_a_card_is_no_reason_to_warn() {
    let lab = Lab::new();
    let fstab = "PARTUUID=4e639091-01 /boot/firmware vfat defaults 0 2\nPARTUUID=4e639091-02 / ext4 defaults 0 1\n\
                 LABEL=data /srv ext4 defaults 0 2\n";
    let mut tar = with("etc/fstab", fstab.as_bytes());
    tar.entry(b"boot/", b'5', b"").entry(b"boot/firmware/", b'5', b"");
    for name in ["kernel8.img", "config.txt", "bcm2711-rpi-4-b.dtb"] {
        tar.file(format!("boot/firmware/{name}").as_bytes(), b"x");
    }
    tar.file(b"boot/firmware/cmdline.txt", b"quiet root=PARTUUID=4e639091-02 ro");
    let archive = lab.archive("own", &tar.end());
    let (added, text) = lab.add(&archive, &[]);
    assert!(added && text.contains("boots from the card"), "{text}");
    assert!(text.contains("mounts LABEL=data at /srv") && text.matches("warning").count() == 1, "{text}");
    // From the network, all of that matters.
    let (added, text) = lab.add(&archive, &["--boot", "network"]);
    assert!(added && text.matches("warning").count() == 4, "{text}");
}

#[test]
fn a_server_gives_nothing_that_cannot_boot() {
    let lab = Lab::new();
    let state = lab.folder.path().join("served");
    let archive = lab.archive("root", &with("etc/x", b"y").end());
    let unfit = lab.archive("unfit", &Tar::new().file(b"etc/hostname", b"pi").end());
    fs::rename(&unfit, &archive).unwrap();
    let server = Server::start_by(&mut Server::strict(&archive, &state, &[]), &state);
    server.wait_log("is not fit for a Pi: no program can become process 1");
    // Container images are taken by `piman image add` alone.
    let mut docker = Tar::new();
    docker.file(b"layer1/layer.tar", &system("").end());
    docker.file(b"manifest.json", br#"[{"Config":"c.json","Layers":["layer1/layer.tar"]}]"#);
    let mut oci = Tar::new();
    oci.file(b"oci-layout", b"{}").file(b"index.json", b"{}");
    for (name, tar, words) in [
        ("docker", docker, "a container image as `docker save` writes it"),
        ("oci", oci, "a container image (OCI layout)"),
    ] {
        fs::rename(lab.archive(name, &tar.end()), &archive).unwrap();
        server.wait_log(&format!("this is {words}, not a root filesystem: `piman image add` makes one"));
    }
    assert!(!server.log().contains("is good"), "{}", server.log());
    // Replaced by one that can.
    fs::rename(lab.archive("fit", &with("etc/x", b"y").end()), &archive).unwrap();
    server.wait_log("is good");
}
