//! Requests of bytes that no HTTP library has tidied up.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a server answers to these bytes of a head, and a body: its status, and the body.
pub async fn raw(server: SocketAddr, head: &[u8], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server).await.unwrap();
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
