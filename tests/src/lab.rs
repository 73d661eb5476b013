//! A small root filesystem as an archive, what it must become, and the agent as a library that
//! installs it onto a small card.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pi_agent::cli::{self, Order};
use pi_agent::control::Machine;
use pi_agent::failure::Failure;
use pi_agent::install::{self, Outcome, Plan};
use pi_agent::telemetry::progress::Progress;
use piman_core::hash::Hash;
use piman_core::install::layout::{Layout, SECTOR};

use crate::binaries::piman;
use crate::disk::{Mounted, run};
use crate::proxy::{Faults, Tampering};
use crate::reader::assert_reads;
use crate::server::Server;
use crate::tree::{Tree, assert_same, installed};

/// The smallest card on which an installation is possible with [`layout`], in bytes.
pub const CARD: u64 = LAYOUT.root_start * SECTOR + ROOT;

/// The room for the root filesystem on it, in bytes.
pub const ROOT: u64 = 64 << 20;

/// Where the partitions lie on it.
pub const LAYOUT: Layout = Layout {
    disk_id: 0x1234_5678,
    boot_start: 2048,
    boot_sectors: 4096,
    root_start: 8192,
    ..Layout::DEFAULT
};

/// Small partitions.
#[must_use]
pub const fn layout() -> Layout {
    LAYOUT
}

/// An archive and what it must become.
#[derive(Debug)]
pub struct Root {
    /// The packed archive.
    pub archive: PathBuf,
    /// Its identity.
    pub id: Hash,
    /// What is in it, as GNU tar extracts it.
    pub want: Tree,
    folder: tempfile::TempDir,
}

impl Root {
    /// A root filesystem with some of everything, and `noise` bytes that no packer makes smaller.
    ///
    /// # Panics
    /// If it cannot be made, which needs root.
    #[must_use]
    pub fn new(name: &str, noise: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        for dir in ["bin", "etc/deep/er", "var/empty", "dev"] {
            fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        fs::write(root.join("etc/hostname"), name).expect("a file");
        for i in 0..60_usize {
            let text = format!("{name} {i}\n").repeat(i * 17);
            fs::write(root.join(format!("etc/deep/file-{i}")), text).expect("a file");
        }
        let mut bytes = vec![0; noise];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        fs::write(root.join("bin/noise"), &bytes).expect("a file");
        fs::hard_link(root.join("bin/noise"), root.join("bin/again")).expect("a link");
        symlink("deep/file-1", root.join("etc/link")).expect("a link");
        let archive = folder.path().join("root.tgz");
        let script = "mknod root/dev/null c 1 3; chown 7:8 root/etc/deep; chmod 4755 root/bin/noise
            touch -d '2020-01-01 00:00:00.5' root/etc/deep root/etc root
            tar --numeric-owner --format=pax -C root -cf - . | gzip -1 >root.tgz
            mkdir want && tar -C want --numeric-owner -xpf root.tgz";
        run(Command::new("bash").args(["-eo", "pipefail", "-c", script]).current_dir(folder.path()));
        let want = installed(&folder.path().join("want"));
        assert!(want.len() > 60);
        let id = Hash(*blake3::hash(&fs::read(&archive).expect("it was made")).as_bytes());
        Self { archive, id, want, folder }
    }

    /// A server that has it, for which this makes a state folder of its own.
    #[must_use]
    pub fn serve(&self, more: &[&str]) -> Server {
        let server = Server::start(&self.archive, &self.state(), more);
        server.wait_log("is good");
        server
    }

    /// The same as the image of a whole disk, in the state folder: one partition, where the layout of archives has its
    /// root filesystem.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn into_disk_image(mut self) -> Self {
        let folder = self.folder.path();
        let script =
            "truncate -s 32M part && mkfs.ext4 -q -b 4096 part && mkdir mnt && mount -o loop part mnt
            tar -C mnt --numeric-owner -xpf root.tgz && umount mnt
            truncate -s 36M root.img && echo 'start=8192, type=83' | sfdisk -q root.img
            dd if=part of=root.img bs=1M seek=4 conv=notrunc,sparse status=none";
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        run(Command::new("bash")
            .args(["-eo", "pipefail", "-c", script])
            .env("PATH", path)
            .current_dir(folder));
        let mut add = Command::new(piman());
        add.args(["image", "add", "--force", "--name", "disk", "--state"]).arg(self.state());
        let said = run(add.arg(folder.join("root.img"))).stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let id = said.split(' ').nth(2).and_then(Hash::parse);
        self.id = id.unwrap_or_else(|| panic!("it does not say what it is: {said}"));
        self
    }

