//! A TCP proxy in front of PostgreSQL: it counts what clients ask, and can break the network between them.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// What does not get through.
#[derive(Clone, Copy, PartialEq)]
enum Frozen {
    Nothing,
    Requests,
    Answers,
    Everything,
}

/// A running proxy; it ends with the test's runtime.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    target: (String, u16),
    frozen: watch::Sender<Frozen>,
    /// Counts the cuts; a connection ends when it changes.
    cuts: watch::Sender<u32>,
    /// Counts the black holes; what a connection sends or is sent after one has opened, vanishes.
    holes: watch::Sender<u32>,
    delay: watch::Sender<Duration>,
    drops_cancels: AtomicBool,
    hides_keys: AtomicBool,
    refuses_logins: AtomicBool,
    holds_logins: AtomicBool,
    effects: [AtomicUsize; 5],
    queries: Mutex<Vec<String>>,
    openings: Mutex<Vec<Opening>>,
}

/// What was lost because the proxy was told to.
#[derive(Clone, Copy)]
pub enum Effect {
    /// Something was sent on a connection in a black hole.
    Vanished,
    CancelDropped,
    KeyHidden,
    LoginRefused,
    LoginHeld,
}

/// How a connection ends.
enum End {
    Closed,
    Refused,
    /// It does not: both sides stay open.
    Held,
}

/// An `ErrorResponse`: `57P03` is `cannot_connect_now`.
const REFUSAL: &[u8] =
    b"E\0\0\0\x41SFATAL\0VFATAL\0C57P03\0Mthe proxy of the tests refuses logins\0\0";

/// How a `BackendKeyData` begins, which the server sends once, with other messages of the login.
const KEY_DATA: &[u8] = b"K\0\0\0\x0c";

/// With the process id and the secret.
const KEY_DATA_LENGTH: usize = KEY_DATA.len() + 8;

/// What a connection begins with, as far as it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A request for TLS. What follows it is another opening, unless it is encrypted.
    Tls,
    Login,
    Cancel,
}

