//! Finds what no history under a lock may hold.
//!
//! # When a hold is over
//!
//! A hold that was lost (its replica killed, frozen or cut off) has an `enter` and no `leave`. It counts as over when
//! the next request enters its realm. What it does after that (`write`, `leave`) is an overlap, whatever its client was told;
//! a `refused` is not, because nothing was done. So a history needs a store that makes each record together with the deed
//! that it tells of, under a guard of its own: else a holder that is frozen between the two would look like an overlap that
//! no lock can prevent. See the store of the fault suite.
//!
//! Where the store compares no tokens it lets in a request whose lock was lost a moment ago and
//! passed to another replica: no replica can know of a loss before it has heard of it. Such a
//! request enters with a token that is not the greatest. Entering only reads, so the request counts
//! as not inside: if it then writes or leaves, that is an overlap.
//!
//! # What a success must be
//!
//! A success says that the lock was held for the whole call. So its request entered, wrote and left, was never
//! refused, and nobody else came in between. A store that refuses late writes does not hide a lock that let two in: the
//! earlier one is refused, and if its client is told of a success all the same, that is a violation.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use tower_realm_lock::FencingToken;

use super::record::{Event, Record};
use super::{History, NOT_WRITTEN, Outcome, Tokens, lock_of};

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A request worked in a realm that another one had entered since, or that it had left or never entered.
    Overlap,
    /// An acknowledged write is not in its realm exactly once, or any other is there more than once.
    LostWrite,
    /// A token is not greater than those of all holds of its realm before.
    TokenOrder,
    /// A lock was handed on to another process than the one that it was granted to.
    HandOff,
    /// A success of a request that did not hold the lock for its whole call.
    SuccessWithoutLock,
    /// A rejection said that nothing was done, and it was not so.
    RanThoughRejected,
}

/// A rule that was broken, by which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub realm: String,
    pub request: String,
    /// What happened, in words.
    pub what: String,
}

/// All violations of a history, in the order of its log and then of its requests.
pub fn check(history: &History) -> Vec<Violation> {
    let mut realms: BTreeMap<&str, Realm> = BTreeMap::new();
    let mut visits: HashMap<&str, Visit> = HashMap::new();
    let mut violations = Vec::new();
    for record in &history.records {
        let realm = realms.entry(&record.realm).or_default();
        let counts = history.tokens != Tokens::Recorded || !realm.is_late_entry(record);
        if counts {
            violations.extend(realm.violation(record));
        }
        visits
            .entry(&record.request)
            .or_default()
            .take(record, realm.greatest);
        if counts {
            realm.take(record);
        }
    }
    let unseen = Visit::default();
    let stored = Stored::of(history);
    for request in &history.requests {
        let visit = visits.get(&*request.id).unwrap_or(&unseen);
        let count = stored.count(&request.realm, &request.id);
        let broken = match &request.outcome {
            Outcome::Acknowledged => [visit.not_a_success(history.tokens), not_once(count)],
            Outcome::Refused(code) if NOT_WRITTEN.contains(&&**code) => {
                [visit.not_nothing(code), not_more_than_once(count)]
            }
            Outcome::Refused(_) | Outcome::Unknown => [None, not_more_than_once(count)],
        };
        violations.extend(broken.into_iter().flatten().map(|(rule, what)| Violation {
            rule,
            realm: request.realm.clone(),
            request: request.id.clone(),
            what,
        }));
    }
    violations
}

/// A broken rule, and how.
type Broken = Option<(Rule, String)>;

/// A realm, as far as the log is read.
#[derive(Default)]
struct Realm<'a> {
    /// The request that entered last, until it leaves.
    inside: Option<&'a str>,
    greatest: Option<FencingToken>,
    /// The replica of the hold that had the greatest token.
    replica: &'a str,
}

impl<'a> Realm<'a> {
    fn violation(&self, record: &Record) -> Option<Violation> {
        let (rule, what) = match record.event {
            Event::Enter if self.is_late_entry(record) => {
                let before = show(self.greatest);
                let token = show(record.token);
                (
                    Rule::TokenOrder,
                    format!("entered with token {token} after {before}"),
                )
            }
            Event::Enter if self.replica != record.replica && self.has_lock_of(record) => {
                let token = show(record.token);
                let replica = self.replica;
                (
                    Rule::HandOff,
                    format!("entered with {token}, whose lock was granted to {replica}"),
                )
            }
            Event::Write | Event::Leave if self.inside != Some(&record.request) => {
                let inside = self.inside.unwrap_or("nobody");
                (
                    Rule::Overlap,
                    format!("{} while {inside} is inside", record.event),
                )
            }
            _ => return None,
        };
        Some(Violation {
            rule,
            realm: record.realm.clone(),
            request: record.request.clone(),
            what,
        })
    }

