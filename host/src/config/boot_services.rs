//! What the services for booting are told.

use std::time::Duration;

use super::{Options, state_folder};
use crate::netboot::{self, dhcp};

/// What the services for booting are told, if there are any.
pub(super) fn settings(o: &mut Options) -> Option<netboot::Settings> {
    let folder = o.netboot.take()?;
    let dhcp = o.dhcp.zip(o.dhcp_interface.take());
    let dhcp = dhcp.map(|(mode, interface)| dhcp::Settings {
        mode,
        interface,
        range: o.dhcp_range,
        fixed: std::mem::take(&mut o.dhcp_lease),
        router: o.dhcp_router,
        dns: std::mem::take(&mut o.dhcp_dns),
        lease: o.dhcp_lease_time.map_or(Duration::from_secs(3600), |s| s.0),
        boot: dhcp::proxy::Boot {
            file: o.dhcp_file.take().unwrap_or_else(|| "bootcode.bin".into()),
            everybody: o.dhcp_everybody.unwrap_or(false),
        },
        state: o.state.clone().unwrap_or_else(state_folder),
        force: o.dhcp_force.unwrap_or(false),
    });
    let tftp_port = o.tftp_port.unwrap_or(netboot::tftp::PORT);
    let limits = netboot::tftp::Limits::default();
    let tftp_transfers = o.tftp_transfers.unwrap_or(limits.transfers);
    let only_known = o.only_known.unwrap_or(false);
    let http_port = o.http_boot_port;
    Some(netboot::Settings { folder, tftp_port, tftp_transfers, http_port, dhcp, only_known })
}
