//! A node: its id on the first line, its metadata as JSON after that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trysail_model::Proxy;

fuzz_target!(|text: &str| {
    let (id, metadata) = text.split_once('\n').unwrap_or((text, "{}"));
    if let Ok(metadata) = serde_json::from_str(metadata) {
        let _ = Proxy::from_node(id, metadata, Default::default());
    }
});
