//! `piman netboot build --from-image`: kernel, device trees and modules of the image that the Pis get, and a folder for
//! each image, chosen by who asks.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::netns::{assert_says, ingredients, kernel, printed, said};
use piman_tests::server::Server;

const NEW: &str = "6.1.0-10-arm64";
const OLD: &str = "6.1.0-9-arm64";

/// A folder with a system for Pis, `system`, and what else a boot folder is made from.
struct Shop(tempfile::TempDir);

impl Shop {
    fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        ingredients(shop.0.path());
        for release in [OLD, NEW] {
            let image = [&kernel(), format!("Linux version {release} (x)").as_bytes()].concat();
            shop.put(&format!("boot/vmlinuz-{release}"), &image);
            shop.put(
                &format!("usr/lib/linux-image-{release}/broadcom/bcm2711-rpi-4-b.dtb"),
                release.as_bytes(),
            );
            shop.put(&format!("usr/lib/linux-image-{release}/broadcom/stingray.dtb"), b"another's");
            let modules = format!("usr/lib/modules/{release}");
            let dep =
                "kernel/ext4.ko: kernel/jbd2.ko\nkernel/jbd2.ko:\nkernel/sound.ko:\nkernel/genet.ko.zst:\n";
            shop.put(&format!("{modules}/modules.dep"), dep.as_bytes());
            shop.put(&format!("{modules}/modules.builtin"), b"kernel/af_packet.ko\n");
            for name in ["ext4", "jbd2", "sound"] {
                shop.put(&format!("{modules}/kernel/{name}.ko"), format!("{name} {release}").as_bytes());
            }
            let genet = zstd::bulk::compress(format!("genet {release}").as_bytes(), 1).unwrap();
            shop.put(&format!("{modules}/kernel/genet.ko.zst"), &genet);
        }
        let mut init = vec![0; 128];
        init[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        init[16..20].copy_from_slice(&[2, 0, 183, 0]);
        shop.put("sbin/init", &init);
        shop.put("etc/hostname", b"lab");
        run(Command::new("chmod").arg("755").arg(shop.path("system/sbin/init")));
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path("system").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn piman(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries::piman());
        command.args(arguments).current_dir(self.0.path());
        command
    }

    fn add(&self, name: &str, what: &str) {
        let add = ["image", "add", "--state", "state", "--name", name, "--force", what];
        run(&mut self.piman(&add));
    }

    fn build(&self, out: &str, more: &[&str]) -> Command {
        let mut build =
            self.piman(&["netboot", "build", "--state", "state", "--agent", "agent", "--out", out]);
        build.args(more);
        build
    }

    /// What is in the initramfs of a boot folder, by name.
    fn modules(&self, folder: &str) -> Vec<(String, String)> {
        let unpacked = self.path("unpacked");
        let _ = fs::remove_dir_all(&unpacked);
        fs::create_dir(&unpacked).unwrap();
        let unpack = "gzip -dc $1 | (busybox cpio -i -d -m || true) 2>/dev/null";
        let packed = self.path(folder).join("initramfs.cpio.gz");
        run(Command::new("sh").arg("-c").arg(unpack).arg("-").arg(packed).current_dir(&unpacked));
        let modules = fs::read_dir(unpacked.join("lib/modules/piman")).into_iter().flatten();
        let mut all: Vec<_> = modules
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        all.sort();
        all
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap()).into_owned()
    }
}

/// What an initramfs has of the newer kernel.
fn of_the_new() -> Vec<(String, String)> {
    [("000-jbd2.ko", "jbd2"), ("001-ext4.ko", "ext4"), ("002-genet.ko", "genet")]
        .map(|(name, content)| (name.to_owned(), format!("{content} {NEW}")))
        .to_vec()
}

