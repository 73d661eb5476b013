//! What cannot be meant: options that contradict each other or the state, do nothing, or have no possible value.
//!
//! All of it is found here, at once, for `piman serve` and `piman doctor`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::bail;
use piman_core::hosted::dial::serial::Line;
use piman_core::install::{CONTROL_PORT, FETCH_PORT, ROOTFS_PORT};
use piman_core::telemetry::PORT as TELEMETRY_PORT;
use piman_core::transfer::PORT as TRANSFER_PORT;

use super::{Options, Settings, state_folder};
use crate::messages;
use crate::netboot::dhcp::Mode;
use crate::netboot::tftp;
use crate::state::Preview;

/// The last RFCOMM channel that leaves room for two more.
const BLUETOOTH_MAX: u8 = 28;
/// The UDP ports of DHCP.
const DHCP_PORTS: [u16; 2] = [67, 4011];

/// What has been found so far.
#[derive(Debug, Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, found: bool, text: impl FnOnce() -> String) {
        if found {
            self.0.push(text());
        }
    }

    /// Options that are given and have no effect without this.
    fn without(&mut self, needs: &str, given: &[(bool, &str)]) {
        for (_, flag) in given.iter().filter(|(given, _)| *given) {
            self.0.push(format!("--{flag} has no effect without {needs}"));
        }
    }
}

/// Everything that is wrong with these options, a sentence each, with what to do. `state` is what the state has;
/// `None`: it is not known, and only what is wrong whatever it has is found.
#[must_use]
pub fn contradictions(o: &Options, state: Option<&Preview>) -> Vec<String> {
    let mut findings = Findings::default();
    impossible(&mut findings, o);
    no_effect(&mut findings, o);
    dhcp(&mut findings, o);
    policy(&mut findings, o);
    one_place_for_two(&mut findings, o);
    let installs = match state {
        Some(state) => Some(o.rootfs.is_some() || state.images > 0),
        None => o.rootfs.is_some().then_some(true),
    };
    if let Some(installs) = installs {
        install(&mut findings, o, installs);
        ports(&mut findings, o, installs);
    }
    if let (Some(rootfs), Some((name, archive))) = (&o.rootfs, state.and_then(|s| s.default.as_ref())) {
        findings.add(!is_same(rootfs, archive), || {
            format!(
                "--rootfs {} would be installed nowhere: the image {name} is the default, and is for every Pi without \
                 one of its own. Leave --rootfs out, or say `piman image default --none`",
                rootfs.display()
            )
        });
    }
    findings.0
}

/// These findings as one error.
///
/// # Errors
/// If there are any.
pub fn refuse(findings: &[String]) -> anyhow::Result<()> {
    match findings {
        [] => Ok(()),
        [one] => bail!("{one}"),
        all => bail!("{} things cannot be as they are configured:\n  {}", all.len(), all.join("\n  ")),
    }
}

impl Settings {
    /// Whether a server can be as it is told, with this state.
    ///
    /// # Errors
    /// Names everything that [`contradictions`] finds.
    pub fn check(&self, state: &Preview) -> anyhow::Result<()> {
        refuse(&contradictions(&self.given, Some(state)))
    }
}

/// Values that cannot be.
fn impossible(findings: &mut Findings, o: &Options) {
    for (value, flag) in [
        (o.messages_limit_kib, "messages-limit-kib"),
        (o.messages_queue.map(|n| u32::try_from(n).unwrap_or(u32::MAX)), "messages-queue"),
    ] {
        findings.add(value.is_some_and(|n| !(1..=65536).contains(&n)), || {
            format!("--{flag} is {}: it must be from 1 to 65536", value.unwrap_or(0))
        });
    }
    for (value, flag) in
        [(o.connections, "connections"), (o.connections_per_address, "connections-per-address")]
    {
        findings
            .add(value == Some(0), || format!("--{flag} is 0: it must be 1 at least, or nobody can connect"));
    }
    findings.add(o.tftp_transfers == Some(0), || {
        "--tftp-transfers is 0: it must be 1 at least, or nobody gets a file".into()
    });
    if let (Some(all), Some(one)) = (o.connections, o.connections_per_address) {
        findings.add(one > all, || {
            format!(
                "--connections-per-address {one} has no effect: --connections {all} ends it before; make one of them \
                 fit the other"
            )
        });
    }
    for line in &o.serial {
        if let Err(e) = line.parse::<Line>() {
            findings.0.push(format!("--serial {line}: {e}"));
        }
    }
    let device = |line: &String| line.split(':').next().unwrap_or_default().to_owned();
    for (i, line) in o.serial.iter().enumerate() {
        findings.add(o.serial.iter().take(i).any(|other| device(other) == device(line)), || {
            format!("--serial names {} twice: name each line once", device(line))
        });
    }
    if let Some(channel) = o.bluetooth {
        findings.add(!(1..=BLUETOOTH_MAX).contains(&channel), || {
            format!("--bluetooth {channel}: a channel is 1 to {BLUETOOTH_MAX}, since the next two are used as well")
        });
        findings.add(!cfg!(feature = "bluetooth"), || {
            "--bluetooth: this piman was built without the feature `bluetooth`".into()
        });
    }
    if let Err(e) = channels(o) {
        findings.0.push(e);
    }
}

