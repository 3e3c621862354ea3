//! What a hold takes beside time: context switches, and the server's processor. Both are steadier than time.

use std::collections::HashMap;
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

use crate::contenders::{Name, PGBENCHES};
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

/// What client and server have taken since they started.
struct Counters {
    client_switches: u64,
    /// By process id.
    server: HashMap<i32, Backend>,
}

#[derive(Clone, Copy, Default)]
struct Backend {
    switches: u64,
    nanoseconds: u64,
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
        if let (Some(before), Some(after)) = (before, after) {
            let each = |count| float(count) / done.holds;
            let backends = after.backends_since(&before);
            self.client_switches
                .add(name, each(after.client_switches - before.client_switches));
            self.server_switches.add(name, each(backends.switches));
            self.server_seconds
                .add(name, each(backends.nanoseconds) / 1e9);
        }
        Some(done)
    }

    /// `figure` takes the server's seconds for a hold.
    pub fn table(&self, case: &str, figure: Figure, figures: &mut Figures, beside: Name) -> Table {
        figures.set_medians(figure, &self.server_seconds);
        let beside_head = format!("÷ {beside}");
        let head = [
            "each hold",
            "client's switches",
            "PostgreSQL's switches",
            "PostgreSQL's processor, µs",
            "middle half, µs",
            &beside_head,
        ];
        let mut table = Table::new(format!("What each of these holds took: {case}."), head);
        for (name, seconds) in self.server_seconds.iter() {
            table.row([
                name.to_owned(),
                short_or_dash(self.client_switches.median(name)),
                short_or_dash(self.server_switches.median(name)),
                short(seconds.median() * 1e6),
                range(seconds.quartiles().map(|seconds| short(seconds * 1e6))),
                short_or_dash(figures.ratio(figure, name, beside)),
            ]);
        }
        table
    }
}

impl Counters {
    /// `None` where the system does not have them.
    async fn read(server: &Server) -> Option<Self> {
        let backends = server.backends().await.into_iter();
        let server: HashMap<_, _> = backends
            .filter_map(|id| Some((id, Backend::read(id)?)))
            .collect();
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        let client_switches = switches.try_into().ok()?;
        (!server.is_empty()).then_some(Self {
            client_switches,
            server,
        })
    }

    /// What the backends took that are still there. New ones have taken all of it since.
    fn backends_since(&self, before: &Self) -> Backend {
        let mut sum = Backend::default();
        for (id, after) in &self.server {
            let before = before.server.get(id).copied().unwrap_or_default();
            sum.switches += after.switches.saturating_sub(before.switches);
            sum.nanoseconds += after.nanoseconds.saturating_sub(before.nanoseconds);
        }
        sum
    }
}

impl Backend {
    /// Its context switches, and how long it had a processor, in user mode and in the kernel.
    ///
    /// `/proc/PID/stat` has the latter too, in hundredths of a second: longer than what is measured.
    fn read(id: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        // Voluntary ones and `nonvoluntary` ones.
        let switches = status
            .lines()
            .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
            .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
            .sum();
        let times = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
        Some(Self {
            switches,
            nanoseconds: times.split(' ').next()?.parse().ok()?,
        })
    }
}

/// Exact for as long as the sum is below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}
