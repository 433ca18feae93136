//! Calls that Istio's own tests state for a configuration, made for real: to an Envoy that has the scenario from a running
//! control plane, and says in its access log which cluster, route and filter chain each came to.
//!
//! Needs the conformance corpus, and root for network namespaces and redirection. Calls that no real client can make, or that
//! Envoy answers otherwise than the stated simulation of it, are named in [`not_made`].

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;
use trysail_tests::bootstrap::Variant;
use trysail_tests::live::{self, Around, Live};
use trysail_tests::netns::Interception;
use trysail_tests::sds::Authority;
use trysail_tests::simulation::real::{self, Caller, Seen};
use trysail_tests::simulation::{Stated, Tls};
use trysail_tests::{corpus, eventually, netns};

#[path = "support/stock.rs"]
mod stock;

/// Scenarios at a time.
const SIDE_BY_SIDE: usize = 3;

/// Calls that must have been made, of some 430.
const AT_LEAST: usize = 380;

/// How long Envoy may take to log a call that is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a stated call is not made; none for most.
fn not_made(stated: &Stated) -> Option<&'static str> {
    let error = stated.expected().error.as_deref().unwrap_or_default();
    match error {
        // Of two chains of one match the gate holds the second back, so that the listener stands.
        "multiple filter chains matched" => Some("the gate leaves one chain"),
        "invalid mTLS" if stated.call.tls == Tls::Mtls => Some("Envoy minds no certificate that it did not ask for"),
        _ if stated.call.address.contains(':') => Some("only IPv4 is redirected here"),
        _ => None,
    }
}

/// What became of the calls of some scenarios.
#[derive(Default)]
struct Made {
    n_calls: usize,
    not_made: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_to_where_they_should() {
    let test = "calls_come_to_where_they_should";
    let Some(root) = corpus::folder() else {
        eprintln!("{test}: skipped: no corpus");
        return;
    };
    match netns::or_skip(test) {
        None => return,
        Some(Interception::None) => return eprintln!("{test}: skipped: traffic cannot be redirected here"),
        Some(_) => {}
    }
    let mut scenarios = stock::scenarios(&root);
    scenarios.retain(|scenario| root.join(scenario).join("calls.yaml").is_file());
    let n_scenarios = scenarios.len();
    let todo = scenarios.into_iter().zip([Variant::Delta, Variant::Sotw].into_iter().cycle());
    let todo: Arc<Mutex<VecDeque<(PathBuf, Variant)>>> = Arc::new(Mutex::new(todo.collect()));
    let mut workers = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let (todo, root) = (todo.clone(), root.clone());
        workers.spawn(async move {
            let mut made = Made::default();
            loop {
                let Some((scenario, variant)) = todo.lock().unwrap().pop_front() else { return made };
                if let Err(error) = follow(&root.join(&scenario), variant, &mut made).await {
                    made.wrong.push(format!("{} {variant:?}: {error:#}", scenario.display()));
                }
            }
        });
    }
    let mut all = Made::default();
    for made in workers.join_all().await {
        all.n_calls += made.n_calls;
        all.wrong.extend(made.wrong);
        made.not_made.into_iter().for_each(|(why, n)| *all.not_made.entry(why).or_default() += n);
    }
    println!(
        "{} calls in {n_scenarios} scenarios, {} wrong; not made: {:?}",
        all.n_calls,
        all.wrong.len(),
        all.not_made
    );
    assert!(all.wrong.is_empty(), "{}", all.wrong.join("\n"));
    assert!(all.n_calls >= AT_LEAST, "only {} calls were made", all.n_calls);
}

/// Makes the calls of a scenario.
async fn follow(scenario: &Path, variant: Variant, made: &mut Made) -> Result<()> {
    let calls = Stated::read(&scenario.join("calls.yaml"))?;
    let Some(proxy) = calls.first().map(|stated| stated.proxy.clone()) else { return Ok(()) };
    ensure!(calls.iter().all(|stated| stated.proxy == proxy), "calls to several proxies");
    let files = tempfile::tempdir().context("cannot make a folder")?;
    let (folder, log) = (files.path().join("config"), files.path().join("access.log"));
    stock::copy(scenario, &folder);
    let node = live::node(&folder, Some(&proxy))?;
    stock::only_what_is_served(&folder);
    add_logging(&folder, &log)?;
    let authority = Authority::new()?;
    let identity = authority.identity("default", "client")?;
    as_in_a_cluster(&folder, &files.path().join("secret"), &authority)?;
    let clusters = missing_clusters(scenario, &proxy, &calls)?;

    let gateway = node.get("id").and_then(Value::as_str).is_some_and(|id| id.starts_with("router~"));
    let environment: Vec<(String, String)> = stock::variables(scenario).into_iter().collect();
    let rules = real::rules();
    let config = live::Config {
        folder: &folder,
        environment: &environment,
        node,
        variant,
        authority: &authority,
        around: Some(Around { rules: &rules, clusters: &clusters, stand_in: real::STAND_IN }),
    };
    let live = Live::start(config).await?;
    let rejected = live.settled().await?;
    ensure!(rejected.is_empty(), "rejected: {rejected:#?}");
    warm(&live).await?;
    let stand_in = real::stand_in(live.netns())?;
    let caller = Caller { netns: live.netns(), gateway, identity: &identity };
    for (n, stated) in calls.iter().enumerate() {
        if let Some(why) = not_made(stated) {
            *made.not_made.entry(why).or_default() += 1;
            continue;
        }
        made.n_calls += 1;
        let mut seen = caller.call(n, &stated.call).await;
        let wrong = logged(&log, &mut seen, stated).await;
        if !wrong.is_empty() {
            made.wrong.push(format!("{}\n    {}", stated.name, wrong.join("\n    ")));
        }
    }
    stand_in.abort();
    Ok(())
}

