//! Calls that Istio's own tests state for a configuration come to where they should: followed through what is rendered.
//!
//! The same calls are followed through what istiod was recorded to send, which tests the matcher itself.
//! Needs the conformance corpus; see the suite `corpus`.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use trysail_tests::corpus;
use trysail_tests::simulation::{Sent, Stated};

#[path = "support/render.rs"]
mod render;

/// What the translation can do so far. Scenarios that need more are reported and may fail.
const AREAS: [&str; 8] =
    ["core", "service-entry", "sidecar-scope", "networks", "flags", "proxy-config", "gateways", "envoyfilter"];

fn stated(root: &Path) -> Vec<PathBuf> {
    corpus::scenarios(root).unwrap().into_iter().filter(|path| root.join(path).join("calls.yaml").is_file()).collect()
}

/// Follows each call of a scenario. Answers how many there are, and those that go wrong.
fn follow(root: &Path, scenario: &Path, sent: &Path) -> (usize, Vec<String>) {
    let calls = Stated::read(&root.join(scenario).join("calls.yaml")).unwrap();
    let mut wrong = Vec::new();
    for stated in &calls {
        let followed = Sent::read(&sent.join(&stated.proxy)).and_then(|sent| sent.call(&stated.call));
        let lines = match followed {
            Ok(outcome) => outcome.contradicts(stated.expected()),
            Err(error) => vec![format!("{error:#}")],
        };
        if !lines.is_empty() {
            wrong.push(format!("{}\n    {}", stated.name, lines.join("\n    ")));
        }
    }
    (calls.len(), wrong)
}

#[test]
fn matcher_agrees_with_recordings() {
    let Some(root) = corpus::folder() else {
        eprintln!("matcher_agrees_with_recordings: skipped: no corpus");
        return;
    };
    let (mut n_calls, mut wrong) = (0, Vec::new());
    for scenario in stated(&root) {
        let (n, failed) = follow(&root, &scenario, &root.join(&scenario).join("expected"));
        n_calls += n;
        wrong.extend(failed);
    }
    println!("{} of {n_calls} calls as stated", n_calls - wrong.len());
    assert!(n_calls > 0 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn calls_come_to_where_they_should() {
    let Some(root) = corpus::folder() else {
        eprintln!("calls_come_to_where_they_should: skipped: no corpus");
        return;
    };
    let areas = corpus::areas(&root).unwrap();
    let known: BTreeSet<String> = AREAS.into_iter().map(str::to_owned).collect();
    let (can, cannot): (Vec<_>, Vec<_>) = stated(&root)
        .into_iter()
        .partition(|scenario| areas.get(scenario).is_some_and(|areas| areas.is_subset(&known)));
    let out = tempfile::tempdir().unwrap();
    let follow_all = |what: &str, scenarios: &[PathBuf]| {
        let failed = render::render_all(&render::as_istiod(), &root, scenarios, out.path());
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        let (mut n_calls, mut wrong) = (0, Vec::new());
        for scenario in scenarios {
            let (n, failed) = follow(&root, scenario, &out.path().join(scenario));
            n_calls += n;
            wrong.extend(failed);
        }
        println!("{what}: {} of {n_calls} calls in {} scenarios as stated", n_calls - wrong.len(), scenarios.len());
        (n_calls, wrong)
    };
    follow_all("needs more than there is", &cannot);
    let (n_calls, wrong) = follow_all("all else", &can);
    assert!(n_calls > 0 && wrong.is_empty(), "{}", wrong.join("\n"));
}
