//! Replicas of one fleet find out that they are configured differently.
//!
//! Each process publishes the fingerprints of its layers as shared advisory locks of two keys: the
//! first stands for a fleet and a component, such as its rules, and the second for the text of that
//! component. They are held in one open transaction on a connection of its own. Now and then the
//! process looks into `pg_locks`: another second key under a first key of its own is a replica that
//! disagrees. Realms are locked by one key, which PostgreSQL keeps apart from two. A [pair of
//! the application's own](crate::LockKey::from_pair) meets a fingerprint once in 2⁶⁴.
//!
//! The transaction is read committed and writes nothing, so between two looks it has no snapshot
//! and no transaction id, and holds back no VACUUM. A look is its sign of life: without one the
//! server ends it, and with it the fingerprints of a dead replica. Behind a pooler in transaction
//! mode it keeps one server connection.
//!
//! Source: PostgreSQL manual, 13.3.5 *Advisory Locks*, and the view `pg_locks`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryFutureExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::connect::Connector;
use super::connection::{Busy, LockConnection};
use super::settings::milliseconds;
use crate::lock::error::ConnectError;
use crate::lock::tasks::Tasks;
use crate::metrics;

/// The pause between two looks, once the first ones have been made.
const PAUSE: Duration = Duration::from_secs(10);
/// The pause after the first look, and after the first attempt to connect that has failed. Each
/// further one is twice as long: replicas are often started together.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long the server keeps the fingerprints of a silent replica.
const SILENCE: Duration = Duration::from_secs(60);

/// The fingerprints of one process's layers, published to the other replicas of their fleets.
///
/// A task publishes them and looks at the others. It ends with a shutdown, or when this is dropped.
#[derive(Debug)]
pub(in crate::lock) struct Fleets {
    connector: Connector,
    /// `None` until a layer belongs to a fleet.
    layers: Mutex<Option<mpsc::UnboundedSender<Membership>>>,
}

/// The fleet of a layer, and the layer's fingerprint.
#[derive(Debug)]
pub(in crate::lock) struct Membership {
    pub(in crate::lock) fleet: Arc<str>,
    /// Each component's name and text.
    pub(in crate::lock) fingerprint: Vec<(&'static str, String)>,
}

impl Fleets {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            layers: Mutex::new(None),
        }
    }

    /// Publishes a layer's fingerprint, on a task that the first call starts.
    pub(in crate::lock) fn join(&self, layer: Membership, tasks: &Tasks) {
        // An `Option` that is filled is never half changed.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = layers.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let lookout = Lookout {
                connector: self.connector.clone(),
                layers: receiver,
                views: BTreeMap::new(),
                is_cut_off: false,
            };
            let closing = tasks.closing().clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = closing.cancelled() => {}
                    () = lookout.run() => {}
                }
            });
            sender
        });
        // After a shutdown nobody takes it.
        let _ = layers.send(layer);
    }
}

/// The task.
struct Lookout {
    connector: Connector,
    layers: mpsc::UnboundedReceiver<Membership>,
    /// By first key.
    views: BTreeMap<u32, View>,
    /// Whether a look has failed, and no connection has lasted since.
    is_cut_off: bool,
}

/// One component of one fleet.
struct View {
    fleet: Arc<str>,
    component: &'static str,
    /// The texts of this process, by second key: one for each layer, unless they are the same.
    own: BTreeMap<u32, String>,
    /// The second keys that other replicas had at the last look, and this process does not have.
    others: BTreeSet<u32>,
}

/// A lock of another replica.
struct Published {
    keys: (u32, u32),
    pid: String,
    application: Option<String>,
    address: Option<String>,
}

