//! `tonic_minimal`.

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{Server, key};
use crate::support::database::{TestDatabase, database};

#[derive(Clone, PartialEq, prost::Message)]
struct Spending {
    #[prost(uint32, tag = "1")]
    amount: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Spendings {
    #[prost(uint32, repeated, tag = "1")]
    amounts: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Sum {
    #[prost(int64, tag = "1")]
    spent: i64,
}

/// A client of the example's service, over HTTP/2.
struct Ledger(Grpc<Channel>);

impl Ledger {
    async fn of(server: &Server) -> Self {
        let endpoint = Endpoint::from_shared(server.origin.clone()).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    async fn unary<M>(&mut self, method: &str, message: M) -> Result<i64, Status>
    where
        M: prost::Message + 'static,
    {
        self.0.ready().await.unwrap();
        let codec = ProstCodec::<M, Sum>::default();
        let sum = self.0.unary(request(message), path(method), codec).await?;
        Ok(sum.into_inner().spent)
    }

    async fn spend(&mut self, amount: u32) -> Result<i64, Status> {
        self.unary("Spend", Spending { amount }).await
    }

    /// All sums that were streamed, and how the stream ended.
    async fn spend_each(&mut self, amounts: &[u32]) -> (Vec<i64>, Result<(), Status>) {
        self.0.ready().await.unwrap();
        let codec = ProstCodec::<Spendings, Sum>::default();
        let amounts = amounts.to_vec();
        let request = request(Spendings { amounts });
        let streaming = self.0.server_streaming(request, path("SpendEach"), codec);
        let mut stream = streaming.await.unwrap().into_inner();
        let mut sums = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(sum)) => sums.push(sum.spent),
                Ok(None) => return (sums, Ok(())),
                Err(status) => return (sums, Err(status)),
            }
        }
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/ledger.Ledger/{method}").parse().unwrap()
}

fn request<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    let realm = "luke/my-realm".parse().unwrap();
    request.metadata_mut().insert("realm", realm);
    request
}

async fn rows(database: &TestDatabase) -> Vec<i64> {
    let client = database.connect().await;
    let query = "SELECT amount FROM example_ledger ORDER BY amount";
    let rows = client.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn what_a_grpc_status_calls_a_failure_does_not_commit() {
    let database = database().await;
    let mut server = Server::start("tonic_minimal", Some(&database)).await;
    let mut ledger = Ledger::of(&server).await;
    assert_eq!(ledger.spend(70).await.unwrap(), 70);
    assert_eq!(rows(&database).await, [70]);
    // A response of trailers only.
    let refused = ledger.spend(70).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "that would make 140 of 100");
    assert_eq!(ledger.unary("Total", Nothing {}).await.unwrap(), 70);

    let (sums, ended) = ledger.spend_each(&[1, 2]).await;
    ended.unwrap();
    assert_eq!(sums, [71, 73]);
    assert_eq!(rows(&database).await, [1, 2, 70]);
    let (sums, ended) = ledger.spend_each(&[10, 90]).await;
    assert_eq!(sums, [83]);
    assert_eq!(ended.unwrap_err().code(), Code::FailedPrecondition);
    database.wait_for_granted(key(), 0).await;
    assert_eq!(rows(&database).await, [1, 2, 70]);
    drop(ledger);
    assert!(server.interrupt().await.success());
}

#[tokio::test]
async fn reads_of_tonic_minimal_do_not_wait_and_writes_do() {
    let database = database().await;
    let server = Server::start("tonic_minimal", Some(&database)).await;
    let mut ledger = Ledger::of(&server).await;
    let other = database.hold(key()).await;
    assert_eq!(ledger.unary("Total", Nothing {}).await.unwrap(), 0);
    let release = async {
        database.wait_for_waiting(key(), 1).await;
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (spent, ()) = tokio::join!(ledger.spend(1), release);
    assert_eq!(spent.unwrap(), 1);
}

#[tokio::test]
async fn a_rejection_of_the_layer_is_a_status_of_the_call() {
    let database = database().await;
    let server = Server::start("tonic_minimal", Some(&database)).await;
    let mut ledger = Ledger::of(&server).await;
    ledger.0.ready().await.unwrap();
    let codec = ProstCodec::<Spending, Sum>::default();
    let nowhere = Request::new(Spending { amount: 1 });
    let refused = ledger.0.unary(nowhere, path("Spend"), codec).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("it has no header `realm`"),
        "{refused}"
    );
}
