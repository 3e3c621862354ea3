//! Two replicas of a service, and two writers that each change a field of one card: without the lock, and with it.
//!
//! ```text
//! cargo run --example two_replicas
//! ```
//!
//! It starts two processes of itself on one directory, lets a writer at each of them write at the same moments, and prints
//! how many of the acknowledged writes were lost:
//!
//! ```text
//! run                  acknowledged    lost   seconds
//! locks: off                    200     100       2.9
//! locks: postgres               200       0       5.2
//! With the lock every acknowledged write is there.
//! ```
//!
//! The locks are in the PostgreSQL at `--database-url` or `DATABASE_URL`, else in a throwaway one, made with the programs that
//! `scripts/setup` installs. `--locks in-process` shows what locks that two processes do not share are worth.
//!
//! The exit status is 0 if the lock kept every write, 1 if it lost any, 2 if the race could not be run. No process that
//! it starts outlives it, however it ends.

mod race;
mod replica;
mod report;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use futures_util::FutureExt;
use support::cluster::Cluster;
use tokio::signal::unix::{SignalKind, signal};

use report::Report;

type Failure = Box<dyn Error + Send + Sync>;

/// Races two writers through two replicas, without the lock and with it.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// How often both write.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Where the locks of the second run are.
    #[arg(long, value_name = "WHERE", default_value = "postgres")]
    locks: Locks,
    /// PostgreSQL for the locks; without one a throwaway server is started.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Locks {
    Off,
    InProcess,
    Postgres,
}

#[derive(Subcommand)]
enum Part {
    /// One of the two replicas.
    #[command(hide = true)]
    Replica { directory: PathBuf, locks: Locks },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    if let Some(Part::Replica { directory, locks }) = arguments.part {
        replica::serve(directory, locks).await?;
        return Ok(ExitCode::SUCCESS);
    }
    // What it shares with the tests panics when it cannot do its part. Its words are enough; where they stand is no matter here.
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref().copied());
        eprintln!("{}", text.unwrap_or("panicked"));
    }));
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    // Whichever ends it, what it has started is dropped with it, and so stopped.
    let report = tokio::select! {
        compared = AssertUnwindSafe(compare(&arguments)).catch_unwind() => {
            compared.map_err(|_| "the race could not be run, as said above; --database-url names a server that runs already")??
        }
        _ = interrupt.recv() => return Err("interrupted".into()),
        _ = terminate.recv() => return Err("terminated".into()),
    };
    println!("{report}");
    Ok(report.exit_code())
}

async fn compare(arguments: &Arguments) -> Result<Report, Failure> {
    let wants_server = arguments.locks == Locks::Postgres && arguments.database_url.is_none();
    let server = if wants_server {
        let server = Cluster::create().await;
        eprintln!("a throwaway PostgreSQL in {}", server.dir().display());
        Some(server)
    } else {
        None
    };
    let url = server.as_ref().map(Cluster::url);
    let url = url.as_deref().or(arguments.database_url.as_deref());
    let rounds = arguments.rounds;
    Ok(Report {
        unlocked: race::run(Locks::Off, None, rounds).await?,
        locked: race::run(arguments.locks, url, rounds).await?,
    })
}
