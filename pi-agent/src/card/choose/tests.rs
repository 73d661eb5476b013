use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// A made tree of /sys and /dev, which goes with the test.
struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sys/block")).unwrap();
        fs::create_dir_all(folder.path().join("dev")).unwrap();
        Self { folder }
    }

    fn tree(&self) -> Tree {
        Tree { sys: self.folder.path().join("sys"), dev: self.folder.path().join("dev") }
    }

    /// A folder of a device, with its bus and files.
    fn device(&self, at: &str, bus: &str, files: &[(&str, &[u8])]) {
        let folder = self.folder.path().join("sys/devices").join(at);
        fs::create_dir_all(&folder).unwrap();
        if !bus.is_empty() {
            symlink(format!("/sys/bus/{bus}"), folder.join("subsystem")).unwrap();
        }
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    /// A disk whose folder is there: so many MiB, and its node.
    fn disk(&self, at: &str, mib: u64, files: &[(&str, &[u8])]) {
        let name = Path::new(at).file_name().unwrap();
        self.device(at, "block", files);
        let sectors = (mib << 11).to_string();
        self.device(at, "", &[("size", sectors.as_bytes()), ("ro", b"0\n"), ("dev", b"4095:1048575\n")]);
        let folder = self.folder.path().join("sys");
        symlink(folder.join("devices").join(at), folder.join("block").join(name)).unwrap();
        // The device that a disk is: the nearest folder above that does not belong to the subsystem `block`.
        let device = Path::new(at).ancestors().skip(1).find(|above| !above.ends_with("block")).unwrap();
        symlink(folder.join("devices").join(device), folder.join("devices").join(at).join("device")).unwrap();
        fs::write(self.folder.path().join("dev").join(name), b"").unwrap();
    }

    fn find(&self, which: &str) -> Result<String, NoDisk> {
        let found = which.parse::<Which>().unwrap().find_in(&self.tree())?;
        Ok(found.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// A Pi 4 with a card.
    fn pi() -> Self {
        let pi = Self::new();
        pi.device("platform/fe340000.mmc", "platform", &[]);
        let files: &[(&str, &[u8])] =
            &[("name", b"SC32G\n"), ("serial", b"0x1f2e3d4c\n"), ("cid", b"03534453433332471f2e3d4c\n")];
        let card = "platform/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa";
        pi.device(card, "mmc", files);
        pi.disk(&format!("{card}/block/mmcblk0"), 29_700, &[]);
        pi.disk(&format!("{card}/block/mmcblk0boot0"), 4, &[]);
        pi.disk("virtual/block/loop0", 100, &[]);
        pi
    }

    /// A stick on its USB, which is behind PCI.
    fn plug_stick(&self, name: &str, port: &str, serial: &str) {
        let pci = "platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0";
        if !self.folder.path().join("sys/devices").join(pci).join("subsystem").exists() {
            self.device("platform/scb/fd500000.pcie", "platform", &[]);
            self.device("platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0", "pci", &[]);
            self.device(pci, "pci", &[]);
        }
        let usb = format!("{pci}/usb1/1-{port}");
        let serial = format!("{serial}\n");
        self.device(
            &usb,
            "usb",
            &[
                ("idVendor", b"0781\n"),
                ("serial", serial.as_bytes()),
                ("manufacturer", b"SanDisk\n"),
                ("product", b"Ultra Fit\n"),
            ],
        );
        self.device(&format!("{usb}/1-{port}:1.0"), "usb", &[]);
        let host = format!("{usb}/1-{port}:1.0/host7");
        self.device(&host, "scsi", &[]);
        self.device(&format!("{host}/target7:0:0"), "scsi", &[]);
        let unit = format!("{host}/target7:0:0/7:0:0:0");
        self.device(&unit, "scsi", &[("vendor", b"SanDisk \n"), ("model", b"Ultra Fit       \n")]);
        self.disk(&format!("{unit}/block/{name}"), 58_700, &[]);
    }
}

fn several(found: Result<String, NoDisk>) -> String {
    match found {
        Err(NoDisk::Several(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn none(found: Result<String, NoDisk>) -> String {
    match found {
        Err(NoDisk::None(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn words() {
    for (text, which) in [
        ("/dev/mmcblk0", Which::Path("/dev/mmcblk0".into())),
        ("card.img", Which::Path("card.img".into())),
        ("./auto", Which::Path("./auto".into())),
        ("auto", Which::Auto),
        ("largest", Which::Largest),
        ("type=sata", Which::Bus(Bus::Sata)),
        ("serial=4C53", Which::Serial("4C53".into())),
        ("by-id=usb-x", Which::ById("usb-x".into())),
        ("/dev/disk/by-id/usb-x", Which::ById("usb-x".into())),
        ("/dev/disk/by-path/pci-0", Which::ByPath("pci-0".into())),
    ] {
        let parsed: Which = text.parse().unwrap();
        assert_eq!(parsed, which, "{text}");
        assert_eq!(parsed.to_string().parse(), Ok(which), "{text}");
    }
    for bad in ["", "serial=", "by-id=", "/dev/disk/by-path/", "type=", "type=tape", "type=other"] {
        assert!(bad.parse::<Which>().is_err(), "{bad}");
    }
}

#[test]
fn a_card_alone_is_the_one() {
    let pi = Made::pi();
    for which in [
        "auto",
        "largest",
        "type=mmc",
        "serial=0x1f2e3d4c",
        "serial=03534453433332471F2E3D4C",
        "by-id=mmc-SC32G_0x1f2e3d4c",
        "/dev/disk/by-path/platform-fe340000.mmc",
    ] {
        assert_eq!(pi.find(which), Ok("mmcblk0".into()), "{which}");
    }
    let text = none(pi.find("type=usb"));
    assert!(text.starts_with("no disk is type=usb; there are: "), "{text}");
    let known = "mmcblk0 29.0 GiB mmc \"SC32G\", serial 0x1f2e3d4c, by-id=mmc-SC32G_0x1f2e3d4c";
    assert!(text.ends_with(known), "{text}");
    assert!(none(Made::new().find("auto")).contains("there is no disk at all"));
}

#[test]
fn of_several_the_rule_says_which_or_there_is_a_list() {
    let pi = Made::pi();
    pi.plug_stick("sda", "1", "4C531001");
    let text = several(pi.find("auto"));
    assert!(text.contains("2 disks are auto: name one of them"), "{text}");
    assert!(
        text.contains("mmcblk0 29.0 GiB") && text.contains("sda 57.3 GiB usb \"SanDisk Ultra Fit\""),
        "{text}"
    );
    assert!(text.contains("by-id=usb-SanDisk_Ultra_Fit_4C531001-0:0"), "{text}");
    for which in [
        "largest",
        "type=usb",
        "serial=4C531001",
        "by-id=usb-SanDisk_Ultra_Fit_4C531001-0:0",
        "by-path=platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1:1.0-scsi-0:0:0:0",
        "by-path=platform-fd500000.pcie-pci-0000:01:00.0-usbv2-0:1:1.0-scsi-0:0:0:0",
    ] {
        assert_eq!(pi.find(which), Ok("sda".into()), "{which}");
    }
    // Two of a size: neither is the largest. Each has a place of its own.
    pi.plug_stick("sdb", "2", "4C531001");
    assert!(several(pi.find("largest")).starts_with("2 disks are largest"));
    assert!(several(pi.find("type=usb")).starts_with("2 disks"));
    assert!(several(pi.find("serial=4C531001")).starts_with("2 disks"));
    let place = "by-path=platform-fd500000.pcie-pci-0000:01:00.0-usb-0:2:1.0-scsi-0:0:0:0";
    assert_eq!(pi.find(place), Ok("sdb".into()));
    assert_eq!(pi.find("type=mmc"), Ok("mmcblk0".into()));
}

#[test]
fn what_a_rule_chose_stays_the_one() {
    let pi = Made::pi();
    pi.plug_stick("sda", "1", "A");
    let find = |which: &Which| {
        let found = which.find_in(&pi.tree())?;
        Ok(found.file_name().unwrap().to_str().unwrap().to_owned())
    };
    let chosen = Which::Largest.settled_in(&pi.tree()).unwrap();
    assert_eq!(find(&chosen), Ok("sda".into()));
    // It drops off: the card is the largest now, and is not the one.
    let block = pi.folder.path().join("sys/block");
    fs::remove_file(block.join("sda")).unwrap();
    assert_eq!(pi.find("largest"), Ok("mmcblk0".into()));
    let text = none(find(&chosen));
    assert!(text.starts_with("no disk is the one that was chosen first (61551411200 bytes, A"), "{text}");
    // Another one of its size gets its path; then it is back under another.
    pi.plug_stick("sdb", "2", "B");
    fs::rename(block.join("sdb"), block.join("sda")).unwrap();
    none(find(&chosen));
    pi.plug_stick("sdc", "3", "A");
    assert_eq!(find(&chosen), Ok("sdc".into()));
    assert_eq!(chosen.settled_in(&pi.tree()), Ok(chosen.clone()));
    // Two that call themselves so: neither is taken.
    pi.plug_stick("sdd", "4", "A");
    several(find(&chosen));
    // Without a name the path and the place tell.
    let bare = Made::new();
    bare.device("pci0000:00/0000:00:04.0", "pci", &[]);
    bare.disk("pci0000:00/0000:00:04.0/virtio1/block/vdz", 100, &[]);
    let Ok(Which::Chosen(identity)) = Which::Auto.settled_in(&bare.tree()) else { panic!("none chosen") };
    assert!(identity.starts_with("104857600 bytes, /"), "{identity}");
    assert!(identity.ends_with("/dev/vdz pci-0000:00:04.0"), "{identity}");
    // A choice that is not a rule stays as it is; a failed rule keeps its reason.
    for which in [Which::Path("/dev/sda".into()), Which::Serial("A".into())] {
        assert_eq!(which.settled_in(&pi.tree()), Ok(which));
    }
    let why = NoDisk::None("no disk is auto".into());
    assert_eq!(Which::No(why.clone()).find_in(&bare.tree()), Err(why));
}

#[test]
fn what_is_used_or_empty_is_never_chosen_by_a_rule() {
    let pi = Made::pi();
    pi.plug_stick("sda", "1", "A");
    pi.plug_stick("sdb", "2", "B");
    let block = pi.folder.path().join("sys/block");
    // What holds it is a logical volume: here, of its second partition.
    let part = block.join("sda").join("sda2");
    fs::create_dir_all(part.join("holders/dm-0")).unwrap();
    fs::write(part.join("partition"), "2").unwrap();
    fs::write(block.join("sdb/size"), "0").unwrap();
    for which in ["auto", "largest"] {
        assert_eq!(pi.find(which), Ok("mmcblk0".into()), "{which}");
    }
    let text = none(pi.find("type=usb"));
    assert!(text.contains("/dev/sda2 is used by dm-0)") && text.contains("(no medium)"), "{text}");
    // Who names it means it; that it is used is said when it is opened.
    assert_eq!(pi.find("serial=A"), Ok("sda".into()));
    fs::write(block.join("mmcblk0/ro"), "1\n").unwrap();
    assert!(none(pi.find("auto")).contains("(read-only)"));
}

#[test]
fn nvme_and_sata_as_udev_names_them() {
    let pi = Made::new();
    let nvme = "platform/axi/1000110000.pcie/pci0001:00/0001:01:00.0/nvme/nvme0";
    pi.device("platform/axi/1000110000.pcie", "platform", &[]);
    pi.device("platform/axi/1000110000.pcie/pci0001:00/0001:01:00.0", "pci", &[]);
    let files: &[(&str, &[u8])] = &[("model", b"WD Blue  SN580 1TB   \n"), ("serial", b"23481X800123  \n")];
    pi.device(nvme, "nvme", files);
    pi.disk(&format!("{nvme}/nvme0n1"), 900_000, &[("nsid", b"1\n"), ("wwid", b"eui.e8238fa6bf530001\n")]);
    pi.disk(&format!("{nvme}/nvme0c0n1"), 900_000, &[("hidden", b"1\n")]);
    for which in [
        "auto",
        "type=nvme",
        "serial=23481X800123",
        "by-id=nvme-WD_Blue_SN580_1TB_23481X800123",
        "by-id=nvme-WD_Blue__SN580_1TB_23481X800123_1",
        "by-id=nvme-eui.e8238fa6bf530001",
        "by-path=platform-1000110000.pcie-pci-0001:01:00.0-nvme-1",
    ] {
        assert_eq!(pi.find(which), Ok("nvme0n1".into()), "{which}");
    }
    let sata = "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0";
    pi.device("pci0000:00/0000:00:1f.2", "pci", &[]);
    pi.device("pci0000:00/0000:00:1f.2/ata3/ata_port/ata3", "ata_port", &[("port_no", b"1\n")]);
    let mut page = vec![0; 572];
    let mut word = |at: usize, text: &str| {
        for (i, byte) in text.bytes().enumerate() {
            page[60 + 2 * at + (i ^ 1)] = byte;
        }
    };
    word(10, "S21NX0AG1         ");
    word(27, "Samsung SSD 850 EVO with a long name   ");
    pi.device(
        sata,
        "scsi",
        &[
            ("vendor", b"ATA     \n"),
            ("model", b"Samsung SSD 850 \n"),
            ("wwid", b"naa.5002538d40f8e1a2\n"),
            ("vpd_pg89", &page),
            ("vpd_pg80", b"\0\x80\0\x14S21NX0AG1          "),
        ],
    );
    pi.disk(&format!("{sata}/block/sda"), 200_000, &[]);
    for which in [
        "type=sata",
        "serial=S21NX0AG1",
        "by-id=ata-Samsung_SSD_850_EVO_with_a_long_name_S21NX0AG1",
        "by-id=wwn-0x5002538d40f8e1a2",
        "by-path=pci-0000:00:1f.2-ata-1",
        "by-path=pci-0000:00:1f.2-ata-1.0",
    ] {
        assert_eq!(pi.find(which), Ok("sda".into()), "{which}");
    }
}

/// A loop device, which goes with the test, and where it is mounted.
struct Loop {
    device: String,
    place: Option<tempfile::TempDir>,
    _file: tempfile::NamedTempFile,
}

/// Runs a program of the administrator's; what it prints.
fn run(program: &str, words: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = std::process::Command::new(program).args(words).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Loop {
    fn new(mib: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        let device = run("losetup", &["-f", "--show", file.path().to_str().unwrap()]);
        Self { device, place: None, _file: file }
    }

    fn mount(&mut self) {
        run("mkfs.ext4", &["-q", "-F", &self.device]);
        let place = tempfile::tempdir().unwrap();
        run("mount", &[&self.device, place.path().to_str().unwrap()]);
        self.place = Some(place);
    }

    fn unmount(&mut self) {
        if let Some(place) = self.place.take() {
            run("umount", &[place.path().to_str().unwrap()]);
        }
    }

    /// Shows it in a tree as a disk of this name.
    fn show(&self, made: &Made, name: &str) {
        let number = Path::new(&self.device).file_name().unwrap();
        let folder = made.folder.path();
        symlink(Path::new("/sys/block").join(number), folder.join("sys/block").join(name)).unwrap();
        symlink(&self.device, folder.join("dev").join(name)).unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.unmount();
        run("losetup", &["-d", &self.device]);
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn real_disks_that_somebody_uses_are_never_chosen_by_a_rule() {
    let made = Made::new();
    let (mut small, mut large) = (Loop::new(16), Loop::new(32));
    small.show(&made, "sda");
    large.show(&made, "sdb");
    let text = several(made.find("auto"));
    assert!(text.contains("sda 16.0 MiB") && text.contains("sdb 32.0 MiB"), "{text}");
    assert_eq!(made.find("largest"), Ok("sdb".into()));
    large.mount();
    for which in ["auto", "largest"] {
        assert_eq!(made.find(which), Ok("sda".into()), "{which}");
    }
    // Of the other one the kernel alone knows, as of what is mounted outside of a container.
    let exclusive = rustix::fs::OFlags::EXCL | rustix::fs::OFlags::RDONLY;
    let held = rustix::fs::open(&*small.device, exclusive, rustix::fs::Mode::empty()).unwrap();
    let text = none(made.find("auto"));
    assert!(text.contains("is mounted at") && text.contains("(in use)"), "{text}");
    large.unmount();
    assert_eq!(made.find("auto"), Ok("sdb".into()));
    drop(held);
    // A name is a name, whoever uses it; what is found can be opened, and is the one.
    small.mount();
    let found = "auto".parse::<Which>().unwrap().find_in(&made.tree()).unwrap();
    let disk = crate::card::disk::Disk::open(&found).unwrap();
    assert_eq!(disk.bytes(), 32 << 20);
    assert!(none(made.find("auto")).contains("(in use)"), "we hold it ourselves");
}
