//! Every number of every host is tried until a primary answers, one that is silent costs its time limit once, and a name
//! that moves is followed.

use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, watch};
use tower_realm_lock::{ConnectError, LockError, RealmLocks, RealmUrl, tokio_postgres};

use crate::support::alone::with_namespaces;
use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::cluster::{Cluster, free_port};
use crate::support::database::{database_on, try_connect};
use crate::support::gate::{ORIGIN, answered, gate, key, patch, postgres_layer_with};
use crate::support::proxy::{Opening, Proxy};
use crate::support::standby::Standby;
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

/// A socket that accepts and never answers; how often it did.
async fn silent(place: &str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(place).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, accepted)
}

/// Passes everything on to a port on 127.0.0.1. When the sender names another one, or is gone, all connections end.
async fn forward(place: &str, port: u16) -> (u16, watch::Sender<u16>) {
    let listener = TcpListener::bind(place).await.unwrap();
    let place = listener.local_addr().unwrap().port();
    let (sender, leads_to) = watch::channel(port);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut leads_to = leads_to.clone();
            let port = *leads_to.borrow_and_update();
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(async move {
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    _ = leads_to.changed() => {}
                }
            });
        }
    });
    (place, sender)
}

/// Locks as many realms at the same time, each on a connection of its own.
async fn lock_at_once(locks: &RealmLocks, realms: usize) -> Vec<Result<(), LockError>> {
    let all_inside = Arc::new(Barrier::new(realms));
    let held = (0..realms).map(|number| {
        let realm = RealmUrl::parse(&format!("{ORIGIN}/luke/{number}/")).unwrap();
        let all_inside = Arc::clone(&all_inside);
        async move {
            let work = async move |_| {
                all_inside.wait().await;
                Ok::<_, LockError>(())
            };
            locks.with_write_lock(&realm, work).await
        }
    });
    join_all(held).await
}

#[tokio::test]
async fn a_silent_host_costs_its_time_limit_once_and_a_standby_is_tried_last() {
    let primary = Cluster::create_primary().await;
    let standby = Standby::of(&primary).await;
    let (silent, accepted) = silent("127.0.0.1:0").await;
    let (primary, standby) = (primary.port(), standby.port());
    let hosts = [silent, standby, primary].map(|port| format!("127.0.0.1:{port}"));
    let url = format!("postgres://postgres@{}/postgres", hosts.join(","));
    for order in ["disable", "random"] {
        accepted.store(0, Ordering::SeqCst);
        let url = format!("{url}?load_balance_hosts={order}");
        let locks = RealmLocks::postgres_builder(&url).connect_timeout(Duration::from_secs(1));
        let locks = locks.build().await.unwrap();
        for held in lock_at_once(&locks, 4).await {
            held.unwrap();
        }
        // In another order several connections may come upon it before one knows.
        let tried = accepted.load(Ordering::SeqCst);
        assert!(tried == 1 || order == "random", "{tried}");
        for held in lock_at_once(&locks, 10).await {
            held.unwrap();
        }
        let again = accepted.load(Ordering::SeqCst) - tried;
        assert!(
            again == 0 || tried == 0,
            "{order}: {tried}, and {again} more"
        );
    }
}

#[tokio::test]
async fn an_error_names_every_address_that_was_tried() {
    let (silent, _) = silent("127.0.0.1:0").await;
    let closed = free_port();
    let url = format!("postgres://u@127.0.0.1:{closed},127.0.0.1:{silent}/d");
    let locks = RealmLocks::postgres_builder(&url).connect_timeout(Duration::from_millis(200));
    let refused = locks.build().await.unwrap_err();
    let ConnectError::NoServer { errors } = &refused else {
        panic!("{refused}");
    };
    assert!(
        matches!(errors[0], ConnectError::Connect { .. }),
        "{refused}"
    );
    assert!(
        matches!(errors[1], ConnectError::ConnectTimeout { .. }),
        "{refused}"
    );
    let message = refused.to_string();
    for error in errors.iter() {
        assert!(message.contains(&error.to_string()), "{message}");
    }
}

