//! Which requests are locked, and what their clients see: names, rules, bodies, rejections and the layers
//! around. One module for each promise, named for it.

mod canonical_paths;
mod explain;
// Handlers take their hold as an argument with this feature.
#[cfg(feature = "axum")]
mod face;
mod forwarded;
mod hostile_input;
mod hostile_names;
mod layers;
mod method_override;
mod nested_router;
mod one_realm_one_key;
mod rejected_requests;
mod rejections;
mod request_bodies;
mod resolvers;
mod resource_scope_http;
mod route_rules;
mod server_timing;
mod slow_bodies;
mod slow_uploads;
mod sources;
mod stacks;
mod success;
mod webdav;

#[path = "../support/properties/mod.rs"]
mod properties;
#[path = "../support/mod.rs"]
mod support;
