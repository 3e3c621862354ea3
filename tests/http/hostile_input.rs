//! Whatever a client writes, nothing panics, no realm has a second key, and no problem body does more than be read.
//!
//! The properties are those of the fuzz targets in `fuzz/`. `SECURITY.md` has the command that tries
//! more inputs.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::properties::{destinations, hrefs, origins, paths, pointers, problems, routes, urls};

/// What a text is put together from: the pieces that readers differ on, and now and then anything.
fn text(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        12 => prop::sample::select(pieces).prop_map(ToOwned::to_owned),
        4 => prop::sample::select(HOSTILE).prop_map(ToOwned::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

/// The same behind a beginning that is right, most of the time.
fn after(
    begin: &'static [&'static str],
    pieces: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let begin = prop_oneof![
        9 => prop::sample::select(begin),
        1 => Just(""),
    ];
    (begin, text(pieces)).prop_map(|(begin, rest)| format!("{begin}{rest}"))
}

const HOSTILE: &[&str] = &[
    "%2e",
    "..",
    ".",
    "%2F",
    "%5c",
    "\\",
    "//",
    "%00",
    "%09",
    "\t",
    "\n",
    "\0",
    "%C0%AF",
    "%252f",
    "%",
    "%zz",
    "%E2%80%AE",
    "\u{202e}",
    "\u{2028}",
    "\u{feff}",
    "\u{1b}[31m",
    "*/",
    "'",
    "\"",
    ";v=1",
    "?",
    "#",
    "@",
    ":",
    "[",
    "{",
    "}",
    ",",
    " ",
    "\u{ff0e}",
    "\u{212a}",
    "\u{131}",
];
const PATH: &[&str] = &[
    "/",
    "/",
    "a",
    "%61",
    "luke",
    "_publish",
    "%5Fpublish",
    "-",
    "ü",
    "%C3%BC",
    "%c3%bc",
    "b/",
];
const PATTERNED: &[&str] = &[
    "/",
    "/",
    "/api",
    "/%61pi",
    "/v1",
    "/by-realm",
    "/by%2Drealm",
    "/at",
    "/a",
    "/b%2Fc",
    "ü",
];
const HOST: &[&str] = &[
    "a",
    "A",
    "b.",
    ".example",
    "xn--bcher-kva",
    "XN--",
    "bücher",
    "ß",
    "%41",
    ":80",
    ":443",
    ":0443",
    ":",
    "0x7f.1",
    "127.1",
    "[::1]",
    "1",
    "-",
    "_",
];
const URL: &[&str] = &[
    "luke", "/", "a", "A", ".example", ":80", "%41", "ü", "%c3%bc", "~", "|", "^", "%7C",
];
const ELEMENT: &[&str] = &[
    "for=",
    "host=",
    "proto=",
    "10.0.0.1",
    "192.0.2.1",
    "\"",
    "\\",
    ";",
    ",",
    "evil",
    "https",
    "unknown",
    "=",
    "\"[2001:db8::1]:99\"",
];
const TEMPLATE: &[&str] = &[
    "/",
    "/{owner}",
    "/{realm}",
    "/{*rest}",
    "/_publish",
    "/a",
    "/luke",
    "/{a}",
    "{",
    "}",
    "*",
    "ü",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"a\":",
    "\"a\":",
    "\"b\":",
    "\"\\u0061\":",
    "\"https://h/a/\"",
    "\"https://h/b\"",
    "1",
    "null",
    "1e999",
    "\"\\ud800\"",
    " ",
];
const POINTER: &[&str] = &["/a", "/0", "/01", "/-", "/", "~"];

/// A pointer, and JSON in which it mostly leads somewhere, by a way on which names may stand twice.
fn pointers() -> impl Strategy<Value = (String, String)> {
    const STEPS: &[&str] = &["a", "b", "0", "", "~0", "~1"];
    const LEAVES: &[&str] = &["\"https://h/a/\"", "\"https://h/b\"", "\"x\"", "null"];
    const BESIDE: &[&str] = &[
        "\"a\":\"https://h/c/\"",
        "\"\\u0062\":{}",
        "\"c\":1e999",
        "\"c\":[{}]",
    ];
    let level = (
        prop::sample::select(STEPS),
        prop::collection::vec(prop::sample::select(BESIDE), 0..2),
        any::<bool>(),
    );
    let way = (
        prop::collection::vec(level, 0..4),
        prop_oneof![4 => prop::sample::select(LEAVES).prop_map(ToOwned::to_owned), 1 => text(JSON)],
        prop::option::weighted(0.2, prop::sample::select(POINTER)),
    );
    way.prop_map(|(levels, leaf, more)| {
        let mut pointer = String::new();
        let mut body = leaf;
        for (step, beside, is_list) in levels {
            if is_list {
                pointer = format!("/0{pointer}");
                body = format!("[{body},{}]", body.len());
                continue;
            }
            pointer = format!("/{step}{pointer}");
            let name = step.replace("~1", "/").replace("~0", "~");
            let mut members: Vec<String> = beside.into_iter().map(ToOwned::to_owned).collect();
            members.push(format!("\"{name}\":{body}"));
            body = format!("{{{}}}", members.join(","));
        }
        (pointer + more.unwrap_or_default(), body)
    })
}

fn urls() -> impl Strategy<Value = String> {
    let by_host = text(HOST).prop_map(|host| format!("http://{host}/a"));
    prop_oneof![
        after(&["http://h/", "https://h/", "HTTPS://"], URL),
        by_host
    ]
}

fn paths() -> impl Strategy<Value = String> {
    after(&["/luke/a", "/luke/", "/luke//", "/"], PATH)
}

/// Paths that several patterns fit.
fn patterned() -> impl Strategy<Value = String> {
    after(&["/api/v1/by-realm/", "/api/", "/luke/at/", "/"], PATTERNED)
}

fn routes() -> impl Strategy<Value = (String, String)> {
    const NEAR: &[&str] = &[
        "/luke/a/_publish",
        "/luke/a/%5Fpublish",
        "/luke/a/_publish/",
        "/luke//_publish",
        "///_publish",
        "/luke/a%2F_publish",
        "/luke/a/x/..%2F_publish",
    ];
    const BEGIN: &[&str] = &[
        "/",
        "/{a}/{b}",
        "/{*all}",
        "/luke/a/{*rest}",
        "/{a}/{b}/_publish",
    ];
    let plain = prop::sample::select(BEGIN).prop_map(ToOwned::to_owned);
    let near = prop::sample::select(NEAR).prop_map(ToOwned::to_owned);
    (
        prop_oneof![plain, after(BEGIN, TEMPLATE)],
        prop_oneof![3 => paths(), 1 => near],
    )
}

fn headers() -> impl Strategy<Value = Vec<(u8, String)>> {
    prop::collection::vec((any::<u8>(), text(ELEMENT)), 0..4)
}

fn hrefs() -> impl Strategy<Value = String> {
    after(
        &[
            "",
            "/luke/a/",
            "https://realms.test/luke/a/",
            "HTTPS://Realms.test:443/l%75ke/a/",
            "http://realms.test/luke/a/",
            "https://evil.test/luke/a/",
            "//evil.test/luke/a/",
        ],
        PATH,
    )
}

proptest! {
    #[test]
    fn realm_urls(url in urls()) {
        urls::a_realm_url_is_canonical(&url);
    }

    #[test]
    fn request_paths(path in paths()) {
        paths::a_key_is_that_of_the_realm_that_a_router_sees(&path);
    }

    #[test]
    fn paths_of_several_patterns(path in patterned()) {
        paths::the_pattern_counts_that_a_router_prefers(&path);
    }

    #[test]
    fn destinations_of_a_move(path in paths()) {
        destinations::a_destination_is_read_as_a_path_is(&path);
    }

    #[test]
    fn templates((template, path) in routes()) {
        routes::a_route_is_what_a_router_takes_for_it(&template, &path);
    }

    #[test]
    fn hosts(host in text(HOST)) {
        origins::a_host_is_that_of_a_url(&host);
    }

    #[test]
    fn forwarded_headers(headers in headers(), left in text(ELEMENT)) {
        origins::a_stranger_says_nothing(&headers);
        origins::what_stands_to_the_left_says_nothing(&left);
    }

    #[test]
    fn json_pointers((pointer, body) in pointers()) {
        pointers::a_pointer_leads_where_another_reader_finds_it(&pointer, body.as_bytes());
    }

    #[test]
    fn resources(href in hrefs()) {
        hrefs::an_href_is_the_resource_of_a_url(&href);
    }

    #[test]
    fn problem_bodies(text in text(PATH)) {
        problems::a_problem_body_is_plain(&text);
        problems::a_broken_body_is_told_plainly(&text);
    }
}

/// How many of 1,000 inputs are let in.
fn let_in<S: Strategy>(inputs: &S, property: impl Fn(S::Value) -> bool) -> usize {
    let mut runner = TestRunner::deterministic();
    let mut next = || inputs.new_tree(&mut runner).expect("an input").current();
    (0..1000).filter(|_| property(next())).count()
}

/// The properties say nothing unless much is let in, and much refused.
#[test]
fn the_inputs_are_of_every_kind() {
    let counts = [
        let_in(&urls(), |url| urls::a_realm_url_is_canonical(&url)),
        let_in(&paths(), |path| {
            paths::a_key_is_that_of_the_realm_that_a_router_sees(&path)
        }),
        let_in(&patterned(), |path| {
            paths::the_pattern_counts_that_a_router_prefers(&path)
        }),
        let_in(&paths(), |path| {
            destinations::a_destination_is_read_as_a_path_is(&path)
        }),
        let_in(&routes(), |(template, path)| {
            routes::a_route_is_what_a_router_takes_for_it(&template, &path)
        }),
        let_in(&text(HOST), |host| origins::a_host_is_that_of_a_url(&host)),
        let_in(&headers(), |headers| {
            origins::a_stranger_says_nothing(&headers)
        }),
        let_in(&text(ELEMENT), |left| {
            origins::what_stands_to_the_left_says_nothing(&left)
        }),
        let_in(&pointers(), |(pointer, body)| {
            pointers::a_pointer_leads_where_another_reader_finds_it(&pointer, body.as_bytes())
        }),
        let_in(&hrefs(), |href| {
            hrefs::an_href_is_the_resource_of_a_url(&href)
        }),
    ];
    assert!(
        counts.iter().all(|count| (20..980).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn depth_is_no_danger() {
    let deep =
        |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    for body in [
        deep("[", "]"),
        deep("{\"a\":", "}"),
        "[".repeat(100_000),
        format!("{{\"a\":\"https://h/a/\",\"b\":{}}}", deep("[", "]")),
    ] {
        for pointer in ["", "/a", "/0", &"/a".repeat(50_000), &"/0".repeat(50_000)] {
            pointers::a_pointer_leads_where_another_reader_finds_it(pointer, body.as_bytes());
        }
    }
    paths::a_key_is_that_of_the_realm_that_a_router_sees(&"/a".repeat(30_000));
    routes::a_route_is_what_a_router_takes_for_it(&"/a".repeat(30_000), &"/a".repeat(30_000));
}

#[test]
fn length_is_no_danger() {
    for long in ["a", "ü", "%61", "\u{202e}", "/", "~"] {
        let long = long.repeat(60_000 / long.len());
        problems::a_problem_body_is_plain(&long);
        urls::a_realm_url_is_canonical(&format!("https://h/{long}"));
        hrefs::an_href_is_the_resource_of_a_url(&long);
        paths::a_key_is_that_of_the_realm_that_a_router_sees(&format!("/{long}/a"));
        destinations::a_destination_is_read_as_a_path_is(&format!("/{long}/a"));
        origins::a_host_is_that_of_a_url(&long);
    }
}
