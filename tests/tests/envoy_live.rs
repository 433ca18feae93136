//! Real Envoy takes what a running control plane sends for one scenario of each group of the conformance corpus, over ADS in
//! both variants.
//!
//! Envoy poses as the scenario's own proxy. Needs the corpus, and root for network namespaces.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::task::JoinSet;
use trysail_tests::admin::Admin;
use trysail_tests::bootstrap::{self, Variant};
use trysail_tests::control_plane::{self, ControlPlane, GRPC};
use trysail_tests::envoy::write_readable;
use trysail_tests::kube::PodSpec;
use trysail_tests::netns::{self, Interception, Netns};
use trysail_tests::pod::Process;
use trysail_tests::sds::{self, Authority};
use trysail_tests::{corpus, envoy, eventually, quiet};

#[path = "support/stock.rs"]
mod stock;

/// Scenarios at a time.
const SIDE_BY_SIDE: usize = 3;

/// How long Envoy may take to have what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);

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
                match live(&root.join(&scenario), variant).await {
                    Ok(rejections) if rejections.is_empty() => {}
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

/// Runs a scenario; answers what Envoy rejected.
async fn live(scenario: &Path, variant: Variant) -> Result<Vec<String>> {
    let files = tempfile::tempdir().context("cannot make a folder")?;
    let folder = files.path().join("config");
    stock::copy(scenario, &folder);
    let node = first_sidecar(&folder)?;
    // No sources of objects, and the second is not what a live control plane reads.
    for file in ["proxies.yaml", "env.yaml"] {
        std::fs::remove_file(folder.join(file)).context("cannot remove a file")?;
    }

    let netns = Netns::new(&netns::unique_prefix(), "live")?;
    let binary = control_plane::binary(quiet)?;
    let environment: Vec<(String, String)> = stock::variables(scenario).into_iter().collect();
    let config = control_plane::Config {
        binary: &binary,
        folder: &folder,
        environment: &environment,
        plugins: None,
        echo: None,
    };
    let control_plane = ControlPlane::start(&netns, &config).await?;

    let socket = files.path().join("sds.sock");
    let secrets = sds::serve(&socket, Authority::new()?.identity("default", "default")?)?;
    let mut bootstrap = bootstrap::bootstrap(&bootstrap::Config {
        pod: &PodSpec::outside("live", Ipv4Addr::LOCALHOST),
        control_plane: SocketAddr::from((Ipv4Addr::LOCALHOST, GRPC)),
        secure: None,
        sds: &socket,
        variant,
        interception: Interception::Redirect,
    });
    bootstrap["node"] = node;
    let file = files.path().join("bootstrap.json");
    write_readable(&file, &bootstrap.to_string())?;
    let setup = move |command: &mut std::process::Command| {
        command.arg("-c").arg(file).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
    };
    let envoy = Process::start(&netns, &envoy::find(quiet)?, setup, None, None)?;

    let admin = Admin { netns: &netns, name: "envoy" };
    let settled = || settled(&admin);
    let settled = eventually("Envoy has what it asked for", PATIENCE, settled).await;
    let settled = settled.with_context(|| control_plane.lines().join("\n"));
    let rejections = match settled {
        Ok(()) => admin.rejections().await,
        Err(error) => Err(error),
    };
    secrets.abort();
    drop(envoy);
    rejections
}

/// Clusters and listeners came, and each route configuration that listeners name.
async fn settled(admin: &Admin<'_>) -> Result<()> {
    let stats = admin.stats("update_").await?;
    let n = |name: &str| stats.get(name).copied().unwrap_or_default();
    for kind in ["cluster_manager.cds", "listener_manager.lds"] {
        let n_answers = n(&format!("{kind}.update_success")) + n(&format!("{kind}.update_rejected"));
        anyhow::ensure!(n_answers > 0, "no answer for {kind}");
    }
    for (name, n_attempts) in
        stats.iter().filter(|(name, _)| name.contains(".rds.") && name.ends_with("update_attempt"))
    {
        let start = name.trim_end_matches("update_attempt");
        let n_answers = n(&format!("{start}update_success")) + n(&format!("{start}update_rejected"));
        anyhow::ensure!(n_answers > 0 || *n_attempts == 0, "no answer for {start}");
    }
    Ok(())
}

/// The node of the scenario's first proxy.
fn first_sidecar(folder: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(folder.join("proxies.yaml")).context("cannot read proxies.yaml")?;
    let proxies: Value = serde_yaml_ng::from_str(&text).context("proxies.yaml is no YAML")?;
    let mut node = proxies.pointer("/0/node").cloned().context("proxies.yaml names no proxy")?;
    // Envoy does not start without it, and the control plane does not look at it.
    if node.get("cluster").is_none() {
        node["cluster"] = "live".into();
    }
    Ok(node)
}
