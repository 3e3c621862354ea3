//! How many writes of one realm follow each other in a second, when many wait for it.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{Request, Response};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::service_fn;

use crate::Sizes;
use crate::contenders::{Contenders, Guard};
use crate::statistics::{Samples, short, whole};
use crate::table::Table;

struct Line<'a> {
    name: &'static str,
    guard: &'a Guard,
    writes: u32,
    rates: Samples,
}

pub async fn measure(contenders: &Contenders, sizes: &Sizes) -> Table {
    let line = |name, guard, writes| Line {
        name,
        guard,
        writes,
        rates: Samples::default(),
    };
    let in_postgres = sizes.hot_in_postgres;
    let mut lines = [
        line("written by hand", &contenders.hand_written, in_postgres),
        line("layer, PostgreSQL", &contenders.postgres, in_postgres),
        line(
            "layer, PostgreSQL, `confirm(false)`",
            &contenders.unconfirmed,
            in_postgres,
        ),
        line(
            "layer, in process",
            &contenders.in_process,
            sizes.hot_in_process,
        ),
    ];
    let mut mutex = Samples::default();
    for _ in 0..sizes.rounds {
        for line in &mut lines {
            let rate = writes_a_second(line.guard, line.writes, sizes.writers).await;
            line.rates.add(rate);
        }
        mutex.add(mutex_holds_a_second(sizes.hot_mutex, sizes.writers).await);
    }

    let by_hand = lines[0].rates.median();
    let mut table = Table::new(
        "One hot realm, handler empty: concurrent writers, each of them one write after another.",
        ["", "holds/s, median", "middle half", "÷ by hand"],
    );
    let lines = lines.iter().map(|line| (line.name, &line.rates));
    for (name, rates) in lines.chain([("bare tokio mutex, no service", &mutex)]) {
        let [low, high] = rates.quartiles().map(whole);
        table.row([
            name.to_owned(),
            whole(rates.median()),
            format!("{low} to {high}"),
            short(rates.median() / by_hand),
        ]);
    }
    table
}

async fn writes_a_second(guard: &Guard, writes: u32, tasks: u32) -> f64 {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let calls = Arc::clone(&calls);
        move |_: Request<String>| {
            calls.fetch_add(1, Ordering::Relaxed);
            ready(Ok::<_, Infallible>(Response::new(String::new())))
        }
    });
    let guarded = guard.around(handler);
    let rate = a_second(writes, tasks, |each| {
        let guarded = guarded.clone();
        async move {
            for _ in 0..each {
                guarded.patch("/luke/hot/card").await;
            }
        }
    });
    let rate = rate.await;
    assert_eq!(calls.load(Ordering::Relaxed), writes);
    rate
}

async fn mutex_holds_a_second(holds: u32, tasks: u32) -> f64 {
    let mutex = Arc::new(Mutex::new(0));
    let rate = a_second(holds, tasks, |each| {
        let mutex = Arc::clone(&mutex);
        async move {
            for _ in 0..each {
                *mutex.lock().await += 1;
            }
        }
    });
    let rate = rate.await;
    assert_eq!(*mutex.lock().await, holds);
    rate
}

/// Shares `holds` among so many concurrent tasks; `writer` makes the work of one, given its share.
async fn a_second<F>(holds: u32, tasks: u32, writer: impl Fn(u32) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut writers = JoinSet::new();
    let start = Instant::now();
    for _ in 0..tasks {
        writers.spawn(writer(holds / tasks));
    }
    writers.join_all().await;
    f64::from(holds) / start.elapsed().as_secs_f64()
}
