//! What it costs to publish each write to other replicas.

use tower_realm_lock::RealmWrites;

use crate::contenders::{
    CONNECTIONS, Contender, Name, SESSIONS, SESSIONS_PUBLISH, TRANSACTION, TRANSACTION_PUBLISHES,
};
use crate::figures::Figure;
use crate::statistics::{Lines, range, short_or_dash, whole};
use crate::table::Table;
use crate::throughput::{Realms, writes};
use crate::{Bench, Findings};

/// Each that publishes beside the one that does not.
const PAIRS: &[[Name; 2]] = &[
    [TRANSACTION, TRANSACTION_PUBLISHES],
    [SESSIONS, SESSIONS_PUBLISH],
];

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let url = bench.server.url();
    let contenders = Contender::start_all(&PAIRS.concat(), &url, CONNECTIONS).await;
    // Without one PostgreSQL would have nobody to wake.
    let listener = RealmWrites::listen(&url).await.expect("the database is up");
    let sizes = &bench.sizes;
    let cases = [
        ("one writer", 1, Realms::One),
        ("one hot realm", sizes.hot_writers, Realms::One),
        ("distinct realms", sizes.distinct_writers, Realms::Own),
    ];
    let mut lines = cases.map(|_| Lines::default());
    for _ in 0..sizes.rounds {
        for (rates, (_, writers, realms)) in lines.iter_mut().zip(cases) {
            for Contender { name, guard, .. } in &contenders {
                bench.server.rest().await;
                let done = writes(guard, writers, realms, sizes.rate_time).await;
                rates.add(name, done.rate());
            }
        }
    }
    drop(listener);
    let [alone, hot, _] = &lines;
    findings.figures.set_medians(Figure::PublishingAlone, alone);
    findings.figures.set_medians(Figure::PublishingHot, hot);

    let title = "What it costs to publish each write (`broadcast(true)`), with one listener; handler empty.";
    let head = ["", "who", "holds/s, median", "middle half", "÷ silent"];
    let mut table = Table::new(title.to_owned(), head);
    for (rates, (case, writers, _)) in lines.iter().zip(cases) {
        for (name, samples) in rates.iter() {
            let silent = PAIRS.iter().find(|pair| pair[1] == name);
            let silent = silent.and_then(|pair| rates.median(pair[0]));
            table.row([
                format!("{case}, {writers} in all"),
                name.to_owned(),
                whole(samples.median()),
                range(samples.quartiles().map(whole)),
                short_or_dash(silent.map(|silent| samples.median() / silent)),
            ]);
        }
    }
    findings.add("publishing", table);
}
