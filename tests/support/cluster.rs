//! A throwaway PostgreSQL server that a test may stop, start and crash.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::keeper::Keeper;
use super::wait::{PATIENCE, wait_for};
use super::{blocking, database};

/// How many ports a new server tries: another process may take a free one first.
pub(super) const PORT_TRIES: usize = 5;

/// A PostgreSQL on 127.0.0.1, with the user `postgres`, no password and 300 connections. Its data, its socket and its
/// logs are in one directory of its own.
///
/// Dropping it stops the server and removes the directory. Both also happen when the test process is killed.
pub struct Cluster {
    keeper: Arc<Mutex<Keeper>>,
    dir: PathBuf,
    port: u16,
}

impl Cluster {
    /// Makes and starts a cluster, and waits until it answers.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start; the message holds its log.
    pub async fn create() -> Self {
        Self::made_by(vec!["init".to_owned()]).await
    }

    /// The same, one that standbys can follow.
    pub async fn create_primary() -> Self {
        Self::made_by(vec!["init".to_owned(), "lead".to_owned()]).await
    }

    /// Starts what a keeper makes when asked to, and waits until it answers.
    pub(super) async fn made_by(requests: Vec<String>) -> Self {
        let cluster = blocking(move || {
            let mut keeper = Keeper::spawn();
            for request in requests {
                keeper
                    .ask(&request)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
            let port = start_on_a_free_port(&mut keeper);
            Self {
                dir: keeper.dir().to_owned(),
                keeper: Arc::new(Mutex::new(keeper)),
                port,
            }
        })
        .await;
        cluster.answers().await;
        cluster
    }

    /// The URL of its `postgres` database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The port on 127.0.0.1: the same for the cluster's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory that holds the server's data, socket and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process id of the running server.
    ///
    /// # Panics
    /// When the server is stopped.
    pub fn server_pid(&self) -> u32 {
        let file = self.dir.join("data/postmaster.pid");
        let text = fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("no server runs: {}: {error}", file.display()));
        let pid = text.lines().next().and_then(|line| line.parse().ok());
        pid.unwrap_or_else(|| panic!("no process id in {}: {text}", file.display()))
    }

    /// Stops the server in an orderly way; open sessions end with `57P01`.
    pub async fn stop(&self) {
        self.ask(&["stop fast"]).await;
    }

    /// Lets the server crash (`pg_ctl stop -m immediate`): open sessions end with `57P02`, or with nothing.
    pub async fn crash(&self) {
        self.ask(&["stop immediate"]).await;
    }

    /// Starts a stopped server again, on the same port, and waits until it answers.
    pub async fn start(&self) {
        self.ask(&[&self.start_request()]).await;
        self.answers().await;
    }

    /// Stops the server in an orderly way and starts it again.
    pub async fn restart_fast(&self) {
        self.ask(&["stop fast", &self.start_request()]).await;
        self.answers().await;
    }

    /// Lets the server crash (`pg_ctl stop -m immediate`) and starts it again; it recovers first.
    pub async fn restart_immediate(&self) {
        self.ask(&["stop immediate", &self.start_request()]).await;
        self.answers().await;
    }

    fn start_request(&self) -> String {
        format!("start {}", self.port)
    }

    pub(super) async fn ask(&self, requests: &[&str]) {
        let keeper = Arc::clone(&self.keeper);
        let requests: Vec<String> = requests.iter().map(ToString::to_string).collect();
        blocking(move || {
            let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
            for request in requests {
                keeper
                    .ask(&request)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
        })
        .await;
    }

    async fn answers(&self) {
        wait_for("the cluster to answer", PATIENCE, async || {
            let client = database::try_connect(&self.url()).await?;
            let answer = client.simple_query("SELECT 1").await;
            answer.map_err(|error| error.to_string())
        })
        .await;
    }
}

fn start_on_a_free_port(keeper: &mut Keeper) -> u16 {
    let mut refusal = String::new();
    for _ in 0..PORT_TRIES {
        let port = free_port();
        match keeper.ask(&format!("start {port}")) {
            Ok(()) => return port,
            Err(error) => refusal = error,
        }
    }
    panic!("tried {PORT_TRIES} ports, the last: {refusal}")
}

/// A port that nobody listens on, below those that systems hand to outgoing connections: such a one could be taken by a
/// client while the server is down, even by one that is knocking at this very port.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u32 = 10_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side start looking in different places.
    let begin = process::id().wrapping_mul(31);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        assert!(tried < COUNT, "no free port from {FIRST} on 127.0.0.1");
        let offset = u16::try_from(begin.wrapping_add(tried) % COUNT).expect("below COUNT");
        if TcpListener::bind(("127.0.0.1", FIRST + offset)).is_ok() {
            return FIRST + offset;
        }
    }
}
