//! How the rate of writes grows with the writers, the realms and the replicas.

use crate::contenders::{BARE_TRANSACTION, IN_POSTGRES, IN_PROCESS, MUTEX, Name};
use crate::replicas;
use crate::statistics::{Lines, whole};
use crate::table::Table;
use crate::throughput::Realms;
use crate::{Bench, Findings};

/// Concurrent writers where the realms grow.
const WRITERS: u32 = 32;

/// The medians of all contenders along one axis.
pub struct Curves {
    pub axis: &'static str,
    title: String,
    points: Vec<(u32, Lines)>,
}

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let (writers, realms) = (bench.sizes.growth_writers, bench.sizes.growth_realms);
    let one = [&[MUTEX, IN_PROCESS], IN_POSTGRES].concat();
    let many = [&[IN_PROCESS], IN_POSTGRES, &[BARE_TRANSACTION]].concat();

    let title = "Holds/s of one hot realm, by the number of writers.".to_owned();
    let mut hot = Curves::new("writers", title, writers);
    hot.fill(bench, &one, |writers| (writers, Realms::One))
        .await;
    let title = "Holds/s of distinct realms, by the number of writers.".to_owned();
    let mut distinct = Curves::new("writers", title, writers);
    distinct
        .fill(bench, &many, |writers| (writers, Realms::Own))
        .await;
    let title =
        format!("Holds/s of {WRITERS} writers, by the number of realms that they go round.");
    let mut going_round = Curves::new("realms", title, realms);
    let plan = |realms| (WRITERS, Realms::Many(realms));
    going_round.fill(bench, &many, plan).await;
    let [replicas, shares] = replicas::growth(bench).await;

    findings.add("growth-replicas-share", shares.table());
    for (name, curves) in [
        ("growth-hot", hot),
        ("growth-distinct", distinct),
        ("growth-realms", going_round),
        ("growth-replicas", replicas),
    ] {
        findings.add(name, curves.table());
        findings.curves.push(curves);
    }
}

impl Curves {
    pub fn new(axis: &'static str, title: String, points: &[u32]) -> Self {
        Self {
            axis,
            title,
            points: points.iter().map(|x| (*x, Lines::default())).collect(),
        }
    }

    pub fn add(&mut self, point: usize, name: Name, sample: f64) {
        self.points[point].1.add(name, sample);
    }

    /// With rates. `plan` gives the writers and the realms of a point.
    async fn fill(&mut self, bench: &Bench, names: &[Name], plan: impl Fn(u32) -> (u32, Realms)) {
        for _ in 0..bench.sizes.rounds_over(4) {
            for (x, lines) in &mut self.points {
                let (writers, realms) = plan(*x);
                for name in names {
                    bench.server.rest().await;
                    let time = bench.sizes.growth_time;
                    if let Some(done) = bench.run(name, writers, realms, time).await {
                        lines.add(name, done.rate());
                    }
                }
            }
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
