use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::lock::token::FencingToken;
use crate::realm::url::RealmUrl;

/// PostgreSQL takes payloads of less than 8,000 bytes.
pub(super) const LONGEST: usize = 7_900;

/// The most bytes that a token takes of a payload, with its quotes and comma.
const TOKEN: usize = 51;

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

/// A successful write of a realm, whose hold has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealmWrite {
    realm: RealmUrl,
    path: Option<Arc<str>>,
    token: Option<FencingToken>,
    sender: Arc<str>,
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

/// One or more successful writes of the same realm or resource, one after the other.
#[derive(Debug)]
pub(super) struct Notice {
    /// `None` if it may be any.
    pub(super) realm: Option<RealmUrl>,
    pub(super) path: Option<Box<str>>,
    pub(super) sender: Arc<str>,
    /// One for each write; `None` where there are no tokens.
    pub(super) tokens: Vec<Option<FencingToken>>,
}

impl Notice {
    pub(super) fn is_about_the_same(&self, other: &Self) -> bool {
        (&self.realm, &self.path, &self.sender) == (&other.realm, &other.path, &other.sender)
    }

    /// What payloads can take, with as much in them as PostgreSQL allows.
    pub(super) fn parts(&self) -> Vec<Part<'_>> {
        let part = |realm, path| Part {
            realm,
            path,
            sender: &self.sender,
            tokens: &[],
        };
        let (realm, path) = (self.realm.as_ref(), self.path.as_deref());
        let tries = [(realm, path), (realm, None), (None, None)];
        let with_room = |(realm, path)| {
            let part = part(realm, path);
            let room = LONGEST.saturating_sub(part.payload(usize::MAX).len()) / TOKEN;
            (room > 0).then_some((part, room))
        };
        let fits = tries.into_iter().find_map(with_room);
        let (part, room) = fits.unwrap_or((part(None, None), 1));
        let tokens = self.tokens.chunks(room);
        tokens.map(|tokens| Part { tokens, ..part }).collect()
    }
}

/// As much of a notice as one payload takes.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    realm: Option<&'a RealmUrl>,
    path: Option<&'a str>,
    sender: &'a str,
    tokens: &'a [Option<FencingToken>],
}

impl Part<'_> {
    /// Its JSON, in ASCII: a database may have an encoding that lacks a character. The number is its
    /// own in its transaction: PostgreSQL makes one notice of equal ones.
    pub(super) fn payload(&self, number: usize) -> String {
        let tokens = self.tokens.iter().map(|it| it.map(|it| it.to_string()));
        let notice = json!({
            "number": number,
            "realm": self.realm.map(RealmUrl::as_str),
            "path": self.path.unwrap_or(ANY),
            "sender": self.sender,
            "tokens": tokens.collect::<Vec<_>>(),
        });
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
}

/// Reads a payload; `None` if it names no realm, and so may be about any.
pub(super) fn read(payload: &str) -> Option<Vec<RealmWrite>> {
    let notice: Value = serde_json::from_str(payload).ok()?;
    let text = |name| notice.get(name).and_then(Value::as_str);
    let path = text("path")?;
    let write = RealmWrite {
        realm: text("realm")?.parse().ok()?,
        path: (path != ANY).then(|| path.into()),
        token: None,
        sender: text("sender")?.into(),
    };
    let tokens = notice.get("tokens")?.as_array()?.iter();
    let writes = tokens.map(|token| RealmWrite {
        token: token.as_str().and_then(|token| token.parse().ok()),
        ..write.clone()
    });
    Some(writes.collect())
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
            let notice = Notice {
                realm: Some(realm.clone()),
                path: Some(path.clone().into()),
                sender: sender.clone().into(),
                tokens: vec![token, None],
            };
            let sent = notice.parts()[0].payload(0);
            prop_assert!(sent.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{}", sent);
            let writes = read(&sent).unwrap();
            prop_assert_eq!(writes.len(), 2);
            for (write, token) in writes.iter().zip([token, None]) {
                prop_assert_eq!(write.realm(), &realm);
                prop_assert_eq!(write.path(), Some(path.as_str()));
                prop_assert_eq!((write.token(), write.sender()), (token, sender.as_str()));
            }
        }

        #[test]
        fn whatever_somebody_else_sends_does_no_harm(payload in ".*") {
            read(&payload);
        }
    }

    #[test]
    fn any_path_and_no_token_are_none() {
        let realm: RealmUrl = "http://h/a/".parse().unwrap();
        let part = Part {
            realm: Some(&realm),
            path: None,
            sender: "me",
            tokens: &[None],
        };
        let writes = read(&part.payload(0)).unwrap();
        assert_eq!((writes[0].path(), writes[0].token()), (None, None));
        let any = Part {
            realm: None,
            ..part
        };
        assert!(read(&any.payload(0)).is_none());
    }
}
