//! Many realms, each written once and held for a while, all at the same time and with few connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{Request, Response};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower::service_fn;

use crate::contenders::{Contender, STRATEGIES};
use crate::figures::Figure;
use crate::guard::Guard;
use crate::statistics::{Lines, short};
use crate::table::Table;
use crate::{Bench, Findings};

/// How many each contender may open.
const CONNECTIONS: u32 = 8;

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let contenders = Contender::start_all(STRATEGIES, &bench.server.url(), CONNECTIONS).await;
    let (realms, hold) = (bench.sizes.thousands, bench.sizes.thousands_hold);
    let [mut seconds, mut connections] = [Lines::default(), Lines::default()];
    for _ in 0..bench.sizes.rounds_over(20) {
        for contender in &contenders {
            let work = seconds_for_all(contender.guard.clone(), realms, hold);
            let (took, peak) = bench.server.peak_during(&contender.application, work).await;
            seconds.add(contender.name, took);
            connections.add(contender.name, peak.open);
        }
    }
    findings.figures.set_medians(Figure::Thousands, &seconds);

    let title = format!(
        "{realms} realms, each held {} ms, with at most {CONNECTIONS} connections.",
        hold.as_millis()
    );
    let mut table = Table::new(title, ["", "s, median", "most connections"]);
    for ((name, seconds), (_, connections)) in seconds.iter().zip(connections.iter()) {
        table.row([
            name.to_owned(),
            short(seconds.median()),
            connections.median().to_string(),
        ]);
    }
    findings.add("thousands", table);
}

async fn seconds_for_all(guard: Guard, realms: u32, hold: Duration) -> f64 {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let calls = Arc::clone(&calls);
        move |_: Request<String>| {
            calls.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(hold).await;
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        }
    });
    let guarded = guard.around(handler);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for realm in 0..realms {
        let guarded = guarded.clone();
        tasks.spawn(async move {
            guarded.patch(&format!("/luke/held-{realm}/card")).await;
        });
    }
    tasks.join_all().await;
    assert_eq!(calls.load(Ordering::Relaxed), realms);
    start.elapsed().as_secs_f64()
}
