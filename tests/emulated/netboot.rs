//! From power-on: U-Boot in the emulated machine is given its address by our DHCP and its kernel and
//! initramfs by our TFTP; nothing else answers in the network namespace.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::receipt::Way;
use piman_tests::contents::copy;
use piman_tests::netns::assert_says;
use piman_tests::proxy::Gate;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::card::{BLOCK, changed_blocks, settle};
use super::machine::{Machine, Root, Server, Tools, Until};
use super::readme;
use super::{MAC, Verdict, assert_installs, assert_only_boots, installed, new_file};

/// Where piman is in the namespace.
const HERE: &str = "192.168.77.1";
/// Where it listens when there is a gate in front of it.
const BEHIND: u16 = 13_333;

/// So many blocks the kernel may change when it mounts a filesystem to write to it.
const MOUNT_BLOCKS: usize = 16;

/// What U-Boot runs. Nothing on the command line says where piman is.
const SCRIPT: &str = "\
tftpboot ${kernel_addr_r} kernel8.img
tftpboot ${ramdisk_addr_r} initramfs.cpio.zst
setenv bootargs console=ttyAMA0 panic=-1 quiet
booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr}
";

/// The recipe for a real Pi in the README: the archive, the boot folder and the server are made by its commands, and
/// the machine goes from power-on to a login with the password that the recipe set.
pub(crate) fn recipe_of_the_readme(tools: &Tools) -> Verdict {
    from_power_on(tools, Root::Debian, "2G", Duration::from_secs(1800))
}

/// The same with a root filesystem that is small: where time is short.
pub(crate) fn tiny(tools: &Tools) -> Verdict {
    from_power_on(tools, Root::Tiny, "512M", Duration::from_secs(900))
}

/// The namespace in which machine and server are; it goes with this value.
struct Network {
    name: String,
}

impl Network {
    fn make(root: Root) -> Self {
        let network = Self { name: format!("piman-e-{}-{root:?}", std::process::id()) };
        let name = &network.name;
        for line in [
            format!("netns add {name}"),
            format!("-n {name} link set lo up"),
            format!("-n {name} tuntap add dev tap0 mode tap"),
            format!("-n {name} address add {HERE}/24 dev tap0"),
            format!("-n {name} link set tap0 up"),
        ] {
            let status = Command::new("ip").args(line.split_whitespace()).status().unwrap();
            assert!(status.success(), "ip {line}: {status}");
        }
        network
    }

    /// A way to piman that is closed.
    fn gate(&self) -> Gate {
        let namespace = fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let made = std::thread::spawn(move || {
            // For this thread and those that it starts.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let listener = TcpListener::bind((HERE, 3333)).unwrap();
            Gate::new(listener, (HERE.parse::<std::net::IpAddr>().unwrap(), BEHIND).into())
        });
        made.join().unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Everything that a boot needs.
struct Scene<'a> {
    tools: &'a Tools,
    network: Network,
    folder: PathBuf,
    root: Root,
    archive: PathBuf,
    card: PathBuf,
    card_size: &'a str,
    state: PathBuf,
    deadline: Duration,
}

impl Scene<'_> {
    /// The server and the machine; the server is made anew for each boot, as after a restart.
    fn power_on(&self, control_port: u16, until: Until) -> (Server, Machine) {
        let [archive, folder, state] =
            [&self.archive, &self.folder, &self.state].map(|p| p.display().to_string());
        // No other DHCP server is in this network, the interface has another name, and U-Boot is no Pi's boot ROM.
        let serve = readme::block_with(
            "serve",
            &[
                ("--rootfs rootfs.tgz", &format!("--rootfs {archive}")),
                ("--netboot netboot", &format!("--netboot {folder}")),
                (
                    "--dhcp proxy",
                    "--dhcp server --dhcp-file boot.scr.uimg --dhcp-range 192.168.77.10-192.168.77.50",
                ),
                ("--dhcp-interface eth0", "--dhcp-interface tap0"),
            ],
        );
        let text = format!("{} --state {state} --control-port {control_port}", serve.trim_end());
        let mut serve = Command::new("ip");
        serve.args(["netns", "exec", &self.network.name, "bash", "-c", &readme::script(&text)]);
        serve.env("PIMAN", &self.tools.piman);
        let server = Server::start_by(&mut serve);
        let more = ["--uboot", "--netns", &self.network.name, "--net", "tap:tap0"];
        let machine = self.tools.start(until, &self.card, self.card_size, self.deadline, &more);
        (server, machine)
    }

    /// A boot from power-on until the agent is done.
    fn boot(&self, control_port: u16) -> String {
        let (_server, machine) = self.power_on(control_port, Until::RootSwitched);
        machine.finish()
    }

