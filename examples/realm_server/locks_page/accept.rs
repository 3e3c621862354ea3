//! Whether a client would rather have JSON than what a route gives by itself.

use http::HeaderMap;
use http::header::ACCEPT;

/// Whether `Accept` names `application/json` and prefers it to `usual` (RFC 9110, 12.5.1). A wildcard names nothing.
pub fn prefers_json(headers: &HeaderMap, usual: &str) -> bool {
    let given: Vec<_> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(range)
        .collect();
    let weight = |wanted: &str| {
        let found = given
            .iter()
            .find(|(range, _)| range.eq_ignore_ascii_case(wanted));
        found.map_or(0.0, |(_, weight)| *weight)
    };
    weight("application/json") > weight(usual)
}

/// A media range and its weight.
fn range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok());
    (range, weight.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_must_be_named_and_preferred() {
        for (accept, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json, text/html;q=0.9", true),
            ("text/html;q=0.2;x=1, application/json;q=0.5", true),
            ("text/html, application/json", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("application/json;q=0", false),
            ("*/*", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(prefers_json(&headers, "text/html"), json, "{accept}");
        }
        assert!(!prefers_json(&HeaderMap::new(), "text/html"));
    }
}
