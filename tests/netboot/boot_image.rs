//! `piman netboot build --boot-image`: what OpenSSL, dosfstools and mtools find in `boot.img` and `boot.sig`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use piman_tests::disk::run;
use piman_tests::http::{is_signed, key, signed};
use piman_tests::netns::{build, ingredients, printed, said};
use sha2::{Digest, Sha256};

/// All files below a folder, by their names.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut rest = vec![folder.to_owned()];
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rest.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// What mtools copies out of an image.
fn unpacked(image: &Path) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir().unwrap();
    run(Command::new("mcopy").args(["-s", "-n", "-i"]).arg(image).arg("::*").arg(out.path()));
    tree(out.path())
}

fn check_filesystem(image: &Path) {
    let said = printed(Command::new("fsck.fat").args(["-n", "-v"]).arg(image).env("PATH", path()));
    assert!(!said.to_lowercase().contains("differences"), "{said}");
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
#[cfg_attr(lacks = "mtools", ignore = "needs mtools and dosfstools")]
fn others_read_the_image_and_verify_its_signature() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ingredients(dir);
    key(dir, "key.pem");
    key(dir, "other.pem");
    let make = |out: &str| run(signed(dir, out, &[]).env("SOURCE_DATE_EPOCH", "1700000000"));
    make("one");
    let (image, sig) = (dir.join("one/boot.img"), fs::read(dir.join("one/boot.sig")).unwrap());
    check_filesystem(&image);
    let mut folder = tree(&dir.join("one"));
    folder.retain(|name, _| !name.starts_with("boot."));
    assert!(folder.contains_key("overlays/disable-bt.dtbo") && folder.contains_key("kernel8.img"));
    assert!(unpacked(&image) == folder, "every file, byte for byte");
    assert!(printed(Command::new("mdir").arg("-i").arg(&image).arg("::")).contains("2023-11-14"));

    // The form of `rpi-eeprom-digest`.
    let bytes = fs::read(&image).unwrap();
    let text = String::from_utf8(sig.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], [digits(&Sha256::digest(&bytes)), "ts: 1700000000".to_owned()]);
    let signature = lines[2].strip_prefix("rsa2048: ").unwrap();
    assert_eq!((lines.len(), signature.len()), (3, 512));
    assert!(is_signed(&image, &sig, &dir.join("key.pem.pub")));
    assert!(!is_signed(&image, &sig, &dir.join("other.pem.pub")));
    let changed = dir.join("changed");
    fs::write(&changed, [&bytes[..], b"x"].concat()).unwrap();
    assert!(!is_signed(&changed, &sig, &dir.join("key.pem.pub")));

    // A filesystem and no table of partitions; the same input, the same bytes.
    assert_eq!((&bytes[54..62], &bytes[510..512]), (&b"FAT16   "[..], &[0x55, 0xaa][..]));
    assert_eq!(bytes.len() % 512, 0);
    make("two");
    for name in ["boot.img", "boot.sig"] {
        assert!(
            fs::read(dir.join("one").join(name)).unwrap() == fs::read(dir.join("two").join(name)).unwrap()
        );
    }
    // Again into the same folder: the image is no part of itself.
    make("one");
    assert!(fs::read(&image).unwrap() == bytes);
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
#[cfg_attr(lacks = "mtools", ignore = "needs mtools and dosfstools")]
fn a_large_folder_is_fat32() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ingredients(dir);
    key(dir, "key.pem");
    let noise: Vec<u8> = (0..40u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("firmware/start4x.elf"), &noise).unwrap();
    let overlay = |n| format!("firmware/overlays/an-overlay-with-a-long-name-{n}.dtbo");
    (0..300).for_each(|n| fs::write(dir.join(overlay(n)), format!("overlay {n}")).unwrap());
    run(&mut signed(dir, "boot", &[]));
    let image = dir.join("boot/boot.img");
    check_filesystem(&image);
    let bytes = fs::read(&image).unwrap();
    assert_eq!(&bytes[82..90], b"FAT32   ");
    let mut folder = tree(&dir.join("boot"));
    folder.retain(|name, _| !name.starts_with("boot."));
    assert!(folder.len() > 300 && unpacked(&image) == folder);
    assert!(is_signed(&image, &fs::read(dir.join("boot/boot.sig")).unwrap(), &dir.join("key.pem.pub")));

    fs::write(dir.join("boot/more"), &noise).unwrap();
    fs::write(dir.join("boot/even-more"), &noise).unwrap();
    let said = said(signed(dir, "boot", &[]));
    assert!(said.contains("error") || said.contains("more than 96 MiB"), "{said}");
    assert!(fs::read(&image).unwrap() == bytes, "the one before stays");
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn keys() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ingredients(dir);
    let openssl = |line: &str| run(Command::new("openssl").args(line.split_whitespace()).current_dir(dir));
    key(dir, "key.pem");
    openssl("rsa -in key.pem -traditional -out traditional.pem");
    for bits in ["1024", "3072", "4096", "4608"] {
        openssl(&format!("genrsa -out {bits}.pem {bits}"));
    }
    openssl("pkcs8 -topk8 -in key.pem -v2 aes-256-cbc -passout pass:secret -out encrypted.pem");
    openssl("rsa -in key.pem -traditional -aes256 -passout pass:secret -out encrypted-traditional.pem");
    openssl("ecparam -name prime256v1 -genkey -noout -out ec.pem");
    openssl("pkcs8 -topk8 -nocrypt -in ec.pem -out ec8.pem");
    let pem = fs::read_to_string(dir.join("key.pem")).unwrap();
    let lines: Vec<&str> = pem.lines().collect();
    fs::write(dir.join("cut.pem"), &pem[..pem.len() / 2]).unwrap();
    fs::write(dir.join("short.pem"), [&lines[..5], &lines[6..]].concat().join("\n")).unwrap();
    // In one of the primes.
    fs::write(dir.join("damaged.pem"), pem.replace(lines[13], lines[14])).unwrap();
    fs::write(dir.join("noise.pem"), [0xff; 3000]).unwrap();
    fs::write(dir.join("huge.pem"), vec![b'a'; 100_000]).unwrap();
    let refused = |file: &str, words: &str| {
        let more = ["--firmware", "firmware", "--kernel", "kernel", "--boot-image", "--boot-key", file];
        let output = build(dir, "out", &more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words) && said.contains(file), "{words}: {said}");
        assert!(!dir.join("out").exists(), "nothing is left half");
    };
    for (file, words) in [
        ("1024.pem", "fewer than 2048 bits"),
        ("3072.pem", "of 3072 bits, and boot loaders take 2048"),
        ("4096.pem", "of 4096 bits, and boot loaders take 2048"),
        ("4608.pem", "more than 4096 bits"),
        ("encrypted.pem", "it is encrypted"),
        ("encrypted-traditional.pem", "it is encrypted"),
        ("ec.pem", "no RSA key"),
        ("ec8.pem", "another kind than RSA"),
        ("key.pem.pub", "the public key"),
        ("cut.pem", "no whole PEM file"),
        ("short.pem", "damaged"),
        ("damaged.pem", "damaged"),
        ("noise.pem", "no whole PEM file"),
        ("huge.pem", "64 KiB"),
        ("none.pem", "reading the key"),
    ] {
        refused(file, words);
    }
    let alone = said(build(dir, "out", &["--boot-key", "key.pem"]));
    assert!(alone.contains("--boot-image"), "{alone}");

    // PKCS#1 v1.5 has no chance in it: both forms of the key sign alike.
    let sign = |key: &str, out: &str| {
        let more = ["--firmware", "firmware", "--kernel", "kernel", "--boot-image", "--boot-key", key];
        let said = printed(build(dir, out, &more).env("SOURCE_DATE_EPOCH", "1700000000"));
        (said, fs::read(dir.join(out).join("boot.sig")).unwrap())
    };
    let mode =
        |key: &str, mode| fs::set_permissions(dir.join(key), fs::Permissions::from_mode(mode)).unwrap();
    mode("key.pem", 0o600);
    mode("traditional.pem", 0o644);
    let (quiet, one) = sign("key.pem", "one");
    let (warned, two) = sign("traditional.pem", "two");
    assert!(one == two);
    assert!(!quiet.contains("by others"), "{quiet}");
    assert!(
        warned.contains("warning: traditional.pem can be read or written by others (mode 644)"),
        "{warned}"
    );

    let more = ["--firmware", "firmware", "--kernel", "kernel", "--boot-image"];
    let said = printed(&mut build(dir, "unsigned", &more));
    assert!(said.contains("warning: boot.sig has no signature"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("unsigned/boot.sig")).unwrap().lines().count(), 2);
    let said = said_with_date(dir, "soon");
    assert!(said.contains("SOURCE_DATE_EPOCH is soon"), "{said}");
    assert!(said_with_date(dir, "5").contains("between the years 1980 and 2107"));
}

