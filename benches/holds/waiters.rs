//! What many waiters for one realm take: connections of the database, and memory.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{Request, Response};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower::service_fn;

use crate::contenders::{CONNECTIONS, IN_PROCESS, STRATEGIES};
use crate::figures::Figure;
use crate::guard::Guard;
use crate::memory;
use crate::statistics::{Lines, short_or_dash, whole};
use crate::table::Table;
use crate::{Bench, Findings};

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let figures = &mut findings.figures;
    let (waiters, time) = (bench.sizes.waiters, bench.sizes.waiters_time);
    let [mut at_locks, mut open] = [Lines::default(), Lines::default()];
    for name in [&[IN_PROCESS], STRATEGIES].concat() {
        let contender = bench.contender(name);
        let line = Line::form(&contender.guard, waiters).await;
        let looking = bench
            .server
            .peak_during(&contender.application, sleep(time));
        let ((), peak) = looking.await;
        line.dissolve().await;
        at_locks.add(name, peak.at_locks);
        open.add(name, peak.open);
        if let Some(bytes) = memory::of_a_waiter(name, &bench.server.url(), waiters).await {
            figures.set(Figure::WaiterBytes, name, bytes);
        }
    }

    let title = format!("{waiters} waiters for one realm; pools of {CONNECTIONS}.");
    let head = [
        "",
        "connections that hold or wait",
        "connections open",
        "bytes a waiter",
    ];
    let mut table = Table::new(title, head);
    for ((name, at_locks), (_, open)) in at_locks.iter().zip(open.iter()) {
        table.row([
            name.to_owned(),
            at_locks.median().to_string(),
            open.median().to_string(),
            figures
                .get(Figure::WaiterBytes, name)
                .map_or_else(|| short_or_dash(None), whole),
        ]);
    }
    findings.add("waiters", table);
}

/// Writers of one realm: one is inside, and all others wait.
pub struct Line {
    all: u32,
    calls: Arc<AtomicU32>,
    open: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Line {
    /// Returns once all have asked.
    pub async fn form(guard: &Guard, waiters: u32) -> Self {
        let calls = Arc::new(AtomicU32::new(0));
        let open = watch::Sender::new(false);
        let handler = service_fn({
            let (calls, open) = (Arc::clone(&calls), open.clone());
            move |_: Request<String>| {
                calls.fetch_add(1, Ordering::Relaxed);
                let mut open = open.subscribe();
                async move {
                    open.wait_for(|open| *open)
                        .await
                        .expect("the line is there");
                    Ok::<_, Infallible>(Response::new(String::new()))
                }
            }
        });
        let guarded = guard.around(handler);
        let all = waiters + 1;
        let asked = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        for _ in 0..all {
            let (guarded, asked) = (guarded.clone(), asked.clone());
            tasks.spawn(async move {
                asked.send_modify(|asked| *asked += 1);
                guarded.patch("/luke/awaited/card").await;
            });
        }
        let mut asked = asked.subscribe();
        let asked = asked.wait_for(|asked| *asked == all).await;
        asked.expect("it is counted here");
        Self {
            all,
            calls,
            open,
            tasks,
        }
    }

    /// Lets them all through.
    pub async fn dissolve(self) {
        self.open.send_replace(true);
        self.tasks.join_all().await;
        assert_eq!(self.calls.load(Ordering::Relaxed), self.all);
    }
}
