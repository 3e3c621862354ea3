//! Processes of the example `realm_server`: replicas of one realm server.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::blocking;
use super::process::Process;
use super::wait::{PATIENCE, wait_for};

/// How long a replica may take to listen, and to end.
const REPLICA_PATIENCE: Duration = Duration::from_secs(20);

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
        let origin = wait_for("a replica to listen", REPLICA_PATIENCE, async || {
            if let Some(status) = process.ended() {
                panic!("realm_server {flags:?} ended with {status}");
            }
            announced(&process.stdout()).ok_or_else(|| "it runs".to_owned())
        })
        .await;
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
        self.process.end(REPLICA_PATIENCE).await
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
    let status = process.end(REPLICA_PATIENCE).await;
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
    let program = PROGRAM.get_or_init(|| blocking(build)).await;
    let mut command = Command::new(program);
    command
        .env_remove("DATABASE_URL")
        .env("TMPDIR", scratch.path());
    command
}

/// Builds the example beside the running test: in its target directory, with its profile.
fn build() -> PathBuf {
    let test = env::current_exe().expect("the test's own path is known");
    // <target directory>/<profile>/deps/<test>
    let profile_dir = test
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts tests into <profile>/deps");
    let target_dir = profile_dir.parent().expect("<profile> is in a directory");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("no profile in {}", test.display()),
    };
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", "realm_server"])
        // As the test script builds, so that nothing is built twice.
        .args(["--all-features", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "the example realm_server does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile_dir.join("examples").join("realm_server")
}

/// The origin in the complete line `realm_server listening on http://127.0.0.1:PORT …`.
fn announced(stdout: &str) -> Option<String> {
    let (_, rest) = stdout.split_once("listening on http://")?;
    let (line, _) = rest.split_once('\n')?;
    let authority = line.split_whitespace().next()?.trim_end_matches('/');
    Some(format!("http://{authority}"))
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
