#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::origins;

fuzz_target!(|host: &str| {
    origins::a_host_is_that_of_a_url(host);
});
