//! What happens on a connection's wire that the driver does not report.
//!
//! The driver gives the key that cancels a connection's statements to everybody who has its client.
//! It reports neither which prepared statements are left, nor that it is stuck because nobody reads
//! an answer or ends a COPY, nor when it last heard from the server. So the wire below the driver
//! watches the messages.
//!
//! Source: PostgreSQL manual, 55.7 *Message Formats*.

use std::fmt;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A server that owes an answer for this long, and has nothing to wait for, is taken for dead. A
/// connection on which it was not heard for as long may be.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// How many bytes of a message's body are looked at.
const LOOKED_AT: usize = 8;

/// The process id and the secret of a backend, as they stand in a CancelRequest.
pub(super) type CancelKey = [u8; 8];

/// What was seen on one wire.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    key: OnceLock<CancelKey>,
    /// How many simple queries were sent.
    queries: AtomicU64,
    /// How many named statements the driver has prepared, and not closed.
    statements: AtomicI64,
    has_loaded_library: AtomicBool,
    /// Whether the driver has found nothing left to read since its last poll began.
    is_read: AtomicBool,
    /// Whether the network takes no more for now.
    is_full: AtomicBool,
    /// Whether a TLS handshake has ended.
    is_encrypted: AtomicBool,
    heard: Moment,
    /// When the first message was sent since the server was last heard.
    asked: Moment,
}

/// A point in time that threads share.
#[derive(Debug)]
struct Moment {
    origin: Instant,
    /// After `origin`.
    nanos: AtomicU64,
}

/// What keeps a connection from taking the next statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    UnreadAnswer,
    OpenCopy,
}

/// Asks for the obstacles of one connection.
pub(super) struct Lookout {
    traffic: Arc<Traffic>,
    watches: mpsc::UnboundedSender<Watch>,
}

/// Looks for obstacles, on the task that drives the connection.
pub(super) struct Watchman {
    traffic: Arc<Traffic>,
    watches: mpsc::UnboundedReceiver<Watch>,
    /// The latest one.
    watch: Option<Watch>,
}

struct Watch {
    /// How many queries had been sent before the one that an obstacle may hold up.
    queries: u64,
    found: oneshot::Sender<Obstacle>,
}

/// Makes the two ends for a connection.
pub(super) fn lookout(traffic: &Arc<Traffic>) -> (Lookout, Watchman) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let lookout = Lookout {
        traffic: Arc::clone(traffic),
        watches: sender,
    };
    let watchman = Watchman {
        traffic: Arc::clone(traffic),
        watches: receiver,
        watch: None,
    };
    (lookout, watchman)
}

impl Lookout {
    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Resolves with what holds up a query that `send` gives to the driver; never, if nothing does.
    ///
    /// The query must have an answer of two messages at most: the driver takes that many without a
    /// reader. Nobody else may read or write meanwhile, except with such queries.
    pub(super) fn watch<T>(&self, send: impl FnOnce() -> T) -> (T, impl Future<Output = Obstacle>) {
        let queries = self.traffic.queries();
        let query = send();
        let (found, obstacle) = oneshot::channel();
        let _ = self.watches.send(Watch { queries, found });
        let obstacle = async {
            match obstacle.await {
                Ok(obstacle) => obstacle,
                // The connection has ended, or a later query is watched.
                Err(_) => pending().await,
            }
        };
        (query, obstacle)
    }
}

impl Watchman {
    /// Must be called before each poll of the driver.
    pub(super) fn begin_poll(&self) {
        self.traffic.begin_poll();
    }

    /// Looks for an obstacle after a poll that left the driver nothing to do. Resolves if the
    /// driver must be polled again before an obstacle can be seen.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(watch) = self.watch.take() {
            match self.traffic.obstacle(watch.queries) {
                Some(obstacle) => drop(watch.found.send(obstacle)),
                None => self.watch = Some(watch),
            }
        }
        let mut is_new = false;
        while let Poll::Ready(Some(watch)) = self.watches.poll_recv(cx) {
            self.watch = Some(watch);
            is_new = true;
        }
        if is_new {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnreadAnswer => {
                "the rows of a query, or the data of a COPY TO, have not been read to their end"
            }
            Self::OpenCopy => "a COPY FROM has been neither finished nor dropped",
        })
    }
}

impl Traffic {
    /// The key that the server announced; zeros, which cancel nothing, if it announced none.
    pub(super) fn cancel_key(&self) -> CancelKey {
        self.key.get().copied().unwrap_or_default()
    }

    pub(super) fn note_encryption(&self) {
        self.is_encrypted.store(true, Ordering::Release);
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted.load(Ordering::Acquire)
    }

    fn queries(&self) -> u64 {
        self.queries.load(Ordering::Acquire)
    }

    /// How many prepared statements the driver, or code that uses it, may still count on.
    pub(super) fn statements(&self) -> i64 {
        self.statements.load(Ordering::Acquire)
    }

    /// Whether a LOAD has brought a library into the session, which nothing removes.
    pub(super) fn has_loaded_library(&self) -> bool {
        self.has_loaded_library.load(Ordering::Acquire)
    }

    fn begin_poll(&self) {
        self.is_read.store(false, Ordering::Release);
    }

    /// What keeps the driver, which has just been polled, from going on with a query that it was
    /// given after it had sent `queries` queries.
    ///
    /// A driver that can go on reads until there is nothing left to read, and sends what it was
    /// given until the network is full.
    fn obstacle(&self, queries: u64) -> Option<Obstacle> {
        if !self.is_read.load(Ordering::Acquire) {
            Some(Obstacle::UnreadAnswer)
        } else if self.queries() == queries && !self.is_full.load(Ordering::Acquire) {
            Some(Obstacle::OpenCopy)
        } else {
            None
        }
    }

