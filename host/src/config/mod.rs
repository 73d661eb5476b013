//! What `piman serve` is told: by flags, by a TOML file with the same names, by defaults.

mod boot_services;
pub mod check;
pub mod live;
pub mod services;

mod state_folder;
mod wait;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use piman_core::hosted::dial::serial::Line;
use piman_core::install::{CONTROL_PORT, FETCH_PORT, ROOTFS_PORT};
use piman_core::telemetry::PORT as TELEMETRY_PORT;
use piman_core::transfer::PORT as TRANSFER_PORT;
use serde::Deserialize;

use crate::messages;
use crate::net::min_rate::{Limits, SLOWEST, UNANSWERED};
use crate::net::quota::{Allowance, Quotas};
use crate::net::reserve::Reserve;
use crate::net::timeout::Timeouts;
use crate::netboot;
use crate::netboot::dhcp::{Fixed, Mode, Range};
use crate::state::IdentityMode;
use crate::state::decision::{Policy, Rule};
use crate::telemetry::Rotation;
use crate::text::duration::HumanDuration;
use services::{TelemetrySettings, TransferSettings};
pub use state_folder::{ROOT_STATE, state_folder};
pub use wait::Wait;

/// A Pi reports as soon as it is connected: one that has said nothing at all for so long will not.
const FIRST_BYTE: Duration = Duration::from_secs(30);

/// What happens with old Pis that report no system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OldPis {
    /// They are formatted, as they always were.
    Install,
    /// They wait for an order, on an open connection.
    Ask,
}

