#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::paths;

fuzz_target!(|path: &str| {
    paths::a_key_is_that_of_the_realm_that_a_router_sees(path);
    paths::the_pattern_counts_that_a_router_prefers(path);
});
