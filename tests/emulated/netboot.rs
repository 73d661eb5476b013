//! From power-on: U-Boot in the emulated machine is given its address by our DHCP and its kernel and
//! initramfs by our TFTP; nothing else answers in the network namespace.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::machine::{Root, Tools};
use super::{Verdict, assert_installs, assert_only_boots, assert_said, installed, new_file};

/// The hardware address of the emulated machine.
const MAC: &str = "b8:27:eb:00:00:01";

/// Debian, by the default way.
pub(crate) fn debian(tools: &Tools) -> Verdict {
    from_power_on(tools, Root::Debian, "2G", Duration::from_secs(1200))
}

/// The same with a root filesystem that is small: where time is short.
pub(crate) fn tiny(tools: &Tools) -> Verdict {
    from_power_on(tools, Root::Tiny, "512M", Duration::from_secs(600))
}

fn from_power_on(tools: &Tools, root: Root, card_size: &str, deadline: Duration) -> Verdict {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root for a network namespace".into());
    }
    tools.needs_uboot()?;
    let archive = tools.archive(root)?;
    let card = new_file(tools, "netboot.img");
    let state = new_file(tools, "netboot-state");
    let boot = |name| tools.netboot(root, &archive, &card, card_size, &state, deadline, name);

    assert_installs(&boot("netboot-1.log"));
    let first = installed(&card);
    let timeline = piman(tools, &state, &["device", MAC]);
    assert_said(&timeline, &["is offered 192.168.77.", "kernel8.img: ", "initramfs.cpio.gz: "]);

    assert_only_boots(&boot("netboot-2.log"));
    assert_eq!(installed(&card), first, "the second boot left the installation as it was");

    piman(tools, &state, &["reinstall", MAC]);
    let console = boot("netboot-3.log");
    assert_said(&console, &["installed: image", "installed image", "switching root"]);
    assert!(installed(&card).time > first.time);
    fs::remove_file(&card).map_err(|e| e.to_string())
}

fn piman(tools: &Tools, state: &Path, arguments: &[&str]) -> String {
    let output = Command::new(&tools.piman).args(arguments).arg("--state").arg(state).output().unwrap();
    assert!(output.status.success(), "piman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
