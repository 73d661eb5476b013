//! `piman doctor`: whether a server with these options would work, and what to do if not.

mod http_boot;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rustix::process::{Resource, getrlimit};

use crate::config::{Options, Settings, check, state_folder};
use crate::images::boot_from::boot_of;
use crate::images::disk_image;
use crate::images::fitness::{Finding, Fitness, Severity};
use crate::images::sign;
use crate::images::source::{Inspected, inspect};
use crate::net::listen;
use crate::netboot::build::lint::{self, Weight};
use crate::netboot::dhcp::server::{self as dhcp_server, interfaces};
use crate::netboot::{self, dhcp, kernel};
use crate::provision::server_key;
use crate::rpc;
use crate::state::server_lock::ServerLock;
use crate::state::{self, Registered, Sqlite, State as _, StateError};
use crate::sys::clock::now_ms;
use crate::text::human::when_utc;

/// How long to wait for DHCP servers to answer.
const DHCP_WAIT: Duration = Duration::from_secs(3);
/// Files that must be allowed to be open: a few connections for each of a hundred Pis.
const FILES_MIN: u64 = 1024;
/// With less free space a database or a file that comes fails before long.
const SPACE_MIN: u64 = 64 << 20;
/// No clock that is right shows a moment before this: 2026-01-01.
const CLOCK_MIN_MS: u64 = 1_767_225_600_000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, perhaps not for everyone.
    Warning,
    /// It does not work.
    Bad,
}