/// The options of `piman serve`. The configuration file has the same keys; a flag wins.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// Root filesystem to install: a tar archive packed by gzip or zstd; without it nothing is installed
    #[arg(long, value_name = "FILE")]
    pub rootfs: Option<PathBuf>,
    /// User (name or number) that a server started by root becomes when its ports are open [default: it stays root, with
    /// few capabilities]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Address to listen on [default: 0.0.0.0, all of IPv4]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// Port on which Pis report and are commanded; 0 takes a free one [default: 3333]
    #[arg(long, value_name = "PORT")]
    pub control_port: Option<u16>,
    /// Port that sends the root filesystem [default: 4444]
    #[arg(long, value_name = "PORT")]
    pub rootfs_port: Option<u16>,
    /// Port where piman's own agents fetch ranges [default: 4445]
    #[arg(long, value_name = "PORT")]
    pub fetch_port: Option<u16>,
    /// Port where installed Pis connect for `piman call` and `piman status` [default: none; 25565 is usual]
    #[arg(long, value_name = "PORT")]
    pub rpc_port: Option<u16>,
    /// File with the password that Pis must know on that port, in its first line
    #[arg(long, value_name = "FILE")]
    pub rpc_password_file: Option<PathBuf>,
    /// Whether old TCPTalks peers may connect there too, whose login sends the password in clear and protects nothing
    /// after it; `false` allows the protected login alone [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub rpc_old_peers: Option<bool>,
    /// Folder for what is known of the Pis, orders and built images
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Do not send the time to a Pi that connects
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub no_date: Option<bool>,
    /// Do not build images for path B: every Pi extracts the archive by itself
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub no_images: Option<bool>,
    /// Install also what cannot boot a Pi as far as can be seen: no init for its processor, for example
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub allow_unfit: Option<bool>,
    /// What happens by what is on a Pi's disk, such as foreign=wait: one of blank, ours, incomplete, damaged, foreign,
    /// unreadable, and one of install, boot, wait; repeat (`piman policy` sets the same for groups and Pis)
    #[arg(long, value_name = "FOUND=ACTION")]
    #[serde(default)]
    pub policy: Vec<Rule>,
    /// What happens with old Pis that report no system, and cannot say what is on their disk instead
    /// [default: install]
    #[arg(long, value_name = "ACTION")]
    pub old_pis: Option<OldPis>,
    /// Serve nobody but the Pis of the device list (`piman devices add`)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub only_known: Option<bool>,
    /// What no two Pis may share (machine-id, SSH host keys, identifiers of disks) is made new with an installation, or
    /// kept as the image has it, if no profile says it [default: renew]
    #[arg(long, value_name = "WHAT")]
    pub identity: Option<IdentityMode>,
    /// File of IPv4 addresses, one per line, that are to be reinstalled; emptied when taken in
    #[arg(long, value_name = "FILE")]
    pub reinstall_file: Option<PathBuf>,
    /// Transfers at the same time; the others wait for their turn [default: no limit]
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// Connections on one port in total; beyond it the idlest of the address with the most gives way [default: 16384]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Connections on one port from one address [default: 256]
    #[arg(long, value_name = "N")]
    pub connections_per_address: Option<usize>,
    /// How long a Pi may take from connecting to its first report, and to its first byte at most 30 s [default: 2m]
    #[arg(long, value_name = "TIME")]
    pub first_report_timeout: Option<HumanDuration>,
    /// How long a Pi may be silent after that, while it installs, say [default: 2h]
    #[arg(long, value_name = "TIME")]
    pub idle_timeout: Option<HumanDuration>,
    /// How long a transfer may make no progress [default: 5m; no limit for old peers whose system answers]
    #[arg(long, value_name = "TIME")]
    pub stall_timeout: Option<HumanDuration>,
    /// Bytes per second that a transfer must move on average over the stall time-out [default: 12, old peers: 0]
    #[arg(long, value_name = "BYTES")]
    pub min_rate: Option<u64>,
    /// Folder whose files are sent and taken on the transfer port; without it there is no such service
    #[arg(long, value_name = "DIR")]
    pub transfer_dir: Option<PathBuf>,
    /// Port of the transfer service [default: 50001]
    #[arg(long, value_name = "PORT")]
    pub transfer_port: Option<u16>,
    /// How long an upload that broke off can be resumed [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub transfer_keep: Option<HumanDuration>,
    /// MiB that one address may upload in a day [default: half of what is free]
    #[arg(long, value_name = "MIB")]
    pub transfer_peer_quota_mib: Option<u64>,
    /// MiB that all addresses together may upload in a day [default: what is free]
    #[arg(long, value_name = "MIB")]
    pub transfer_quota_mib: Option<u64>,
    /// MiB that uploads and records leave free on their disk, so that the state can still be written
    /// [default: 512, or a twentieth of a small disk]
    #[arg(long, value_name = "MIB")]
    pub reserve_mib: Option<u64>,
    /// Folder for the records that come on the telemetry port; without it there is no such service
    #[arg(long, value_name = "DIR")]
    pub telemetry_dir: Option<PathBuf>,
    /// Port of the telemetry service [default: 5003]
    #[arg(long, value_name = "PORT")]
    pub telemetry_port: Option<u16>,
    /// Bring every record to the disk before it is acknowledged
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub telemetry_sync: Option<bool>,
    /// Begin a new file of records before one has more MiB than this; 0: never [default: 100]
    #[arg(long, value_name = "MIB")]
    pub telemetry_rotate_mib: Option<u32>,
    /// Begin a new file of records when one is this old [default: never]
    #[arg(long, value_name = "TIME")]
    pub telemetry_rotate_age: Option<HumanDuration>,
    /// MiB of records that one address may bring in a day; beyond that nothing is acknowledged [default: half of what is
    /// free]
    #[arg(long, value_name = "MIB")]
    pub telemetry_peer_quota_mib: Option<u64>,
    /// MiB of records that all addresses together may bring in a day [default: what is free]
    #[arg(long, value_name = "MIB")]
    pub telemetry_quota_mib: Option<u64>,
    /// Port of a message channel: what one sends, all others get [default: none; 9123 is usual]
    #[arg(long, value_name = "PORT")]
    pub messages_port: Option<u16>,
    /// One more message channel, or one more address of a channel; repeat
    #[arg(long, value_name = "NAME=[IP:]PORT")]
    #[serde(default)]
    pub messages_channel: Vec<messages::Named>,
    /// As --messages-channel, but a chat: lines of text with the sender's name, and who comes and goes; repeat
    #[arg(long, value_name = "NAME=[IP:]PORT")]
    #[serde(default)]
    pub messages_chat: Vec<messages::Named>,
    /// The largest message that is taken, in KiB, up to 65536 [default: 1024]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub messages_limit_kib: Option<u32>,
    /// Messages that may wait for a slow receiver before it is disconnected [default: 256]
    #[arg(long, value_name = "N")]
    pub messages_queue: Option<usize>,
    /// Serial line on which a Pi reaches all services, as /dev/ttyUSB0:115200; repeat
    #[arg(long, value_name = "DEVICE[:BAUD]")]
    #[serde(default)]
    pub serial: Vec<String>,
    /// Bluetooth: telemetry on this RFCOMM channel, transfer and rpc on the next two [without a channel: 1]
    #[arg(long, value_name = "CHANNEL", num_args = 0..=1, default_missing_value = "1")]
    pub bluetooth: Option<u8>,
    /// Folder that Pis boot from (`piman netboot build`), sent by TFTP; without it there is no such service
    #[arg(long, value_name = "DIR")]
    pub netboot: Option<PathBuf>,
    /// UDP port of TFTP; boot ROMs know no other than the default [default: 69]
    #[arg(long, value_name = "PORT")]
    pub tftp_port: Option<u16>,
    /// Files sent by TFTP at the same time; further requests wait for their turn [default: 256]
    #[arg(long, value_name = "N")]
    pub tftp_transfers: Option<usize>,
    /// Port of HTTP boot, by which boot loaders of the Pi 4 and 5 fetch boot.img and boot.sig from the folder of --netboot;
    /// they ask port 80 unless HTTP_PORT is set in their EEPROM [default: none]
    #[arg(long, value_name = "PORT")]
    pub http_boot_port: Option<u16>,
    /// Answer DHCP: `proxy` beside another server, `server` to give addresses too [default: not at all]
    #[arg(long, value_name = "MODE")]
    pub dhcp: Option<Mode>,
    /// The only network interface on which DHCP is answered
    #[arg(long, value_name = "NAME")]
    pub dhcp_interface: Option<String>,
    /// Addresses to give, such as 192.168.1.100-192.168.1.199
    #[arg(long, value_name = "FIRST-LAST")]
    pub dhcp_range: Option<Range>,
    /// A Pi that always gets the same address: MAC=IP or SERIAL=IP; repeat
    #[arg(long, value_name = "WHO=IP")]
    #[serde(default)]
    pub dhcp_lease: Vec<Fixed>,
    /// Router that clients are told of [default: none]
    #[arg(long, value_name = "IP")]
    pub dhcp_router: Option<Ipv4Addr>,
    /// Name server that clients are told of; repeat [default: none]
    #[arg(long, value_name = "IP")]
    #[serde(default)]
    pub dhcp_dns: Vec<Ipv4Addr>,
    /// How long an address is given for [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub dhcp_lease_time: Option<HumanDuration>,
    /// File that clients are told to boot; a Pi's boot ROM does not need to be told [default: bootcode.bin]
    #[arg(long, value_name = "NAME")]
    pub dhcp_file: Option<String>,
    /// Tell not only Raspberry Pis where to boot from
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub dhcp_everybody: Option<bool>,
    /// Serve addresses although another DHCP server answers on the interface
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub dhcp_force: Option<bool>,
    /// Wait for --dhcp-interface and the addresses to listen on, at most so long; 0: not at all
    /// [default: 0, as a service of systemd 120s; without a TIME: 120s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "120s", require_equals = true)]
    pub wait_for_interface: Option<Wait>,
    /// How long transfers may go on after the server was told to stop [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub shutdown_timeout: Option<HumanDuration>,
}

