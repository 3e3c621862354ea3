use std::time::Duration;

use super::*;
use crate::realm::claim::Claim;
use crate::realm::path::ParsedPath;
use crate::realm::resolve::found::Found;
use crate::realm::rules::lock_rules::Rules;

const SCOPE: &str = "method = 'PATCH', path = '/{o}/{r}/{*card}'";

fn rules(file: &str) -> LockRules {
    toml::from_str(file).unwrap_or_else(|error| panic!("{file}: {}", error.message()))
}

/// The message, and the text of the file that it is about.
fn refused(file: &str) -> (String, &str) {
    let error = toml::from_str::<LockRules>(file).unwrap_err();
    let span = error.span().expect("it is known where");
    (error.message().to_owned(), &file[span])
}

fn assert_refused(file: &str, place: &str, says: &str) {
    let (message, at) = refused(file);
    assert!(message.contains(says), "{file}: {message}");
    assert_eq!(at, place, "{file}: {message}");
}

#[test]
fn a_file_says_all_that_the_methods_do() {
    let file = "
        max_resources = 3
        routes = [
            { method = 'POST', path = '/{o}/{r}/_search', lock = false },
            { method = 'GET', path = '/{o}/{r}/_reindex', lock = true },
        ]
        scopes = [
            { method = 'PUT', path = '/{o}/{r}/{*card}', scope = 'realm' },
            { method = ['PATCH', 'DELETE'], path = '/{o}/{r}/{*card}', scope = 'resource' },
            { method = 'POST', path = '/{o}/{r}/_atomic', scope = 'atomic-hrefs' },
            { method = 'POST', path = '/{o}/{r}/{*card}', scope = 'shared' },
        ]
        [[limits]]
        method = 'POST'
        path = '/{o}/{r}/_batch'
        acquire_timeout = '1m'
        max_hold = 'none'
        [[limits]]
        method = 'POST'
        path = '/{o}/{r}/_export'
        max_hold = '30s'
        acquire_timeout = '0s'
        busy_status = 423
        busy_detail = 'export it later'
        [[limits]]
        method = 'PUT'
        path = '/{o}/{r}/'
        [method_override]
        header = 'X-HTTP-Method-Override'
        methods = ['QUERY', 'PROPFIND']
    ";
    let batch = RouteLimits::new().acquire_timeout(Duration::from_secs(60));
    let export = RouteLimits::new().acquire_timeout(Duration::ZERO);
    let export = export.max_hold(Duration::from_secs(30));
    let export = export.busy_status(StatusCode::LOCKED).unwrap();
    let export = export.busy_detail("export it later");
    let by_hand = LockRules::new()
        .max_resources(3)
        .exempt(Method::POST, "/{o}/{r}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{o}/{r}/_reindex"))
        .and_then(|rules| rules.scope(Method::PUT, "/{o}/{r}/{*card}", Scope::realm()))
        .and_then(|rules| {
            let methods = [Method::PATCH, Method::DELETE];
            rules.scope(methods, "/{o}/{r}/{*card}", Scope::resource())
        })
        .and_then(|rules| rules.scope(Method::POST, "/{o}/{r}/_atomic", Scope::atomic_hrefs()))
        .and_then(|rules| rules.scope(Method::POST, "/{o}/{r}/{*card}", Scope::shared()))
        .and_then(|rules| rules.limits(Method::POST, "/{o}/{r}/_batch", batch.max_hold(None)))
        .and_then(|rules| rules.limits(Method::POST, "/{o}/{r}/_export", export))
        .and_then(|rules| rules.limits(Method::PUT, "/{o}/{r}/", RouteLimits::new()))
        .unwrap()
        .method_override(
            HeaderName::from_static("x-http-method-override"),
            [Method::QUERY, Method::from_bytes(b"PROPFIND").unwrap()],
        );
    assert_eq!(format!("{:?}", rules(file)), format!("{by_hand:?}"));
    let by_default = format!("{:?}", LockRules::new());
    assert_eq!(format!("{:?}", rules("")), by_default);
    // All fields by name: what is new must be said in a file too.
    let LockRules(Rules {
        routes: _,
        scopes: _,
        limits: _,
        max_resources: _,
        method_override: _,
    }) = rules("");
    let RouteLimits {
        acquire_timeout: _,
        max_hold: _,
        busy_status: _,
        busy_detail: _,
    } = RouteLimits::new();
}

