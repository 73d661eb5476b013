//! The board's Ethernet controller under smoltcp.

use piman_board::lan9118::{FRAME, Lan9118 as Controller};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// The controller.
pub struct Lan9118(Controller);

impl Lan9118 {
    /// Wakes it; `None` if it is not there.
    #[must_use]
    pub fn start() -> Option<Self> {
        Controller::start().map(Self)
    }

    /// Its hardware address.
    pub fn mac(&mut self) -> [u8; 6] {
        self.0.mac()
    }
}

impl phy::Device for Lan9118 {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sender<'_>)> {
        if !self.0.is_waiting() {
            return None;
        }
        let mut frame = [0; FRAME];
        let length = self.0.take(&mut frame);
        Some((Received { frame, length }, Sender(&mut self.0)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_>> {
        self.0.has_room().then_some(Sender(&mut self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        // More would not fit its memory.
        capabilities.max_burst_size = Some(4);
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities
    }
}

/// A frame that came.
pub struct Received {
    frame: [u8; FRAME],
    length: usize,
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame.get(..self.length).unwrap_or_default())
    }
}

/// Sends one frame.
pub struct Sender<'a>(&'a mut Controller);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [0; FRAME];
        let frame = &mut frame[..len.min(FRAME)];
        let result = f(frame);
        self.0.put(frame);
        result
    }
}
