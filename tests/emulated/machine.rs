//! The emulated Pi: finding the tools, what it boots, starting it, reading its console.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use piman_tests::binaries;

use super::readme;

/// Where everything is that an emulation needs.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The scripts of the emulated Pi.
    scripts: PathBuf,
    /// Its kernel and that kernel's modules.
    cache: PathBuf,
    /// Cards, boot folders and root filesystems; kept between runs.
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
    /// Debian with systemd, made by the recipe in the README; a login with its password is where a boot has to get.
    Debian,
}

/// How far a boot goes: as far as it has something to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The agent is done.
    RootSwitched,
    /// The installed system is up.
    Up(Root),
}

impl Until {
    /// What the console shows then.
    fn marker(self) -> &'static str {
        match self {
            Self::RootSwitched => "becomes process 1",
            Self::Up(Root::Tiny) => "EMU-ROOTFS-UP",
            Self::Up(Root::Debian) => LOGGED_IN,
        }
    }

    /// What is typed on the console on the way there: when it shows the first, the second.
    fn typed(self) -> Vec<(&'static str, String)> {
        if self != Self::Up(Root::Debian) {
            return Vec::new();
        }
        let (user, password) = readme::login();
        // As the user, when the network is up and SSH answers; what is typed is shown, so it does not have the marker.
        let look = "until networkctl --no-legend | grep routable && head -c 7 </dev/tcp/127.0.0.1/22; do sleep 1; done; \
             ls /lib/modules; echo \"EMU-LOGGED-IN-$(id -un)\"";
        vec![("login: ", user), ("Password: ", password), (r"\$ $", look.to_owned())]
    }
}

/// What the console shows when the user of the recipe is in.
const LOGGED_IN: &str = "EMU-LOGGED-IN-[a-z]";

/// The machines, and the modules that Debian's kernel needs for their cards and networks.
const MODULES: [(&str, &[&str]); 2] = [
    ("virt", &["virtio_pci", "virtio_net", "virtio_rng", "sdhci-pci", "ext4"]),
    ("raspi3b", &["bcm2835", "sdhci-iproc", "phy-generic", "dwc2", "cdc_ether", "bcm2835-rng", "ext4"]),
];

/// Where the scripts are.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("emulated/machine")
}

