//! Errors and crashes on purpose, at one step of a change to a realm: for tests, which show that nothing is left half done.

use std::fmt;
use std::process::abort;
use std::str::FromStr;

use super::StoreError;

/// A point in a change to a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new files lie beside the realm.
    Prepared,
    /// The rows are written, in a transaction that is still open.
    Rows,
    /// The journal is written.
    Journal,
    /// The old files are aside, and the new ones not yet in their place.
    Aside,
    /// The new files are in their place.
    Swapped,
    /// The transaction shall commit.
    Commit,
    /// The change stands or not, and its leftovers are to be removed.
    Settle,
}

const STEPS: [(&str, Step); 7] = [
    ("prepared", Step::Prepared),
    ("rows", Step::Rows),
    ("journal", Step::Journal),
    ("aside", Step::Aside),
    ("swapped", Step::Swapped),
    ("commit", Step::Commit),
    ("settle", Step::Settle),
];

/// What goes wrong, if anything: `STEP:error` or `STEP:crash`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault(Option<(Step, Kind)>);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Error,
    /// As by `kill -9`: no destructor runs, and nothing is told to anybody.
    Crash,
}

impl Fault {
    /// To be called at each step.
    pub fn at(self, step: Step) -> Result<(), StoreError> {
        match self.0 {
            Some((at, Kind::Error)) if at == step => Err(StoreError::Injected { step }),
            Some((at, Kind::Crash)) if at == step => abort(),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            let steps = STEPS.map(|(name, _)| name).join(", ");
            format!("write STEP:error or STEP:crash, with a step of: {steps}")
        };
        let (step, kind) = text.split_once(':').ok_or_else(form)?;
        let found = STEPS.iter().find(|(name, _)| *name == step);
        let (_, step) = found.ok_or_else(form)?;
        let kind = match kind {
            "error" => Kind::Error,
            "crash" => Kind::Crash,
            _ => return Err(form()),
        };
        Ok(Self(Some((*step, kind))))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STEPS.iter().find(|(_, step)| step == self);
        f.write_str(name.map_or("?", |(name, _)| name))
    }
}
