//! Publishes successful writes to all replicas, with NOTIFY.
//!
//! A lock that is given back publishes in the transaction that releases it, or right after the
//! unlock of a session. While a lock is handed on, the writes of holds that have ended are published
//! by a message of their own on its connection, one after the other: what ends while one is on its
//! way goes with the next. The answer to the message that has a write is the proof of its success.
//!
//! Source: PostgreSQL manual, *NOTIFY*, *LISTEN* and 13.3.5 *Advisory Locks*.

pub(in crate::lock) mod event;
pub(in crate::lock) mod listen;

use std::sync::Arc;

use self::event::Notice;
use super::call::LockCall;
use crate::lock::token::FencingToken;
use crate::realm::claim::Claim;
use crate::realm::url::RealmUrl;

/// One for each database, as locks are.
const CHANNEL: &str = "tower_realm_lock";

/// How many resources of one realm are named. With more, any may have been written.
const MOST_PATHS: usize = 16;

/// How many notices are sent of one claim.
const MOST_NOTICES: usize = 500;

/// Successful writes that are published together, in the order in which their holds ended.
#[derive(Debug, Default)]
pub(in crate::lock) struct Publication(Vec<Notice>);

impl Publication {
    /// A write under this claim; `None` for a claim about no realm.
    pub(in crate::lock) fn of(
        claim: &Claim,
        token: Option<FencingToken>,
        sender: &Arc<str>,
    ) -> Option<Self> {
        let notice = |realm: Option<&RealmUrl>, path: Option<&str>| Notice {
            realm: realm.cloned(),
            path: path.map(Into::into),
            sender: Arc::clone(sender),
            tokens: vec![token],
        };
        let notices = claim.realms().iter().flat_map(|realm| {
            let paths = claim.resources_of(realm).unwrap_or_default();
            let paths: Vec<Option<&str>> = if paths.is_empty() || paths.len() > MOST_PATHS {
                vec![None]
            } else {
                paths.into_iter().map(Some).collect()
            };
            paths.into_iter().map(move |path| notice(Some(realm), path))
        });
        let notices: Vec<Notice> = notices.collect();
        match notices.len() {
            0 => None,
            1..=MOST_NOTICES => Some(Self(notices)),
            // Any realm, then.
            _ => Some(Self(vec![notice(None, None)])),
        }
    }

    pub(in crate::lock) fn append(&mut self, later: Self) {
        for notice in later.0 {
            match self.0.last_mut() {
                Some(last) if last.is_about_the_same(&notice) => last.tokens.extend(notice.tokens),
                _ => self.0.push(notice),
            }
        }
    }

    pub(in crate::lock) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The statement that publishes. To `pg_stat_statements` it is one of two, however many writes
    /// there are.
    pub(in crate::lock) fn statement(&self) -> String {
        let parts = self.0.iter().flat_map(Notice::parts).enumerate();
        let payloads: Vec<String> = parts.map(|(number, it)| it.payload(number)).collect();
        let notify = if let [payload] = &payloads[..] {
            format!("pg_notify('{CHANNEL}', {})", literal(payload))
        } else {
            // No payload has a line feed.
            let payloads = literal(&payloads.join("\n"));
            format!(
                "count(pg_notify('{CHANNEL}', payload)) \
                 FROM unnest(string_to_array({payloads}, E'\\n')) AS payload"
            )
        };
        // A transaction with a notice waits for those of others at its end, for however long they
        // take.
        format!("SELECT set_config('lock_timeout', '0', true), {notify}")
    }

    /// The message that publishes in the middle of a transaction, which goes on with its locks.
    ///
    /// PostgreSQL sends notices when their transaction commits, and a transaction's locks end with
    /// it. So the session takes them too, until the next transaction has them: nobody gets in
    /// between. If any of it fails, the connection must be closed: after a refused `COMMIT AND CHAIN`
    /// the session is idle and still has the locks. Should its client fall silent in that very
    /// moment, they last for the 5 minutes of its `idle_session_timeout` instead of a lease, and on
    /// PostgreSQL 13, which has no such limit, until the server's TCP keepalive gives the client up.
    pub(super) fn statement_in(&self, claim: &Claim, comment: &str) -> String {
        let all = |function| {
            let calls = claim
                .locks()
                .iter()
                .map(|lock| LockCall(function, lock).to_string());
            calls.collect::<Vec<_>>().join(", ")
        };
        format!(
            "SELECT {}; {comment} {}; COMMIT AND CHAIN; SELECT {}; SELECT {}",
            all("pg_advisory_lock"),
            self.statement(),
            all("pg_advisory_xact_lock"),
            all("pg_advisory_unlock"),
        )
    }
}

