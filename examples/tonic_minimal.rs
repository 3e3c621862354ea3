//! The layer on a tonic service: the `grpc-status` of a call decides whether its SQL commits.
//!
//! Each realm may spend 100. A call writes first and decides afterwards; it never has to undo a row
//! itself. The realm of a call is in its metadata.
//!
//! ```text
//! export DATABASE_URL=postgres://localhost/realms
//! cargo run --example tonic_minimal
//!
//! call="grpcurl -plaintext -proto examples/ledger.proto -H realm:luke/my-realm"
//! ledger="127.0.0.1:3000 ledger.Ledger"
//! $call -d '{"amount":70}' $ledger/Spend             # committed
//! $call -d '{"amount":70}' $ledger/Spend             # FailedPrecondition: rolled back
//! $call -d '{"amounts":[10,90]}' $ledger/SpendEach   # 80, then FailedPrecondition: both rolled back
//! $call $ledger/Total                                # 70
//! ```
//!
//! A gRPC call that fails has the HTTP status 200. Without the line `.success(…)` all of them
//! commit.
//!
//! It makes the table `example_ledger`, where what was spent stays: drop it to begin again. `PORT`
//! is where to listen: 3000 if not set.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::try_unfold;
use http::{HeaderName, Method};
use tokio::net::TcpListener;
use tokio_postgres::{Client, NoTls};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tower_realm_lock::{
    HeldLock, LockRules, RealmError, RealmLocks, RealmResolver, RealmUrl, RealmWriteLockLayer,
    Success,
};

use self::ledger::{Ledger, Nothing, Spending, Spendings, Sum, Sums};

const BUDGET: i64 = 100;
const TABLE: &str = "CREATE TABLE IF NOT EXISTS example_ledger (realm text, amount bigint)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL")
        .map_err(|_| "this example needs PostgreSQL: set DATABASE_URL=postgres://…")?;
    // Reads bypass the lock, on a connection of their own.
    let (reader, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    reader.batch_execute(TABLE).await?;

    let locks = RealmLocks::postgres(&url).await?.share_transaction(true);
    // Metadata are headers.
    let realms = RealmResolver::from_header(HeaderName::from_static("realm"), realm);
    let layer = RealmWriteLockLayer::new(locks.clone(), realms)
        // Every call of gRPC is a POST.
        .rules(LockRules::new().exempt(Method::POST, "/ledger.Ledger/Total")?)?
        .success(Success::grpc());

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("tonic_minimal listening on http://{address} (locks in PostgreSQL)");
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    Server::builder()
        .layer(layer)
        .add_service(Ledger {
            reader: Arc::new(reader),
        })
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop)
        .await?;
    // In-flight writes whose clients have disconnected.
    Ok(locks.shutdown(Duration::from_secs(30)).await?)
}

/// The realm of a name in the metadata, such as `luke/my-realm`.
fn realm(name: &str) -> Result<RealmUrl, RealmError> {
    RealmUrl::parse("https://realms.example.com")?.join(name.split('/'))
}

async fn spend(request: Request<Spending>) -> Result<Response<Sum>, Status> {
    let spent = insert(&held(&request)?, request.get_ref().amount).await?;
    Ok(Response::new(Sum { spent }))
}

/// Writes while it streams: the lock and the transaction are there until the trailers.
async fn spend_each(request: Request<Spendings>) -> Result<Response<Sums>, Status> {
    let held = held(&request)?;
    let amounts = request.into_inner().amounts.into_iter();
    let sums = try_unfold((held, amounts), |(held, mut amounts)| async {
        let Some(amount) = amounts.next() else {
            return Ok(None);
        };
        let spent = insert(&held, amount).await?;
        Ok(Some((Sum { spent }, (held, amounts))))
    });
    Ok(Response::new(Box::pin(sums)))
}

async fn total(reader: Arc<Client>, request: Request<Nothing>) -> Result<Response<Sum>, Status> {
    let name = request.metadata().get("realm");
    let name = name.and_then(|name| name.to_str().ok());
    let name = name.ok_or_else(|| Status::invalid_argument("the metadata has no `realm`"))?;
    let realm = realm(name).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let spent = sum(&reader, &realm).await.map_err(failed)?;
    Ok(Response::new(Sum { spent }))
}

fn held<T>(request: &Request<T>) -> Result<HeldLock, Status> {
    let held = request.extensions().get().cloned();
    held.ok_or_else(|| Status::internal("this call is not locked"))
}

async fn insert(held: &HeldLock, amount: u32) -> Result<i64, Status> {
    let transaction = held
        .transaction()
        .ok_or_else(|| Status::internal("this hold does not share its transaction"))?;
    let client = transaction.client().map_err(failed)?;
    let [realm] = held.realms() else {
        return Err(Status::internal("one realm is locked"));
    };
    let statement = "INSERT INTO example_ledger VALUES ($1, $2)";
    let (name, amount) = (realm.as_str(), i64::from(amount));
    let inserted = client.execute(statement, &[&name, &amount]).await;
    inserted.map_err(failed)?;
    let sum = sum(&client, realm).await.map_err(failed)?;
    if sum > BUDGET {
        let refusal = format!("that would make {sum} of {BUDGET}");
        return Err(Status::failed_precondition(refusal));
    }
    Ok(sum)
}

async fn sum(client: &Client, realm: &RealmUrl) -> Result<i64, tokio_postgres::Error> {
    let query = "SELECT coalesce(sum(amount), 0)::bigint FROM example_ledger WHERE realm = $1";
    Ok(client.query_one(query, &[&realm.as_str()]).await?.get(0))
}

fn failed(cause: impl Error) -> Status {
    eprintln!("error: {cause:?}");
    Status::internal("the write failed")
}

/// A short version of what `tonic-prost-build` generates from `ledger.proto` in a build script.
mod ledger {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use futures_util::future::BoxFuture;
    use futures_util::stream::BoxStream;
    use tokio_postgres::Client;
    use tonic::Status;
    use tonic::body::Body;
    use tonic::server::{Grpc, NamedService};
    use tonic_prost::ProstCodec;
    use tower::{Service, service_fn};

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Spending {
        #[prost(uint32, tag = "1")]
        pub amount: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Spendings {
        #[prost(uint32, repeated, tag = "1")]
        pub amounts: Vec<u32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sum {
        #[prost(int64, tag = "1")]
        pub spent: i64,
    }

    pub type Sums = BoxStream<'static, Result<Sum, Status>>;

    #[derive(Clone)]
    pub struct Ledger {
        pub reader: Arc<Client>,
    }

    impl NamedService for Ledger {
        const NAME: &'static str = "ledger.Ledger";
    }

    impl Service<http::Request<Body>> for Ledger {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let reader = Arc::clone(&self.reader);
            Box::pin(async move {
                let response = match request.uri().path() {
                    "/ledger.Ledger/Spend" => {
                        let method = service_fn(super::spend);
                        Grpc::new(ProstCodec::default())
                            .unary(method, request)
                            .await
                    }
                    "/ledger.Ledger/SpendEach" => {
                        let method = service_fn(super::spend_each);
                        let mut grpc = Grpc::new(ProstCodec::default());
                        grpc.server_streaming(method, request).await
                    }
                    "/ledger.Ledger/Total" => {
                        let total = |request| super::total(Arc::clone(&reader), request);
                        let method = service_fn(total);
                        Grpc::new(ProstCodec::default())
                            .unary(method, request)
                            .await
                    }
                    path => Status::unimplemented(path).into_http(),
                };
                Ok(response)
            })
        }
    }
}
