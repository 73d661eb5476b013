//! A server whose state is on a filesystem that can lose its power, and the disks of its Pis.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piman::state::Sqlite;
use piman_tests::contents::{admin, copy, digest, put, with_table};
use piman_tests::disk::{LoopDevice, run};
use piman_tests::lab::{self, Root};
use piman_tests::running::Running;
use piman_tests::server::Server;

/// The size of the filesystem for the state.
const STATE: u64 = 48 << 20;
const TABLE: &str = "label: dos\nstart=2048, size=4096, type=c\nstart=8192, type=83\n";

/// The filesystem of the state. It writes nothing by itself in the time of a round.
struct StateDisk {
    /// What is written on now; after a power cut another.
    disk: Mutex<(PathBuf, LoopDevice)>,
    place: PathBuf,
}

impl StateDisk {
    fn new(folder: &Path) -> Self {
        let file = folder.join("state.img");
        File::create(&file).unwrap().set_len(STATE).unwrap();
        let fast = "lazy_itable_init=0,lazy_journal_init=0";
        run(admin("mke2fs").args(["-q", "-F", "-t", "ext4", "-E", fast]).arg(&file));
        let place = folder.join("state");
        fs::create_dir(&place).unwrap();
        let device = LoopDevice::of(&file);
        let disk = Self { disk: Mutex::new((file, device)), place };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let options = ["-t", "ext4", "-o", "noatime,commit=900"];
        let disk = self.disk.lock().unwrap();
        run(Command::new("mount").args(options).arg(disk.1.path()).arg(&self.place));
    }

    /// Has what a disk has after a power cut, on a copy of it: as long as a program in a name space of its own, an agent of
    /// any test, has a copy of the mount, the kernel would give the same filesystem again, which is cut off.
    fn mount_again(&self) {
        run(Command::new("umount").arg("--lazy").arg(&self.place));
        {
            let mut disk = self.disk.lock().unwrap();
            let copy = disk.0.with_extension(if disk.0.extension().is_some_and(|e| e == "img") {
                "copy"
            } else {
                "img"
            });
            run(Command::new("cp").arg("--sparse=always").args([&disk.0, &copy]));
            fs::remove_file(&disk.0).unwrap();
            let device = LoopDevice::of(&copy);
            *disk = (copy, device);
        }
        self.mount();
        fs::write(self.place.join("works"), "").unwrap();
    }

    /// From this moment on nothing reaches the disk, what is only in memory included.
    #[expect(
        unsafe_code,
        reason = "EXT4_IOC_SHUTDOWN and its argument are promised to rustix here, from ext4.h"
    )]
    fn cut(&self) {
        const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
        const WITHOUT_FLUSH: u32 = 2;
        let folder = File::open(&self.place).unwrap();
        // SAFETY: it reads one u32 and keeps nothing of it.
        unsafe { rustix::ioctl::ioctl(folder, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(WITHOUT_FLUSH)) }
            .unwrap();
    }
}

impl Drop for StateDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.place).status();
    }
}

/// What is on a Pi's disk before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Foreign,
    Ours,
    Blank,
}

/// Server, state and what is needed for Pis.
pub(super) struct Room {
    root: Root,
    server: Option<Server>,
    state: StateDisk,
    pub(super) folder: tempfile::TempDir,
    layout: PathBuf,
    archive_path: bool,
    /// Whether the server's machine has no power.
    pub(super) is_off: Arc<AtomicBool>,
}

impl Room {
    pub(super) fn new(archive_path: bool) -> Self {
        let root = Root::new("decisions", 200_000);
        let folder = lab::memory();
        let layout = folder.path().join("layout");
        fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
        let state = StateDisk::new(folder.path());
        let mut room =
            Self { root, server: None, state, folder, layout, archive_path, is_off: Arc::default() };
        room.make_disks();
        room
    }

