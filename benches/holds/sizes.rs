//! How much is measured.

use std::time::Duration;

const TINY_TIME: Duration = Duration::from_millis(10);

/// Counts of requests, and times, are for one contender in one round.
pub struct Sizes {
    pub rounds: u32,
    /// In each of ten turns a round; ten times as many in one go to count what they cost.
    pub uncontended: u32,
    pub far: u32,
    pub passing: u32,
    /// Concurrent writers of the hot realm.
    pub hot_writers: u32,
    pub distinct_writers: u32,
    /// Where sessions lock for many at once.
    pub sessions_writers: [u32; 2],
    /// How long each rate is measured.
    pub rate_time: Duration,
    pub replicas_time: Duration,
    pub growth_time: Duration,
    pub growth_writers: &'static [u32],
    pub growth_realms: &'static [u32],
    pub growth_replicas: &'static [u32],
    /// How many realms are held at once by [`crate::thousands`], and for how long.
    pub thousands: u32,
    pub thousands_hold: Duration,
    /// Writers of the busy realm beside the lone writer.
    pub busy_writers: u32,
    pub busy_hold: Duration,
    /// How long the lone writer goes on, if its first write was answered by then.
    pub lone_time: Duration,
    pub waiters: u32,
    /// How long the waiters are looked at.
    pub waiters_time: Duration,
}

impl Sizes {
    pub fn real(rounds: Option<u32>) -> Self {
        Self {
            rounds: rounds.unwrap_or(20),
            uncontended: 10,
            far: 20,
            passing: 100_000,
            hot_writers: 100,
            distinct_writers: 32,
            sessions_writers: [64, 256],
            rate_time: Duration::from_millis(250),
            replicas_time: Duration::from_secs(1),
            growth_time: Duration::from_millis(100),
            growth_writers: &[1, 4, 16, 64, 256],
            growth_realms: &[10, 100, 1_000, 10_000, 100_000],
            growth_replicas: &[1, 2, 4, 8],
            thousands: 2_000,
            thousands_hold: Duration::from_millis(50),
            busy_writers: 1_000,
            busy_hold: Duration::from_millis(20),
            lone_time: Duration::from_secs(3),
            waiters: 10_000,
            waiters_time: Duration::from_millis(500),
        }
    }

    pub fn tiny(rounds: Option<u32>) -> Self {
        Self {
            rounds: rounds.unwrap_or(1),
            uncontended: 2,
            far: 2,
            passing: 100,
            hot_writers: 20,
            distinct_writers: 8,
            sessions_writers: [16, 32],
            rate_time: TINY_TIME,
            replicas_time: TINY_TIME,
            growth_time: TINY_TIME,
            growth_writers: &[1, 4],
            growth_realms: &[10, 100],
            growth_replicas: &[1, 2],
            thousands: 40,
            thousands_hold: Duration::from_millis(2),
            busy_writers: 40,
            busy_hold: Duration::from_millis(2),
            lone_time: TINY_TIME,
            waiters: 100,
            waiters_time: TINY_TIME,
        }
    }

    /// One round in `divisor`, for what takes long.
    pub fn rounds_over(&self, divisor: u32) -> u32 {
        self.rounds.div_ceil(divisor)
    }
}
