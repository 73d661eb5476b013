//! Milliseconds, counted by SysTick.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use piman_core::transport::smoltcp;

/// The clock of the emulated board, in Hz.
const HZ: u32 = 25_000_000;

static NOW_MS: AtomicU32 = AtomicU32::new(0);

/// The clock; there is one.
#[derive(Debug, Clone, Copy)]
pub struct Clock(());

impl Clock {
    /// Starts it.
    pub fn start(mut syst: SYST) -> Self {
        syst.set_clock_source(SystClkSource::Core);
        syst.set_reload(HZ / 1000 - 1);
        syst.clear_current();
        syst.enable_counter();
        syst.enable_interrupt();
        Self(())
    }
}

impl smoltcp::Clock for Clock {
    fn now_ms(&self) -> i64 {
        NOW_MS.load(Ordering::Relaxed).into()
    }

    fn idle(&self, _at_most_ms: u64) {
        // Until the next tick: the emulator has other things to do.
        cortex_m::asm::wfi();
    }
}

#[cortex_m_rt::exception]
fn SysTick() {
    // One writer alone.
    NOW_MS.store(NOW_MS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
