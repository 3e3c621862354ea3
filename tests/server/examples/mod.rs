//! Each small example does what its first lines say, as a process that is spoken to over HTTP.

mod grpc;
mod job;
mod replicas;
mod servers;
mod tenants;

use std::process::{Command, ExitStatus};

use http::{Method, Request};
use reqwest::{Client, Response};
use tokio::task::spawn_blocking;
use tower_realm_lock::{LockKey, RealmUrl};

use crate::support::database::TestDatabase;
use crate::support::example::{self, build, listening};
use crate::support::process::Process;

/// What an example is called with, on a port of its own, with this database or none.
async fn command(name: &'static str, database: Option<&TestDatabase>) -> Command {
    let program = spawn_blocking(move || build(name)).await.unwrap();
    let mut command = Command::new(program);
    command.env("PORT", "0");
    match database {
        Some(database) => command.env("DATABASE_URL", database.url()),
        None => command.env_remove("DATABASE_URL"),
    };
    command
}

/// An example that listens.
struct Server {
    process: Process,
    origin: String,
    client: Client,
}

impl Server {
    async fn start(name: &'static str, database: Option<&TestDatabase>) -> Self {
        Self::of(&mut command(name, database).await).await
    }

    async fn of(command: &mut Command) -> Self {
        let mut process = Process::spawn(command);
        Self {
            origin: listening(&mut process, "the example").await,
            process,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// Sends a request to a path of the realm `luke/my-realm`, with a JSON body if it is not empty.
    async fn send(&self, method: Method, path: &str, body: &str) -> Response {
        let url = format!("{}/luke/my-realm/{path}", self.origin);
        let request = Request::builder().method(method).uri(url);
        let request = request.header("content-type", "application/json");
        let request = request.body(body.to_owned()).unwrap();
        let request = self.client.execute(request.try_into().unwrap());
        request.await.unwrap()
    }

    /// Reads a path of that realm.
    async fn get(&self, path: &str) -> String {
        let answer = self.send(Method::GET, path, "").await;
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    }

    /// Interrupts it, as Ctrl-C does, and waits for its end.
    async fn interrupt(&mut self) -> ExitStatus {
        self.process.signal("INT");
        self.process.end(example::PATIENCE).await
    }
}

/// The key of the realm that the examples' first lines speak of.
fn key() -> i64 {
    let realm = RealmUrl::parse("https://realms.example.com/luke/my-realm/").unwrap();
    LockKey::of(&realm).value().expect("one number")
}
