//! The same image in all that it is packed in, with a bmap, out of a pipe, and from a card.

use std::fs;

use piman_tests::disk::LoopDevice;

use super::Workshop;

/// The identity in what was said.
fn id(text: &str) -> String {
    let id = text.strip_prefix("image pi: ").and_then(|rest| rest.split(' ').next());
    let id = id.filter(|id| id.len() == 64);
    id.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn every_packing_gives_the_same_image() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    // The same with other leftovers in its free blocks, which are none of its business.
    workshop.script(
        "cp pi.img other.img
         debugfs -w -R 'write junk x' root >/dev/null 2>&1 && debugfs -w -R 'rm x' root >/dev/null 2>&1
         xz -T2 -1 -k pi.img && gzip -1 -k pi.img && zstd -q -1 -k pi.img && bzip2 -1 -k pi.img && cp pi.img.xz named.tar.gz
         python3 - <<'END'
import zipfile
def make(name, *files, **more):
    with zipfile.ZipFile(name, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for f, n in files:
            with z.open(zipfile.ZipInfo(n), 'w', force_zip64=True) as to, open(f, 'rb') as src:
                while b := src.read(1 << 20): to.write(b)
make('pi.zip', ('pi.img', '2026-11-26-lab.img'))
with zipfile.ZipFile('with.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    z.write('boot.sh' if False else '/etc/passwd', 'READ ME.txt'); z.write('pi.img', 'folder/pi.IMG'); z.writestr('__MACOSX/._pi.img', 'x')
END",
    );
    let want = id(&workshop.add(&["pi.img"]));
    for file in [
        "pi.img.xz",
        "named.tar.gz",
        "pi.img.gz",
        "pi.img.zst",
        "pi.img.bz2",
        "pi.zip",
        "with.zip",
        "other.img",
    ] {
        assert_eq!(id(&workshop.add(&[file])), want, "{file}");
        assert_eq!(workshop.copies().len(), 1, "the copy before is gone");
    }
    for file in ["pi.img", "pi.img.xz", "pi.img.gz", "pi.img.zst", "pi.img.bz2", "with.zip"] {
        let (ok, text) = workshop.piman(&["add", "--name", "pi", "-"], Some(file));
        assert!(ok && id(&text) == want, "{file} piped: {text}");
    }
    let (ok, text) = workshop.piman(&["remove", "pi"], None);
    assert!(ok && workshop.copies().is_empty(), "{text}");
}

#[test]
#[cfg_attr(any(lacks = "root", lacks = "filesystems"), ignore = "needs root and mkfs.vfat")]
fn a_card_is_copied_while_nobody_writes_to_it() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    let want = id(&workshop.add(&["pi.img"]));
    let card = LoopDevice::of(&workshop.path("pi.img"));
    let device = card.path().to_str().unwrap();
    workshop.script(&format!("partx -a {device} && mkdir mnt"));
    let from_card = || workshop.piman(&["add", "--name", "pi", "--from-card", device], None);
    let (ok, text) = from_card();
    assert!(ok && id(&text) == want, "{text}");
    workshop.script(&format!("mount {device}p2 mnt"));
    let (ok, text) = from_card();
    let place = workshop.path("mnt");
    assert!(
        !ok && text.contains(&format!("is mounted at {} and may be written to", place.display())),
        "{text}"
    );
    workshop.script("umount mnt");
    workshop.script(&format!("mount -o ro,noload {device}p2 mnt"));
    let (ok, text) = from_card();
    // Its partitions go with the device: another test's name space may have a copy of this mount for a while.
    workshop.script("umount mnt");
    assert!(ok, "{text}");
    let (ok, text) = workshop.piman(&["add", "--name", "pi", device], None);
    assert!(!ok && text.contains("--from-card"), "{text}");
    let (ok, text) = workshop.piman(&["add", "--name", "pi", "--from-card", "pi.img"], None);
    assert!(!ok && text.contains("pi.img is no disk"), "{text}");
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_bmap_says_what_is_mapped_and_is_compared() {
    let workshop = Workshop::new();
    workshop.root("root2", "-b 4096", "32M");
    // A filesystem that is not understood, three blocks of which have content.
    workshop.script(
        "truncate -s 32M odd && printf ODD | dd of=odd bs=4096 seek=9 conv=notrunc status=none
         printf ODD | dd of=odd bs=4096 seek=5000 conv=notrunc status=none",
    );
    let table = "label: dos\nstart=8192, size=81920, type=c\nstart=90112, size=196608, type=83\nstart=286720, size=65536, type=83";
    workshop.image("pi.img", 180, table, &[("boot", 8192), ("root", 90112), ("odd", 286_720)]);
    workshop.script(
        "cat >bmap.py <<'END'
import hashlib, sys
data = open('pi.img', 'rb').read()
blocks = [i for i in range(len(data) // 4096) if any(data[i * 4096:(i + 1) * 4096])]
runs = []
for b in blocks:
    if runs and runs[-1][1] == b - 1: runs[-1][1] = b
    else: runs.append([b, b])
text = '<?xml version=\"1.0\" ?>\\n<bmap version=\"2.0\"><ImageSize> %d </ImageSize><BlockSize> 4096 </BlockSize>' % len(data)
text += '<BlocksCount> %d </BlocksCount><MappedBlocksCount> %d </MappedBlocksCount>' % (len(data) // 4096, len(blocks))
text += '<ChecksumType> sha256 </ChecksumType><BmapFileChecksum> %s </BmapFileChecksum><BlockMap>' % ('0' * 64)
for a, b in runs:
    text += '<Range chksum=\"%s\"> %d-%d </Range>\\n' % (hashlib.sha256(data[a * 4096:(b + 1) * 4096]).hexdigest(), a, b)
text += '</BlockMap></bmap>\\n'
text = text.replace('0' * 64, hashlib.sha256(text.encode()).hexdigest())
open(sys.argv[1], 'w').write(text)
END
         python3 bmap.py own.bmap && gzip -1 -k pi.img",
    );
    let used = |arguments: &[&str]| {
        workshop.add(arguments);
        workshop.kept().1.used_bytes()
    };
    let whole = used(&["pi.img"]);
    let mapped = used(&["pi.img", "--bmap", "own.bmap"]);
    // All but two blocks of what is not understood.
    assert_eq!(whole - mapped, (32 << 20) - 2 * 4096);
    workshop.restored("card");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    workshop.script("cp own.bmap pi.bmap");
    assert_eq!(used(&["pi.img.gz"]), mapped, "the one beside it is found");
    workshop.script("rm pi.bmap && cp own.bmap pi.img.bmap");
    assert_eq!(used(&["pi.img"]), mapped);
    // Where everything says itself what it uses, a bmap changes nothing.
    workshop.raspberry("plain.img");
    let without = id(&workshop.add(&["plain.img"]));
    workshop.script("sed s/pi.img/plain.img/g bmap.py >other.py && python3 other.py plain.bmap");
    assert_eq!(id(&workshop.add(&["plain.img", "--bmap", "plain.bmap"])), without);
    // Another image than the bmap's.
    workshop.script(
        "printf X | dd of=pi.img bs=1 seek=46137345 conv=notrunc status=none && gzip -1 -f -k pi.img",
    );
    let before = workshop.copies();
    for file in ["pi.img", "pi.img.gz"] {
        let (ok, text) = workshop.piman(&["add", "--name", "pi", file], None);
        assert!(!ok && text.contains("the image is not what its bmap says: bytes 461"), "{text}");
    }
    assert_eq!(workshop.copies(), before, "nothing is left behind");
    fs::write(workshop.path("x.tar"), "").unwrap();
    workshop.script("tar -cf x.tar root.d");
    let (ok, text) = workshop.piman(&["add", "--force", "--name", "pi", "--bmap", "own.bmap", "x.tar"], None);
    assert!(!ok && text.contains("--bmap is for an image of a disk"), "{text}");
}