/// An escape string reads the same whatever the server's settings are.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(path: &str) -> RealmUrl {
        format!("http://h/{path}/").parse().unwrap()
    }

    fn of(claim: &Claim) -> Option<Publication> {
        Publication::of(claim, None, &"me".into())
    }

    fn announced(claim: &Claim) -> String {
        of(claim).unwrap().statement()
    }

    /// How many notices a statement has.
    fn notices(statement: &str) -> usize {
        statement.matches(r#""sender":"#).count()
    }

    #[test]
    fn each_realm_and_each_resource_has_a_notice() {
        let claim = Claim::realm(&realm("a")).and(&Claim::resources(&realm("b"), ["x", "y"]));
        let said = announced(&claim);
        assert_eq!(notices(&said), 3, "{said}");
        // What is left of the time to wait for the lock is no limit for it.
        assert!(said.starts_with("SELECT set_config('lock_timeout', '0', true), count(pg_notify("));
        assert!(
            said.contains(
                r#"{"number":0,"path":"*","realm":"http://h/a/","sender":"me","tokens":[null]}"#
            ),
            "{said}"
        );
        assert!(
            said.contains(r#""path":"x""#) && said.contains(r#""path":"y""#),
            "{said}"
        );
        let many = Claim::resources(&realm("b"), (0..17).map(|number| number.to_string()));
        assert_eq!(notices(&announced(&many)), 1);
        assert!(announced(&Claim::resources::<&str>(&realm("b"), [])).contains(r#""path":"*""#));
        let key = crate::realm::key::LockKey::in_space("user-cost", 1).unwrap();
        assert!(of(&key.into()).is_none());
    }

    #[test]
    fn no_text_ends_the_literal() {
        let said = literal(r"a'; DROP\'");
        assert_eq!(said, r"E'a''; DROP\\'''");
    }

    #[test]
    fn a_burst_of_one_claim_has_few_notices_and_others_are_in_between() {
        let token = "7".repeat(48).parse().ok();
        let write = |claim: &Claim| Publication::of(claim, token, &"me".into()).unwrap();
        let [a, b] = ["a", "b"].map(|name| Claim::realm(&realm(name)));
        let mut all = Publication::default();
        (0..1000).for_each(|_| all.append(write(&a)));
        let burst = all.statement();
        assert!((7..9).contains(&notices(&burst)), "{}", notices(&burst));
        assert_eq!(burst.matches("7777\"").count(), 1000);
        for claim in [&b, &a] {
            all.append(write(claim));
        }
        assert_eq!(notices(&all.statement()), notices(&burst) + 2);
        let numbers = |number: usize| all.statement().contains(&format!("\"number\":{number},"));
        assert!(
            (0..notices(&burst) + 2).all(numbers),
            "equal ones would become one"
        );
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = "x".repeat(8_000);
        let path = announced(&Claim::resources(&realm("a"), [&long]));
        assert!(
            path.contains(r#""path":"*""#) && path.contains("http://h/a/"),
            "{path}"
        );
        let both = announced(&Claim::realm(&realm(&long)));
        assert!(both.contains(r#""path":"*","realm":null"#), "{both}");
    }

    #[test]
    fn of_very_many_realms_it_is_said_that_any_may_have_been_written() {
        let realms = (0..=MOST_NOTICES).map(|number| Claim::realm(&realm(&number.to_string())));
        let all = realms.reduce(|all, one| all.and(&one)).unwrap();
        let said = announced(&all);
        assert!(notices(&said) == 1 && said.contains(r#""realm":null"#));
    }
}
