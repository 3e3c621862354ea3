//! Five ways to tell tenants apart, each a small axum service behind the layer.
//!
//! ```text
//! cargo run --example tenants -- --scheme path
//!
//! curl -X POST http://127.0.0.1:3000/api/v1/acme/site/notes
//! curl -X POST http://127.0.0.1:3000/api/v2/acme/site/notes          # the same lock
//! curl -X POST http://127.0.0.1:3000/api/login                       # no lock
//! ```
//!
//! | `--scheme` | a request's tenant is | one request |
//! | --- | --- | --- |
//! | `path` | in the path, in several versions of it | as above |
//! | `subdomain` | in the host name | `-H 'host: acme.example.com' …/site/notes` |
//! | `header` | in a header that a gateway sets | `-H 'x-tenant-id: 42' …/notes` |
//! | `token` | in the token that a layer outside has checked | `-H 'authorization: Bearer of-acme' …/notes` |
//! | `domain` | looked up by the host name | `-H 'host: notes.acme.test' …/notes` |
//!
//! `docs/tenancy.md` compares them. With `DATABASE_URL` the locks are in PostgreSQL. `PORT` is
//! where to listen: 3000 if not set.

mod domain;
mod header;
mod notes;
mod path;
mod subdomain;
mod token;

use std::env;
use std::error::Error;
use std::time::Duration;

use axum::Router;
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tower_realm_lock::{ConfigError, RealmLocks};

use self::notes::Notes;

#[derive(Parser)]
struct Arguments {
    /// Where a request names its tenant.
    #[arg(long, value_enum)]
    scheme: Scheme,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scheme {
    Path,
    Subdomain,
    Header,
    Token,
    Domain,
}

impl Scheme {
    fn app(self, locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
        match self {
            Self::Path => path::app(locks, notes),
            Self::Subdomain => subdomain::app(locks, notes),
            Self::Header => header::app(locks, notes),
            Self::Token => token::app(locks, notes),
            Self::Domain => domain::app(locks, notes),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let scheme = Arguments::parse().scheme;
    let (locks, place) = match env::var("DATABASE_URL") {
        Ok(url) => (RealmLocks::postgres(&url).await?, "PostgreSQL"),
        Err(_) => (RealmLocks::in_process(), "this process only"),
    };
    let app = scheme.app(locks.clone(), Notes::default())?;

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("tenants by {scheme:?} listening on http://{address} (locks in {place})");
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    // In-flight writes whose clients have disconnected.
    Ok(locks.shutdown(Duration::from_secs(30)).await?)
}

/// A route that takes no lock in any of the schemes.
async fn login() -> &'static str {
    "welcome\n"
}
