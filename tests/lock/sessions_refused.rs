//! Sessions need a PostgreSQL that answers by itself and can end a silent session: anything else is refused when the locks are
//! built.

use tower_realm_lock::{ConnectError, RealmLocks};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::database::{database, try_connect};
use crate::support::gate::{gate, patch, postgres_layer};

async fn refusal(url: &str) -> ConnectError {
    let locks = RealmLocks::postgres_builder(url).sessions(2).build().await;
    locks.expect_err("sessions cannot be had there")
}

#[tokio::test]
async fn a_pooler_is_refused_with_the_reason() {
    for pooling in [Pooling::Transaction, Pooling::Session] {
        let database = database().await;
        let bouncer = Bouncer::to(database.url(), pooling, 4).await;
        let url = bouncer.url(database.url());
        let refused = refusal(&url).await;
        assert!(
            matches!(refused, ConnectError::Pooler { .. }),
            "{pooling}: {refused:?}"
        );
        let message = refused.to_string();
        for part in [
            database.name(),
            "a pooler answers",
            "spread one session over several",
            "connect directly, or leave sessions",
        ] {
            assert!(message.contains(part), "{message}");
        }

        // The attempt has left nothing in a connection that the pooler gives to others.
        let client = try_connect(&url).await.unwrap();
        let timeout = client
            .simple_query(
                "SELECT 1 FROM pg_settings WHERE name = 'idle_session_timeout' AND setting <> '0'",
            )
            .await
            .unwrap();
        let rows = timeout
            .iter()
            .filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_)));
        assert_eq!(rows.count(), 0);

        let layer = postgres_layer(&url).await;
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, "/luke/a/card");
        gate.entered().await.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_number_that_makes_no_sense_is_refused() {
    let database = database().await;
    let builder = RealmLocks::postgres_builder(database.url()).sessions(u32::MAX);
    let refused = builder.build().await.unwrap_err().to_string();
    assert!(
        refused.contains("sessions cannot be 4294967295"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_without_the_time_out_is_refused_with_the_remedy() {
    let database = database().await;
    database.without_session_timeout().await;
    let name = database.name();
    let refused = refusal(database.url()).await;
    assert!(
        matches!(refused, ConnectError::NoSessionTimeout { .. }),
        "{refused:?}"
    );
    let message = refused.to_string();
    for part in [name, "PostgreSQL 14", "idle_session_timeout", "upgrade it"] {
        assert!(message.contains(part), "{message}");
    }
    RealmLocks::postgres(database.url())
        .await
        .expect("transactions do without it");
}
