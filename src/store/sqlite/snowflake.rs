//! Message ids (BEHAVIOUR.md 8.5): milliseconds since 2024 (41 bits), worker (10 bits, always 0), sequence (12 bits).

/// 2024-01-01 00:00 UTC, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_704_067_200_000;
const TIME_SHIFT: u32 = 22;
const SEQUENCE_MAX: i64 = 0xFFF;
const BELOW_TIME: i64 = (1 << TIME_SHIFT) - 1;

/// Hands out ids that always rise, whatever the clock does.
#[derive(Debug)]
pub(super) struct Snowflake {
    last: i64,
}

impl Snowflake {
    /// Starts above `newest`, the largest id in use (0 for none).
    pub(super) fn above(newest: i64) -> Self {
        Self { last: newest.max(0) }
    }

    /// Keeps away from ids that somebody else has given.
    pub(super) fn rise_above(&mut self, newest: i64) {
        self.last = self.last.max(newest);
    }

    /// The next id at `now_ms`; `None` once a row holds the largest id there is.
    pub(super) fn next(&mut self, now_ms: i64) -> Option<i64> {
        let by_clock = now_ms.saturating_sub(EPOCH_MS).clamp(0, i64::MAX >> TIME_SHIFT) << TIME_SHIFT;
        self.last = by_clock.max(self.following()?);
        Some(self.last)
    }

    fn following(&self) -> Option<i64> {
        if self.last & BELOW_TIME < SEQUENCE_MAX {
            return Some(self.last + 1);
        }
        (self.last | BELOW_TIME).checked_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = EPOCH_MS + 1000;

    #[test]
    fn the_first_id_of_a_millisecond_is_its_time() {
        assert_eq!(Snowflake::above(0).next(NOW), Some(1000 << 22));
    }

    #[test]
    fn a_full_sequence_takes_the_next_millisecond() {
        let mut ids = Snowflake::above(0);
        let given: Vec<i64> = (0..=4096).filter_map(|_| ids.next(NOW)).collect();
        assert_eq!(given[4095], (1000 << 22) + 4095);
        assert_eq!(given[4096], 1001 << 22);
    }

    #[test]
    fn ids_rise_while_the_clock_is_behind() {
        let newest = (5000 << 22) + 7;
        let mut ids = Snowflake::above(newest);
        assert_eq!(ids.next(NOW), Some(newest + 1));
        assert_eq!(ids.next(EPOCH_MS - 1), Some(newest + 2));
        ids.rise_above(6000 << 22);
        assert_eq!(ids.next(NOW), Some((6000 << 22) + 1));
    }

    #[test]
    fn ids_of_another_worker_are_passed_and_the_last_id_is_the_last() {
        assert_eq!(Snowflake::above((5000 << 22) + (3 << 12)).next(NOW), Some(5001 << 22));
        assert_eq!(Snowflake::above(i64::MAX).next(NOW), None);
    }
}
