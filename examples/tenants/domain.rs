//! Each tenant brings domains of its own, which a registry knows.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::routing::post;
use tower_realm_lock::{
    ConfigError, LockRules, RealmError, RealmLocks, RealmResolver, RealmUrl, RealmWriteLockLayer,
};

use crate::login;
use crate::notes::Notes;

/// The tenants by their domains. Several domains of one tenant are one realm.
#[derive(Clone)]
struct Registry(Arc<HashMap<&'static str, &'static str>>);

impl Registry {
    /// The tenant of a request. Both the lock and the handler ask here.
    fn tenant(&self, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
        // Over HTTP/2 the host is in the URI.
        let host = match uri.host() {
            Some(host) => host,
            None => headers.get(HOST)?.to_str().ok()?,
        };
        let (name, _port) = host.split_once(':').unwrap_or((host, ""));
        let name = name.to_ascii_lowercase();
        // A real one is async, asks a database, and has a time limit.
        self.0.get(&*name).copied()
    }
}

#[derive(Clone)]
struct Service {
    notes: Notes,
    registry: Registry,
}

pub fn app(locks: RealmLocks, notes: Notes) -> Result<Router, ConfigError> {
    let registry = Registry(Arc::new(HashMap::from([
        ("notes.acme.test", "acme"),
        ("acme.example.com", "acme"),
        ("globex.test", "globex"),
    ])));
    let base = RealmUrl::parse("https://api.example.com/")?;
    let known = registry.clone();
    let realms = RealmResolver::from_fn(move |head| {
        let (registry, base) = (known.clone(), base.clone());
        async move {
            let tenant = registry.tenant(head.uri(), head.headers());
            // An unknown host is refused before anything is locked.
            base.join([tenant.ok_or(RealmError::unresolved("no tenant has this domain"))?])
        }
    });
    let rules = LockRules::new().exempt(Method::POST, "/login")?;
    let app = Router::new()
        .route("/notes", post(add))
        .route("/login", post(login))
        .layer(RealmWriteLockLayer::new(locks, realms).rules(rules)?)
        .with_state(Service { notes, registry });
    Ok(app)
}

async fn add(
    State(service): State<Service>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    let tenant = service.registry.tenant(&uri, &headers);
    Ok(service
        .notes
        .add(tenant.ok_or(StatusCode::NOT_FOUND)?)
        .await)
}
