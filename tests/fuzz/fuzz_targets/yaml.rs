//! Files of documents, in YAML and JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| drop(trysail_discovery::parse::parse_documents(text)));