fn said_with_date(dir: &Path, date: &str) -> String {
    let mut build = build(dir, "dated", &["--firmware", "firmware", "--kernel", "kernel", "--boot-image"]);
    build.env("SOURCE_DATE_EPOCH", date);
    said(build)
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
#[cfg_attr(lacks = "mtools", ignore = "needs mtools and dosfstools")]
fn what_belongs_into_it_and_what_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ingredients(dir);
    key(dir, "key.pem");
    for name in ["start.elf", "fixup.dat", "bootcode.bin", "bcm2710-rpi-3-b.dtb", "bcm2712-rpi-5-b.dtb"] {
        fs::write(dir.join("firmware").join(name), name).unwrap();
    }
    for name in ["abcdef01/config.txt", "images/lab/kernel8.img", "mine/deep/file"] {
        let path = dir.join("boot").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    symlink("mine/deep/file", dir.join("boot/link")).unwrap();
    let text = printed(&mut signed(dir, "boot", &["--boot-model", "pi4", "--boot-ramdisk"]));
    assert!(text.contains("the folder abcdef01 is for one Pi"), "{text}");
    let inside = unpacked(&dir.join("boot/boot.img"));
    let names: Vec<&str> = inside.keys().map(String::as_str).collect();
    let expected = [
        "bcm2711-rpi-4-b.dtb",
        "cmdline.txt",
        "config.txt",
        "fixup4.dat",
        "initramfs.cpio.gz",
        "kernel8.img",
        "link",
        "mine/deep/file",
        "overlays/disable-bt.dtbo",
        "overlays/overlay_map.dtb",
        "start4.elf",
    ];
    assert_eq!(names, expected);
    // Whoever boots single files by TFTP loads the image; the image does not.
    let outside = fs::read_to_string(dir.join("boot/config.txt")).unwrap();
    assert!(outside.contains("[pi4]\nboot_ramdisk=1\n[pi5]\nboot_ramdisk=1\n[all]\n"), "{outside}");
    assert!(!String::from_utf8_lossy(&inside["config.txt"]).contains("boot_ramdisk"));

    run(&mut signed(dir, "boot", &["--boot-model", "pi5"]));
    let inside = unpacked(&dir.join("boot/boot.img"));
    assert!(inside.contains_key("bcm2712-rpi-5-b.dtb") && !inside.contains_key("start4.elf"));
    // One Pi's own, and an image of another model's files.
    run(&mut signed(dir, "boot/abcdef01", &[]));
    assert!(dir.join("boot/abcdef01/boot.sig").exists());
    fs::remove_file(dir.join("firmware/start4.elf")).unwrap();
    let text = said(signed(dir, "three", &["--boot-model", "pi4"]));
    assert!(text.contains("would not boot: there is no start4.elf"), "{text}");

    // What cannot be.
    symlink("/etc/passwd", dir.join("boot/out")).unwrap();
    let text = said(signed(dir, "boot", &[]));
    assert!(text.contains("opening out: the name leads out of the folder"), "{text}");
    fs::remove_file(dir.join("boot/out")).unwrap();
    fs::write(dir.join("boot/KERNEL8.img"), "").unwrap();
    let text = said(signed(dir, "boot", &[]));
    assert!(text.contains("KERNEL8.img and kernel8.img are one name for FAT"), "{text}");
}