#[test]
fn kernel_trees_and_modules_of_the_newest_kernel() {
    let shop = Shop::new();
    shop.put("boot/firmware/start4.elf", b"the image's own");
    for (form, pack) in
        [("folder", ""), ("archive", "tar -C system -czf archive ."), ("plain", "tar -C system -cf plain .")]
    {
        run(Command::new("sh").args(["-c", pack]).current_dir(shop.0.path()));
        shop.add(form, if form == "folder" { "system" } else { form });
        let out = format!("boot-{form}");
        let printed = printed(&mut shop.build(&out, &["--from-image", form, "--firmware", "firmware"]));
        assert!(!printed.contains("a Pi 4 will not boot"), "{printed}");
        assert_eq!(shop.modules(&out), of_the_new(), "{form}");
        let all = |name: &str| shop.text(&format!("{out}/{name}"));
        assert!(all("kernel8.img").contains(&format!("Linux version {NEW} ")));
        assert_eq!(all("start4.elf"), "the image's own");
        assert_eq!(all("fixup4.dat"), "fixup4.dat", "what the image has not, the folder has");
        assert_eq!(all("bcm2711-rpi-4-b.dtb"), NEW);
        assert!(!shop.path(&out).join("stingray.dtb").exists());
        assert_eq!(all("overlays/disable-bt.dtbo"), "disable-bt.dtbo");
    }
    // One more module, and another kernel.
    let old = shop.path(&format!("system/boot/vmlinuz-{OLD}"));
    let more = ["--from-image", "archive", "--module", "sound", "--kernel", old.to_str().unwrap()];
    run(&mut shop.build("other", &more));
    let modules = shop.modules("other");
    assert_eq!(modules.len(), 4);
    assert!(modules.iter().all(|(_, content)| content.ends_with(OLD)) && modules[3].1.starts_with("sound"));
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn out_of_the_image_of_a_disk() {
    let shop = Shop::new();
    let script = "
        truncate -s 40M boot && mkfs.vfat -F 32 -s 1 boot >/dev/null
        mke2fs -q -F -t ext4 -b 4096 -d system root 48M >/dev/null
        truncate -s 100M disk
        printf 'label: dos\\nlabel-id: 0x5f5d7a31\\nstart=8192, size=81920, type=c\\nstart=90112, size=98304, type=83\\n' |
            /usr/sbin/sfdisk -q disk
    ";
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    run(Command::new("bash").args(["-ec", script]).env("PATH", &path).current_dir(shop.0.path()));
    let file = fs::File::options().read(true).write(true).open(shop.path("boot")).unwrap();
    let fs = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    let root = fs.root_dir();
    let put = |name: &str, bytes: &[u8]| root.create_file(name).unwrap().write_all(bytes).unwrap();
    put("config.txt", b"arm_64bit=1\n");
    put("start4.elf", b"of the disk");
    put("kernel8.img", &[&kernel(), format!("Linux version {NEW} (x)").as_bytes()].concat());
    root.create_dir("overlays").unwrap();
    put("overlays/a-long-name.dtbo", &[7; 100_000]);
    drop(root);
    fs.unmount().unwrap();
    let join = "
        dd if=boot of=disk bs=512 seek=8192 conv=notrunc status=none
        dd if=root of=disk bs=512 seek=90112 conv=notrunc status=none
        xz -1 -T2 disk
    ";
    run(Command::new("bash").args(["-ec", join]).current_dir(shop.0.path()));
    shop.add("disk", "disk.xz");
    run(&mut shop.build("out", &["--from-image", "disk"]));
    assert_eq!(shop.modules("out"), of_the_new());
    assert_eq!(shop.text("out/start4.elf"), "of the disk");
    assert!(shop.text("out/kernel8.img").contains(NEW));
    assert_eq!(fs::read(shop.path("out/overlays/a-long-name.dtbo")).unwrap(), [7; 100_000]);
    assert_eq!(shop.text("out/bcm2711-rpi-4-b.dtb"), NEW, "those that came with the kernel");
}

#[test]
fn what_cannot_be_taken_is_said() {
    let shop = Shop::new();
    let build = |more: &[&str]| said(shop.build("out", more));
    assert_says(&build(&["--from-image", "lab"]), &["no images", "piman image add"]);
    shop.add("lab", "system");
    assert_says(&build(&["--from-image", "lap"]), &["no image lap", "there are lab"]);
    assert_says(&build(&["--from-image", "lab", "--module", "nothing"]), &["image lab", "no module nothing"]);
    assert_says(&build(&["--module", "ext4", "--kernel", "kernel"]), &["--module ext4", "--from-image"]);
    for release in [OLD, NEW] {
        fs::remove_file(shop.path(&format!("system/boot/vmlinuz-{release}"))).unwrap();
    }
    shop.add("bare", "system");
    assert_says(&build(&["--from-image", "bare"]), &["image bare", "no kernel", "--kernel"]);
    assert!(!shop.path("out").exists());
    // Two kernels of the firmware's own names, each with modules.
    for (name, release) in [("kernel8.img", OLD), ("kernel_2712.img", NEW)] {
        let image = [&kernel(), format!("Linux version {release} (x)").as_bytes()].concat();
        shop.put(&format!("boot/firmware/{name}"), &image);
    }
    shop.add("two", "system");
    assert_says(&build(&["--from-image", "two"]), &["two kernels", OLD, NEW, "--kernel"]);
}

/// Asks as a boot ROM does; `None`: there is no such file.
fn tftp(port: u16, name: &str) -> Option<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
    socket.send_to(&request, ("127.0.0.1", port)).unwrap();
    let mut packet = [0; 1024];
    let (n, peer) = socket.recv_from(&mut packet).unwrap();
    let is_data = packet[1] == 3;
    if is_data {
        socket.send_to(&[0, 4, 0, 1], peer).unwrap();
    }
    is_data.then(|| String::from_utf8(packet[4..n].to_vec()).unwrap())
}

#[test]
fn each_pi_boots_from_the_folder_of_its_image() {
    let shop = Shop::new();
    shop.add("lab", "system");
    shop.add("room", "system");
    let write = |name: &str, text: &str| {
        let path = shop.path("netboot").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("config.txt", "all");
    write("images/lab/config.txt", "lab");
    write("images/room/config.txt", "room");
    write("abcdef03/config.txt", "its own");
    let assign = |arguments: &[&str]| {
        run(&mut shop.piman(&[&["image", "assign", "--state", "state"], arguments].concat()));
    };
    assign(&["lab", "--for", "10000000abcdef01"]);
    assign(&["lab", "--for", "10000000abcdef03"]);
    run(&mut shop.piman(&["group", "join", "--state", "state", "upstairs", "10000000abcdef02"]));
    assign(&["room", "--group", "upstairs"]);
    run(&mut shop.piman(&["image", "default", "--state", "state", "--none"]));
    let mut serve =
        shop.piman(&["serve", "--listen", "127.0.0.1", "--state", "state", "--netboot", "netboot"]);
    serve.args(["--tftp-port", "0", "--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
    let server = Server::start_by(&mut serve, Path::new(&shop.path("state")));
    let port = server.port("tftp");
    for (name, text) in [
        ("abcdef01/config.txt", Some("lab")),
        ("abcdef02/config.txt", Some("room")),
        ("abcdef03/config.txt", Some("its own")),
        ("abcdef04/config.txt", Some("all")),
        ("abcdef01/start.elf", None),
        // The one who asked last from this address, who names nobody now.
        ("config.txt", Some("lab")),
    ] {
        assert_eq!(tftp(port, name).as_deref(), text, "{name}");
    }
}
