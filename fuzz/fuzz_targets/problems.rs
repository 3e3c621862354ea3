#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::problems;

fuzz_target!(|text: &str| {
    problems::a_problem_body_is_plain(text);
    problems::a_broken_body_is_told_plainly(text);
});
