//! The checker of the fault suite: it finds each violation in a history that has it, and none in one that is fine.

use crate::support::history::checker::{Rule, check};
use crate::support::history::record::{self, Event, Log, Record};
use crate::support::history::{History, Outcome, Request, Tokens};

const REALM: &str = "luke/a";

/// A history of one realm, of lines `enter a 1`: event, request, token. The token `1+2` is that of a lock which was handed on
/// twice. Each lock is granted to a replica of its own. What was written is stored, in its order.
fn history(lines: &[&str]) -> History {
    let records: Vec<Record> = lines
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [event, request, token] = words[..] else {
                panic!("'{line}' is not `event request token`");
            };
            let (lock, hand_offs) = token.split_once('+').unwrap_or((token, "0"));
            let digits = match lock {
                "-" => "-".to_owned(),
                lock => format!("{lock}{hand_offs:0>8}"),
            };
            format!("{event} {REALM} {request} replica-of-{lock} {digits}")
                .parse()
                .unwrap()
        })
        .collect();
    let written = records
        .iter()
        .filter(|record| record.event == Event::Write)
        .map(|record| record.request.clone())
        .collect();
    History {
        records,
        requests: Vec::new(),
        stored: [(REALM.to_owned(), written)].into(),
        tokens: Tokens::Checked,
    }
}

impl History {
    fn told(mut self, request: &str, outcome: Outcome) -> Self {
        self.requests.push(Request {
            id: request.into(),
            realm: REALM.into(),
            outcome,
        });
        self
    }

    fn acknowledged(self, request: &str) -> Self {
        self.told(request, Outcome::Acknowledged)
    }

    fn rejected(self, request: &str, code: &str) -> Self {
        self.told(request, Outcome::Refused(code.into()))
    }

    fn unknown(self, request: &str) -> Self {
        self.told(request, Outcome::Unknown)
    }

    fn stored(mut self, requests: &[&str]) -> Self {
        let stored = requests.iter().map(ToString::to_string).collect();
        self.stored.insert(REALM.into(), stored);
        self
    }

    /// The rules it breaks, and by which request.
    fn broken(&self) -> Vec<(Rule, String)> {
        let violations = check(self).into_iter();
        violations.map(|it| (it.rule, it.request)).collect()
    }

    #[track_caller]
    fn is_fine(&self) {
        assert_eq!(check(self), []);
    }

    #[track_caller]
    fn breaks(&self, rule: Rule, request: &str) {
        assert_eq!(self.broken(), [(rule, request.to_owned())]);
    }
}

#[test]
fn one_after_the_other_is_fine() {
    history(&[
        "enter a 1",
        "write a 1",
        "leave a 1",
        "enter b 2",
        "write b 2",
        "leave b 2",
    ])
    .acknowledged("a")
    .acknowledged("b")
    .is_fine();
}

#[test]
fn realms_do_not_meet() {
    let mut history = history(&["enter a 2", "write a 2", "leave a 2"]).acknowledged("a");
    for (place, line) in [
        (1, "enter luke/b b replica 1"),
        (2, "write luke/b b replica 1"),
        (5, "leave luke/b b replica 1"),
    ] {
        history.records.insert(place, line.parse().unwrap());
    }
    history.is_fine();
}

#[test]
fn a_killed_holder_is_over_when_the_next_one_enters() {
    for (stored, what) in [
        (&["a", "b"][..], "it had written"),
        (&["b"], "it had not, or its record is missing"),
    ] {
        for begun in [&["enter a 1"][..], &["enter a 1", "write a 1"]] {
            let next = ["enter b 2", "write b 2", "leave b 2"];
            let history = history(&[begun, &next].concat()).stored(stored);
            assert_eq!(check(&history), [], "{what}");
            history.unknown("a").acknowledged("b").is_fine();
        }
    }
}

#[test]
fn a_frozen_holder_that_is_refused_later_is_fine_if_it_is_not_a_success() {
    let history = || {
        history(&[
            "enter a 1",
            "enter b 2",
            "write b 2",
            "refused a 1",
            "leave b 2",
        ])
        .acknowledged("b")
    };
    history().rejected("a", "lock-lost").is_fine();
    history().unknown("a").is_fine();
    history()
        .acknowledged("a")
        .stored(&["a", "b"])
        .breaks(Rule::SuccessWithoutLock, "a");
}

#[test]
fn one_that_was_frozen_at_the_door_is_fine_if_it_is_not_a_success() {
    let history = || {
        history(&["enter b 2", "refused a 1", "write b 2", "leave b 2"])
            .acknowledged("b")
            .stored(&["a", "b"])
    };
    history().rejected("a", "lock-lost").is_fine();
    history().acknowledged("a").breaks(Rule::TokenOrder, "a");
}

#[test]
fn work_after_the_next_one_has_entered_is_an_overlap_whatever_the_client_was_told() {
    for late in ["write a 1", "leave a 1"] {
        let history = || history(&["enter a 1", "enter b 2", late, "write b 2", "leave b 2"]);
        history().breaks(Rule::Overlap, "a");
        history().unknown("a").breaks(Rule::Overlap, "a");
        history()
            .rejected("a", "lock-lost")
            .acknowledged("b")
            .breaks(Rule::Overlap, "a");
    }
}

#[test]
fn two_that_are_both_inside_and_both_succeed_are_an_overlap() {
    let broken = history(&[
        "enter a 1",
        "enter b 2",
        "write a 1",
        "write b 2",
        "leave a 1",
        "leave b 2",
    ])
    .acknowledged("a")
    .acknowledged("b")
    .broken();
    let expected = [
        (Rule::Overlap, "a".to_owned()),
        (Rule::Overlap, "a".to_owned()),
    ];
    assert_eq!(broken, expected);
}