/// What was found of everything.
#[derive(Debug, Default)]
pub struct Checkup(Vec<(Health, &'static str, String)>);

impl Checkup {
    fn note(&mut self, health: Health, what: &'static str, text: impl Into<String>) {
        self.0.push((health, what, text.into()));
    }

    fn result(&mut self, what: &'static str, result: anyhow::Result<String>) {
        match result {
            Ok(text) => self.note(Health::Good, what, text),
            Err(e) => self.note(Health::Bad, what, format!("{e:#}")),
        }
    }

    /// Everything, a line each.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (health, what, found) in &self.0 {
            let mark = match health {
                Health::Good => "good",
                Health::Warning => "warning",
                Health::Bad => "bad",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{mark:8} {what:12} {found}");
        }
        text
    }

    /// # Errors
    /// If something is bad.
    pub fn verdict(&self) -> anyhow::Result<()> {
        match self.0.iter().filter(|(health, ..)| *health == Health::Bad).count() {
            0 => Ok(()),
            1 => bail!("one thing is to be put right before Pis can be installed"),
            n => bail!("{n} things are to be put right before Pis can be installed"),
        }
    }
}

/// Looks at everything that a server with these options needs. Ports are opened and closed again,
/// and other DHCP servers are asked for on the interface named; nothing else is touched.
#[must_use]
pub fn examine(options: Options) -> Checkup {
    let mut checkup = Checkup::default();
    let folder_name = options.state.clone().unwrap_or_else(state_folder);
    if let Err(e @ StateError::Served { .. }) = ServerLock::on(&folder_name) {
        checkup.note(Health::Bad, "state", e.to_string());
    }
    let preview = state::preview(&folder_name);
    for text in check::contradictions(&options, preview.as_ref().ok()) {
        checkup.note(Health::Bad, "options", text);
    }
    let settings = match Settings::try_from(options) {
        Ok(settings) if checkup.0.iter().all(|(_, what, _)| *what != "options") => settings,
        // It is noted already.
        Ok(_) | Err(_) => return checkup,
    };
    let mut systems = match images(&settings.state) {
        Ok(systems) => systems,
        Err(StateError::Missing { .. }) => Vec::new(),
        Err(e) => {
            checkup.note(Health::Bad, "state", e.to_string());
            Vec::new()
        }
    };
    let install = settings.rootfs.is_some() || !systems.is_empty();
    match &settings.rootfs {
        Some(path) => {
            let fitness = archive(&mut checkup, path);
            systems.extend(fitness.map(|fitness| {
                let findings = fitness.findings_for(fitness.system.boot.from(), false).cloned().collect();
                (path.display().to_string(), settings.allow_unfit, Fitness { findings, ..fitness })
            }));
        }
        None if install => {
            checkup.note(Health::Good, "archive", "the images of `piman image list` are installed");
        }
        None => checkup.note(Health::Warning, "archive", "--rootfs is not given: nothing is installed"),
    }
    ports(&mut checkup, &settings, install);
    certificate(&mut checkup, &settings.state);
    network(&mut checkup);
    folder(&mut checkup, &settings);
    fitness(
        &mut checkup,
        &systems,
        settings.netboot.as_ref().map(|n| n.folder.as_path()).filter(|f| f.is_dir()),
    );
    if let Some(netboot) = &settings.netboot {
        boot(&mut checkup, netboot, settings.listen);
    } else {
        let text = "--netboot is not given: something else must send Pis their kernel and initramfs";
        checkup.note(Health::Warning, "boot folder", text);
    }
    let made = settings.rootfs.as_ref().and_then(|p| fs::metadata(p).ok()?.modified().ok());
    system(&mut checkup, made);
    checkup
}

/// A system that Pis get: its name, whether it is taken although it is unfit, and what is known of it.
type System = (String, bool, Fitness);

/// Whether Pis with a public key obey this server. Without signed images there are none, as far as can be seen.
fn certificate(checkup: &mut Checkup, state: &Path) {
    const WHAT: &str = "certificate";
    let key = match server_key::read(state) {
        Ok(key) => key,
        Err(e) => return checkup.note(Health::Bad, WHAT, format!("{e:#}")),
    };
    let Some(certificate) = key.as_ref().and_then(|key| key.certificate()) else {
        if sign::has_manifests(state) {
            let text = "images are signed, and this server has no certificate: Pis with a public key do not obey it; \
                        `piman key certify` makes one";
            checkup.note(Health::Warning, WHAT, text);
        }
        return;
    };
    let until = when_utc(certificate.until);
    let left = certificate.until.saturating_sub(now_ms() / 1000);
    match left {
        0 => checkup.note(
            Health::Bad,
            WHAT,
            format!("it has expired ({until}): `piman key certify` makes another"),
        ),
        _ if left < server_key::SOON => {
            checkup.note(
                Health::Warning,
                WHAT,
                format!("it ends on {until}: `piman key certify` makes another"),
            );
        }
        _ => checkup.note(Health::Good, WHAT, format!("this server may order until {until}")),
    }
}

/// The images of the catalogue. What is not known of one yet, the server finds out when it starts.
fn images(state: &Path) -> Result<Vec<System>, StateError> {
    let state = Sqlite::command(state)?;
    let known = |image: Registered| {
        let fitness = match state.known(&image.path)? {
            Some((_, content)) => {
                let from = boot_of(&content, &image.about).0;
                let findings = content.fitness.findings_for(from, content.is_disk()).cloned().collect();
                Fitness { findings, ..content.fitness }
            }
            None => Fitness::default(),
        };
        Ok((image.name, image.takes_unfit, fitness))
    };
    state.catalogue()?.images.into_iter().map(known).collect()
}

/// Reads the whole archive, as a Pi would.
fn archive(checkup: &mut Checkup, path: &Path) -> Option<Fitness> {
    let name = path.display();
    let read = || {
        let file = File::open(path)
            .with_context(|| format!("opening {name}: is the path right, and may this user read it?"))?;
        let bytes = file.metadata().with_context(|| format!("looking at {name}"))?.len();
        let mut head = [0; 2048];
        let length = file.read_at(&mut head, 0).with_context(|| format!("reading {name}"))?;
        if disk_image::begins(head.get(..length).unwrap_or_default()) {
            bail!("{name} is an image of a disk, which --rootfs does not take: `piman image add {name}`");
        }
        let found = inspect(BufReader::with_capacity(1 << 20, file)).with_context(|| {
            format!("{name} is no whole archive that could be installed: make it again with `tar -czf`")
        })?;
        anyhow::Ok((found, bytes))
    };
    match read() {
        Ok((Inspected { fitness, entries, .. }, bytes)) => {
            checkup.note(
                Health::Good,
                "archive",
                format!("{name}: {entries} entries in {bytes} bytes, read to its end"),
            );
            Some(fitness)
        }
        Err(e) => {
            checkup.note(Health::Bad, "archive", format!("{e:#}"));
            None
        }
    }
}

/// What is wrong with the systems, and whether they have modules for the kernels that Pis get from the network.
fn fitness(checkup: &mut Checkup, systems: &[System], folder: Option<&Path>) {
    for (name, takes_unfit, fitness) in systems {
        for Finding { severity, text, .. } in &fitness.findings {
            let health = match severity {
                Severity::Unfit if !takes_unfit => Health::Bad,
                _ => Health::Warning,
            };
            checkup.note(health, "system", format!("{name}: {text}"));
        }
    }
    let Some(folder) = folder else { return };
    let kernels = match kernel::releases(folder) {
        Ok(kernels) => kernels,
        Err(e) => {
            return checkup.note(Health::Bad, "boot folder", format!("reading {}: {e}", folder.display()));
        }
    };
    for (name, _, Fitness { kernels: modules, .. }) in systems.iter().filter(|(.., f)| !f.kernels.is_empty())
    {
        for (file, release) in kernels.iter().filter(|(_, release)| !modules.contains(release)) {
            let text = format!(
                "{name} has modules for {}, and not for {release}, which {file} of the boot folder is: a Pi that \
                 boots it may be without network or file systems; take the kernel of the image",
                modules.join(", ")
            );
            checkup.note(Health::Warning, "system", text);
        }
    }
}

/// The ports of all services that are asked for, and what these need besides.
fn ports(checkup: &mut Checkup, settings: &Settings, install: bool) {
    let of_install = [
        (settings.control_port, "--control-port"),
        (settings.rootfs_port, "--rootfs-port"),
        (settings.fetch_port, "--fetch-port"),
    ];
    let mut ports: Vec<_> = of_install.into_iter().filter(|_| install).collect();
    ports.extend(settings.rpc_port.map(|port| (port, "--rpc-port")));
    ports.extend(settings.transfer.as_ref().map(|t| (t.port, "--transfer-port")));
    ports.extend(settings.telemetry.as_ref().map(|s| (s.port, "--telemetry-port")));
    let mut ports: Vec<_> = ports.into_iter().map(|(port, flag)| (settings.listen, port, flag)).collect();
    let channels = settings.messages.iter().flat_map(|m| &m.channels);
    ports.extend(channels.flat_map(|c| &c.at).map(|(address, flag)| (address.ip(), address.port(), *flag)));
    for (ip, port, flag) in ports {
        let free = listen::bind(ip, port, flag);
        checkup.result("port", free.map(|_| format!("TCP {port} is free ({flag})")));
    }
    if let Some(file) = &settings.rpc_password_file {
        let read = rpc::Secret::read(file);
        checkup.result("password", read.map(|_| format!("{} has one", file.display())));
    }
    let folders = [
        settings.transfer.as_ref().map(|t| (&t.folder, "--transfer-dir")),
        settings.telemetry.as_ref().map(|s| (&s.folder, "--telemetry-dir")),
    ];
    for (path, flag) in folders.into_iter().flatten() {
        let name = path.display();
        match (writable(path), free_bytes(path)) {
            (Err(e), _) => {
                let text = format!(
                    "{name} cannot be written ({e}): make it writable for this user, or name another with {flag}"
                );
                checkup.note(Health::Bad, "folder", text);
            }
            (Ok(()), Ok(free)) if free < SPACE_MIN => {
                let text = format!(
                    "{name} has {} MB free: make room, or name another with {flag}",
                    free / 1_000_000
                );
                checkup.note(Health::Warning, "folder", text);
            }
            (Ok(()), _) => checkup.note(Health::Good, "folder", format!("{name}: writable ({flag})")),
        }
    }
}

/// What is made is made by the server; here only what is there is looked at.
fn there(path: &Path) -> &Path {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("."))
}

