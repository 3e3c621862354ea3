//! Whole programs and whole pages: the bundled server and its page of locks, the examples, the documentation,
//! and the repository itself. One module for each promise, named for it.

mod atomic_add;
mod card_cache;
mod config_file;
mod example_server;
mod examples;
mod fencing_sql;
mod frozen_holder;
mod history;
mod if_match;
mod late_writes;
mod links;
mod locks_page;
mod lost_update;
mod migrating;
mod operations;
mod packaging;
mod readme;
mod realm_changes;
mod realm_races;
mod structure;
mod testing_page;
mod untrusted_text;

#[path = "../support/mod.rs"]
mod support;
