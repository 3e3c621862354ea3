//! No name that a client makes up forges a line of the log, turns its text around or fills it: in no event and no span of this crate.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tower_realm_lock::{
    Claim, LockRules, PeerAddr, RealmBodyLockLayer, RealmBodyResolver, RealmError, RealmLocks,
    RealmPointers, RealmResolver, RealmUrl, RequestOrigin, Scope, TrustedProxies,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::properties::answer::{body, claim, layer, post};
use crate::properties::problems::{a_broken_body_is_told_plainly, is_plain};
use crate::support::claims::work;
use crate::support::database::database;
use crate::support::gate::postgres_locks_with;

const HOSTILE: &[&str] = &[
    "x\n1999-12-31T00:00:00Z  WARN forged",
    "\r\u{1b}[2K\u{1b}[31mred\u{9b}31m",
    "\u{202e}txet\u{202c}\u{2066}isolated\u{2069}\u{200f}\u{61c}",
    "next\u{2028}line\u{2029}and\u{85}another\u{b}\u{c}",
    "\0\u{7f}\u{feff}",
    "*/ DROP TABLE cards; /* '\"; -- $1 %s {} \\",
    "plain",
];

/// All that is said in events and spans, unformatted: what a formatter escapes is not relied on.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn all(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics").clone()
    }
}

impl Visit for &Said {
    fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
        let mut said = self.0.lock().expect("nobody panics");
        said.push(format!("{value:?}"));
    }

    fn record_str(&mut self, _: &Field, value: &str) {
        let mut said = self.0.lock().expect("nobody panics");
        said.push(value.to_owned());
    }
}

impl<S: Subscriber> Layer<S> for Said {
    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        span.record(&mut &*self);
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut &*self);
    }
}

/// Runs `work`, and then looks at what was said meanwhile.
fn said_in(work: impl FnOnce()) -> Vec<String> {
    let said = Said::default();
    let subscriber = tracing_subscriber::registry().with(said.clone());
    tracing::subscriber::with_default(subscriber, work);
    let said = said.all();
    for text in &said {
        is_plain(text);
        assert!(text.len() < 8 * 1024, "{} bytes: {text}", text.len());
    }
    said
}