#[test]
fn the_first_route_of_a_file_that_fits_decides() {
    let lock = "{ method = 'POST', path = '/{o}/{r}/_search', lock = true }";
    let exempt = "{ method = 'POST', path = '/{o}/{r}/{*rest}', lock = false }";
    let rules = rules(&format!("routes = [{lock}, {exempt}]"));
    assert!(rules.locks(&Method::POST, "/a/b/_search"));
    assert!(!rules.locks(&Method::POST, "/a/b/_find"));
}

#[test]
fn a_rule_of_a_file_that_an_earlier_one_hides_is_refused() {
    let wide = "method = 'unsafe', path = '/{o}/{r}/{*rest}'";
    let narrow = "method = ['PUT', 'POST'], path = '/{o}/{r}/_search'";
    for (kind, value) in [
        ("routes", "lock = true"),
        ("scopes", "scope = 'shared'"),
        ("limits", "max_hold = '1s'"),
    ] {
        let rules_in = |order: [&str; 2]| {
            let rules = order.map(|rule| format!("{{ {rule}, {value} }}"));
            format!("{kind} = [{}]", rules.join(", "))
        };
        rules(&rules_in([narrow, wide]));
        let file = rules_in([wide, narrow]);
        let (message, place) = refused(&file);
        assert_eq!(format!("{kind} = {place}"), file);
        assert!(
            message.contains("PUT, POST /{o}/{r}/_search` cannot be used: it is never reached"),
            "{message}"
        );
        assert!(message.contains("unsafe /{o}/{r}/{*rest}"), "{message}");
    }
}

#[test]
fn a_rule_of_a_file_is_for_one_method_for_several_or_for_all_that_are_not_safe() {
    let exempt = |method: &str| {
        let route = format!("{{ method = {method}, path = '/x', lock = false }}");
        rules(&format!("routes = [{route}]"))
    };
    let exempted = |rules: &LockRules| {
        let methods = [Method::PUT, Method::PATCH, Method::POST];
        methods.map(|method| !rules.locks(&method, "/x"))
    };
    assert_eq!(exempted(&exempt("'PUT'")), [true, false, false]);
    assert_eq!(exempted(&exempt("['PUT', 'PATCH']")), [true, true, false]);
    assert_eq!(exempted(&exempt("'unsafe'")), [true, true, true]);
}

