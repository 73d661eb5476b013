//! The Pi's side of an installation with a public key: its server is certified, what it orders is signed, and what the Pi
//! says is marked. The same as in `install` otherwise.

use core::hint::black_box;

use piman_core::install::Decision;
use piman_core::install::drive::{report_trusted, run_trusted};
use piman_core::install::trust::{DeviceKey, Floor, Nonce, PiTrust, PublicKey, Root};

use super::Service;
use super::install::{Chip, REPORTS, START};
use crate::probe::Line;
use crate::script;

/// The agent of a Pi with a key.
pub struct Trusted;

/// What a server says to this nonce; the tests of the workspace make it (`protocol/install/trusted_script.rs`).
const SAYS: &[u8] = include_bytes!("trusted.txt");

impl Service for Trusted {
    const SCRIPT: &'static [u8] = script!(piece(0), piece(1), piece(2));

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        let key = DeviceKey::new(black_box([9; 32])).map(|key| (key, true));
        let root = Root::new(PublicKey(black_box(ROOT)));
        let mut trust = PiTrust::new(Nonce(black_box([4; 16])), key, Some(root), Floor::default());
        let decided = run_trusted(io, buf, black_box(&START), &mut Chip, &mut trust).await;
        let Ok(Decision::Format(Some(_))) = decided else { return false };
        for line in black_box(&REPORTS) {
            if report_trusted(io, line, &mut trust).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// The key that certifies: that of RFC 8032, 7.1, test 1.
const ROOT: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72,
    0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// The n-th piece of what the server says.
const fn piece(n: usize) -> &'static [u8] {
    const PIECE: usize = 250;
    let (_, from) = SAYS.split_at(n * PIECE);
    if from.len() > PIECE { from.split_at(PIECE).0 } else { from }
}
