#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::urls;

fuzz_target!(|text: &str| {
    urls::a_realm_url_is_canonical(text);
});
