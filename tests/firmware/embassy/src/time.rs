//! Milliseconds, counted by SysTick, as embassy's clock.

use core::cell::RefCell;
use core::task::Waker;

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use critical_section::Mutex;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;

use crate::ethernet;

/// The clock of the emulated board, in Hz.
const HZ: u32 = 25_000_000;

struct Ticks(Mutex<RefCell<State>>);

struct State {
    now: u64,
    queue: Queue,
}

embassy_time_driver::time_driver_impl!(
    static TICKS: Ticks = Ticks(Mutex::new(RefCell::new(State { now: 0, queue: Queue::new() })))
);

impl Driver for Ticks {
    fn now(&self) -> u64 {
        critical_section::with(|cs| self.0.borrow_ref(cs).now)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // Whether it is earlier than others does not matter: every tick looks.
        critical_section::with(|cs| self.0.borrow_ref_mut(cs).queue.schedule_wake(at, waker));
    }
}

/// Starts it.
pub fn start(mut syst: SYST) {
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(HZ / 1000 - 1);
    syst.clear_current();
    syst.enable_counter();
    syst.enable_interrupt();
}

#[cortex_m_rt::exception]
fn SysTick() {
    critical_section::with(|cs| {
        let mut state = TICKS.0.borrow_ref_mut(cs);
        state.now += 1;
        let now = state.now;
        // Wakes who has waited until now.
        state.queue.next_expiration(now);
    });
    ethernet::look();
}
