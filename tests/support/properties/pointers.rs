use http::Request;
use serde_json::Value;
use tower_realm_lock::{Claim, RealmPointers, RealmUrl};

use super::answer::{body, claim, layer};
use super::problems::is_plain;

/// A pointer leads to the realm that `serde_json` finds there, or the request is refused.
pub fn a_pointer_leads_where_another_reader_finds_it(pointer: &str, text: &[u8]) -> bool {
    let pointers = match RealmPointers::new([pointer]) {
        Ok(pointers) => layer(pointers),
        Err(error) => {
            is_plain(&error.to_string());
            return false;
        }
    };
    let found = |text: Vec<u8>| {
        let request = Request::post("/").body(body(text)).expect("a request");
        claim(&pointers, request)
    };
    let ours = found(text.to_vec());
    // What the handler cannot read it does not write.
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return false;
    };
    let there = value.pointer(pointer).and_then(Value::as_str);
    let realm = there.and_then(|url| RealmUrl::parse(url).ok());
    let realm = realm.map(|realm| Claim::realm(&realm));
    if ours.is_some() {
        assert_eq!(ours, realm);
    }
    // Written anew no name stands twice.
    let is_short = there.is_none_or(|url| url.len() <= 2048);
    assert_eq!(
        found(value.to_string().into_bytes()),
        realm.filter(|_| is_short)
    );
    ours.is_some()
}
