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
use crate::support::database::{try_connect, with_database};
use crate::support::history::record::Log;
use crate::support::proxy::Effect;
use crate::support::wait::{PATIENCE, wait_for};

/// How many faults of each kind there were; connections that were ended count one by one.
pub type Counts = BTreeMap<&'static str, usize>;

/// What the proxies did to single connections.
const EFFECTS: [(&str, Effect); 3] = [
    (VANISHED, Effect::Vanished),
    (CANCEL_DROPPED, Effect::CancelDropped),
    (LOGIN_REFUSED, Effect::LoginRefused),
];
pub const VANISHED: &str = "messages vanished";
pub const CANCEL_DROPPED: &str = "cancel requests dropped";
pub const LOGIN_REFUSED: &str = "logins refused";
pub const LIMITED: &str = "lock connections under limits of the role";

pub struct Nemesis {
    pub fleet: Arc<Fleet>,
    pub cluster: Arc<Cluster>,
    pub history: Log,
    pub begun: Instant,
    /// One restart at a time.
    restarts: Mutex<()>,
    /// One setting of limits at a time.
    limits: Mutex<()>,
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
            limits: Mutex::default(),
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

    /// The faults so far, and what was seen of those that need not hit anything.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts.borrow().clone();
        for (kind, effect) in EFFECTS {
            let replicas = self.fleet.replicas.iter();
            let effects = replicas.map(|replica| replica.proxy.count(effect)).sum();
            if effects > 0 {
                counts.insert(kind, effects);
            }
        }
        counts
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
            Fault::Forget { replica, duration } => {
                let replica = &replicas[replica];
                let name = replica.application();
                let sessions = format!("application_name = '{name}'");
                let open = self.pids(&sessions).await;
                replica.proxy.black_hole();
                sleep(duration).await;
                self.terminate(&format!("pid = ANY ('{{{}}}')", open.join(",")))
                    .await;
            }
            Fault::Delay {
                replica,
                delay,
                duration,
            } => {
                let proxy = &replicas[replica].proxy;
                proxy.delay(delay);
                sleep(duration).await;
                proxy.delay(Duration::ZERO);
            }
            Fault::DropCancels { replica, duration } => {
                let proxy = &replicas[replica].proxy;
                proxy.drop_cancels(true);
                // Somebody must leave, or there is nothing to cancel.
                for _ in 0..5 {
                    replicas[replica].leave.send_modify(|times| *times += 1);
                    sleep(duration / 5).await;
                }
                proxy.drop_cancels(false);
            }
            Fault::RefuseLogins { replica, duration } => {
                let proxy = &replicas[replica].proxy;
                proxy.refuse_logins(true);
                proxy.cut();
                sleep(duration).await;
                proxy.refuse_logins(false);
            }
            Fault::LimitRole { limit, duration } => {
                let _alone = self.limits.lock().await;
                self.limit_role(limit, duration).await;
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

    /// Changes the role's limits in the database of the locks, and closes idle connections so that
    /// others are opened.
    async fn limit_role(&self, limit: Duration, duration: Duration) {
        const ROLE: &str = "ALTER ROLE postgres IN DATABASE postgres";
        let limit = limit.as_millis();
        let set = format!(
            "SELECT format('{ROLE} SET %I = {limit}', name) FROM pg_settings WHERE name IN \
             ('statement_timeout', 'lock_timeout', 'transaction_timeout', \
             'idle_in_transaction_session_timeout', 'idle_session_timeout')"
        );
        let begun = Instant::now();
        self.alter(&set).await;
        self.close_idle().await;
        sleep(duration).await;
        let seconds = begun.elapsed().as_secs_f32();
        let limited = format!("backend_start > now() - {seconds} * interval '1 s'");
        let limited = self.pids(&limited).await.len();
        self.count(LIMITED, limited);
        self.alter(&format!("SELECT '{ROLE} RESET ALL'")).await;
    }

    /// Runs the statements that a query makes, from outside of the database of the locks.
    async fn alter(&self, query: &str) {
        let url = with_database(&self.cluster.url(), "template1");
        wait_for("the role to be changed", PATIENCE, async || {
            let client = try_connect(&url).await?;
            let altered = async {
                for row in client.query(query, &[]).await? {
                    client.batch_execute(row.get(0)).await?;
                }
                Ok::<_, tokio_postgres::Error>(())
            };
            altered.await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// The process ids of lock connections; none while the server is away.
    async fn pids(&self, which: &str) -> Vec<String> {
        self.for_each("pid::text", which).await
    }

    /// Ends the sessions of lock connections; how many, which are none while the server is away.
    async fn terminate(&self, which: &str) -> usize {
        let ended = self.for_each("pg_terminate_backend(pid)::text", which);
        ended.await.len()
    }

    async fn for_each(&self, expression: &str, which: &str) -> Vec<String> {
        let Ok(client) = try_connect(&self.cluster.url()).await else {
            return Vec::new();
        };
        let query = format!(
            "SELECT {expression} FROM pg_stat_activity \
             WHERE application_name LIKE '{APPLICATION}%' AND {which}"
        );
        let rows = client.query(&query, &[]).await.unwrap_or_default();
        rows.iter().map(|row| row.get(0)).collect()
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