/// What a server runs with: every value is there and possible.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Options`")]
pub struct Settings {
    /// For all Pis that get no other image.
    pub rootfs: Option<PathBuf>,
    /// What was given, to be compared with the state.
    pub(super) given: Box<Options>,
    /// Whom a server of root becomes.
    pub user: Option<String>,
    pub listen: IpAddr,
    pub control_port: u16,
    pub rootfs_port: u16,
    pub fetch_port: u16,
    /// `None`: not at all.
    pub rpc_port: Option<u16>,
    pub rpc_password_file: Option<PathBuf>,
    /// Whether old peers may connect, whose login protects nothing.
    pub rpc_old_peers: bool,
    pub state: PathBuf,
    /// Whether the time is sent.
    pub date: bool,
    /// Whether images are built.
    pub images: bool,
    /// Whether also what cannot boot is installed.
    pub allow_unfit: bool,
    /// By what is on a disk, for whoever the state has no rules for.
    pub policy: Policy,
    /// Whether old Pis without a system wait for an order.
    pub old_pis_wait: bool,
    /// Whether nobody is served who is not in the device list.
    pub only_known: bool,
    /// What is done about the identity of cards if no profile says it.
    pub identity: IdentityMode,
    pub reinstall_file: Option<PathBuf>,
    /// 0: no limit.
    pub slots: usize,
    pub connections: usize,
    pub connections_per_address: usize,
    /// For control connections.
    pub timeouts: Timeouts,
    pub stall: Duration,
    /// For those who take bytes from us and can go on where they were.
    pub ours: Limits,
    /// For those who take bytes from us and may be old.
    pub old: Limits,
    /// Only with a folder.
    pub transfer: Option<TransferSettings>,
    /// Only with a folder.
    pub telemetry: Option<TelemetrySettings>,
    /// Only with a port.
    pub messages: Option<messages::Settings>,
    /// Only with a folder.
    pub netboot: Option<netboot::Settings>,
    pub serial: Vec<Line>,
    /// The first channel.
    pub bluetooth: Option<u8>,
    /// How long the interface and the addresses may take to be there.
    pub wait: Duration,
    pub shutdown: Duration,
}

