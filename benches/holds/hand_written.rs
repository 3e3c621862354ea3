//! The lock as it is written by hand into a handler: a pooled client, a transaction, one statement, a commit.

use std::error::Error;

use bb8::{ManageConnection, Pool};
use http::{Request, Response};
use tokio_postgres::{Client, Config, NoTls};
use tower::ServiceExt;
use tower_realm_lock::{LockKey, RealmPaths};

use crate::contenders::Handler;

/// Takes the same locks as the layer does, and its keys by the same functions: they are not what is compared.
#[derive(Clone)]
pub struct HandWritten {
    pool: Pool<Clients>,
    realms: RealmPaths,
}

impl HandWritten {
    /// With the pool's defaults: 10 connections, each tested when it is checked out.
    pub async fn connect(url: &str, realms: RealmPaths) -> Self {
        let clients = Clients(url.parse().expect("a database URL"));
        let pool = Pool::builder().build(clients).await;
        Self {
            pool: pool.expect("the database is up"),
            realms,
        }
    }

    pub async fn call<H: Handler>(
        &self,
        handler: H,
        request: Request<String>,
    ) -> Result<Response<String>, Box<dyn Error + Send + Sync>> {
        let realm = self.realms.resolve(request.uri().path())?;
        let mut client = self.pool.get().await?;
        let transaction = client.transaction().await?;
        let key = LockKey::of(&realm).value();
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&key])
            .await?;
        let response = handler.oneshot(request).await?;
        transaction.commit().await?;
        Ok(response)
    }
}

/// Makes and tests connections as the crate `bb8-postgres` does.
#[derive(Debug)]
struct Clients(Config);

impl ManageConnection for Clients {
    type Connection = Client;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.0.connect(NoTls).await?;
        // The client's next query tells of the connection's end.
        tokio::spawn(async { drop(connection.await) });
        Ok(client)
    }

    async fn is_valid(&self, client: &mut Client) -> Result<(), tokio_postgres::Error> {
        client.simple_query("").await.map(drop)
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        client.is_closed()
    }
}