#[tokio::test]
async fn a_place_that_failed_has_its_turn_again_after_a_minute() {
    let cluster = Cluster::create().await;
    let first = Proxy::to(&cluster.url()).await;
    first.refuse_logins(true);
    let (port, next) = (first.port(), cluster.port());
    let url = format!("postgres://postgres@127.0.0.1:{port},127.0.0.1:{next}/postgres");
    let locks = RealmLocks::postgres(&url).await.unwrap();
    first.refuse_logins(false);
    first.openings();
    for (realms, is_forgotten) in [(2, false), (3, true)] {
        if is_forgotten {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(60)).await;
            tokio::time::resume();
        }
        for held in lock_at_once(&locks, realms).await {
            held.unwrap();
        }
        let openings = first.openings();
        assert_eq!(openings.contains(&Opening::Login), is_forgotten);
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_at_one_host_only() {
    let cluster = Cluster::create().await;
    let admin = try_connect(&cluster.url()).await.unwrap();
    let role = "CREATE ROLE guarded LOGIN";
    admin.batch_execute(role).await.unwrap();
    let rules = "host all postgres all trust\nhost all guarded all scram-sha-256\n";
    fs::write(cluster.dir().join("data/pg_hba.conf"), rules).unwrap();
    let reload = "SELECT pg_reload_conf()";
    admin.batch_execute(reload).await.unwrap();
    let guarded = cluster.url().replace("postgres@", "guarded:wrong@");
    wait_until("the password to be asked for", async || {
        try_connect(&guarded).await.is_err()
    })
    .await;

    let proxies = [
        Proxy::to(&cluster.url()).await,
        Proxy::to(&cluster.url()).await,
    ];
    let places = proxies
        .each_ref()
        .map(|it| format!("127.0.0.1:{}", it.port()));
    let url = format!("postgres://guarded:wrong@{}/postgres", places.join(","));
    let refused = RealmLocks::postgres(&url).await.unwrap_err();
    let message = refused.to_string();
    assert!(
        message.contains("password authentication failed"),
        "{message}"
    );
    let [first, second] = proxies.each_ref().map(Proxy::openings);
    assert!(first.contains(&Opening::Login), "{first:?}");
    assert_eq!(second, [], "{message}");
}

#[tokio::test]
async fn a_pooler_that_now_leads_to_a_standby_is_left_at_once() {
    let primary = Cluster::create_primary().await;
    // Before the standby, which else may not have it yet.
    let database = database_on(&primary).await;
    let standby = Standby::of(&primary).await;
    let (port, leads_to) = forward("127.0.0.1:0", primary.port()).await;
    let behind = format!("postgres://postgres@127.0.0.1:{port}/{}", database.name());
    let bouncer = Bouncer::to(&behind, Pooling::Transaction, 2).await;
    let hosts = [bouncer.port(), primary.port()].map(|port| format!("127.0.0.1:{port}"));
    let url = format!(
        "postgres://postgres@{}/{}",
        hosts.join(","),
        database.name()
    );
    let layer = postgres_layer_with(&url, |builder| builder.pool_size(1)).await;
    let (handler, mut gate) = gate();
    for failed_over in [false, true] {
        database.wait_for_granted(key(PATH), 0).await;
        if failed_over {
            leads_to.send_replace(standby.port());
        }
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        database.wait_for_granted(key(PATH), 1).await;
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
}

/// The ports of a primary, its standby and another primary, and the file that stands for `/etc/hosts`: what the child
/// process of the test below is to use.
const CHILD: &str = "HOSTS_TEST";

/// The name that the file gives numbers.
const NAME: &str = "moves.test";

/// Runs the test below in a process that has a file of its own for `/etc/hosts`.
async fn with_own_hosts(test: &str) {
    let primary = Cluster::create_primary().await;
    let (standby, other) = (Standby::of(&primary).await, Cluster::create().await);
    let ports = [primary.port(), standby.port(), other.port()];
    let hosts = tempfile::NamedTempFile::new().unwrap();
    let hosts = hosts.path().display().to_string();
    let value = format!("{hosts} {}", ports.map(|port| port.to_string()).join(" "));
    let script = ("mount --bind \"$0\" /etc/hosts", &*hosts);
    with_namespaces("-rm", script, (module_path!(), test), (CHILD, &value)).await;
}

#[tokio::test]
async fn one_name_leads_to_the_primary_among_its_numbers_and_is_followed_where_it_moves() {
    let Ok(arguments) = env::var(CHILD) else {
        let test = "one_name_leads_to_the_primary_among_its_numbers_and_is_followed_where_it_moves";
        return with_own_hosts(test).await;
    };
    let (hosts, ports) = arguments.split_once(' ').unwrap();
    let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().unwrap()).collect();
    let [primary, standby, other] = ports[..] else {
        panic!("{arguments}");
    };
    // Resolvers sort this number before the others.
    let (port, accepted) = silent("127.0.0.1:0").await;
    let places = [(2, primary), (3, standby), (4, other)];
    let places = places.map(|(number, server)| (format!("127.0.0.{number}:{port}"), server));
    let _open = join_all(places.iter().map(|(place, server)| forward(place, *server))).await;
    let leads_to = |numbers: &[u8]| {
        let line = |number| format!("127.0.0.{number} {NAME}\n");
        fs::write(hosts, numbers.iter().map(line).collect::<String>()).unwrap();
    };
    let url = format!("postgres://postgres@{NAME}:{port}/postgres");
    let locks = RealmLocks::postgres_builder(&url).connect_timeout(Duration::from_millis(200));

    leads_to(&[3]);
    let refused = locks.clone().build().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Standby { .. }), "{refused}");
    leads_to(&[1, 3]);
    let refused = locks.clone().build().await.unwrap_err().to_string();
    for number in ["(127.0.0.1) did not answer", "(127.0.0.3) is a standby"] {
        assert!(refused.contains(number), "{refused}");
    }
    leads_to(&[2, 4]);
    let fails = async || Err::<String, _>("the vault is sealed");
    let refused = locks.clone().password_from(fails).build().await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Password { .. }),
        "{refused}"
    );
    accepted.store(0, Ordering::SeqCst);
    leads_to(&[1, 2, 3]);
    let found = locks.clone().build().await.unwrap();
    for held in lock_at_once(&found, 4).await {
        held.unwrap();
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1, "tried once, and first");

    let short = Duration::from_millis(100);
    let locks = locks.max_connection_lifetime(short).build().await.unwrap();
    let realm = RealmUrl::parse(&format!("{ORIGIN}/luke/a/")).unwrap();
    for (number, port) in [(2, primary), (4, other), (2, primary)] {
        leads_to(&[number]);
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let locked = async move |_| {
            let client = try_connect(&url).await.unwrap();
            let locks = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted";
            let locks = client.query(locks, &[]).await.unwrap().len();
            Ok::<_, LockError>(locks)
        };
        // The connection before this one is older.
        tokio::time::sleep(short).await;
        let locked = locks.with_write_lock(&realm, locked).await.unwrap();
        assert_eq!(locked, 1, "127.0.0.{number}");
    }
}