fn channels(o: &Options) -> Result<Option<messages::Settings>, String> {
    messages::Settings::new(
        listen(o),
        o.messages_port,
        o.messages_channel.clone(),
        o.messages_chat.clone(),
        1,
        1,
    )
}

fn listen(o: &Options) -> IpAddr {
    o.listen.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
}

fn has_messages(o: &Options) -> bool {
    o.messages_port.is_some() || !o.messages_channel.is_empty() || !o.messages_chat.is_empty()
}

/// What a service is told that is not there, whatever is installed.
fn no_effect(findings: &mut Findings, o: &Options) {
    if o.dhcp.is_none() {
        findings.without(
            "--dhcp proxy or --dhcp server",
            &[
                (o.dhcp_interface.is_some(), "dhcp-interface"),
                (o.dhcp_range.is_some(), "dhcp-range"),
                (!o.dhcp_lease.is_empty(), "dhcp-lease"),
                (o.dhcp_router.is_some(), "dhcp-router"),
                (!o.dhcp_dns.is_empty(), "dhcp-dns"),
                (o.dhcp_lease_time.is_some(), "dhcp-lease-time"),
                (o.dhcp_file.is_some(), "dhcp-file"),
                (o.dhcp_everybody == Some(true), "dhcp-everybody"),
                (o.dhcp_force == Some(true), "dhcp-force"),
            ],
        );
    }
    if o.netboot.is_none() {
        findings.without(
            "--netboot DIR, the folder that Pis boot from",
            &[
                (o.dhcp.is_some(), "dhcp"),
                (o.tftp_port.is_some(), "tftp-port"),
                (o.tftp_transfers.is_some(), "tftp-transfers"),
                (o.http_boot_port.is_some(), "http-boot-port"),
            ],
        );
    }
    if o.rpc_port.is_none() {
        let given = [
            (o.rpc_password_file.is_some(), "rpc-password-file"),
            (o.rpc_old_peers.is_some(), "rpc-old-peers"),
        ];
        findings.without("--rpc-port PORT, where Pis connect", &given);
    }
    if o.transfer_dir.is_none() {
        findings.without(
            "--transfer-dir DIR, the folder of the service",
            &[
                (o.transfer_port.is_some(), "transfer-port"),
                (o.transfer_keep.is_some(), "transfer-keep"),
                (o.transfer_peer_quota_mib.is_some(), "transfer-peer-quota-mib"),
                (o.transfer_quota_mib.is_some(), "transfer-quota-mib"),
            ],
        );
    }
    if o.telemetry_dir.is_none() {
        findings.without(
            "--telemetry-dir DIR, the folder of the service",
            &[
                (o.telemetry_port.is_some(), "telemetry-port"),
                (o.telemetry_sync == Some(true), "telemetry-sync"),
                (o.telemetry_rotate_mib.is_some(), "telemetry-rotate-mib"),
                (o.telemetry_rotate_age.is_some(), "telemetry-rotate-age"),
                (o.telemetry_peer_quota_mib.is_some(), "telemetry-peer-quota-mib"),
                (o.telemetry_quota_mib.is_some(), "telemetry-quota-mib"),
            ],
        );
    }
    if o.transfer_dir.is_none() && o.telemetry_dir.is_none() {
        let given = [(o.reserve_mib.is_some(), "reserve-mib")];
        findings.without("--transfer-dir or --telemetry-dir DIR, where peers bring data", &given);
    }
    if !has_messages(o) {
        findings.without(
            "--messages-port PORT, --messages-channel or --messages-chat NAME=PORT",
            &[
                (o.messages_limit_kib.is_some(), "messages-limit-kib"),
                (o.messages_queue.is_some(), "messages-queue"),
            ],
        );
    }
    let channels = o.messages_channel.iter().chain(&o.messages_chat);
    let mut addresses = o.listen.into_iter().chain(channels.filter_map(|c| c.ip));
    if o.dhcp.is_none() && addresses.all(|ip| ip.is_unspecified()) {
        let given = o.wait_for_interface.is_some_and(|wait| !wait.0.is_zero());
        findings.without("--listen IP or --dhcp-interface NAME", &[(given, "wait-for-interface")]);
    }
}