impl Lookout {
    async fn run(mut self) {
        let Some(first) = self.layers.recv().await else {
            return;
        };
        self.add(first);
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.attend(&mut pause).await else {
                return;
            };
            if !self.is_cut_off {
                self.is_cut_off = true;
                tracing::warn!(
                    fleets = ?self.fleets(),
                    %error,
                    "cannot tell whether all replicas of a fleet are configured alike; trying again"
                );
            }
            tokio::select! {
                layer = self.layers.recv() => match layer {
                    Some(layer) => self.add(layer),
                    None => return,
                },
                () = sleep(pause) => {}
            }
            pause = longer(pause);
        }
    }

    /// Publishes, and looks at the others, until the connection fails or nobody can join any more.
    ///
    /// A connection has lasted once a whole [`PAUSE`] has not ended it: some poolers, and some
    /// operators' programs, end transactions that are idle for less. Until then the next failure is
    /// one with the last, so that it is neither logged again nor followed by a short pause.
    async fn attend(&mut self, pause: &mut Duration) -> Result<(), ConnectError> {
        // Busy to its end, so that it is closed when it is dropped.
        let connection = Busy::new(self.connector.open().await?);
        self.ask(&connection, &begin(&connection.settings)).await?;
        self.publish(&connection).await?;
        let mut until_next = FIRST_PAUSE;
        let mut has_lasted = false;
        loop {
            self.look(&connection).await?;
            if has_lasted && std::mem::take(&mut self.is_cut_off) {
                let fleets = self.fleets();
                tracing::info!(?fleets, "the replicas of a fleet can be compared again");
                *pause = FIRST_PAUSE;
            }
            tokio::select! {
                layer = self.layers.recv() => {
                    let Some(layer) = layer else {
                        return Ok(());
                    };
                    self.add(layer);
                    self.publish(&connection).await?;
                }
                () = sleep(until_next) => {
                    has_lasted = until_next == PAUSE;
                    until_next = longer(until_next);
                }
                // The next question fails.
                () = connection.closed.cancelled() => {}
            }
        }
    }

    fn add(&mut self, layer: Membership) {
        for (component, text) in layer.fingerprint {
            let class = hash(&format!(
                "tower-realm-lock/fleet:{component}:{}",
                layer.fleet
            ));
            let view = self.views.entry(class).or_insert_with(|| View {
                fleet: Arc::clone(&layer.fleet),
                component,
                own: BTreeMap::new(),
                others: BTreeSet::new(),
            });
            view.own.insert(hash(&text), text);
        }
    }

    /// Takes the locks. A lock that the transaction has already is counted twice, and ends with it.
    async fn publish(&self, connection: &LockConnection) -> Result<(), ConnectError> {
        let keys = self
            .views
            .iter()
            .flat_map(|(class, view)| view.own.keys().map(move |object| (class, object)));
        let locks = keys.map(|(class, object)| {
            let [class, object] = [class.cast_signed(), object.cast_signed()];
            format!("pg_advisory_xact_lock_shared({class}, {object})")
        });
        let locks: Vec<String> = locks.collect();
        let publish = format!("SELECT {}", locks.join(", "));
        self.ask(connection, &publish).await.map(drop)
    }

    /// Compares the fingerprints of other replicas with those of this process.
    async fn look(&mut self, connection: &LockConnection) -> Result<(), ConnectError> {
        let classes: Vec<String> = self.views.keys().map(ToString::to_string).collect();
        let rows = self.ask(connection, &look(&classes.join(", "))).await?;
        let published = rows.iter().filter_map(|row| match row {
            SimpleQueryMessage::Row(row) => Published::read(row),
            _ => None,
        });
        let published: Vec<Published> = published.collect();
        for (class, view) in &mut self.views {
            let of_class = published.iter().filter(|it| it.keys.0 == *class);
            view.compare(of_class, self.is_cut_off);
        }
        Ok(())
    }

    async fn ask(
        &self,
        connection: &LockConnection,
        question: &str,
    ) -> Result<Vec<SimpleQueryMessage>, ConnectError> {
        let answer = connection.client.simple_query(question);
        let answer = answer.map_err(|error| connection.failed(error));
        connection.within(self.connector.timeout(), answer).await
    }

    fn fleets(&self) -> BTreeSet<&str> {
        self.views.values().map(|view| &*view.fleet).collect()
    }
}

