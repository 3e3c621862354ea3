//! Two replicas that write the same realm: how much they get done, and whether each gets its share.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Bench;
use crate::contenders::{BY_HAND, CONNECTIONS, Contender, IN_POSTGRES};
use crate::exclusion::Lookout;
use crate::figures::{Figure, Figures};
use crate::statistics::{Lines, short, short_or_dash, whole};
use crate::table::Table;
use crate::throughput::{Paths, stop_after, write};

pub async fn measure(bench: &Bench, figures: &mut Figures) -> Table {
    let mut replicas = Vec::new();
    for name in IN_POSTGRES {
        let url = bench.server.url();
        let pair = [*name, *name];
        replicas.push(Contender::start_all(&pair, &url, CONNECTIONS).await);
    }
    let [mut rates, mut shares] = [Lines::default(), Lines::default()];
    for _ in 0..bench.sizes.rounds_over(4) {
        for pair in &replicas {
            bench.server.rest().await;
            let start = Instant::now();
            let [one, other] = writes_of_each([&pair[0], &pair[1]], bench).await;
            rates.add(pair[0].name, (one + other) / start.elapsed().as_secs_f64());
            shares.add(pair[0].name, 100.0 * one.min(other) / (one + other));
        }
    }
    figures.set_medians(Figure::ReplicasRate, &rates);
    figures.set_medians(Figure::Share, &shares);

    let title = format!(
        "One hot realm, written by two replicas, with {} writers each; handler empty.",
        bench.sizes.hot_writers / 2
    );
    let head = [
        "",
        "holds/s of both, median",
        "middle half",
        "the lesser share, %",
        "middle half",
        "holds/s ÷ by hand",
    ];
    let mut table = Table::new(title, head);
    for ((name, rates), (_, shares)) in rates.iter().zip(shares.iter()) {
        let range = |[low, high]: [String; 2]| format!("{low} to {high}");
        table.row([
            name.to_owned(),
            whole(rates.median()),
            range(rates.quartiles().map(whole)),
            short(shares.median()),
            range(shares.quartiles().map(short)),
            short_or_dash(figures.ratio(Figure::ReplicasRate, name, BY_HAND)),
        ]);
    }
    table
}

async fn writes_of_each(pair: [&Contender; 2], bench: &Bench) -> [f64; 2] {
    let lookout = Lookout::default();
    let stop = stop_after(bench.sizes.replicas_time);
    let mut replicas = pair.map(|replica| {
        let mut writers = JoinSet::new();
        for _ in 0..bench.sizes.hot_writers / 2 {
            let guarded = replica.guard.around(lookout.handler());
            let paths = Paths::One("/luke/shared/card".to_owned());
            writers.spawn(write(guarded, paths, Arc::clone(&stop)));
        }
        writers
    });
    let mut writes = [0.0; 2];
    for (writes, replica) in writes.iter_mut().zip(&mut replicas) {
        while let Some(written) = replica.join_next().await {
            *writes += f64::from(written.expect("the writer ends well"));
        }
    }
    assert!(!lookout.saw_calls_meet(), "{}", pair[0].name);
    writes
}
