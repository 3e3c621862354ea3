//! `pgbench`, which is PostgreSQL's own: what the server does for a client that does nothing else.

use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::NamedTempFile;
use tokio::process::Command;

use crate::contenders::{CONNECTIONS, Name, PGBENCH, PGBENCH_BATCHES, PGBENCH_PREPARED};
use crate::support::installed::server_programs;
use crate::throughput::Done;

/// How many locks a session takes at once.
const BATCH: u32 = 8;

pub struct Pgbench {
    program: PathBuf,
    port: u16,
    script: NamedTempFile,
    protocol: &'static str,
    /// Of one round of the script.
    locks: u32,
    /// How often the script runs on each connection: first a few times, then for as long as is asked for.
    rounds: AtomicU32,
}

impl Pgbench {
    /// `None` where the server's programs come without it. They may be links to where they are installed.
    pub fn find(name: Name, port: u16) -> Option<Self> {
        let server = server_programs().join("postgres").canonicalize().ok()?;
        let program = server.with_file_name("pgbench");
        if !program.is_file() {
            return None;
        }
        let (text, locks, protocol) = match name {
            PGBENCH => (transaction(), 1, "simple"),
            PGBENCH_BATCHES => (batches(), BATCH, "simple"),
            PGBENCH_PREPARED => (batches(), BATCH, "prepared"),
            _ => panic!("no pgbench is called {name}"),
        };
        let mut script = NamedTempFile::new().expect("a place for a script");
        script.write_all(text.as_bytes()).expect("a script");
        Some(Self {
            program,
            port,
            script,
            protocol,
            locks,
            rounds: AtomicU32::new(50),
        })
    }

    /// Holds for about as long as `time`, without the time to connect.
    ///
    /// # Panics
    /// When `pgbench` fails, or does not say how fast it was.
    pub async fn run(&self, time: Duration) -> Done {
        let connections = f64::from(CONNECTIONS);
        let rounds = self.rounds.load(Ordering::Relaxed);
        let output = Command::new(&self.program)
            .args(["--host", "127.0.0.1", "--username", "postgres"])
            .args(["--port", &self.port.to_string()])
            .args(["--client", &CONNECTIONS.to_string(), "--jobs", "2"])
            .args(["--no-vacuum", "--protocol", self.protocol])
            .args(["--transactions", &rounds.to_string()])
            .arg("--file")
            .arg(self.script.path())
            .arg("postgres")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = output.await.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = rate(&text).filter(|_| output.status.success());
        let rate = rate.unwrap_or_else(|| {
            panic!("{text}{}", String::from_utf8_lossy(&output.stderr));
        });
        // Whole and positive.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let next = (rate * time.as_secs_f64() / connections).max(1.0) as u32;
        self.rounds.store(next, Ordering::Relaxed);
        let done = connections * f64::from(rounds);
        Done {
            holds: done * f64::from(self.locks),
            seconds: done / rate,
        }
    }
}

/// Rounds a second, without the time to connect: how it is said depends on the version.
fn rate(output: &str) -> Option<f64> {
    let line = output
        .lines()
        .filter_map(|line| line.strip_prefix("tps = "))
        .find(|line| line.contains("without") || line.contains("excluding"))?;
    line.split(' ').next()?.parse().ok()
}

/// The leanest transaction: two messages.
fn transaction() -> String {
    "BEGIN\\; SELECT pg_try_advisory_xact_lock(:client_id);\nCOMMIT;\n".to_owned()
}

/// Takes a batch of locks and gives it back: two messages, and no transaction block.
fn batches() -> String {
    let mut script = String::new();
    for function in ["pg_try_advisory_lock", "pg_advisory_unlock"] {
        let mut separator = "SELECT ";
        for lock in 0..BATCH {
            // Writing to a `String` does not fail.
            let _ = write!(
                script,
                "{separator}{function}(:client_id * {BATCH} + {lock})"
            );
            separator = ", ";
        }
        script += ";\n";
    }
    script
}
