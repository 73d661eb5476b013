//! `piman netboot build`, and `piman serve` with DHCP and TFTP in a network namespace, tried with
//! clients that others wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use piman_tests::binaries;
use tempfile::TempDir;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A program for 64-bit ARM that is nothing but its headers.
fn agent() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 183;
    elf.extend(b"the agent's code".repeat(100));
    elf
}

fn kernel() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// What a folder is made from.
fn ingredients(dir: &Path) {
    fs::create_dir_all(dir.join("firmware")).unwrap();
    fs::create_dir_all(dir.join("modules")).unwrap();
    fs::write(dir.join("agent"), agent()).unwrap();
    fs::write(dir.join("kernel"), kernel()).unwrap();
    for name in ["start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb", "kernel7.img", "LICENCE", "issue.txt"] {
        fs::write(dir.join("firmware").join(name), name).unwrap();
    }
    for name in ["b.ko", "a.ko", "c.ko.xz"] {
        fs::write(dir.join("modules").join(name), name).unwrap();
    }
}

fn build(dir: &Path, out: &str, more: &[&str]) -> Command {
    let mut build = Command::new(binaries::piman());
    build.current_dir(dir).args(["netboot", "build", "--out", out, "--agent", "agent"]).args(more);
    build
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    ingredients(dir.path());
    let more = ["--firmware", "firmware", "--kernel", "kernel", "--modules", "modules"];
    let said = run(&mut build(dir.path(), "one", &more));
    run(&mut build(dir.path(), "two", &more));
    let mut names: Vec<String> = fs::read_dir(dir.path().join("one"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "bcm2711-rpi-4-b.dtb",
        "cmdline.txt",
        "config.txt",
        "fixup4.dat",
        "initramfs.cpio.gz",
        "kernel8.img",
        "start4.elf",
    ];
    assert_eq!(names, expected);
    for name in names {
        let read = |folder: &str| fs::read(dir.path().join(folder).join(&name)).unwrap();
        assert!(read("one") == read("two"), "{name}");
    }
    assert!(said.contains("a Pi 3 will not boot: there is no bootcode.bin"), "{said}");
    assert!(!said.contains("a Pi 4 will not boot"), "{said}");
    // What others unpack is what we packed.
    let packed = dir.path().join("one/initramfs.cpio.gz");
    let out = dir.path().join("unpacked");
    fs::create_dir(&out).unwrap();
    run(Command::new("sh")
        .arg("-c")
        .arg("gzip -dc $1 | busybox cpio -t")
        .arg("-")
        .arg(&packed)
        .current_dir(&out));
    let unpack = "gzip -dc $1 | (busybox cpio -i -d -m || true) 2>/dev/null";
    run(Command::new("sh").arg("-c").arg(unpack).arg("-").arg(&packed).current_dir(&out));
    assert_eq!(fs::read(out.join("init")).unwrap(), agent());
    assert_eq!(fs::read_to_string(out.join("lib/modules/piman/000-a.ko")).unwrap(), "a.ko");
    assert_eq!(fs::read_to_string(out.join("lib/modules/piman/001-b.ko")).unwrap(), "b.ko");
    assert!(!out.join("lib/modules/piman/002-c.ko.xz").exists());
}

#[test]
fn what_could_not_boot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ingredients(dir.path());
    let fails = |more: &[&str], says: &str| {
        let output = build(dir.path(), "out", more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    };
    fs::write(dir.path().join("empty"), "").unwrap();
    fails(&["--kernel", "empty"], "no kernel for 64-bit ARM");
    fails(&["--firmware", "modules"], "has no firmware");
    fails(&["--modules", "firmware"], "no modules");
    fails(&["--kernel", "kernel", "--cmdline", "a\nb"], "one line");
    fs::write(dir.path().join("agent"), "#!/bin/sh\n").unwrap();
    fails(&["--kernel", "kernel"], "--agent");
    assert!(!dir.path().join("out").exists(), "nothing is left half");
}

/// Two namespaces with a cable between them: the server's with the address 192.168.77.1, and the Pi's.
struct Network {
    server: String,
    pi: String,
    children: Vec<Child>,
    dir: TempDir,
}

impl Network {
    /// `None` if it cannot be made here, which is said.
    fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
            println!("skipped: needs ip");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let number = std::process::id();
        let here = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let (server, pi) = (format!("piman-s-{number}-{here}"), format!("piman-p-{number}-{here}"));
        let network = Self { server, pi, children: Vec::new(), dir };
        let (server, pi) = (&network.server, &network.pi);
        for line in [
            format!("netns add {server}"),
            format!("netns add {pi}"),
            format!(
                "-n {server} link add cable type veth peer name eth0 address b8:27:eb:00:00:01 netns {pi}"
            ),
            format!("-n {server} link set lo up"),
            format!("-n {pi} link set lo up"),
            format!("-n {server} address add 192.168.77.1/24 dev cable"),
            format!("-n {server} link set cable up"),
            format!("-n {pi} link set eth0 up"),
        ] {
            run(Command::new("ip").args(line.split_whitespace()));
        }
        Some(network)
    }

    fn ip(&self, namespace: &str, line: &str) {
        run(Command::new("ip").args(["-n", namespace]).args(line.split_whitespace()));
    }

    fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]).current_dir(self.dir.path());
        command
    }

    fn in_pi(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        run(self.command(&self.pi, words.next().unwrap()).args(words))
    }

    /// Starts the server; returns when it says that it listens.
    fn serve(&mut self, more: &[&str]) {
        let dir = self.dir.path();
        if !dir.join("boot").exists() {
            ingredients(dir);
            run(&mut build(dir, "boot", &["--firmware", "firmware", "--kernel", "kernel"]));
            run(Command::new("tar").args(["-czf", "root.tar.gz", "firmware"]).current_dir(dir));
        }
        let log = fs::File::create(dir.join("log")).unwrap();
        let out = fs::File::create(dir.join("out")).unwrap();
        let mut command = self.command(&self.server, binaries::piman().to_str().unwrap());
        command.args(["-v", "serve", "--rootfs", "root.tar.gz", "--state", "state", "--netboot", "boot"]);
        command.args(["--dhcp-interface", "cable"]).args(more).stdout(out).stderr(log);
        self.children.push(command.spawn().unwrap());
        self.wait("out", "dhcp ");
    }

    /// Waits until a file has these words.
    #[track_caller]
    fn wait(&self, file: &str, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let text = fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
            if text.contains(words) {
                return;
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{file} does not say {words}: {text}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn piman(&self, arguments: &[&str]) -> String {
        run(Command::new(binaries::piman())
            .args(arguments)
            .args(["--state", "state"])
            .current_dir(self.dir.path()))
    }

    /// busybox' DHCP client, which prints what it was told.
    fn udhcpc(&self, more: &str) -> String {
        let script = self.dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n[ $1 = bound ] && env | grep -E '^(ip|subnet|router|dns|lease|siaddr|boot_file|serverid|tftp)='\nexit 0\n").unwrap();
        run(Command::new("chmod").arg("755").arg(&script));
        let script: PathBuf = script;
        let line = format!("busybox udhcpc -i eth0 -f -q -n -t 8 -T 1 -s {} {more}", script.display());
        self.in_pi(&line)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop();
        for namespace in [&self.server, &self.pi] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

const SERVER: [&str; 8] = [
    "--dhcp",
    "server",
    "--dhcp-range",
    "192.168.77.10-192.168.77.12",
    "--dhcp-router",
    "192.168.77.254",
    "--dhcp-dns",
    "192.168.77.253",
];

#[test]
fn a_client_gets_an_address_files_and_a_timeline() {
    let Some(mut network) = Network::make() else { return };
    let pi = network.pi.clone();
    network.serve(&SERVER);
    let told = network.udhcpc("");
    for line in [
        "ip=192.168.77.10",
        "subnet=255.255.255.0",
        "router=192.168.77.254",
        "dns=192.168.77.253",
        "lease=3600",
        "siaddr=192.168.77.1",
        "serverid=192.168.77.1",
    ] {
        assert!(told.lines().any(|l| l == line), "{line}: {told}");
    }
    network.ip(&pi, "address add 192.168.77.10/24 dev eth0");
    let length = fs::metadata(network.dir.path().join("boot/initramfs.cpio.gz")).unwrap().len();
    network.in_pi("busybox tftp -g -b 1468 -r abcdef01/initramfs.cpio.gz -l fetched 192.168.77.1");
    assert_eq!(fs::metadata(network.dir.path().join("fetched")).unwrap().len(), length);
    network.wait("log", "tftp: initramfs.cpio.gz");

    let deadline = Instant::now() + Duration::from_secs(20);
    // What happened is saved from time to time.
    while !network.piman(&["devices"]).contains("b8:27:eb:00:00:01") {
        assert!(Instant::now() < deadline, "the device is not known");
    }
    loop {
        let timeline = network.piman(&["device", "b8:27:eb:00:00:01"]);
        let all = ["is offered 192.168.77.10", "has 192.168.77.10", "initramfs.cpio.gz: "];
        if all.iter().all(|words| timeline.contains(words)) {
            break;
        }
        assert!(Instant::now() < deadline, "{timeline}");
    }

    // The lease is there after a restart, and the address the same.
    network.stop();
    network.ip(&pi, "address flush dev eth0");
    network.serve(&SERVER);
    assert!(network.udhcpc("").contains("ip=192.168.77.10"));
    assert!(network.udhcpc("-r 192.168.77.10").contains("ip=192.168.77.10"));
}

#[test]
fn an_address_that_somebody_has_is_not_given() {
    let Some(mut network) = Network::make() else { return };
    // Another machine on the same cable, with an address of the pool.
    let pi = network.pi.clone();
    network.ip(&pi, "link add other link eth0 type macvlan mode bridge");
    network.ip(&pi, "link set other up");
    network.ip(&pi, "address add 192.168.77.10/24 dev other");
    network.serve(&SERVER);
    assert!(network.udhcpc("").contains("ip=192.168.77.11"));
    network.wait("log", "somebody has 192.168.77.10");
}

#[test]
fn fixed_leases_and_a_pool_that_is_empty() {
    let Some(mut network) = Network::make() else { return };
    network.serve(&["--dhcp", "server", "--dhcp-lease", "b8:27:eb:00:00:01=192.168.77.40"]);
    assert!(network.udhcpc("").contains("ip=192.168.77.40"));
    network.stop();
    network.serve(&["--dhcp", "server", "--dhcp-lease", "b8:27:eb:00:00:02=192.168.77.40"]);
    let pi = network
        .command(&network.pi, "busybox")
        .args(["udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"])
        .status();
    assert!(!pi.unwrap().success(), "the only address is another's");
    network.wait("log", "no address is left");
}

#[test]
fn a_proxy_gives_no_address_and_others_hear_nothing() {
    let Some(mut network) = Network::make() else { return };
    network.serve(&["--dhcp", "proxy"]);
    for class in ["PXEClient:Arch:00000:UNDI:002001", "udhcp"] {
        let client =
            ["udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true", "-V", class];
        let pi = network.command(&network.pi, "busybox").args(client).status();
        assert!(!pi.unwrap().success(), "a proxy has no address to give");
    }
    network.wait("log", "the boot ROM is told where to boot from");
    let log = fs::read_to_string(network.dir.path().join("log")).unwrap();
    assert!(!log.contains("is offered"), "{log}");
}

#[test]
fn ranges_of_another_network_are_refused() {
    let Some(mut network) = Network::make() else { return };
    network.serve(&["--dhcp", "proxy"]);
    network.stop();
    let refused = |more: &[&str], says: &str| {
        let mut command = network.command(&network.server, binaries::piman().to_str().unwrap());
        command
            .args(["serve", "--rootfs", "root.tar.gz", "--state", "state", "--netboot", "boot"])
            .args(more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    };
    let server = ["--dhcp", "server", "--dhcp-interface", "cable", "--dhcp-range"];
    refused(&[&server[..], &["10.0.0.1-10.0.0.9"]].concat(), "is not in the network of cable");
    refused(&["--dhcp", "server", "--dhcp-interface", "cable"], "--dhcp-range");
    refused(&["--dhcp", "proxy", "--dhcp-interface", "eth9"], "cable (192.168.77.1)");
}
