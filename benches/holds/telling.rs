//! What it costs to tell other replicas of each write.

use tower_realm_lock::RealmWrites;

use crate::Bench;
use crate::contenders::{
    CONNECTIONS, Contender, Name, SESSIONS, SESSIONS_TELL, TRANSACTION, TRANSACTION_TELLS,
};
use crate::statistics::{Lines, short_or_dash, whole};
use crate::table::Table;
use crate::throughput::{Realms, writes_a_second};

/// Each that tells beside the one that does not.
const PAIRS: &[[Name; 2]] = &[[TRANSACTION, TRANSACTION_TELLS], [SESSIONS, SESSIONS_TELL]];

pub async fn measure(bench: &Bench) -> Table {
    let url = bench.server.url();
    let names = PAIRS.concat();
    let contenders = Contender::start_all(&names, &url, CONNECTIONS).await;
    // Without one PostgreSQL would have nobody to wake.
    let listener = RealmWrites::listen(&url).await.expect("the database is up");
    let cases = [
        ("one writer", 1, Realms::One),
        ("one hot realm", bench.sizes.hot_writers, Realms::One),
        (
            "realms of their own",
            bench.sizes.distinct_writers,
            Realms::Own,
        ),
    ];
    let mut lines = cases.map(|_| Lines::default());
    for _ in 0..bench.sizes.rounds {
        for (rates, (_, writers, realms)) in lines.iter_mut().zip(cases) {
            for contender in &contenders {
                bench.server.rest().await;
                let time = bench.sizes.rate_time;
                let rate = writes_a_second(&contender.guard, writers, realms, time).await;
                rates.add(contender.name, rate);
            }
        }
    }
    drop(listener);

    let title = "What it costs to tell other replicas of each write (`broadcast(true)`), with one listener; handler empty.";
    let head = ["", "who", "holds/s, median", "middle half", "÷ silent"];
    let mut table = Table::new(title.to_owned(), head);
    for (rates, (case, writers, _)) in lines.iter().zip(cases) {
        for (name, samples) in rates.iter() {
            let [low, high] = samples.quartiles().map(whole);
            let silent = PAIRS.iter().find(|pair| pair[1] == name);
            let silent = silent.and_then(|pair| rates.median(pair[0]));
            table.row([
                format!("{case}, {writers} in all"),
                name.to_owned(),
                whole(samples.median()),
                format!("{low} to {high}"),
                short_or_dash(silent.map(|silent| samples.median() / silent)),
            ]);
        }
    }
    table
}
