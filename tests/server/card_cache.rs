//! Two replicas keep cards in memory, and tell each other of their writes: a read is new soon after every write, and never goes
//! back.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tempfile::TempDir;

use crate::support::client::{CardClient, card};
use crate::support::database::{TestDatabase, database, try_connect, with_database};
use crate::support::gate::{ORIGIN, key};
use crate::support::replica::Replica;
use crate::support::wait::{PATIENCE, wait_for, wait_until};

const ROUNDS: u64 = 200;
const CARD: &str = "/luke/a/card";

/// Two replicas that cache, and a card with a number.
struct Caches {
    both: [Replica; 2],
    client: CardClient,
    data: TempDir,
    database: TestDatabase,
}

impl Caches {
    async fn start(flags: &[&str]) -> Self {
        let database = database().await;
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().to_str().unwrap();
        let mut all = vec![
            "--base-url",
            ORIGIN,
            "--data-dir",
            dir,
            "--database-url",
            database.url(),
        ];
        all.extend(["--cache-cards", "100"]);
        all.extend(flags);
        let caches = Self {
            both: [Replica::start(&all).await, Replica::start(&all).await],
            client: CardClient::new(),
            database,
            data,
        };
        let add = json!({"op": "add", "href": "card.json", "data": card(json!({"n": 0}))["data"]});
        let url = caches.both[0].url("/luke/a/_atomic");
        let (status, answer) = caches
            .client
            .post(&url, &json!({"atomic:operations": [add]}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        for replica in [0, 1] {
            assert_eq!(caches.read(replica).await, 0);
        }
        caches
    }

    async fn write(&self, replica: usize, n: u64) {
        let (status, answer) = self.try_write(replica, n).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    async fn try_write(&self, replica: usize, n: u64) -> (StatusCode, serde_json::Value) {
        self.client
            .patch(&self.both[replica].url(CARD), &card(json!({"n": n})))
            .await
    }

    async fn read(&self, replica: usize) -> u64 {
        let (status, document) = self.client.get(&self.both[replica].url(CARD)).await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document["data"]["attributes"]["n"].as_u64().unwrap()
    }

    /// Waits until a replica reads this number; on the way it must never go back. How many reads that took.
    async fn wait_for(&self, replica: usize, n: u64, patience: Duration) -> usize {
        let (mut seen, mut reads) = (0, 0);
        wait_for("a read of the last write", patience, async || {
            let now = self.read(replica).await;
            assert!(now >= seen, "{now} after {seen}");
            (seen, reads) = (now, reads + 1);
            if now == n {
                Ok(())
            } else {
                Err(format!("{now}, not {n}"))
            }
        })
        .await;
        reads
    }

    /// Writes the card's file past the replicas, as nobody should.
    fn write_behind_their_backs(&self, n: u64) {
        let document = card(json!({"n": n})).to_string();
        std::fs::write(self.data.path().join("luke/a/card.json"), document).unwrap();
    }
}

#[tokio::test]
async fn a_card_that_was_read_is_not_read_from_its_file_again() {
    // The event of the card's first write may come after it was read.
    let caches = Caches::start(&["--no-broadcast"]).await;
    caches.write_behind_their_backs(7);
    for _ in 0..10 {
        assert_eq!([caches.read(0).await, caches.read(1).await], [0, 0]);
    }
}

#[tokio::test]
async fn with_the_broadcast_every_write_is_read_at_the_other_replica_within_a_second() {
    let caches = Caches::start(&[]).await;
    let mut more = 0;
    for n in 1..=ROUNDS {
        let writer = usize::from(n % 3 == 0);
        caches.write(writer, n).await;
        assert_eq!(caches.read(writer).await, n, "its own write");
        let reads = caches.wait_for(1 - writer, n, Duration::from_secs(1)).await;
        more += usize::from(reads > 1);
    }
    println!("{ROUNDS} writes, {more} of them not seen by the first read elsewhere");
}

#[tokio::test]
async fn without_the_broadcast_reads_stay_old() {
    let caches = Caches::start(&["--no-broadcast"]).await;
    caches.write(0, 1).await;
    assert_eq!(caches.read(0).await, 1, "its own write");
    for _ in 0..200 {
        assert_eq!(caches.read(1).await, 0);
    }
}

#[tokio::test]
async fn readers_of_a_card_that_is_written_all_the_time_never_see_it_go_back() {
    let caches = Caches::start(&[]).await;
    let caches = &caches;
    let done = std::sync::atomic::AtomicBool::new(false);
    let reader = async |replica: usize| {
        let (mut seen, mut reads) = (0, 0_u64);
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            let now = caches.read(replica).await;
            assert!(now >= seen, "replica {replica}: {now} after {seen}");
            (seen, reads) = (now, reads + 1);
        }
        reads
    };
    let writer = async {
        for n in 1..=ROUNDS {
            caches.write(usize::from(n % 2 == 0), n).await;
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let (reads, ..) = tokio::join!(reader(0), reader(0), reader(1), reader(1), writer);
    assert!(reads > 0);
    for replica in [0, 1] {
        caches
            .wait_for(replica, ROUNDS, Duration::from_secs(1))
            .await;
    }
}

#[tokio::test]
async fn a_replica_that_cannot_be_told_reads_files() {
    let caches = Caches::start(&[]).await;
    let database = &caches.database;
    let server = try_connect(&with_database(database.url(), "postgres"))
        .await
        .unwrap();
    let allow = async |connections: bool| {
        let alter = format!(
            "ALTER DATABASE {} ALLOW_CONNECTIONS {connections}",
            database.name()
        );
        server.batch_execute(&alter).await.unwrap();
    };
    allow(false).await;
    // Lock connections go on. A listener's last statement is its LISTEN, or an empty one.
    let ended = server
        .query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = $1 AND (query = '' OR query LIKE 'LISTEN%')",
            &[&database.name()],
        )
        .await
        .unwrap();
    assert_eq!(ended.len(), 2, "a listener for each replica");
    caches.write(0, 1).await;
    caches.wait_for(1, 1, PATIENCE).await;
    // Not once more from memory.
    caches.write(0, 2).await;
    assert_eq!(caches.read(1).await, 2);
    allow(true).await;
    // It is told again, and what it has read before that it does not keep.
    wait_for("cards to be kept again", PATIENCE, async || {
        let mut read = [0; 2];
        for (at, n) in [2, 3].into_iter().enumerate() {
            caches.write_behind_their_backs(n);
            read[at] = caches.read(1).await;
        }
        if read[0] == read[1] {
            Ok(())
        } else {
            Err("they are read from files".to_owned())
        }
    })
    .await;
    caches.write(0, 4).await;
    caches.wait_for(1, 4, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_write_that_lost_its_lock_is_read_nowhere() {
    let caches = Caches::start(&["--write-delay", "400"]).await;
    let database = &caches.database;
    let write = caches.try_write(0, 1);
    let lose = async {
        database.wait_for_granted(key("/luke/a"), 1).await;
        let pid = database.holder_pid(key("/luke/a")).await.unwrap();
        database.terminate(pid).await;
    };
    let ((status, answer), ()) = tokio::join!(write, lose);
    assert_eq!(
        (status.as_u16(), &answer["errors"][0]["code"]),
        (503, &json!("lock-lost"))
    );
    // Its file work goes on, and finds out before the card would change.
    let ended = async || !caches.both[0].is_writing();
    wait_until("the end of its file work", ended).await;
    for replica in [1, 0] {
        assert_eq!(caches.read(replica).await, 0);
    }
    caches.write(0, 2).await;
    for replica in [1, 0] {
        caches.wait_for(replica, 2, Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn a_realm_that_is_published_again_is_read_anew_everywhere() {
    let caches = Caches::start(&[]).await;
    let body = json!({
        "sourceRealmURL": format!("{ORIGIN}/luke/a/"),
        "publishedRealmURL": format!("{ORIGIN}/luke/site/"),
    });
    let read = async |replica: usize| {
        let (_, document) = caches
            .client
            .get(&caches.both[replica].url("/luke/site/card"))
            .await;
        document["data"]["attributes"]["n"].as_u64()
    };
    for n in 1..20 {
        caches.write(0, n).await;
        let (status, answer) = caches
            .client
            .post(&caches.both[0].url("/_publish-realm"), &body)
            .await;
        assert!(status.is_success(), "{answer}");
        assert_eq!(read(0).await, Some(n), "its own publish");
        wait_for("the copy", Duration::from_secs(1), async || {
            match read(1).await {
                Some(now) if now == n => Ok(()),
                now => Err(format!("{now:?}, not {n}")),
            }
        })
        .await;
    }
}
