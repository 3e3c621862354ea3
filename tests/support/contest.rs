//! Writers of one realm that compete for its lock, and a room that records whether two were inside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_realm_lock::{Claim, LockError, RealmLocks};

use super::claims::{realm_key, strategies, whole};
use super::database::TestDatabase;
use super::wait::{PATIENCE, wait_until};

/// The realm that all writers of a contest want, by its name and by its path.
pub const REALM: &str = "a";
pub const PATH: &str = "/luke/a/card";

/// One way to hold locks, and another writer that may only get in when the realm is free.
pub struct Contest {
    /// How the locks are held.
    pub strategy: &'static str,
    /// The locks under test.
    pub locks: RealmLocks,
    /// Independent locks on the same database. In process, the same locks.
    pub other: RealmLocks,
    pub room: Room,
}

/// A contest for each way to hold locks.
pub async fn contests(database: &TestDatabase) -> Vec<Contest> {
    let mut contests = Vec::new();
    for (strategy, [locks, other]) in strategies(database).await {
        contests.push(Contest {
            strategy,
            locks,
            other,
            room: Room::default(),
        });
    }
    contests
}

impl Contest {
    /// Whether the locks are those of PostgreSQL.
    pub fn is_in_database(&self) -> bool {
        self.strategy != "in process"
    }

    /// Lets another writer ask for the realm. Returns when that writer waits.
    ///
    /// # Panics
    /// When it gets in.
    pub async fn rival_that_waits(&self, database: &TestDatabase) -> Rival {
        self.rival_that_waits_for(database, REALM).await
    }

    /// The same for another realm.
    pub async fn rival_that_waits_for(&self, database: &TestDatabase, name: &str) -> Rival {
        let rival = rival(&self.other, &self.room, name);
        let wanted = whole([name]);
        let what = format!("a rival that waits or gets in ({})", self.strategy);
        wait_until(&what, async || {
            let waits = if self.is_in_database() {
                database.advisory_locks(realm_key(name)).await.1 == 1
            } else {
                let mut all = self.other.status().into_iter();
                all.any(|status| !status.is_held() && *status.claim() == wanted)
            };
            waits || rival.is_inside()
        })
        .await;
        rival.assert_waits(self.strategy);
        rival
    }

    /// Fails unless another writer gets in and no two writers were ever inside together.
    pub async fn assert_free(&self) {
        rival(&self.other, &self.room, REALM).enters().await;
        self.room.assert_alone(self.strategy);
    }
}

/// Lets a writer ask for a realm: it enters the room, and leaves it at once.
pub fn rival(locks: &RealmLocks, room: &Room, name: &str) -> Rival {
    let (locks, room, claim) = (locks.clone(), room.clone(), whole([name]));
    let is_inside = Arc::new(AtomicBool::new(false));
    let enter = Arc::clone(&is_inside);
    let task = tokio::spawn(async move {
        let work = |_| async move {
            let visit = room.enter("the rival");
            enter.store(true, Ordering::SeqCst);
            tokio::task::yield_now().await;
            drop(visit);
            Ok(())
        };
        locks.with_write_lock(claim, work).await
    });
    Rival { is_inside, task }
}

/// Another writer.
pub struct Rival {
    is_inside: Arc<AtomicBool>,
    task: JoinHandle<Result<(), LockError>>,
}

impl Rival {
    /// Whether it has been granted its lock.
    pub fn is_inside(&self) -> bool {
        self.is_inside.load(Ordering::SeqCst)
    }

    /// Fails if it is inside.
    pub fn assert_waits(&self, strategy: &str) {
        assert!(!self.is_inside(), "another writer got in ({strategy})");
    }

    /// Waits until it has been inside and has ended well.
    pub async fn enters(self) {
        let ended = timeout(PATIENCE, self.task).await;
        let ended = ended.expect("the rival gets in in time").expect("no panic");
        ended.expect("the rival's success");
    }
}

/// A place for one writer at a time. All parts of one writer's work enter under the same name.
#[derive(Clone, Default)]
pub struct Room(Arc<Mutex<Visitors>>);

#[derive(Default)]
struct Visitors {
    inside: Vec<&'static str>,
    violations: Vec<[&'static str; 2]>,
}

/// The presence of a part of a writer's work in the room.
pub struct Visit {
    room: Room,
    writer: &'static str,
}

impl Room {
    /// Enters the room, and records a violation if another writer is inside.
    pub fn enter(&self, writer: &'static str) -> Visit {
        let mut visitors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = visitors.inside.iter().find(|inside| **inside != writer) {
            let violation = [*other, writer];
            visitors.violations.push(violation);
        }
        visitors.inside.push(writer);
        drop(visitors);
        Visit {
            room: self.clone(),
            writer,
        }
    }

    /// Fails if two writers were ever inside together.
    pub fn assert_alone(&self, strategy: &str) {
        let visitors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let violations = &visitors.violations;
        assert!(violations.is_empty(), "{strategy}: {violations:?}");
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visitors = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = visitors.inside.iter().position(|it| *it == self.writer);
        if let Some(place) = place {
            visitors.inside.swap_remove(place);
        }
    }
}

/// Work that enters the room and stays there until the test ends it.
pub fn gated_work(room: &Room, writer: &'static str) -> (GatedWork, Control) {
    let (enter, entered) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let (finish, finished) = oneshot::channel();
    let work = GatedWork {
        room: room.clone(),
        writer,
        enter,
        ended,
        finish,
    };
    let control = Control {
        entered: Some(entered),
        end: Some(end),
        finished,
    };
    (work, control)
}

/// The work's side of [`gated_work`].
pub struct GatedWork {
    room: Room,
    writer: &'static str,
    enter: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<(), LockError>>,
    finish: oneshot::Sender<()>,
}

impl GatedWork {
    /// Runs the work.
    pub async fn run(self) -> Result<(), LockError> {
        let visit = self.room.enter(self.writer);
        let _ = self.enter.send(());
        let ended = self.ended.await.expect("the test ends it");
        drop(visit);
        let _ = self.finish.send(());
        ended
    }
}

/// The test's side of [`gated_work`].
pub struct Control {
    entered: Option<oneshot::Receiver<()>>,
    end: Option<oneshot::Sender<Result<(), LockError>>>,
    finished: oneshot::Receiver<()>,
}

impl Control {
    /// Waits until the work is inside.
    pub async fn entered(&mut self) {
        let entered = self.entered.take().expect("waited for once");
        let entered = timeout(PATIENCE, entered).await;
        entered
            .expect("the work begins in time")
            .expect("the work begins");
    }

    /// Lets the work end in the given way. Without effect if the work was dropped.
    pub fn end(&mut self, outcome: Result<(), LockError>) {
        let end = self.end.take().expect("ended once");
        let _ = end.send(outcome);
    }

    /// Waits until the work is over; whether it ran to completion.
    pub async fn ran_to_completion(&mut self) -> bool {
        let over = timeout(PATIENCE, &mut self.finished).await;
        over.expect("the work is over in time").is_ok()
    }

    /// Fails unless the work is dropped before its end.
    pub async fn dropped(&mut self) {
        assert!(!self.ran_to_completion().await, "the work went on");
    }
}

/// The claim that all writers of a contest make.
pub fn claim() -> Claim {
    whole([REALM])
}
