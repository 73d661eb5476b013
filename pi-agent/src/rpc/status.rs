//! How the Pi is: what its kernel says.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::value::Data;
use crate::telemetry::machine::{self, Disk, Memory, Times};
use piman_core::install::receipt::Proof;

/// How long the CPU is watched.
const WATCH: Duration = Duration::from_millis(200);

/// CPU, memory and disk in percent of what there is, the number of processes, the temperature in
/// degrees Celsius, the uptime in seconds, the image; what is not known is left out.
pub(super) fn now(root: &Path) -> Data {
    let float = |x: Option<f64>| x.map(Data::Float);
    let processes = machine::processes(root).and_then(|n| i64::try_from(n).ok());
    let known = [
        ("cpu", float(cpu(root))),
        ("memory", float(Memory::now(root).and_then(Memory::percent))),
        ("disk", float(Disk::now(root).and_then(Disk::percent))),
        ("processes", processes.map(Data::Int)),
        ("temperature", float(machine::temperature(root))),
        ("uptime", float(machine::uptime(root))),
        ("image", image(root).map(Data::Str)),
    ];
    Data::Dict(known.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

fn cpu(root: &Path) -> Option<f64> {
    let before = Times::now(root)?;
    thread::sleep(WATCH);
    Some(Times::now(root)?.percent_since(before).unwrap_or(0.0))
}

fn image(root: &Path) -> Option<String> {
    let block = fs::read(root.join(piman_core::install::receipt::NAME)).ok()?;
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
