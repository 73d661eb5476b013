//! The image of a whole disk, as they are published: its own table, a FAT and a root filesystem that is to grow.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use piman_core::install::receipt::Way;
use piman_tests::contents::{put, with_table};
use piman_tests::disk::{e2fsck, run};

use super::disk::filesystem_bytes;
use super::machine::{Boot, Root, Server, Tools, Until};
use super::{Verdict, assert_installs, assert_only_boots, card, installed, new_file};

const P1: u64 = 4 << 20;
const P2: u64 = 20 << 20;
const IMAGE: u64 = 84 << 20;
const CARD: u64 = 512 << 20;

/// It is installed on a larger card, where the kernel grows its root filesystem, and boots from there.
pub(crate) fn is_installed_and_grown(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Tiny)?;
    let folder = new_file(tools, "whole-disk");
    fs::create_dir(&folder).unwrap();
    image(&archive, &folder);
    let state = folder.join("state");
    let image = folder.join("disk.img.xz");
    let added = tools.add_image(&state, &image);
    println!("{added}");
    let mut serve = Command::new(&tools.piman);
    serve.args(["serve", "--listen", "127.0.0.1", "--control-port", "0", "--rootfs-port", "0"]);
    let server = Server::start_by(serve.args(["--fetch-port", "0", "--state"]).arg(&state));
    let card = folder.join("card.img");
    let boot = Boot {
        machine: "virt",
        card: &card,
        card_size: "512M",
        control_port: server.control_port,
        append: "",
        until: Until::Up(Root::Tiny),
        deadline: Duration::from_secs(900),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_eq!((first.path, first.disk.as_ref().map(|marks| marks.root)), (Way::Image, Some(2)));
    card::settle_at(&card, P2);
    assert!(filesystem_bytes(&card, P2) > CARD - P2 - (2 << 20), "it has not grown");
    e2fsck(&card, P2, CARD - P2);
    assert_only_boots(&tools.boot(&Boot { until: Until::RootSwitched, ..boot }));
    assert_eq!(installed(&card), first);
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// Makes `disk.img.xz` with the content of an archive.
fn image(archive: &Path, folder: &Path) {
    let (root, disk) = (folder.join("root"), folder.join("disk.img"));
    fs::create_dir(&root).unwrap();
    run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&root));
    let table = "label: dos\nstart=8192, size=32768, type=c\nstart=40960, size=131072, type=83\n";
    with_table(&disk, IMAGE, table);
    put(&disk, P1, P2 - P1, "mkfs.vfat -n BOOTFS FILE");
    put(&disk, P2, IMAGE - P2, &format!("mke2fs -q -F -t ext4 -L rootfs -d {} FILE", root.display()));
    run(Command::new("xz").arg("-0").arg(&disk));
}
