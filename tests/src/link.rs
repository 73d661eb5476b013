//! Links of Ethernet for smoltcp: two ends in memory, and weather on any device: loss, duplicates,
//! damage, other orders, delay, all of it from a seed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::chance::Random;

type Lane = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a cable in memory.
#[derive(Debug)]
pub struct End {
    from: Lane,
    to: Lane,
}

/// A cable.
#[must_use]
pub fn cable() -> (End, End) {
    let (there, back) = (Lane::default(), Lane::default());
    (End { from: Rc::clone(&back), to: Rc::clone(&there) }, End { from: there, to: back })
}

/// A frame that came.
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// A frame that leaves.
pub struct Leaving<'a>(&'a Lane);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.borrow_mut().push_back(frame);
        result
    }
}

impl Device for End {
    type RxToken<'a> = Received;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Leaving<'_>)> {
        let frame = self.from.borrow_mut().pop_front()?;
        Some((Received(frame), Leaving(&self.to)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&self.to))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// What happens to the frames that come, each in so many of 100 cases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// It is lost.
    pub lost: u32,
    /// It comes twice.
    pub twice: u32,
    /// One of its bytes is another.
    pub damaged: u32,
    /// It comes behind the next one.
    pub late: u32,
    /// All come so much later, in milliseconds.
    pub delay_ms: u32,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Happened {
    /// Frames that came through.
    pub passed: u64,
    /// Frames to which anything happened.
    pub disturbed: u64,
}

/// A device in the weather: what it receives and what it sends.
pub struct Outside<D> {
    inner: D,
    weather: Weather,
    random: Random,
    /// Frames on their way in, with when they arrive.
    coming: VecDeque<(i64, Vec<u8>)>,
    happened: Rc<RefCell<Happened>>,
}

impl<D: Device> Outside<D> {
    /// Puts a device outside.
    #[must_use]
    pub fn new(inner: D, weather: Weather, seed: u64) -> Self {
        let happened = Rc::default();
        Self { inner, weather, random: Random::new(seed), coming: VecDeque::new(), happened }
    }

    /// What happened, also later.
    #[must_use]
    pub fn happened(&self) -> Rc<RefCell<Happened>> {
        Rc::clone(&self.happened)
    }

    fn strikes(&mut self, percent: u32) -> bool {
        self.random.below(100) < percent.into()
    }

    /// Takes in what the device has.
    fn look_out(&mut self, now: Instant) {
        loop {
            let frame = self.inner.receive(now).map(|(token, _)| token.consume(<[u8]>::to_vec));
            let Some(mut frame) = frame else { break };
            let at = now.total_millis() + i64::from(self.weather.delay_ms);
            let Weather { lost, twice, damaged, late, .. } = self.weather;
            let (lost, twice) = (self.strikes(lost), self.strikes(twice));
            let (damaged, late) = (self.strikes(damaged), self.strikes(late));
            if lost || twice || damaged || late {
                self.happened.borrow_mut().disturbed += 1;
            }
            if lost {
                continue;
            }
            self.happened.borrow_mut().passed += 1;
            // Whoever damages ARP, which has no check sum, attacks: that is not weather.
            if damaged && frame.get(12..14) == Some(&[8, 0]) {
                let at = self.random.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.random.below(8);
            }
            if twice {
                self.coming.push_back((at, frame.clone()));
            }
            let end = self.coming.len();
            self.coming.insert(if late { end.saturating_sub(1) } else { end }, (at, frame));
        }
    }
}

impl<D: Device> Device for Outside<D> {
    type RxToken<'a>
        = Received
    where
        D: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        D: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Received, D::TxToken<'_>)> {
        self.look_out(now);
        self.coming.front().filter(|(at, _)| *at <= now.total_millis())?;
        let token = self.inner.transmit(now)?;
        let (_, frame) = self.coming.pop_front()?;
        Some((Received(frame), token))
    }

    fn transmit(&mut self, now: Instant) -> Option<D::TxToken<'_>> {
        self.inner.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.inner.capabilities()
    }
}