/// What DHCP is told.
fn dhcp(findings: &mut Findings, o: &Options) {
    let Some(mode) = o.dhcp else { return };
    findings.add(o.dhcp_interface.is_none(), || {
        "--dhcp needs the interface that the Pis are connected to, with --dhcp-interface NAME; `ip -brief address` \
         shows them"
            .into()
    });
    match mode {
        Mode::Proxy => findings.without(
            "--dhcp server: a proxy gives no addresses",
            &[
                (o.dhcp_range.is_some(), "dhcp-range"),
                (!o.dhcp_lease.is_empty(), "dhcp-lease"),
                (o.dhcp_router.is_some(), "dhcp-router"),
                (!o.dhcp_dns.is_empty(), "dhcp-dns"),
                (o.dhcp_lease_time.is_some(), "dhcp-lease-time"),
                (o.dhcp_force == Some(true), "dhcp-force"),
            ],
        ),
        Mode::Server => findings.add(o.dhcp_range.is_none() && o.dhcp_lease.is_empty(), || {
            "--dhcp server needs addresses to give: name them with --dhcp-range FIRST-LAST".into()
        }),
    }
    for (i, lease) in o.dhcp_lease.iter().enumerate() {
        let others = || o.dhcp_lease.iter().take(i);
        findings.add(others().any(|other| other.ip == lease.ip), || {
            format!("--dhcp-lease gives {} to two Pis: choose another address for one of them", lease.ip)
        });
        findings.add(others().any(|other| other.who == lease.who && other.ip != lease.ip), || {
            format!("--dhcp-lease gives one Pi {} and another address: leave one of them out", lease.ip)
        });
    }
    let ip = listen(o);
    findings.add(ip.is_loopback() || ip.is_ipv6() && !ip.is_unspecified(), || {
        format!("--listen {ip} and --dhcp: Pis are sent to an IPv4 address of the interface, and nothing listens there")
    });
    let tftp = o.tftp_port.unwrap_or(tftp::PORT);
    findings.add(DHCP_PORTS.contains(&tftp), || {
        format!("--tftp-port {tftp} is a port of DHCP: each needs a port of its own")
    });
}

/// Rules for one finding that say different things.
fn policy(findings: &mut Findings, o: &Options) {
    for (i, rule) in o.policy.iter().enumerate() {
        let other = o.policy.iter().take(i).find(|r| r.found == rule.found && r.action != rule.action);
        findings.add(other.is_some(), || {
            format!("--policy says {rule} and {}: leave one of them out", other.unwrap_or(rule))
        });
    }
}

