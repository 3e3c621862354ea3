//! Locks of a realm server of cardstack/boxel, in Node with its own driver, and locks of this crate.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::{fs, thread};

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower_realm_lock::{
    Claim, LockError, LockKey, LockRules, RealmLocks, RealmUrl, RealmWriteLockLayer, Scope,
};

use super::{REALM, layer_on};
use crate::support::claims::work;
use crate::support::database::{TestDatabase, database};
use crate::support::gate::postgres_locks_with;
use crate::support::log::Log;
use crate::support::wait::{PATIENCE, wait_until};

/// The other server.
struct Upstream {
    node: Child,
    commands: ChildStdin,
    events: mpsc::UnboundedReceiver<Value>,
}

impl Upstream {
    /// `None` where there is no Node, which is said.
    fn start(database: &TestDatabase) -> Option<Self> {
        let modules = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("node/node_modules");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/locks.js");
        let started = Command::new("node")
            .arg(script)
            .env("NODE_PATH", &modules)
            .env("DATABASE_URL", database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut node) = started else {
            eprintln!("NOT CHECKED: there is no `node` in PATH to lock as a server of Boxel does");
            return None;
        };
        let problem = "scripts/setup installs Node's driver `pg`";
        assert!(modules.join("pg").is_dir(), "{problem}");
        let (send, events) = mpsc::unbounded_channel();
        let output = BufReader::new(node.stdout.take().unwrap());
        thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.for_each(|line| drop(send.send(serde_json::from_str(&line).unwrap())));
        });
        let commands = node.stdin.take().unwrap();
        Some(Self {
            node,
            commands,
            events,
        })
    }

    fn tell(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").unwrap();
    }

    async fn says(&mut self, event: &Value) {
        let said = timeout(6 * PATIENCE, self.events.recv()).await;
        assert_eq!(said.expect("an event in time").as_ref(), Some(event));
    }

    async fn holds(&mut self, lock: &Value) {
        self.tell(&json!({"id": 1, "lock": lock}));
        self.says(&json!({"id": 1, "held": true})).await;
    }

    async fn releases(&mut self) {
        self.tell(&json!({"id": 1, "release": true}));
        self.says(&json!({"id": 1, "released": true})).await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

/// Waits until a lock of either side is waited for.
async fn somebody_waits(database: &TestDatabase, what: &str) {
    let client = database.connect().await;
    let waiting = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    wait_until(what, async || {
        client.query_one(waiting, &[]).await.unwrap().get(0)
    })
    .await;
}

/// A layer whose cards are files, as the example server's are.
async fn cards_layer(database: &TestDatabase) -> RealmWriteLockLayer {
    let card = Scope::resource().named_by(|path| format!("{path}.json"));
    let rules = LockRules::new()
        .scope(Method::PATCH, "/{owner}/{realm}/{*card}", card)
        .unwrap();
    layer_on(database).await.rules(rules).unwrap()
}

/// What upstream locks, what is locked here, and whether they exclude each other.
fn cases(layer: &RealmWriteLockLayer) -> Vec<(Value, Claim, bool)> {
    let url = |name: &str| format!("http://localhost:4201/luke/{name}/");
    let files = |name: &str, paths: &[&str]| json!({"url": url(name), "paths": paths});
    let realm = |name: &str| json!({"url": url(name)});
    let card = |path: &str| layer.explain(&Method::PATCH, path).claim().unwrap().clone();
    let lifecycle = |path: &str| layer.explain(&Method::POST, path).claim().unwrap().clone();
    let mine: RealmUrl = REALM.parse().unwrap();
    let many = Claim::resources(&mine, (0..257).map(|number| format!("{number}.json")));
    let cost = |id: &str| Claim::from(LockKey::in_space("cost-barrier", id).unwrap());
    vec![
        (
            files("my-realm", &["a.json"]),
            card("/luke/my-realm/a"),
            true,
        ),
        (
            files("my-realm", &["b.json", "Widget/one.json"]),
            card("/luke/my-realm/Widget/one"),
            true,
        ),
        (
            files("my-realm", &["a.json"]),
            card("/luke/my-realm/b"),
            false,
        ),
        (files("other", &["a.json"]), card("/luke/my-realm/a"), false),
        // A realm that is published or deleted.
        (
            files("my-realm", &["a.json"]),
            lifecycle("/luke/my-realm/_publish"),
            true,
        ),
        (realm("my-realm"), card("/luke/my-realm/a"), true),
        (
            realm("my-realm"),
            lifecycle("/luke/my-realm/_publish"),
            true,
        ),
        (realm("my-realm"), lifecycle("/luke/other/_publish"), false),
        // A write that names no file, and one that names too many.
        (
            files("my-realm", &[]),
            lifecycle("/luke/my-realm/_publish"),
            true,
        ),
        (files("my-realm", &[]), card("/luke/my-realm/a"), false),
        (realm("my-realm"), Claim::resources::<&str>(&mine, []), true),
        (files("my-realm", &["other.json"]), many, true),
        // As `decodeURI` writes them.
        (realm("büro"), lifecycle("/luke/b%C3%BCro/_publish"), true),
        (realm("a b"), card("/luke/a%20b/x"), true),
        (
            realm("a%25b+c@d"),
            lifecycle("/luke/a%25b+c@d/_publish"),
            true,
        ),
        (
            files("büro", &["café/a b%23.json"]),
            card("/luke/b%C3%BCro/caf%C3%A9/a%20b%23"),
            true,
        ),
        (
            files("büro", &["café/a.json"]),
            card("/luke/b%C3%BCro/cafe/a"),
            false,
        ),
        (
            json!({"user": "@luke:localhost"}),
            cost("@luke:localhost"),
            true,
        ),
        (
            json!({"user": "@luke:localhost"}),
            cost("@leia:localhost"),
            false,
        ),
    ]
}

#[tokio::test]
async fn files_and_realms_exclude_each_other_as_upstreams_do_in_both_directions() {
    let database = database().await;
    let Some(mut upstream) = Upstream::start(&database) else {
        return;
    };
    let layer = cards_layer(&database).await;
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |it| it.sessions(sessions)).await;
        for (lock, claim, excludes) in cases(&layer) {
            let what = format!("{lock} {claim}");
            upstream.holds(&lock).await;
            let mut here = work(&locks, &claim);
            if excludes {
                somebody_waits(&database, &what).await;
                assert!(here.waits(), "{what}");
                upstream.releases().await;
                here.inside().await.end().await;
            } else {
                here.inside().await.end().await;
                upstream.releases().await;
            }

            let inside = work(&locks, &claim).inside().await;
            upstream.tell(&json!({"id": 1, "lock": lock}));
            if excludes {
                somebody_waits(&database, &what).await;
                assert!(upstream.events.is_empty(), "{what}");
                inside.end().await;
                upstream.says(&json!({"id": 1, "held": true})).await;
            } else {
                upstream.says(&json!({"id": 1, "held": true})).await;
                inside.end().await;
            }
            upstream.releases().await;
        }
    }
}

