use std::fmt::Write;

use serde_json::{Value, json};

use crate::lock::token::FencingToken;
use crate::realm::url::RealmUrl;

/// PostgreSQL takes payloads of less than 8,000 bytes.
pub(super) const LONGEST: usize = 7_900;

/// What stands for any path of the realm.
const ANY: &str = "*";

/// What [`RealmWrites`](crate::RealmWrites) yields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RealmEvent {
    /// A write has succeeded, here or on another replica.
    Write(RealmWrite),
    /// The connection is lost, or events came faster than they were taken: from here on some may be
    /// missed. A cache does not answer until [`Resumed`](Self::Resumed).
    Interrupted,
    /// Writes are published again. What was written since the interruption is missing: a cache
    /// begins empty.
    Resumed,
}

/// A successful write of a realm, whose lock is free again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealmWrite {
    realm: RealmUrl,
    path: Option<Box<str>>,
    token: Option<FencingToken>,
    sender: Box<str>,
}

impl RealmWrite {
    /// The realm that was written.
    #[must_use]
    pub fn realm(&self) -> &RealmUrl {
        &self.realm
    }

    /// The resource that was written; `None` if it may be any of the realm.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// The fencing token of the hold under which it was written, if there are tokens.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Who wrote it: [`RealmLocks::sender`](crate::RealmLocks::sender) of that replica.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.sender
    }
}

/// A notice as JSON, in ASCII: a database may have an encoding that lacks a character.
pub(super) fn payload(
    realm: Option<&RealmUrl>,
    path: Option<&str>,
    token: Option<FencingToken>,
    sender: &str,
) -> String {
    let mut notice = json!({
        "realm": realm.map(RealmUrl::as_str),
        "path": path.unwrap_or(ANY),
        "sender": sender,
    });
    if let Some(token) = token {
        notice["token"] = token.to_string().into();
    }
    let mut payload = String::new();
    // Only its strings can have other characters.
    for char in notice.to_string().chars() {
        if matches!(char, ' '..='~') {
            payload.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            // Writing to a `String` does not fail.
            let _ = write!(payload, "\\u{unit:04x}");
        }
    }
    payload
}

/// Reads a payload; `None` if it names no realm, and so may be about any.
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