    fn make_disks(&mut self) {
        self.start();
        let blank = self.made(Content::Blank);
        File::create(&blank).unwrap().set_len(lab::CARD).unwrap();
        let foreign = self.made(Content::Foreign);
        with_table(&foreign, lab::CARD, TABLE);
        let tree = self.folder.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("work"), "a year of it").unwrap();
        let words = format!("mke2fs -q -F -t ext4 -d {} FILE", tree.display());
        put(&foreign, 4 << 20, lab::ROOT, &words);
        let ours = self.made(Content::Ours);
        copy(&blank, &ours);
        assert!(self.agent(&ours, "00000000feed0000").spawn().unwrap().wait().unwrap().success());
        self.root.assert_on(&ours);
        // The image that was built is there after every power cut: to build it is not what this is about.
        run(Command::new("sync").arg("-f").arg(&self.state.place));
    }

    fn made(&self, content: Content) -> PathBuf {
        self.folder.path().join(format!("{content:?}.img"))
    }

    /// A disk with this on it, and its digest.
    pub(super) fn disk(&self, content: Content, serial: &str) -> (PathBuf, blake3::Hash) {
        let disk = self.folder.path().join(format!("{serial}.img"));
        copy(&self.made(content), &disk);
        let digest = digest(&disk);
        (disk, digest)
    }

    /// Starts a server if none runs.
    pub(super) fn start(&mut self) {
        if self.server.is_some() {
            return;
        }
        let (archive, state) = (&self.root.archive, self.state());
        let mut more = vec!["--allow-unfit", "--no-date"];
        if self.archive_path {
            more.push("--no-images");
        }
        let server = Server::start_by(&mut Server::strict(archive, &state, &more), &state);
        server.wait_log("is good");
        self.server = Some(server);
    }

    pub(super) fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    /// Where the state is.
    pub(super) fn state(&self) -> PathBuf {
        self.state.place.join("piman")
    }

    /// The state, as a command opens it.
    pub(super) fn open(&self) -> Sqlite {
        Sqlite::command(&self.state()).unwrap()
    }

    /// The agent of a Pi; what it has mounted goes with it.
    pub(super) fn agent(&self, disk: &Path, serial: &str) -> Command {
        let agent = self.server().agent(disk, serial);
        let mut unshare = Command::new("unshare");
        unshare.arg("-m").arg(agent.get_program()).args(agent.get_args());
        unshare.args(["--retries", "0", "--transfer-port", "0", "--layout"]).arg(&self.layout);
        unshare.args(["--path", if self.archive_path { "archive" } else { "image" }]);
        unshare.env("TMPDIR", self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        unshare
    }

    /// Leaves no room on the state's filesystem.
    pub(super) fn fill(&self) {
        let mut file = File::create(self.state.place.join("filler")).unwrap();
        let mut piece = 1 << 20;
        while piece > 0 {
            if file.write_all(&vec![1; piece]).and_then(|()| file.sync_all()).is_err() {
                piece /= 2;
            }
        }
    }

    /// Takes back what filled it.
    pub(super) fn free(&self) {
        fs::remove_file(self.state.place.join("filler")).unwrap();
    }

    /// Kills the server's program.
    pub(super) fn kill_server(&mut self) {
        drop(self.server.take());
    }

    /// The server's machine loses its power. Programs end first, as they do then: to one that waits until something is
    /// on the disk the kernel may say that it is, while it is cut off.
    pub(super) fn cut_server(&mut self) {
        self.is_off.store(true, Ordering::SeqCst);
        self.kill_server();
        self.state.cut();
    }

    /// Its power is there again.
    pub(super) fn power_on(&self) {
        self.is_off.store(false, Ordering::SeqCst);
        self.state.mount_again();
    }
}

/// Waits for a program's end; it is killed after this long.
pub(super) fn ended(program: &mut Running, at_most: Duration) -> bool {
    let until = Instant::now() + at_most;
    while Instant::now() < until {
        if let Some(status) = program.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}
