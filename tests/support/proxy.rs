//! A TCP proxy in front of PostgreSQL: it counts what clients ask, and can break the network between them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
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
    drops_cancels: AtomicBool,
    queries: Mutex<Vec<String>>,
    openings: Mutex<Vec<Opening>>,
}

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
            drops_cancels: AtomicBool::new(false),
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
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let mut cuts = state.cuts.subscribe();
            tokio::select! {
                () = forward(from_client, to_server, &state, Some(Frames::default())) => {}
                () = forward(from_server, to_client, &state, None) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    mut frames: Option<Frames>,
) {
    let mut frozen = state.frozen.subscribe();
    let holes = state.holes.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let is_request = frames.is_some();
        let passes = |frozen: &Frozen| match frozen {
            Frozen::Nothing => true,
            Frozen::Requests => !is_request,
            Frozen::Answers => is_request,
            Frozen::Everything => false,
        };
        if frozen.wait_for(passes).await.is_err() {
            return;
        }
        // `has_changed` is about what came since the connection was opened.
        if holes.has_changed().unwrap_or(true) {
            continue;
        }
        if let Some(frames) = &mut frames {
            let asked = frames.read(&buffer[..length]);
            let mut queries = state.queries.lock().unwrap_or_else(PoisonError::into_inner);
            queries.extend(asked);
            let openings = state.openings.lock();
            let mut openings = openings.unwrap_or_else(PoisonError::into_inner);
            let is_cancel = frames.openings.contains(&Opening::Cancel);
            openings.append(&mut frames.openings);
            if is_cancel && state.drops_cancels.load(Ordering::Relaxed) {
                return;
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
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
