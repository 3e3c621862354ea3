//! What the integration tests stand on: a throwaway PostgreSQL, a database of a test's own, processes of the example
//! server, and a client for its cards.
//!
//! Everything here panics with what it saw when it cannot do its part: a test has no use for an error value.

// Each test program, an example and the benchmark compile this folder, and use only a part of it.
#![allow(dead_code)]

pub mod alone;
pub mod bouncer;
pub mod broadcast;
pub mod claims;
pub mod client;
pub mod cluster;
pub mod contest;
pub mod database;
pub mod decided;
pub mod example;
pub mod gate;
pub mod history;
pub mod installed;
mod keeper;
pub mod load;
pub mod log;
pub mod page;
pub mod pgpool;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod realms;
pub mod replica;
pub mod replicas;
pub mod silence;
pub mod standby;
pub mod wait;
pub mod writes;

use std::panic::resume_unwind;

/// Runs `work`, which blocks, beside the runtime, so that the tasks of a single-threaded test go on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => resume_unwind(error.into_panic()),
    }
}
