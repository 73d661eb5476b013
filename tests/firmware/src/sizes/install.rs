//! The Pi's side of an installation: who it is, the decision, milestones, the proof.

use core::fmt;
use core::hint::black_box;

use piman_core::hash::Hash;
use piman_core::install::drive::{Pi, report, run};
use piman_core::install::{
    Can, Date, Decision, Hello, Milestone, Notice, Paths, REVISION, Report, Stage, Start,
};

use super::Service;
use crate::probe::Line;
use crate::script;

/// The agent.
pub struct Install;

/// The Pi.
pub(super) struct Chip;

impl Pi for Chip {
    async fn set_date(&mut self, date: Date) -> bool {
        black_box(date);
        true
    }

    fn addresses(&mut self, out: &mut impl fmt::Write) {
        let _ = out.write_str("10.0.2.15");
    }

    async fn wipe(&mut self) -> bool {
        true
    }
}

impl Service for Install {
    const SCRIPT: &'static [u8] = script!(
        b"busybox date -s 202611210903.07\nEOM\nip\nEOM\nreinstall\nEOM\ndance\nEOM\nformat\n",
        b"PIMAN/1 offer id=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef ",
        b"bytes=1234567890 rootfs=4444 fetch=4445 ",
        b"table=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef ",
        b"table-bytes=12345 chunk-bytes=1234567890 rev=1 sums=1048576 unpacked=123456789 entries=1234 ",
        b"counter=1795231447 installation=00000000deadbeef\nEOM\n",
    );

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        let Ok(Decision::Format(Some(_))) = run(io, buf, black_box(&START), &mut Chip).await else {
            return false;
        };
        for line in black_box(&REPORTS) {
            if report(io, line).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Who the Pi is.
#[unsafe(link_section = ".script")]
pub(super) static START: Start<'static> = Start {
    hello: Some(Hello {
        revision: REVISION,
        serial: Some("10000000abcdef01"),
        mac: Some("b8:27:eb:00:00:01"),
        model: Some("mps2 an386"),
        agent: Some("0.1.0"),
        disk_bytes: 31_914_983_424,
        root_bytes: 31_864_651_776,
        card_id: None,
        card: Some(Hash([7; 32])),
        installation: None,
        paths: Paths { stream: true, image: false },
        can: Can { signed: false, answer: false, disk: false, grow: false, personal: false, early: false },
        found: None,
        print: None,
        personal: None,
    }),
    disk: None,
    installed: true,
};

/// What the Pi says on its way, one after another.
#[unsafe(link_section = ".script")]
pub(super) static REPORTS: [Report<'static>; 5] = [
    Report::Ours(Notice::Progress { stage: Stage::Transfer, done: 5, total: 1_234_567_890 }),
    Report::Ours(Notice::Failed { stage: Stage::Sync, text: "no" }),
    Report::Milestone(Milestone::Mounting),
    Report::Ours(Notice::Committed { id: Hash([7; 32]), installation: None }),
    Report::Formatted,
];
