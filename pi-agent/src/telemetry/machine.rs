//! How this machine is, as its kernel says below a root folder: CPU, memory, disk, temperature, processes.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

/// What all CPUs together have spent since the machine began, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    busy: u64,
    all: u64,
}

impl Times {
    /// Up to now.
    #[must_use]
    pub fn now(root: &Path) -> Option<Self> {
        Self::parse(&read(root, "proc/stat")?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        // Guests are counted in the first two already.
        let times: Vec<u64> = line.split_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
        let all: u64 = times.iter().sum();
        // Idle, and idle since a disk is waited for.
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Some(Self { busy: all.checked_sub(idle)?, all })
    }

    /// How busy they were since, in per cent; `None` if no tick has passed.
    #[must_use]
    pub fn percent_since(self, before: Self) -> Option<f64> {
        let (busy, all) = (self.busy.saturating_sub(before.busy), self.all.saturating_sub(before.all));
        (all > 0).then(|| 100.0 * busy as f64 / all as f64)
    }
}

/// Memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What programs and the kernel could not give back.
    pub used_kib: u64,
    /// All there is.
    pub total_kib: u64,
}

impl Memory {
    /// As it is now.
    #[must_use]
    pub fn now(root: &Path) -> Option<Self> {
        Self::parse(&read(root, "proc/meminfo")?)
    }

    fn parse(meminfo: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            meminfo.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
        };
        let (total_kib, available) = (field("MemTotal:")?, field("MemAvailable:")?);
        Some(Self { used_kib: total_kib.saturating_sub(available), total_kib })
    }

    /// How much of it is used.
    #[must_use]
    pub fn percent(self) -> Option<f64> {
        (self.total_kib > 0).then(|| 100.0 * self.used_kib as f64 / self.total_kib as f64)
    }
}

/// The filesystem of the root folder, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What files take.
    pub used_kib: u64,
    /// What they can take yet; some of the rest is for the superuser alone.
    pub available_kib: u64,
    /// All there is.
    pub total_kib: u64,
}

impl Disk {
    /// As it is now.
    #[must_use]
    pub fn now(root: &Path) -> Option<Self> {
        let disk = statvfs(root).ok()?;
        let kib = |blocks: u64| blocks.saturating_mul(disk.f_frsize) / 1024;
        Some(Self {
            used_kib: kib(disk.f_blocks.saturating_sub(disk.f_bfree)),
            available_kib: kib(disk.f_bavail),
            total_kib: kib(disk.f_blocks),
        })
    }

    /// How much is used of what files can take, as `df` has it.
    #[must_use]
    pub fn percent(self) -> Option<f64> {
        let usable = self.used_kib.saturating_add(self.available_kib);
        (usable > 0).then(|| 100.0 * self.used_kib as f64 / usable as f64)
    }
}

/// How warm it is, in degrees Celsius.
#[must_use]
pub fn temperature(root: &Path) -> Option<f64> {
    Some(first_number(root, "sys/class/thermal/thermal_zone0/temp")? / 1000.0)
}

/// How many processes there are.
#[must_use]
pub fn processes(root: &Path) -> Option<usize> {
    let entries = fs::read_dir(root.join("proc")).ok()?.flatten();
    Some(entries.filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)).count())
}

/// How long it has run, in seconds.
#[must_use]
pub fn uptime(root: &Path) -> Option<f64> {
    first_number(root, "proc/uptime")
}

fn first_number(root: &Path, name: &str) -> Option<f64> {
    let text = read(root, name)?;
    let text = text.split_whitespace().next()?;
    let (sign, text) = text.strip_prefix('-').map_or((1.0, text), |text| (-1.0, text));
    let (whole, nanos) = decimal(text)?;
    Some(sign * (whole as f64 + f64::from(nanos) / 1e9))
}

/// Reads a number with a fraction, as `0.25`: the whole, and billionths; what is below them is cut off. What std has for
/// such numbers is 16 KB of code.
pub(crate) fn decimal(text: &str) -> Option<(u64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    Some((whole.parse().ok()?, nanos.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'))))
}

fn read(root: &Path, name: &str) -> Option<String> {
    fs::read_to_string(root.join(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let times = |stat| Times::parse(stat).unwrap();
        let first = times("cpu  10 0 10 60 20 0 0 0 0 0\n");
        let second = times("cpu  20 0 10 60 20 0 0 0 0 0\n");
        assert_eq!(first.percent_since(Times::default()), Some(20.0));
        assert_eq!((second.percent_since(first), second.percent_since(second)), (Some(100.0), None));
        assert_eq!(Times::parse(""), None);
        let memory = Memory::parse("MemTotal: 100 kB\nMemAvailable: 30 kB\n").unwrap();
        assert_eq!((memory.used_kib, memory.total_kib, memory.percent()), (70, 100, Some(70.0)));
        assert_eq!(Memory::parse("MemTotal: x\n"), None);
        let disk = Disk { used_kib: 30, available_kib: 60, total_kib: 100 };
        assert!(disk.percent().is_some_and(|p| (33.3..33.4).contains(&p)));
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            (temperature(root.path()), processes(root.path()), uptime(root.path())),
            (None, None, None)
        );
        let zone = root.path().join("sys/class/thermal/thermal_zone0");
        fs::create_dir_all(&zone).unwrap();
        fs::write(zone.join("temp"), "45250\n").unwrap();
        assert_eq!(temperature(root.path()), Some(45.25));
    }
}
