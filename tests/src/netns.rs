//! Machines in network namespaces of their own: a server, a Pi and others on one switch, and the
//! boot folder that the server serves there.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::binaries;
use crate::disk::run;

/// Runs a command to its end; what it printed.
///
/// # Panics
/// If it fails.
pub fn printed(command: &mut Command) -> String {
    String::from_utf8_lossy(&run(command).stdout).into_owned()
}

/// A program for 64-bit ARM that is nothing but its headers.
#[must_use]
pub fn agent() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 183;
    elf.extend(b"the agent's code".repeat(100));
    elf
}

/// A kernel of which there is the header only.
#[must_use]
pub fn kernel() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// Puts into `dir` what a boot folder is made from.
///
/// # Panics
/// If it cannot be written.
pub fn ingredients(dir: &Path) {
    for folder in ["firmware/overlays", "modules"] {
        fs::create_dir_all(dir.join(folder)).expect("a folder is made");
    }
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("a file is written");
    write("agent", &agent());
    write("kernel", &kernel());
    for name in ["start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb", "kernel7.img", "LICENCE", "issue.txt"] {
        write(&format!("firmware/{name}"), name.as_bytes());
    }
    for name in ["overlay_map.dtb", "disable-bt.dtbo", "README"] {
        write(&format!("firmware/overlays/{name}"), name.as_bytes());
    }
    for name in ["b.ko", "a.ko", "README"] {
        write(&format!("modules/{name}"), name.as_bytes());
    }
}

/// `piman netboot build` of these ingredients.
#[must_use]
pub fn build(dir: &Path, out: &str, more: &[&str]) -> Command {
    let mut build = Command::new(binaries::piman());
    build.current_dir(dir).args(["netboot", "build", "--out", out, "--agent", "agent"]).args(more);
    build
}

