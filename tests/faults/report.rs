//! What a run came to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::{CARDS, Sent};
use crate::nemesis::Counts;
use crate::store;
use crate::strategies::Seen;
use crate::support::history::checker::{Rule, Violation};
use crate::support::history::record::Event;
use crate::support::history::{History, Outcome, hand_offs};

pub struct Report {
    pub history: History,
    pub violations: Vec<Violation>,
    pub faults: Counts,
    pub recovery: Recovery,
    pub seen: Arc<Seen>,
    pub directory: TempDir,
}

/// How soon realms were written again.
pub struct Recovery {
    /// After all faults had ended.
    pub when_well: Option<Duration>,
    /// After the last fault, which does not end.
    pub from_last_fault: Option<Duration>,
    /// The longest time in which a realm was not written at all.
    pub longest_gap: Duration,
}

impl Recovery {
    pub fn of(sent: &[Sent], begun: Instant, well: Instant, last_fault: Instant) -> Self {
        let written = CARDS.map(|card| acknowledged(sent, card));
        Self {
            when_well: written_again(&written, well),
            from_last_fault: written_again(&written, last_fault),
            longest_gap: longest_gap(&written, begun),
        }
    }
}

/// The writes of a realm, in the order of their answers.
fn acknowledged<'a>(sent: &'a [Sent], realm: &str) -> Vec<&'a Sent> {
    let mut written: Vec<&Sent> = sent
        .iter()
        .filter(|sent| sent.request.realm == realm)
        .filter(|sent| sent.request.outcome == Outcome::Acknowledged)
        .collect();
    written.sort_by_key(|sent| sent.ended);
    written
}

/// When every realm had a write that was begun after `since`; `None` if one never had.
fn written_again(written: &[Vec<&Sent>], since: Instant) -> Option<Duration> {
    let firsts = written.iter().map(|realm| {
        let first = realm.iter().find(|sent| sent.begun >= since)?;
        Some(first.ended - since)
    });
    firsts.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn longest_gap(written: &[Vec<&Sent>], begun: Instant) -> Duration {
    let gaps = written.iter().flat_map(|realm| {
        let ends: Vec<Instant> = realm.iter().map(|sent| sent.ended).collect();
        let starts = [begun].into_iter().chain(ends.clone());
        starts
            .zip(ends)
            .map(|(start, end)| end - start)
            .collect::<Vec<_>>()
    });
    gaps.max().unwrap_or_default()
}

impl Report {
    /// How many requests had this outcome.
    pub fn count(&self, outcome: &Outcome) -> usize {
        let requests = self.history.requests.iter();
        requests.filter(|it| it.outcome == *outcome).count()
    }

    pub fn broke(&self, rule: Rule) -> bool {
        self.violations.iter().any(|it| it.rule == rule)
    }

    /// How many visits had entered, and then were refused or found that they had lost their lock.
    pub fn refused_after_entering(&self) -> usize {
        let mut inside = BTreeSet::new();
        let mut refused = 0;
        for record in &self.history.records {
            match record.event {
                Event::Enter => {
                    inside.insert(&record.request);
                }
                Event::Refused if inside.contains(&record.request) => refused += 1,
                _ => {}
            }
        }
        refused
    }

    fn refused(&self) -> BTreeMap<&str, usize> {
        let mut codes = BTreeMap::new();
        for request in &self.history.requests {
            if let Outcome::Refused(code) = &request.outcome {
                *codes.entry(&**code).or_default() += 1;
            }
        }
        codes
    }

    /// How many holds that entered got a lock that was handed on to them.
    pub fn handed_on(&self) -> usize {
        let entered = self.history.records.iter();
        entered
            .filter(|it| it.event == Event::Enter)
            .filter(|it| it.token.is_some_and(|token| hand_offs(token) > 0))
            .count()
    }

    fn events(&self, event: Event) -> usize {
        let records = self.history.records.iter();
        records.filter(|it| it.event == event).count()
    }

    /// What led to the first violations; the store and its history stay where they are.
    pub fn explain(self) {
        let path = self.directory.keep();
        let log = store::history(&path);
        println!("  the whole history: {}", log.display());
        let text = fs::read_to_string(&log).unwrap_or_default();
        for violation in self.violations.iter().take(5) {
            println!("  {violation}");
            excerpt(&text, violation);
        }
    }
}

/// The lines of the log around those of a request: its realm's, and the faults.
fn excerpt(log: &str, violation: &Violation) {
    const AROUND: usize = 6;
    let realm = format!(" {} ", violation.realm);
    let request = format!(" {} ", violation.request);
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with('#') || line.contains(&realm))
        .collect();
    let shown = |index: usize| {
        let around = index.saturating_sub(AROUND)..lines.len().min(index + AROUND + 1);
        lines[around].iter().any(|line| line.contains(&request))
    };
    for (_, line) in lines.iter().enumerate().filter(|(index, _)| shown(*index)) {
        let mark = if line.contains(&request) { ">" } else { " " };
        println!("    {mark} {line}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acknowledged = self.count(&Outcome::Acknowledged);
        let unknown = self.count(&Outcome::Unknown);
        writeln!(
            f,
            "  writes: {} attempted, {acknowledged} acknowledged, {unknown} of unknown outcome",
            self.history.requests.len()
        )?;
        for (code, count) in self.refused() {
            writeln!(f, "  refused: {count} {code}")?;
        }
        for (kind, count) in &self.faults {
            writeln!(f, "  faults: {count} {kind}")?;
        }
        writeln!(
            f,
            "  holds: {} entered, {} of them with a lock that was handed on; {} refused by the store afterwards",
            self.events(Event::Enter),
            self.handed_on(),
            self.events(Event::Refused)
        )?;
        writeln!(
            f,
            "  locks seen held: {} by sessions, {} by transactions",
            self.seen.by_sessions(),
            self.seen.by_transactions()
        )?;
        let Recovery {
            when_well,
            from_last_fault,
            longest_gap,
        } = &self.recovery;
        for (time, what) in [
            (
                when_well,
                "every realm written again after all faults had ended",
            ),
            (
                from_last_fault,
                "every realm written again from the last fault on",
            ),
            (
                &Some(*longest_gap),
                "longest time without a write of a realm",
            ),
        ] {
            // Where there is none, the run says that it failed.
            if let Some(time) = time {
                writeln!(f, "  {what}: {} ms", time.as_millis())?;
            }
        }
        write!(f, "  violations: {}", self.violations.len())?;
        let mut rules: BTreeMap<Rule, usize> = BTreeMap::new();
        for violation in &self.violations {
            *rules.entry(violation.rule).or_default() += 1;
        }
        rules
            .iter()
            .try_for_each(|(rule, count)| write!(f, ", {count} {rule:?}"))
    }
}
