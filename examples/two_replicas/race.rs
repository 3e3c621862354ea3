//! Two writers at two replicas.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Client;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::replica::CARD;
use crate::report::Run;
use crate::support::example::listening;
use crate::support::process::Process;
use crate::{Failure, Locks};

/// The field that each writer has for itself.
const FIELDS: [&str; 2] = ["left", "right"];

/// Two processes, the directory that they share, and a client. Dropping it ends them.
struct Replicas {
    processes: [Process; 2],
    urls: [String; 2],
    client: Client,
    _directory: TempDir,
}

/// Has both writers write at the same moment, `rounds` times.
///
/// # Errors
/// When a replica does not answer, or not with 200.
pub async fn run(locks: Locks, database: Option<&str>, rounds: u32) -> Result<Run, Failure> {
    let replicas = Replicas::start(locks, database).await?;
    let name = format!("locks: {}", locks.name());
    let [one, two] = &replicas.processes;
    eprintln!("{name}, processes {} and {}", one.pid(), two.pid());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}")?;
    // Only a terminal sees it.
    let bar = ProgressBar::new(u64::from(rounds)).with_style(style);
    let started = Instant::now();
    let (mut acknowledged, mut lost) = (0, 0);
    for round in 0..rounds {
        tokio::try_join!(replicas.write(0, round), replicas.write(1, round))?;
        let card = replicas.read().await?;
        acknowledged += 2;
        for field in FIELDS {
            lost += u32::from(card.get(field) != Some(&json!(round)));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Run {
        name,
        acknowledged,
        lost,
        took: started.elapsed(),
    })
}

impl Replicas {
    async fn start(locks: Locks, database: Option<&str>) -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("two-replicas-")?;
        let spawn = || {
            let mut command = Command::new(env::current_exe()?);
            command.arg("replica").arg(directory.path());
            command.args([locks.name()]);
            // Not as an argument: those are shown to every user of the machine.
            match database {
                Some(url) => command.env("DATABASE_URL", url),
                None => command.env_remove("DATABASE_URL"),
            };
            // A Ctrl-C is for this process, which ends them.
            Ok::<_, Failure>(Process::spawn(command.process_group(0)))
        };
        let mut processes = [spawn()?, spawn()?];
        let [one, two] = &mut processes;
        let origins = tokio::join!(listening(one, "replica 1"), listening(two, "replica 2"));
        Ok(Self {
            processes,
            urls: [origins.0, origins.1].map(|origin| origin + CARD),
            client: Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(30))
                .build()?,
            _directory: directory,
        })
    }

    /// Changes the field of one writer, through its replica, and leaves the other's alone.
    async fn write(&self, side: usize, round: u32) -> Result<(), Failure> {
        let request = self.client.patch(&self.urls[side]);
        let answer = request.json(&json!({ FIELDS[side]: round })).send().await?;
        answer.error_for_status()?;
        Ok(())
    }

    async fn read(&self) -> Result<Map<String, Value>, Failure> {
        let answer = self.client.get(&self.urls[0]).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }
}

impl Locks {
    /// As on the command line.
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
