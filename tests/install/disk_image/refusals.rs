//! What no card can have, what is damaged or cut: refused with its place, and nothing is left behind.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use piman_core::install::gpt::{self, Gpt, Partition};

use super::Workshop;

/// A table as a disk with sectors of 4096 bytes has it.
fn for_large_sectors(image: &Path) {
    let file = File::create(image).unwrap();
    let sectors = (64 << 20) / 4096;
    file.set_len(64 << 20).unwrap();
    let mut partitions = [Partition::NONE; gpt::PARTITIONS];
    partitions[0] = Partition::new(gpt::LINUX, [1; 16], 256, 1000, "root");
    let table = Gpt { disk: [2; 16], partitions };
    file.write_all_at(&Gpt::protective(sectors).write(), 0).unwrap();
    file.write_all_at(&table.header(gpt::Copy::First, 4096, sectors), 4096).unwrap();
    file.write_all_at(&table.entries(), 8192).unwrap();
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn tables_and_files_that_are_wrong() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.script(
        r#"gpt() { truncate -s 100M $1; sfdisk -q $1 <<<"label: gpt"$'\n'"start=8192, size=81920" >/dev/null; }
           # Bytes of a table, by the number of a partition and of the field.
           put() { printf "$3" | dd of=$1 bs=1 seek=$2 conv=notrunc status=none; }
           cp pi.img overlap.img && put overlap.img 470 '\x00\x30\x00\x00'
           cp pi.img beyond.img && put beyond.img 474 '\x00\x00\x00\x40'
           cp pi.img none.img && dd if=/dev/zero of=none.img bs=1 seek=446 count=64 conv=notrunc status=none
           cp pi.img tight.img && put tight.img 454 '\x01\x00\x00\x00' && put tight.img 458 '\x00\x01\x00\x00'
           head -c 100000000 pi.img >cut.img
           gpt both.img && put both.img 520 X && put both.img $((100 * 1048576 - 500)) X
           gpt late.img && truncate -s 40M late.img
           truncate -s 200M large.mbr && printf 'label: dos\nstart=256, size=12000, type=83\n' | sfdisk -q large.mbr
           dd if=root of=large.mbr bs=4096 seek=256 conv=notrunc status=none
           truncate -s 20M circle.img && printf 'label: dos\nstart=8192, size=2048, type=83\nstart=10240, size=20480, type=5\nstart=12288, size=1024, type=83\n' | sfdisk -q circle.img
           put circle.img $((10240 * 512 + 462)) '\x00\x00\x00\x00\x05\x00\x00\x00\x00\x04\x00\x00\x00\x04\x00\x00'
           dd if=circle.img of=circle.img bs=512 skip=10240 seek=11264 count=1 conv=notrunc status=none
           truncate -s 1200G huge.img && put huge.img 510 '\x55\xaa'
           cp root fs.img && cp boot fat.img && xz -0 -k fat.img"#,
    );
    for_large_sectors(&workshop.path("large.img"));
    for (file, want) in [
        (
            "overlap.img",
            "partitions 1 and 2 overlap: the one ends at byte 46137344, the other begins at byte 6291456",
        ),
        ("beyond.img", "partition 2 ends at byte 549801951232, but the image has only 146800640 bytes"),
        ("none.img", "has no partition"),
        ("tight.img", "no room before the first partition for the proof"),
        ("cut.img", "but the image has only 100000000 bytes: it is cut"),
        ("both.img", "both copies of its GPT are damaged: the GPT at byte 512"),
        ("late.img", "partition 1 ends at byte 46137344, but the image has only 41943040 bytes"),
        ("large.img", "made for disks with sectors of 4096 bytes"),
        ("large.mbr", "made for disks with sectors of 4096 bytes"),
        ("circle.img", "leads round in a circle at byte 5767168"),
        ("fs.img", "image of a filesystem, not an archive: mount it"),
        ("fat.img", "an image of a filesystem (FAT), not of a disk"),
        ("fat.img.xz", "an image of a filesystem (FAT), not of a disk"),
        ("huge.img", "has more than 1099511627776 bytes, which no card holds"),
    ] {
        let (ok, text) = workshop.piman(&["add", "--force", "--name", "x", file], None);
        assert!(!ok && text.contains(want), "{file}: {text}");
        assert!(workshop.copies().is_empty(), "{file}");
        assert_eq!(text.lines().filter(|line| !line.contains(" WARN ")).count(), 1, "{text}");
    }
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn packings_that_are_damaged_or_hold_something_else() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.script(
        "xz -0 -k pi.img && gzip -1 -k pi.img && zstd -q -1 -k pi.img && bzip2 -1 -k pi.img
         for f in pi.img.xz pi.img.gz pi.img.zst pi.img.bz2; do
             head -c 2000000 $f >cut.$f
             cp $f bad.$f && head -c 2000 /dev/urandom | dd of=bad.$f bs=1 seek=2000001 conv=notrunc status=none
         done
         gzip -1 -c pi.img.xz >twice.gz && head -c 3000 pi.img >small.img
         python3 - <<'END'
import zipfile, struct
def make(name, *files):
    with zipfile.ZipFile(name, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for f, n in files: z.write(f, n)
make('two.zip', ('pi.img', 'a.img'), ('small.img', 'b.img'))
make('none.zip', ('/etc/passwd', 'passwd'), ('/etc/group', 'group'))
make('text.zip', ('/etc/passwd', 'a.img'))
make('good.zip', ('pi.img', 'a.img'))
data = bytearray(open('good.zip', 'rb').read())
open('cut.zip', 'wb').write(data[:1000000])
# The flag that it is encrypted, in both places.
locked = bytearray(data)
locked[6] |= 1
at = data.rindex(b'PK\\x01\\x02')
locked[at + 8] |= 1
open('locked.zip', 'wb').write(locked)
data[500000:501000] = bytes(1000)
open('bad.zip', 'wb').write(data)
END",
    );
    for (file, want) in [
        ("cut.pi.img.xz", "ends too early, after 2000000 bytes"),
        ("cut.pi.img.gz", "ends too early, after 2000000 bytes"),
        ("cut.pi.img.zst", "ends too early, after 2000000 bytes"),
        ("cut.pi.img.bz2", "ends too early, after 2000000 bytes"),
        ("bad.pi.img.xz", "damaged before byte"),
        ("bad.pi.img.gz", "damaged before byte"),
        ("bad.pi.img.zst", "damaged before byte"),
        ("bad.pi.img.bz2", "damaged before byte"),
        ("twice.gz", "is not usable"),
        ("two.zip", "more than one image, a.img, b.img: unpack it"),
        ("none.zip", "without an image of a disk (.img): in it are: passwd, group"),
        ("text.zip", "a.img in"),
        ("cut.zip", "zip file"),
        ("locked.zip", "encrypted"),
        ("bad.zip", "is not usable"),
    ] {
        for piped in [false, true] {
            let (name, stdin) = if piped { ("-", Some(file)) } else { (file, None) };
            let (ok, text) = workshop.piman(&["add", "--force", "--name", "x", name], stdin);
            assert!(!ok && text.contains(want), "{file} {piped}: {text}");
            assert!(workshop.copies().is_empty(), "{file}");
        }
    }
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn systems_that_no_pi_runs() {
    let workshop = Workshop::new();
    // The same program for a PC.
    workshop.script("debugfs -w -R 'rm sbin/init' root >/dev/null 2>&1; printf '\\x3e' | dd of=root.d/sbin/init bs=1 seek=18 conv=notrunc status=none
         cp --preserve=mode root.d/sbin/init init && debugfs -w -f - root >/dev/null 2>&1 <<<$'write init sbin/init\\nset_inode_field sbin/init mode 0100755'");
    workshop.raspberry("pi.img");
    let (ok, text) = workshop.piman(&["add", "--name", "pi", "pi.img"], None);
    assert!(!ok && text.contains("/sbin/init is a program for x86-64, which no Raspberry Pi is"), "{text}");
    assert!(workshop.copies().is_empty());
    let (ok, text) = workshop.piman(&["add", "--force", "--name", "pi", "pi.img"], None);
    assert!(ok && text.contains("warning: no program can become process 1"), "{text}");

    // A root that the command line does not have, and no partition to boot from.
    let workshop = Workshop::new();
    workshop.boot("boot", "root=PARTUUID=00000000-02 rootwait");
    workshop.raspberry("pi.img");
    let text = workshop.add(&["pi.img"]);
    assert!(
        text.contains("its command line says root=PARTUUID=00000000-02, which none of its partitions is"),
        "{text}"
    );
    let table =
        "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=2048, type=83\nstart=90112, size=196608, type=83";
    workshop.image("pi.img", 140, table, &[("root", 90112)]);
    let text = workshop.add(&["pi.img"]);
    assert!(text.contains("no partition that a Pi's firmware boots from"), "{text}");
}

#[test]
#[cfg_attr(any(lacks = "root", lacks = "filesystems"), ignore = "needs root and mkfs.vfat")]
fn no_room_for_the_copy() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.script("xz -0 -k pi.img && mkdir state && mount -t tmpfs -o size=4M,mode=700 none state");
    let said: Vec<_> =
        ["pi.img", "pi.img.xz"].map(|file| workshop.piman(&["add", "--name", "pi", file], None)).into();
    let copies = workshop.copies();
    workshop.script("umount state");
    for (ok, text) in said {
        assert!(
            !ok && text.contains("the image needs more than the ") && text.contains("MB that were free"),
            "{text}"
        );
    }
    assert!(copies.is_empty(), "{copies:?}");
}
