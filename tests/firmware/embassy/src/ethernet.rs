//! The board's Ethernet controller under embassy-net.

use core::task::Context;

use embassy_net_driver::{Capabilities, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use embassy_sync::waitqueue::AtomicWaker;
use piman_board::lan9118::{FRAME, Lan9118};

static WAKER: AtomicWaker = AtomicWaker::new();

/// Has the network look at the controller: it is polled, once in a millisecond.
pub fn look() {
    WAKER.wake();
}

/// The controller.
pub struct Ethernet {
    controller: Lan9118,
    mac: [u8; 6],
}

impl Ethernet {
    /// Wakes it; `None` if it is not there.
    pub fn start() -> Option<Self> {
        let mut controller = Lan9118::start()?;
        let mac = controller.mac();
        Some(Self { controller, mac })
    }
}

impl Driver for Ethernet {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(Received, Sender<'_>)> {
        WAKER.register(cx.waker());
        if !self.controller.is_waiting() || !self.controller.has_room() {
            return None;
        }
        let mut frame = [0; FRAME];
        let length = self.controller.take(&mut frame);
        Some((Received { frame, length }, Sender(&mut self.controller)))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<Sender<'_>> {
        WAKER.register(cx.waker());
        self.controller.has_room().then_some(Sender(&mut self.controller))
    }

    fn link_state(&mut self, _cx: &mut Context<'_>) -> LinkState {
        LinkState::Up
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = FRAME;
        // More would not fit its memory.
        capabilities.max_burst_size = Some(4);
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.mac)
    }
}

/// A frame that came.
pub struct Received {
    frame: [u8; FRAME],
    length: usize,
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, f: F) -> R {
        f(self.frame.get_mut(..self.length).unwrap_or_default())
    }
}

/// Sends one frame.
pub struct Sender<'a>(&'a mut Lan9118);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [0; FRAME];
        let frame = &mut frame[..len.min(FRAME)];
        let result = f(frame);
        self.0.put(frame);
        result
    }
}
