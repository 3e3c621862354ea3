//! Promises whose tests need a process of their own, because they count what a process allocates or collect what it
//! logs, and those whose tests also run with other features. One module for each promise, named for it.

mod credentials;
mod frugal;
mod many_realms;
mod metrics;
mod naming;
mod naming_warnings;
mod passwords;
mod support_self;
mod tls;

#[path = "../support/mod.rs"]
mod support;

/// Counts what the tests of memory allocate, each in a process of its own.
#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;
