//! The replicas of a run, each with its own way to the database.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

use crate::replica::Lock;
use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::wait::wait_for;

/// How each replica locks: half of them on sessions, so that both strategies meet in every realm. A pool has fewer connections
/// than there are realms, and one replica has a single one. One is behind PgBouncer, in the run with
/// all kinds of faults.
pub const REPLICAS: [Options; 4] = [
    Options::new(4, 0),
    Options::new(4, 2),
    Options::new(3, 0).pooled(),
    Options::new(1, 2),
];

/// How the names of the replicas' lock connections begin, as the server shows them.
pub const APPLICATION: &str = "faults";

/// How long a replica may take to listen; the database may be away meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a replica locks.
#[derive(Clone, Copy)]
pub struct Options {
    /// How many lock connections it may open beside its sessions.
    pool_size: u32,
    /// 0 for transactions alone.
    sessions: u32,
    /// Whether there is a PgBouncer between its proxy and the database.
    is_pooled: bool,
}

pub struct Fleet {
    pub replicas: Vec<Replica>,
}

/// A place for a process that may be killed and started again.
pub struct Replica {
    number: usize,
    options: Options,
    lock: Lock,
    directory: PathBuf,
    database: String,
    pub proxy: Proxy,
    _bouncer: Option<Bouncer>,
    process: Mutex<Option<Process>>,
    starts: AtomicU32,
    /// Where it listens, while it does.
    origin: watch::Sender<Option<String>>,
    /// Changes when all clients are to leave that wait for an answer of this replica.
    pub leave: watch::Sender<u32>,
}

impl Options {
    const fn new(pool_size: u32, sessions: u32) -> Self {
        Self {
            pool_size,
            sessions,
            is_pooled: false,
        }
    }

    const fn pooled(mut self) -> Self {
        self.is_pooled = true;
        self
    }
}

impl Fleet {
    /// Starts all replicas on a store in `directory`.
    pub async fn start(lock: Lock, directory: &Path, database: &str) -> Self {
        let mut replicas = Vec::new();
        for (number, options) in REPLICAS.into_iter().enumerate() {
            // It logs in again as soon as the server is back.
            let retry = "server_login_retry = 0.05\n";
            let bouncer = if options.is_pooled && lock == Lock::Layer {
                Some(Bouncer::with(database, Pooling::Transaction, options.pool_size, retry).await)
            } else {
                None
            };
            let behind = bouncer.as_ref().map(|bouncer| bouncer.url(database));
            let replica = Replica {
                number,
                options,
                lock,
                directory: directory.to_owned(),
                database: database.to_owned(),
                proxy: Proxy::to(behind.as_deref().unwrap_or(database)).await,
                _bouncer: bouncer,
                process: Mutex::default(),
                starts: AtomicU32::new(0),
                origin: watch::Sender::new(None),
                leave: watch::Sender::new(0),
            };
            replica.restart().await;
            replicas.push(replica);
        }
        Self { replicas }
    }

    /// Kills all replicas.
    pub async fn end(&self) {
        for replica in &self.replicas {
            replica.process.lock().await.take();
        }
    }
}

impl Replica {
    /// Kills the process, if there is one, and starts a new one.
    pub async fn restart(&self) {
        let mut process = self.process.lock().await;
        self.origin.send_replace(None);
        drop(process.take());
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let program = std::env::current_exe().expect("the path of this program");
        let mut starting = Process::spawn(
            Command::new(program)
                .arg("replica")
                .args(["--name", &format!("r{}.{start}", self.number)])
                .args(["--lock", &format!("{:?}", self.lock).to_lowercase()])
                .args(["--database-url", &self.url()])
                .args(["--pool-size", &self.options.pool_size.to_string()])
                .args(["--sessions", &self.options.sessions.to_string()])
                .arg("--directory")
                .arg(&self.directory),
        );
        let origin = wait_for("a replica to listen", PATIENCE, async || {
            if let Some(status) = starting.ended() {
                panic!("a replica ended with {status}");
            }
            let stdout = starting.stdout();
            let line = stdout
                .strip_prefix("listening on ")
                .and_then(|rest| rest.strip_suffix('\n'));
            line.map(|address| format!("http://{address}"))
                .ok_or_else(|| starting.stderr())
        })
        .await;
        self.origin.send_replace(Some(origin));
        *process = Some(starting);
    }

    /// The name of its lock connections.
    pub fn application(&self) -> String {
        format!("{APPLICATION}-r{}", self.number)
    }

    /// The database, through the proxy.
    fn url(&self) -> String {
        let url = self.proxy.url(&self.database);
        format!("{url}?application_name={}", self.application())
    }

    /// Freezes the process for a while.
    pub async fn freeze(&self, duration: Duration) {
        // Nobody kills it meanwhile.
        let process = self.process.lock().await;
        if let Some(process) = &*process {
            process.signal("STOP");
            sleep(duration).await;
            process.signal("CONT");
        }
    }

    /// Where it listens, once it does.
    pub async fn origin(&self) -> String {
        let mut origin = self.origin.subscribe();
        let origin = origin.wait_for(Option::is_some).await;
        let origin = origin.expect("the sender is this replica's").clone();
        origin.expect("waited for it")
    }
}
