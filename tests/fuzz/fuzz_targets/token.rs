//! Bearer tokens and key sets.
#![no_main]
#![allow(dead_code, reason = "the other entry points")]

use libfuzzer_sys::fuzz_target;

#[path = "../../../host/ca/tests/support/entries.rs"]
mod entries;

fuzz_target!(|input: &str| {
    entries::token(input);
});
