#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::pointers;

fuzz_target!(|input: (&str, &[u8])| {
    pointers::a_pointer_leads_where_another_reader_finds_it(input.0, input.1);
});
