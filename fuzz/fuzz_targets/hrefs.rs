#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_realm_lock_fuzz::properties::hrefs;

fuzz_target!(|href: &str| {
    hrefs::an_href_is_the_resource_of_a_url(href);
});