impl Tools {
    /// Finds them; `Err` says what is missing.
    pub(crate) fn find() -> Result<Self, String> {
        let variable = |name: &str, default: PathBuf| std::env::var_os(name).map_or(default, PathBuf::from);
        let home = variable("HOME", "/root".into());
        let cache = variable("PIMAN_EMULATED_CACHE", home.join(".cache/piman-emulated"));
        let scripts = scripts();
        match Command::new(scripts.join("fetch.sh")).status() {
            Ok(status) if status.success() => {}
            other => {
                return Err(format!("the emulated Pi's kernel is not here: fetch.sh failed ({other:?})"));
            }
        }
        for program in ["qemu-system-aarch64", "python3"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                return Err(format!("{program} is not installed"));
            }
        }
        // This program is target/debug/deps/emulated-….
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let built = this.parent().and_then(Path::parent).ok_or("not built by cargo")?;
        let target = built.parent().ok_or("not built by cargo")?;
        let built = "aarch64-unknown-linux-musl/agent/pi-agent";
        let agent =
            [target.join("cross"), target.to_owned()].map(|t| t.join(built)).into_iter().find(|a| a.exists());
        let agent = variable("PIMAN_AGENT", agent.unwrap_or_default());
        if !agent.exists() {
            return Err(
                "no agent for the Pi is built (`.ci/run agent` builds one), and PIMAN_AGENT names none"
                    .into(),
            );
        }
        let folder = target.join("emulated");
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Self { scripts, cache, folder, agent, piman: binaries::piman().to_owned() })
    }

    /// The archive of a root filesystem, made if it is not there yet or was made otherwise.
    pub(crate) fn archive(&self, root: Root) -> Result<PathBuf, String> {
        // One for each: the Debian takes minutes, and machines with the other do not wait for it.
        static ONE_AT_A_TIME: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
        let _one = ONE_AT_A_TIME[root as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let (name, arguments): (_, &[&str]) = match root {
            Root::Tiny => ("tiny", &["--tiny"]),
            Root::Debian => ("debian-arm64", &["--debian"]),
        };
        let [archive, new, made_by, makes] =
            ["tgz", "new.tgz", "sh", "new.sh"].map(|end| self.folder.join(format!("{name}.{end}")));
        let recipe = match root {
            Root::Tiny => String::new(),
            Root::Debian => readme::script(&readme::block("rootfs")),
        };
        if archive.exists() && fs::read_to_string(&made_by).is_ok_and(|text| text == recipe) {
            return Ok(archive);
        }
        let mut command = Command::new(self.scripts.join("mkrootfs.sh"));
        command.args(arguments).arg(&new);
        match root {
            Root::Tiny => command.arg("8"),
            Root::Debian => {
                fs::write(&makes, &recipe).map_err(|e| format!("{}: {e}", makes.display()))?;
                command.arg(&makes)
            }
        };
        match command.status() {
            Ok(status) if status.success() => {}
            other => return Err(format!("mkrootfs.sh {arguments:?} failed ({other:?})")),
        }
        // In this order an archive never counts as made by another recipe than it was.
        let _ = fs::remove_file(&made_by);
        fs::rename(&new, &archive).and_then(|()| fs::write(&made_by, &recipe)).map_err(|e| e.to_string())?;
        Ok(archive)
    }

    /// The boot folder of the README's recipe, for the machine `virt`, with the drivers for its card and network.
    pub(crate) fn boot_folder_of_recipe(&self) -> PathBuf {
        let folder = self.folder.join("recipe");
        let _ = fs::remove_dir_all(&folder);
        let firmware = folder.join("firmware/boot");
        let agent = folder.join("target/aarch64-unknown-linux-musl/agent");
        fs::create_dir_all(&firmware).and_then(|()| fs::create_dir_all(&agent)).unwrap();
        symlink(&self.agent, agent.join("pi-agent")).unwrap();
        symlink(self.cache.join("kernel8.img"), firmware.join("kernel8.img")).unwrap();
        let mut commands = readme::block("netboot").trim_end().to_owned();
        commands += &format!(" --packing zstd --modules {}", self.modules().display());
        MODULES[0].1.iter().for_each(|module| commands += &format!(" --module {module}"));
        let mut build = Command::new("bash");
        build.current_dir(&folder).env("PIMAN", &self.piman).args(["-c", &readme::script(&commands)]);
        let output = build.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{commands}: {text}{}", String::from_utf8_lossy(&output.stderr));
        println!("{text}");
        folder.join("netboot")
    }

    /// A command of piman on the state of a server.
    pub(crate) fn piman(&self, state: &Path, words: &[&str]) -> String {
        let mut command = Command::new(&self.piman);
        command.arg(words[0]).arg("--state").arg(state).args(&words[1..]);
        String::from_utf8(piman_tests::disk::run(&mut command).stdout).unwrap()
    }

    /// Adds an image to the state of a server.
    pub(crate) fn add_image(&self, state: &Path, file: &Path) -> String {
        let mut command = Command::new(&self.piman);
        command.args(["image", "add", "--state"]).arg(state).arg(file);
        String::from_utf8(piman_tests::disk::run(&mut command).stdout).unwrap()
    }

    /// The modules of the kernel.
    fn modules(&self) -> PathBuf {
        let version = fs::read_to_string(self.cache.join("kernel-version")).unwrap();
        self.cache.join("sysroot/lib/modules").join(version.trim())
    }

    /// A boot folder for one of [`MODULES`], as `piman netboot build` makes it: our initramfs, with the
    /// modules of Debian's kernel, and nothing of the tools.
    pub(crate) fn boot_folder(&self, machine: &str, packing: &str) -> PathBuf {
        static BUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        let out = self.folder.join(format!("boot-{machine}-{packing}"));
        if built.contains(&out) {
            return out;
        }
        let modules = MODULES.iter().find(|(name, _)| *name == machine).map_or(&[][..], |(_, all)| all);
        let mut build = Command::new(&self.piman);
        build
            .args(["netboot", "build", "--packing", packing, "--out"])
            .arg(&out)
            .arg("--agent")
            .arg(&self.agent);
        build.arg("--kernel").arg(self.cache.join("kernel8.img"));
        build.arg("--modules").arg(self.modules());
        build.args(modules.iter().flat_map(|module| ["--module", module]));
        if machine == "raspi3b" {
            build.arg("--dtb").arg(self.cache.join("raspi3b.dtb"));
        }
        let output = build.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text.lines().filter(|l| l.contains("initramfs")).for_each(|l| println!("{machine}: {l}"));
        built.push(out.clone());
        out
    }

    /// Whether a machine can boot over the network here; `Err` says what is missing.
    pub(crate) fn needs_uboot(&self) -> Result<(), String> {
        if !Path::new("/usr/lib/u-boot/qemu_arm64/u-boot.bin").exists() {
            return Err("U-Boot for the emulator is not installed (u-boot-qemu)".into());
        }
        match Command::new("mkimage").arg("-V").stdout(Stdio::null()).status() {
            Ok(_) => Ok(()),
            Err(_) => Err("mkimage is not installed (u-boot-tools)".into()),
        }
    }

    /// Starts a machine; `more` are options of `boot.py`.
    pub(crate) fn start(
        &self,
        until: Until,
        card: &Path,
        size: &str,
        deadline: Duration,
        more: &[&str],
    ) -> Machine {
        let fails = ["--fail", "piman: .* failed, and needs somebody", "--fail", "md5sum: WARNING"];
        let more = [&["--sd-size", size][..], &fails, more].concat();
        self.start_until(until.marker(), &until.typed(), card, deadline, &more)
    }

    /// The same, until the console shows `marker`; on the way there, when it shows the first of a pair, the second is
    /// typed.
    pub(crate) fn start_until(
        &self,
        marker: &str,
        typed: &[(&str, String)],
        card: &Path,
        deadline: Duration,
        more: &[&str],
    ) -> Machine {
        let mut command = Command::new("python3");
        command.arg(self.scripts.join("boot.py")).args(["--marker", marker]);
        command.args(["--timeout", &deadline.as_secs().to_string(), "--sd"]).arg(card).args(more);
        command.args(typed.iter().flat_map(|(shown, text)| ["--type", shown, text]));
        Machine::start(&mut command)
    }

    /// The image of a disk in a layout of others, made if it is not there yet or was made otherwise.
    pub(crate) fn disk_image(&self, layout: &str) -> Result<PathBuf, String> {
        // Two layouts may need the same tree.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !rustix::process::geteuid().is_root() {
            return Err("needs root for an image of a disk".into());
        }
        let mut command = Command::new(self.scripts.join("mkdisk.sh"));
        let output = command.arg(layout).stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        match said.lines().last() {
            Some(path) if output.status.success() => Ok(path.into()),
            _ => Err(format!("mkdisk.sh {layout} failed ({})", output.status)),
        }
    }

    /// Boots a machine whose kernel and initramfs QEMU loads, as far as is said, and returns its console. The machine is cut off then, as by pulling the plug.
    pub(crate) fn boot(&self, boot: &Boot<'_>) -> String {
        self.switch_on(boot).finish()
    }

    /// Starts such a machine.
    pub(crate) fn switch_on(&self, boot: &Boot<'_>) -> Machine {
        let initramfs = self.boot_folder(boot.machine, "gzip").join("initramfs.cpio.gz");
        let append = format!("piman.server=10.0.2.2:{} {}", boot.control_port, boot.append);
        let more =
            ["--machine", boot.machine, "--append", &append, "--initrd", &initramfs.display().to_string()];
        self.start(boot.until, boot.card, boot.card_size, boot.deadline, &more)
    }
}