/// The hostile texts, and some that are only long.
fn hostile() -> Vec<String> {
    let long = ["x", "\u{202e}", "ü", "*"].map(|piece| piece.repeat(20_000 / piece.len()));
    let short = HOSTILE.iter().map(|text| (*text).to_owned());
    short.chain(long).collect()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A realm with as much of a text in its name as a realm can have.
fn realm_named(text: &str) -> RealmUrl {
    let allowed = |c: &char| !c.is_control() && !['/', '\\'].contains(c);
    let name = encoded(&text.chars().filter(allowed).collect::<String>());
    let realm = RealmUrl::parse(&format!("https://realms.test/r{name}/"));
    realm.expect("what it cannot have is left out")
}

/// How many of the texts say that something was locked.
fn locked(said: &[String]) -> usize {
    said.iter().filter(|text| *text == "locked").count()
}

#[test]
fn names_in_paths_bodies_and_headers() {
    let pointers = RealmPointers::new(["/realm"]).unwrap();
    let paths = crate::properties::answer::realms();
    let proxies = TrustedProxies::new(["10.0.0.0/8"]).unwrap();
    let by_origin = paths
        .clone()
        .origin_from_request(RequestOrigin::new(proxies));
    let resolver = RealmBodyResolver::from(paths)
        .route(Method::POST, "/_publish", pointers)
        .unwrap();
    let rules = LockRules::new()
        .scope(
            Method::POST,
            "/{owner}/{realm}/_atomic",
            Scope::atomic_hrefs(),
        )
        .and_then(|rules| rules.scope(Method::POST, "/{owner}/{realm}/{*card}", Scope::resource()))
        .unwrap();
    let (layer, by_origin) = (layer(resolver).rules(rules), layer(by_origin));
    let said = said_in(|| {
        for text in hostile() {
            let name = encoded(&text);
            for path in [
                format!("/{name}/a/x"),
                format!("/luke/{name}/x"),
                format!("/luke/a/{name}"),
            ] {
                claim(&layer, post(&path).unwrap());
            }
            for (path, document) in [
                ("/_publish", json!({ "realm": text })),
                (
                    "/_publish",
                    json!({ "realm": format!("https://h/{text}/") }),
                ),
                (
                    "/_publish",
                    json!({ "realm": format!("https://{text}/a/") }),
                ),
                ("/_publish", json!({ (&*text): 1 })),
                (
                    "/luke/a/_atomic",
                    json!({"atomic:operations": [{"href": text}, {"href": name}]}),
                ),
            ] {
                let request = Request::post(path).body(body(document.to_string()));
                claim(&layer, request.unwrap());
            }
            for header in [
                "host",
                "forwarded",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-forwarded-prefix",
                "content-encoding",
            ] {
                let Ok(value) = http::HeaderValue::from_bytes(text.as_bytes()) else {
                    continue;
                };
                let mut request = post("/luke/a/x").unwrap();
                request
                    .extensions_mut()
                    .insert(PeerAddr("10.0.0.1:1".parse().unwrap()));
                request
                    .headers_mut()
                    .append("host", http::HeaderValue::from_static("h"));
                request.headers_mut().insert(header, value);
                claim(&by_origin, request);
            }
            a_broken_body_is_told_plainly(&text);
        }
    });
    assert!(locked(&said) > 20, "{said:?}");
    assert!(said.iter().any(|text| text.contains(r"\u{202e}")));
}

#[test]
fn names_in_errors_of_locks_and_resolvers() {
    let said = said_in(|| {
        for text in hostile() {
            let failing = text.clone();
            let unavailable = RealmResolver::from_fn(move |_| {
                let error = RealmError::unavailable(&failing);
                async { Err::<Claim, _>(error) }
            });
            assert!(claim(&layer(unavailable), post("/x").unwrap()).is_none());
            let realm = realm_named(&text);
            // The only place is taken.
            let locks = RealmLocks::in_process();
            let holder = Claim::resources(&realm, [&text]);
            let full = locks.clone().max_waiters_per_realm(0);
            let short = locks.clone().acquire_timeout(Duration::from_millis(1));
            for waiter in [full, short] {
                let found = realm.clone();
                let resolver = RealmResolver::from_fn(move |_| {
                    let found = found.clone();
                    async { Ok(found) }
                });
                let held = locks.with_write_lock(&holder, |_| async {
                    let waiting = RealmBodyLockLayer::new(waiter, resolver, 0);
                    // On a thread of its own it is not within this hold.
                    let subscriber = tracing::dispatcher::get_default(Clone::clone);
                    let refused = std::thread::spawn(move || {
                        tracing::dispatcher::with_default(&subscriber, || {
                            claim(&waiting, post("/x").unwrap())
                        })
                    });
                    Ok::<_, tower_realm_lock::LockError>(refused.join().unwrap())
                });
                assert!(run(held).unwrap().is_none());
            }
        }
    });
    for code in ["realm-unavailable", "queue-full", "lock-timeout"] {
        assert!(said.iter().any(|text| text == code), "{code}");
    }
}

#[test]
fn names_of_locks_in_postgresql() {
    let said = said_in(|| {
        run(async {
            let database = database().await;
            let client = database.connect().await;
            client.batch_execute("CREATE TABLE cards ()").await.unwrap();
            let locks =
                postgres_locks_with(database.url(), |builder| builder.broadcast(true)).await;
            for text in hostile() {
                let realm = realm_named(&text);
                work(&locks, &Claim::resources(&realm, [&text]))
                    .inside()
                    .await
                    .end()
                    .await;
                work(&locks, &Claim::realm(&realm))
                    .inside()
                    .await
                    .end()
                    .await;
            }
            client.batch_execute("SELECT FROM cards").await.unwrap();
        });
    });
    assert!(locked(&said) >= 2 * HOSTILE.len(), "{said:?}");
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}
