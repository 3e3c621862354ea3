//! Processes of the example `realm_server`: replicas of one realm server.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::process::Process;
use super::wait::{PATIENCE, wait_for};
use super::{blocking, example};

/// The built example, once for each test process.
static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();

/// A running example server on a port of its own. Dropping it kills it.
pub struct Replica {
    process: Process,
    origin: String,
    /// What it makes for the time that it runs is removed with it, also when it is killed.
    _scratch: TempDir,
}

impl Replica {
    /// Starts a replica with `--listen 127.0.0.1:0` and the given flags, and waits until it listens. `DATABASE_URL` is
    /// not passed on.
    ///
    /// # Panics
    /// When it ends instead, or does not listen within 20 s; its output is printed.
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", flags).await
    }

    /// The same at a given address: where a client knows one that has ended.
    pub async fn start_at(address: &str, flags: &[&str]) -> Self {
        let scratch = scratch();
        let mut command = command(&scratch).await;
        let mut process = Process::spawn(command.args(["--listen", address]).args(flags));
        let origin = example::listening(&mut process, &format!("realm_server {flags:?}")).await;
        Self {
            process,
            origin,
            _scratch: scratch,
        }
    }

    /// The URL of a path, which starts with `/`, at this replica.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.origin.trim_start_matches("http://")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Asks it to end (`SIGTERM`) and waits until it has.
    ///
    /// # Panics
    /// When it has not ended within 20 s.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.process.end(example::PATIENCE).await
    }

    /// Whether a write is between its read and its write, where `--write-delay` is set: one of its
    /// threads sleeps for a time, while others wait for events.
    #[cfg(target_os = "linux")]
    pub fn is_writing(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let mut places = threads
            .expect("it lives")
            .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("wchan")).ok());
        places.any(|place| place.contains("nanosleep"))
    }

    /// Ends it at once (`SIGKILL`): its connections break, and nothing of its own runs any more.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes it (`SIGSTOP`) and waits until each of its threads stands still; its connections stay open.
    pub async fn pause(&self) {
        self.process.signal("STOP");
        wait_for("a replica to stand still", PATIENCE, async || {
            let states = thread_states(self.pid());
            if states.chars().all(|state| state == 'T') {
                Ok(())
            } else {
                Err(format!("threads in the states {states}"))
            }
        })
        .await;
    }

    /// Lets a frozen replica go on (`SIGCONT`).
    pub fn resume(&self) {
        self.process.signal("CONT");
    }
}

/// What a run of the example left: for flags that it must refuse.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All that it wrote to its standard output.
    pub stdout: String,
    /// All that it wrote to its standard error.
    pub stderr: String,
}

/// Runs the example with the given flags, no others and no `DATABASE_URL`, to its end.
///
/// # Panics
/// When it has not ended within 20 s.
pub async fn run(flags: &[&str]) -> Finished {
    run_in(&[], flags).await
}

/// The same with these variables in its environment.
///
/// # Panics
/// When it has not ended within 20 s.
pub async fn run_in(variables: &[(&str, &str)], flags: &[&str]) -> Finished {
    let scratch = scratch();
    let mut command = command(&scratch).await;
    let mut process = Process::spawn(command.envs(variables.iter().copied()).args(flags));
    let status = process.end(example::PATIENCE).await;
    Finished {
        code: status.code(),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

fn scratch() -> TempDir {
    TempDir::with_prefix("trl-replica.").expect("a temporary directory can be made")
}

async fn command(scratch: &TempDir) -> Command {
    let program = PROGRAM
        .get_or_init(|| blocking(|| example::build("realm_server")))
        .await;
    let mut command = Command::new(program);
    command
        .env_remove("DATABASE_URL")
        .env("TMPDIR", scratch.path());
    command
}

/// One letter for each thread of a process, as in `/proc/<pid>/stat`; empty on a system that has no such files.
fn thread_states(pid: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            // The name before it, in parentheses, may hold anything.
            stat.rsplit_once(") ")?.1.chars().next()
        })
        .collect()
}
