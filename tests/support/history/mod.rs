//! The history of a realm's writers: what their handlers did, and what their clients were told.
//!
//! The handlers of all replicas append to one log that knows nothing of locks. A record is one `write(2)` to a file that is
//! open for appending, so the log has one order, and a record stands before all that is written after it was made.

pub mod checker;
pub mod record;

use std::collections::BTreeMap;

use tower_realm_lock::FencingToken;

use record::Record;

/// One run, as its checker sees it.
#[derive(Debug, Default)]
pub struct History {
    /// What the handlers did, in the order of the log.
    pub records: Vec<Record>,
    /// What the clients were told.
    pub requests: Vec<Request>,
    /// Which requests each realm holds in the end, each as often as it is there.
    pub stored: BTreeMap<String, Vec<String>>,
    pub tokens: Tokens,
}

/// What the holds and the store of a history make of fencing tokens.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Holds have none.
    #[default]
    Absent,
    /// Each hold has one, and the store compares none: it lets a late request in.
    Recorded,
    /// Each hold has one, and the store refuses all that are too old.
    Checked,
}

/// A request, as its client saw it.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: String,
    pub realm: String,
    pub outcome: Outcome,
}

/// What a client knows of its request in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A success: the write is there, and was made under the lock.
    Acknowledged,
    /// Another answer, by its code. The codes of [`NOT_WRITTEN`] promise that nothing was done.
    Refused(String),
    /// No answer: the connection broke, the answer did not come in time, or the client left.
    Unknown,
}

/// The codes of rejections which say that the handler was never called, so that it is safe to try again.
pub const NOT_WRITTEN: [&str; 3] = ["lock-timeout", "queue-full", "lock-unavailable"];

/// How many of a token's digits name the lock that PostgreSQL granted; the others count how often it was handed on since.
const LOCK_DIGITS: usize = 40;

/// Which granted lock a hold had: all that it was handed on to share it.
fn lock_of(token: FencingToken) -> String {
    let mut digits = token.to_string();
    digits.truncate(LOCK_DIGITS);
    digits
}

/// How often the lock of a hold had been handed on before.
pub fn hand_offs(token: FencingToken) -> u32 {
    u32::from_str_radix(&token.to_string()[LOCK_DIGITS..], 16).expect("eight digits")
}
