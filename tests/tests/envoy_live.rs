//! Real Envoy takes what a running control plane sends for one scenario of each group of the conformance corpus, over ADS in
//! both variants.
//!
//! Envoy poses as the scenario's own proxy. Needs the corpus, and root for network namespaces.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use trysail_tests::bootstrap::Variant;
use trysail_tests::live::{self, Live};
use trysail_tests::sds::Authority;
use trysail_tests::{corpus, netns};

#[path = "support/stock.rs"]
mod stock;

/// Scenarios at a time.
const SIDE_BY_SIDE: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn one_scenario_of_each_group() {
    let test = "one_scenario_of_each_group";
    let Some(root) = corpus::folder() else {
        eprintln!("{test}: skipped: no corpus");
        return;
    };
    if netns::or_skip(test).is_none() {
        return;
    }
    let mut groups: BTreeMap<String, PathBuf> = BTreeMap::new();
    for scenario in stock::scenarios(&root) {
        groups.entry(corpus::group(&scenario)).or_insert(scenario);
    }
    let n_groups = groups.len();
    let todo: VecDeque<_> = groups.into_values().zip([Variant::Delta, Variant::Sotw].into_iter().cycle()).collect();
    let todo = Arc::new(Mutex::new(todo));
    let mut workers = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let (todo, root) = (todo.clone(), root.clone());
        workers.spawn(async move {
            let mut wrong = Vec::new();
            loop {
                let Some((scenario, variant)) = todo.lock().unwrap().pop_front() else { return wrong };
                match rejected(&root.join(&scenario), variant).await {
                    Ok(rejections) if rejections.is_empty() => {}
                    // Extensions that this Envoy lacks another one may have; what it says of them is all it says.
                    Ok(rejections) if is_about_a_type(&rejections) => {}
                    Ok(rejections) => wrong.push(format!("{} {variant:?}: {rejections:#?}", scenario.display())),
                    Err(error) => wrong.push(format!("{} {variant:?}: {error:#}", scenario.display())),
                }
            }
        });
    }
    let wrong: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    println!("{n_groups} groups, {} of them not taken", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether all that is said is about types that this Envoy lacks, with the one count that goes with it.
fn is_about_a_type(rejections: &[String]) -> bool {
    let (types, rest): (Vec<_>, Vec<_>) = rejections.iter().partition(|said| stock::is_unknown_type(said));
    !types.is_empty() && rest.iter().all(|said| said.ends_with("update_rejected = 1"))
}

/// Runs a scenario; answers what Envoy rejected.
async fn rejected(scenario: &Path, variant: Variant) -> Result<Vec<String>> {
    let files = tempfile::tempdir().context("cannot make a folder")?;
    let folder = files.path().join("config");
    stock::copy(scenario, &folder);
    let node = live::node(&folder, None)?;
    stock::only_what_is_served(&folder);
    let environment: Vec<(String, String)> = stock::variables(scenario).into_iter().collect();
    let authority = Authority::new()?;
    let config =
        live::Config { folder: &folder, environment: &environment, node, variant, authority: &authority, around: None };
    Live::start(config).await?.settled().await
}
