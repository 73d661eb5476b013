//! How the Pi is: what its kernel says.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::statvfs;

use super::functions::Data;
use crate::proof::{self, Proof};

/// How long the CPU is watched.
const WATCH: Duration = Duration::from_millis(200);

/// CPU, memory and disk in percent of what there is, the number of processes, the temperature in
/// degrees Celsius, the uptime in seconds, the image; what is not known is left out.
pub(super) fn now(root: &Path) -> Data {
    let proc = root.join("proc");
    let float = |x: Option<f64>| x.map(Data::Float);
    let known = [
        ("cpu", float(cpu(&proc.join("stat")))),
        ("memory", float(memory(&proc.join("meminfo")))),
        ("disk", float(disk(root))),
        ("processes", processes(&proc).map(Data::Int)),
        ("temperature", float(temperature(root))),
        ("uptime", float(first_number(&proc.join("uptime")))),
        ("image", image(root).map(Data::Str)),
    ];
    Data::Dict(known.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

fn cpu(stat: &Path) -> Option<f64> {
    let before = times(stat)?;
    thread::sleep(WATCH);
    let after = times(stat)?;
    let (idle, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    if all == 0 { Some(0.0) } else { Some(100.0 * (1.0 - idle as f64 / all as f64)) }
}

/// Of all CPUs: the time that was idle or waited for a disk, and all time.
fn times(stat: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(stat).ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    // Guests are counted in the first two already.
    let all: Vec<u64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    Some((all.iter().skip(3).take(2).sum(), all.iter().sum()))
}

fn memory(meminfo: &Path) -> Option<f64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let of = |key: &str| -> Option<f64> {
        text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    let (total, free) = (of("MemTotal:")?, of("MemAvailable:")?);
    (total > 0.0).then(|| 100.0 * (1.0 - free / total))
}

fn disk(root: &Path) -> Option<f64> {
    let disk = statvfs(root).ok()?;
    let usable = disk.f_blocks.checked_sub(disk.f_bfree)? + disk.f_bavail;
    (usable > 0).then(|| 100.0 * (1.0 - disk.f_bavail as f64 / usable as f64))
}

fn processes(proc: &Path) -> Option<i64> {
    let count = fs::read_dir(proc)
        .ok()?
        .flatten()
        .filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .count();
    i64::try_from(count).ok()
}

fn temperature(root: &Path) -> Option<f64> {
    Some(first_number(&root.join("sys/class/thermal/thermal_zone0/temp"))? / 1000.0)
}

fn first_number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn image(root: &Path) -> Option<String> {
    let block = fs::read(root.join(proof::NAME)).ok()?;
    Some(Proof::parse(&block)?.image.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_status() {
        let Data::Dict(known) = now(Path::new("/")) else { panic!("no dictionary") };
        let of = |key: &str| known.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
        for key in ["cpu", "memory", "disk"] {
            assert!(
                matches!(of(key), Some(Data::Float(x)) if (0.0..=100.0).contains(&x)),
                "{key}: {:?}",
                of(key)
            );
        }
        assert!(matches!(of("processes"), Some(Data::Int(n)) if n > 0));
        assert!(matches!(of("uptime"), Some(Data::Float(x)) if x > 0.0));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal: 1000 kB\nMemAvailable: 250 kB\n").unwrap();
        let Data::Dict(known) = now(root.path()) else { panic!("no dictionary") };
        let keys: Vec<_> = known.iter().map(|(k, _)| *k).collect();
        assert_eq!(keys, ["memory", "disk", "processes"]);
        assert_eq!(known[0].1, Data::Float(75.0));
    }
}