    /// A server that has what was added to the state folder.
    #[must_use]
    pub fn serve_added(&self) -> Server {
        let mut serve = Command::new(piman());
        serve.args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"]);
        serve.arg(self.state()).args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
        let server = Server::start_by(&mut serve, &self.state());
        server.wait_log("is good");
        server
    }

    /// The state folder of its server.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Compares what another reader and then the kernel find on a card.
    ///
    /// # Panics
    /// If it is not exactly what the archive holds.
    pub fn assert_on(&self, card: &Path) {
        // Before the kernel, which changes it: the journal is replayed when it is mounted.
        assert_reads(card, LAYOUT.root_start * SECTOR, &self.want);
        let start = LAYOUT.root_start * SECTOR;
        let bytes = fs::metadata(card).expect("a card").len() - start;
        let mounted = Mounted::new(card, start, bytes, "noatime");
        assert_same(&installed(mounted.path()), &self.want);
    }
}

/// A root filesystem, a server that has it, and a folder for cards.
#[must_use]
pub fn with_server(name: &str, noise: usize) -> (Root, Server, tempfile::TempDir) {
    let root = Root::new(name, noise);
    let server = root.serve(&[]);
    (root, server, memory())
}

/// The plan to install a card from this server, by `stream` or `image`.
///
/// # Panics
/// If the agent does not take it.
#[must_use]
pub fn plan(server: &Server, card: &Path, path: &str) -> Plan {
    let (control, rootfs) = (server.port("control").to_string(), server.port("rootfs").to_string());
    let card = card.to_str().expect("text");
    // Cards of tests hold what is to be erased.
    let erase = "foreign,damaged,unreadable";
    const SERIAL: &str = "00000000cafe0004";
    let line = ["install", "--server", "127.0.0.1", "--serial", SERIAL, "--path", path];
    // It is one Pi, whatever card is in it.
    let key = server.device_key(SERIAL);
    let disk = ["--disk", card, "--erase", erase, "--device-key", key.to_str().expect("text")];
    let line = line.iter().chain(&disk);
    let ports = ["--control-port", &control, "--rootfs-port", &rootfs];
    let order = cli::parse(line.chain(&ports).map(OsString::from));
    let Ok(Order::Install(plan, ..)) = order else { panic!("{order:?}") };
    Plan { layout: LAYOUT, ..*plan }
}

/// The server's ports by another address of loopback, behind a proxy: the one for what is fetched has faults.
///
/// # Panics
/// If that address is taken.
#[must_use]
pub fn behind_a_proxy(server: &Server, host: &str, faults: Faults) -> Tampering {
    let at = |host: &str, name: &str| SocketAddr::new(host.parse().expect("an address"), server.port(name));
    let _ = Tampering::new(at(host, "control"), at("127.0.0.1", "control"), Faults::default());
    Tampering::new(at(host, "fetch"), at("127.0.0.1", "fetch"), faults)
}

/// A folder for cards, in memory where there is one: what is tried many times need not wait
/// for a disk.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// Asks once and does what is said; waits where that is said.
///
/// # Errors
/// The agent's.
pub fn attempt(plan: &Plan) -> Result<Outcome, Failure> {
    install::attempt(plan, &mut Machine::default(), &Arc::new(Progress::new()))
}
