//! What a realm lock costs: this crate beside its peers, and beside no lock at all.
//!
//! `cargo bench` starts a PostgreSQL of its own, measures, and prints tables; `cargo bench -- --help` names its options. All
//! contenders run in one process and take turns in every round, so what else the machine does meets them alike: compare
//! within a run, not between runs. That every write was answered, counted and exclusive is checked; numbers are printed, and
//! in the table of targets compared with what is wanted.

mod chart;
mod contenders;
mod cores;
mod costs;
mod delay;
mod docs;
mod driver;
mod exclusion;
mod figures;
mod growth;
mod guard;
mod in_process;
mod limits;
mod lone_writer;
mod memory;
mod passing;
mod peers;
mod pgbench;
mod publishing;
mod replicas;
mod server;
mod sizes;
mod statistics;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod targets;
mod thousands;
mod throughput;
mod uncontended;
mod waiters;

use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use contenders::{BARE, CONNECTIONS, Contender, IN_POSTGRES, IN_PROCESS, MUTEX, Name};
use docs::Section;
use figures::Figures;
use growth::Curves;
use limits::Limit;
use server::Server;
use sizes::Sizes;
use support::cluster::Cluster;
use table::Table;
use tokio::runtime::Builder;

/// How long a write may wait, so that none is given up: longer than the slowest contender takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures what a realm lock costs.
#[derive(Parser)]
struct Arguments {
    /// Rounds of a measurement, each with all contenders; those that take longer have fewer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Measure hardly anything: to see that the benchmark runs, not what it prints.
    #[arg(long)]
    tiny: bool,
    /// Make one measurement instead of all.
    #[arg(long)]
    only: Option<Measurement>,
    /// Write the tables into docs/benchmarks.md, and draw docs/benchmarks.svg.
    #[arg(long, conflicts_with_all = ["tiny", "only"])]
    write_docs: bool,
    /// What `cargo bench` adds to the arguments of every benchmark. It changes nothing.
    #[arg(long, hide = true)]
    bench: bool,
    /// Only print how much memory a waiter of this contender takes, on the database at `--url`.
    #[arg(long, hide = true, requires_all = ["url", "waiters"])]
    memory_of: Option<String>,
    #[arg(long, hide = true)]
    url: Option<String>,
    #[arg(long, hide = true)]
    waiters: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Measurement {
    Uncontended,
    Far,
    Passing,
    HotRealm,
    DistinctRealms,
    Sessions,
    InProcess,
    Thousands,
    LoneWriter,
    Waiters,
    Replicas,
    Publishing,
    Growth,
}

/// What every measurement needs.
struct Bench {
    server: Server,
    contenders: Vec<Contender>,
    limits: Vec<(Name, Limit)>,
    sizes: Sizes,
}

/// What they come to.
#[derive(Default)]
struct Findings {
    sections: Vec<Section>,
    figures: Figures,
    curves: Vec<Curves>,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        if let Arguments {
            memory_of: Some(name),
            url: Some(url),
            waiters: Some(waiters),
            ..
        } = &arguments
        {
            return memory::print_of_a_waiter(name, url, *waiters).await;
        }
        let cluster = Cluster::create().await;
        let pid = cluster.server_pid().try_into().expect("a process id");
        let server = Server::on(cluster.port(), pid).await;
        // On a worker, as a server's requests are; this thread would have to be woken across threads.
        let measured = tokio::spawn(measure(server, arguments)).await;
        measured.expect("the measurements end well");
    });
}

async fn measure(server: Server, arguments: Arguments) {
    let bench = Bench::start(server, &arguments).await;
    exclusion::check(&bench.contenders).await;
    let cores = thread::available_parallelism().expect("a count of cores");
    let mut machine = Table::new("The run.", ["cores", "PostgreSQL", "rounds"]);
    machine.row([
        cores.to_string(),
        bench.server.version().await,
        bench.sizes.rounds.to_string(),
    ]);

    let mut findings = Findings::default();
    findings.add("run", machine);
    for measurement in Measurement::value_variants() {
        if arguments.only.is_none_or(|only| only == *measurement) {
            measurement.make(&bench, &mut findings).await;
        }
    }
    let whole = arguments.only.is_none();
    let targets = targets::table(&findings.figures, !arguments.tiny, whole);
    if !targets.is_empty() {
        findings.add("targets", targets);
    }

    if whole {
        // Also where they are not kept, so that the tiny run sees that they can be made.
        let document = docs::filled(&findings.sections);
        let chart = chart::drawn(&findings.curves);
        if arguments.write_docs {
            docs::write(&document, &chart);
        }
    }
}

impl Bench {
    async fn start(server: Server, arguments: &Arguments) -> Self {
        let names = [&[BARE, MUTEX, IN_PROCESS], IN_POSTGRES].concat();
        let sizes = if arguments.tiny {
            Sizes::tiny(arguments.rounds)
        } else {
            Sizes::real(arguments.rounds)
        };
        Self {
            contenders: Contender::start_all(&names, &server.url(), CONNECTIONS).await,
            limits: Limit::start_all(&server).await,
            server,
            sizes,
        }
    }

    /// # Panics
    /// When there is none of that name.
    fn contender(&self, name: Name) -> &Contender {
        let found = self.contenders.iter().find(|found| found.name == name);
        found.unwrap_or_else(|| panic!("nobody is called {name}"))
    }
}

impl Findings {
    pub fn add(&mut self, name: &'static str, table: Table) {
        println!("{}\n\n{table}", table.title());
        self.sections.push(Section { name, table });
    }
}

impl Measurement {
    async fn make(self, bench: &Bench, findings: &mut Findings) {
        match self {
            Self::Uncontended => uncontended::near(bench, findings).await,
            Self::Far => uncontended::far(bench, findings).await,
            Self::Passing => passing::measure(bench, findings).await,
            Self::HotRealm => throughput::hot(bench, findings).await,
            Self::DistinctRealms => throughput::distinct(bench, findings).await,
            Self::Sessions => throughput::sessions(bench, findings).await,
            Self::InProcess => in_process::measure(bench, findings).await,
            Self::Thousands => thousands::measure(bench, findings).await,
            Self::LoneWriter => lone_writer::measure(bench, findings).await,
            Self::Waiters => waiters::measure(bench, findings).await,
            Self::Replicas => replicas::measure(bench, findings).await,
            Self::Publishing => publishing::measure(bench, findings).await,
            Self::Growth => growth::measure(bench, findings).await,
        }
    }
}