/// One boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot<'a> {
    /// One of [`MODULES`].
    pub(crate) machine: &'a str,
    /// The card, made blank if it does not exist.
    pub(crate) card: &'a Path,
    /// The size of a blank card: a power of two.
    pub(crate) card_size: &'a str,
    /// Where the server is on this machine's loopback.
    pub(crate) control_port: u16,
    /// What is added to the kernel command line.
    pub(crate) append: &'a str,
    /// How far it goes.
    pub(crate) until: Until,
    /// Four times what an idle machine needs.
    pub(crate) deadline: Duration,
}

/// A machine that runs, and what it says.
#[derive(Debug)]
pub(crate) struct Machine {
    boot: Child,
    console: Arc<Console>,
}

#[derive(Debug, Default)]
struct Console {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    over: bool,
}

impl Machine {
    fn start(command: &mut Command) -> Self {
        let mut boot = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(boot.stdout.take().unwrap()).split(b'\n');
        let console = Arc::new(Console::default());
        let to = Arc::clone(&console);
        let test = std::thread::current().name().unwrap_or("emulated").to_owned();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                println!("{test}: {line}");
                to.said.lock().unwrap().text.push_str(&(line + "\n"));
                to.more.notify_all();
            }
            to.said.lock().unwrap().over = true;
            to.more.notify_all();
        });
        Self { boot, console }
    }

    /// Waits until the console says this; fails if the machine ends before.
    #[track_caller]
    pub(crate) fn wait(&self, words: &str) {
        let said = self.console.said.lock().unwrap();
        let not_yet = |said: &mut Said| !said.text.contains(words) && !said.over;
        let said = self.console.more.wait_while(said, not_yet).unwrap();
        assert!(said.text.contains(words), "the machine ended before it said {words}");
    }

    /// The process of the emulator.
    fn emulator(&self) -> rustix::process::Pid {
        let id = self.boot.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let child = children.split_whitespace().next().and_then(|c| c.parse().ok()).unwrap();
        rustix::process::Pid::from_raw(child).unwrap()
    }

    /// Does something while the machine stands still, between two of its instructions.
    pub(crate) fn paused<T>(&self, look: impl FnOnce() -> T) -> T {
        let emulator = self.emulator();
        rustix::process::kill_process(emulator, rustix::process::Signal::STOP).unwrap();
        let state = || fs::read_to_string(format!("/proc/{emulator}/stat")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !state().contains(") T ") {
            assert!(Instant::now() < deadline, "{}", state());
        }
        let seen = look();
        rustix::process::kill_process(emulator, rustix::process::Signal::CONT).unwrap();
        seen
    }

    /// Waits until it is as far as was said; returns the console.
    pub(crate) fn finish(mut self) -> String {
        let status = self.boot.wait().unwrap();
        let said = self.console.said.lock().unwrap();
        let said = self.console.more.wait_while(said, |said| !said.over).unwrap();
        assert!(status.success(), "it did not come up ({status})");
        said.text.clone()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // By a signal that it can hear, so that it ends the emulator as well.
        if let (Ok(None), Some(pid)) =
            (self.boot.try_wait(), rustix::process::Pid::from_raw(self.boot.id().cast_signed()))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.boot.wait();
        }
    }
}

