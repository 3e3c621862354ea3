//! The one place where the server meets the crate: locks from the flags and the file, and a layer around the routes.

use std::time::Duration;

use http::Method;
use tower_realm_lock::{
    ConfigError, ConnectError, LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmLocks,
    RealmPaths, RealmWrites,
};
use url::Url;

use crate::config::{Config, Lock};
use crate::error::ApiError;
use crate::path::lock_name;
use crate::{body, realms};

/// The locks that are asked for; `None` with `--lock off`.
pub async fn open(
    lock: &Lock,
    acquire_timeout: Option<Duration>,
) -> Result<Option<RealmLocks>, ConnectError> {
    let locks = match lock {
        Lock::Off => return Ok(None),
        Lock::InProcess { .. } => RealmLocks::in_process(),
        Lock::Postgres { builder, .. } => builder.as_ref().clone().build().await?,
    };
    Ok(Some(match acquire_timeout {
        Some(timeout) => locks.acquire_timeout(timeout),
        None => locks,
    }))
}

/// What all replicas write, if their locks tell of it.
pub async fn writes(lock: &Lock) -> Result<Option<RealmWrites>, ConnectError> {
    match lock {
        Lock::Postgres {
            url,
            broadcast: true,
            ..
        } => RealmWrites::listen(url).await.map(Some),
        _ => Ok(None),
    }
}

/// The layers that put every write of a realm under its lock.
pub struct Layers {
    /// For what is below a realm.
    pub cards: RealmBodyLockLayer,
    /// For what is done to whole realms.
    pub realms: RealmBodyLockLayer,
}

impl Layers {
    /// With what the flags and the file say of requests.
    ///
    /// The file's rules are for cards alone: what changes whole realms is always locked, as whoever has the lock next undoes what
    /// was left half done.
    pub fn configured(self, config: &Config) -> Self {
        let configure = |layer: RealmBodyLockLayer| {
            let layer = layer
                .limits(config.limits)
                .server_timing(config.server_timing);
            match config.acquire_timeout {
                Some(timeout) => layer.map_locks(|locks| locks.acquire_timeout(timeout)),
                None => layer,
            }
        };
        let rules = config.rules.clone().named_by(lock_name);
        Self {
            cards: configure(self.cards).rules(rules),
            realms: configure(self.realms),
        }
    }
}

/// Which writes of cards the rules let pass without a lock, in any realm: what an operator should know of.
pub fn unlocked(rules: &LockRules) -> impl Iterator<Item = String> {
    let writes = [
        (Method::POST, "/owner/realm/"),
        (Method::POST, "/owner/realm/_atomic"),
        (Method::PATCH, "/owner/realm/card"),
        (Method::DELETE, "/owner/realm/card"),
    ];
    writes
        .into_iter()
        .filter(|(method, path)| !rules.locks(method, path))
        .map(|(method, path)| format!("{method} {path}"))
}

