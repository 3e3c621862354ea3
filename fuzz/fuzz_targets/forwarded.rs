#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::origins;

fuzz_target!(|input: (Vec<(u8, String)>, &str)| {
    origins::a_stranger_says_nothing(&input.0);
    origins::what_stands_to_the_left_says_nothing(input.1);
});
