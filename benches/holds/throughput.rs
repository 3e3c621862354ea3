//! How many writes follow each other in a second: of one realm that many wait for, and of many realms.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use http::{Request, Response};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::service_fn;

use crate::contenders::{
    BARE_SESSION, BARE_TRANSACTION, BY_HAND, DRIVERS, IN_POSTGRES, IN_PROCESS, MUTEX, Name,
    OLD_STATEMENT, PGBENCH, PGBENCH_BATCHES, PGBENCH_PREPARED, SESSIONS, SQLX, TRANSACTION,
};
use crate::costs::Costs;
use crate::figures::Figure;
use crate::guard::{Guard, Guarded, Handler};
use crate::statistics::{Lines, range, short_or_dash, whole};
use crate::table::Table;
use crate::{Bench, Findings};

/// Which realms the writers write.
#[derive(Clone, Copy)]
pub enum Realms {
    /// All of them the same.
    One,
    /// Each one of its own.
    Own,
    /// So many, round and round.
    Many(u32),
}

/// What was done.
#[derive(Clone, Copy)]
pub struct Done {
    pub holds: f64,
    pub seconds: f64,
}

pub async fn hot(bench: &Bench, findings: &mut Findings) {
    let writers = bench.sizes.hot_writers;
    let names = [&[MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let (rates, costs) = measure(bench, &names, writers, Realms::One).await;
    findings.figures.set_medians(Figure::HotRate, &rates);
    let case = format!("one hot realm, {writers} writers, handler empty");
    let table = table(&case, &names, &rates, BY_HAND);
    findings.add("hot-realm", table);
    let table = costs.table(&case, Figure::HotServer, &mut findings.figures, BY_HAND);
    findings.add("hot-realm-costs", table);
}

pub async fn distinct(bench: &Bench, findings: &mut Findings) {
    let writers = bench.sizes.distinct_writers;
    let names = [&[IN_PROCESS], IN_POSTGRES, DRIVERS, &[PGBENCH]].concat();
    let (rates, costs) = measure(bench, &names, writers, Realms::Own).await;
    findings.figures.set_medians(Figure::DistinctRate, &rates);
    let case = format!("{writers} writers, each of a realm of its own, handler empty");
    let table = table(&case, &names, &rates, BY_HAND);
    findings.add("distinct-realms", table);
    let table = costs.table(
        &case,
        Figure::DistinctServer,
        &mut findings.figures,
        OLD_STATEMENT,
    );
    findings.add("distinct-realms-costs", table);
}

/// Where one statement can lock for many.
pub async fn sessions(bench: &Bench, findings: &mut Findings) {
    let names = [
        SESSIONS,
        TRANSACTION,
        SQLX,
        BARE_TRANSACTION,
        BARE_SESSION,
        PGBENCH_BATCHES,
        PGBENCH_PREPARED,
    ];
    let places = [
        (Figure::FewSessionsRate, "sessions-few"),
        (Figure::ManySessionsRate, "sessions-many"),
    ];
    for ((figure, place), writers) in places.into_iter().zip(bench.sizes.sessions_writers) {
        let (rates, _) = measure(bench, &names, writers, Realms::Own).await;
        findings.figures.set_medians(figure, &rates);
        let case = format!("{writers} writers, each of a realm of its own, handler empty");
        findings.add(place, table(&case, &names, &rates, SQLX));
    }
}

/// Rates and costs of each, in turns.
async fn measure(bench: &Bench, names: &[Name], writers: u32, realms: Realms) -> (Lines, Costs) {
    let (mut rates, mut costs) = (Lines::default(), Costs::default());
    for _ in 0..bench.sizes.rounds {
        for name in names {
            bench.server.rest().await;
            let time = bench.sizes.rate_time;
            let work = bench.run(name, writers, realms, time);
            if let Some(done) = costs.count(&bench.server, name, work).await {
                rates.add(name, done.rate());
            }
        }
    }
    (rates, costs)
}

fn table(case: &str, names: &[Name], rates: &Lines, beside: Name) -> Table {
    let beside_head = format!("÷ {beside}");
    let head = ["holds/s", "median", "middle half", &beside_head];
    let mut table = Table::new(format!("Holds in a second: {case}."), head);
    for name in names {
        let Some(samples) = rates.get(name) else {
            table.row([name, "no pgbench here", "–", "–"].map(str::to_owned));
            continue;
        };
        let beside = rates.median(beside);
        table.row([
            (*name).to_owned(),
            whole(samples.median()),
            range(samples.quartiles().map(whole)),
            short_or_dash(beside.map(|beside| samples.median() / beside)),
        ]);
    }
    table
}

impl Bench {
    /// A contender's or a limit's holds; `None` for pgbench where there is none.
    pub async fn run(
        &self,
        name: Name,
        writers: u32,
        realms: Realms,
        time: Duration,
    ) -> Option<Done> {
        match self.limits.iter().find(|(of, _)| *of == name) {
            Some((_, limit)) => limit.run(writers, realms, time).await,
            None => Some(writes(&self.contender(name).guard, writers, realms, time).await),
        }
    }
}

/// So many concurrent writers, each of them one write after another, for as long as `time`.
///
/// # Panics
/// When not every write was in the handler.
pub async fn writes(guard: &Guard, writers: u32, realms: Realms, time: Duration) -> Done {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let calls = Arc::clone(&calls);
        move |_: Request<String>| {
            calls.fetch_add(1, Ordering::Relaxed);
            ready(Ok::<_, Infallible>(Response::new(String::new())))
        }
    });
    let stop = stop_after(time);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for paths in realms.paths(writers) {
        tasks.spawn(write(guard.around(handler.clone()), paths, stop.clone()));
    }
    let written: u32 = tasks.join_all().await.into_iter().sum();
    let done = Done::since(start, written);
    assert_eq!(calls.load(Ordering::Relaxed), written);
    done
}

