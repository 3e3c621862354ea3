//! The statement that locks.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;

use super::answer::values;
use super::call::LockCall;
#[cfg(doc)]
use super::call::PREPARE_TRY;
use super::settings::milliseconds;
use super::transaction::SHARE;
use crate::lock::token;
use crate::realm::claim::{Claim, Lock};

const TRY: &str = "pg_try_advisory_xact_lock";
const WAIT: &str = "pg_advisory_xact_lock";

/// The column that says `t` where nobody else had the lock, or waited for it.
const FREE: &str = "lock_was_free";

/// The setting, and the column, that is `t` if a key that was only tried is taken; the keys after
/// it are left alone.
const BUSY: &str = "tower_realm_lock.busy";

/// Between the statements of a message.
const SEPARATOR: &str = "; ";

/// A handler that shares the transaction finds no prepared statement in its session.
const FORGET_TRY: &str = "DEALLOCATE pg_try_advisory_xact_lock; ";

/// How a lock is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptTerms {
    pub(super) lease: Duration,
    pub(super) fencing: bool,
    pub(super) share: bool,
    /// When the server ends the wait by itself.
    pub(super) deadline: Instant,
    /// Whether every key is only tried.
    pub(super) tries: bool,
}

/// The statements that take the locks of a claim.
#[derive(Debug)]
pub(super) struct LockStatement {
    text: String,
    /// What begins the transaction.
    begin: &'static str,
}

/// Makes the statements that begin, set the limits of a transaction if they are `of_pooler`, and
/// lock. Where a try [is prepared](PREPARE_TRY), that is what tries a lone key.
///
/// Each key is tried first, to know whether others want it too, and the wait limited only if there
/// is one. A try does not overtake those who wait. A [lone key](lone_lock) that is taken is waited
/// for with [a message of its own](wait_statement). Keys of other claims have a statement each, as
/// nothing else says in what order they are locked; the claim has them in the order that all others
/// take them in. Only a `scout` waits to share a key, and a request that tries waits for none.
///
/// Read committed, whatever the server's default: under a stricter level the snapshot of the
/// transaction would be older than the lock. A connection to the server itself has set that for its
/// session. `set_config` with `true` ends with the transaction.
pub(super) fn lock_statement(
    claim: &Claim,
    comment: &str,
    of_pooler: Option<&str>,
    is_prepared: bool,
    terms: AttemptTerms,
    scout: bool,
) -> LockStatement {
    let begin = match of_pooler {
        Some(_) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        None => "BEGIN",
    };
    // The comment is not the first, or pg_stat_statements would count every realm's BEGIN by itself.
    let mut statement = String::with_capacity(begin.len() + comment.len() + 100);
    for part in [begin, SEPARATOR, comment, " "] {
        statement += part;
    }
    if let Some(settings) = of_pooler {
        statement = statement + settings + SEPARATOR;
    } else if let Some(lock) = lone_lock(claim, terms) {
        // Writing to a `String` does not fail.
        let lone = lock
            .key
            .value()
            .filter(|_| is_prepared && !lock.is_shared());
        let _ = match lone {
            Some(number) => write!(statement, "EXECUTE pg_try_advisory_xact_lock({number})"),
            None => write!(statement, "SELECT {} AS {FREE}", LockCall(TRY, lock)),
        };
        return LockStatement {
            text: statement,
            begin,
        };
    }
    if is_prepared && terms.share {
        statement += FORGET_TRY;
    }
    let lock_timeout = lock_timeout(terms);
    let was_busy = format!("current_setting('{BUSY}', true) = 't'");
    let tries = claim
        .locks()
        .iter()
        .any(|it| is_only_tried(it, terms, scout));
    let mut separator = "";
    for lock in claim.locks() {
        let unless_busy = if tries && !separator.is_empty() {
            format!("WHEN {was_busy} THEN 'f' ")
        } else {
            String::new()
        };
        let (taken, waited) = (LockCall(TRY, lock), LockCall(WAIT, lock));
        let _ = if is_only_tried(lock, terms, scout) {
            write!(
                statement,
                "{separator}SELECT set_config('{BUSY}', \
                 CASE {unless_busy}WHEN {taken} THEN 'f' ELSE 't' END, true) AS \"{BUSY}\""
            )
        } else {
            write!(
                statement,
                "{separator}SELECT CASE {unless_busy}WHEN {taken} THEN 't' ELSE \
                 {lock_timeout} || {waited}::text END AS {FREE}"
            )
        };
        separator = SEPARATOR;
    }
    if terms.fencing {
        // After the lock, so that the holder before has its token already.
        statement += token::ASK;
    }
    if terms.share {
        statement += SHARE;
    }
    LockStatement {
        text: statement,
        begin,
    }
}

/// The message that waits for a [lone key](lone_lock), which was tried in the same transaction;
/// `None` if it is not to be waited for.
pub(super) fn wait_statement(
    claim: &Claim,
    comment: &str,
    terms: AttemptTerms,
    scout: bool,
) -> Option<String> {
    let lock = lone_lock(claim, terms).filter(|it| !is_only_tried(it, terms, scout))?;
    let (lock_timeout, waited) = (lock_timeout(terms), LockCall(WAIT, lock));
    Some(format!(
        "{comment} SELECT {lock_timeout}; SELECT {waited} AS {FREE}"
    ))
}

/// The only lock of a claim, if nothing else is asked for with it. Mostly it is free, and a bare
/// try costs the server least.
fn lone_lock(claim: &Claim, terms: AttemptTerms) -> Option<&Lock> {
    match claim.locks() {
        [lock] if !terms.fencing && !terms.share => Some(lock),
        _ => None,
    }
}

fn is_only_tried(lock: &Lock, terms: AttemptTerms, scout: bool) -> bool {
    terms.tries || !scout && lock.is_shared()
}

/// The expression that has the server end a wait by itself.
fn lock_timeout(terms: AttemptTerms) -> String {
    let remaining = terms.deadline.saturating_duration_since(Instant::now());
    let lock_timeout = milliseconds(remaining);
    format!("set_config('lock_timeout', '{lock_timeout}', true)")
}

impl LockStatement {
    /// All of it as one message.
    pub(super) fn whole(&self) -> &str {
        &self.text
    }

    /// What begins the transaction, which never waits, and what follows: sets the limits of a
    /// transaction behind a pooler, and locks.
    pub(super) fn split(&self) -> (&str, &str) {
        let lock = self.begin.len() + SEPARATOR.len();
        (self.begin, self.text.get(lock..).unwrap_or_default())
    }
}

/// Whether a key that was only tried is taken. The transaction then has a part of the claim at
/// most.
pub(super) fn is_busy(rows: &[SimpleQueryMessage]) -> bool {
    values(rows, BUSY).any(|busy| busy == "t") || values(rows, FREE).any(|free| free == "f")
}

/// Whether somebody else had one of the locks, or waited for it.
pub(super) fn was_contended(rows: &[SimpleQueryMessage]) -> bool {
    values(rows, FREE).any(|free| free != "t")
}

/// Whether every lock of the claim was answered for. A pooler may pass on only a part of a message:
/// pgpool-II sends nothing but the BEGIN to a server that it does not know as the primary.
pub(super) fn is_complete(rows: &[SimpleQueryMessage], claim: &Claim) -> bool {
    values(rows, FREE).chain(values(rows, BUSY)).count() == claim.locks().len()
}