#[test]
fn json_says_the_same() {
    let json = r#"{ "routes": [{ "method": "POST", "path": "/_search", "lock": false }] }"#;
    let rules: LockRules = serde_json::from_str(json).unwrap();
    assert!(!rules.locks(&Method::POST, "/_search"));
    let error = serde_json::from_str::<LockRules>(r#"{ "scopes": [], "scopes": [] }"#);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("the key `scopes` stands twice in the rules: leave one at line 1"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_the_remedy() {
    for (file, place, says) in [
        ("route = []", "route", "did you mean `routes`?"),
        (
            "paths = []",
            "paths",
            "unknown key `paths` in the rules: write `routes`, `scopes`, `limits`, `max_resources` or `method_override`",
        ),
        ("routes = 5", "5", "expected a list for `routes`"),
        ("routes = 'a'", "'a'", "invalid type: a text"),
        ("routes = [5]", "5", "expected a table with a route"),
        (
            "routes = [{ metod = 'POST' }]",
            "metod",
            "unknown key `metod` in a route of the rules: did you mean `method`?",
        ),
        (
            "routes = [{ method = 'post' }]",
            "'post'",
            "`method`: `post` is not a method: write one such as `POST`, in capital letters",
        ),
        ("routes = [{ method = 'A B' }]", "'A B'", "`A B` is not"),
        ("routes = [{ method = 1 }]", "1", "expected a method, such"),
        (
            "routes = [{ method = [] }]",
            "[]",
            "`method`: it has no method: name at least one",
        ),
        (
            "routes = [{ method = ['PUT', 'post'] }]",
            "['PUT', 'post']",
            "`method`: `post` is not a method",
        ),
        (
            "routes = [{ method = ['PUT', 1] }]",
            "1",
            "expected a method, such as",
        ),
        (
            "routes = [{ path = '/{a' }]",
            "'/{a'",
            "`path`: `/{a` is not a path template: in `{a` a parameter is only a part",
        ),
        (
            "routes = [{ lock = 'no' }]",
            "'no'",
            "`no`, expected `true` or `false` for `lock`",
        ),
        (
            "routes = [{ method = 'POST', path = '/a' }]",
            "{ method = 'POST', path = '/a' }",
            "`lock` is missing in a route of the rules: add it",
        ),
        (
            "scopes = [{ scope = 'resorce' }]",
            "'resorce'",
            "`scope`: unknown name `resorce`: did you mean `resource`?",
        ),
        (
            "scopes = [{ scope = 'card' }]",
            "'card'",
            "write `realm`, `shared`, `resource` or `atomic-hrefs`",
        ),
        ("scopes = [{ pat = '/' }]", "pat", "did you mean `path`?"),
        (
            "scopes = [{}]",
            "{}",
            "`method`, `path` or `scope` is missing",
        ),
        ("max_resources = -1", "-1", "integer `-1`"),
        ("max_resources = 1.5", "1.5", "expected a whole number"),
        (
            "max_resources = 4294967296",
            "4294967296",
            "up to 4294967295 for `max_resources`",
        ),
        (
            "method_override = { headers = 'X' }",
            "headers",
            "in the method override: did you mean `header`?",
        ),
        (
            "method_override.header = 'a b'",
            "'a b'",
            "name of a header",
        ),
        ("method_override.methods = ['Get']", "'Get'", "`Get` is not"),
        ("method_override.methods = [1]", "1", "in `methods`"),
        (
            "method_override = { header = 'X-M' }",
            "{ header = 'X-M' }",
            "`methods` is missing in the method override: add it",
        ),
    ] {
        assert_refused(file, place, says);
    }
}

#[test]
fn what_is_wrong_with_the_limits_of_a_route_is_told_with_its_place_and_the_remedy() {
    for (file, place, says) in [
        (
            "limits = [{ aquire_timeout = '1s' }]",
            "aquire_timeout",
            "in the limits of a route: did you mean `acquire_timeout`?",
        ),
        (
            "limits = [{ max_waiters = 1 }]",
            "max_waiters",
            "write `method`, `path`, `acquire_timeout`, `max_hold`, `busy_status` or `busy_detail`",
        ),
        (
            "limits = [{ max_hold = '1s' }]",
            "{ max_hold = '1s' }",
            "`method` or `path` is missing in the limits of a route: add it",
        ),
        (
            "limits = [{ path = '/{a' }]",
            "'/{a'",
            "`/{a` is not a path template",
        ),
        (
            "limits = [{ acquire_timeout = 5 }]",
            "5",
            "expected a time with its unit",
        ),
        (
            "limits = [{ max_hold = 'non' }]",
            "'non'",
            r#""500ms", or "none" for `max_hold`"#,
        ),
        (
            "limits = [{ busy_status = '423' }]",
            "'423'",
            "expected a whole number",
        ),
        (
            "limits = [{ busy_status = 302 }]",
            "302",
            "`busy_status`: `302` cannot answer a request that does not get its lock: write a status from 400 to 599",
        ),
        (
            "limits = [{ busy_status = 66000 }]",
            "66000",
            "`66000` cannot answer",
        ),
        (
            "limits = [{ busy_detail = 1 }]",
            "1",
            "expected a text for clients",
        ),
        ("limits = 5", "5", "expected a list for `limits`"),
    ] {
        assert_refused(file, place, says);
    }
}

#[test]
fn a_name_for_resources_goes_to_each_scope_that_has_none() {
    let own = Scope::resource().named_by(|_| "own".to_owned());
    let rules = rules(&format!("scopes = [{{ {SCOPE}, scope = 'resource' }}]"))
        .scope(Method::PUT, "/{o}/{r}/{*card}", own)
        .unwrap();
    let found = Found::at("https://r.example/a/b/".parse().unwrap(), 2);
    let names = |rules: &LockRules| -> Vec<Claim> {
        let path = ParsedPath::new("/a/b/x.json");
        let scopes = rules.0.scopes.iter().map(|route| &route.given);
        let claims = scopes.map(|scope| {
            let segments = path.segments().unwrap();
            scope.claim_of_path(segments, &found, 1).unwrap()
        });
        claims.collect()
    };
    let one = |name: &str| Claim::resources(&found.realm, [name]);
    assert_eq!(names(&rules), [one("x.json"), one("own")]);
    let stem = |path: &str| path.trim_end_matches(".json").to_owned();
    assert_eq!(names(&rules.named_by(stem)), [one("x"), one("own")]);
}
