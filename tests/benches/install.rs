//! The installation against the old way and bsdtar, in one run: time, memory, bytes written.
//!
//! Needs root (loop devices, mounts), GNU tar, nc, e2fsprogs; bsdtar if it is there. The
//! archive is `PIMAN_BENCH_ROOTFS`, or one made of this machine's /usr. `PIMAN_BENCH_ROUNDS`
//! says how often (3), and `TMPDIR` where the disk is kept (`/dev/shm`: a disk in memory). With `PIMAN_BENCH_SLOW=1` also on a disk limited to 30 MB/s, where
//! the kernel has the blkio controller.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use piman_tests::bench::median;
use piman_tests::disk::{LoopDevice, is_root};
use piman_tests::running::memory_kb;
use piman_tests::server::Server;

const DISK: u64 = 8 << 30;
const SLOW_BYTES_PER_SECOND: u64 = 30 << 20;

fn main() {
    if !is_root() {
        println!("ignored, needs root");
        return;
    }
    let rounds: usize = setting("PIMAN_BENCH_ROUNDS").and_then(|s| s.parse().ok()).unwrap_or(3);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = setting("PIMAN_BENCH_ROOTFS").map_or_else(|| make_archive(folder.path()), PathBuf::from);
    let server = Server::start(&archive, &folder.path().join("state"), &[]);
    let disk = LoopDisk::new(folder.path());
    println!(
        "archive: {} MB, {} MB unpacked; disk: a loop device of {} GiB; {rounds} rounds in turn",
        fs::metadata(&archive).expect("the archive is there").len() / 1_000_000,
        unpacked(&archive) / 1_000_000,
        DISK >> 30
    );
    table(&server, &disk, folder.path(), rounds, "fast disk");
    first_pi(&archive, &disk, folder.path(), rounds);
    if setting("PIMAN_BENCH_SLOW").is_some() {
        match disk.limit(SLOW_BYTES_PER_SECOND) {
            Ok(()) => {
                table(&server, &disk, folder.path(), 1, "disk limited to 30 MiB/s");
                disk.limit(0).expect("the limit was set, so it can be taken away");
            }
            Err(e) => println!("slow disk: skipped, no blkio limits here ({e})"),
        }
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Old,
    Bsdtar,
    Archive,
    Image,
    ImageAgain,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Old => "mkfs.ext4; nc | gunzip | tar -x; sync",
            Self::Bsdtar => "mkfs.ext4; nc | bsdtar -x; sync",
            Self::Archive => "pi-agent --path archive (A)",
            Self::Image => "pi-agent --path image (B)",
            Self::ImageAgain => "the same image again (B)",
        }
    }
}

#[derive(Default, Clone)]
struct Figures {
    seconds: Vec<f64>,
    written: Vec<f64>,
    requests: Vec<f64>,
    memory_kb: u64,
}

fn table(server: &Server, disk: &LoopDisk, folder: &Path, rounds: usize, title: &str) {
    let mut ways = vec![Way::Old, Way::Archive, Way::Image, Way::ImageAgain];
    if Command::new("bsdtar").arg("--version").stdout(Stdio::null()).status().is_ok() {
        ways.insert(1, Way::Bsdtar);
    }
    let mut figures: BTreeMap<Way, Figures> = BTreeMap::new();
    // One round more than is counted: the first warms the caches of the server's files.
    let warm_up = usize::from(rounds > 1);
    for round in 0..rounds + warm_up {
        for way in &ways {
            if *way == Way::Image {
                // Nothing that an earlier round left is to be found on the card again.
                disk.wipe();
            }
            // Nor is anything still to be written of what came before.
            rustix::fs::sync();
            let (began, before) = (Instant::now(), disk.written());
            let memory = match way {
                Way::Old => old(server, disk, folder, "gunzip | tar -x --numeric-owner -p"),
                Way::Bsdtar => old(server, disk, folder, "bsdtar -x --numeric-owner -p -f -"),
                Way::Archive => agent(server, disk, "archive"),
                Way::Image | Way::ImageAgain => agent(server, disk, "image"),
            };
            let seconds = began.elapsed().as_secs_f64();
            let after = disk.written();
            if round < warm_up {
                continue;
            }
            let f = figures.entry(*way).or_default();
            f.seconds.push(seconds);
            f.requests.push((after.0 - before.0) as f64);
            f.written.push((after.1 - before.1) as f64);
            f.memory_kb = f.memory_kb.max(memory);
        }
    }
    println!("\n{title}: medians\n");
    println!("| way | s | ratio | MB written | requests | KB per request | agent's memory, MB |");
    println!("|---|---|---|---|---|---|---|");
    let base = median(figures[&Way::Old].seconds.clone());
    for (way, f) in figures {
        let (s, written, requests) = (median(f.seconds), median(f.written), median(f.requests));
        println!(
            "| {} | {s:.2} | {:.3} | {:.0} | {requests} | {:.0} | {} |",
            way.name(),
            s / base,
            written / 1e6,
            written / requests / 1024.0,
            if f.memory_kb == 0 { "–".into() } else { (f.memory_kb / 1000).to_string() }
        );
    }
}

