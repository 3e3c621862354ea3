//! How a realm is held: what a hold promises in PostgreSQL and in one process, whoever leaves, breaks or
//! waits. One module for each promise, named for it.

mod always_released;
mod broadcast;
mod broadcast_missed;
mod cancel_anywhere;
mod cancelled_waiters;
mod cancels_in_vain;
mod claims;
mod client_disconnect;
mod come_and_go;
mod confirmation;
mod database_outage;
mod early_release;
mod fencing;
mod fleet;
mod foreign_lock;
mod hand_off;
mod hand_off_cancelled;
mod hand_off_lost;
mod hand_off_turns;
mod held_work;
mod hosts;
mod in_place;
mod late_database;
mod lost_lock;
mod nested;
mod noisy_neighbour;
mod parallel_realms;
mod pgbouncer;
mod pgbouncer_cancelled;
mod pgbouncer_limits;
mod pgpool;
mod primary;
mod resources;
mod role_settings;
mod round_trips;
mod server_limits;
mod sessions;
mod sessions_cancelled;
mod sessions_full;
mod sessions_lost;
mod sessions_refused;
mod shared_confirmation;
mod shared_open;
mod shared_session;
mod shared_transaction;
mod shutdown;
mod silent_connections;
mod stream_hold;
mod stream_transaction;
mod taken_away;
mod tried;
mod visible_holder;

#[path = "../support/mod.rs"]
mod support;
