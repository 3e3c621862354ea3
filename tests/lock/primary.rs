//! Locks are taken where they exclude somebody: on the primary, and after a failover on the new one.

use std::time::Duration;

use tower_realm_lock::{ConfigError, ConnectError, RealmLocks, tokio_postgres};

use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database, database_on, try_connect, with_database};
use crate::support::gate::{answered, code, gate, key, patch, postgres_layer};
use crate::support::standby::Standby;
use crate::support::wait::{PATIENCE, wait_for};

const PATH: &str = "/luke/a/card";

/// A primary with one database, and its standby.
struct Pair {
    primary: Cluster,
    standby: Standby,
    database: TestDatabase,
}

impl Pair {
    async fn start() -> Self {
        let primary = Cluster::create_primary().await;
        let database = database_on(&primary).await;
        Self {
            standby: Standby::of(&primary).await,
            primary,
            database,
        }
    }

    /// The database's URL at several servers.
    fn url(&self, ports: [u16; 2]) -> String {
        let hosts = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
        format!("postgres://postgres@{hosts}/{}", self.database.name())
    }
}

/// The response to a request that was sent.
#[tokio::test]
async fn a_standby_is_refused_and_its_primary_is_found_beside_it() {
    let pair = Pair::start().await;
    let (primary, standby) = (pair.primary.port(), pair.standby.port());

    let url = with_database(&pair.standby.url(), pair.database.name());
    let refused = RealmLocks::postgres(&url).await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Standby { .. }),
        "{refused:?}"
    );
    let message = refused.to_string();
    for part in [
        &format!("127.0.0.1:{standby}/{}", pair.database.name()),
        "is a standby",
        "locks exclude nobody",
        "connect to the primary",
    ] {
        assert!(message.contains(part), "{message}");
    }

    for ports in [[standby, primary], [primary, standby]] {
        let layer = postgres_layer(&pair.url(ports)).await;
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        assert_eq!(pair.database.advisory_locks(key(PATH)).await, (1, 0));
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

#[tokio::test]
async fn after_a_failover_writes_go_on_under_the_new_primarys_locks() {
    let pair = Pair::start().await;
    let url = pair.url([pair.primary.port(), pair.standby.port()]);
    let layer = postgres_layer(&url).await;
    let (handler, mut gate) = gate();
    let lost = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;

    pair.primary.crash().await;
    call.dropped().await;
    let response = answered(lost).await;
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response), "lock-lost");

    // The standby answers already, and is no substitute.
    let response = answered(patch(&layer, &handler, PATH)).await;
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response), "lock-unavailable");
    assert!(gate.is_empty());

    pair.standby.promote().await;
    let (call, write) = wait_for("the new primary", PATIENCE, async || {
        let mut write = patch(&layer, &handler, PATH);
        tokio::select! {
            call = gate.entered() => Ok((call, write)),
            refused = &mut write => {
                let refused = refused.unwrap().unwrap();
                assert_eq!(code(&refused), "lock-unavailable");
                Err(refused.into_body())
            }
        }
    })
    .await;
    let url = with_database(&pair.standby.url(), pair.database.name());
    let new_primary = try_connect(&url).await.unwrap();
    let granted = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted";
    assert_eq!(new_primary.query(granted, &[]).await.unwrap().len(), 1);
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn a_server_whose_advisory_locks_do_nothing_is_refused() {
    // A database in which other functions stand in front of the built-in ones.
    let database = database().await;
    let functions = ["pg_advisory_xact_lock", "pg_advisory_xact_lock_shared"]
        .into_iter()
        .flat_map(|name| ["int", "bigint"].map(|key| format!("{name}({key})")))
        .map(|function| {
            format!("CREATE FUNCTION shadow.{function} RETURNS void LANGUAGE sql AS '';")
        });
    let functions: String = functions.collect();
    let admin = database.connect().await;
    admin
        .batch_execute(&format!("CREATE SCHEMA shadow; {functions}"))
        .await
        .unwrap();
    RealmLocks::postgres(database.url())
        .await
        .expect("the real functions are in use");
    let name = database.name();
    admin
        .batch_execute(&format!(
            "ALTER DATABASE {name} SET search_path = shadow, pg_catalog"
        ))
        .await
        .unwrap();

    let refused = RealmLocks::postgres(database.url()).await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::NoAdvisoryLocks { .. }),
        "{refused:?}"
    );
    let message = refused.to_string();
    for part in [
        name,
        "locks that do nothing",
        "connect to a real PostgreSQL",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn each_host_has_its_port_or_all_have_one() {
    for url in [
        "postgres://u@a,b:2/x",
        "postgres:///x?host=a&port=1",
        "host=a,b port=7",
        "host=a,b port=7,8 hostaddr=192.0.2.1,192.0.2.2",
        "hostaddr=192.0.2.1,192.0.2.2 port=7,8",
    ] {
        let built = RealmLocks::postgres_builder(url).build_lazy();
        built.unwrap_or_else(|error| panic!("{url}: {error}"));
    }
    for (url, says) in [
        ("host=a,b,c port=1,2", "3 hosts and 2 ports"),
        ("host=a port=1,2", "1 hosts and 2 ports"),
        ("postgres://a/x?port=7", "1 hosts and 2 ports"),
        ("host=a,b hostaddr=192.0.2.1", "2 hosts and 1 of `hostaddr`"),
        ("user=u port=1,2", "0 hosts and 2 ports"),
        (" ", "it is empty"),
    ] {
        let refused = RealmLocks::postgres_builder(url).build_lazy().unwrap_err();
        let is_url = matches!(refused, ConfigError::InvalidDatabaseUrl { .. });
        assert!(is_url && refused.to_string().contains(says), "{refused}");
    }
}

#[tokio::test]
async fn the_drivers_options_count_in_a_url_and_in_its_configuration() {
    let database = database().await;
    let only = |attributes| format!("{}?target_session_attrs={attributes}", database.url());
    for attributes in ["primary", "any", "read-write"] {
        RealmLocks::postgres(&only(attributes)).await.unwrap();
    }
    for attributes in ["read-only", "standby", "prefer-standby", "else"] {
        let refused = RealmLocks::postgres(&only(attributes)).await.unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains("exclude nobody"), "{refused}");
        assert!(refused.contains(attributes), "{refused}");
    }
    let url = format!("{}?sslmode=%1b%5B31mred", database.url());
    let refused = RealmLocks::postgres_builder(&url).build_lazy().unwrap_err();
    assert!(refused.to_string().contains("\\u{1b}[31mred"), "{refused}");

    let mut config: tokio_postgres::Config = database.url().parse().unwrap();
    config.options("-c search_path=elsewhere");
    let builder = RealmLocks::postgres_config(config.clone());
    assert!(!format!("{builder:?}").contains(database.name()));
    builder.build().await.unwrap();
    let mut impatient = config.clone();
    impatient.connect_timeout(Duration::ZERO);
    let refused = RealmLocks::postgres_config(impatient)
        .build_lazy()
        .unwrap_err();
    assert!(refused.to_string().contains("at once"), "{refused}");
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadOnly);
    RealmLocks::postgres_config(config)
        .build()
        .await
        .unwrap_err();

    // Nobody answers: the port is taken, and never accepted.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://u@127.0.0.1:{port}/x?connect_timeout=1");
    let builder = RealmLocks::postgres_builder(&url);
    let shorter = builder.clone().connect_timeout(Duration::from_millis(100));
    for (builder, limit) in [(builder, 1000), (shorter, 100)] {
        let refused = builder.build().await.unwrap_err();
        let ConnectError::ConnectTimeout { after, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!(after.as_millis(), limit);
    }
}
