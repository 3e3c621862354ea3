use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};
use tokio_postgres::Config;

use crate::lock::lease::Lease;
use crate::lock::postgres::canceller::{Canceller, Route};
use crate::lock::postgres::connection::LockConnection;
use crate::lock::postgres::session::Options;
use crate::lock::postgres::session::lock::Session;
use crate::lock::postgres::session::statements::Statements;
use crate::lock::postgres::traffic::Traffic;
use crate::lock::postgres::wire::{Through, Wire, watch_plain};
use crate::lock::tasks::{TaskGroup, Tasks};

pub(super) const LEASE: Duration = Duration::from_secs(30);

/// How long a key may be shared anew.
pub(super) const SHARE_TIME: Duration = Duration::from_millis(100);

/// The other end of a session: the test answers its messages one by one, and when it wants.
///
/// Source: PostgreSQL manual, 55.7 *Message Formats*.
pub(super) struct Server {
    stream: DuplexStream,
    /// Whether the last query that it got was a prepared statement.
    is_prepared: bool,
    /// The names of the statements that unlock.
    unlocks: Vec<Vec<u8>>,
    /// The names of those that are for one key.
    lone: Vec<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    InOrder,
    BrokenOff,
}

impl Server {
    /// A session and its server.
    pub(super) async fn start(fencing: bool) -> (Session, Self) {
        let (client_end, server_end) = duplex(1 << 20);
        let mut server = Self {
            stream: server_end,
            is_prepared: false,
            unlocks: Vec::new(),
            lone: Vec::new(),
        };
        let mut config = Config::new();
        config.user("test");
        watch_plain(&mut config);
        let traffic = Arc::<Traffic>::default();
        let watched = Arc::clone(&traffic);
        let through = Through(|end| ready(Ok(Wire::plain(end, watched))));
        let connecting = config.connect_raw(client_end, through);
        let (connected, ()) = tokio::join!(connecting, server.greet());
        let (client, connection) = connected.unwrap();
        let route = Route::Tcp("test".into(), None);
        let canceller = Canceller::new(client.cancel_token(), traffic.cancel_key(), route);
        let tasks = Tasks::new(&TaskGroup::default());
        let server_name = Arc::from("test");
        let connection =
            LockConnection::start(client, connection, canceller, &traffic, server_name, tasks);
        // As the connector leaves it.
        let connection = connection.into_idle();
        let lease = Lease::new(LEASE, Instant::now(), &connection.closed);
        let options = Options {
            lease: LEASE,
            fencing,
            share_time: SHARE_TIME,
        };
        let prepared = Statements::prepare(&connection.client);
        let (statements, ()) = tokio::join!(prepared, server.prepare());
        let session = Session::start(connection, lease, statements.unwrap(), options);
        (session, server)
    }

