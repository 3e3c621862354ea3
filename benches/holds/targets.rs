//! What this crate must reach beside its peers, and whether it did in this run.

use crate::contenders::{BY_HAND, IN_PROCESS, Name, SESSIONS, SQLX, TRANSACTION, UNCONFIRMED};
use crate::figures::{Figure, Figures};
use crate::statistics::{short, short_or_dash, whole};
use crate::table::Table;
use crate::uncontended::ROUND_TRIP;

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
    target("uncontended, added", Figure::Added, TRANSACTION, AtMost(2.4), Times(ROUND_TRIP)),
    target("uncontended, added", Figure::Added, TRANSACTION, AtMost(0.7), Times(BY_HAND)),
    target("uncontended, added", Figure::Added, UNCONFIRMED, AtMost(1.5), Times(ROUND_TRIP)),
    target("uncontended, added", Figure::Added, UNCONFIRMED, AtMost(0.45), Times(BY_HAND)),
    target("the same, 1 ms away", Figure::AddedFar, TRANSACTION, AtMost(2.15), Times(ROUND_TRIP)),
    target("the same, 1 ms away", Figure::AddedFar, UNCONFIRMED, AtMost(1.15), Times(ROUND_TRIP)),
    target("hot realm", Figure::HotRate, TRANSACTION, AtLeast(15.0), Times(BY_HAND)),
    target("hot realm", Figure::HotRate, TRANSACTION, AtLeast(15.0), Times(SQLX)),
    target("hot realm", Figure::HotRate, TRANSACTION, AtLeast(0.8), Times(UNCONFIRMED)),
    target("hot realm", Figure::HotRate, IN_PROCESS, AtLeast(300_000.0), In("holds/s", 1.0)),
    target("distinct realms", Figure::DistinctRate, TRANSACTION, AtLeast(2.5), Times(BY_HAND)),
    target("distinct realms", Figure::DistinctRate, SESSIONS, AtLeast(1.5), Times(TRANSACTION)),
    target("2,000 realms", Figure::Thousands, SESSIONS, AtMost(0.5), In("s", 1.0)),
    target("2,000 realms", Figure::ThousandsConnections, SESSIONS, AtMost(8.0), In("connections", 1.0)),
    target("lone writer, p99", Figure::Lone, TRANSACTION, AtMost(10.0), In("ms", 1e3)),
    target("10,000 waiters", Figure::WaiterConnections, TRANSACTION, AtMost(1.0), In("connections", 1.0)),
    target("10,000 waiters, each", Figure::WaiterBytes, TRANSACTION, AtMost(4096.0), In("bytes", 1.0)),
    target("two replicas, lesser share", Figure::Share, TRANSACTION, AtLeast(40.0), In("%", 1.0)),
    target("request that passes, added", Figure::Passing, IN_PROCESS, AtMost(100.0), In("ns", 1e9)),
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