fn writable(path: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(there(path)).map(drop)
}

fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let at = rustix::fs::statvfs(there(path))?;
    Ok(at.f_bavail.saturating_mul(at.f_frsize))
}

fn network(checkup: &mut Checkup) {
    let addresses = match interfaces() {
        Ok(all) => all,
        Err(e) => return checkup.note(Health::Bad, "network", format!("the interfaces are not known: {e}")),
    };
    let v4: Vec<String> =
        addresses.iter().filter(|(_, ip)| ip.is_ipv4()).map(|(name, ip)| format!("{name} {ip}")).collect();
    match v4.is_empty() {
        true => checkup.note(
            Health::Warning,
            "network",
            "no interface has an IPv4 address, so no Pi can connect: `ip address add 192.168.77.1/24 dev NAME` gives it one",
        ),
        false => checkup.note(Health::Good, "network", v4.join(", ")),
    }
}

/// Whether the state can be written, and whether there is room for the images that are built.
fn folder(checkup: &mut Checkup, settings: &Settings) {
    let state = &settings.state;
    let name = state.display();
    if let Err(e) = writable(state) {
        let text = format!(
            "{name} cannot be written ({e}): make it writable for this user, or name another with --state"
        );
        return checkup.note(Health::Bad, "state", text);
    }
    let needs =
        settings.rootfs.as_ref().and_then(|p| fs::metadata(p).ok()).map_or(0, |m| m.len()).saturating_mul(2);
    match free_bytes(state) {
        Ok(free) => {
            let mb = |n: u64| n / 1_000_000;
            if settings.images && free < needs {
                let text = format!(
                    "{name} has {} MB free, and an image of this archive needs up to {} MB: make room, or turn images off with --no-images",
                    mb(free),
                    mb(needs)
                );
                return checkup.note(Health::Warning, "state", text);
            }
            if free < SPACE_MIN {
                let text =
                    format!("{name} has {} MB free: make room, or name another with --state", mb(free));
                return checkup.note(Health::Warning, "state", text);
            }
            checkup.note(Health::Good, "state", format!("{name}: writable, {} MB free", mb(free)));
        }
        Err(e) => {
            checkup.note(Health::Warning, "state", format!("how much is free in {name} is not known: {e}"))
        }
    }
}

