//! What a realm lock costs: this crate beside the version that is written by hand, and beside no lock at all.
//!
//! `cargo bench --bench holds` starts a PostgreSQL of its own, measures, and prints tables. All contenders run in one
//! process and take turns in every round, so what else the machine does meets them alike: compare within a run, not
//! between runs. Numbers are printed and never judged; that every write was answered, counted and exclusive is.

mod contenders;
mod hand_written;
mod hot_realm;
mod lone_writer;
mod passing;
mod statistics;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod uncontended;

use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use contenders::Contenders;
use support::cluster::Cluster;
use table::Table;
use tokio::runtime::Builder;

/// Measures what a realm lock costs.
#[derive(Parser)]
struct Arguments {
    /// Rounds of every measurement, each with all contenders; the lone writer, who takes seconds, has an eighth.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Measure hardly anything: to see that the benchmark runs, not what it prints.
    #[arg(long)]
    tiny: bool,
    /// Make one measurement instead of all.
    #[arg(long)]
    only: Option<Measurement>,
    /// What `cargo bench` adds to the arguments of every benchmark. It changes nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Measurement {
    Uncontended,
    Passing,
    HotRealm,
    LoneWriter,
}

/// How much is measured. A count of requests is for one contender in one round.
struct Sizes {
    rounds: u32,
    uncontended: u32,
    passing: u32,
    /// Concurrent writers of the hot realm, and of the busy one beside the lone writer.
    writers: u32,
    hot_in_postgres: u32,
    hot_in_process: u32,
    hot_mutex: u32,
    busy_hold: Duration,
}

impl Sizes {
    fn real(rounds: Option<u32>) -> Self {
        Self {
            rounds: rounds.unwrap_or(40),
            uncontended: 100,
            passing: 100_000,
            writers: 100,
            hot_in_postgres: 1_000,
            hot_in_process: 20_000,
            hot_mutex: 200_000,
            busy_hold: Duration::from_millis(20),
        }
    }

    fn tiny(rounds: Option<u32>) -> Self {
        Self {
            rounds: rounds.unwrap_or(2),
            uncontended: 5,
            passing: 100,
            writers: 20,
            hot_in_postgres: 40,
            hot_in_process: 100,
            hot_mutex: 100,
            busy_hold: Duration::from_millis(2),
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let sizes = if arguments.tiny {
        Sizes::tiny(arguments.rounds)
    } else {
        Sizes::real(arguments.rounds)
    };
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let cluster = Cluster::create().await;
        // On a worker, as a server's requests are; this thread would have to be woken across threads.
        let measured = tokio::spawn(measure(cluster.url(), sizes, arguments.only)).await;
        measured.expect("the measurements end well");
    });
}

async fn measure(url: String, sizes: Sizes, only: Option<Measurement>) {
    let contenders = Contenders::start(&url).await;
    contenders.check_exclusion().await;
    let cores = thread::available_parallelism().expect("a count of cores");
    let version = contenders.server_version().await;
    let rounds = sizes.rounds;
    println!("cores: {cores}, PostgreSQL {version}, rounds: {rounds}\n");
    for measurement in Measurement::value_variants() {
        if only.is_none_or(|only| only == *measurement) {
            println!("{}", measurement.table(&contenders, &sizes).await);
        }
    }
}

impl Measurement {
    async fn table(self, contenders: &Contenders, sizes: &Sizes) -> Table {
        match self {
            Self::Uncontended => uncontended::measure(contenders, sizes).await,
            Self::Passing => passing::measure(sizes).await,
            Self::HotRealm => hot_realm::measure(contenders, sizes).await,
            Self::LoneWriter => lone_writer::measure(contenders, sizes).await,
        }
    }
}
