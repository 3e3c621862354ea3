//! Carries out a schedule of faults. Each runs beside the others: a replica may be frozen while the server restarts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::fleet::{APPLICATION, Fleet};
use crate::schedule::{Fault, Schedule};
use crate::support::cluster::Cluster;
use crate::support::database::try_connect;
use crate::support::history::record::Log;

/// How many faults of each kind there were; connections that were ended count one by one.
pub type Counts = BTreeMap<&'static str, usize>;

pub struct Nemesis {
    pub fleet: Arc<Fleet>,
    pub cluster: Arc<Cluster>,
    pub history: Log,
    pub begun: Instant,
    /// One restart at a time.
    restarts: Mutex<()>,
    counts: RefCell<Counts>,
}

impl Nemesis {
    pub fn new(fleet: &Arc<Fleet>, cluster: &Arc<Cluster>, history: Log) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            cluster: Arc::clone(cluster),
            history,
            begun: Instant::now(),
            restarts: Mutex::default(),
            counts: RefCell::default(),
        }
    }

    /// Carries out the schedule, and returns when everything is well again.
    pub async fn run(&self, schedule: Schedule) {
        let mut faults = FuturesUnordered::new();
        for (time, fault) in schedule {
            let mut due = pin!(sleep(time.saturating_sub(self.begun.elapsed())));
            loop {
                tokio::select! {
                    () = &mut due => break,
                    Some(()) = faults.next() => {}
                }
            }
            faults.push(self.carry_out(fault));
        }
        while let Some(()) = faults.next().await {}
        self.remark("all is well again");
    }

    /// Lets nothing through any more between a replica and the database, to the end of the run.
    pub fn silence(&self, replica: usize) {
        const KIND: &str = "network silent to the end";
        self.remark(&format!("{KIND}: r{replica}"));
        self.fleet.replicas[replica].proxy.freeze();
        self.count(KIND, 1);
    }

    /// The faults so far.
    pub fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    async fn carry_out(&self, fault: Fault) {
        self.remark(&fault.to_string());
        let count = match fault {
            Fault::KillBackends { count, choice } => self.kill_backends(count, choice).await,
            Fault::CloseIdle => self.close_idle().await,
            fault => {
                self.disturb(fault).await;
                1
            }
        };
        self.count(fault.kind(), count);
    }

    /// Does what is one fault, however many connections or clients it hits.
    async fn disturb(&self, fault: Fault) {
        let replicas = &self.fleet.replicas;
        match fault {
            Fault::KillBackends { .. } | Fault::CloseIdle => {}
            Fault::RestartFast => {
                let _alone = self.restarts.lock().await;
                self.cluster.restart_fast().await;
            }
            Fault::RestartImmediate => {
                let _alone = self.restarts.lock().await;
                self.cluster.restart_immediate().await;
            }
            Fault::KillReplica { replica } => replicas[replica].restart().await,
            Fault::Freeze { replica, duration } => replicas[replica].freeze(duration).await,
            Fault::Cut { replica } => replicas[replica].proxy.cut(),
            Fault::BlackHole { replica, duration } => {
                replicas[replica].proxy.freeze();
                self.thaw_after(duration, replica).await;
            }
            Fault::GiveUp { replica, duration } => {
                let name = replicas[replica].application();
                let sessions = format!("application_name = '{name}'");
                replicas[replica].proxy.freeze();
                tokio::join!(
                    self.terminate(&sessions),
                    self.thaw_after(duration, replica)
                );
            }
            Fault::ClientsLeave { replica } => {
                replicas[replica].leave.send_modify(|times| *times += 1);
            }
        }
    }

    async fn thaw_after(&self, duration: Duration, replica: usize) {
        let proxy = &self.fleet.replicas[replica].proxy;
        sleep(duration).await;
        proxy.thaw();
        // What it counts is of no use here, and would grow with the run.
        drop(proxy.queries());
    }

    async fn kill_backends(&self, count: usize, choice: u64) -> usize {
        self.terminate(&format!(
            "TRUE ORDER BY md5(pid::text || '{choice}') LIMIT {count}"
        ))
        .await
    }

    async fn close_idle(&self) -> usize {
        self.terminate("state = 'idle'").await
    }

    /// Ends the sessions of lock connections; how many, which are none while the server is away.
    async fn terminate(&self, which: &str) -> usize {
        let Ok(client) = try_connect(&self.cluster.url()).await else {
            return 0;
        };
        let terminate = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name LIKE '{APPLICATION}%' AND {which}"
        );
        let ended = client.query(&terminate, &[]).await;
        ended.map_or(0, |ended| ended.len())
    }

    fn count(&self, kind: &'static str, count: usize) {
        *self.counts.borrow_mut().entry(kind).or_default() += count;
    }

    fn remark(&self, what: &str) {
        let seconds = self.begun.elapsed().as_secs_f32();
        self.history
            .remark(&format!("{seconds:.3} s: {what}"))
            .expect("the history can be written");
    }
}