    fn piman(&self, arguments: &[&str]) -> String {
        let output =
            Command::new(&self.tools.piman).args(arguments).arg("--state").arg(&self.state).output().unwrap();
        assert!(output.status.success(), "piman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn from_power_on(tools: &Tools, root: Root, card_size: &str, deadline: Duration) -> Verdict {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root for a network namespace".into());
    }
    tools.needs_uboot()?;
    let folder = match root {
        Root::Debian => tools.boot_folder_of_recipe(),
        Root::Tiny => tools.boot_folder("virt", "zstd"),
    };
    let script = new_file(tools, &format!("boot-{root:?}.cmd"));
    fs::write(&script, SCRIPT).unwrap();
    let mut mkimage = Command::new("mkimage");
    mkimage.args(["-A", "arm64", "-T", "script", "-C", "none", "-n", "netboot", "-d"]);
    let status = mkimage.arg(&script).arg(folder.join("boot.scr.uimg")).status().unwrap();
    assert!(status.success(), "mkimage: {status}");
    let scene = Scene {
        tools,
        network: Network::make(root),
        folder,
        root,
        archive: tools.archive(root)?,
        card: new_file(tools, &format!("netboot-{root:?}.img")),
        card_size,
        state: new_file(tools, &format!("netboot-{root:?}-state")),
        deadline,
    };

    let console = scene.boot(3333);
    assert_installs(&console);
    assert_says(&console, &["eth0 has 192.168.77.10/24 from 192.168.77.1", "boot server 192.168.77.1"]);
    print_times("installation", &console);
    let first = installed(&scene.card);
    assert_eq!(first.path, Way::Image);
    assert!(first.time > 1_700_000_000, "the clock was set: {}", first.time);
    // U-Boot and the agent get the same address; the timeline has all of it.
    let timeline = scene.piman(&["device", MAC]);
    let all =
        ["is offered 192.168.77.10", "kernel8.img: ", "initramfs.cpio.zst: ", "piman has 192.168.77.10"];
    assert_says(&timeline, &all);
    println!("{timeline}");

    boots_and_nothing_else(&scene);
    assert_eq!(installed(&scene.card), first, "the second boot left the installation as it was");

    scene.piman(&["reinstall", MAC]);
    // The gate of the second boot is still there, and open.
    let console = scene.boot(BEHIND);
    assert_says(&console, &["installed: image", "installed image", "switching root"]);
    print_times("installation again", &console);
    assert!(installed(&scene.card).time > first.time);
    let orders = scene.piman(&["reinstall", "--list"]);
    assert!(orders.contains("completed"), "an order is carried out once: {orders}");
    fs::remove_file(&scene.card).map_err(|e| e.to_string())
}

/// A boot of what is installed, with the card looked at twice from outside: when the agent has found
/// out what is on it and waits for the decision, and when the root filesystem is mounted.
fn boots_and_nothing_else(scene: &Scene<'_>) {
    // The plug was pulled: so that the kernel has nothing to replay, as after a shutdown.
    settle(&scene.card);
    let before = new_file(scene.tools, &format!("netboot-{:?}-before.img", scene.root));
    copy(&scene.card, &before);
    let gate = scene.network.gate();
    let (server, machine) = scene.power_on(BEHIND, Until::Up(scene.root));
    machine.wait("installed: image");
    // What the agent has to say reaches nobody before the gate is open: it cannot have gone on.
    let changed = changed_blocks(&before, &scene.card);
    assert!(changed.is_empty(), "until the decision no byte of the card is written: {changed:?}");
    gate.open();
    machine.wait("becomes process 1");
    let changed = machine.paused(|| changed_blocks(&before, &scene.card));
    println!(
        "from power-on to the installed system's init these blocks of {BLOCK} bytes changed: {changed:?}"
    );
    let root = Layout::default().root_start * SECTOR / BLOCK;
    assert!(changed.iter().all(|b| *b >= root), "outside of the root filesystem nothing changes");
    assert!(changed.len() <= MOUNT_BLOCKS, "more than the kernel writes when it mounts: {}", changed.len());
    let console = machine.finish();
    drop(server);
    assert_only_boots(&console);
    print_times("boot", &console);
    fs::remove_file(&before).unwrap();
}

/// Seconds from power-on, as the console's lines have them in front.
fn print_times(what: &str, console: &str) {
    let at = |words: &str| {
        let line = console.lines().find(|l| l.contains(words))?;
        line.strip_prefix('[')?.split_once(']')?.0.trim().parse::<f64>().ok()
    };
    let login = console
        .lines()
        .find_map(|l| l.strip_prefix("emulated machine: marker seen after ")?.split(' ').next());
    let show = |words| at(words).map_or("-".to_owned(), |t| format!("{t:.1}"));
    println!(
        "figures: {what}: seconds from power-on: /init {}, address {}, switch of root {}, installed system up {}",
        show("is process 1"),
        show("eth0 has "),
        show("becomes process 1"),
        login
            .filter(|_| console.contains("EMU-LOGGED-IN-") || console.contains("EMU-ROOTFS-UP"))
            .unwrap_or("-")
    );
}
