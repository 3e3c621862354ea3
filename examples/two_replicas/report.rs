//! What the two runs came to.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// One run of the race.
pub struct Run {
    pub name: String,
    /// Writes that were answered with a success.
    pub acknowledged: u32,
    /// Those of them that the card did not have afterwards.
    pub lost: u32,
    pub took: Duration,
}

/// Both runs.
pub struct Report {
    pub unlocked: Run,
    pub locked: Run,
}

impl Report {
    pub fn verdict(&self) -> &'static str {
        match (self.unlocked.lost, self.locked.lost) {
            (_, 1..) => "The locks did not keep the writers apart.",
            (0, 0) => {
                "Nothing was lost without the lock either, so this shows nothing: try more --rounds."
            }
            (_, 0) => "With the lock every acknowledged write is there.",
        }
    }

    /// About the lock alone: that a run without it was lucky is no fault of the lock.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(self.locked.lost > 0))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acknowledged, lost, seconds) = ("acknowledged", "lost", "seconds");
        writeln!(f, "{:<19} {acknowledged:>13} {lost:>7} {seconds:>9}", "run")?;
        for run in [&self.unlocked, &self.locked] {
            let Run {
                name,
                acknowledged,
                lost,
                took,
            } = run;
            let seconds = took.as_secs_f64();
            writeln!(f, "{name:<19} {acknowledged:>13} {lost:>7} {seconds:>9.1}")?;
        }
        f.write_str(self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_that_loses_writes_fails() {
        for (unlocked, locked, fails, says) in [
            (9, 0, false, "every acknowledged write is there"),
            (9, 1, true, "did not keep"),
            (0, 1, true, "did not keep"),
            (0, 0, false, "shows nothing"),
        ] {
            let run = |lost| Run {
                name: String::new(),
                acknowledged: 20,
                lost,
                took: Duration::ZERO,
            };
            let report = Report {
                unlocked: run(unlocked),
                locked: run(locked),
            };
            let failed = report.exit_code() == ExitCode::FAILURE;
            assert_eq!(failed, fails, "{unlocked} {locked}");
            assert!(report.verdict().contains(says), "{unlocked} {locked}");
        }
    }
}