    pub(super) fn reading(&self, is_empty: bool) {
        self.is_read.store(is_empty, Ordering::Release);
    }

    pub(super) fn writing(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Release);
    }

    /// For how long nothing has been heard from the server.
    pub(super) fn idle(&self) -> Duration {
        self.heard.get().elapsed()
    }

    /// For how long the server has owed an answer, if it does.
    pub(super) fn silence(&self) -> Duration {
        let asked = self.asked.get();
        if asked > self.heard.get() {
            asked.elapsed()
        } else {
            Duration::ZERO
        }
    }

    pub(super) fn sent(&self, messages: &mut Messages, bytes: &[u8]) {
        if self.asked.get() <= self.heard.get() {
            self.asked.set_to_now();
        }
        messages.follow(bytes, b"QPC", |kind, body, _| match (kind, body) {
            (b'Q', [_]) => drop(self.queries.fetch_add(1, Ordering::AcqRel)),
            // The driver never closes an unnamed statement.
            (b'P', [name]) if *name != 0 => drop(self.statements.fetch_add(1, Ordering::AcqRel)),
            (b'C', [b'S']) => drop(self.statements.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        });
    }

    /// Hides the key from the driver, so that only this crate can cancel statements.
    pub(super) fn received(&self, messages: &mut Messages, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            self.heard.set_to_now();
        }
        let mut hidden = Vec::new();
        messages.follow(bytes, b"KC", |kind, body, at| match (kind, body) {
            (b'K', _) => {
                hidden.push(at);
                if let Ok(key) = body.try_into() {
                    let _ = self.key.set(key);
                }
            }
            (b'C', b"LOAD\0") => self.has_loaded_library.store(true, Ordering::Release),
            _ => {}
        });
        for at in hidden {
            bytes[at] = 0;
        }
    }
}

impl Moment {
    fn get(&self) -> Instant {
        self.origin + Duration::from_nanos(self.nanos.load(Ordering::Acquire))
    }

    fn set_to_now(&self) {
        // 584 years of nanoseconds fit.
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.store(nanos, Ordering::Release);
    }
}

impl Default for Moment {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            nanos: AtomicU64::new(0),
        }
    }
}

/// Follows the messages of one direction, however their bytes are cut.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// The kind and the length of the current message.
    head: [u8; 5],
    head_read: usize,
    body: [u8; LOOKED_AT],
    body_read: usize,
}

impl Messages {
    /// Those of a client: its first one has no kind.
    pub(super) fn of_client() -> Self {
        Self {
            head_read: 1,
            ..Self::default()
        }
    }

    /// Calls `look` for each of the first bytes of the body of a message of these kinds: with the
    /// kind, the body up to that byte, and where the byte is in `bytes`.
    fn follow(&mut self, bytes: &[u8], kinds: &[u8], mut look: impl FnMut(u8, &[u8], usize)) {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let mut step = 1;
            if self.head_read < self.head.len() {
                self.head[self.head_read] = *byte;
                self.head_read += 1;
            } else {
                let is_wanted = kinds.contains(&self.head[0]);
                if is_wanted && let Some(place) = self.body.get_mut(self.body_read) {
                    *place = *byte;
                    look(self.head[0], &self.body[..=self.body_read], at);
                } else {
                    step = (self.length() - self.body_read).min(bytes.len() - at);
                }
                self.body_read += step;
            }
            at += step;
            if self.head_read == self.head.len() && self.body_read >= self.length() {
                *self = Self::default();
            }
        }
    }

    /// The length of the body.
    fn length(&self) -> usize {
        let [_, length @ ..] = self.head;
        // It counts its own four bytes.
        (u32::from_be_bytes(length) as usize).saturating_sub(length.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let startup = message(0, b"\0\x03\0\0user\0luke\0\0")[1..].to_vec();
        let sent = [
            startup,
            message(b'P', b"s1\0SELECT Q\0\0\0"),
            message(b'P', b"\0SELECT 1\0\0\0"),
            message(b'S', b""),
            message(b'Q', b"SELECT 'QQQQQQQQ'\0"),
            message(b'P', b"s2\0SELECT C\0\0\0"),
            message(b'C', b"Ss1\0"),
        ]
        .concat();
        let key = [1, 2, 3, 4, 5, 6, 7, 8];
        let server = [
            message(b'R', &[0; 4]),
            message(b'K', &key),
            message(b'Z', b"I"),
            message(b'D', b"LOAD\0 of a row KKKKKKKK"),
            message(b'C', b"LOAD\0"),
        ];
        let received = server.concat();
        let hidden = [
            &server[0],
            &message(b'K', &[0; 8]),
            &server[2],
            &server[3],
            &server[4],
        ];
        for size in 1..=received.len() {
            let traffic = Traffic::default();
            let mut messages = Messages::of_client();
            for part in sent.chunks(size) {
                traffic.sent(&mut messages, part);
            }
            assert_eq!(traffic.queries(), 1, "in parts of {size}");
            assert_eq!(traffic.statements.load(Ordering::Relaxed), 1);

            let mut messages = Messages::default();
            let mut bytes = received.clone();
            for part in bytes.chunks_mut(size) {
                assert!(!traffic.has_loaded_library());
                traffic.received(&mut messages, part);
            }
            assert_eq!(traffic.cancel_key(), key, "in parts of {size}");
            assert!(traffic.has_loaded_library());
            assert_eq!(bytes, hidden.map(Vec::as_slice).concat());
        }
    }
}
