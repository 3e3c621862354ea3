use super::*;

fn base() -> Url {
    Url::parse("http://127.0.0.1:4201").unwrap()
}

fn card(path: &str) -> Result<CardPath, BadPath> {
    let (realm, rest) = RealmPath::split(path)?;
    realm.card(rest)
}

fn href(href: &str) -> Result<String, BadPath> {
    let (realm, _) = RealmPath::split("/luke/my-realm/_atomic").unwrap();
    realm
        .card_by_href(href, &base())
        .map(|card| card.to_string())
}

#[test]
fn a_card_has_one_file_and_one_url() {
    for (path, file, url) in [
        ("/luke/r/x", "luke/r/x.json", "luke/r/x"),
        ("/luke/r/x.json", "luke/r/x.json", "luke/r/x"),
        ("/luke/r/x%2Ejson", "luke/r/x.json", "luke/r/x"),
        ("/luke/r/v1.0", "luke/r/v1.0.json", "luke/r/v1.0"),
        ("/luke/r/a/b/c.json", "luke/r/a/b/c.json", "luke/r/a/b/c"),
        ("/l%75ke/r/%78", "luke/r/x.json", "luke/r/x"),
        ("/luke/r/a%20b%3F", "luke/r/a b?.json", "luke/r/a%20b%3F"),
        ("/luke/r/100%25", "luke/r/100%.json", "luke/r/100%25"),
        (
            "/lu.json/r.json/x",
            "lu.json/r.json/x.json",
            "lu.json/r.json/x",
        ),
        ("/luke/r/ü", "luke/r/ü.json", "luke/r/%C3%BC"),
        (
            "/luke/r/sub/_atomic",
            "luke/r/sub/_atomic.json",
            "luke/r/sub/_atomic",
        ),
    ] {
        let card = card(path).unwrap();
        assert_eq!(card.file(Path::new("/data")), Path::new("/data").join(file));
        assert_eq!(card.url(&base()), format!("http://127.0.0.1:4201/{url}"));
    }
}

#[test]
fn hostile_paths_are_refused() {
    let long = format!("/luke/r/{}", "x".repeat(201));
    for path in [
        "/luke/r/",
        "/luke/r/.",
        "/luke/r/..",
        "/luke/r/../x",
        "/luke/r/%2e%2e/x",
        "/luke/r/%2E%2E%2Fx",
        "/luke/r/..%2f..%2fetc%2fpasswd",
        "/luke/r/a/../../x",
        "/luke/r/..%5cx",
        "/luke/r/a\\b",
        "/luke/r/a%2Fb",
        "/luke/r//x",
        "/luke/r/a//x",
        "/luke/r/x/",
        "/luke/r/.json",
        "/luke/r/.x.json",
        "/luke/r/%2ehidden",
        "/luke/r/.x.json.fence",
        "/luke/r/x.json/y",
        "/luke/r/x%2ejson/y",
        "/luke/r/x.json.json",
        "/luke/r/x%00",
        "/luke/r/x%0A",
        "/luke/r/x%7F",
        "/luke/r/x%C2%85",
        "/luke/r/%FF",
        "/luke/r/%C0%AE%C0%AE/x",
        "/luke/r/%zz",
        "/luke/r/100%",
        "/luke/r/_atomic.json",
        "/luke/r/%5Fatomic",
        "/luke/../x",
        "/../r/x",
        "/%2e%2e/r/x",
        "/luke/%2e%2e/x",
        "/luke/a%2fb/x",
        "/.luke/r/x",
        "/luke/.r/x",
        "//r/x",
        "/luke//x",
        &long,
    ] {
        assert!(card(path).is_err(), "{path}");
    }
}

#[test]
fn the_longest_name_leaves_room_for_the_suffix() {
    let name = "x".repeat(200);
    assert!(card(&format!("/luke/r/{name}")).is_ok());
    assert!(card(&format!("/luke/r/{name}.json")).is_ok());
}

#[test]
fn an_href_names_a_card_of_its_realm() {
    for (value, expected) in [
        ("x.json", "x"),
        ("x", "x"),
        ("a/b.json", "a/b"),
        ("a/b:c", "a/b:c"),
        ("http://127.0.0.1:4201/luke/my-realm/x.json", "x"),
        ("HTTP://127.0.0.1:4201/l%75ke/my%2Drealm/a/x", "a/x"),
    ] {
        assert_eq!(href(value).unwrap(), expected, "{value}");
    }
}

#[test]
fn an_href_that_leaves_the_realm_is_refused() {
    for value in [
        "",
        "/x.json",
        "/luke/my-realm/x.json",
        "//127.0.0.1:4201/luke/my-realm/x.json",
        "../other/x.json",
        "./x.json",
        "a/../x.json",
        "%2e%2e/x.json",
        "%2E./x.json",
        "..\\x.json",
        "..%5cx.json",
        "x.json?y",
        "x.json#y",
        "x\n.json",
        "http:x.json",
        "http:/x.json",
        "mailto:x",
        "http://127.0.0.1:4201",
        "http://127.0.0.1:4201/",
        "http://127.0.0.1:4201/luke/my-realm/",
        "http://127.0.0.1:4201/luke/other/x.json",
        "http://127.0.0.1:4201/luke/my-realm/../other/x.json",
        "http://127.0.0.1:4201/luke/my-realm/%2e%2e/other/x.json",
        "http://127.0.0.1:4201/luke/my-realmx/x.json",
        "http://127.0.0.1:4202/luke/my-realm/x.json",
        "https://127.0.0.1:4201/luke/my-realm/x.json",
        "http://user@127.0.0.1:4201/luke/my-realm/x.json",
        "http://127.0.0.1:4201@evil.example/luke/my-realm/x.json",
        "http://evil.example/luke/my-realm/x.json",
        "http:////127.0.0.1:4201/luke/my-realm/x.json",
        "_atomic",
    ] {
        assert!(href(value).is_err(), "{value}");
    }
}

#[test]
fn a_card_has_one_name_for_its_lock() {
    for (path, name) in [
        ("x", "x.json"),
        ("x.json", "x.json"),
        ("a.json/x", "a.json/x.json"),
        ("a/x.json", "a/x.json"),
        // No card, and so the whole realm.
        ("_atomic", ""),
        ("_atomic.json", ""),
        ("a/_atomic", "a/_atomic.json"),
    ] {
        assert_eq!(lock_name(path), name, "{path}");
    }
}