impl View {
    /// Logs each difference that is new, and when all are gone. After an outage the others may not
    /// be back yet, and nothing counts as gone.
    fn compare<'a>(&mut self, published: impl Iterator<Item = &'a Published>, after_outage: bool) {
        let (fleet, component) = (&*self.fleet, self.component);
        let others = self.differences(published);
        for (object, replicas) in &others {
            let Some(other) = replicas.first() else {
                continue;
            };
            if !self.others.insert(*object) {
                continue;
            }
            metrics::disagreed(component);
            tracing::error!(
                fleet,
                component,
                own = self.shown(),
                other_pid = other.pid,
                other_application = other.application,
                other_address = other.address,
                other_replicas = replicas.len(),
                "another replica of this fleet has other {component}, so that both may write one \
                 realm at once: give all replicas the same base URL, patterns, rules and \
                 version, or fleets of their own"
            );
        }
        if after_outage {
            return;
        }
        let before = self.others.len();
        self.others.retain(|object| others.contains_key(object));
        if before > 0 && self.others.is_empty() {
            tracing::info!(fleet, component, "the replicas of this fleet agree again");
        }
    }

    /// The fingerprints of other replicas that this process does not have, by second key.
    ///
    /// A process has several keys where several of its layers belong to the fleet. One that has
    /// only some of another's keys does not differ from it: the rest of its layers may be on their
    /// way.
    fn differences<'a>(
        &self,
        published: impl Iterator<Item = &'a Published>,
    ) -> BTreeMap<u32, Vec<&'a Published>> {
        let mut replicas = BTreeMap::<&str, Vec<&Published>>::new();
        for it in published {
            replicas.entry(&it.pid).or_default().push(it);
        }
        let mut differences = BTreeMap::<u32, Vec<&Published>>::new();
        for replica in replicas.into_values() {
            let has = |key: &u32| replica.iter().any(|it| it.keys.1 == *key);
            if self.own.keys().all(has) {
                continue;
            }
            for it in replica
                .iter()
                .filter(|it| !self.own.contains_key(&it.keys.1))
            {
                differences.entry(it.keys.1).or_default().push(it);
            }
        }
        differences
    }

    /// This process's texts, for people.
    fn shown(&self) -> String {
        let texts: Vec<&str> = self.own.values().map(String::as_str).collect();
        texts.join(" | ")
    }
}

impl Published {
    /// `None` for a row of another statement.
    fn read(row: &SimpleQueryRow) -> Option<Self> {
        let text = |column: usize| row.try_get(column).ok().flatten();
        let owned = |column| text(column).map(str::to_owned);
        Some(Self {
            keys: (text(0)?.parse().ok()?, text(1)?.parse().ok()?),
            pid: owned(2)?,
            application: owned(3),
            address: owned(4),
        })
    }
}

/// Begins the transaction, whose limits are its own: those of a role or a database would end it
/// early.
fn begin(settings: &str) -> String {
    let silence = milliseconds(SILENCE);
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; \
         /* tower-realm-lock: fingerprints of this replica */ {settings}; \
         SELECT set_config('idle_in_transaction_session_timeout', '{silence}', true)"
    )
}

/// Finds the fingerprints of other replicas under these first keys. A transaction keeps its first
/// view of other sessions' activity until that is cleared. Of other roles' sessions it shows no
/// address, unless this role may read all.
fn look(classes: &str) -> String {
    format!(
        "/* tower-realm-lock: fingerprints of other replicas */ SELECT pg_stat_clear_snapshot(); \
         SELECT classid, objid, pid, application_name, host(client_addr) \
         FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) \
         WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND pid <> pg_backend_pid() \
         AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND classid IN ({classes}) ORDER BY pid"
    )
}

/// The first four bytes of the SHA-256, as PostgreSQL shows a key.
fn hash(text: &str) -> u32 {
    let digest = Sha256::digest(text);
    let head = digest.iter().take(4);
    head.fold(0, |head, byte| head << 8 | u32::from(*byte))
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_in_every_process() {
        assert_eq!(hash("tower-realm-lock/fleet:rules:prod"), 0xcbf5_88c0);
    }

    #[test]
    fn looks_are_frequent_at_first_and_never_as_rare_as_the_server_allows() {
        let pauses = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause)));
        let seconds: Vec<u64> = pauses.take(6).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
        assert!(PAUSE * 3 < SILENCE);
    }
}