#[tokio::test]
async fn a_hold_that_is_released_early_lets_upstream_in_while_its_work_goes_on() {
    let database = database().await;
    let Some(mut upstream) = Upstream::start(&database) else {
        return;
    };
    let locks = postgres_locks_with(database.url(), |it| it).await;
    let (released, is_released) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let realm: RealmUrl = REALM.parse().unwrap();
    let write = tokio::spawn(async move {
        let claim = Claim::resources(&realm, ["a.json"]);
        let work = |held: tower_realm_lock::HeldLock| async move {
            held.release().await?;
            released.send(()).unwrap();
            ended.await.unwrap();
            Ok::<_, LockError>(())
        };
        locks.with_write_lock(claim, work).await
    });
    is_released.await.unwrap();
    upstream
        .holds(&json!({"url": REALM, "paths": ["a.json"]}))
        .await;
    end.send(()).unwrap();
    write.await.unwrap().unwrap();
    upstream.releases().await;
}

/// Rounds of each of eight writers, four here and four there.
const ROUNDS: usize = 125;
const FILES: [&str; 5] = ["a.json", "b.json", "c.json", "d.json", "e.json"];

/// Adds one to the counter of each of three files that it locks, of others in each round.
async fn count(locks: &RealmLocks, directory: &Path, round: usize) -> Result<(), LockError> {
    let mut paths = FILES;
    paths.rotate_left(round % FILES.len());
    let (realm, directory) = (REALM.parse::<RealmUrl>().unwrap(), directory.to_owned());
    let claim = Claim::resources(&realm, &paths[..3]);
    let work = move |_| async move {
        for path in &paths[..3] {
            let file = directory.join(path);
            let count: usize = fs::read_to_string(&file).unwrap().parse().unwrap();
            tokio::task::yield_now().await;
            fs::write(&file, (count + 1).to_string()).unwrap();
        }
        Ok(())
    };
    locks.with_write_lock(claim, work).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_files_in_any_order_neither_deadlock_nor_lose_a_write() {
    let database = database().await;
    let Some(mut upstream) = Upstream::start(&database) else {
        return;
    };
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |it| it.sessions(sessions)).await;
        let directory = tempfile::tempdir().unwrap();
        for path in FILES {
            fs::write(directory.path().join(path), "0").unwrap();
        }
        for id in 0..4 {
            let (directory, lock) = (directory.path(), json!({"url": REALM, "paths": FILES}));
            let rounds = json!({"id": id, "rounds": ROUNDS, "directory": directory, "lock": lock});
            upstream.tell(&rounds);
        }
        let log = Log::collect();
        let writers = (0..4).map(async |writer| {
            for round in 0..ROUNDS {
                count(&locks, directory.path(), round + writer)
                    .await
                    .unwrap();
            }
        });
        join_all(writers).await;
        // One here would be asked for again.
        let warned = log.take_at("WARN");
        assert!(warned.is_empty(), "{warned:?}");
        for _ in 0..4 {
            let done = timeout(6 * PATIENCE, upstream.events.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(done["done"], json!([]), "{done}");
        }
        let counts = FILES.map(|path| {
            let count = fs::read_to_string(directory.path().join(path)).unwrap();
            count.parse::<usize>().unwrap()
        });
        assert_eq!(counts.iter().sum::<usize>(), 3 * 8 * ROUNDS, "{counts:?}");
    }
}
