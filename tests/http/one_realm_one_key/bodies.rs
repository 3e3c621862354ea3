//! Spellings of a realm URL in a body.

use serde_json::json;

use super::{STRANGER, outcome, serve};
use crate::support::gate::realms;

#[tokio::test]
async fn spellings_of_a_url_in_a_body_have_one_key_or_are_refused() {
    let server = serve(realms(), STRANGER).await;
    let a = Some("https://a.example/luke/a/");
    let idn = Some("https://xn--bcher-kva.example/luke/a/");
    for (url, expected) in [
        ("https://a.example/luke/a", a),
        ("HTTPS://A.Example:443/l%75ke/%61/", a),
        ("https://a.example:0443/luke/a", a),
        ("https://a.example:/luke/a", a),
        ("https://%61%2eexample/luke/a", a),
        ("https://a\u{ff0e}example/luke/a", a),
        ("https://a\u{3002}example/luke/a", a),
        ("https://\u{ff41}.\u{ff45}xample/luke/a", a),
        ("https://a\u{ad}.example/luke/a", a),
        ("https://b\u{fc}cher.example/luke/a", idn),
        ("https://bu\u{308}cher.example/luke/a", idn),
        ("https://B\u{dc}CHER.example/luke/a", idn),
        ("https://b%C3%BCcher.example/luke/a", idn),
        ("https://XN--BCHER-KVA.example/luke/a", idn),
        ("https://a.example./luke/a", None),
        ("https://a.example\u{ff0e}/luke/a", None),
        ("https://a.example%2e/luke/a", None),
        ("https://xn--.example/luke/a", None),
        ("https://u@a.example/luke/a", None),
        ("https://a.example\\luke/a", None),
        ("https:\\\\a.example/luke/a", None),
        ("https:/a.example/luke/a", None),
        ("https:a.example/luke/a", None),
        ("https:///a.example/luke/a", None),
        ("//a.example/luke/a", None),
        ("\thttps://a.example/luke/a", None),
        ("https://a.example/luke/a\n", None),
        ("ht\ttps://a.example/luke/a", None),
        ("https://a.exa\tmple/luke/a", None),
        ("https://a.example/luke/b/../a", None),
        ("https://a.example/luke/b/%2e%2e/a", None),
        ("https://a.example//luke/a", None),
        ("https://a.example/luke%2fa", None),
        ("https://a.example/luke/a?x", None),
        ("https://a.example/luke/a#x", None),
    ] {
        let body = json!({ "realm": url }).to_string();
        let head = b"POST /luke/a/_publish HTTP/1.1\r\nhost: h";
        let locked = outcome(&server, head, &body)
            .await
            .map(|(_, locked)| locked);
        assert_eq!(locked.as_deref(), expected, "{url:?}");
    }
}