    async fn greet(&mut self) {
        let length = self.stream.read_i32().await.unwrap();
        self.skip(length).await;
        // Authenticated; process 1 with the secret 2.
        self.message(b'R', &[0; 4]).await;
        self.message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]).await;
        self.ready().await;
    }

    async fn prepare(&mut self) {
        for _ in 0..4 {
            let statement = self.receive(b'P').await;
            self.receive(b'D').await;
            self.receive(b'S').await;
            let name = statement.split(|byte| *byte == 0).next().unwrap();
            let text = String::from_utf8_lossy(&statement);
            if text.contains("unlock") {
                self.unlocks.push(name.to_vec());
            }
            // Parameters: a `bigint`, or `bigint[]` and `boolean[]`. One column: a `boolean`.
            let parameters: &[u8] = if text.contains("unnest") {
                &[0, 2, 0, 0, 3, 248, 0, 0, 3, 232]
            } else {
                self.lone.push(name.to_vec());
                &[0, 1, 0, 0, 0, 20]
            };
            self.message(b'1', &[]).await;
            self.message(b't', parameters).await;
            let mut column = vec![0, 1, b'd', 0, 0, 0, 0, 0, 0, 0];
            column.extend([0, 0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0]);
            self.message(b'T', &column).await;
            self.ready().await;
        }
    }

    /// The text of the next query; for a prepared statement what [`statement`] makes of it.
    pub(super) async fn query(&mut self) -> String {
        let tag = timeout(LEASE, self.stream.read_u8()).await;
        let tag = tag.expect("a query in time").unwrap();
        let length = self.stream.read_i32().await.unwrap();
        let body = self.skip(length).await;
        self.is_prepared = tag == b'B';
        if self.is_prepared {
            self.receive(b'E').await;
            self.receive(b'S').await;
            return self.bound(&body);
        }
        assert_eq!(tag, b'Q');
        let text = body.strip_suffix(b"\0").unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    }

    /// Reads the parameters of a prepared statement, in binary: a key, or two arrays.
    fn bound(&self, body: &[u8]) -> String {
        // The portal has no name.
        let (name, rest) = body[1..].split_at(body[1..].iter().position(|it| *it == 0).unwrap());
        let unlocks = self.unlocks.iter().any(|it| it == name);
        if self.lone.iter().any(|it| it == name) {
            // The name's end, a format, the number of parameters, and the length of one.
            let key = rest[1 + 4 + 2 + 4..][..8].try_into().unwrap();
            return statement(unlocks, [(i64::from_be_bytes(key), false)]);
        }
        // The name's end, two formats, and the number of parameters.
        let mut rest = &rest[1 + 6 + 2..];
        let mut elements = |size: usize| {
            // The lengths of the parameter and its head, and in that of its only dimension.
            let count = usize::try_from(i32::from_be_bytes(rest[16..20].try_into().unwrap()));
            let (elements, next) = rest[24..].split_at(count.unwrap() * (4 + size));
            rest = next;
            let elements = elements.chunks(4 + size).map(|it| it[4..].to_vec());
            elements.collect::<Vec<_>>()
        };
        let (keys, shared) = (elements(8), elements(1));
        let locks = keys.into_iter().zip(shared).map(|(key, shared)| {
            let key = i64::from_be_bytes(key.try_into().unwrap());
            (key, shared == [1])
        });
        statement(unlocks, locks)
    }

    /// Whether the connection ends next: in order, with a last word, or broken off.
    pub(super) async fn end(&mut self) -> End {
        let tag = timeout(LEASE, self.stream.read_u8()).await;
        match tag.expect("an end in time") {
            Ok(b'X') => End::InOrder,
            Ok(tag) => panic!("a message {tag} is no end"),
            Err(_) => End::BrokenOff,
        }
    }

    /// Answers a prepared statement with a row for each of the flags in `{t,f}`.
    pub(super) async fn done(&mut self, flags: &str) {
        assert!(self.is_prepared);
        self.message(b'2', &[]).await;
        let flags = flags.trim_matches(['{', '}']).split(',');
        for flag in flags.filter(|flag| !flag.is_empty()) {
            let value: &[u8] = match flag {
                "t" => &[0, 0, 0, 1, 1],
                "f" => &[0, 0, 0, 1, 0],
                "NULL" => &[255; 4],
                _ => &[0, 0, 0, 2, 1, 1],
            };
            self.message(b'D', &[&[0, 1], value].concat()).await;
        }
        self.message(b'C', b"SELECT 1\0").await;
        self.ready().await;
    }

    /// Answers a query with one column of one row for each of its statements.
    pub(super) async fn answer(&mut self, columns: &[(&str, &str)]) {
        for (name, value) in columns {
            let mut description = vec![0, 1];
            description.extend(name.as_bytes());
            // The end of the name, then what nobody reads.
            description.extend([0; 19]);
            self.message(b'T', &description).await;
            let mut row = vec![0, 1];
            row.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
            row.extend(value.as_bytes());
            self.message(b'D', &row).await;
            self.message(b'C', b"SELECT 1\0").await;
        }
        if columns.is_empty() {
            self.message(b'I', b"").await;
        }
        self.ready().await;
    }

    /// Answers a query with an error that does not end the session.
    pub(super) async fn fail(&mut self) {
        self.message(b'E', b"SERROR\0VERROR\0C53200\0Mout of shared memory\0\0")
            .await;
        self.ready().await;
    }

    async fn ready(&mut self) {
        self.message(b'Z', b"I").await;
    }

    async fn receive(&mut self, tag: u8) -> Vec<u8> {
        assert_eq!(self.stream.read_u8().await.unwrap(), tag);
        let length = self.stream.read_i32().await.unwrap();
        self.skip(length).await
    }

    async fn message(&mut self, tag: u8, body: &[u8]) {
        self.stream.write_u8(tag).await.unwrap();
        let length = i32::try_from(body.len() + 4).unwrap();
        self.stream.write_i32(length).await.unwrap();
        self.stream.write_all(body).await.unwrap();
    }

    /// The rest of a message whose length has been read.
    async fn skip(&mut self, length: i32) -> Vec<u8> {
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.stream.read_exact(&mut body).await.unwrap();
        body
    }
}

/// How the tests write a prepared statement: its keys, and whether they are shared.
pub(super) fn statement(unlocks: bool, locks: impl IntoIterator<Item = (i64, bool)>) -> String {
    let locks: Vec<String> = (locks.into_iter())
        .map(|(key, shared)| format!("{key} {shared}"))
        .collect();
    let name = if unlocks { "unlock" } else { "try_lock" };
    format!("{name} {}", locks.join(","))
}