impl Proxy {
    /// A proxy to the server of the given database URL.
    pub async fn to(url: &str) -> Self {
        let config: Config = url.parse().expect("a database URL");
        let host = match &config.get_hosts()[0] {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => panic!("a TCP server is needed, not {}", path.display()),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let state = Arc::new(State {
            target: (host, port),
            frozen: watch::Sender::new(Frozen::Nothing),
            cuts: watch::Sender::new(0),
            holes: watch::Sender::new(0),
            delay: watch::Sender::default(),
            drops_cancels: AtomicBool::default(),
            hides_keys: AtomicBool::default(),
            refuses_logins: AtomicBool::default(),
            holds_logins: AtomicBool::default(),
            effects: <[AtomicUsize; 5]>::default(),
            queries: Mutex::default(),
            openings: Mutex::default(),
        });
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { port, state }
    }

    /// The same database through the proxy.
    pub fn url(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (authority, path) = rest.split_once('/').expect("a database");
        let user = authority
            .rsplit_once('@')
            .map_or("postgres", |(user, _)| user);
        format!("{scheme}://{user}@127.0.0.1:{}/{path}", self.port)
    }

    /// Lets nothing through any more, in either direction, and resets nothing: a partition.
    pub fn freeze(&self) {
        self.state.frozen.send_replace(Frozen::Everything);
    }

    /// Lets the server's answers through, and no more requests.
    pub fn freeze_requests(&self) {
        self.state.frozen.send_replace(Frozen::Requests);
    }

    /// Lets requests through, and no more of the server's answers.
    pub fn freeze_answers(&self) {
        self.state.frozen.send_replace(Frozen::Answers);
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets everything through again, what was held back first.
    pub fn thaw(&self) {
        self.state.frozen.send_replace(Frozen::Nothing);
    }

    /// Breaks all connections that are open.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets the packets of all connections that are open vanish, in both directions and for ever, and resets nothing, as a
    /// NAT or a load balancer does that has forgotten them. New connections work.
    pub fn black_hole(&self) {
        self.state.holes.send_modify(|holes| *holes += 1);
    }

    /// Whether cancel requests are accepted and go nowhere, as with proxies that do not know their keys.
    pub fn drop_cancels(&self, drops: bool) {
        self.state.drops_cancels.store(drops, Ordering::Relaxed);
    }

    /// Whether clients that log in are not given the key of their cancel requests (`BackendKeyData`).
    /// Encrypted logins are.
    pub fn hide_keys(&self, hides: bool) {
        self.state.hides_keys.store(hides, Ordering::Relaxed);
    }

    /// Whether clients that log in are accepted and never answered. Encrypted logins get through.
    pub fn hold_logins(&self, holds: bool) {
        self.state.holds_logins.store(holds, Ordering::Relaxed);
    }

    /// Whether the proxy itself refuses clients that log in, as a pooler does whose server is away.
    /// Logins that are encrypted get through.
    pub fn refuse_logins(&self, refuses: bool) {
        self.state.refuses_logins.store(refuses, Ordering::Relaxed);
    }

    /// Holds back everything that is sent from now on for this long, in both directions and in
    /// order.
    pub fn delay(&self, delay: Duration) {
        self.state.delay.send_replace(delay);
    }

    /// How often this has happened.
    pub fn count(&self, effect: Effect) -> usize {
        self.state.effects[effect as usize].load(Ordering::Relaxed)
    }

    /// How connections were opened since the last call, in that order.
    pub fn openings(&self) -> Vec<Opening> {
        let openings = self.state.openings.lock();
        std::mem::take(&mut *openings.unwrap_or_else(PoisonError::into_inner))
    }

    /// The simple queries that were asked since the last call, each one message and one round trip. Any other message that
    /// asks for an answer is in it by its tag.
    pub fn queries(&self) -> Vec<String> {
        std::mem::take(
            &mut *self
                .state
                .queries
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl State {
    fn note(&self, effect: Effect) {
        self.effects[effect as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a query is empty, but for a comment that names the claim: a ping or a heartbeat.
#[must_use]
pub fn is_ping(query: &str) -> bool {
    query.is_empty() || (query.starts_with("/* realm http") && query.ends_with(" */"))
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let (host, port) = &state.target;
            let Ok(server) = TcpStream::connect((host.as_str(), *port)).await else {
                return;
            };
            for stream in [&client, &server] {
                stream.set_nodelay(true).expect("a TCP socket");
            }
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let requests = Some(Frames::default());
            let mut cuts = state.cuts.subscribe();
            let end = tokio::select! {
                end = forward(&mut from_client, &mut to_server, &state, requests) => end,
                end = forward(&mut from_server, &mut to_client, &state, None) => end,
                _ = cuts.changed() => End::Closed,
            };
            match end {
                End::Refused => drop(to_client.write_all(REFUSAL).await),
                End::Held => pending().await,
                End::Closed => {}
            }
        });
    }
}

/// Forwards until one side closes the connection, or a login is refused.
async fn forward(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: &State,
    mut frames: Option<Frames>,
) -> End {
    let mut frozen = state.frozen.subscribe();
    let holes = state.holes.subscribe();
    // `has_changed` is about what came since the connection was opened.
    let is_lost = || holes.has_changed().unwrap_or(true);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let mut length = from.read(&mut buffer).await.unwrap_or_default();
        let delay = *state.delay.borrow();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let is_request = frames.is_some();
        let passes = |frozen: &Frozen| match frozen {
            Frozen::Nothing => true,
            Frozen::Requests => !is_request,
            Frozen::Answers => is_request,
            Frozen::Everything => false,
        };
        if length > 0 && frozen.wait_for(passes).await.is_err() {
            return End::Closed;
        }
        match length {
            // The end vanishes as well, and the other side waits for it in vain.
            0 if is_lost() => pending().await,
            0 => return End::Closed,
            _ if is_lost() => {
                state.note(Effect::Vanished);
                continue;
            }
            _ => {}
        }
        if let Some(frames) = &mut frames {
            let asked = frames.read(&buffer[..length]);
            let mut queries = state.queries.lock().unwrap_or_else(PoisonError::into_inner);
            queries.extend(asked);
            let openings = state.openings.lock();
            let mut openings = openings.unwrap_or_else(PoisonError::into_inner);
            let opened = std::mem::take(&mut frames.openings);
            openings.extend(&opened);
            if opened.contains(&Opening::Cancel) && state.drops_cancels.load(Ordering::Relaxed) {
                state.note(Effect::CancelDropped);
                return End::Closed;
            }
            if opened.contains(&Opening::Login) && state.refuses_logins.load(Ordering::Relaxed) {
                state.note(Effect::LoginRefused);
                return End::Refused;
            }
            if opened.contains(&Opening::Login) && state.holds_logins.load(Ordering::Relaxed) {
                state.note(Effect::LoginHeld);
                return End::Held;
            }
        } else if state.hides_keys.load(Ordering::Relaxed)
            && let Some(at) = buffer[..length]
                .windows(KEY_DATA.len())
                .position(|begin| begin == KEY_DATA)
        {
            state.note(Effect::KeyHidden);
            buffer.copy_within(at + KEY_DATA_LENGTH..length, at);
            length -= KEY_DATA_LENGTH;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return End::Closed;
        }
    }
}

/// What a client sends, cut into the protocol's messages.
#[derive(Default)]
struct Frames {
    started: bool,
    pending: Vec<u8>,
    openings: Vec<Opening>,
}

impl Frames {
    fn read(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend(bytes);
        let mut asked = Vec::new();
        loop {
            // The first message has no tag.
            let tagged = usize::from(self.started);
            let Some(length) = self.pending.get(tagged..tagged + 4) else {
                return asked;
            };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            let end = tagged + usize::try_from(length).expect("a small message");
            if self.pending.len() < end {
                return asked;
            }
            let message: Vec<u8> = self.pending.drain(..end).collect();
            match message[0] {
                _ if !self.started => {
                    let opening = match message[4..8] {
                        [4, 210, 22, 47] => Opening::Tls,
                        [4, 210, 22, 46] => Opening::Cancel,
                        _ => Opening::Login,
                    };
                    // After a `no` to a request for TLS the login comes just the same.
                    self.started = opening != Opening::Tls;
                    self.openings.push(opening);
                }
                b'Q' => {
                    let text = &message[5..end - 1];
                    asked.push(String::from_utf8_lossy(text).into_owned());
                }
                b'S' => asked.push("Sync".into()),
                _ => {}
            }
        }
    }
}
