//! One side of the rpc service with a peer of ours, by the protected login: the same call and answer as in `postcard`.

use piman_core::messages::{MessageStream, Role, Timeless};
use piman_core::rpc::secure::{Buffers, Terms, login};

use super::Service;
use super::postcard::calls;
use crate::probe::Line;
use crate::script;

/// Postcard over messages over records.
pub struct Protected;

impl Service for Protected {
    // What a server says to these random bytes; the tests of the workspace make it (`rpc_secure.rs`).
    const SCRIPT: &'static [u8] = script!(include_bytes!("protected.bin"));

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        talk(io, buf).await.unwrap_or(false)
    }
}

async fn talk(io: &mut Line, buf: &mut [u8]) -> Option<bool> {
    let (incoming, buf) = buf.split_at_mut_checked(256)?;
    let (outgoing, buf) = buf.split_at_mut_checked(256)?;
    let terms = Terms {
        password: Some("secret"),
        name: "10000000cafe",
        record_max: 238,
        asked: false,
        random: &[9; 80],
    };
    let io = login(io, &terms, Buffers { incoming, outgoing }).await.ok()?;
    let mut frames = MessageStream::open(io, Timeless, Role::Client, 64, buf).await.ok()?;
    calls(&mut frames).await
}