/// Runs a command to its end, whatever that is; what it said.
///
/// # Panics
/// If it cannot be started.
pub fn said(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

/// # Panics
/// If these words are not there, in this order.
#[track_caller]
pub fn assert_says(text: &str, all: &[&str]) {
    let mut rest = text;
    for words in all {
        let Some(at) = rest.find(words) else { panic!("not said (in this order): {words}\n{text}") };
        rest = rest.get(at + words.len()..).unwrap_or_default();
    }
}

/// Network namespaces on one switch, which is the interface `cable` of the server's, with the address
/// 192.168.77.1; the Pi's has `eth0`. All of it goes with this value.
pub struct Network {
    /// The server's namespace.
    pub server: String,
    /// The Pi's.
    pub pi: String,
    others: Vec<String>,
    children: Vec<Child>,
    /// Where programs in the namespaces work.
    pub dir: TempDir,
}

impl Network {
    /// Needs root, and `ip` of iproute2.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn make() -> Self {
        let dir = tempfile::tempdir().expect("a folder is made");
        let here = dir.path().file_name().expect("it has a name").to_string_lossy().replace('.', "");
        let name = |of: &str| format!("piman-{of}-{}-{here}", std::process::id());
        let mut network =
            Self { server: name("s"), pi: name("p"), others: Vec::new(), children: Vec::new(), dir };
        let server = network.server.clone();
        for line in [
            format!("netns add {server}"),
            format!("-n {server} link add cable type bridge"),
            format!("-n {server} link set lo up"),
            format!("-n {server} address add 192.168.77.1/24 dev cable"),
            format!("-n {server} link set cable up"),
        ] {
            run(Command::new("ip").args(line.split_whitespace()));
        }
        let pi = network.pi.clone();
        network.plug_in(&pi, "b8:27:eb:00:00:01");
        network
    }

    /// Makes a namespace with a cable to the switch.
    fn plug_in(&mut self, namespace: &str, mac: &str) {
        let (server, port) = (&self.server, format!("port{}", self.others.len()));
        for line in [
            format!("netns add {namespace}"),
            format!("-n {server} link add {port} type veth peer name eth0 address {mac} netns {namespace}"),
            format!("-n {server} link set {port} master cable up"),
            format!("-n {namespace} link set lo up"),
            format!("-n {namespace} link set eth0 up"),
        ] {
            run(Command::new("ip").args(line.split_whitespace()));
        }
        self.others.push(namespace.to_owned());
    }

    /// Another machine on the switch, with this address; returns its namespace.
    pub fn other(&mut self, address: &str) -> String {
        let name = format!("{}-{}", self.pi, self.others.len());
        self.plug_in(&name, &format!("02:00:00:00:00:{:02x}", self.others.len()));
        self.ip(&name, &format!("address add {address} dev eth0"));
        name
    }

    /// A namespace that a test has made goes with this value, too.
    pub fn adopt(&mut self, namespace: &str) {
        self.others.push(namespace.to_owned());
    }

    /// `ip` in a namespace.
    pub fn ip(&self, namespace: &str, line: &str) -> String {
        printed(Command::new("ip").args(["-n", namespace]).args(line.split_whitespace()))
    }

    /// A command in a namespace, in the folder.
    #[must_use]
    pub fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]).current_dir(self.dir.path());
        command
    }

    /// Runs a command in the Pi's namespace.
    pub fn in_pi(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        printed(self.command(&self.pi, words.next().unwrap_or_default()).args(words))
    }

    /// Starts a program that ends with this value; what it says goes into a file.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&mut self, mut command: Command, log: &str) {
        let log = fs::File::create(self.dir.path().join(log)).expect("a file is made");
        command.stdout(log.try_clone().expect("a handle")).stderr(log).stdin(Stdio::null());
        self.children.push(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
    }

    /// The agent's attempt, as process 1 starts it, in a namespace with these options; `ATTEMPT` in the
    /// script stands for it. Its `/run` is its own, and is kept over all attempts of one script; the
    /// disk is too small, so that an attempt ends when the server has been told so.
    ///
    /// # Panics
    /// If its files cannot be written.
    #[must_use]
    pub fn attempt(&self, namespace: &str, cmdline: &str, script: &str) -> Command {
        let dir = self.dir.path();
        fs::write(dir.join("disk"), "").expect("a file is written");
        let cmdline = format!("piman.log=debug piman.disk={}/disk {cmdline}", dir.display());
        fs::write(dir.join("cmdline"), cmdline).expect("a file is written");
        let attempt = format!("{} init-step --cmdline cmdline", binaries::pi_agent().display());
        let script = script.replace("ATTEMPT", &attempt);
        let script = format!("mount -t tmpfs none /run && mount -t tmpfs none /etc && {script}");
        let mut command = self.command(namespace, "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null());
        command
    }

    /// Starts the server; returns when it says that it listens.
    ///
    /// # Panics
    /// If it does not.
    pub fn serve(&mut self, more: &[&str]) {
        let dir = self.dir.path();
        if !dir.join("boot").exists() {
            ingredients(dir);
            run(&mut build(dir, "boot", &["--firmware", "firmware", "--kernel", "kernel"]));
            run(Command::new("tar").args(["-czf", "root.tar.gz", "firmware"]).current_dir(dir));
        }
        let log = fs::File::create(dir.join("log")).expect("a file is made");
        let out = fs::File::create(dir.join("out")).expect("a file is made");
        let mut command = self.command(&self.server, &binaries::piman().display().to_string());
        command.args([
            "-v",
            "serve",
            "--rootfs",
            "root.tar.gz",
            "--allow-unfit",
            "--state",
            "state",
            "--netboot",
            "boot",
        ]);
        command.args(["--dhcp-interface", "cable"]).args(more).stdout(out).stderr(log);
        self.children.push(command.spawn().expect("the server starts"));
        self.wait("out", "dhcp ");
    }

    /// What is in a file of the folder.
    #[must_use]
    pub fn text(&self, file: &str) -> String {
        fs::read(self.dir.path().join(file))
            .map_or(String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }

    /// Waits until a file has these words.
    ///
    /// # Panics
    /// If it has not within two minutes.
    #[track_caller]
    pub fn wait(&self, file: &str, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let text = self.text(file);
            if text.contains(words) {
                return;
            }
            assert!(Instant::now() < deadline, "{file} does not say {words}: {text}\n{}", self.text("log"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends all programs.
    pub fn stop(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A command of piman on the server's state.
    #[must_use]
    pub fn piman(&self, arguments: &[&str]) -> String {
        printed(
            Command::new(binaries::piman())
                .args(arguments)
                .args(["--state", "state"])
                .current_dir(self.dir.path()),
        )
    }

    /// busybox' DHCP client in the Pi's namespace, which prints what it was told.
    ///
    /// # Panics
    /// If it gets no address.
    #[must_use]
    pub fn udhcpc(&self, more: &str) -> String {
        let script = self.dir.path().join("script");
        let text = "#!/bin/sh\n[ $1 = bound ] && env | grep -E \
            '^(ip|subnet|router|dns|lease|siaddr|boot_file|serverid|tftp)='\nexit 0\n";
        fs::write(&script, text).expect("a file is written");
        run(Command::new("chmod").arg("755").arg(&script));
        let line = format!("busybox udhcpc -i eth0 -f -q -n -t 8 -T 1 -s {} {more}", script.display());
        self.in_pi(&line)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop();
        for namespace in self.others.iter().chain([&self.server]) {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}
