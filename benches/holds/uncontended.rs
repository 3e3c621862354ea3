//! What the lock adds to a write of a realm that nobody else writes, with the database near by and far away.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tower::service_fn;

use crate::Bench;
use crate::contenders::{
    BARE, BY_HAND, CONNECTIONS, Contender, IN_POSTGRES, IN_PROCESS, MUTEX, Name,
};
use crate::delay;
use crate::figures::{Figure, Figures};
use crate::guard::{Guarded, Handler};
use crate::server;
use crate::statistics::{Lines, short, short_or_dash};
use crate::support::gate::at_once;
use crate::table::Table;

/// The shortest question that the server answers: the limit of what a message can cost.
pub const ROUND_TRIP: Name = "bare round trip";

/// The shortest transaction that takes a lock: two round trips, and no limits, queue, pool or lease.
const BARE_LOCK: Name = "bare lock transaction";

/// What follows each other goes to different realms: without confirmation the release of the last one may still be on
/// its way.
const PATHS: [&str; 4] = [
    "/luke/idle-1/card",
    "/luke/idle-2/card",
    "/luke/idle-3/card",
    "/luke/idle-4/card",
];

/// How many requests one sample covers where one alone is too short for the clock.
const SHORT: u32 = 100;

/// How far away the server is, each way, when it is far.
const FAR: Duration = Duration::from_micros(500);

/// Something that takes time.
enum Work<'a, H> {
    RoundTrip(&'a Client),
    BareLock(&'a Client),
    Write(Guarded<H>),
}

pub async fn near(bench: &Bench, figures: &mut Figures) -> Table {
    let client = server::connect(&bench.server.url()).await;
    let names = [&[BARE, MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let contenders: Vec<_> = names
        .into_iter()
        .map(|name| bench.contender(name))
        .collect();
    // Many short turns: how the system places processes on cores lasts for a while.
    let (rounds, requests) = (bench.sizes.rounds * 10, bench.sizes.uncontended);
    let seconds = latencies(bench, &contenders, &client, rounds, requests).await;
    let title = "One write of an idle realm, handler empty; `added` is without the bare service.";
    table(title, &seconds, Figure::Added, figures)
}

pub async fn far(bench: &Bench, figures: &mut Figures) -> Table {
    let url = server::url(delay::proxy(bench.server.port(), FAR));
    let client = server::connect(&url).await;
    let far = Contender::start_all(IN_POSTGRES, &url, CONNECTIONS).await;
    let mut contenders = vec![bench.contender(BARE)];
    contenders.extend(&far);
    let (rounds, requests) = (bench.sizes.rounds, bench.sizes.far);
    let seconds = latencies(bench, &contenders, &client, rounds, requests).await;
    let title = "The same with 1 ms of added network round trip.";
    table(title, &seconds, Figure::AddedFar, figures)
}

/// Seconds of single writes, and of what they are made of.
async fn latencies(
    bench: &Bench,
    contenders: &[&Contender],
    client: &Client,
    rounds: u32,
    requests: u32,
) -> Lines {
    let mut works = vec![
        (ROUND_TRIP, 1, Work::RoundTrip(client)),
        (BARE_LOCK, 1, Work::BareLock(client)),
    ];
    for contender in contenders {
        let in_postgres = IN_POSTGRES.contains(&contender.name);
        let calls = if in_postgres { 1 } else { SHORT };
        let guarded = contender.guard.around(service_fn(at_once));
        works.push((contender.name, calls, Work::Write(guarded)));
    }
    let mut lines = Lines::default();
    for round in 0..=rounds {
        for (name, calls, work) in &works {
            for path in PATHS.iter().cycle().take(requests as usize) {
                bench.server.rest().await;
                let start = Instant::now();
                for _ in 0..*calls {
                    work.once(path).await;
                }
                let seconds = start.elapsed().as_secs_f64() / f64::from(*calls);
                // The first round opens connections, and is not counted.
                if round > 0 {
                    lines.add(name, seconds);
                }
            }
        }
    }
    lines
}

impl<H: Handler> Work<'_, H> {
    async fn once(&self, path: &str) {
        match self {
            Self::RoundTrip(client) => message(client, "").await,
            Self::BareLock(client) => {
                message(client, "BEGIN; SELECT pg_advisory_xact_lock(1)").await;
                message(client, "COMMIT").await;
            }
            Self::Write(guarded) => guarded.patch(path).await,
        }
    }
}

async fn message(client: &Client, sql: &str) {
    client.batch_execute(sql).await.expect("an answer");
}

fn table(title: &str, seconds: &Lines, figure: Figure, figures: &mut Figures) -> Table {
    let service = seconds.median(BARE).unwrap_or_default();
    for (name, samples) in seconds.iter() {
        let is_message = [ROUND_TRIP, BARE_LOCK].contains(&name);
        let without = if is_message { 0.0 } else { service };
        figures.set(figure, name, samples.median() - without);
    }

    let head = [
        "",
        "median, µs",
        "middle half, µs",
        "added, µs",
        "÷ round trip",
        "÷ by hand",
    ];
    let mut table = Table::new(title, head);
    for (name, samples) in seconds.iter() {
        let [low, high] = samples.quartiles().map(|seconds| short(seconds * 1e6));
        let added = figures.get(figure, name);
        table.row([
            name.to_owned(),
            short(samples.median() * 1e6),
            format!("{low} to {high}"),
            short_or_dash(added.map(|seconds| seconds * 1e6)),
            short_or_dash(figures.ratio(figure, name, ROUND_TRIP)),
            short_or_dash(figures.ratio(figure, name, BY_HAND)),
        ]);
    }
    table
}
