//! The flags of the suite, and those that `cargo test` gives to every test program.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;

/// Breaks everything that can break, for a while, and checks that no write was lost.
#[derive(Debug, Parser)]
#[command(
    name = "faults",
    after_help = "As a test: cargo test --test faults -- --seconds 600 --seed 7"
)]
pub struct Flags {
    /// How long faults happen; 10,000 writes are wanted in a minute.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,

    /// Which faults happen when [default: another one each time].
    #[arg(long)]
    pub seed: Option<u64>,

    /// Run without the layer, to see the violations; the run then fails.
    #[arg(long, conflicts_with = "naive")]
    pub without_lock: bool,

    /// Run with a lock that does not notice its loss, to see the violations; the run then fails.
    #[arg(long)]
    pub naive: bool,

    #[command(flatten)]
    harness: Harness,
}

/// What the standard harness would know. Only what decides whether to run is heeded.
#[derive(Debug, Parser)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the harness"
)]
struct Harness {
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true, alias = "no-capture")]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(short = 'Z', hide = true)]
    unstable: Vec<String>,
}

/// The name that filters are compared with.
const NAME: &str = "faults";

impl Flags {
    /// The list of tests, if that is what is wanted.
    pub fn list(&self) -> Option<&'static str> {
        let list = if self.left_out().is_some() {
            ""
        } else {
            "faults: test\n"
        };
        self.harness.list.then_some(list)
    }

    /// Why the suite is not to run.
    pub fn left_out(&self) -> Option<&'static str> {
        let Harness {
            filters,
            skip,
            exact,
            ignored,
            ..
        } = &self.harness;
        let is_meant = |filter: &String| {
            if *exact {
                NAME == filter
            } else {
                NAME.contains(&**filter)
            }
        };
        if !filters.is_empty() && !filters.iter().any(is_meant) {
            return Some("the filter names other tests");
        }
        if skip.iter().any(is_meant) {
            return Some("it is to be skipped");
        }
        ignored.then_some("only ignored tests are wanted")
    }

    /// The seed that was given, or one that was never given before.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            // Short enough to be typed.
            u64::from(now.expect("after 1970").subsec_nanos())
        })
    }
}