impl Options {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// If it cannot be read, or has a key that does not exist or a value that cannot be.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("reading the configuration {name}"))?;
        toml::from_str(&text).with_context(|| format!("in the configuration {name}"))
    }

    /// These options, and those of `file` where these say nothing.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            rootfs: self.rootfs.or(file.rootfs),
            user: self.user.or(file.user),
            listen: self.listen.or(file.listen),
            control_port: self.control_port.or(file.control_port),
            rootfs_port: self.rootfs_port.or(file.rootfs_port),
            fetch_port: self.fetch_port.or(file.fetch_port),
            rpc_port: self.rpc_port.or(file.rpc_port),
            rpc_password_file: self.rpc_password_file.or(file.rpc_password_file),
            rpc_old_peers: self.rpc_old_peers.or(file.rpc_old_peers),
            state: self.state.or(file.state),
            no_date: self.no_date.or(file.no_date),
            no_images: self.no_images.or(file.no_images),
            allow_unfit: self.allow_unfit.or(file.allow_unfit),
            policy: first(self.policy, file.policy),
            old_pis: self.old_pis.or(file.old_pis),
            only_known: self.only_known.or(file.only_known),
            identity: self.identity.or(file.identity),
            reinstall_file: self.reinstall_file.or(file.reinstall_file),
            slots: self.slots.or(file.slots),
            connections: self.connections.or(file.connections),
            connections_per_address: self.connections_per_address.or(file.connections_per_address),
            first_report_timeout: self.first_report_timeout.or(file.first_report_timeout),
            idle_timeout: self.idle_timeout.or(file.idle_timeout),
            stall_timeout: self.stall_timeout.or(file.stall_timeout),
            min_rate: self.min_rate.or(file.min_rate),
            transfer_dir: self.transfer_dir.or(file.transfer_dir),
            transfer_port: self.transfer_port.or(file.transfer_port),
            transfer_keep: self.transfer_keep.or(file.transfer_keep),
            transfer_peer_quota_mib: self.transfer_peer_quota_mib.or(file.transfer_peer_quota_mib),
            transfer_quota_mib: self.transfer_quota_mib.or(file.transfer_quota_mib),
            reserve_mib: self.reserve_mib.or(file.reserve_mib),
            telemetry_dir: self.telemetry_dir.or(file.telemetry_dir),
            telemetry_port: self.telemetry_port.or(file.telemetry_port),
            telemetry_sync: self.telemetry_sync.or(file.telemetry_sync),
            telemetry_rotate_mib: self.telemetry_rotate_mib.or(file.telemetry_rotate_mib),
            telemetry_rotate_age: self.telemetry_rotate_age.or(file.telemetry_rotate_age),
            telemetry_peer_quota_mib: self.telemetry_peer_quota_mib.or(file.telemetry_peer_quota_mib),
            telemetry_quota_mib: self.telemetry_quota_mib.or(file.telemetry_quota_mib),
            messages_port: self.messages_port.or(file.messages_port),
            messages_channel: first(self.messages_channel, file.messages_channel),
            messages_chat: first(self.messages_chat, file.messages_chat),
            messages_limit_kib: self.messages_limit_kib.or(file.messages_limit_kib),
            messages_queue: self.messages_queue.or(file.messages_queue),
            serial: if self.serial.is_empty() { file.serial } else { self.serial },
            bluetooth: self.bluetooth.or(file.bluetooth),
            netboot: self.netboot.or(file.netboot),
            tftp_port: self.tftp_port.or(file.tftp_port),
            tftp_transfers: self.tftp_transfers.or(file.tftp_transfers),
            http_boot_port: self.http_boot_port.or(file.http_boot_port),
            dhcp: self.dhcp.or(file.dhcp),
            dhcp_interface: self.dhcp_interface.or(file.dhcp_interface),
            dhcp_range: self.dhcp_range.or(file.dhcp_range),
            dhcp_lease: if self.dhcp_lease.is_empty() { file.dhcp_lease } else { self.dhcp_lease },
            dhcp_router: self.dhcp_router.or(file.dhcp_router),
            dhcp_dns: if self.dhcp_dns.is_empty() { file.dhcp_dns } else { self.dhcp_dns },
            dhcp_lease_time: self.dhcp_lease_time.or(file.dhcp_lease_time),
            dhcp_file: self.dhcp_file.or(file.dhcp_file),
            dhcp_everybody: self.dhcp_everybody.or(file.dhcp_everybody),
            dhcp_force: self.dhcp_force.or(file.dhcp_force),
            wait_for_interface: self.wait_for_interface.or(file.wait_for_interface),
            shutdown_timeout: self.shutdown_timeout.or(file.shutdown_timeout),
        }
    }
}

