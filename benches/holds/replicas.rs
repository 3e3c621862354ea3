//! Replicas that write the same realm: how much they get done, and whether each gets its share.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::contenders::{BY_HAND, CONNECTIONS, Contender, IN_POSTGRES, Name, STRATEGIES};
use crate::exclusion::Lookout;
use crate::figures::Figure;
use crate::growth::Curves;
use crate::statistics::{Lines, range, short, short_or_dash, whole};
use crate::table::Table;
use crate::throughput::{Done, Paths, stop_after, write};
use crate::{Bench, Findings};

/// Of each replica where their number grows: the server has 300 for all of them.
const FEW_CONNECTIONS: u32 = 4;

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let pairs = start(bench, IN_POSTGRES, 2, CONNECTIONS).await;
    let [mut rates, mut shares] = [Lines::default(), Lines::default()];
    for _ in 0..bench.sizes.rounds_over(4) {
        for pair in &pairs {
            let (done, share) = contend(bench, pair).await;
            rates.add(pair[0].name, done.rate());
            shares.add(pair[0].name, share);
        }
    }
    let figures = &mut findings.figures;
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
        table.row([
            name.to_owned(),
            whole(rates.median()),
            range(rates.quartiles().map(whole)),
            short(shares.median()),
            range(shares.quartiles().map(short)),
            short_or_dash(figures.ratio(Figure::ReplicasRate, name, BY_HAND)),
        ]);
    }
    findings.add("replicas", table);
}

/// By the number of replicas: the holds of all of them in a second, and the least share.
pub async fn growth(bench: &Bench) -> [Curves; 2] {
    let points = bench.sizes.growth_replicas;
    let most = points.last().copied().unwrap_or_default();
    let contenders = start(bench, STRATEGIES, most, FEW_CONNECTIONS).await;
    let [mut rates, mut shares] = [
        ("Holds/s of one hot realm, by the number of replicas."),
        ("The least share of a replica, of what would be its fair share, %."),
    ]
    .map(|title| Curves::new("replicas", title.to_owned(), points));
    for _ in 0..bench.sizes.rounds_over(4) {
        for (point, count) in points.iter().enumerate() {
            for replicas in &contenders {
                let replicas = &replicas[..*count as usize];
                let (done, share) = contend(bench, replicas).await;
                let name = replicas[0].name;
                rates.add(point, name, done.rate());
                shares.add(point, name, share * f64::from(*count));
            }
        }
    }
    [rates, shares]
}

/// So many replicas of each contender.
async fn start(
    bench: &Bench,
    names: &[Name],
    replicas: u32,
    connections: u32,
) -> Vec<Vec<Contender>> {
    let url = bench.server.url();
    let start = names.iter().map(async |name| {
        let replicas = vec![*name; replicas as usize];
        Contender::start_all(&replicas, &url, connections).await
    });
    join_all(start).await
}

/// All replicas write one realm: their holds, and the percentage of the one that gets least.
async fn contend(bench: &Bench, replicas: &[Contender]) -> (Done, f64) {
    bench.server.rest().await;
    let start = Instant::now();
    let lookout = Lookout::default();
    let stop = stop_after(bench.sizes.replicas_time);
    let writers_each = bench.sizes.hot_writers as usize / replicas.len();
    let replicas_at_work: Vec<_> = (replicas.iter())
        .map(|replica| {
            let mut writers = JoinSet::new();
            for _ in 0..writers_each {
                let guarded = replica.guard.around(lookout.handler());
                let paths = Paths::One("/luke/shared/card".to_owned());
                writers.spawn(write(guarded, paths, Arc::clone(&stop)));
            }
            writers
        })
        .collect();
    let writes = join_all(replicas_at_work.into_iter().map(JoinSet::join_all)).await;
    let writes: Vec<u32> = (writes.into_iter())
        .map(|writes| writes.into_iter().sum())
        .collect();
    let done = Done::since(start, writes.iter().sum());
    assert!(!lookout.saw_calls_meet(), "{}", replicas[0].name);
    let least = writes.into_iter().min().unwrap_or_default();
    (done, 100.0 * f64::from(least) / done.holds)
}
