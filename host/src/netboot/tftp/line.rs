//! The socket of one transfer, which sends a run of blocks in one call where the system can.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use quinn_udp::{Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::body::Body;
use super::packet;
use super::path;
use super::transfer::Transfer;

/// The most bytes given to the system in one call.
const RUN_MAX: usize = 60_000;

/// The socket of a transfer.
pub(super) struct Line {
    pub(super) socket: UdpSocket,
    peer: SocketAddr,
    /// Cuts a run of blocks into packets in the kernel; only for windows.
    extras: Option<UdpSocketState>,
    packets: Vec<u8>,
}

impl Line {
    pub(super) fn new(socket: UdpSocket, peer: SocketAddr, windows: bool) -> io::Result<Self> {
        let extras = windows.then(|| UdpSocketState::new((&socket).into())).transpose()?;
        Ok(Self { socket, peer, extras, packets: Vec::new() })
    }

    pub(super) async fn send_blocks(
        &mut self,
        transfer: &Transfer,
        body: &Body,
        first: u64,
        count: u16,
    ) -> io::Result<()> {
        let end = first + u64::from(count);
        let mut next = first;
        while next < end {
            let (_, length) = transfer.place(next);
            let size = usize::from(length) + 4;
            let at_once = self.extras.as_ref().map_or(1, |e| e.max_gso_segments().min(RUN_MAX / size)).max(1);
            let (offset, _) = transfer.place(next);
            self.packets.clear();
            for block in (next..end).take(at_once) {
                let (_, length) = transfer.place(block);
                // The wire has the low 16 bits only: numbers wrap to 0.
                self.packets.extend_from_slice(&packet::data_head(block as u16));
                self.packets.resize(self.packets.len() + usize::from(length), 0);
                next = block + 1;
            }
            let bodies = self.packets.chunks_mut(size).filter_map(|p| p.get_mut(4..));
            let mut bodies: Vec<IoSliceMut<'_>> = bodies.map(IoSliceMut::new).collect();
            body.read(offset, &mut bodies)?;
            self.send_run(size).await?;
        }
        Ok(())
    }

    /// Sends packets that lie one behind the other, all of this size but the last.
    async fn send_run(&self, size: usize) -> io::Result<()> {
        let Some(extras) = self.extras.as_ref().filter(|_| self.packets.len() > size) else {
            return self.socket.send(&self.packets).await.map(|_| ());
        };
        let transmit = Transmit {
            destination: self.peer,
            ecn: None,
            contents: &self.packets,
            segment_size: Some(size),
            src_ip: None,
        };
        let send = || extras.try_send((&self.socket).into(), &transmit);
        match self.socket.async_io(Interest::WRITABLE, send).await {
            // The card or kernel cannot cut: one by one then (and `extras` knows from now on).
            Err(e) if !path::may_pass(&e) && !path::is_too_large(&e) => {
                tracing::debug!("tftp: {}: a run of blocks: {e}", self.peer);
                for packet in self.packets.chunks(size) {
                    self.socket.send(packet).await?;
                }
                Ok(())
            }
            sent => sent,
        }
    }
}
