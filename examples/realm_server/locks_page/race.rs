//! A bounded race of two writers on a scratch realm: with the lock and without.
//!
//! Both change a field of their own in one card, at the same moment, round after round, through the routes and the store
//! that serve every realm. The realm's URL and its directory are the race's own, and the directory goes with it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Collected};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use thiserror::Error;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower_realm_lock::{ConfigError, RealmLocks};
use url::Url;
use uuid::Uuid;

use crate::cards::Cards;
use crate::error::JSON_API;
use crate::locks::{self, Layers};
use crate::routes::router;
use crate::store::{Fault, Store};

const ROUNDS: usize = 20;

/// The time between a writer's read and its write.
const WRITE_DELAY: Duration = Duration::from_millis(4);

/// No round begins later than this after the first one of its kind: the two kinds together take less than 5 s.
const LIMIT: Duration = Duration::from_millis(1500);

/// How long one write waits for its lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(750);

/// No server has this origin (RFC 2606), so that no tenant's realm has the scratch realm's URL.
const ORIGIN: &str = "https://race.invalid";

/// Races of this process, one at a time.
pub struct Races {
    locks: RealmLocks,
    /// The locks in words.
    lock: String,
    turn: Arc<Semaphore>,
}

/// What became of the writes.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// How the writes of `with_lock` were locked.
    pub lock: String,
    pub with_lock: Tally,
    pub without_lock: Tally,
}

