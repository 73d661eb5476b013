//! The emulated Pi and the server beside it: finding the tools, starting, reading consoles.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use piman_tests::binaries;

/// Where everything is that an emulation needs.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The scripts of the emulated Pi.
    scripts: PathBuf,
    /// Cards, initramfs and root filesystems; kept between runs.
    pub(crate) folder: PathBuf,
    /// The static agent for the Pi.
    agent: PathBuf,
    /// The server of this machine.
    pub(crate) piman: PathBuf,
}

/// The root filesystems that are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// Busybox and 8 MiB that do not compress, which its init compares with their checksum.
    Tiny,
    /// Debian with systemd; its login prompt is where a boot has to get.
    Debian,
}

impl Root {
    /// What the console shows when the installed system is up.
    pub(crate) fn marker(self) -> &'static str {
        match self {
            Self::Tiny => "EMU-ROOTFS-UP",
            Self::Debian => "emulated-pi login:",
        }
    }
}

impl Tools {
    /// Finds them; `Err` says what is missing.
    pub(crate) fn find() -> Result<Self, String> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
        let variable = |name: &str, default: PathBuf| std::env::var_os(name).map_or(default, PathBuf::from);
        let scripts = variable("PIMAN_TOOLS", top.join("../shared/tools")).join("emulated-pi");
        for script in ["boot.py", "mkinitramfs.sh", "mkrootfs.sh"] {
            if !scripts.join(script).exists() {
                return Err(format!("no {script} in {} (PIMAN_TOOLS)", scripts.display()));
            }
        }
        let home = variable("HOME", "/root".into());
        let cache = variable("EMULATED_PI_CACHE", home.join(".cache/emulated-pi"));
        if !cache.join(".ready").exists() {
            return Err(format!(
                "the emulated Pi's kernel is not fetched: run {}/fetch.sh",
                scripts.display()
            ));
        }
        for program in ["qemu-system-aarch64", "python3", "modprobe", "cpio"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                return Err(format!("{program} is not installed"));
            }
        }
        // This program is target/debug/deps/emulated-….
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let built = this.parent().and_then(Path::parent).ok_or("not built by cargo")?;
        let target = built.parent().ok_or("not built by cargo")?;
        let agent = variable("PIMAN_AGENT", target.join("aarch64-unknown-linux-musl/agent/pi-agent"));
        if !agent.exists() {
            return Err(format!("no agent for the Pi at {} (PIMAN_AGENT)", agent.display()));
        }
        let folder = target.join("emulated");
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Self { scripts, folder, agent, piman: binaries::piman().to_owned() })
    }

    /// The archive of a root filesystem, made if it is not there yet.
    pub(crate) fn archive(&self, root: Root) -> Result<PathBuf, String> {
        let (name, arguments): (_, &[&str]) = match root {
            Root::Tiny => ("tiny.tgz", &["--tiny"]),
            Root::Debian => ("debian-arm64.tgz", &["--debian"]),
        };
        if let Some(given) = std::env::var_os("PIMAN_DEBIAN_ROOT").filter(|_| root == Root::Debian) {
            return Ok(given.into());
        }
        let archive = self.folder.join(name);
        if archive.exists() {
            return Ok(archive);
        }
        let new = self.folder.join(format!("new-{name}"));
        let mut command = Command::new(self.scripts.join("mkrootfs.sh"));
        command.args(arguments).arg(&new);
        if root == Root::Tiny {
            command.args(["--pad", "8"]);
        }
        match command.status() {
            Ok(status) if status.success() => {}
            other => return Err(format!("mkrootfs.sh {arguments:?} failed ({other:?})")),
        }
        fs::rename(&new, &archive).map_err(|e| e.to_string())?;
        Ok(archive)
    }

    fn initramfs(&self, machine: &str) -> PathBuf {
        let out = self.folder.join(format!("initramfs-{machine}.gz"));
        let status = Command::new(self.scripts.join("mkinitramfs.sh"))
            .args(["--machine", machine, "--init"])
            .arg(&self.agent)
            .arg("--out")
            .arg(&out)
            .status()
            .unwrap();
        assert!(status.success(), "mkinitramfs.sh: {status}");
        out
    }

    /// Whether a machine can boot over the network here; `Err` says what is missing.
    pub(crate) fn needs_uboot(&self) -> Result<(), String> {
        if !self.scripts.join("netboot.sh").exists() {
            return Err(format!("no netboot.sh in {}", self.scripts.display()));
        }
        if !Path::new("/usr/lib/u-boot/qemu_arm64/u-boot.bin").exists() {
            return Err("U-Boot for the emulator is not installed (u-boot-qemu)".into());
        }
        match Command::new("mkimage").arg("-V").stdout(Stdio::null()).status() {
            Ok(_) => Ok(()),
            Err(_) => Err("mkimage is not installed (u-boot-tools)".into()),
        }
    }

    /// Boots the machine over the network of a namespace of its own, where only our server
    /// answers DHCP and TFTP, until the installed system is up; returns its console.
    #[expect(clippy::too_many_arguments, reason = "one call")]
    pub(crate) fn netboot(
        &self,
        root: Root,
        archive: &Path,
        card: &Path,
        card_size: &str,
        state: &Path,
        deadline: Duration,
        log: &str,
    ) -> String {
        let log = self.folder.join(log);
        let serve = format!(
            "{} serve --rootfs {} --state {} --netboot $EMU_TFTP_ROOT --dhcp server --dhcp-interface $EMU_IF \
             --dhcp-range 192.168.77.10-192.168.77.50 --dhcp-file boot.scr.uimg",
            self.piman.display(),
            archive.display(),
            state.display()
        );
        let status = Command::new(self.scripts.join("netboot.sh"))
            .args(["--marker", root.marker(), "--own-dhcp", "--serve", &serve])
            .arg("--initrd")
            .arg(self.initramfs("virt"))
            .args(["--append", "ip=dhcp piman.server=@IP@", "--"])
            .args(["--sd-size", card_size, "--timeout", &deadline.as_secs().to_string()])
            .args(["--fail", "piman: .* failed, and needs somebody", "--fail", "md5sum: WARNING"])
            .arg("--sd")
            .arg(card)
            .arg("--log")
            .arg(&log)
            .status()
            .unwrap();
        let console = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        assert!(status.success(), "{}: it did not come up ({status})", log.display());
        console
    }

    /// Boots the machine until the installed system is up, and returns its console. The
    /// machine is cut off then, as by pulling the plug.
    pub(crate) fn boot(&self, boot: &Boot<'_>) -> String {
        let log = self.folder.join("console.log");
        let status = Command::new("python3")
            .arg(self.scripts.join("boot.py"))
            .args(["--machine", boot.machine, "--marker", boot.root.marker(), "--sd-size", boot.card_size])
            .args(["--fail", "piman: .* failed, and needs somebody", "--fail", "md5sum: WARNING"])
            .args(["--timeout", &boot.deadline.as_secs().to_string()])
            .arg("--initrd")
            .arg(self.initramfs(boot.machine))
            .arg("--sd")
            .arg(boot.card)
            .arg("--log")
            .arg(&log)
            .arg("--append")
            .arg(format!("ip=dhcp piman.server=10.0.2.2:{} {}", boot.control_port, boot.append))
            .status()
            .unwrap();
        let console = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        assert!(status.success(), "{boot:?}: it did not come up ({status})");
        console
    }
}