/// `rows`: whether changes to whole realms write rows in the transaction that holds the lock.
pub fn layers(locks: &RealmLocks, base_url: &Url, rows: bool) -> Result<Layers, ConfigError> {
    let layer = |locks: RealmLocks, realms: RealmBodyResolver| {
        RealmBodyLockLayer::new(locks, realms, body::LIMIT)
            .rejection(|rejection, _| ApiError::from(rejection).into_http())
    };
    let cards = RealmPaths::new(base_url.as_str(), "/{owner}/{realm}")?;
    Ok(Layers {
        // Where the file's rules lock the cards that an atomic document names.
        cards: layer(locks.clone(), cards.into()),
        realms: layer(
            locks.clone().share_transaction(rows),
            realms::resolver(base_url)?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use axum::response::Response;
    use http::header::{CONTENT_TYPE, RETRY_AFTER};
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use tower::ServiceExt;
    use tower_realm_lock::LockError;
    use tower_realm_lock::RealmUrl;

    use super::*;
    use crate::cards::Cards;
    use crate::routes::router;
    use crate::store::{Fault, Store};

    /// A server whose writes wait this long for locks that the caller has as well.
    fn server(directory: &TempDir, acquire_timeout: Duration) -> (axum::Router, RealmLocks) {
        let base_url = Url::parse("http://127.0.0.1:4201").unwrap();
        let locks = RealmLocks::in_process().acquire_timeout(acquire_timeout);
        let layers = layers(&locks, &base_url, false).unwrap();
        let store = Arc::new(Store {
            root: directory.path().to_owned(),
            write_delay: Duration::from_millis(50),
            fencing: false,
            fault: Fault::default(),
        });
        let cards = Cards {
            store,
            base_url,
            locks: Some(locks.clone()),
            rows: false,
            cache: None,
        };
        (router(cards, Some(&layers)), locks)
    }

    async fn send(router: &axum::Router, method: &str, path: &str, body: &str) -> Response {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        router.clone().oneshot(request).await.unwrap()
    }

    async fn document(response: Response) -> Value {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn no_update_is_lost_under_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let (router, _) = server(&directory, Duration::from_secs(60));
        let add = r#"{"atomic:operations":[{"op":"add","href":"x","data":{"type":"card"}}]}"#;
        let (one, other) = tokio::join!(
            send(&router, "POST", "/luke/r/_atomic", add),
            send(&router, "POST", "/luke/r/_atomic", add),
        );
        let mut statuses = [one.status(), other.status()];
        statuses.sort();
        assert_eq!(statuses, [StatusCode::CREATED, StatusCode::CONFLICT]);

        tokio::join!(
            send(
                &router,
                "PATCH",
                "/luke/r/x",
                r#"{"data":{"attributes":{"a":1}}}"#
            ),
            send(
                &router,
                "PATCH",
                "/luke/r/x",
                r#"{"data":{"attributes":{"b":2}}}"#
            ),
        );
        let card = document(send(&router, "GET", "/luke/r/x", "").await).await;
        assert_eq!(
            card["data"]["attributes"],
            serde_json::json!({"a": 1, "b": 2})
        );
    }

    #[tokio::test]
    async fn only_a_write_waits_for_the_lock_and_its_rejection_is_an_error_object() {
        let directory = tempfile::tempdir().unwrap();
        let (router, locks) = server(&directory, Duration::from_millis(1));
        let (enter, entered) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let realm = RealmUrl::parse("http://127.0.0.1:4201/luke/r/").unwrap();
        let hold = tokio::spawn(async move {
            locks
                .with_write_lock(&realm, |_| async move {
                    enter.send(()).unwrap();
                    released.await.unwrap();
                    Ok::<_, LockError>(())
                })
                .await
        });
        entered.await.unwrap();

        for (method, path, status) in [
            ("GET", "/luke/r/x", 404),
            ("PATCH", "/luke/other/x", 404),
            ("PATCH", "/luke/r/x", 503),
        ] {
            let response = send(&router, method, path, r#"{"data":{}}"#).await;
            assert_eq!(response.status(), status, "{method} {path}");
        }
        let response = send(&router, "DELETE", "/luke/r/x", "").await;
        assert_eq!(response.headers()[CONTENT_TYPE], "application/vnd.api+json");
        assert!(response.headers().contains_key(RETRY_AFTER));
        let error = &document(response).await["errors"][0];
        assert_eq!(
            (&error["status"], &error["code"]),
            (&"503".into(), &"lock-timeout".into())
        );
        let problem_type = error["links"]["type"].as_str().unwrap();
        assert!(problem_type.ends_with("#lock-timeout"), "{problem_type}");

        release.send(()).unwrap();
        hold.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_body_that_names_no_realm_is_refused_with_its_place_before_any_lock() {
        let directory = tempfile::tempdir().unwrap();
        let (router, _) = server(&directory, Duration::from_secs(60));
        let foreign = r#"{"realmURL":"http://evil.test/luke/a/"}"#;
        for (method, path, body, code, pointer) in [
            (
                "POST",
                "/_create-realm",
                r#"{"owner":1}"#,
                "bad-document",
                "/owner",
            ),
            (
                "DELETE",
                "/_delete-realm",
                foreign,
                "bad-realm-url",
                "/realmURL",
            ),
            ("POST", "/_publish-realm", "{}", "bad-document", ""),
            ("POST", "/_unpublish-realm", "[", "bad-document", ""),
        ] {
            let response = send(&router, method, path, body).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
            let error = &document(response).await["errors"][0];
            assert_eq!(
                (&error["code"], &error["source"]["pointer"]),
                (&code.into(), &pointer.into())
            );
        }
        // Two readers could take different ones.
        let twice =
            r#"{"realmURL":"http://127.0.0.1:4201/a/b/","realmURL":"http://127.0.0.1:4201/a/c/"}"#;
        let response = send(&router, "DELETE", "/_delete-realm", twice).await;
        assert_eq!(
            document(response).await["errors"][0]["code"],
            "realm-unresolved"
        );
    }

    #[tokio::test]
    async fn a_realm_that_cannot_be_told_is_an_error_object_too() {
        let directory = tempfile::tempdir().unwrap();
        let (router, _) = server(&directory, Duration::from_secs(60));
        for path in ["/luke", "/luke//x", "/luke/%2e%2e/x", "/luke/a%2Fb/x"] {
            let response = send(&router, "DELETE", path, "").await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
            let error = &document(response).await["errors"][0];
            assert_eq!(error["code"], "realm-unresolved", "{path}");
        }
    }
}
