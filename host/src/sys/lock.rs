//! Locks that a failed thread does not take with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whatever is locked in this crate is whole between two steps, whatever a thread died of.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
