//! Publishes successful writes to all replicas: a NOTIFY in the transaction that releases the lock.
//!
//! Source: PostgreSQL manual, *NOTIFY* and *LISTEN*.

pub(in crate::lock) mod event;
pub(in crate::lock) mod listen;

use self::event::{LONGEST, payload};
use crate::lock::token::FencingToken;
use crate::realm::claim::Claim;
use crate::realm::url::RealmUrl;

/// One for each database, as locks are.
const CHANNEL: &str = "tower_realm_lock";

/// How many resources of one realm are named. With more, any may have been written.
const MOST_PATHS: usize = 16;

/// How many notices are sent of one claim. PostgreSQL takes no more than 1,664 columns.
const MOST_NOTICES: usize = 500;

/// The statement that publishes a write under this claim; `None` for a claim about no realm.
pub(in crate::lock) fn publication(
    claim: &Claim,
    token: Option<FencingToken>,
    sender: &str,
) -> Option<String> {
    let notices = claim.realms().iter().flat_map(|realm| {
        let paths = claim.resources_of(realm).unwrap_or_default();
        let paths: Vec<Option<&str>> = if paths.is_empty() || paths.len() > MOST_PATHS {
            vec![None]
        } else {
            paths.into_iter().map(Some).collect()
        };
        paths.into_iter().map(move |path| (realm, path))
    });
    let calls: Vec<String> = notices
        .map(|(realm, path)| notify(&shortened(realm, path, token, sender)))
        .collect();
    let calls = match calls.len() {
        0 => return None,
        1..=MOST_NOTICES => calls.join(", "),
        // Any realm, then.
        _ => notify(&payload(None, None, token, sender)),
    };
    // A transaction with a notice waits for those of others at its end, for however long they take.
    Some(format!(
        "SELECT set_config('lock_timeout', '0', true), {calls}"
    ))
}

/// The payload, with as much in it as PostgreSQL allows.
fn shortened(
    realm: &RealmUrl,
    path: Option<&str>,
    token: Option<FencingToken>,
    sender: &str,
) -> String {
    let fits = |payload: &String| payload.len() <= LONGEST;
    let tries = [(Some(realm), path), (Some(realm), None)];
    let named = tries
        .into_iter()
        .map(|(realm, path)| payload(realm, path, token, sender))
        .find(fits);
    named.unwrap_or_else(|| payload(None, None, token, sender))
}

fn notify(payload: &str) -> String {
    // An escape string reads the same whatever the server's settings are.
    let literal = payload.replace('\\', "\\\\").replace('\'', "''");
    format!("pg_notify('{CHANNEL}', E'{literal}')")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(path: &str) -> RealmUrl {
        format!("http://h/{path}/").parse().unwrap()
    }

    fn announced(claim: &Claim) -> String {
        publication(claim, None, "me").unwrap()
    }

    #[test]
    fn each_realm_and_each_resource_has_a_notice() {
        let claim = Claim::realm(&realm("a")).and(&Claim::resources(&realm("b"), ["x", "y"]));
        let said = announced(&claim);
        assert_eq!(said.matches("pg_notify(").count(), 3, "{said}");
        // What is left of the time to wait for the lock is no limit for it.
        assert!(said.starts_with("SELECT set_config('lock_timeout', '0', true), pg_notify("));
        assert!(
            said.contains(r#"{"path":"*","realm":"http://h/a/","sender":"me"}"#),
            "{said}"
        );
        assert!(
            said.contains(r#""path":"x""#) && said.contains(r#""path":"y""#),
            "{said}"
        );
        let many = Claim::resources(&realm("b"), (0..17).map(|number| number.to_string()));
        assert_eq!(announced(&many).matches("pg_notify(").count(), 1);
        assert!(announced(&Claim::resources::<&str>(&realm("b"), [])).contains(r#""path":"*""#));
        let key = crate::realm::key::LockKey::in_space("user-cost", 1).unwrap();
        assert_eq!(publication(&key.into(), None, "me"), None);
    }

    #[test]
    fn no_text_ends_the_literal() {
        let said = notify(r"a'; DROP\'");
        assert_eq!(said, format!(r"pg_notify('{CHANNEL}', E'a''; DROP\\''')"));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = "x".repeat(LONGEST);
        let path = announced(&Claim::resources(&realm("a"), [&long]));
        assert!(
            path.contains(r#""path":"*""#) && path.contains("http://h/a/"),
            "{path}"
        );
        let both = announced(&Claim::realm(&realm(&long)));
        assert!(both.contains(r#"{"path":"*","realm":null"#), "{both}");
    }

    #[test]
    fn of_very_many_realms_it_is_said_that_any_may_have_been_written() {
        let realms = (0..=MOST_NOTICES).map(|number| Claim::realm(&realm(&number.to_string())));
        let all = realms.reduce(|all, one| all.and(&one)).unwrap();
        let said = announced(&all);
        assert!(said.matches("pg_notify(").count() == 1 && said.contains(r#""realm":null"#));
    }
}
