//! What stands for a limit: it locks, but guards no handler.

use std::time::Duration;

use crate::contenders::{CONNECTIONS, DRIVERS, Name, PGBENCHES};
use crate::driver::Driver;
use crate::pgbench::Pgbench;
use crate::server::{self, Server};
use crate::throughput::{Done, Realms};

pub enum Limit {
    Driver(Driver),
    Pgbench(Pgbench),
    /// These programs of PostgreSQL come without pgbench.
    NoPgbench,
}

impl Limit {
    /// All of them, and sees that the drivers lock.
    pub async fn start_all(server: &Server) -> Vec<(Name, Self)> {
        let mut limits = Vec::new();
        let other = server::connect(&server.url()).await;
        for name in DRIVERS {
            let driver = Driver::connect(name, &server.url(), CONNECTIONS).await;
            driver.check(&other).await;
            limits.push((*name, Self::Driver(driver)));
        }
        for name in PGBENCHES {
            let found = Pgbench::find(name, server.port());
            limits.push((*name, found.map_or(Self::NoPgbench, Self::Pgbench)));
        }
        limits
    }

    /// Holds of distinct realms for about as long as `time`; `None` where there is no program for it.
    pub async fn run(&self, writers: u32, realms: Realms, time: Duration) -> Option<Done> {
        match self {
            Self::Driver(driver) => Some(driver.run(writers, realms, time).await),
            Self::Pgbench(pgbench) => Some(pgbench.run(time).await),
            Self::NoPgbench => None,
        }
    }
}
