//! Looks at what this machine lacks for some of the tests, so that they are listed as ignored with the reason:
//! `#[cfg_attr(lacks = "root", ignore = "needs root")]`. With `PIMAN_REQUIRE=1` nothing counts as lacking: such a
//! test runs and fails.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where programs are; an ordinary user does not look into all of them.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What a network card of the emulated PC boots by; `netboot/pxe.rs` names it, too.
const IPXE: &str = "/usr/lib/ipxe/qemu/pxe-e1000.rom";

/// What makes the filesystems of others.
const FILESYSTEMS: [&str; 7] =
    ["mkfs.vfat", "mkfs.btrfs", "mkfs.xfs", "mkfs.f2fs", "mkfs.exfat", "mkfs.ntfs", "cryptsetup"];

fn main() {
    // Asked again when one of these changes. Each time would compile all the tests anew.
    for variable in ["PIMAN_REQUIRE", "PATH", "HOME", "USER", "LOGNAME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let mut folders: Vec<PathBuf> = FOLDERS.iter().filter_map(|f| Path::new(f).canonicalize().ok()).collect();
    folders.sort();
    folders.dedup();
    for folder in &folders {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    for file in ["/dev/fuse", IPXE] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }

    let program = |name: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).chain(folders.iter().cloned()).any(|folder| folder.join(name).is_file())
    };
    let root = is_root();
    let fuse = || root && std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let ipxe = || program("qemu-system-x86_64") && Path::new(IPXE).exists();
    let looked_at = [
        ("root", root),
        ("fuse", fuse()),
        ("ipxe", ipxe()),
        ("ip", program("ip")),
        ("atftp", program("atftp")),
        ("bsdtar", program("bsdtar")),
        ("busybox", program("busybox")),
        ("curl", program("curl")),
        ("debian", env::var_os("PIMAN_TEST_ROOTFS").is_some() || program("mmdebstrap")),
        ("dnsmasq", program("dnsmasq")),
        ("filesystems", FILESYSTEMS.iter().all(|name| program(name))),
        ("minisign", program("minisign")),
        ("mtools", program("mcopy") && program("mdir") && program("fsck.fat")),
        ("nc", program("nc")),
        ("openssl", program("openssl")),
        ("python3", program("python3")),
        ("sfdisk", program("sfdisk")),
        ("tftp", program("tftp")),
    ];
    println!("cargo::rerun-if-env-changed=PIMAN_TEST_ROOTFS");
    let required = env::var_os("PIMAN_REQUIRE").is_some_and(|v| v == "1");
    let names = looked_at.map(|(name, _)| format!("\"{name}\"")).join(", ");
    println!("cargo::rustc-check-cfg=cfg(lacks, values({names}))");
    for (name, here) in looked_at {
        if !here && !required {
            println!("cargo::rustc-cfg=lacks=\"{name}\"");
        }
    }
}

/// Whether this is root, and may do what only root may: in some containers it may not.
fn is_root() -> bool {
    let owner = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--net", "--pid", "--fork", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    owner.is_ok_and(|uid| uid == 0) && unshare.status().is_ok_and(|status| status.success())
}