impl Done {
    pub fn since(start: Instant, holds: u32) -> Self {
        Self {
            holds: f64::from(holds),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    /// Holds in a second.
    pub fn rate(self) -> f64 {
        self.holds / self.seconds
    }
}

/// What one writer writes.
pub enum Paths {
    One(String),
    /// The next of so many realms, whoever had the last.
    Next(Arc<AtomicU32>, u32),
}

impl Realms {
    /// One for each writer.
    fn paths(self, writers: u32) -> impl Iterator<Item = Paths> {
        let turn = Arc::default();
        (0..writers).map(move |writer| match self {
            Self::One => Paths::One("/luke/hot/card".to_owned()),
            Self::Own => Paths::One(format!("/luke/own-{writer}/card")),
            Self::Many(realms) => Paths::Next(Arc::clone(&turn), realms),
        })
    }

    /// The next key of a writer that shares its keys with no other.
    pub fn key(self, writer: u32, writers: u32, holds: u32) -> i64 {
        match self {
            Self::One => 0,
            Self::Own => i64::from(writer),
            Self::Many(realms) => {
                let each = (realms / writers).max(1);
                i64::from(writer + writers * (holds % each))
            }
        }
    }
}
/// One writer; how often it wrote.
pub async fn write<H: Handler>(guarded: Guarded<H>, paths: Paths, stop: Arc<AtomicBool>) -> u32 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        match &paths {
            Paths::One(path) => guarded.patch(path).await,
            Paths::Next(turn, realms) => {
                let realm = turn.fetch_add(1, Ordering::Relaxed) % realms;
                guarded.patch(&format!("/luke/realm-{realm}/card")).await;
            }
        }
        written += 1;
    }
    written
}

/// Becomes true after a while, however busy the runtime is.
pub fn stop_after(time: Duration) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    thread::spawn(move || {
        thread::sleep(time);
        set.store(true, Ordering::Relaxed);
    });
    stop
}
