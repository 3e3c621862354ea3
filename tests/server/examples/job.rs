//! `background_job`.

use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, command, key};
use crate::support::database::database;
use crate::support::example::PATIENCE;
use crate::support::wait::wait_for;

impl Server {
    /// A job that begins again so many seconds after its end.
    async fn job(night: &str) -> Self {
        Self::of(command("background_job", None).await.env("NIGHT", night)).await
    }

    /// Waits until it has said this.
    async fn says(&self, text: &str) {
        wait_for(text, PATIENCE, async || {
            let said = self.process.stdout();
            if said.contains(text) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_and_the_job_keep_each_other_out() {
    let server = Server::job("4").await;
    server.says("job: part 1 of 4").await;
    let refused = server.send(Method::PUT, "card", "hello").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let problem: Value = refused.json().await.unwrap();
    assert!(
        problem["type"].as_str().unwrap().ends_with("#lock-timeout"),
        "{problem}"
    );

    server.says("job: done, 4 parts").await;
    let answer = server.send(Method::PUT, "card", "hello").await;
    assert_eq!(answer.text().await.unwrap(), "5 bytes\n");

    let address = server.origin.trim_start_matches("http://");
    let mut upload = TcpStream::connect(address).await.unwrap();
    let head = "PUT /luke/my-realm/card HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhel";
    upload.write_all(head.as_bytes()).await.unwrap();
    server.says("job: put off until the next night").await;
    upload.write_all(b"lo").await.unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_job_that_has_begun_ends_before_the_program_does() {
    let mut server = Server::job("100").await;
    // Its handler for the signal is there when it has answered.
    assert_eq!(server.send(Method::GET, "card", "").await.status(), 405);
    server.says("job: part 1 of 4").await;
    assert!(server.interrupt().await.success());
    let said = server.process.stdout();
    assert!(said.ends_with("job: done, 4 parts\n"), "{said}");
}

#[tokio::test]
async fn a_job_that_loses_its_lock_stops_and_says_so() {
    let database = database().await;
    let server = Server::start("background_job", Some(&database)).await;
    server.says("job: part 1 of 4").await;
    let holder = database.holder_pid(key()).await.unwrap();
    database.terminate(holder).await;
    server.says("job: failed: the lock on").await;
    server.says("job: stopped before part").await;
    assert!(!server.process.stdout().contains("part 4 of 4"));
}
