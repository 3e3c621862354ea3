//! The statement that locks.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;

use super::answer::values;
use super::settings::milliseconds;
use super::transaction::SHARE;
use crate::lock::token;
use crate::realm::claim::{Claim, Lock};

/// The column that says `t` where nobody else had the lock, or waited for it.
const FREE: &str = "lock_was_free";

/// The setting, and the column, that is `t` if a key that was only tried is taken; the keys after
/// it are left alone.
const BUSY: &str = "tower_realm_lock.busy";

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
    /// Begins the transaction. Never waits.
    pub(super) begin: &'static str,
    /// What follows: sets the limits of a transaction behind a pooler, and locks.
    pub(super) lock: String,
}

/// Makes the statements that begin, set the limits of a transaction if they are `of_pooler`, and
/// lock.
///
/// Each key is tried first, to know whether others want it too, and the wait limited only if there
/// is one. A try does not overtake those who wait. Keys have a statement each, as nothing else says
/// in what order they are locked; the claim has them in the order that all others take them in.
/// Only a `scout` waits to share a key, and a request that tries waits for none.
///
/// Read committed, whatever the server's default: under a stricter level the snapshot of the
/// transaction would be older than the lock. `set_config` with `true` ends with the transaction.
pub(super) fn lock_statement(
    claim: &Claim,
    comment: &str,
    of_pooler: Option<&str>,
    terms: AttemptTerms,
    scout: bool,
) -> LockStatement {
    let remaining = terms.deadline.saturating_duration_since(Instant::now());
    let lock_timeout = milliseconds(remaining);
    // The comment is not the first, or pg_stat_statements would count every realm's BEGIN by itself.
    let mut statement = format!("{comment} ");
    if let Some(settings) = of_pooler {
        statement = statement + settings + "; ";
    }
    let was_busy = format!("current_setting('{BUSY}', true) = 't'");
    let only_tried = |lock: &Lock| terms.tries || !scout && lock.is_shared();
    let tries = claim.locks().iter().any(only_tried);
    let mut separator = "";
    for lock in claim.locks() {
        let Lock { key, .. } = lock;
        let shared = if lock.is_shared() { "_shared" } else { "" };
        let unless_busy = if tries && !separator.is_empty() {
            format!("WHEN {was_busy} THEN 'f' ")
        } else {
            String::new()
        };
        let taken = format!("pg_try_advisory_xact_lock{shared}({key})");
        // Writing to a `String` does not fail.
        let _ = if only_tried(lock) {
            write!(
                statement,
                "{separator}SELECT set_config('{BUSY}', \
                 CASE {unless_busy}WHEN {taken} THEN 'f' ELSE 't' END, true) AS \"{BUSY}\""
            )
        } else {
            write!(
                statement,
                "{separator}SELECT CASE {unless_busy}WHEN {taken} THEN 't' ELSE \
                 set_config('lock_timeout', '{lock_timeout}', true) \
                 || pg_advisory_xact_lock{shared}({key})::text END AS {FREE}"
            )
        };
        separator = "; ";
    }
    if terms.fencing {
        // After the lock, so that the holder before has its token already.
        statement += token::ASK;
    }
    if terms.share {
        statement += SHARE;
    }
    LockStatement {
        begin: "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        lock: statement,
    }
}

impl LockStatement {
    /// All of it as one message.
    pub(super) fn joined(&self) -> String {
        let Self { begin, lock } = self;
        format!("{begin}; {lock}")
    }
}

/// Whether a key that was only tried is taken. The transaction then has a part of the claim at
/// most.
pub(super) fn is_busy(rows: &[SimpleQueryMessage]) -> bool {
    values(rows, BUSY).any(|busy| busy == "t")
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
