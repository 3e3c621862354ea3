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

use crate::Bench;
use crate::contenders::{BY_HAND, IN_POSTGRES, IN_PROCESS, MUTEX};
use crate::figures::{Figure, Figures};
use crate::guard::{Guard, Guarded, Handler};
use crate::statistics::{Lines, short_or_dash, whole};
use crate::table::Table;

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

pub async fn hot(bench: &Bench, figures: &mut Figures) -> Table {
    let writers = bench.sizes.hot_writers;
    let names = [&[MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let rates = rates(bench, &names, writers, Realms::One).await;
    figures.set_medians(Figure::HotRate, &rates);
    let title = format!("One hot realm, {writers} writers, handler empty.");
    table(title, &rates, Figure::HotRate, figures)
}

pub async fn distinct(bench: &Bench, figures: &mut Figures) -> Table {
    let writers = bench.sizes.distinct_writers;
    let names = [&[IN_PROCESS], IN_POSTGRES].concat();
    let rates = rates(bench, &names, writers, Realms::Own).await;
    figures.set_medians(Figure::DistinctRate, &rates);
    let title = format!("{writers} writers, each of a realm of its own, handler empty.");
    table(title, &rates, Figure::DistinctRate, figures)
}

async fn rates(bench: &Bench, names: &[&'static str], writers: u32, realms: Realms) -> Lines {
    let mut lines = Lines::default();
    for _ in 0..bench.sizes.rounds {
        for name in names {
            bench.server.rest().await;
            let guard = &bench.contender(name).guard;
            let rate = writes_a_second(guard, writers, realms, bench.sizes.rate_time).await;
            lines.add(name, rate);
        }
    }
    lines
}

fn table(title: String, rates: &Lines, figure: Figure, figures: &Figures) -> Table {
    let head = ["", "holds/s, median", "middle half", "÷ by hand"];
    let mut table = Table::new(title, head);
    for (name, samples) in rates.iter() {
        let [low, high] = samples.quartiles().map(whole);
        table.row([
            name.to_owned(),
            whole(samples.median()),
            format!("{low} to {high}"),
            short_or_dash(figures.ratio(figure, name, BY_HAND)),
        ]);
    }
    table
}

/// The rate of so many concurrent writers, each of them one write after another, for as long as `time`.
///
/// # Panics
/// When not every write was in the handler.
pub async fn writes_a_second(guard: &Guard, writers: u32, realms: Realms, time: Duration) -> f64 {
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
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(calls.load(Ordering::Relaxed), written);
    f64::from(written) / seconds
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
    let told = Arc::clone(&stop);
    thread::spawn(move || {
        thread::sleep(time);
        told.store(true, Ordering::Relaxed);
    });
    stop
}
