//! What the crate does without a database: for a writer by itself, and for many, of one realm and of realms of their own.

use crate::contenders::{BARE, IN_PROCESS, MUTEX, Name};
use crate::figures::Figure;
use crate::statistics::{Lines, range, short, short_or_dash, whole};
use crate::table::Table;
use crate::throughput::{Realms, writes};
use crate::{Bench, Findings};

struct Case {
    text: &'static str,
    writers: u32,
    realms: Realms,
    names: &'static [Name],
    rates: Lines,
}

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let sizes = &bench.sizes;
    let case = |text, writers, realms, names| Case {
        text,
        writers,
        realms,
        names,
        rates: Lines::default(),
    };
    // The mutex is one for all realms.
    let mut cases = [
        case("one writer", 1, Realms::Own, &[BARE, MUTEX, IN_PROCESS]),
        case(
            "distinct realms",
            sizes.distinct_writers,
            Realms::Own,
            &[IN_PROCESS],
        ),
        case(
            "one hot realm",
            sizes.hot_writers,
            Realms::One,
            &[MUTEX, IN_PROCESS],
        ),
    ];
    for _ in 0..sizes.rounds {
        for case in &mut cases {
            for name in case.names {
                let guard = &bench.contender(name).guard;
                let done = writes(guard, case.writers, case.realms, sizes.rate_time).await;
                case.rates.add(name, done.rate());
            }
        }
    }

    let medians = cases.each_ref().map(|case| case.rates.median(IN_PROCESS));
    let [alone, distinct, hot] = medians.map(Option::unwrap_or_default);
    for (figure, value) in [
        (Figure::InProcessAlone, 1.0 / alone),
        (Figure::InProcessGain, distinct / alone),
        (Figure::InProcessHot, hot),
    ] {
        findings.figures.set(figure, IN_PROCESS, value);
    }

    let head = [
        "",
        "who",
        "holds/s, median",
        "middle half",
        "µs a hold",
        "÷ one writer",
    ];
    let mut table = Table::new("In process, handler empty.", head);
    for case in &cases {
        for (name, samples) in case.rates.iter() {
            table.row([
                format!("{}, {} in all", case.text, case.writers),
                name.to_owned(),
                whole(samples.median()),
                range(samples.quartiles().map(whole)),
                short(1e6 / samples.median()),
                short_or_dash((name == IN_PROCESS).then(|| samples.median() / alone)),
            ]);
        }
    }
    findings.add("in-process", table);
}
