//! The Ethernet controller LAN9118 of the board, polled. Source: its data sheet, SMSC, revision 1.5.

use core::ptr;

/// Where it is on mps2-an385 and mps2-an386.
const BASE: usize = 0x4020_0000;

const RX_DATA: usize = 0x00;
const TX_DATA: usize = 0x20;
const RX_STATUS: usize = 0x40;
const TX_STATUS: usize = 0x48;
const BYTE_TEST: usize = 0x64;
const TX_CFG: usize = 0x70;
const HW_CFG: usize = 0x74;
const RX_FIFO_INF: usize = 0x7C;
const TX_FIFO_INF: usize = 0x80;
const MAC_CSR_CMD: usize = 0xA4;
const MAC_CSR_DATA: usize = 0xA8;

const MAC_CR: u32 = 1;
const ADDRH: u32 = 2;
const ADDRL: u32 = 3;

/// The longest frame, without its check sum.
pub const FRAME: usize = 1514;

/// The controller.
pub struct Lan9118(());

impl Lan9118 {
    /// Wakes it; `None` if it is not there.
    #[must_use]
    pub fn start() -> Option<Self> {
        let mut this = Self(());
        if this.read(BYTE_TEST) != 0x8765_4321 {
            return None;
        }
        // A reset, then 5 KiB of its memory for sending.
        this.write(HW_CFG, 1);
        while this.read(HW_CFG) & 1 != 0 {}
        this.write(HW_CFG, 0x0015_0000);
        this.write(TX_CFG, 2);
        // Transmitter and receiver on.
        this.mac_write(MAC_CR, 0xC);
        Some(this)
    }

    /// Its hardware address.
    pub fn mac(&mut self) -> [u8; 6] {
        let [a, b, c, d] = self.mac_read(ADDRL).to_le_bytes();
        let [e, f, _, _] = self.mac_read(ADDRH).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn read(&mut self, at: usize) -> u32 {
        // SAFETY: a register of the controller, on a board that has it.
        unsafe { ptr::read_volatile((BASE + at) as *const u32) }
    }

    fn write(&mut self, at: usize, value: u32) {
        // SAFETY: a register of the controller, on a board that has it.
        unsafe { ptr::write_volatile((BASE + at) as *mut u32, value) }
    }

    fn mac_wait(&mut self) {
        while self.read(MAC_CSR_CMD) & 0x8000_0000 != 0 {}
    }

    fn mac_read(&mut self, register: u32) -> u32 {
        self.mac_wait();
        self.write(MAC_CSR_CMD, 0xC000_0000 | register);
        self.mac_wait();
        self.read(MAC_CSR_DATA)
    }

    fn mac_write(&mut self, register: u32, value: u32) {
        self.mac_wait();
        self.write(MAC_CSR_DATA, value);
        self.write(MAC_CSR_CMD, 0x8000_0000 | register);
        self.mac_wait();
    }

    /// Whether a frame has come.
    pub fn is_waiting(&mut self) -> bool {
        self.read(RX_FIFO_INF) >> 16 & 0xFF != 0
    }

    /// Whether the longest frame can be sent.
    pub fn has_room(&mut self) -> bool {
        let free = self.read(TX_FIFO_INF) & 0xFFFF;
        free as usize > FRAME + 16
    }

    /// Takes the next frame to the front of `frame`; its length without the check sum. A frame with an
    /// error has no bytes.
    pub fn take(&mut self, frame: &mut [u8]) -> usize {
        let status = self.read(RX_STATUS);
        let length = (status >> 16 & 0x3FFF) as usize;
        let mut at = 0;
        while at < length {
            let word = self.read(RX_DATA).to_le_bytes();
            for (to, from) in frame.iter_mut().skip(at).zip(word) {
                *to = from;
            }
            at += 4;
        }
        if status & 0x8000 != 0 { 0 } else { length.saturating_sub(4).min(frame.len()) }
    }

    /// Sends a frame; there must be [room](Self::has_room).
    pub fn put(&mut self, frame: &[u8]) {
        let length = frame.len() as u32;
        // The whole frame in one buffer.
        self.write(TX_DATA, 0x3000 | length);
        self.write(TX_DATA, length << 16 | length);
        for piece in frame.chunks(4) {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(piece) {
                *to = *from;
            }
            self.write(TX_DATA, u32::from_le_bytes(word));
        }
        // How it went nobody asks: what is lost is sent again.
        while self.read(TX_FIFO_INF) >> 16 & 0xFF != 0 {
            self.read(TX_STATUS);
        }
    }
}
