//! The client of the telemetry service: records, each acknowledged.

use piman_core::telemetry::{Acks, Client, open, send};

use super::Service;
use crate::probe::Line;
use crate::script;

/// Two records.
pub struct Stream;

impl Service for Stream {
    const SCRIPT: &'static [u8] =
        script!(b"Connection established", b"data processed", b"data received", b"data processed");

    async fn run(io: &mut Line, _buf: &mut [u8]) -> bool {
        let mut client = Client::new(Acks::Unknown);
        open(io, &mut client).await.is_ok()
            && send(io, &mut client, b"1,2,3\n").await.is_ok()
            && send(io, &mut client, b"4,5,6\n").await.is_ok()
            && client.acks() == Acks::Exact
    }
}