/// Waits until every listener has what it needs to take connections.
async fn warm(live: &Live) -> Result<()> {
    let admin = live.admin();
    let warm = || async {
        let warming = admin.stats("total_listeners_warming").await?;
        ensure!(warming.values().all(|n| *n == 0), "{warming:?}");
        Ok(())
    };
    eventually("all listeners", PATIENCE, warm).await
}

/// What contradicts the expectation once Envoy has logged the call. Nothing tells that a log is complete, so what is still
/// missing is waited for.
async fn logged(log: &Path, seen: &mut Seen, stated: &Stated) -> Vec<String> {
    let mut wrong = Vec::new();
    let look = || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        seen.logged = lines.filter(|line| seen.is_of(line)).collect();
        wrong = seen.contradicts(stated.expected(), stated.in_full());
        let as_expected = if wrong.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("not yet")) };
        async { as_expected }
    };
    let _ = eventually("the log", PATIENCE, look).await;
    wrong
}

/// Lays the logging over the scenario's own MeshConfig.
fn add_logging(folder: &Path, log: &Path) -> Result<()> {
    let file = folder.join("mesh.yaml");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let mut mesh: Value = serde_yaml_ng::from_str(&text).context("mesh.yaml is no YAML")?;
    if mesh.is_null() {
        mesh = serde_json::json!({});
    }
    let fields = mesh.as_object_mut().context("mesh.yaml is no mapping")?;
    fields.extend(real::logging(log).as_object().cloned().unwrap_or_default());
    fs::write(&file, serde_yaml_ng::to_string(&mesh)?).context("cannot write mesh.yaml")
}

/// Clusters that calls are stated to come to although the scenario has no such service: Envoy cannot name what it does not have.
fn missing_clusters(scenario: &Path, proxy: &str, calls: &[Stated]) -> Result<Vec<String>> {
    let file = scenario.join("expected").join(proxy).join("cds.json");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let there: Vec<Value> = serde_json::from_str(&text).context("cds.json is no JSON list")?;
    let is_there = |name: &str| there.iter().any(|cluster| cluster.get("name").and_then(Value::as_str) == Some(name));
    let stated = calls.iter().filter_map(|call| call.in_full().cluster.as_deref());
    let missing: BTreeSet<&str> = stated.filter(|name| !name.is_empty() && !is_there(name)).collect();
    Ok(missing.into_iter().map(str::to_owned).collect())
}

/// Has servers take their certificates from files in place of Secrets, of which the scenarios state the names only, and from
/// files that exist in place of those that do not; which chain or route is taken does not depend on it. And what an API server
/// would refuse, and so does a control plane that runs, is mended.
fn as_in_a_cluster(folder: &Path, stem: &Path, authority: &Authority) -> Result<()> {
    let identity = authority.identity("default", "server")?;
    let file = |part: &str, text: &str| -> Result<String> {
        let path = stem.with_extension(part);
        fs::write(&path, text).context("cannot write a certificate")?;
        Ok(path.display().to_string())
    };
    let files = [
        ("serverCertificate", file("crt", identity.chain_pem())?),
        ("privateKey", file("key", identity.key_pem())?),
        ("caCertificates", file("ca", identity.root_pem())?),
    ];
    let input = folder.join("input.yaml");
    let text = fs::read_to_string(&input).context("cannot read input.yaml")?;
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let mut document: Value = serde::Deserialize::deserialize(document).context("input.yaml is no YAML")?;
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(kind) = document.get_mut("addressType").filter(|kind| kind.as_str() == Some("")) {
            *kind = "IPv4".into();
        }
        let list = match kind.as_str() {
            "Gateway" => document.pointer_mut("/spec/servers"),
            "Sidecar" => document.pointer_mut("/spec/ingress"),
            _ => None,
        };
        for tls in list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(|server| server.get_mut("tls")) {
            let Some(tls) = tls.as_object_mut() else { continue };
            let named = tls.remove("credentialName").is_some() | tls.remove("credentialNames").is_some();
            let mutual = tls.get("mode").and_then(Value::as_str).is_some_and(|mode| mode.contains("MUTUAL"));
            for (field, path) in &files {
                if tls.contains_key(*field) || named && (mutual || *field != "caCertificates") {
                    tls.insert((*field).to_owned(), path.clone().into());
                }
            }
        }
        documents.push(serde_yaml_ng::to_string(&document)?);
    }
    fs::write(&input, documents.join("---\n")).context("cannot write input.yaml")
}
