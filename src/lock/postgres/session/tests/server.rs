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
use crate::lock::postgres::traffic::Traffic;
use crate::lock::postgres::wire::{Through, Wire, watch_plain};
use crate::lock::tasks::{TaskGroup, Tasks};

pub(super) const LEASE: Duration = Duration::from_secs(30);

/// How long a key may be shared anew.
pub(super) const SHARE_TIME: Duration = Duration::from_millis(100);

/// The other end of a session: the test answers its messages one by one, and when it wants.
///
/// Source: PostgreSQL manual, 55.7 *Message Formats*.
pub(super) struct Server(DuplexStream);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    InOrder,
    BrokenOff,
}

impl Server {
    /// A session and its server.
    pub(super) async fn start(fencing: bool) -> (Session, Self) {
        let (client_end, server_end) = duplex(1 << 20);
        let mut server = Self(server_end);
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
        (Session::start(connection, lease, options), server)
    }

    async fn greet(&mut self) {
        let length = self.0.read_i32().await.unwrap();
        self.skip(length).await;
        // Authenticated; process 1 with the secret 2.
        self.message(b'R', &[0; 4]).await;
        self.message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]).await;
        self.ready().await;
    }

    /// The text of the next query.
    pub(super) async fn query(&mut self) -> String {
        let tag = timeout(LEASE, self.0.read_u8()).await;
        assert_eq!(tag.expect("a query in time").unwrap(), b'Q');
        let length = self.0.read_i32().await.unwrap();
        let text = self.skip(length).await;
        let text = text.strip_suffix(b"\0").unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    }

    /// Whether the connection ends next: in order, with a last word, or broken off.
    pub(super) async fn end(&mut self) -> End {
        let tag = timeout(LEASE, self.0.read_u8()).await;
        match tag.expect("an end in time") {
            Ok(b'X') => End::InOrder,
            Ok(tag) => panic!("a message {tag} is no end"),
            Err(_) => End::BrokenOff,
        }
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

    async fn message(&mut self, tag: u8, body: &[u8]) {
        self.0.write_u8(tag).await.unwrap();
        let length = i32::try_from(body.len() + 4).unwrap();
        self.0.write_i32(length).await.unwrap();
        self.0.write_all(body).await.unwrap();
    }

    /// The rest of a message whose length has been read.
    async fn skip(&mut self, length: i32) -> Vec<u8> {
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.0.read_exact(&mut body).await.unwrap();
        body
    }
}