    /// Whether a request enters after one with a greater token.
    fn is_late_entry(&self, record: &Record) -> bool {
        record.event == Event::Enter && record.token.is_some() && record.token <= self.greatest
    }

    /// Whether the hold with the greatest token had the very lock that a record tells of.
    fn has_lock_of(&self, record: &Record) -> bool {
        let locks = [self.greatest, record.token].map(|token| token.map(lock_of));
        locks[0].is_some() && locks[0] == locks[1]
    }

    fn take(&mut self, record: &'a Record) {
        match record.event {
            Event::Enter => {
                self.inside = Some(&record.request);
                if record.token > self.greatest {
                    self.greatest = record.token;
                    self.replica = &record.replica;
                }
            }
            Event::Leave if self.inside == Some(&record.request) => self.inside = None,
            Event::Leave | Event::Write | Event::Refused => {}
        }
    }
}

/// What one request did.
#[derive(Default)]
struct Visit {
    entered: bool,
    wrote: bool,
    left: bool,
    token: Option<FencingToken>,
    refused: Option<Refusal>,
}

struct Refusal {
    at_the_door: bool,
    /// The greatest token that had entered by then.
    greatest: Option<FencingToken>,
}

impl Visit {
    fn take(&mut self, record: &Record, greatest: Option<FencingToken>) {
        self.token = record.token;
        match record.event {
            Event::Enter => self.entered = true,
            Event::Write => self.wrote = true,
            Event::Leave => self.left = true,
            Event::Refused => {
                self.refused = Some(Refusal {
                    at_the_door: !self.entered,
                    greatest,
                });
            }
        }
    }

    /// Why this cannot have been a success.
    fn not_a_success(&self, tokens: Tokens) -> Broken {
        let without_lock = |what: &str| Some((Rule::SuccessWithoutLock, what.to_owned()));
        let token = show(self.token);
        match &self.refused {
            // It held the lock all the time, so all that had entered by then held it before.
            Some(refusal) if refusal.at_the_door => Some((
                Rule::TokenOrder,
                format!(
                    "acknowledged with token {token} after {}",
                    show(refusal.greatest)
                ),
            )),
            Some(refusal) => without_lock(&format!(
                "acknowledged, although {} had entered before token {token} was done",
                show(refusal.greatest)
            )),
            None if !self.entered => without_lock("acknowledged, and never entered"),
            None if !self.wrote => without_lock("acknowledged, and wrote nothing"),
            None if !self.left => without_lock("acknowledged before it left"),
            None if tokens != Tokens::Absent && self.token.is_none() => {
                without_lock("acknowledged without a token")
            }
            None => None,
        }
    }

    /// Why it is not true that nothing was done.
    fn not_nothing(&self, code: &str) -> Broken {
        let did_nothing = !self.entered && !self.wrote && !self.left && self.refused.is_none();
        (!did_nothing).then(|| {
            (
                Rule::RanThoughRejected,
                format!("its handler ran, and its client was told {code}"),
            )
        })
    }
}

/// How often each request is in its realm.
struct Stored<'a>(HashMap<(&'a str, &'a str), usize>);

impl<'a> Stored<'a> {
    fn of(history: &'a History) -> Self {
        let mut counts = HashMap::new();
        for (realm, requests) in &history.stored {
            for request in requests {
                *counts.entry((&**realm, &**request)).or_default() += 1;
            }
        }
        Self(counts)
    }

    fn count(&self, realm: &str, request: &str) -> usize {
        self.0.get(&(realm, request)).copied().unwrap_or_default()
    }
}

fn not_once(count: usize) -> Broken {
    let times = format!("acknowledged, and {count} times in its realm");
    (count != 1).then_some((Rule::LostWrite, times))
}

fn not_more_than_once(count: usize) -> Broken {
    let times = format!("{count} times in its realm");
    (count > 1).then_some((Rule::LostWrite, times))
}

fn show(token: Option<FencingToken>) -> String {
    token.map_or_else(|| "no token".into(), |token| token.to_string())
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            realm,
            request,
            what,
        } = self;
        write!(f, "{rule:?}: {request} in {realm}: {what}")
    }
}
