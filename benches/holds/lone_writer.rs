//! How long the only writer of one realm waits while many wait for another.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use http::{Request, Response};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tower::service_fn;

use crate::Sizes;
use crate::contenders::{Contenders, Guard};
use crate::statistics::{Samples, short};
use crate::support::gate::at_once;
use crate::table::Table;

pub async fn measure(contenders: &Contenders, sizes: &Sizes) -> Table {
    let mut lines = [
        ("written by hand", &contenders.hand_written),
        ("layer, PostgreSQL", &contenders.postgres),
    ]
    .map(|(name, guard)| (name, guard, Samples::default()));
    for _ in 0..sizes.rounds.div_ceil(8) {
        for (_, guard, seconds) in &mut lines {
            seconds.add(seconds_of_the_lone_writer(guard, sizes).await);
        }
    }

    let by_hand = lines[0].2.median();
    let mut table = Table::new(
        "One write of an idle realm, handler empty, while many writers of another realm hold it in turn; pools of 10.",
        ["", "median, ms", "middle half, ms", "÷ by hand"],
    );
    for (name, _, seconds) in &lines {
        let [low, high] = seconds.quartiles().map(|seconds| short(seconds * 1e3));
        table.row([
            (*name).to_owned(),
            short(seconds.median() * 1e3),
            format!("{low} to {high}"),
            short(seconds.median() / by_hand),
        ]);
    }
    table
}

async fn seconds_of_the_lone_writer(guard: &Guard, sizes: &Sizes) -> f64 {
    let calls = Arc::new(AtomicU32::new(0));
    let first_inside = Arc::new(Notify::new());
    let busy = service_fn({
        let (calls, first_inside, hold) = (
            Arc::clone(&calls),
            Arc::clone(&first_inside),
            sizes.busy_hold,
        );
        move |_: Request<String>| {
            calls.fetch_add(1, Ordering::Relaxed);
            first_inside.notify_one();
            async move {
                sleep(hold).await;
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        }
    });
    let busy = guard.around(busy);
    let lone = guard.around(service_fn(at_once));

    let writers = sizes.writers;
    // One task asks for all of them before it hears of any, so they stand in line before the first is inside.
    let busy = tokio::spawn(async move {
        join_all((0..writers).map(|_| busy.patch("/luke/busy/card"))).await;
    });
    first_inside.notified().await;
    let start = Instant::now();
    lone.patch("/luke/lone/card").await;
    let seconds = start.elapsed().as_secs_f64();
    busy.await.expect("all are answered");
    assert_eq!(calls.load(Ordering::Relaxed), writers);
    seconds
}
