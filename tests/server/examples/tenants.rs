//! `tenants`: in each scheme the writes of one tenant take turns on the documented key, those of
//! two tenants do not, and routes of no tenant pass.

use futures_util::future::join_all;
use reqwest::{RequestBuilder, StatusCode};
use tower_realm_lock::{LockKey, RealmUrl};

use super::{Server, command};
use crate::support::database::database;

const WRITERS: usize = 10;

/// A POST of the tests: its path, and a header.
type Post = (&'static str, Option<(&'static str, &'static str)>);

struct Case {
    scheme: &'static str,
    /// Requests for one tenant.
    one: Vec<Post>,
    /// The key of that tenant's lock.
    key: i64,
    /// Another tenant.
    other: Post,
    /// A route of no tenant.
    login: Post,
    /// Requests that get no lock, and their status.
    refused: Vec<(Post, u16)>,
}

fn of_realm(url: &str) -> i64 {
    LockKey::of(&RealmUrl::parse(url).unwrap()).value().unwrap()
}

fn cases() -> [Case; 5] {
    let host = |name| Some(("host", name));
    [
        Case {
            scheme: "path",
            one: vec![
                ("/api/v1/acme/site/notes", None),
                ("/api/v2/acme/site/notes", None),
                ("/api/admin/acme/site/import", None),
                ("/api/v1/%61cme/site/notes", None),
            ],
            key: of_realm("https://api.example.com/api/acme/site/"),
            other: ("/api/v1/acme/shop/notes", None),
            login: ("/api/login", None),
            refused: vec![(("/api/v1/acme%2Fsite/x/notes", None), 400)],
        },
        Case {
            scheme: "subdomain",
            one: vec![
                ("/site/notes", host("acme.example.com")),
                ("/site/notes", host("ACME.example.com")),
            ],
            key: of_realm("https://acme.example.com/site/"),
            other: ("/site/notes", host("globex.example.com")),
            login: ("/login", host("acme.example.com")),
            refused: vec![
                (("/site/notes", host("acme.example.org")), 400),
                (("/site/notes", host("acme.example.com:3000")), 400),
                (("/site/notes", host("example.com")), 400),
                (("/site/notes", host("a.acme.example.com")), 400),
            ],
        },
        Case {
            scheme: "header",
            one: vec![("/notes", Some(("x-tenant-id", "42")))],
            key: LockKey::in_space("tenant", "42").unwrap().value().unwrap(),
            other: ("/notes", Some(("x-tenant-id", "43"))),
            login: ("/login", None),
            refused: vec![
                (("/notes", None), 400),
                (("/notes", Some(("x-tenant-id", ""))), 400),
            ],
        },
        Case {
            scheme: "token",
            one: vec![("/notes", Some(("authorization", "Bearer of-acme")))],
            key: of_realm("https://api.example.com/acme/"),
            other: ("/notes", Some(("authorization", "Bearer of-globex"))),
            login: ("/login", None),
            refused: vec![(("/notes", None), 401)],
        },
        Case {
            scheme: "domain",
            one: vec![
                ("/notes", host("notes.acme.test")),
                ("/notes", host("acme.example.com")),
                ("/notes", host("Notes.ACME.test:3000")),
            ],
            key: of_realm("https://api.example.com/acme/"),
            other: ("/notes", host("globex.test")),
            login: ("/login", host("acme.example.com")),
            refused: vec![(("/notes", host("nobody.test")), 400)],
        },
    ]
}

fn post(server: &Server, (path, header): Post) -> RequestBuilder {
    let request = server.client.post(format!("{}{path}", server.origin));
    match header {
        Some((name, value)) => request.header(name, value),
        None => request,
    }
}

async fn status(server: &Server, sent: Post) -> StatusCode {
    post(server, sent).send().await.unwrap().status()
}

#[tokio::test]
async fn tenants_take_turns_with_themselves_and_nobody_else() {
    let database = database().await;
    for case in cases() {
        let scheme = case.scheme;
        let mut command = command("tenants", Some(&database)).await;
        let server = Server::of(command.args(["--scheme", scheme])).await;
        for one in &case.one {
            let held = database.hold(case.key).await;
            let write = status(&server, *one);
            let meanwhile = async {
                database.wait_for_waiting(case.key, 1).await;
                for (passing, answer) in [(case.other, 200), (case.login, 200)] {
                    assert_eq!(status(&server, passing).await, answer, "{scheme}");
                }
                for (refused, answer) in &case.refused {
                    assert_eq!(
                        status(&server, *refused).await,
                        *answer,
                        "{scheme}: {refused:?}"
                    );
                }
                held.batch_execute("COMMIT").await.unwrap();
            };
            let (answer, ()) = tokio::join!(write, meanwhile);
            assert_eq!(answer, 200, "{scheme}: {one:?}");
        }
        let writes = case.one.iter().cycle().take(WRITERS);
        let answers =
            writes.map(async |one| post(&server, *one).send().await.unwrap().text().await);
        let counts = join_all(answers).await;
        let greatest = counts
            .into_iter()
            .map(|count| count.unwrap().trim().parse::<usize>());
        let greatest = greatest.map(Result::unwrap).max();
        assert_eq!(greatest, Some(WRITERS + case.one.len()), "{scheme}");
    }
}