#[tokio::test]
async fn without_a_host_it_is_the_socket_that_libpq_would_find() {
    let cluster = Cluster::create().await;
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap();
    let role = format!("CREATE ROLE \"{}\" LOGIN", user.trim());
    let admin = try_connect(&cluster.url()).await.unwrap();
    admin.batch_execute(&role).await.unwrap();
    let file = cluster.dir().join("data/postgresql.conf");
    let settings = fs::read_to_string(&file).unwrap();
    fs::write(&file, settings + "unix_socket_directories = '/tmp'\n").unwrap();
    cluster.restart_fast().await;

    let port = cluster.port();
    for url in [
        format!("postgres:///postgres?port={port}"),
        format!("postgres://postgres@/postgres?port={port}"),
        format!("dbname=postgres port={port}"),
    ] {
        RealmLocks::postgres(&url).await.expect(&url);
    }
    let mut config = tokio_postgres::Config::new();
    config.dbname("postgres").port(port);
    RealmLocks::postgres_config(config).build().await.unwrap();
    cluster.stop().await;

    let url = format!("postgres:///realms?port={port}");
    let refused = RealmLocks::postgres(&url).await.unwrap_err().to_string();
    for part in [
        &format!("/var/run/postgresql/.s.PGSQL.{port}/realms"),
        "name its host in the database URL",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
}
