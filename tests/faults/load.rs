//! The clients: each writes to one card after another at its replica, and notes what it was told.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use tokio::time::{sleep, timeout};

use crate::fleet::{Fleet, Replica};
use crate::random::Random;
use crate::support::history::{Outcome, Request};

/// The cards that are written, each in its realm.
pub const CARDS: [&str; 8] = [
    "luke/a/x",
    "luke/b/x",
    "luke/a/y",
    "leia/a/x",
    "leia/b/x",
    "leia/b/y",
    "han/a/x",
    "chewie/a/x",
];

/// Every other request is for one of the first few cards, so that locks are handed on there. In the realms of the others a lock is
/// often free, so that sessions get theirs.
const BUSY: usize = 2;

/// Every so many requests one locks its card alone, and the others their realm whole.
const CARD_ONCE_IN: u64 = 4;

/// How many clients each replica has.
const CLIENTS: usize = 8;

/// How long a client waits for an answer, and how soon one leaves that leaves early.
const PATIENCE: Duration = Duration::from_secs(3);
const IMPATIENCE: RangeInclusive<u64> = 0..=15;

/// Every so many requests one is left early.
const LEAVE_ONCE_IN: u64 = 30;

/// Every so many handlers one takes longer than the others, for faults to hit it.
const SLOW_ONCE_IN: u64 = 20;
const SLOW: RangeInclusive<u64> = 20..=150;

/// How long a client waits after an answer that is no success.
const PAUSE: Duration = Duration::from_millis(10);

/// A request that was sent, and when.
pub struct Sent {
    pub request: Request,
    pub begun: Instant,
    pub ended: Instant,
}

/// Clients that write until they are stopped.
pub struct Load {
    stopped: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<Sent>>>,
}

impl Load {
    /// `delay` is how many milliseconds a handler takes between reading and writing.
    pub fn start(fleet: &Arc<Fleet>, random: &mut Random, delay: &RangeInclusive<u64>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let clients = (0..fleet.replicas.len() * CLIENTS)
            .map(|number| {
                let client = Client {
                    number,
                    fleet: Arc::clone(fleet),
                    http: http(),
                    random: Random::new(random.next()),
                    delay: delay.clone(),
                };
                tokio::spawn(client.write_until(Arc::clone(&stopped)))
            })
            .collect();
        Self { stopped, clients }
    }

    /// Lets every client end its request, and gives all that were sent.
    pub async fn stop(self) -> Vec<Sent> {
        self.stopped.store(true, Ordering::Relaxed);
        let mut sent = Vec::new();
        for client in self.clients {
            sent.extend(client.await.expect("a client does not panic"));
        }
        sent
    }
}

/// A client that sends nothing twice.
fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .retry(reqwest::retry::never())
        .build()
        .expect("a plain HTTP client can always be built")
}

struct Client {
    number: usize,
    fleet: Arc<Fleet>,
    http: reqwest::Client,
    random: Random,
    delay: RangeInclusive<u64>,
}

impl Client {
    async fn write_until(mut self, stopped: Arc<AtomicBool>) -> Vec<Sent> {
        let fleet = Arc::clone(&self.fleet);
        let replica = &fleet.replicas[self.number % fleet.replicas.len()];
        let mut sent: Vec<Sent> = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let id = format!("{}-{}", self.number, sent.len());
            sent.push(self.write(replica, id).await);
            if sent
                .last()
                .is_some_and(|it| it.request.outcome != Outcome::Acknowledged)
            {
                sleep(PAUSE).await;
            }
        }
        sent
    }

    async fn write(&mut self, replica: &Replica, id: String) -> Sent {
        let cards = if self.random.once_in(2) {
            &CARDS[..BUSY]
        } else {
            &CARDS[..]
        };
        let card = cards[self.random.index(cards.len())];
        let method = if self.random.once_in(CARD_ONCE_IN) {
            Method::PATCH
        } else {
            Method::POST
        };
        let delay = if self.random.once_in(SLOW_ONCE_IN) {
            &SLOW
        } else {
            &self.delay
        };
        let delay = self.random.milliseconds(delay).as_millis();
        let patience = if self.random.once_in(LEAVE_ONCE_IN) {
            self.random.milliseconds(&IMPATIENCE)
        } else {
            PATIENCE
        };
        let origin = replica.origin().await;
        let url = format!("{origin}/{card}/{id}?delay={delay}");
        let begun = Instant::now();
        let mut leave = replica.leave.subscribe();
        let outcome = tokio::select! {
            outcome = timeout(patience, answer(self.http.request(method, url))) => outcome.ok().flatten(),
            _ = leave.changed() => None,
        };
        Sent {
            request: Request {
                id,
                realm: card.to_owned(),
                outcome: outcome.unwrap_or(Outcome::Unknown),
            },
            begun,
            ended: Instant::now(),
        }
    }
}

/// What the replica answers; `None` if its connection breaks first.
async fn answer(request: reqwest::RequestBuilder) -> Option<Outcome> {
    let response = request.send().await.ok()?;
    let status = response.status();
    if status.is_success() {
        return Some(Outcome::Acknowledged);
    }
    let body = response.text().await.ok()?;
    let problem: Option<serde_json::Value> = serde_json::from_str(&body).ok();
    let kind = problem
        .as_ref()
        .and_then(|problem| problem["type"].as_str());
    let code = kind.and_then(|kind| kind.split_once('#'));
    Some(Outcome::Refused(match code {
        Some((_, code)) => code.to_owned(),
        None => status.as_str().to_owned(),
    }))
}
