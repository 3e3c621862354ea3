//! What the lock adds to a write of a realm that nobody else writes.

use tokio::time::Instant;
use tower::service_fn;

use crate::Sizes;
use crate::contenders::{Contenders, Guard, Guarded, Handler};
use crate::statistics::{Samples, short};
use crate::support::gate::at_once;
use crate::table::Table;

/// What follows each other goes to different realms: without confirmation the release of the last one may still be on
/// its way.
const PATHS: [&str; 4] = [
    "/luke/idle-1/card",
    "/luke/idle-2/card",
    "/luke/idle-3/card",
    "/luke/idle-4/card",
];

/// How many requests one measurement covers where one alone is too short for the clock.
const SHORT: u32 = 100;

struct Line<H> {
    guarded: Guarded<H>,
    calls: u32,
    seconds: Samples,
}

impl<H: Handler> Line<H> {
    fn new(guard: &Guard, handler: H, calls: u32) -> Self {
        Self {
            guarded: guard.around(handler),
            calls,
            seconds: Samples::default(),
        }
    }

    async fn round(&mut self, contenders: &Contenders, requests: u32) {
        for path in PATHS.iter().cycle().take(requests as usize) {
            contenders.rest().await;
            let seconds = seconds_of(async {
                for _ in 0..self.calls {
                    self.guarded.patch(path).await;
                }
            });
            self.seconds.add(seconds.await / f64::from(self.calls));
        }
    }
}

async fn seconds_of(work: impl Future<Output = ()>) -> f64 {
    let start = Instant::now();
    work.await;
    start.elapsed().as_secs_f64()
}

pub async fn measure(contenders: &Contenders, sizes: &Sizes) -> Table {
    let [mut round_trip, mut bare_lock] = [Samples::default(), Samples::default()];
    let line = |guard, calls| Line::new(guard, service_fn(at_once), calls);
    let mut lines = [
        line(&contenders.bare, SHORT),
        line(&contenders.in_process, SHORT),
        line(&contenders.unconfirmed, 1),
        line(&contenders.postgres, 1),
        line(&contenders.hand_written, 1),
    ];
    for line in &mut lines {
        // Opens connections, and is not counted.
        line.round(contenders, sizes.uncontended).await;
        line.seconds = Samples::default();
    }
    for _ in 0..sizes.rounds {
        for line in &mut lines {
            line.round(contenders, sizes.uncontended).await;
        }
        for _ in 0..sizes.uncontended {
            contenders.rest().await;
            round_trip.add(seconds_of(contenders.round_trip()).await);
            contenders.rest().await;
            bare_lock.add(seconds_of(contenders.bare_lock()).await);
        }
    }
    let [bare, in_process, unconfirmed, postgres, hand_written] = lines.map(|line| line.seconds);
    let service = bare.median();
    let by_hand = hand_written.median() - service;

    let mut table = Table::new(
        "One write of an idle realm, handler empty; `added` is the median without that of the bare service.",
        [
            "",
            "median, µs",
            "middle half, µs",
            "added, µs",
            "÷ round trip",
            "÷ by hand",
        ],
    );
    for (name, seconds, without) in [
        ("bare round trip (empty query)", &round_trip, 0.0),
        ("bare lock transaction", &bare_lock, 0.0),
        ("bare service", &bare, service),
        ("layer, in process", &in_process, service),
        ("layer, PostgreSQL, `confirm(false)`", &unconfirmed, service),
        ("layer, PostgreSQL", &postgres, service),
        ("written by hand", &hand_written, service),
    ] {
        let [low, high] = seconds.quartiles().map(|seconds| short(seconds * 1e6));
        let added = seconds.median() - without;
        table.row([
            name.to_owned(),
            short(seconds.median() * 1e6),
            format!("{low} to {high}"),
            short(added * 1e6),
            short(added / round_trip.median()),
            short(added / by_hand),
        ]);
    }
    table
}
