//! What a hold takes beside time: context switches, and the server's processor. Both are steadier than time.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

use crate::contenders::{Name, OLD_STATEMENT, PGBENCHES};
use crate::figures::{Figure, Figures};
use crate::server::Server;
use crate::statistics::{Lines, range, short, short_or_dash};
use crate::table::Table;
use crate::throughput::Done;

/// What each contender's holds took, each sample an average over many of them.
#[derive(Default)]
pub struct Costs {
    client_switches: Lines,
    server_switches: Lines,
    server_seconds: Lines,
}

/// All that client and server took since they started.
struct Counters {
    client_switches: f64,
    server_switches: f64,
    server_seconds: f64,
}

impl Costs {
    /// Adds what `work` takes. Nothing is added where the system does not say, nor for pgbench: its connections have ended
    /// by then.
    pub async fn count(
        &mut self,
        server: &Server,
        name: Name,
        work: impl Future<Output = Option<Done>>,
    ) -> Option<Done> {
        if PGBENCHES.contains(&name) {
            return work.await;
        }
        let before = Counters::read(server).await;
        let done = work.await?;
        let after = Counters::read(server).await;
        let (Some(before), Some(after)) = (before, after) else {
            return Some(done);
        };
        let each = |after: f64, before: f64| (after - before) / done.holds;
        self.client_switches
            .add(name, each(after.client_switches, before.client_switches));
        self.server_switches
            .add(name, each(after.server_switches, before.server_switches));
        self.server_seconds
            .add(name, each(after.server_seconds, before.server_seconds));
        Some(done)
    }

    /// `figure` takes the server's seconds for a hold.
    pub fn table(&self, case: &str, figure: Figure, figures: &mut Figures) -> Table {
        figures.set_medians(figure, &self.server_seconds);
        let head = [
            "each hold",
            "client's switches",
            "PostgreSQL's switches",
            "PostgreSQL's processor, µs",
            "middle half, µs",
            "÷ statement of 0.1",
        ];
        let mut table = Table::new(format!("What each of these holds took: {case}."), head);
        for (name, seconds) in self.server_seconds.iter() {
            table.row([
                name.to_owned(),
                short_or_dash(self.client_switches.median(name)),
                short_or_dash(self.server_switches.median(name)),
                short(seconds.median() * 1e6),
                range(seconds.quartiles().map(|seconds| short(seconds * 1e6))),
                short_or_dash(figures.ratio(figure, name, OLD_STATEMENT)),
            ]);
        }
        table
    }
}

impl Counters {
    /// The connection that asks who there is takes no part in the sums.
    async fn read(server: &Server) -> Option<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        let mut counters = Self {
            client_switches: float(switches.try_into().ok()?),
            server_switches: 0.0,
            server_seconds: 0.0,
        };
        for id in server.backends().await {
            // Who has ended meanwhile is left out.
            if let Some((switches, nanoseconds)) = of_process(id) {
                counters.server_switches += float(switches);
                counters.server_seconds += float(nanoseconds) / 1e9;
            }
        }
        (counters.server_seconds > 0.0).then_some(counters)
    }
}

/// Context switches of a process, and nanoseconds that it had a processor, in user mode and in the kernel.
///
/// `/proc/PID/stat` has the latter too, in hundredths of a second: longer than what is measured.
fn of_process(id: i32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let switches = status
        .lines()
        .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum();
    let times = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
    let on_processor = times.split(' ').next()?.parse().ok()?;
    Some((switches, on_processor))
}

/// Exact for as long as the sum is below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}