/// A server that ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where its control connection listens.
    pub(crate) control_port: u16,
    /// Where files are taken, if it takes any.
    pub(crate) transfer_port: Option<u16>,
}

impl Server {
    /// Starts `piman serve` with an archive, on free ports of loopback, with a state of its own.
    pub(crate) fn start(tools: &Tools, archive: &Path, state: &Path) -> Self {
        Self::start_by(&mut Self::command(tools, archive, state))
    }

    /// The same, with a folder for what Pis send.
    pub(crate) fn start_with_files(tools: &Tools, archive: &Path, state: &Path, files: &Path) -> Self {
        let mut command = Self::command(tools, archive, state);
        Self::start_by(command.args(["--transfer-port", "0", "--transfer-dir"]).arg(files))
    }

    fn command(tools: &Tools, archive: &Path, state: &Path) -> Command {
        let mut command = Command::new(&tools.piman);
        command.args(["serve", "--listen", "127.0.0.1", "--control-port", "0", "--rootfs-port", "0"]);
        command.args(["--fetch-port", "0", "--rootfs"]).arg(archive).arg("--state").arg(state);
        command
    }

    /// Starts it by this command; returns when it listens.
    pub(crate) fn start_by(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut port = |name: &str| {
            lines
                .by_ref()
                .map_while(Result::ok)
                .inspect(|line| println!("server: {line}"))
                .find_map(|line| line.strip_prefix(name)?.rsplit_once(':')?.1.parse().ok())
                .unwrap_or_else(|| panic!("the server does not say where it listens: {name}"))
        };
        let control_port = port("control ");
        let takes_files = command.get_args().any(|a| a == "--transfer-dir");
        let transfer_port = takes_files.then(|| port("transfer "));
        // So that it is never held up by a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("server: {line}")));
        Self { child, control_port, transfer_port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
