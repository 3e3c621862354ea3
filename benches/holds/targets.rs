//! What this crate must reach beside its peers, and whether it did in this run.

use crate::contenders::{
    BARE_TRANSACTION, BY_HAND, IN_PROCESS, Name, OLD_STATEMENT, PGBENCH_BATCHES, ROUND_TRIP,
    SESSIONS, SQLX, TRANSACTION, TRANSACTION_PUBLISHES, UNCONFIRMED,
};
use crate::figures::{Figure, Figures};
use crate::statistics::{short, short_or_dash, whole};
use crate::table::Table;

struct Target {
    case: &'static str,
    figure: Figure,
    name: Name,
    bound: Bound,
    measure: Measure,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy)]
enum Measure {
    /// So many times what it is of another contender.
    Times(Name),
    /// So many of a unit, of which the figure's own has so many.
    In(&'static str, f64),
}

use Bound::{AtLeast, AtMost};
use Measure::{In, Times};

const fn target(
    case: &'static str,
    figure: Figure,
    name: Name,
    bound: Bound,
    measure: Measure,
) -> Target {
    Target {
        case,
        figure,
        name,
        bound,
        measure,
    }
}

#[rustfmt::skip]
const TARGETS: &[Target] = &[
    target("uncontended, one core, added", Figure::Added, TRANSACTION, AtMost(1.35), Times(BARE_TRANSACTION)),
    target("uncontended, one core, added", Figure::Added, TRANSACTION, AtMost(0.5), Times(BY_HAND)),
    target("uncontended, one core, added", Figure::Added, UNCONFIRMED, AtMost(0.4), Times(BY_HAND)),
    target("uncontended, one core, added", Figure::Added, SESSIONS, AtMost(0.7), Times(BY_HAND)),
    target("1 ms away, added", Figure::AddedFar, TRANSACTION, AtMost(2.08), Times(ROUND_TRIP)),
    target("1 ms away, added", Figure::AddedFar, UNCONFIRMED, AtMost(1.06), Times(ROUND_TRIP)),
    target("distinct realms, 32 writers", Figure::DistinctRate, TRANSACTION, AtLeast(1.2), Times(SQLX)),
    target("distinct realms, 32 writers", Figure::DistinctRate, TRANSACTION, AtLeast(2.3), Times(BY_HAND)),
    target("distinct realms, 32 writers", Figure::DistinctRate, TRANSACTION, AtLeast(0.9), Times(BARE_TRANSACTION)),
    target("distinct realms, 64 writers", Figure::FewSessionsRate, SESSIONS, AtLeast(2.5), Times(SQLX)),
    target("distinct realms, 256 writers", Figure::ManySessionsRate, SESSIONS, AtLeast(0.4), Times(PGBENCH_BATCHES)),
    target("one hot realm, 100 writers", Figure::HotRate, TRANSACTION, AtLeast(20.0), Times(BY_HAND)),
    target("one hot realm, 100 writers", Figure::HotRate, TRANSACTION, AtLeast(20.0), Times(SQLX)),
    target("one hot realm, 100 writers", Figure::InProcessHot, IN_PROCESS, AtLeast(400_000.0), In("holds/s", 1.0)),
    target("one writer", Figure::InProcessAlone, IN_PROCESS, AtMost(1.1), In("µs a hold", 1e6)),
    target("distinct realms, 32 writers", Figure::InProcessGain, IN_PROCESS, AtLeast(1.6), In("× one writer", 1.0)),
    target("one hot realm, publishing", Figure::PublishingHot, TRANSACTION_PUBLISHES, AtLeast(0.4), Times(TRANSACTION)),
    target("one writer, publishing", Figure::PublishingAlone, TRANSACTION_PUBLISHES, AtLeast(0.9), Times(TRANSACTION)),
    target("PostgreSQL's processor time", Figure::DistinctServer, TRANSACTION, AtMost(0.65), Times(OLD_STATEMENT)),
    target("two replicas, lesser share", Figure::Share, TRANSACTION, AtLeast(48.0), In("%", 1.0)),
    target("lone writer, p99", Figure::Lone, TRANSACTION, AtMost(0.8), In("ms", 1e3)),
    target("10,000 waiters, each", Figure::WaiterBytes, TRANSACTION, AtMost(3584.0), In("bytes", 1.0)),
    target("2,000 realms", Figure::Thousands, SESSIONS, AtMost(0.1), In("s", 1.0)),
];

/// `judged` is false for a run that is too small to tell, and `all` leaves out nothing that was not measured.
pub fn table(figures: &Figures, judged: bool, all: bool) -> Table {
    let head = ["", "contender", "must be", "measured", "reached"];
    let mut table = Table::new("The targets.", head);
    for target in TARGETS {
        let (measured, unit) = match target.measure {
            Times(other) => (
                figures.ratio(target.figure, target.name, other),
                format!("× {other}"),
            ),
            In(unit, factor) => {
                let value = figures.get(target.figure, target.name);
                (value.map(|value| value * factor), unit.to_owned())
            }
        };
        let reached = match measured {
            None if !all => continue,
            None => "not measured",
            Some(_) if !judged => "not judged",
            Some(measured) if target.bound.holds(measured) => "yes",
            Some(_) => "no",
        };
        table.row([
            target.case.to_owned(),
            target.name.to_owned(),
            format!("{} {unit}", target.bound.text()),
            measured.map_or_else(|| short_or_dash(None), number),
            reached.to_owned(),
        ]);
    }
    table
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            AtMost(most) => value <= most,
            AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            AtMost(most) => format!("≤ {}", bound(most)),
            AtLeast(least) => format!("≥ {}", bound(least)),
        }
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 {
        whole(value)
    } else {
        short(value)
    }
}

/// As it was set.
fn bound(value: f64) -> String {
    if value >= 1000.0 {
        whole(value)
    } else {
        value.to_string()
    }
}
