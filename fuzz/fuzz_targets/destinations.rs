#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::destinations;

fuzz_target!(|path: &str| {
    destinations::a_destination_is_read_as_a_path_is(path);
});