/// Paths that two options name although one would spoil, or give away, what the other has.
fn one_place_for_two(findings: &mut Findings, o: &Options) {
    let state = o.state.clone().unwrap_or_else(state_folder);
    if let Some(list) = &o.reinstall_file {
        for (other, flag) in [(&o.rootfs, "rootfs"), (&o.rpc_password_file, "rpc-password-file")] {
            findings.add(other.as_ref().is_some_and(|p| is_same(p, list)), || {
                format!("--reinstall-file and --{flag} are the same file, which would be emptied: name another one")
            });
        }
    }
    findings.add(o.transfer_dir.as_ref().is_some_and(|dir| is_same(dir, &state)), || {
        "--transfer-dir is the state folder, whose files everybody could get: name another one".into()
    });
    findings.add(o.telemetry_dir.as_ref().is_some_and(|dir| is_same(dir, &state)), || {
        "--telemetry-dir is the state folder: name another one".into()
    });
    findings.add(o.netboot.as_ref().is_some_and(|dir| real(&state).starts_with(real(dir))), || {
        "--state is in the folder of --netboot, whose files everybody gets: name another one".into()
    });
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn is_same(a: &Path, b: &Path) -> bool {
    real(a) == real(b)
}

/// What only the install service heeds, and a server with nothing to do.
fn install(findings: &mut Findings, o: &Options, installs: bool) {
    if installs {
        return;
    }
    let [transfer, telemetry] = [o.transfer_dir.is_some(), o.telemetry_dir.is_some()];
    let [messages, rpc] = [has_messages(o), o.rpc_port.is_some()];
    let http = o.netboot.is_some() && o.http_boot_port.is_some();
    findings.without(
        "--rootfs FILE, the archive that is installed, or `piman image add`",
        &[
            (o.control_port.is_some(), "control-port"),
            (o.rootfs_port.is_some(), "rootfs-port"),
            (o.fetch_port.is_some(), "fetch-port"),
            (o.no_date == Some(true), "no-date"),
            (o.no_images == Some(true), "no-images"),
            (o.allow_unfit == Some(true), "allow-unfit"),
            (!o.policy.is_empty(), "policy"),
            (o.old_pis.is_some(), "old-pis"),
            (o.reinstall_file.is_some(), "reinstall-file"),
            (o.slots.is_some(), "slots"),
            (o.first_report_timeout.is_some(), "first-report-timeout"),
            (o.idle_timeout.is_some(), "idle-timeout"),
            (o.netboot.is_none() && o.only_known == Some(true), "only-known"),
            (!transfer && o.min_rate.is_some(), "min-rate"),
            (!transfer && !messages && o.stall_timeout.is_some(), "stall-timeout"),
            (!transfer && !messages && !http && o.shutdown_timeout.is_some(), "shutdown-timeout"),
        ],
    );
    let connects = transfer || telemetry || messages || rpc || http;
    if !connects {
        findings.without(
            "a service to connect to",
            &[
                (o.connections.is_some(), "connections"),
                (o.connections_per_address.is_some(), "connections-per-address"),
            ],
        );
    }
    if !(transfer || telemetry || messages || rpc) {
        findings.without("a service to connect to", &[(!o.serial.is_empty(), "serial")]);
    }
    if !(transfer || telemetry || rpc) {
        let needs = "--telemetry-dir, --transfer-dir or --rpc-port";
        findings.without(needs, &[(o.bluetooth.is_some(), "bluetooth")]);
    }
    findings.add(!connects && o.netboot.is_none(), || {
        "nothing to serve: name the archive of a root filesystem (.tar.gz or .tar.zst) with --rootfs FILE, or another \
         service: --transfer-dir DIR, --telemetry-dir DIR, --rpc-port PORT, --messages-port PORT, --netboot DIR"
            .into()
    });
}

/// Two services that want one port.
fn ports(findings: &mut Findings, o: &Options, installs: bool) {
    let here = |port| SocketAddr::new(listen(o), port);
    let mut ports = vec![("--rpc-port", here(o.rpc_port.unwrap_or(0)))];
    if installs {
        ports.extend([
            ("--control-port", here(o.control_port.unwrap_or(CONTROL_PORT))),
            ("--rootfs-port", here(o.rootfs_port.unwrap_or(ROOTFS_PORT))),
            ("--fetch-port", here(o.fetch_port.unwrap_or(FETCH_PORT))),
        ]);
    }
    if o.transfer_dir.is_some() {
        ports.push(("--transfer-port", here(o.transfer_port.unwrap_or(TRANSFER_PORT))));
    }
    if o.telemetry_dir.is_some() {
        ports.push(("--telemetry-port", here(o.telemetry_port.unwrap_or(TELEMETRY_PORT))));
    }
    if let Some(port) = o.http_boot_port.filter(|_| o.netboot.is_some()) {
        ports.push(("--http-boot-port", here(port)));
    }
    let messages = channels(o).ok().flatten();
    let channels = messages.iter().flat_map(|m| &m.channels);
    ports.extend(channels.flat_map(|c| &c.at).map(|(address, flag)| (*flag, *address)));
    for (i, (one, at)) in ports.iter().enumerate() {
        let other = ports.iter().skip(i + 1).find(|(_, b)| clash(at, b));
        if let Some((other, _)) = other {
            let text = format!("{one} and {other} are both {}: each needs a port of its own", at.port());
            findings.0.push(text);
        }
    }
}

/// Whether two listeners want the same.
fn clash(a: &SocketAddr, b: &SocketAddr) -> bool {
    let covers = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip() || a.ip().is_unspecified() && a.is_ipv4() == b.is_ipv4()
    };
    a.port() == b.port() && a.port() != 0 && (covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests;
