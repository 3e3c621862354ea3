//! Writers on many replicas, while everything breaks that can break: no write that was acknowledged is lost, and no two
//! holders of a realm meet.
//!
//! ```text
//! cargo test --test faults                             a minute of faults, from a seed that it prints
//! cargo test --test faults -- --seconds 600 --seed 7   longer, and the faults of a run before
//! cargo test --test faults -- --without-lock           what is found where there is no lock, and
//! cargo test --test faults -- --naive                  where a lock does not notice its loss
//! ```
//!
//! Replicas are processes of this program. Their handlers write to a store of files and append what they do to a log that
//! knows nothing of locks (`store`); clients note what they are told (`load`). A seeded schedule of faults (`schedule`)
//! ends connections and processes, freezes them, forgets, delays and refuses connections, drops cancel requests, changes
//! the role's time limits, restarts and crashes PostgreSQL, and lets clients leave (`nemesis`).
//! In the end a checker looks for what must not happen (`support::history::checker`; `tests/server/history.rs` tests it).
//!
//! That the suite can fail is a part of it: it first runs without a lock, and with one that does
//! not notice its loss, and wants to find overlapping holds and lost writes in both. Then it runs
//! with handlers that write on blocking threads to a store that checks no tokens, while backends
//! end and holds run out of time.

#[path = "../support/mod.rs"]
mod support;

mod flags;
mod fleet;
mod load;
mod naive;
mod nemesis;
mod random;
mod replica;
mod report;
mod run;
mod schedule;
mod store;
mod strategies;

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use flags::Flags;
use fleet::REPLICAS;
use nemesis::{CANCEL_DROPPED, LIMITED, LOGIN_REFUSED, VANISHED};
use random::Random;
use replica::Lock;
use report::{Recovery, Report};
use run::{Plan, run};
use support::cluster::Cluster;
use support::history::Outcome;
use support::history::checker::Rule;

/// How long PostgreSQL keeps the lock of a silent replica.
const LEASE: Duration = Duration::from_millis(1500);

/// How long a request waits for its lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the first write of a realm may take when the lease of a silent holder has ended: a handler, on a busy machine.
const SLACK: Duration = Duration::from_millis(750);

/// How many acknowledged writes a minute must have.
const WRITES_PER_MINUTE: u64 = 3_000;

/// How many holds a minute must have a lock that was handed on to them, and how many locks of each strategy must be seen: a
/// fraction of what there is on a busy machine.
const HAND_OFFS_PER_MINUTE: u64 = 1_000;
const SEEN_PER_MINUTE: u64 = 100;

/// How often a minute each of the faults must have hit something that may also miss.
const EFFECTS_PER_MINUTE: u64 = 1;

/// How many milliseconds a handler takes between reading and writing: with the layer, and where violations are to be seen.
const QUICK: RangeInclusive<u64> = 0..=5;
const SLOW: RangeInclusive<u64> = 0..=40;

/// The same where a loss must be noticed before the next writer has written: that takes some
/// milliseconds on a busy machine.
const NOTICED: RangeInclusive<u64> = 15..=40;

/// How long the runs last that must find violations. The naive lock shows far fewer, and on a busy machine only a handful.
const SHORT: Duration = Duration::from_secs(3);
const SHORT_NAIVE: Duration = Duration::from_secs(6);

