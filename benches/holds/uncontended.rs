//! What the lock adds to a write of a realm that nobody else writes, with the database near by and far away.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tower::service_fn;

use crate::contenders::{
    BARE, BARE_TRANSACTION, BY_HAND, CONNECTIONS, Contender, DRIVERS, IN_POSTGRES, IN_PROCESS,
    MUTEX, Name, OLD_STATEMENT, ROUND_TRIP,
};
use crate::cores::OneCore;
use crate::costs::Costs;
use crate::delay;
use crate::driver::{Driver, message};
use crate::figures::{Figure, Figures};
use crate::guard::{Guarded, Handler};
use crate::server;
use crate::statistics::{Lines, range, short, short_or_dash};
use crate::support::gate::at_once;
use crate::table::Table;
use crate::throughput::Done;
use crate::{Bench, Findings};

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
enum Work<H> {
    RoundTrip(Client),
    Driver(Driver),
    Write(Guarded<H>),
}

/// How often everything is done.
#[derive(Clone, Copy)]
struct Turns {
    rounds: u32,
    /// Of each in a round, one by one.
    requests: u32,
    /// In one go in some of the rounds, for the counts of what they cost.
    counted: u32,
}

/// On one core, and then as the system places them.
pub async fn near(bench: &Bench, findings: &mut Findings) {
    let names = [&[BARE, MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let contenders: Vec<_> = (names.into_iter())
        .map(|name| bench.contender(name))
        .collect();
    let works = works(&bench.server.url(), &contenders).await;
    // Many short turns, so that all meet what else the machine does.
    let turns = Turns {
        rounds: bench.sizes.rounds * 10,
        requests: bench.sizes.uncontended,
        counted: bench.sizes.uncontended * 10,
    };

    let core = OneCore::take(&bench.server).await;
    let place = core.as_ref().map_or_else(
        || "not kept on one core: this system does not allow it".to_owned(),
        |core| format!("server and client on core {}", core.number()),
    );
    let (seconds, costs) = latencies(bench, &works, turns).await;
    let figure = match core {
        Some(core) => {
            core.release().await;
            Figure::Added
        }
        None => Figure::AddedAnywhere,
    };
    let case = format!("a write of an idle realm, {place}, handler empty");
    let figures = &mut findings.figures;
    let table = table(&case, &seconds, figure, figures);
    let costs = costs.table(&case, Figure::UncontendedServer, figures, OLD_STATEMENT);
    findings.add("uncontended", table);
    findings.add("uncontended-costs", costs);

    let turns = Turns {
        counted: 0,
        ..turns
    };
    let (seconds, _) = latencies(bench, &works, turns).await;
    let case = "a write of an idle realm, on all cores, handler empty";
    let table = self::table(case, &seconds, Figure::AddedAnywhere, &mut findings.figures);
    findings.add("uncontended-all-cores", table);
}

pub async fn far(bench: &Bench, findings: &mut Findings) {
    let url = server::url(delay::proxy(bench.server.port(), FAR));
    let far = Contender::start_all(IN_POSTGRES, &url, CONNECTIONS).await;
    let mut contenders = vec![bench.contender(BARE)];
    contenders.extend(&far);
    let works = works(&url, &contenders).await;
    let turns = Turns {
        rounds: bench.sizes.rounds,
        requests: bench.sizes.far,
        counted: 0,
    };
    let (seconds, _) = latencies(bench, &works, turns).await;
    let case = "a write of an idle realm, 1 ms away, handler empty";
    let table = table(case, &seconds, Figure::AddedFar, &mut findings.figures);
    findings.add("far", table);
}

/// The limits over the wire, and then the contenders.
async fn works(url: &str, contenders: &[&Contender]) -> Vec<(Name, Work<impl Handler + use<>>)> {
    let mut works = vec![(ROUND_TRIP, Work::RoundTrip(server::connect(url).await))];
    for name in DRIVERS {
        works.push((*name, Work::Driver(Driver::connect(name, url, 1).await)));
    }
    for contender in contenders {
        let guarded = contender.guard.around(service_fn(at_once));
        works.push((contender.name, Work::Write(guarded)));
    }
    works
}

/// Seconds that each takes, and what else.
async fn latencies<H: Handler>(
    bench: &Bench,
    works: &[(Name, Work<H>)],
    turns: Turns,
) -> (Lines, Costs) {
    let (mut lines, mut costs) = (Lines::default(), Costs::default());
    for round in 0..=turns.rounds {
        for (name, work) in works {
            let is_short = matches!(*name, BARE | MUTEX | IN_PROCESS);
            let calls = if is_short { SHORT } else { 1 };
            for turn in 0..turns.requests {
                bench.server.rest().await;
                let start = Instant::now();
                for _ in 0..calls {
                    work.once(turn).await;
                }
                let seconds = start.elapsed().as_secs_f64() / f64::from(calls);
                // The first round opens connections, and is not counted.
                if round > 0 {
                    lines.add(name, seconds);
                }
            }
            if round % 10 == 1 && turns.counted > 0 {
                bench.server.rest().await;
                costs
                    .count(&bench.server, name, work.many(turns.counted))
                    .await;
            }
        }
    }
    (lines, costs)
}

impl<H: Handler> Work<H> {
    async fn once(&self, turn: u32) {
        match self {
            Self::RoundTrip(client) => message(client, "").await,
            Self::Driver(driver) => driver.hold(i64::from(turn % 4)).await,
            Self::Write(guarded) => guarded.patch(PATHS[turn as usize % PATHS.len()]).await,
        }
    }

    async fn many(&self, count: u32) -> Option<Done> {
        let start = Instant::now();
        for turn in 0..count {
            self.once(turn).await;
        }
        Some(Done::since(start, count))
    }
}

fn table(case: &str, seconds: &Lines, figure: Figure, figures: &mut Figures) -> Table {
    let service = seconds.median(BARE).unwrap_or_default();
    for (name, samples) in seconds.iter() {
        let is_message = name == ROUND_TRIP || DRIVERS.contains(&name);
        let without = if is_message { 0.0 } else { service };
        figures.set(figure, name, samples.median() - without);
    }

    let head = [
        "",
        "median, µs",
        "middle half, µs",
        "added, µs",
        "÷ round trip",
        "÷ lock transaction",
        "÷ by hand",
    ];
    let title = format!("Latency of {case}; `added` is without the bare service.");
    let mut table = Table::new(title, head);
    for (name, samples) in seconds.iter() {
        let added = figures.get(figure, name);
        table.row([
            name.to_owned(),
            short(samples.median() * 1e6),
            range(samples.quartiles().map(|seconds| short(seconds * 1e6))),
            short_or_dash(added.map(|seconds| seconds * 1e6)),
            short_or_dash(figures.ratio(figure, name, ROUND_TRIP)),
            short_or_dash(figures.ratio(figure, name, BARE_TRANSACTION)),
            short_or_dash(figures.ratio(figure, name, BY_HAND)),
        ]);
    }
    table
}
