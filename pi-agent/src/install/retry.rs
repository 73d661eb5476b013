//! Trying again after a passing fault.

use std::sync::Arc;
use std::thread;

use super::{Outcome, Plan, attempt};
use crate::card::choose::Which;
use crate::control::Machine;
use crate::failure::Failure;
use crate::telemetry::progress::Progress;
use piman_core::hosted::backoff::Backoff;

/// Tries until it is done, piman refuses, or `retries` passing faults came after the first.
///
/// # Errors
/// The last [`Failure`].
pub fn run(
    plan: &Plan,
    retries: u32,
    machine: &mut Machine,
    progress: &Arc<Progress>,
) -> Result<Outcome, Failure> {
    let mut backoff = Backoff::default();
    let mut left = retries;
    // A rule chooses once: a disk that comes or goes meanwhile must not make the next try take another.
    let disk = plan.disk.settled().unwrap_or_else(Which::No);
    let plan = &Plan { disk, ..plan.clone() };
    loop {
        let failure = match attempt(plan, machine, progress) {
            Ok(outcome) => return Ok(outcome),
            Err(failure) => failure,
        };
        if !failure.cause.is_passing() || left == 0 {
            return Err(failure);
        }
        left -= 1;
        let pause = backoff.wait();
        let (next, all) = (u64::from(retries - left) + 1, u64::from(retries) + 1);
        log::warn!("{failure}; try {next} of {all} in {:.1} s", pause.as_secs_f64());
        thread::sleep(pause);
    }
}