/// The writes of one kind.
#[derive(Debug, Serialize)]
pub struct Tally {
    /// How many were answered with 200.
    pub acknowledged: usize,
    /// How many of those the card still has at the end, and how many not.
    pub kept: usize,
    pub lost: usize,
    /// The fate of each write: a list for each writer, in order.
    pub writers: [Vec<Fate>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Kept,
    /// Answered with 200, and gone.
    Lost,
    /// Not answered with 200: the lock was refused.
    Refused,
}

/// Why there is no outcome.
#[derive(Debug, Error)]
pub enum RaceError {
    #[error("a race is running; wait for it to end")]
    Running,
    #[error("the scratch realm has no directory")]
    Directory(#[from] io::Error),
    #[error("the scratch realm has no URL")]
    Realm(#[from] ConfigError),
    #[error("the race was cut off")]
    CutOff,
    #[error("the scratch realm answered {0} to its own {1}")]
    Answer(StatusCode, &'static str),
}

impl Races {
    /// Races under these locks; under some in process where the server has none.
    pub fn new(locks: Option<RealmLocks>, lock: &str) -> Self {
        let lock = match locks {
            Some(_) => lock,
            None => "in-process, for this race",
        };
        Self {
            lock: lock.to_owned(),
            locks: locks.unwrap_or_else(RealmLocks::in_process),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Runs a race to its end, even if this future is dropped.
    pub async fn run(&self) -> Result<Outcome, RaceError> {
        let turn = Arc::clone(&self.turn);
        let turn = turn.try_acquire_owned().map_err(|_| RaceError::Running)?;
        let base_url = Url::parse(ORIGIN).map_err(|_| RaceError::CutOff)?;
        let locks = self.locks.clone().acquire_timeout(ACQUIRE_TIMEOUT);
        let layers = locks::layers(&locks, &base_url, false)?;
        let lock = self.lock.clone();
        let race = tokio::spawn(async move {
            let _turn = turn;
            Ok(Outcome {
                lock,
                without_lock: Track::new(&base_url, None)?.run().await?,
                with_lock: Track::new(&base_url, Some(&layers))?.run().await?,
            })
        });
        race.await.unwrap_or(Err(RaceError::CutOff))
    }
}

/// A scratch realm with one card, and the routes to it.
struct Track {
    router: Router,
    realm: String,
    _directory: TempDir,
}

impl Track {
    fn new(base_url: &Url, layers: Option<&Layers>) -> Result<Self, RaceError> {
        let directory = TempDir::with_prefix("realm-race-")?;
        let store = Arc::new(Store {
            root: directory.path().to_owned(),
            write_delay: WRITE_DELAY,
            // Tokens come from locks, and one of the two kinds has none.
            fencing: false,
            fault: Fault::default(),
        });
        let cards = Cards {
            store,
            base_url: base_url.clone(),
            locks: None,
            rows: false,
            cache: None,
        };
        Ok(Self {
            router: router(cards, layers),
            realm: format!("/scratch/{}/", Uuid::new_v4()),
            _directory: directory,
        })
    }

    async fn run(self) -> Result<Tally, RaceError> {
        let card =
            json!({"atomic:operations": [{"op": "add", "href": "card", "data": {"type": "card"}}]});
        let (status, _) = self.send(Method::POST, "_atomic", &card).await;
        if status != StatusCode::CREATED {
            return Err(RaceError::Answer(status, "POST"));
        }
        let mut answers = [Vec::new(), Vec::new()];
        let begun = Instant::now();
        for round in 0..ROUNDS {
            if begun.elapsed() > LIMIT {
                break;
            }
            let both = tokio::join!(self.write(0, round), self.write(1, round));
            answers[0].push(both.0);
            answers[1].push(both.1);
        }
        let (status, card) = self.send(Method::GET, "card", &Value::Null).await;
        match card["data"]["attributes"].as_object() {
            Some(stored) => Ok(Tally::of(&answers, stored)),
            None => Err(RaceError::Answer(status, "GET")),
        }
    }

    /// Changes this round's field of one writer; whether it was told that this has been done.
    async fn write(&self, writer: usize, round: usize) -> bool {
        let patch = json!({"data": {"attributes": {field(writer, round): true}}});
        let (status, _) = self.send(Method::PATCH, "card", &patch).await;
        status == StatusCode::OK
    }

    async fn send(&self, method: Method, path: &str, document: &Value) -> (StatusCode, Value) {
        let mut request = Request::new(Body::from(document.to_string()));
        *request.method_mut() = method;
        request.headers_mut().insert(CONTENT_TYPE, JSON_API);
        let Ok(uri) = format!("{}{path}", self.realm).parse() else {
            return (StatusCode::BAD_REQUEST, Value::Null);
        };
        *request.uri_mut() = uri;
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

impl Tally {
    fn of(answers: &[Vec<bool>; 2], stored: &Map<String, Value>) -> Self {
        let fates = |writer: usize| -> Vec<Fate> {
            let answers = answers[writer].iter().enumerate();
            answers
                .map(|(round, acknowledged)| {
                    match (acknowledged, stored.contains_key(&field(writer, round))) {
                        (false, _) => Fate::Refused,
                        (true, true) => Fate::Kept,
                        (true, false) => Fate::Lost,
                    }
                })
                .collect()
        };
        let writers = [fates(0), fates(1)];
        let count = |fate| writers.iter().flatten().filter(|it| **it == fate).count();
        let (kept, lost) = (count(Fate::Kept), count(Fate::Lost));
        Self {
            acknowledged: kept + lost,
            kept,
            lost,
            writers,
        }
    }
}

fn field(writer: usize, round: usize) -> String {
    format!("writer{writer}-round{round}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn writes_are_lost_without_the_lock_and_none_with_it() {
        for locks in [Some(RealmLocks::in_process()), None] {
            let races = Races::new(locks, "in-process");
            let outcome = races.run().await.unwrap();
            assert!(outcome.without_lock.lost > 0, "{outcome:?}");
            assert_eq!(outcome.with_lock.lost, 0, "{outcome:?}");
            for tally in [&outcome.with_lock, &outcome.without_lock] {
                assert!(tally.acknowledged > 0, "{outcome:?}");
                assert_eq!(tally.kept + tally.lost, tally.acknowledged, "{outcome:?}");
            }
        }
    }

    #[tokio::test]
    async fn one_race_runs_at_a_time() {
        let races = Races::new(None, "off");
        let (one, other) = tokio::join!(races.run(), races.run());
        assert!(one.is_ok());
        assert!(matches!(other, Err(RaceError::Running)), "{other:?}");
        assert!(races.run().await.is_ok());
    }

    #[test]
    fn a_fate_is_told_by_answer_and_card() {
        let stored = json!({"writer0-round0": true, "writer1-round1": true});
        let answers = [vec![true, true], vec![false, false]];
        let tally = Tally::of(&answers, stored.as_object().unwrap());
        assert_eq!((tally.acknowledged, tally.kept, tally.lost), (2, 1, 1));
        assert_eq!(
            tally.writers,
            [
                vec![Fate::Kept, Fate::Lost],
                vec![Fate::Refused, Fate::Refused]
            ]
        );
    }
}
