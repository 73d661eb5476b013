//! Runs of bytes: sorted, apart from each other, in whole blocks.

/// What a card is written in, in bytes.
pub(super) const BLOCK: u64 = piman_core::install::table::BLOCK;
/// More runs than this are joined where they are nearest; a list takes 64 MiB at most.
const RUNS_MAX: usize = 4 << 20;

/// Runs of bytes, as beginning and end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds a run, made larger to whole blocks.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (start, end) = (start / BLOCK * BLOCK, end.div_ceil(BLOCK).saturating_mul(BLOCK));
        match self.0.last_mut() {
            Some((first, last)) if *first <= start && start <= *last => *last = end.max(*last),
            _ => self.0.push((start, end)),
        }
        if self.0.len() > RUNS_MAX {
            self.0 = joined(std::mem::take(&mut self.0), RUNS_MAX / 2);
        }
    }

    /// All runs, sorted and merged.
    pub(super) fn finish(self) -> Vec<(u64, u64)> {
        joined(self.0, usize::MAX)
    }
}

/// Sorted and merged; more than `most` are joined over the smallest gaps.
pub(crate) fn joined(mut runs: Vec<(u64, u64)>, most: usize) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut gap = 0;
    loop {
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in runs {
            match merged.last_mut() {
                Some((_, last)) if start <= last.saturating_add(gap) => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        if merged.len() <= most {
            return merged;
        }
        (runs, gap) = (merged, (gap * 2).max(BLOCK));
    }
}

/// What is in `runs` and not in `holes`; both sorted.
pub(super) fn without(runs: &[(u64, u64)], holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut rest = Vec::new();
    for (start, end) in runs {
        let mut at = *start;
        let first = holes.partition_point(|(_, hole_end)| *hole_end <= at);
        for (hole, past) in holes.get(first..).unwrap_or_default().iter().take_while(|(hole, _)| hole < end) {
            if at < *hole {
                rest.push((at, *hole));
            }
            at = at.max(*past);
        }
        if at < *end {
            rest.push((at, *end));
        }
    }
    rest
}

/// What is not in `runs`, up to `end`; sorted.
pub(super) fn between(runs: &[(u64, u64)], end: u64) -> Vec<(u64, u64)> {
    without(&[(0, end)], runs)
}

/// What is in both; both sorted.
pub(super) fn common(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let end = a.last().map_or(0, |(_, end)| *end);
    without(a, &between(b, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_blocks_sorted_and_apart() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10_000, 10_001), (5, 5), (8192, 9000), (12_288, 12_289), (0, 1)] {
            ranges.add(start, end);
        }
        assert_eq!(ranges.finish(), [(0, 4096), (8192, 16_384)]);
    }

    #[test]
    fn too_many_are_joined_over_the_smallest_gaps() {
        let runs = (0..10).map(|i| (i * 100_000, i * 100_000 + 4096)).chain([(6144, 10_000)]).collect();
        let joined = joined(runs, 10);
        assert_eq!(joined.len(), 10);
        assert_eq!(joined[0], (0, 10_000));
    }

    #[test]
    fn what_is_in_one_and_not_in_the_other() {
        let runs = [(0, 10), (20, 30), (40, 50)];
        assert_eq!(without(&runs, &[(5, 22), (25, 26), (30, 60)]), [(0, 5), (22, 25), (26, 30)]);
        assert_eq!(between(&runs, 60), [(10, 20), (30, 40), (50, 60)]);
        assert_eq!(common(&runs, &[(5, 45)]), [(5, 10), (20, 30), (40, 45)]);
        assert_eq!(common(&[], &runs), []);
    }
}
