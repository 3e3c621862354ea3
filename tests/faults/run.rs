//! One run: replicas, clients and faults, and then what the checker says.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::LEASE;
use crate::fleet::Fleet;
use crate::load::{CARDS, Load, Sent};
use crate::nemesis::Nemesis;
use crate::random::Random;
use crate::replica::Lock;
use crate::report::{Recovery, Report};
use crate::schedule::Schedule;
use crate::store;
use crate::strategies::Watch;
use crate::support::cluster::Cluster;
use crate::support::history::checker::check;
use crate::support::history::record::{self, Log};
use crate::support::history::{History, Tokens};

/// What happens in a run.
pub struct Plan {
    pub lock: Lock,
    pub faults: Schedule,
    /// How long it lasts; the faults may end before.
    pub duration: Duration,
    /// How many milliseconds a handler takes between reading and writing.
    pub delay: RangeInclusive<u64>,
    /// A replica that loses its way to the database in the end, and does not get it back.
    pub last_fault: Option<usize>,
}

/// Carries out a plan.
pub async fn run(plan: Plan, random: &mut Random, cluster: &Arc<Cluster>) -> Report {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let fleet = Fleet::start(plan.lock, directory.path(), &cluster.url()).await;
    let fleet = Arc::new(fleet);
    let log = store::history(directory.path());
    let history = Log::append_to(&log).expect("the history can be written");

    let watch = Watch::start(&cluster.url());
    let load = Load::start(&fleet, random, &plan.delay);
    let nemesis = Nemesis::new(&fleet, cluster, history);
    let begun = nemesis.begun;
    nemesis.run(plan.faults).await;
    sleep(plan.duration.saturating_sub(begun.elapsed())).await;
    let well = Instant::now();
    // Long enough to see a realm that is late.
    sleep(LEASE).await;
    let last_fault = Instant::now();
    if let Some(replica) = plan.last_fault {
        nemesis.silence(replica);
        sleep(LEASE * 2).await;
    }
    let sent = load.stop().await;
    let seen = watch.stop();
    fleet.end().await;

    let recovery = Recovery::of(&sent, begun, well, last_fault);
    let history = history_of(directory.path(), plan.lock, &sent);
    Report {
        violations: check(&history),
        history,
        faults: nemesis.counts(),
        recovery,
        seen,
        directory,
    }
}

fn history_of(directory: &Path, lock: Lock, sent: &[Sent]) -> History {
    let stored = |realm: &str| store::stored(directory, realm).expect("the store can be read");
    History {
        records: record::read(&store::history(directory)),
        requests: sent.iter().map(|sent| sent.request.clone()).collect(),
        stored: CARDS
            .iter()
            .map(|realm| ((*realm).to_owned(), stored(realm)))
            .collect(),
        tokens: match lock {
            Lock::Layer => Tokens::Checked,
            Lock::Unfenced => Tokens::Recorded,
            Lock::Naive | Lock::None => Tokens::Absent,
        },
    }
}