fn first<T>(one: Vec<T>, other: Vec<T>) -> Vec<T> {
    if one.is_empty() { other } else { one }
}

impl TryFrom<Options> for Settings {
    type Error = anyhow::Error;

    fn try_from(mut o: Options) -> anyhow::Result<Self> {
        check::refuse(&check::contradictions(&o, None))?;
        let given = Box::new(o.clone());
        let netboot = boot_services::settings(&mut o);
        let span =
            |given: Option<HumanDuration>, seconds| given.map_or(Duration::from_secs(seconds), |s| s.0);
        let stall = span(o.stall_timeout, 300);
        let ours = Limits {
            stall: Some(stall),
            slowest: o.min_rate.unwrap_or(SLOWEST),
            span: stall,
            unanswered: UNANSWERED,
        };
        // An old peer cannot go on where it was, so only the operator gives it a limit.
        let old = Limits { stall: o.stall_timeout.map(|s| s.0), slowest: o.min_rate.unwrap_or(0), ..ours };
        let mib = |given: Option<u64>| given.map(|mib| mib.saturating_mul(1 << 20));
        let reserve = Reserve(mib(o.reserve_mib));
        let transfer = o.transfer_dir.map(|folder| TransferSettings {
            port: o.transfer_port.unwrap_or(TRANSFER_PORT),
            folder,
            keep: span(o.transfer_keep, 24 * 3600),
            allowance: Allowance {
                reserve,
                quotas: Quotas { peer: mib(o.transfer_peer_quota_mib), all: mib(o.transfer_quota_mib) },
            },
        });
        let telemetry = o.telemetry_dir.map(|folder| TelemetrySettings {
            port: o.telemetry_port.unwrap_or(TELEMETRY_PORT),
            folder,
            sync: o.telemetry_sync.unwrap_or(false),
            rotation: Rotation {
                bytes: u64::from(o.telemetry_rotate_mib.unwrap_or(100)) << 20,
                age: o.telemetry_rotate_age.map_or(Duration::ZERO, |s| s.0),
            },
            allowance: Allowance {
                reserve,
                quotas: Quotas { peer: mib(o.telemetry_peer_quota_mib), all: mib(o.telemetry_quota_mib) },
            },
        });
        let listen = o.listen.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let messages = messages::Settings::new(
            listen,
            o.messages_port,
            o.messages_channel,
            o.messages_chat,
            o.messages_limit_kib.unwrap_or(1024) << 10,
            o.messages_queue.unwrap_or(256),
        );
        let messages = messages.map_err(anyhow::Error::msg)?;
        let serial =
            o.serial.iter().map(|line| line.parse().map_err(anyhow::Error::msg)).collect::<Result<_, _>>();
        let serial = serial.context("--serial")?;
        Ok(Self {
            rootfs: o.rootfs,
            given,
            user: o.user,
            listen,
            control_port: o.control_port.unwrap_or(CONTROL_PORT),
            rootfs_port: o.rootfs_port.unwrap_or(ROOTFS_PORT),
            fetch_port: o.fetch_port.unwrap_or(FETCH_PORT),
            rpc_port: o.rpc_port,
            rpc_password_file: o.rpc_password_file,
            rpc_old_peers: o.rpc_old_peers.unwrap_or(true),
            state: o.state.unwrap_or_else(state_folder),
            date: !o.no_date.unwrap_or(false),
            images: !o.no_images.unwrap_or(false),
            allow_unfit: o.allow_unfit.unwrap_or(false),
            policy: Policy::default().with(&o.policy),
            old_pis_wait: o.old_pis == Some(OldPis::Ask),
            only_known: o.only_known.unwrap_or(false),
            identity: o.identity.unwrap_or(IdentityMode::Renew),
            reinstall_file: o.reinstall_file,
            slots: o.slots.unwrap_or(0),
            connections: o.connections.unwrap_or(16_384),
            connections_per_address: o.connections_per_address.unwrap_or(256),
            timeouts: Timeouts {
                first_byte: span(o.first_report_timeout, 120).min(FIRST_BYTE),
                first_report: span(o.first_report_timeout, 120),
                idle: span(o.idle_timeout, 7200),
                write: stall.min(Duration::from_secs(60)),
            },
            stall,
            ours,
            old,
            transfer,
            telemetry,
            messages,
            netboot,
            serial,
            bluetooth: o.bluetooth,
            wait: o.wait_for_interface.map_or_else(Wait::usual, |wait| wait.0),
            shutdown: span(o.shutdown_timeout, 60),
        })
    }
}

#[cfg(test)]
mod tests;
