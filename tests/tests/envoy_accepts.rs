//! Real Envoy takes every resource of the conformance corpus' scenarios, as the gate lets them through, and what the gate holds
//! back it would refuse.
//!
//! The variables that leave out Istio's own filters are set, since stock Envoy has none of these.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trysail::pipeline::{Mode, Options};
use trysail_tests::validate::{self, Asked, Validator};
use trysail_tests::{corpus, envoy, quiet};

#[path = "support/render.rs"]
mod render;
#[path = "support/stock.rs"]
mod stock;

/// Every resource by scenario, proxy, kind and name; a name may be there more than once.
type Sent = BTreeMap<(PathBuf, String, String, String), Vec<Value>>;

fn read(out: &Path, scenarios: &[PathBuf]) -> Sent {
    let mut all = Sent::new();
    for scenario in scenarios {
        for proxy in fs::read_dir(out.join(scenario)).unwrap().map(Result::unwrap) {
            if !proxy.path().is_dir() {
                continue;
            }
            let name = proxy.file_name().to_string_lossy().into_owned();
            for (kind, list) in validate::sent(&proxy.path()).unwrap() {
                for resource in list.as_array().unwrap() {
                    let of = resource.get("name").or_else(|| resource.get("cluster_name")).and_then(Value::as_str);
                    let key = (scenario.clone(), name.clone(), kind.clone(), of.unwrap_or_default().to_owned());
                    all.entry(key).or_default().push(resource.clone());
                }
            }
        }
    }
    all
}

/// Each distinct body once.
fn distinct<'a>(sent: impl IntoIterator<Item = (&'a (PathBuf, String, String, String), &'a Value)>) -> Vec<Asked> {
    let mut seen = BTreeSet::new();
    let mut asked = Vec::new();
    for ((scenario, proxy, kind, name), resource) in sent {
        if seen.insert((kind, resource.to_string())) {
            let origin = format!("{} {proxy} {kind} {name}", scenario.display());
            asked.push(Asked { kind: kind.clone(), resource: resource.clone(), origin });
        }
    }
    asked
}

#[test]
fn envoy_takes_what_the_gate_lets_through_and_nothing_else() {
    let Some(root) = corpus::folder() else {
        eprintln!("envoy_takes_what_the_gate_lets_through_and_nothing_else: skipped: no corpus");
        return;
    };
    let envoy = envoy::find(quiet).unwrap();
    let scenarios = stock::scenarios(&root);
    let files = tempfile::tempdir().unwrap();
    let (input, gated, ungated) = (files.path().join("in"), files.path().join("gated"), files.path().join("ungated"));
    scenarios.iter().for_each(|scenario| stock::copy(&root.join(scenario), &input.join(scenario)));
    // Native code: that the sandbox gives the same is the corpus suite's to show.
    for (hold_back, out) in [(true, &gated), (false, &ungated)] {
        let options = Options { mode: Mode::Native, hold_back, ..Options::default() };
        let failed = render::render_all(&options, &input, &scenarios, out);
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
    let (gated, ungated) = (read(&gated, &scenarios), read(&ungated, &scenarios));

    // All findings at once: one run tells everything.
    let mut wrong = conflicts(&gated);
    let validator = Validator::new(&envoy).unwrap();
    let asked = distinct(gated.iter().flat_map(|(key, list)| list.iter().map(move |resource| (key, resource))));
    let refused = validator.refused(&asked).unwrap();
    // Extensions that this Envoy lacks another one may have.
    let refused: Vec<_> = refused.into_iter().filter(|refused| !stock::is_unknown_type(&refused.words)).collect();
    let lines: Vec<String> =
        refused.iter().map(|refused| format!("{}\n    {}", asked[refused.index].origin, refused.words)).collect();
    println!("{} distinct resources of {} scenarios, {} refused", asked.len(), scenarios.len(), lines.len());
    assert!(!asked.is_empty());
    wrong.extend(lines.into_iter().map(|line| format!("Envoy refuses what the gate lets through: {line}")));

    // The other way: what the gate changed or left out. Of itself Envoy would take a listener whose address another one has,
    // routes and endpoints that nobody asks for because what does so is held back, and a listener that waits for such routes.
    let held = ungated.iter().filter(|(key, list)| {
        gated.get(*key) != Some(*list)
            && !conflicts(&of_proxy(&ungated, key)).iter().any(|conflict| list.iter().any(|l| takes(l, conflict)))
            && !(is_asked_for(&key.2) && !gated.contains_key(*key) && !names(&of_proxy(&gated, key), key))
            && !(key.2 == "lds" && waits(list, &gated, &ungated, key))
    });
    let held = distinct(held.flat_map(|(key, list)| list.iter().map(move |resource| (key, resource))));
    let refused: BTreeSet<usize> = validator.refused(&held).unwrap().into_iter().map(|refused| refused.index).collect();
    println!("{} distinct resources were held back or changed by the gate", held.len());
    let taken = (0..held.len()).filter(|i| !refused.contains(i));
    wrong.extend(taken.map(|i| format!("Envoy takes what the gate holds back: {}", held[i].origin)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the proxy of a resource was sent.
fn of_proxy(sent: &Sent, (scenario, proxy, _, _): &(PathBuf, String, String, String)) -> Sent {
    let same = |key: &&(PathBuf, String, String, String)| key.0 == *scenario && key.1 == *proxy;
    sent.iter().filter(|(key, _)| same(key)).map(|(key, list)| (key.clone(), list.clone())).collect()
}

/// Whether a listener has the address that a conflict is about.
fn takes(listener: &Value, conflict: &str) -> bool {
    listener.get("address").is_some_and(|address| conflict.contains(&address.to_string()))
}

/// Whether a listener names routes that the gate holds back, so that it would wait for them for ever.
fn waits(listeners: &[Value], gated: &Sent, ungated: &Sent, of: &(PathBuf, String, String, String)) -> bool {
    let held = of_proxy(ungated, of).into_keys().filter(|key| key.2 == "rds" && !gated.contains_key(key));
    let quoted: Vec<String> = held.map(|key| Value::from(key.3).to_string()).collect();
    listeners.iter().any(|listener| quoted.iter().any(|name| listener.to_string().contains(name)))
}

/// Whether resources of a kind are asked for by the names that others give.
fn is_asked_for(kind: &str) -> bool {
    matches!(kind, "rds" | "eds")
}

/// Whether some listener names these routes, some cluster these endpoints.
fn names(sent: &Sent, (_, _, kind, name): &(PathBuf, String, String, String)) -> bool {
    let by = if kind == "rds" { "lds" } else { "cds" };
    let quoted = Value::from(name.as_str()).to_string();
    sent.iter().any(|(key, list)| key.2 == by && list.iter().any(|naming| naming.to_string().contains(&quoted)))
}

/// What a proxy was sent that it could not hold together.
fn conflicts(sent: &Sent) -> Vec<String> {
    let mut by_proxy: BTreeMap<(&PathBuf, &str, &str), Vec<Value>> = BTreeMap::new();
    for ((scenario, proxy, kind, _), list) in sent {
        by_proxy.entry((scenario, proxy, kind)).or_default().extend(list.iter().cloned());
    }
    let found = by_proxy.into_iter().flat_map(|((scenario, proxy, kind), list)| {
        let conflicts = validate::conflicts(kind, &list);
        conflicts.into_iter().map(move |conflict| format!("{} {proxy} {conflict}", scenario.display()))
    });
    found.collect()
}