/// How long the run lasts that writes on blocking threads, without fencing.
const BLOCKING: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|first| first == "replica") {
        let flags = std::env::args_os().skip(1);
        return replica::run(&replica::Flags::parse_from(flags));
    }
    let flags = Flags::parse();
    if let Some(list) = flags.list() {
        print!("{list}");
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = flags.left_out() {
        println!("faults: not run, {reason}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let [passed, failed] = runtime.block_on(suite(&flags));
    println!("faults: {passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs what the flags ask for; how many runs came out well, and how many did not.
async fn suite(flags: &Flags) -> [usize; 2] {
    let seed = flags.seed();
    println!("seed: {seed}");
    let cluster = Arc::new(Cluster::create().await);
    let results = if flags.without_lock {
        vec![long_run(Lock::None, flags.seconds, seed, &cluster).await]
    } else if flags.naive {
        vec![long_run(Lock::Naive, flags.seconds, seed, &cluster).await]
    } else {
        vec![
            short_run(Lock::None, seed, &cluster).await,
            short_run(Lock::Naive, seed, &cluster).await,
            blocking_run(seed, &cluster).await,
            long_run(Lock::Layer, flags.seconds, seed, &cluster).await,
        ]
    };
    let passed = results.iter().filter(|passed| **passed).count();
    [passed, results.len() - passed]
}

/// A run with every kind of fault. Whether it shows no violation, has enough writes, and recovered within a lease.
async fn long_run(lock: Lock, seconds: u64, seed: u64, cluster: &Arc<Cluster>) -> bool {
    println!("{lock}, for {seconds} s:");
    let duration = Duration::from_secs(seconds);
    let mut random = Random::new(seed);
    let plan = Plan {
        lock,
        faults: schedule::all_kinds(&mut random, REPLICAS.len(), duration),
        duration,
        delay: match lock {
            Lock::Layer => QUICK,
            Lock::Naive | Lock::None | Lock::Unfenced => SLOW,
        },
        last_fault: Some(random.index(REPLICAS.len())),
    };
    let report = run(plan, &mut random, cluster).await;
    println!("{report}");
    let mut failures = failures(&report, seconds);
    if lock == Lock::Layer {
        failures.extend(not_covered(&report, seconds));
    }
    for failure in &failures {
        println!("  FAILED: {failure}");
    }
    if !failures.is_empty() {
        report.explain();
    }
    failures.is_empty()
}

/// What the layer can do, and has not been seen to do.
fn not_covered(report: &Report, seconds: u64) -> impl Iterator<Item = String> {
    let seen = &report.seen;
    let effects = [VANISHED, CANCEL_DROPPED, LOGIN_REFUSED, LIMITED].map(|effect| {
        let count = report.faults.get(effect).copied();
        (count.unwrap_or_default(), EFFECTS_PER_MINUTE, effect)
    });
    [
        (
            report.handed_on(),
            HAND_OFFS_PER_MINUTE,
            "holds by a hand-off",
        ),
        (seen.by_sessions(), SEEN_PER_MINUTE, "locks of sessions"),
        (
            seen.by_transactions(),
            SEEN_PER_MINUTE,
            "locks of transactions",
        ),
    ]
    .into_iter()
    .chain(effects)
    .filter_map(move |(count, per_minute, what)| {
        let wanted = per_minute * seconds / 60;
        let few = u64::try_from(count).is_ok_and(|count| count < wanted);
        few.then(|| format!("{count} {what} are fewer than {wanted}: the run says little of them"))
    })
}

fn failures(report: &Report, seconds: u64) -> Vec<String> {
    let mut failures = Vec::new();
    if !report.violations.is_empty() {
        failures.push("there are violations".to_owned());
    }
    let acknowledged = report.count(&Outcome::Acknowledged);
    let wanted = WRITES_PER_MINUTE * seconds / 60;
    if u64::try_from(acknowledged).is_ok_and(|acknowledged| acknowledged < wanted) {
        failures.push(format!(
            "{acknowledged} acknowledged writes are fewer than {wanted}"
        ));
    }
    let Recovery {
        when_well,
        from_last_fault,
        ..
    } = report.recovery;
    if when_well.is_none_or(|time| time > LEASE) {
        failures.push(format!(
            "a realm was not written within a lease ({LEASE:?})"
        ));
    }
    if from_last_fault.is_none_or(|time| time > LEASE + SLACK) {
        failures.push(format!(
            "a realm was blocked for more than a lease ({LEASE:?}) by a replica that was cut off"
        ));
    }
    failures
}

/// A run whose locks are taken away in the middle of writes that nothing can stop and no store
/// refuses: backends end, and holds run out of time. Whether it shows no violation, and enough of
/// both.
async fn blocking_run(seed: u64, cluster: &Arc<Cluster>) -> bool {
    let lock = Lock::Unfenced;
    println!("{lock}, for {} s:", BLOCKING.as_secs());
    let mut random = Random::new(seed);
    let plan = Plan {
        lock,
        faults: schedule::killed_backends(&mut random, BLOCKING),
        duration: BLOCKING,
        delay: NOTICED,
        last_fault: None,
    };
    let report = run(plan, &mut random, cluster).await;
    println!("{report}");
    let refused = report.refused_after_entering();
    let acknowledged = report.count(&Outcome::Acknowledged);
    let well = report.violations.is_empty() && refused >= 20 && acknowledged >= 100;
    if !well {
        println!(
            "  FAILED: no violation is expected, and {refused} writes without a lock of at least \
             20, and {acknowledged} acknowledged ones of at least 100"
        );
        report.explain();
    }
    well
}

/// A run without a right lock. Whether it shows what that leads to.
async fn short_run(lock: Lock, seed: u64, cluster: &Arc<Cluster>) -> bool {
    let duration = match lock {
        Lock::None => SHORT,
        Lock::Naive | Lock::Layer | Lock::Unfenced => SHORT_NAIVE,
    };
    println!("{lock}, for {} s:", duration.as_secs());
    let mut random = Random::new(seed);
    let faults = match lock {
        // Nothing needs to break.
        Lock::None => Vec::new(),
        Lock::Naive | Lock::Layer | Lock::Unfenced => {
            schedule::killed_backends(&mut random, duration)
        }
    };
    let plan = Plan {
        lock,
        faults,
        duration,
        delay: SLOW,
        last_fault: None,
    };
    let report = run(plan, &mut random, cluster).await;
    println!("{report}");
    let found = report.broke(Rule::Overlap) && report.broke(Rule::LostWrite);
    if !found {
        println!("  FAILED: overlapping holds and lost writes must be found here");
    }
    found
}