#[test]
fn work_after_leaving_or_without_entering_is_an_overlap() {
    history(&["enter a 1", "leave a 1", "write a 1"]).breaks(Rule::Overlap, "a");
    history(&["write a 1"]).breaks(Rule::Overlap, "a");
}

#[test]
fn an_acknowledged_write_is_stored_exactly_once() {
    let history = || history(&["enter a 1", "write a 1", "leave a 1"]);
    history()
        .stored(&[])
        .acknowledged("a")
        .breaks(Rule::LostWrite, "a");
    history()
        .stored(&["a", "a"])
        .acknowledged("a")
        .breaks(Rule::LostWrite, "a");
    history().stored(&["a"]).acknowledged("a").is_fine();
}

#[test]
fn a_write_of_unknown_outcome_is_stored_at_most_once() {
    let history = || history(&["enter a 1", "write a 1", "leave a 1"]);
    for outcome in [Outcome::Unknown, Outcome::Refused("lock-lost".into())] {
        history().told("a", outcome.clone()).is_fine();
        history().stored(&[]).told("a", outcome.clone()).is_fine();
        history()
            .stored(&["a", "a"])
            .told("a", outcome)
            .breaks(Rule::LostWrite, "a");
    }
}

#[test]
fn tokens_only_grow() {
    for second in ["1", "2"] {
        let enter = format!("enter b {second}");
        history(&["enter a 2", "leave a 2", &enter]).breaks(Rule::TokenOrder, "b");
    }
    // Greater than the last is not enough.
    let broken = history(&["enter a 5", "enter b 3", "enter c 4"]).broken();
    let rules: Vec<Rule> = broken.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(rules, [Rule::TokenOrder, Rule::TokenOrder]);
}

#[test]
fn tokens_grow_from_hand_off_to_hand_off() {
    let holds = |tokens: [&str; 4]| {
        let [a, b, c, d] = tokens;
        history(&[
            &*format!("enter a {a}"),
            &format!("leave a {a}"),
            &format!("enter b {b}"),
            &format!("leave b {b}"),
            &format!("enter c {c}"),
            &format!("leave c {c}"),
            &format!("enter d {d}"),
        ])
    };
    holds(["1", "1+1", "1+2", "2"]).is_fine();
    // One that it was handed on to has left before its handler began.
    holds(["1", "1+2", "1+a", "1+b"]).is_fine();
    holds(["1", "1+1", "1+1", "2"]).breaks(Rule::TokenOrder, "c");
    holds(["1", "1+2", "1+1", "2"]).breaks(Rule::TokenOrder, "c");
    holds(["1", "1+1", "2", "1+2"]).breaks(Rule::TokenOrder, "d");
}

#[test]
fn a_lock_is_handed_on_within_its_process_alone() {
    let mut history = history(&["enter a 1", "leave a 1", "enter b 1+1", "leave b 1+1"]);
    history.is_fine();
    for record in &mut history.records[2..] {
        record.replica = "another".into();
    }
    history.breaks(Rule::HandOff, "b");
}

#[test]
fn a_success_has_done_all_its_work_under_a_token() {
    for done in [
        &["enter a 1"][..],
        &["enter a 1", "write a 1"],
        &["enter a 1", "leave a 1"],
        &["enter a -", "write a -", "leave a -"],
        &[],
    ] {
        let history = || history(done).stored(&["a"]);
        history()
            .acknowledged("a")
            .breaks(Rule::SuccessWithoutLock, "a");
        history().unknown("a").is_fine();
    }
}

#[test]
fn without_fencing_there_are_no_tokens_to_miss() {
    let mut history = history(&["enter a -", "write a -", "leave a -", "enter b -"]);
    history.tokens = Tokens::Absent;
    history.acknowledged("a").is_fine();
}

#[test]
fn where_no_store_checks_tokens_a_late_request_may_enter_and_do_nothing() {
    let unchecked = |lines: &[&str]| {
        let mut history = history(lines);
        history.tokens = Tokens::Recorded;
        history
    };
    let late = ["enter a 1", "leave a 1", "enter b 2", "enter c 1+1"];
    let then = |lines: &[&str]| unchecked(&[&late, lines].concat());
    then(&["write b 2", "leave b 2", "refused c 1+1"])
        .acknowledged("b")
        .is_fine();
    then(&["write c 1+1"]).breaks(Rule::Overlap, "c");
    then(&["write b 2", "leave b 2", "write c 1+1"]).breaks(Rule::Overlap, "c");
    then(&["leave c 1+1"]).breaks(Rule::Overlap, "c");
    then(&[])
        .rejected("c", "lock-timeout")
        .breaks(Rule::RanThoughRejected, "c");
    // The one that entered last in order has lost its lock to nobody.
    then(&["enter d 3", "write b 2"]).breaks(Rule::Overlap, "b");
}

#[test]
fn a_rejection_that_promises_that_nothing_was_done_is_true() {
    for code in ["lock-timeout", "queue-full", "lock-unavailable"] {
        history(&[]).rejected("a", code).is_fine();
        history(&["enter a 1"])
            .rejected("a", code)
            .breaks(Rule::RanThoughRejected, "a");
    }
}

#[test]
fn a_log_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history");
    let records = history(&["enter a 1", "refused b -"]).records;
    for record in &records {
        let log = Log::append_to(&path).unwrap();
        log.remark("a fault").unwrap();
        log.append(record).unwrap();
    }
    assert_eq!(record::read(&path), records);
    assert!("enter luke/a a".parse::<Record>().is_err());
    assert!("enter luke/a a replica x".parse::<Record>().is_err());
    assert!("dance luke/a a replica 1".parse::<Record>().is_err());
}
