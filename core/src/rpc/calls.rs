//! The calls that are under way: numbers for new ones, answers to their callers, time-outs.

use core::fmt;

/// A place for one call that is under way.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Place {
    /// The number of its last call.
    retcode: u32,
    waiting: bool,
    deadline_ms: u64,
    next_free: u32,
}

/// The calls of one side that wait for an answer. As many at once as there are places.
///
/// The low 16 bits of a call's number name its place, the others begin at random and count its calls: so
/// an answer is matched at once, in any order, and one that comes too late or twice matches
/// nothing. The places are the caller's: an array, or a `Vec` that may grow.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Calls<P> {
    places: P,
    /// The first free place, counted from 1; 0: none.
    free: u32,
    used: u32,
    under_way: u32,
    /// No deadline is before this one.
    earliest_ms: u64,
}

/// All places are taken: wait for an answer, or call later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many calls wait for an answer")
    }
}

impl core::error::Error for TooMany {}

/// The most calls that can be under way at once.
pub const CALLS_MAX: usize = 1 << 16;
/// The bits of a number that name the place.
const PLACE: u32 = 0xFFFF;

impl<P: AsMut<[Place]>> Calls<P> {
    /// None under way.
    #[must_use]
    pub fn new(places: P) -> Self {
        Self { places, free: 0, used: 0, under_way: 0, earliest_ms: u64::MAX }
    }

    /// The places, to add more at the end.
    pub fn places(&mut self) -> &mut P {
        &mut self.places
    }

    /// How many wait for an answer.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way as usize
    }

    /// A new call; `random` is any 32 random bits. Returns its number and its place; the place is
    /// the same until it is answered or too late.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn begin(&mut self, random: u32, deadline_ms: u64) -> Result<(u32, usize), TooMany> {
        let places = self.places.as_mut();
        let at = match self.free.checked_sub(1) {
            Some(at) => at,
            None if (self.used as usize) < places.len().min(CALLS_MAX) => self.used,
            None => return Err(TooMany),
        };
        let place = places.get_mut(at as usize).ok_or(TooMany)?;
        let high = if self.free > 0 {
            self.free = place.next_free;
            place.retcode.wrapping_add(1 << 16)
        } else {
            self.used += 1;
            random
        };
        let retcode = high & !PLACE | at;
        *place = Place { retcode, waiting: true, deadline_ms, next_free: 0 };
        self.under_way += 1;
        self.earliest_ms = self.earliest_ms.min(deadline_ms);
        Ok((retcode, at as usize))
    }

    /// An answer has come. The place of its call, or `None` if nobody waits for it: it came too
    /// late, twice, or was never asked for.
    #[must_use]
    pub fn end(&mut self, retcode: u32) -> Option<usize> {
        let places = self.places.as_mut();
        let at = (retcode & PLACE) as usize;
        places.get(at).filter(|p| p.waiting && p.retcode == retcode)?;
        self.release(at);
        Some(at)
    }

    /// A call whose time is over at `now_ms`, which waits no more; call it again until `None`.
    #[must_use]
    pub fn expired(&mut self, now_ms: u64) -> Option<usize> {
        if now_ms < self.earliest_ms || self.under_way == 0 {
            return None;
        }
        let places = self.places.as_mut().get(..self.used as usize).unwrap_or_default();
        let waiting = || places.iter().enumerate().filter(|(_, p)| p.waiting);
        let Some((at, _)) = waiting().find(|(_, p)| p.deadline_ms <= now_ms) else {
            self.earliest_ms = waiting().map(|(_, p)| p.deadline_ms).min().unwrap_or(u64::MAX);
            return None;
        };
        self.release(at);
        Some(at)
    }

    /// When to call [`expired`](Self::expired) next; nothing is late before.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        (self.under_way > 0).then_some(self.earliest_ms)
    }

    fn release(&mut self, at: usize) {
        if let Some(place) = self.places.as_mut().get_mut(at) {
            place.waiting = false;
            place.next_free = self.free;
            // No more places than CALLS_MAX are ever used.
            self.free = at as u32 + 1;
            self.under_way -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn ten_thousand_at_once_answered_in_any_order() {
        let mut calls = Calls::new(vec![Place::default(); 10_000]);
        for round in 0..3_u32 {
            let begun: Vec<_> = (0..10_000_u32)
                .map(|i| calls.begin((i + round).wrapping_mul(0x9E37_79B9), 5).unwrap())
                .collect();
            assert_eq!(calls.begin(1, 5), Err(TooMany));
            for i in 0..10_000_usize {
                let (retcode, place) = begun[i * 7919 % 10_000];
                assert_eq!(calls.end(retcode), Some(place));
                assert_eq!(calls.end(retcode), None, "answered twice");
            }
            assert_eq!(calls.under_way(), 0);
        }
    }

    #[test]
    fn late_answers_match_nothing_even_when_the_place_is_taken_again() {
        let mut calls = Calls::new([Place::default(); 3]);
        let (first, place) = calls.begin(0xAAAA_AAAA, 10).unwrap();
        let (second, other) = calls.begin(0xAAAA_AAAA, 20).unwrap();
        assert_ne!(first, second);
        assert_eq!((calls.expired(9), calls.next_deadline_ms()), (None, Some(10)));
        assert_eq!((calls.expired(10), calls.expired(10)), (Some(place), None));
        assert_eq!(calls.next_deadline_ms(), Some(20));
        let (again, same) = calls.begin(0x5555_5555, 30).unwrap();
        assert_eq!(same, place);
        assert_eq!(calls.end(first), None);
        assert_eq!((calls.end(again), calls.end(second)), (Some(place), Some(other)));
        assert_eq!((calls.next_deadline_ms(), calls.expired(u64::MAX)), (None, None));
    }

    #[test]
    fn places_of_any_number() {
        for n in 0..20 {
            let mut calls = Calls::new(vec![Place::default(); n]);
            let begun: Vec<_> = (0..n).map(|i| calls.begin(u32::MAX, i as u64).unwrap()).collect();
            assert_eq!(calls.begin(7, 7), Err(TooMany));
            for (retcode, place) in begun.into_iter().rev() {
                assert_eq!(calls.end(retcode), Some(place));
            }
        }
    }
}
