//! What verification costs at most: the time of hashing every byte that is checked, alone on one
//! core, beside the time of the whole installation, in one run. And what it takes to find out
//! what an archive is (`piman image add`), beside `gzip -t`.
//!
//! Needs root for path A. The archive is `PIMAN_BENCH_ROOTFS`; without it, one of this machine's
//! /usr/bin. `PIMAN_BENCH_ROUNDS` says how often (5).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use piman_core::hosted::summing::{ChunkHasher, ChunkHashes};
use piman_tests::bench::median;
use piman_tests::binaries;
use piman_tests::server::Server;

fn main() {
    let setting = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let rounds: usize = setting("PIMAN_BENCH_ROUNDS").and_then(|s| s.parse().ok()).unwrap_or(5);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = setting("PIMAN_BENCH_ROOTFS").map_or_else(|| make(folder.path()), PathBuf::from);
    let bytes = fs::read(&archive).expect("the archive");
    let server = Server::start(&archive, &folder.path().join("state"), &[]);
    server.wait_log("is good");
    println!("archive: {} MB; {rounds} rounds; medians", bytes.len() / 1_000_000);
    println!("| path | installation, s | hashing alone, s | at most, as a ratio of the rest |");
    println!("|---|---|---|---|");
    for path in ["archive", "image"] {
        let installs = (0..=rounds).map(|_| install(&server, folder.path(), path)).skip(1).collect();
        let hashes = (0..=rounds).map(|_| hash(&bytes)).skip(1).collect();
        let (install, hash) = (median(installs), median(hashes));
        println!("| {path} | {install:.3} | {hash:.3} | {:.3} |", install / (install - hash));
    }
    let adds = (0..=rounds).map(|n| add(&archive, &folder.path().join(n.to_string()))).skip(1).collect();
    let gzips = (0..rounds).map(|_| timed(Command::new("gzip").arg("-t").arg(&archive))).collect();
    let (add, gzip, size) = (median(adds), median(gzips), bytes.len() as f64 / 1e9);
    println!();
    println!("`piman image add`: {add:.2} s, {:.1} s per GB; {:.2} of `gzip -t`", add / size, add / gzip);
}

fn timed(command: &mut Command) -> f64 {
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|s| s.success()), "{command:?}");
    began.elapsed().as_secs_f64()
}

fn add(archive: &Path, state: &Path) -> f64 {
    timed(
        Command::new(binaries::piman()).args(["image", "add", "--force", "--state"]).arg(state).arg(archive),
    )
}

fn make(folder: &Path) -> PathBuf {
    let archive = folder.join("rootfs.tgz");
    let mut bash = Command::new("bash");
    bash.args(["-c", "tar -C / -c usr/bin | gzip -1 >rootfs.tgz"]).current_dir(folder);
    assert!(bash.status().expect("bash").success());
    archive
}

fn install(server: &Server, folder: &Path, path: &str) -> f64 {
    let card = folder.join("card.img");
    let _ = fs::remove_file(&card);
    let mut agent = server.agent(&card, "bench");
    agent.args(["--size", "4G", "--path", path]);
    timed(&mut agent)
}

/// As path A hashes; path B hashes about as many bytes, as they are stored.
fn hash(archive: &[u8]) -> f64 {
    let mut summing = ChunkHasher::new();
    summing.update(archive);
    let (id, table) = summing.finish();
    let sums = ChunkHashes::parse(id, archive.len() as u64, &table).expect("they are its own");
    let began = Instant::now();
    assert!((0..).zip(archive.chunks(1 << 20)).all(|(i, chunk)| sums.is(i, chunk)));
    began.elapsed().as_secs_f64()
}
