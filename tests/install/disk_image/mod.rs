//! Raw images of disks, laid out by sfdisk, mkfs.vfat and mke2fs as distributions do, packed in every way: what is kept
//! of them makes the same filesystems, and what no card can have is refused with its place.

mod installing;
mod layouts;
mod packings;
mod refusals;
mod serving;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use piman::images::disk_image::DiskImage;
use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::server::Server;

/// What the kernel is told on an image as Raspberry Pi OS has it.
pub(crate) const COMMAND_LINE: &str =
    "console=tty1 root=PARTUUID=5f5d7a31-02 rootfstype=ext4 fsck.repair=yes rootwait resize";

/// A folder in which images are made.
pub(crate) struct Workshop {
    folder: tempfile::TempDir,
}

/// A partition of an image: its file in the workshop, and its first sector.
type Place = (&'static str, u64);

impl Workshop {
    /// With a boot partition `boot` (FAT) and a root filesystem `root` (ext4), both with free blocks full of leftovers.
    pub(crate) fn new() -> Self {
        let workshop = Self { folder: tempfile::tempdir().unwrap() };
        workshop.root("root", "-b 4096 -L rootfs", "96M");
        workshop.boot("boot", COMMAND_LINE);
        workshop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn script(&self, text: &str) {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        run(Command::new("bash")
            .args(["-eo", "pipefail", "-c", text])
            .env("PATH", path)
            .current_dir(&self.folder));
    }

    /// An ext4 filesystem of a system for Pis, whose files are in `NAME.d`.
    pub(crate) fn root(&self, name: &str, options: &str, size: &str) {
        let tree = self.path(&format!("{name}.d"));
        for folder in ["etc", "sbin", "usr/lib/modules/6.6.1", "var"] {
            fs::create_dir_all(tree.join(folder)).unwrap();
        }
        // The first bytes of a static program for 64-bit ARM.
        let mut elf = vec![0; 128];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16..20].copy_from_slice(&[2, 0, 183, 0]);
        fs::write(tree.join("sbin/init"), elf).unwrap();
        fs::write(tree.join("etc/hostname"), name).unwrap();
        fs::write(tree.join("etc/fstab"), "PARTUUID=5f5d7a31-02 / ext4 defaults 0 1\n").unwrap();
        for i in 0..200_usize {
            let mut noise = vec![0; i * 331];
            blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut noise);
            fs::write(tree.join(format!("var/{i}")), noise).unwrap();
        }
        self.script(&format!(
            "chmod 755 {name}.d/sbin/init && mke2fs -q -F -t ext4 {options} -d {name}.d {name} {size} >/dev/null
             head -c 6000000 /dev/urandom >junk
             debugfs -w -R 'write junk junk' {name} >/dev/null 2>&1 && debugfs -w -R 'rm junk' {name} >/dev/null 2>&1
             e2fsck -fn {name} >/dev/null"
        ));
    }

    /// A FAT filesystem that a Pi boots from.
    pub(crate) fn boot(&self, name: &str, command_line: &str) {
        self.script(&format!("rm -f {name} && mkfs.vfat -C -F 32 -s 1 -n bootfs {name} 40960 >/dev/null"));
        let file = File::options().read(true).write(true).open(self.path(name)).unwrap();
        let fs = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
        let root = fs.root_dir();
        let put = |name: &str, content: &[u8]| root.create_file(name).unwrap().write_all(content).unwrap();
        put("leftover", &[0x5a; 3_000_000]);
        put("config.txt", b"arm_64bit=1\n");
        put("cmdline.txt", command_line.as_bytes());
        put("a long name.dtbo", &[7; 100_000]);
        root.remove("leftover").unwrap();
        drop(root);
        fs.unmount().unwrap();
    }

    /// An image of so many MiB with this table (as sfdisk reads it) and these partitions.
    pub(crate) fn image(&self, name: &str, mib: u64, table: &str, places: &[Place]) {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        self.script(&format!("sfdisk -q {name} <<'END'\n{table}\nEND"));
        for (part, sector) in places {
            self.script(&format!(
                "dd if={part} of={name} bs=512 seek={sector} conv=notrunc,sparse status=none"
            ));
        }
    }

    /// An image as Raspberry Pi OS has it, but smaller.
    pub(crate) fn raspberry(&self, name: &str) {
        let table = "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=81920, type=c\nstart=90112, size=196608, type=83";
        self.image(name, 140, table, &[("boot", 8192), ("root", 90112)]);
    }

    /// `piman image` with the state folder `state`: whether it succeeded, and what it said.
    pub(crate) fn piman(&self, arguments: &[&str], stdin: Option<&str>) -> (bool, String) {
        let stdin = stdin.map_or_else(Stdio::null, |name| File::open(self.path(name)).unwrap().into());
        let (command, more) = arguments.split_first().unwrap();
        let output = Command::new(binaries::piman())
            .args(["image", command, "--state", "state"])
            .args(more)
            .current_dir(&self.folder)
            .stdin(stdin)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// A server that installs what was added, when its chunks are made.
    pub(crate) fn serve(&self) -> Server {
        let state = self.path("state");
        let mut serve = Command::new(binaries::piman());
        serve.args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"]).arg(&state);
        // Cards are compared with the image, byte for byte.
        serve.args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0", "--identity", "keep"]);
        let server = Server::start_by(&mut serve, &state);
        server.wait_log(" is ready: ");
        server
    }

    /// A card full of something else.
    pub(crate) fn card(&self, bytes: u64) -> PathBuf {
        let path = self.path("card");
        let card = File::create(&path).unwrap();
        let something = vec![0xa5; 1 << 20];
        (0..bytes.div_ceil(1 << 20)).for_each(|i| card.write_all_at(&something, i << 20).unwrap());
        card.set_len(bytes).unwrap();
        path
    }

    /// Adds an image, and returns what was said.
    pub(crate) fn add(&self, arguments: &[&str]) -> String {
        let (ok, text) = self.piman(&[&["add", "--name", "pi"], arguments].concat(), None);
        assert!(ok, "{arguments:?}: {text}");
        text
    }

    /// The files that the state folder has copies in.
    pub(crate) fn copies(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("state/archives")).into_iter().flatten();
        entries.map(|e| e.unwrap().path()).collect()
    }

    /// The copy, and what is found on it.
    pub(crate) fn kept(&self) -> (File, DiskImage) {
        let copies = self.copies();
        let [copy] = &*copies else { panic!("{copies:?}") };
        let file = File::open(copy).unwrap();
        let image = DiskImage::of_copy(&file).unwrap();
        (file, image)
    }

    /// A card that was full of something else, with the used blocks of the copy on it.
    pub(crate) fn restored(&self, name: &str) {
        let (copy, image) = self.kept();
        let path = self.card(image.bytes + (3 << 20));
        let card = File::options().write(true).open(&path).unwrap();
        let mut end = 0;
        for (start, past) in &image.used {
            assert!(*start >= end && past > start && start % 4096 == 0 && past % 4096 == 0);
            let mut piece = vec![0; usize::try_from(past - start).unwrap()];
            copy.read_exact_at(&mut piece, *start).unwrap();
            card.write_all_at(&piece, *start).unwrap();
            end = *past;
        }
        assert!(end <= image.bytes);
        fs::rename(path, self.path(name)).unwrap();
    }

    /// Judges the filesystems of an image or a card, and compares their files with those they were made of.
    pub(crate) fn assert_same_files(&self, name: &str, places: &[Place]) {
        for (part, sector) in places {
            let size = fs::metadata(self.path(part)).unwrap().len();
            self.script(&format!(
                "dd if={name} of=part bs=512 skip={sector} count={} status=none",
                size / 512
            ));
            if part.starts_with("boot") {
                self.script("fsck.fat -n part >/dev/null");
                assert_eq!(files_of(&self.path("part")), files_of(&self.path(part)));
            } else {
                self.script(&format!(
                    "e2fsck -fn part >/dev/null 2>&1 && rm -rf dump && mkdir dump
                     debugfs -R 'rdump / dump' part >/dev/null 2>&1 && rmdir dump/lost+found
                     diff -r {part}.d dump && rm -rf dump"
                ));
            }
        }
    }
}

/// All files of a FAT filesystem.
fn files_of(path: &Path) -> Vec<(String, Vec<u8>)> {
    use std::io::Read;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let fs = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    let mut files = Vec::new();
    for entry in fs.root_dir().iter().map(Result::unwrap).filter(fatfs::DirEntry::is_file) {
        let mut content = Vec::new();
        entry.to_file().read_to_end(&mut content).unwrap();
        files.push((entry.file_name(), content));
    }
    assert!(files.len() >= 3);
    files
}
