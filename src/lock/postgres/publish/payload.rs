use std::fmt::Write;

use serde_json::Value;

use super::event::RealmWrite;
use crate::lock::token::FencingToken;
use crate::realm::url::RealmUrl;

/// PostgreSQL takes payloads of less than 8,000 bytes.
pub(super) const LONGEST: usize = 7_900;

/// What stands for any path of the realm.
const ANY: &str = "*";

/// A notice as JSON, in ASCII: a database may have an encoding that lacks a character.
pub(super) fn payload(
    realm: Option<&RealmUrl>,
    path: Option<&str>,
    token: Option<FencingToken>,
    sender: &str,
) -> String {
    let mut payload = String::from("{\"realm\":");
    match realm {
        Some(realm) => push(&mut payload, realm.as_str()),
        None => payload += "null",
    }
    payload += ",\"path\":";
    push(&mut payload, path.unwrap_or(ANY));
    if let Some(token) = token {
        // Writing to a `String` does not fail.
        let _ = write!(payload, ",\"token\":\"{token}\"");
    }
    payload += ",\"sender\":";
    push(&mut payload, sender);
    payload + "}"
}

fn push(json: &mut String, text: &str) {
    let quoted = Value::from(text).to_string();
    for char in quoted.chars() {
        if matches!(char, ' '..='~') {
            json.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            // Writing to a `String` does not fail.
            let _ = write!(json, "\\u{unit:04x}");
        }
    }
}

/// Reads a payload; `None` if it says nothing that could be told, and so may mean any write.
pub(super) fn read(payload: &str) -> Option<RealmWrite> {
    let notice: Value = serde_json::from_str(payload).ok()?;
    let text = |name| notice.get(name).and_then(Value::as_str);
    let path = text("path")?;
    Some(RealmWrite {
        realm: text("realm")?.parse().ok()?,
        path: (path != ANY).then(|| path.into()),
        token: text("token").and_then(|token| token.parse().ok()),
        sender: text("sender")?.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(path in ".{0,40}", sender in "[a-z]{1,8}") {
            prop_assume!(path != ANY);
            let realm: RealmUrl = "http://h/%C3%BC%27/".parse().unwrap();
            let token = "1".parse().ok();
            let sent = payload(Some(&realm), Some(&path), token, &sender);
            prop_assert!(sent.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{}", sent);
            let write = read(&sent).unwrap();
            prop_assert_eq!(write.realm(), &realm);
            prop_assert_eq!(write.path(), Some(path.as_str()));
            prop_assert_eq!((write.token(), write.sender()), (token, sender.as_str()));
        }

        #[test]
        fn whatever_somebody_else_sends_does_no_harm(payload in ".*") {
            read(&payload);
        }
    }

    #[test]
    fn any_path_and_no_token_are_none() {
        let realm: RealmUrl = "http://h/a/".parse().unwrap();
        let write = read(&payload(Some(&realm), None, None, "me")).unwrap();
        assert_eq!((write.path(), write.token()), (None, None));
        assert!(read(&payload(None, None, None, "me")).is_none());
    }
}
