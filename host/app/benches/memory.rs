//! Memory for 1,000 services, 10 of them with other ports than 80, and 1,000 distinct workloads in 50 namespaces.
//!
//! Not a measurement of time: it prints resident memory before, with the facts, and with all proxies served.

use std::sync::Arc;
use std::time::Instant;

use trysail::pipeline::{self, Mode, Options};
use trysail_facts::FactsSnapshot;

#[path = "mesh/generate.rs"]
mod mesh;

/// Resident memory in MiB; 0 where the system does not tell.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) / 1024
}

fn measure() {
    let size = mesh::Size { rules_every: 0, ..mesh::Size::of(1000) };
    let options = Options { mode: Mode::Sandboxed, audit_share: 0.0, ..Options::default() };
    let stages = pipeline::stages(&options).expect("the stages load");
    println!("memory/start: {} MiB", resident());
    let inputs = mesh::inputs(size);
    let proxies = mesh::sidecars(&inputs);
    println!("memory/objects: {} MiB", resident());
    let snapshot = FactsSnapshot::new(inputs);
    println!("memory/facts: {} MiB", resident());
    let engine = pipeline::engine(&options, stages, Arc::new(snapshot));
    let began = Instant::now();
    let mut subscriptions = mesh::Subscriptions::new();
    let mut wanted = Vec::with_capacity(proxies.len());
    for (n, proxy) in proxies.iter().enumerate() {
        wanted.push(subscriptions.connect(&engine, proxy));
        if n + 1 == 1 || n + 1 == 100 {
            println!("memory/{}-proxies: {} MiB", n + 1, resident());
        }
    }
    println!("memory/{}-proxies: {} MiB, served in {:?}", wanted.len(), resident(), began.elapsed());
    let dropped = engine.collect(0);
    println!("memory/collected: {} MiB, {dropped:?}", resident());
}

fn main() {
    let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(measure);
    thread.expect("a thread starts").join().expect("nothing panics");
}