/// A new archive: how long its image takes, by the tools of others and by the server, and how long the first Pi takes
/// that begins while it is made.
fn first_pi(archive: &Path, disk: &LoopDisk, folder: &Path, rounds: usize) {
    let (tree, image) = (folder.join("tree"), folder.join("tree.img"));
    let [mut tools, mut made, mut later, mut first] = [const { Vec::new() }; 4];
    let mut memory = 0;
    for round in 0..rounds {
        let began = Instant::now();
        shell(&format!(
            "set -e; rm -rf {t} {i}; mkdir {t}; gunzip -c {a} | tar -x --numeric-owner -p -C {t}; \
             truncate -s 6G {i}; mke2fs -q -t ext4 -d {t} {i}; sync -f {i}",
            t = tree.display(),
            i = image.display(),
            a = archive.display()
        ));
        tools.push(began.elapsed().as_secs_f64());
        let server = |name: &str| {
            let state = folder.join(format!("state-{name}-{round}"));
            let server = Server::start(archive, &state, &[]);
            server.wait_log("is good");
            (server, Instant::now())
        };
        disk.wipe();
        rustix::fs::sync();
        let (alone, began) = server("alone");
        alone.wait_log("is ready");
        made.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        agent(&alone, disk, "image");
        later.push(began.elapsed().as_secs_f64());
        memory = memory.max(alone.memory_kb("VmHWM"));
        drop(alone);
        disk.wipe();
        rustix::fs::sync();
        let (with_pi, began) = server("with-pi");
        agent(&with_pi, disk, "image");
        first.push(began.elapsed().as_secs_f64());
    }
    let [tools, made, later, first] = [tools, made, later, first].map(median);
    println!("\na new archive: medians\n\n| what | s | ratio |\n|---|---|---|");
    println!("| `gunzip \\| tar -x; mke2fs -d` | {tools:.2} | 1.000 |");
    println!(
        "| the server makes its image (at most {} MB of memory) | {made:.2} | {:.3} |",
        memory / 1000,
        made / tools
    );
    println!("| a later Pi | {later:.2} | |");
    println!(
        "| the first Pi, which begins meanwhile | {first:.2} | {:.2} of the longer of the two |",
        first / made.max(later)
    );
}

/// The old script's way, on a filesystem over the whole disk.
fn old(server: &Server, disk: &LoopDisk, folder: &Path, extract: &str) -> u64 {
    let place = folder.join("mnt");
    fs::create_dir_all(&place).expect("a folder to mount at");
    let (device, place) = (disk.0.path().display(), place.display());
    shell(&format!(
        "set -e; mkfs.ext4 -q -F -E nodiscard {device}; mount {device} {place}; \
         trap 'umount {place}' EXIT; cd {place}; nc -d 127.0.0.1 {} | {extract}; cd /; sync -f {place}; ",
        server.port("rootfs")
    ));
    0
}

/// Returns the agent's peak memory, in KB.
fn agent(server: &Server, disk: &LoopDisk, path: &str) -> u64 {
    let mut agent = server
        .agent(disk.0.path(), "bench")
        .args(["--reinstall", "--yes", "--path", path])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    let mut memory = 0;
    loop {
        memory = memory_kb(agent.id(), "VmHWM").unwrap_or(memory);
        match agent.try_wait().expect("the agent is our child") {
            Some(status) => {
                assert!(status.success(), "the agent failed by path {path}");
                return memory;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn shell(script: &str) {
    let status = Command::new("bash").args(["-o", "pipefail", "-c", script]).status().expect("bash is there");
    assert!(status.success(), "failed: {script}");
}

fn make_archive(folder: &Path) -> PathBuf {
    let archive = folder.join("rootfs.tgz");
    println!("making an archive of this machine's /usr");
    shell(&format!(
        "cd / && tar --numeric-owner --warning=none --exclude='*.rlib' -c usr/bin usr/sbin usr/lib/python3* \
         usr/lib/x86_64-linux-gnu usr/lib/gcc usr/include usr/share etc 2>/dev/null | gzip -6 > {}",
        archive.display()
    ));
    archive
}

fn unpacked(archive: &Path) -> u64 {
    let out = Command::new("bash").args(["-c", &format!("gunzip -c {} | wc -c", archive.display())]).output();
    String::from_utf8_lossy(&out.expect("gunzip is there").stdout).trim().parse().expect("wc prints a number")
}

/// A loop device of a file whose blocks are all there.
struct LoopDisk(LoopDevice);

impl LoopDisk {
    fn new(folder: &Path) -> Self {
        let path = folder.join("disk.img");
        let file = File::create(&path).expect("a file for the disk");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, DISK)
            .expect("room for the disk");
        Self(LoopDevice::of(&path))
    }

    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/block").join(self.0.path().file_name().expect("a device has a name"))
    }

    /// Makes zeros of where images lie.
    fn wipe(&self) {
        let to = self.0.path().display();
        shell(&format!("dd if=/dev/zero of={to} bs=1M count=1024 conv=fsync status=none"));
    }

    /// Requests and bytes written so far.
    fn written(&self) -> (u64, u64) {
        let stat = fs::read_to_string(self.sysfs().join("stat")).expect("the kernel counts");
        let fields: Vec<u64> = stat.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        (fields[4], fields[6] * 512)
    }

    /// Limits writes; 0 takes the limit away.
    fn limit(&self, bytes_per_second: u64) -> std::io::Result<()> {
        let number = fs::read_to_string(self.sysfs().join("dev"))?;
        let rule = format!("{} {bytes_per_second}", number.trim());
        fs::write("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device", rule)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // A limit would stay for the next device of this number, also after a panic.
        let _ = self.limit(0);
    }
}
