//! What a medium is like: its sectors, its size.

use std::fs::File;
use std::process::Command;

use pi_agent::card::disk::{Disk, root_in_table};
use pi_agent::failure::Cause;
use pi_agent::install::{Outcome, Plan};
use piman_core::install::layout::{Layout, SECTOR};
use piman_tests::disk::LoopDevice;
use piman_tests::lab::{self, attempt};

use super::digest;

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn sectors_of_4096_bytes() {
    let (root, server, folder) = lab::with_server("sectors", 300_000);
    for path in ["archive", "image"] {
        let file = folder.path().join("card.img");
        File::create(&file).unwrap().set_len(lab::CARD).unwrap();
        let device = LoopDevice::with_sectors(&file, 4096);
        let plan = Plan { yes: true, ..lab::plan(&server, device.path(), path) };
        let outcome = attempt(&plan).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        let disk = File::open(device.path()).unwrap();
        let area = root_in_table(&disk, lab::CARD).unwrap();
        assert_eq!(area.offset, lab::layout().root_start * SECTOR, "{path}");
        let again = attempt(&plan).unwrap();
        assert!(matches!(again, Outcome::Boot { .. }), "{path}: {again:?}");
        drop((disk, device));
        root.assert_on(&file);
        std::fs::remove_file(&file).unwrap();
    }
    // A layout that sectors of this size cannot hold is refused, and nothing is written.
    let file = folder.path().join("card.img");
    File::create(&file).unwrap().set_len(lab::CARD).unwrap();
    let before = digest(&file);
    let device = LoopDevice::with_sectors(&file, 4096);
    let disk = Disk::open(device.path()).unwrap();
    let odd = Layout { boot_start: 2049, ..lab::layout() };
    let failure = disk.begin(&odd, None).unwrap_err().to_string();
    assert!(failure.contains("sectors of 4096 bytes"), "{failure}");
    drop((disk, device));
    assert_eq!(digest(&file), before);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_card_that_is_too_small_is_told_with_both_sizes() {
    let (_root, server, folder) = lab::with_server("small", 110_000_000);
    let file = folder.path().join("card.img");
    let bytes = (lab::layout().root_start * SECTOR) + (80 << 20);
    File::create(&file).unwrap().set_len(bytes).unwrap();
    let before = digest(&file);
    let failure = attempt(&lab::plan(&server, &file, "archive")).unwrap_err();
    assert_eq!(failure.cause, Cause::TooSmall, "{failure}");
    let text = failure.to_string();
    assert!(
        text.contains("the disk is too small for this image: it needs") && text.contains("80.0 MiB"),
        "{text}"
    );
    assert_eq!(digest(&file), before, "something was written");
    // As a program it ends with a code of its own, by every path: of an image the server knows that.
    let layout = folder.path().join("layout");
    std::fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
    for path in ["archive", "image", "auto"] {
        let mut agent: Command = server.agent(&file, "00000000cafe0009");
        agent.args(["--server", "127.0.0.1", "--path", path, "--transfer-port", "0"]);
        agent.args(["--layout"]).arg(&layout);
        let output = agent.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{path}: {said}");
        assert!(said.contains("a larger card, or assign a smaller image"), "{path}: {said}");
        assert_eq!(digest(&file), before, "{path}: something was written");
    }
}
