//! `two_replicas`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::command;
use crate::support::database::database;
use crate::support::example::PATIENCE;
use crate::support::process::Process;
use crate::support::wait::wait_for;

/// What the table says of a run: writes acknowledged, and lost.
fn row(table: &str, run: &str) -> [u32; 2] {
    let line = table.lines().find_map(|line| line.strip_prefix(run));
    let line = line.unwrap_or_else(|| panic!("no {run} in {table}"));
    let mut numbers = line.split_whitespace().map(str::parse);
    [(); 2].map(|()| numbers.next().unwrap().unwrap())
}

/// Runs it to its end: its exit status, and its table.
async fn ended(command: &mut Command) -> (Option<i32>, String) {
    let mut process = Process::spawn(command);
    let status = process.end(PATIENCE * 3).await;
    (status.code(), process.stdout())
}

#[tokio::test]
async fn writes_are_lost_without_the_lock_and_kept_with_it() {
    let database = database().await;
    let mut command = command("two_replicas", Some(&database)).await;
    let (code, table) = ended(command.args(["--rounds", "20"])).await;
    let [acknowledged, lost] = row(&table, "locks: off");
    assert!(acknowledged == 40 && lost > 0, "{table}");
    assert_eq!(row(&table, "locks: postgres"), [40, 0]);
    assert!(table.ends_with("With the lock every acknowledged write is there.\n"));
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn locks_that_replicas_do_not_share_fail() {
    let mut command = command("two_replicas", None).await;
    let (code, table) = ended(command.args(["--rounds", "20", "--locks", "in-process"])).await;
    let [acknowledged, lost] = row(&table, "locks: in-process");
    assert!(acknowledged == 40 && lost > 0, "{table}");
    assert!(table.contains("did not keep the writers apart"), "{table}");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_no_verdict() {
    let mut command = command("two_replicas", None).await;
    command.args([
        "--rounds",
        "1",
        "--database-url",
        "postgres://u:secret@127.0.0.1:1/d",
    ]);
    let mut process = Process::spawn(&mut command);
    assert_eq!(process.end(PATIENCE).await.code(), Some(2));
    let said = process.stderr();
    assert!(
        said.contains("cannot connect to PostgreSQL at 127.0.0.1:1/d")
            && said.contains("; nothing listens there: start PostgreSQL"),
        "{said}"
    );
    assert!(
        !said.contains("secret") && process.stdout().is_empty(),
        "{said}"
    );
}

/// What it has started: two processes, and the directory of a server.
struct Started {
    replicas: Vec<u32>,
    directory: String,
    /// For what it leaves when it is killed: the card.
    _temporary: TempDir,
}

/// Starts it with a server of its own, and waits until both replicas run.
async fn racing() -> (Process, Started) {
    let mut command = command("two_replicas", None).await;
    let temporary = tempfile::tempdir().unwrap();
    command.env("TMPDIR", temporary.path());
    let process = Process::spawn(command.args(["--rounds", "100000"]));
    let (replicas, directory) = wait_for("the race", PATIENCE, async || {
        let said = process.stderr();
        let (_, rest) = said.split_once("PostgreSQL in ").ok_or(&*said)?;
        let (directory, rest) = rest.split_once('\n').ok_or(&*said)?;
        let (_, rest) = rest.split_once("processes ").ok_or(&*said)?;
        let (replicas, _) = rest.split_once('\n').ok_or(&*said)?;
        let pids = replicas.split(" and ").map(|pid| pid.parse().unwrap());
        Ok((pids.collect(), directory.to_owned()))
    })
    .await;
    let started = Started {
        replicas,
        directory,
        _temporary: temporary,
    };
    assert!(started.leftovers().len() == 3);
    (process, started)
}

impl Started {
    /// What of it is still there. A process that has ended and that nobody has asked for its status is not.
    fn leftovers(&self) -> Vec<String> {
        let replicas = self.replicas.iter().filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            (!stat.contains(") Z ")).then_some(stat)
        });
        let directory = Some(&self.directory).filter(|path| Path::new(path).exists());
        replicas.chain(directory.cloned()).collect()
    }
}

#[tokio::test]
async fn an_interrupt_leaves_nothing_behind() {
    for signal in ["INT", "TERM"] {
        let (mut process, started) = racing().await;
        process.signal(signal);
        assert_eq!(process.end(PATIENCE).await.code(), Some(2));
        // The bar is for terminals.
        let said = process.stderr();
        assert!(!said.contains(['█', '\r']), "{said}");
        assert!(started.leftovers().is_empty(), "{:?}", started.leftovers());
    }
}

#[tokio::test]
async fn being_killed_leaves_nothing_behind() {
    let (mut process, started) = racing().await;
    process.kill();
    wait_for("all to end", PATIENCE, async || {
        let left = started.leftovers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    })
    .await;
}
