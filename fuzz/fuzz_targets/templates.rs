#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::routes;

fuzz_target!(|input: (&str, &str)| {
    routes::a_route_is_what_a_router_takes_for_it(input.0, input.1);
});
