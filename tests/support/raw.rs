//! Requests as bytes on a connection, for what no client library sends.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::wait::PATIENCE;

/// What a server answers to these bytes of a head, and a body: its status, and the body.
pub async fn raw(server: SocketAddr, head: &[u8], body: &str) -> (u16, String) {
    let stream = TcpStream::connect(server).await.unwrap();
    raw_on(stream, head, body).await
}

/// The same on a connection of the test's own.
pub async fn raw_on<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    head: &[u8],
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let rest = format!("\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    let request = [head, rest.as_bytes()].concat();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// One connection, on which several requests may follow one another.
pub struct Connection(TcpStream);

impl Connection {
    pub async fn open(server: SocketAddr) -> Self {
        Self(TcpStream::connect(server).await.unwrap())
    }

    /// One on which this was sent.
    pub async fn with(server: SocketAddr, sent: &str) -> Self {
        let mut connection = Self::open(server).await;
        connection.send(sent.as_bytes()).await;
        connection
    }

    pub fn into_inner(self) -> TcpStream {
        self.0
    }

    /// Sends all of these bytes, and reads nothing meanwhile.
    ///
    /// # Panics
    /// When the server has reset the connection, or takes them for too long.
    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(PATIENCE, self.0.write_all(bytes)).await;
        let sent = sent.expect("the server takes the bytes in time");
        sent.expect("the connection is open");
    }

    /// The status and the body of the next response, which must come in time. A `100 Continue` is a
    /// response too.
    pub async fn answer(&mut self) -> (u16, String) {
        timeout(PATIENCE, self.read_answer())
            .await
            .expect("an answer in time")
    }

    /// The status of the next response.
    pub async fn status(&mut self) -> u16 {
        self.answer().await.0
    }

    async fn read_answer(&mut self) -> (u16, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("the head goes on"));
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .split_once("content-length: ")
            .map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        self.0
            .read_exact(&mut body)
            .await
            .expect("the body goes on");
        (status, String::from_utf8(body).unwrap())
    }

    /// The next bytes, which must come in time.
    pub async fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let received = timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        received.expect("bytes in time").expect("the bytes go on");
        bytes
    }

    /// Waits until the server closes the connection. It must send nothing before.
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        // With bytes that the server has not read, the end is a reset.
        let _ = end.expect("the server closes the connection in time");
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}
