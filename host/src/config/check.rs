//! Options that contradict each other, or do nothing without others.

use std::net::SocketAddr;

use anyhow::bail;

use super::{Options, Settings};

/// What is told to a service that there is none of would be passed over in silence.
///
/// # Errors
/// Names the first such option, and what it needs.
pub(super) fn without_effect(o: &Options) -> anyhow::Result<()> {
    let dhcp = "--dhcp proxy or --dhcp server";
    let netboot = "--netboot DIR, the folder that Pis boot from";
    let rpc = "--rpc-port PORT, where Pis connect";
    let transfer = "--transfer-dir DIR, the folder of the service";
    let telemetry = "--telemetry-dir DIR, the folder of the service";
    let messages = "--messages-port PORT, --messages-channel or --messages-chat NAME=PORT";
    let no_messages =
        o.messages_port.is_none() && o.messages_channel.is_empty() && o.messages_chat.is_empty();
    let [no_dhcp, no_netboot] = [o.dhcp.is_none(), o.netboot.is_none()];
    let [no_transfer, no_telemetry] = [o.transfer_dir.is_none(), o.telemetry_dir.is_none()];
    let given = [
        (no_dhcp && o.dhcp_interface.is_some(), "dhcp-interface", dhcp),
        (no_dhcp && o.dhcp_range.is_some(), "dhcp-range", dhcp),
        (no_dhcp && !o.dhcp_lease.is_empty(), "dhcp-lease", dhcp),
        (no_dhcp && o.dhcp_router.is_some(), "dhcp-router", dhcp),
        (no_dhcp && !o.dhcp_dns.is_empty(), "dhcp-dns", dhcp),
        (no_dhcp && o.dhcp_lease_time.is_some(), "dhcp-lease-time", dhcp),
        (no_dhcp && o.dhcp_file.is_some(), "dhcp-file", dhcp),
        (no_dhcp && o.dhcp_everybody.is_some(), "dhcp-everybody", dhcp),
        (no_netboot && o.dhcp.is_some(), "dhcp", netboot),
        (no_netboot && o.tftp_port.is_some(), "tftp-port", netboot),
        (no_netboot && o.tftp_transfers.is_some(), "tftp-transfers", netboot),
        (o.rpc_port.is_none() && o.rpc_password_file.is_some(), "rpc-password-file", rpc),
        (no_transfer && o.transfer_port.is_some(), "transfer-port", transfer),
        (no_transfer && o.transfer_keep.is_some(), "transfer-keep", transfer),
        (no_telemetry && o.telemetry_port.is_some(), "telemetry-port", telemetry),
        (no_telemetry && o.telemetry_sync.is_some(), "telemetry-sync", telemetry),
        (no_telemetry && o.telemetry_rotate_mib.is_some(), "telemetry-rotate-mib", telemetry),
        (no_telemetry && o.telemetry_rotate_age.is_some(), "telemetry-rotate-age", telemetry),
        (no_messages && o.messages_limit_kib.is_some(), "messages-limit-kib", messages),
        (no_messages && o.messages_queue.is_some(), "messages-queue", messages),
    ];
    match given.iter().find(|(given, ..)| *given) {
        Some((_, flag, needs)) => bail!("--{flag} has no effect without {needs}"),
        None => Ok(()),
    }
}

/// The first option that nothing but the install service heeds.
pub(super) fn install_only(o: &Options) -> Option<&'static str> {
    let given = [
        (o.control_port.is_some(), "control-port"),
        (o.rootfs_port.is_some(), "rootfs-port"),
        (o.fetch_port.is_some(), "fetch-port"),
        (o.allow_unfit.is_some(), "allow-unfit"),
        (o.reinstall_file.is_some(), "reinstall-file"),
        (o.slots.is_some(), "slots"),
    ];
    given.into_iter().find_map(|(given, flag)| given.then_some(flag))
}

/// Whether two listeners want the same.
fn clash(a: &SocketAddr, b: &SocketAddr) -> bool {
    let covers = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip() || a.ip().is_unspecified() && a.is_ipv4() == b.is_ipv4()
    };
    a.port() == b.port() && a.port() != 0 && (covers(a, b) || covers(b, a))
}

impl Settings {
    /// Whether a server can be as it is told, with something to `install` or without.
    ///
    /// # Errors
    /// If it has nothing to do, an option has no effect, or two services want one port.
    pub fn check(&self, install: bool) -> anyhow::Result<()> {
        if !install {
            self.without_install()?;
        }
        let here = |port| SocketAddr::new(self.listen, port);
        let mut ports = vec![("--rpc-port", here(self.rpc_port.unwrap_or(0)))];
        if install {
            ports.extend([
                ("--control-port", here(self.control_port)),
                ("--rootfs-port", here(self.rootfs_port)),
                ("--fetch-port", here(self.fetch_port)),
            ]);
        }
        ports.extend(self.transfer.iter().map(|t| ("--transfer-port", here(t.port))));
        ports.extend(self.telemetry.iter().map(|s| ("--telemetry-port", here(s.port))));
        let channels = self.messages.iter().flat_map(|m| &m.channels);
        ports.extend(channels.flat_map(|c| &c.at).map(|(address, flag)| (*flag, *address)));
        for (i, (one, at)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports.iter().skip(i + 1).find(|(_, b)| clash(at, b)) {
                bail!("{one} and {other} are both {}: each needs a port of its own", at.port());
            }
        }
        Ok(())
    }

    /// A server that installs nothing needs something else to do, and no options of the install service.
    fn without_install(&self) -> anyhow::Result<()> {
        if let Some(flag) = self.install_only {
            bail!(
                "--{flag} has no effect without --rootfs FILE, the archive that is installed, or `piman image add`"
            );
        }
        let services = self.netboot.is_some()
            || self.transfer.is_some()
            || self.telemetry.is_some()
            || self.messages.is_some()
            || self.rpc_port.is_some();
        if !services {
            bail!(
                "nothing to serve: name the archive of a root filesystem (.tar.gz or .tar.zst) with --rootfs FILE, \
                 or another service: --transfer-dir DIR, --telemetry-dir DIR, --rpc-port PORT, \
                 --messages-port PORT, --netboot DIR"
            );
        }
        Ok(())
    }
}
