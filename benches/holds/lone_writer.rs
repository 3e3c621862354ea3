//! How long the only writer of one realm waits while many wait for another.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tower::service_fn;

use crate::contenders::{BY_HAND, CONNECTIONS, IN_PROCESS, STRATEGIES};
use crate::figures::Figure;
use crate::guard::Guard;
use crate::sizes::Sizes;
use crate::statistics::{Lines, short, short_or_dash};
use crate::support::gate::at_once;
use crate::table::Table;
use crate::{Bench, Findings};

/// What the lone writer does between two writes.
const PAUSE: Duration = Duration::from_millis(5);

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let figures = &mut findings.figures;
    let sizes = &bench.sizes;
    let mut seconds = Lines::default();
    for _ in 0..sizes.rounds_over(20) {
        for name in [&[IN_PROCESS], STRATEGIES].concat() {
            bench.server.rest().await;
            for wait in lone_writes(&bench.contender(name).guard, sizes).await {
                seconds.add(name, wait);
            }
        }
    }
    for (name, samples) in seconds.iter() {
        figures.set(Figure::Lone, name, samples.percentile(99));
    }

    let title = format!(
        "Writes of an idle realm, handler empty, while {} writers of another realm hold it for {} ms each; pools of {CONNECTIONS}.",
        sizes.busy_writers,
        sizes.busy_hold.as_millis(),
    );
    let head = ["", "p50, ms", "p99, ms", "writes", "p99 ÷ by hand"];
    let mut table = Table::new(title, head);
    for (name, samples) in seconds.iter() {
        table.row([
            name.to_owned(),
            short(samples.median() * 1e3),
            short(samples.percentile(99) * 1e3),
            samples.count().to_string(),
            short_or_dash(figures.ratio(Figure::Lone, name, BY_HAND)),
        ]);
    }
    findings.add("lone-writer", table);
}

/// Seconds of each of the lone writer's writes.
async fn lone_writes(guard: &Guard, sizes: &Sizes) -> Vec<f64> {
    let calls = Arc::new(AtomicU32::new(0));
    let first_inside = Arc::new(Notify::new());
    let seen_enough = Arc::new(AtomicBool::new(false));
    let busy = service_fn({
        let (calls, first_inside, seen_enough) = (
            Arc::clone(&calls),
            Arc::clone(&first_inside),
            Arc::clone(&seen_enough),
        );
        let hold = sizes.busy_hold;
        move |_: Request<String>| {
            calls.fetch_add(1, Ordering::Relaxed);
            first_inside.notify_one();
            let is_over = seen_enough.load(Ordering::Relaxed);
            async move {
                if !is_over {
                    sleep(hold).await;
                }
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        }
    });
    let busy = guard.around(busy);
    let lone = guard.around(service_fn(at_once));

    let writers = sizes.busy_writers;
    // One task asks for all of them before it hears of any, so they stand in line before the first is inside.
    let busy = tokio::spawn(async move {
        join_all((0..writers).map(|_| busy.patch("/luke/busy/card"))).await;
    });
    first_inside.notified().await;
    let until = Instant::now() + sizes.lone_time;
    let mut seconds = Vec::new();
    loop {
        let start = Instant::now();
        lone.patch("/luke/lone/card").await;
        seconds.push(start.elapsed().as_secs_f64());
        if Instant::now() >= until {
            break;
        }
        sleep(PAUSE).await;
    }
    seen_enough.store(true, Ordering::Relaxed);
    busy.await.expect("all are answered");
    assert_eq!(calls.load(Ordering::Relaxed), writers);
    seconds
}