fn boot(checkup: &mut Checkup, settings: &netboot::Settings, ip: IpAddr) {
    let free = netboot::bind(ip, settings.tftp_port);
    checkup.result("port", free.map(|_| format!("UDP {} is free (--tftp-port)", settings.tftp_port)));
    let findings = lint::folder(&settings.folder);
    if findings.is_empty() {
        checkup.note(Health::Good, "boot folder", format!("{}: complete", settings.folder.display()));
    }
    for finding in findings {
        let health = match finding.weight {
            Weight::Warning => Health::Warning,
            Weight::Error => Health::Bad,
        };
        checkup.note(health, "boot folder", finding.text);
    }
    http_boot::examine(checkup, settings, ip);
    server_of(checkup, &settings.folder);
    let Some(dhcp) = &settings.dhcp else {
        let text = "--dhcp is not given: another DHCP server must send Pis here (next server and option 43)";
        return checkup.note(Health::Warning, "dhcp", text);
    };
    // With its ports open, nothing else can take them meanwhile; closed before others are asked for.
    checkup.result("dhcp", dhcp::Dhcp::open(dhcp.clone()).map(|d| format!("can be answered: {}", d.place())));
    if let Some(text) = dhcp_server::neighbour(&dhcp.interface) {
        checkup.note(Health::Warning, "dhcp", text);
    }
    let others = match dhcp::search::others(&dhcp.interface, DHCP_WAIT) {
        Ok(others) => others,
        Err(e) => {
            return checkup.note(
                Health::Warning,
                "dhcp",
                format!("other servers cannot be asked for: {e:#}"),
            );
        }
    };
    let list = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (health, text) = match (dhcp.mode, others.is_empty()) {
        (dhcp::Mode::Server, true) => (Health::Good, "no other server answers".to_owned()),
        (dhcp::Mode::Server, false) => (
            Health::Bad,
            format!(
                "{list} gives addresses on {} already: two servers would contradict each other; use --dhcp proxy",
                dhcp.interface
            ),
        ),
        (dhcp::Mode::Proxy, true) => (
            Health::Warning,
            format!(
                "no server answers on {}: a proxy gives no addresses; use --dhcp server if the network has no DHCP server",
                dhcp.interface
            ),
        ),
        (dhcp::Mode::Proxy, false) => (Health::Good, format!("{list} gives the addresses")),
    };
    checkup.note(health, "dhcp", text);
}

/// Whether the address that the boot folder sends Pis to is one of this machine.
fn server_of(checkup: &mut Checkup, folder: &Path) {
    let cmdline = fs::read_to_string(folder.join("cmdline.txt")).unwrap_or_default();
    let word = |name: &str| cmdline.split_whitespace().filter_map(|w| w.strip_prefix(name)).next_back();
    let Some(server) = word("piman.server=").or_else(|| word("master=")) else { return };
    let host = server.split(':').next().unwrap_or(server);
    let (Ok(ip), Ok(own)) = (host.parse::<IpAddr>(), interfaces()) else { return };
    if own.iter().all(|(_, own)| *own != ip) {
        let text = format!(
            "cmdline.txt sends Pis to {ip}, which is no address of this machine: change piman.server= there, or leave it out and let DHCP say it"
        );
        checkup.note(Health::Warning, "boot folder", text);
    }
}

fn system(checkup: &mut Checkup, newest: Option<SystemTime>) {
    let files = getrlimit(Resource::Nofile).maximum;
    match files {
        Some(n) if n < FILES_MIN => checkup.note(
            Health::Warning,
            "open files",
            format!("at most {n}, so few Pis can connect: raise it with `ulimit -Hn` or LimitNOFILE= of the service"),
        ),
        limit => {
            let text = limit.map_or("no limit".to_owned(), |n| format!("at most {n}"));
            checkup.note(Health::Good, "open files", text);
        }
    }
    // The archive was made before, by a clock that may have been right.
    let made = newest
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |at| at.as_secs().saturating_mul(1000));
    if now_ms() < CLOCK_MIN_MS || now_ms() + DAY_MS < made {
        checkup.note(
            Health::Warning,
            "clock",
            "it shows a time in the past, and Pis get their time from here: set it with `timedatectl set-ntp true`, or use --no-date",
        );
    } else {
        checkup.note(Health::Good, "clock", "plausible");
    }
}

#[cfg(test)]
mod tests;