/// One boot.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// `virt` or `raspi3b`.
    pub(crate) machine: &'a str,
    /// The card, made blank if it does not exist.
    pub(crate) card: &'a Path,
    /// The size of a blank card: a power of two.
    pub(crate) card_size: &'a str,
    /// Where the server is on this machine's loopback.
    pub(crate) control_port: u16,
    /// What is added to the kernel command line.
    pub(crate) append: &'a str,
    /// What is installed.
    pub(crate) root: Root,
    /// Four times what an idle machine needs.
    pub(crate) deadline: Duration,
}

/// A server that ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where its control connection listens.
    pub(crate) control_port: u16,
    state: PathBuf,
    piman: PathBuf,
}

impl Server {
    /// Starts `piman serve` with an archive, on free ports of loopback, with a state of its own.
    pub(crate) fn start(tools: &Tools, archive: &Path, state: &Path) -> Self {
        let mut child = Command::new(&tools.piman)
            .args(["serve", "--listen", "127.0.0.1", "--control-port", "0", "--rootfs-port", "0"])
            .args(["--fetch-port", "0", "--rootfs"])
            .arg(archive)
            .arg("--state")
            .arg(state)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let control_port = lines
            .by_ref()
            .map_while(Result::ok)
            .inspect(|line| println!("server: {line}"))
            .find_map(|line| line.strip_prefix("control ")?.rsplit_once(':')?.1.parse().ok())
            .expect("the server says where it listens");
        // So that it is never held up by a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("server: {line}")));
        Self { child, control_port, state: state.to_owned(), piman: tools.piman.clone() }
    }

    /// Runs another command of piman on the same state; returns its output.
    pub(crate) fn piman(&self, arguments: &[&str]) -> String {
        let (command, rest) = arguments.split_first().unwrap();
        let output = Command::new(&self.piman)
            .arg(command)
            .arg("--state")
            .arg(&self.state)
            .args(rest)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "piman {arguments:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
