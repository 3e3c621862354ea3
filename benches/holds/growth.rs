//! How the rate of writes grows with the writers and with the realms.

use crate::Bench;
use crate::contenders::{IN_POSTGRES, IN_PROCESS, MUTEX, Name};
use crate::statistics::{Lines, whole};
use crate::table::Table;
use crate::throughput::{Realms, writes_a_second};

/// Concurrent writers where the realms grow.
const WRITERS: u32 = 32;

/// The rates of all contenders along one axis.
pub struct Curves {
    pub axis: &'static str,
    title: String,
    points: Vec<(u32, Lines)>,
}

pub async fn hot(bench: &Bench) -> Curves {
    let title = "Holds/s of one hot realm, by the number of writers.".to_owned();
    let names = [&[MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let points = bench.sizes.growth_writers;
    let plan = |writers| (writers, Realms::One);
    Curves::measure(bench, "writers", title, &names, points, plan).await
}

pub async fn distinct(bench: &Bench) -> Curves {
    let title = "Holds/s of distinct realms, by the number of writers.".to_owned();
    let names = [&[IN_PROCESS], IN_POSTGRES].concat();
    let points = bench.sizes.growth_writers;
    let plan = |writers| (writers, Realms::Own);
    Curves::measure(bench, "writers", title, &names, points, plan).await
}

pub async fn realms(bench: &Bench) -> Curves {
    let title =
        format!("Holds/s of {WRITERS} writers, by the number of realms that they go round.");
    let names = [&[IN_PROCESS], IN_POSTGRES].concat();
    let points = bench.sizes.growth_realms;
    let plan = |realms| (WRITERS, Realms::Many(realms));
    Curves::measure(bench, "realms", title, &names, points, plan).await
}

impl Curves {
    /// `plan` gives the writers and the realms of a point.
    async fn measure(
        bench: &Bench,
        axis: &'static str,
        title: String,
        names: &[Name],
        points: &[u32],
        plan: impl Fn(u32) -> (u32, Realms),
    ) -> Self {
        let mut points: Vec<_> = points.iter().map(|x| (*x, Lines::default())).collect();
        for _ in 0..bench.sizes.rounds_over(4) {
            for (x, lines) in &mut points {
                let (writers, realms) = plan(*x);
                for name in names {
                    bench.server.rest().await;
                    let guard = &bench.contender(name).guard;
                    let time = bench.sizes.growth_time;
                    lines.add(name, writes_a_second(guard, writers, realms, time).await);
                }
            }
        }
        Self {
            axis,
            title,
            points,
        }
    }

    pub fn table(&self) -> Table {
        let mut head = vec![String::new()];
        head.extend(self.points.iter().map(|(x, _)| whole(f64::from(*x))));
        let mut table = Table::with_head(&self.title, head);
        for name in self.names() {
            let mut row = vec![name.to_owned()];
            row.extend(self.of(name).map(|(_, rate)| whole(rate)));
            table.row(row);
        }
        table
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    /// How many times a point is what the one before it is.
    pub fn step(&self) -> f64 {
        let [first, second, ..] = &self.points[..] else {
            return 10.0;
        };
        f64::from(second.0) / f64::from(first.0)
    }

    pub fn names(&self) -> Vec<Name> {
        let first = self.points.first();
        first.map_or_else(Vec::new, |(_, lines)| {
            lines.iter().map(|(name, _)| name).collect()
        })
    }

    /// A contender's medians.
    pub fn of(&self, name: Name) -> impl Iterator<Item = (f64, f64)> {
        self.points
            .iter()
            .filter_map(move |(x, lines)| Some((f64::from(*x), lines.median(name)?)))
    }
}
