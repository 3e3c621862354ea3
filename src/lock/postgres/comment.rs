use std::borrow::Cow;
use std::fmt::Write;

use crate::realm::claim::Claim;

/// As much of a name as fits into what `pg_stat_activity` keeps of a statement: 1,024 bytes unless set
/// otherwise.
const LONGEST: usize = 600;

/// Names up to this length are never cut.
const SHORT: usize = 200;

/// A comment that says what a statement is for: an operator sees it in `pg_stat_activity`.
///
/// A client chooses much of the text. It can neither end the comment nor begin one in it, and has no
/// character that the encoding of a database may lack.
pub(super) fn comment(claim: &Claim) -> String {
    let name = match (claim.realms(), claim.locks()) {
        // Most are, and this is what they are called.
        ([realm], [lock]) if !lock.is_shared() && realm.as_str().len() < SHORT => {
            Cow::Borrowed(realm.as_str())
        }
        _ => Cow::Owned(claim.to_string()),
    };
    let kind = if claim.realms().is_empty() {
        ""
    } else {
        "realm "
    };
    let mut comment = String::with_capacity(name.len().min(LONGEST) + 24);
    comment += "/* ";
    comment += kind;
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'*';
    if name.len() < SHORT && name.bytes().all(is_plain) {
        return comment + &name + " */";
    }
    for char in name.chars() {
        if comment.len() > LONGEST {
            comment += "...";
            break;
        }
        match char {
            '*' => comment += "%2A",
            ' '..='~' => comment.push(char),
            // Writing to a `String` does not fail.
            _ => write!(comment, "{}", char.escape_unicode()).unwrap_or_default(),
        }
    }
    comment + " */"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realm::key::LockKey;
    use crate::realm::url::RealmUrl;

    fn realm(url: &str) -> RealmUrl {
        url.parse().unwrap()
    }

    #[test]
    fn it_names_the_claim() {
        let realm = realm("http://h/luke/my-realm/");
        assert_eq!(
            comment(&Claim::realm(&realm)),
            "/* realm http://h/luke/my-realm/ */"
        );
        let key = LockKey::in_space("user-cost", 42).unwrap();
        assert_eq!(comment(&key.into()), format!("/* lock key {key} */"));
    }

    #[test]
    fn a_long_name_is_cut() {
        let realm = realm(&format!("http://h/{}/", "*".repeat(5_000)));
        let comment = comment(&Claim::realm(&realm));
        assert!(
            comment.ends_with("... */") && comment.len() < LONGEST + 20,
            "{comment}"
        );
    }
}
