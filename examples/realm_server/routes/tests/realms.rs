//! Whole realms: what their routes answer, and what they refuse.

use super::*;

const ORIGIN: &str = "http://127.0.0.1:4201";

fn named(name: &str, path: &str) -> Value {
    json!({ name: format!("{ORIGIN}{path}") })
}

fn publish(source: &str, target: &str) -> Value {
    let url = |path| format!("{ORIGIN}{path}");
    json!({ "sourceRealmURL": url(source), "publishedRealmURL": url(target) })
}

#[tokio::test]
async fn a_realm_lives_from_create_to_delete() {
    let server = Server::new(false);
    let send = async |method, path, body: Value| server.send(method, path, &body).await;
    let new = json!({ "owner": "luke", "endpoint": "a b?" });
    let url = format!("{ORIGIN}/luke/a%20b%3F/");
    let created = send("POST", "/_create-realm", new.clone()).await;
    assert_eq!(
        (created.status, &created.headers[LOCATION]),
        (201, &url.parse().unwrap())
    );
    assert_eq!(created.body["data"]["id"], url);
    let again = send("POST", "/_create-realm", new).await;
    assert_eq!(again.error(), (409, "realm-exists"));

    let card = send("POST", "/luke/a%20b%3F/", card(&json!({"n": 1}))).await;
    let card = card.body["data"]["id"]
        .as_str()
        .unwrap()
        .rsplit_once('/')
        .unwrap()
        .1
        .to_owned();
    let copied = format!("/luke/site/{card}");
    let to_site = publish("/luke/%61%20b%3F", "/luke/site/");
    let published = send("POST", "/_publish-realm", to_site.clone()).await;
    assert_eq!(
        (published.status, &published.body["data"]["id"]),
        (201, &json!(format!("{ORIGIN}/luke/site/")))
    );
    assert_eq!(published.body["data"]["attributes"]["sourceRealmURL"], url);
    let copy = send("GET", &copied, Value::Null).await;
    assert_eq!(copy.body["data"]["attributes"], json!({"n": 1}));
    assert_eq!(send("POST", "/_publish-realm", to_site).await.status, 200);

    let over_source = publish("/luke/site/", "/luke/a%20b%3F/");
    for (method, path, body, expected) in [
        (
            "POST",
            "/_publish-realm",
            over_source,
            (409, "realm-exists"),
        ),
        (
            "POST",
            "/_publish-realm",
            publish("/luke/none/", "/luke/x/"),
            (404, "realm-not-found"),
        ),
        (
            "POST",
            "/_unpublish-realm",
            named("publishedRealmURL", "/luke/a%20b%3F/"),
            (409, "realm-not-published"),
        ),
        (
            "POST",
            "/_unpublish-realm",
            named("publishedRealmURL", "/luke/none/"),
            (404, "realm-not-found"),
        ),
        (
            "DELETE",
            "/_delete-realm",
            named("realmURL", "/luke/none/"),
            (404, "realm-not-found"),
        ),
    ] {
        let answer = send(method, path, body).await;
        assert_eq!(answer.error(), expected, "{method} {path}");
    }
    let gone = send(
        "POST",
        "/_unpublish-realm",
        named("publishedRealmURL", "/luke/site/"),
    )
    .await;
    assert_eq!(gone.status, 204);
    assert_eq!(send("GET", &copied, Value::Null).await.status, 404);
    let gone = send("DELETE", "/_delete-realm", json!({ "realmURL": url })).await;
    assert_eq!(gone.status, 204);
    assert_eq!(
        std::fs::read_dir(server.directory.path().join("luke"))
            .unwrap()
            .count(),
        0
    );
}

const HOSTILE: &str = "\u{1b}[31m\n<script>alert(1)</script>\u{85}";

/// Checks that a request is refused as `expected`, for what stands at `place`, with nothing in the answer that acts on a terminal or
/// in a browser.
async fn refused(
    server: &Server,
    (method, route): (&str, &str),
    body: &Value,
    expected: (u16, &str),
    place: &Value,
) {
    let answer = server.send(method, route, body).await;
    assert_eq!(answer.error(), expected, "{route} {body}");
    let error = &answer.body["errors"][0];
    assert_eq!(
        error["source"]["pointer"], *place,
        "{route} {body}: {error}"
    );
    let detail = error["detail"].as_str().unwrap();
    assert!(!detail.chars().any(char::is_control), "{detail:?}");
    assert!(
        std::fs::read_dir(server.directory.path())
            .unwrap()
            .next()
            .is_none()
    );
}

#[tokio::test]
async fn a_name_that_is_no_directory_or_a_body_that_is_no_request_creates_nothing() {
    let server = Server::new(false);
    let create = ("POST", "/_create-realm");
    let document = (400, "bad-document");
    for (body, place) in [
        (json!([]), ""),
        (json!({"owner": "luke"}), ""),
        (json!({"owner": 1, "endpoint": "a"}), "/owner"),
        (json!({"owner": "a", "endpoint": "a", "x/y": 1}), "/x~1y"),
        (
            json!({"owner": "a", "endpoint": "a", (HOSTILE): 1}),
            &format!("/{}", HOSTILE.replace('/', "~1")),
        ),
    ] {
        refused(&server, create, &body, document, &json!(place)).await;
    }
    for (owner, endpoint) in [
        ("..", "a"),
        ("luke", "../b"),
        ("luke", ".hidden"),
        ("luke", ""),
        ("luke", "a/b"),
        ("luke", HOSTILE),
        (HOSTILE, "a"),
    ] {
        let body = json!({ "owner": owner, "endpoint": endpoint });
        refused(&server, create, &body, (400, "bad-path"), &Value::Null).await;
    }
}

#[tokio::test]
async fn a_url_that_is_no_realm_of_this_server_is_refused() {
    let server = Server::new(false);
    let bad = (400, "bad-realm-url");
    let delete = ("DELETE", "/_delete-realm");
    for url in [HOSTILE, "", "http://evil.test/luke/a/", "/luke/a/"] {
        refused(
            &server,
            delete,
            &json!({"realmURL": url}),
            bad,
            &json!("/realmURL"),
        )
        .await;
    }
    for path in [
        "/",
        "/luke/",
        "/luke/a/b/",
        "/luke/../a/",
        "/luke/a%2Fb/",
        "/luke/%2e%2e/",
        "/.luke/a/",
        "/luke/a/?x",
        "/luke/%0A/",
    ] {
        refused(
            &server,
            delete,
            &named("realmURL", path),
            bad,
            &json!("/realmURL"),
        )
        .await;
    }
    let route = ("POST", "/_unpublish-realm");
    let other = named("realmURL", "/luke/a/");
    refused(
        &server,
        route,
        &other,
        (400, "bad-document"),
        &json!("/realmURL"),
    )
    .await;
    let route = ("POST", "/_publish-realm");
    let same = publish("/luke/a/", "/luke/%61");
    refused(&server, route, &same, bad, &json!("/publishedRealmURL")).await;
}

#[tokio::test]
async fn other_methods_are_refused() {
    let server = Server::new(false);
    for path in [
        "/_create-realm",
        "/_publish-realm",
        "/_unpublish-realm",
        "/_delete-realm",
    ] {
        let answer = server.send("PUT", path, &Value::Null).await;
        assert_eq!(answer.error(), (405, "method-not-allowed"), "{path}");
    }
}
