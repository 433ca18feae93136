//! The gate before the streams, with stages that do wrong: what Envoy would wait for in vain is held back, in `render` reported.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trysail::pipeline::{self, Mode, Options};
use trysail::render;
use trysail_facts::FactsSnapshot;
use trysail_model::ids::type_urls;
use trysail_model::{Proxy, Watched};
use trysail_sdk::{Ctx, Failure, Output};
use trysail_stages::guest::Guest;
use trysail_stages::{Engine, Native, NativeCode};

const LOST_CLUSTER: &str = "outbound|80|v1|backend.default.svc.cluster.local";

/// Routes, but for port 80.
fn routes(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match (function, args) {
        ("config", [port]) if port == "80" => Ok(Output::empty()),
        _ => stage_routes::translate(ctx, function, args),
    }
}

/// Endpoints, but for one subset.
fn endpoints(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match (function, args) {
        ("cluster", [name]) if name == LOST_CLUSTER => Ok(Output::empty()),
        _ => stage_endpoints::translate(ctx, function, args),
    }
}

/// Clusters, but for the services of one name.
fn clusters(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match (function, args) {
        ("service", [key, ..]) if key.contains("backend") => Ok(Output::empty()),
        _ => stage_clusters::translate(ctx, function, args),
    }
}

/// The built-in stages with another one in place of that of its name.
fn stages(name: &str, wrong: trysail_sdk::StageFn) -> Vec<Arc<dyn Guest>> {
    let choose = |(built_in, code): (&'static str, _)| {
        let code = if built_in == name { wrong } else { code };
        Arc::new(Native::new(built_in, NativeCode::Stage(code))) as Arc<dyn Guest>
    };
    pipeline::NATIVE.into_iter().map(choose).collect()
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend")
}

fn options(hold_back: bool) -> Options {
    Options { mode: Mode::Native, hold_back, audit_share: 1.0, ..Options::default() }
}

/// The engine, and the sidecar of `frontend`.
fn served(stages: Vec<Arc<dyn Guest>>) -> (Arc<Engine>, Proxy) {
    let folder = trysail_discovery::load_folder(&example(), &trysail_discovery::Config::scenario()).unwrap();
    let is_frontend =
        |o: &&Arc<trysail_model::Object>| &*o.reference.kind == "Pod" && &*o.reference.name == "frontend-v1";
    let proxy = trysail::explain::proxy_of(folder.objects.iter().find(is_frontend).unwrap()).unwrap();
    let snapshot = Arc::new(FactsSnapshot::new(render::inputs(&folder)));
    (pipeline::engine(&options(true), stages, snapshot), proxy)
}

fn names(engine: &Arc<Engine>, proxy: &Proxy, type_url: &str) -> Vec<String> {
    let served = engine.resources(proxy, &type_url.into(), &Watched::Wildcard);
    served.node.unwrap().entries.view().resources.iter().map(|r| r.name.to_string()).collect()
}

/// `gate.txt` and `diagnostics.txt` of a rendered sidecar, and its resources of a type as text.
fn rendered(stages: &[Arc<dyn Guest>], short: &str) -> (String, String, String) {
    let out = tempfile::tempdir().unwrap();
    let node = "- name: p\n  node:\n    id: sidecar~10.244.0.11~frontend-v1.default~default.svc.cluster.local\n    metadata: \
                {NAMESPACE: default, CLUSTER_ID: Kubernetes, LABELS: {app: frontend, version: v1}}\n";
    let proxies = out.path().join("proxies.yaml");
    fs::write(&proxies, node).unwrap();
    let loaded = pipeline::Loaded { stages: stages.to_vec(), runtime: None };
    render::scenario(&options(false), &loaded, &example(), Some(&proxies), out.path(), false).unwrap();
    let read = |file: &str| fs::read_to_string(out.path().join("p").join(file)).unwrap_or_default();
    (read("gate.txt"), read("diagnostics.txt"), read(&format!("{short}.json")))
}

/// Calls nest deeply without the sandbox's own stacks.
fn deep(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(test).unwrap().join().unwrap();
}

#[test]
fn a_listener_whose_routes_nobody_makes_is_held_back() {
    deep(|| {
        let (good, proxy) = served(pipeline::stages(&options(true)).unwrap());
        let (bad, _) = served(stages("routes", routes));
        let mut expected = names(&good, &proxy, type_urls::LISTENER);
        assert!(expected.contains(&"0.0.0.0_80".to_owned()), "{expected:?}");
        expected.retain(|name| name != "0.0.0.0_80");
        assert_eq!(names(&bad, &proxy, type_urls::LISTENER), expected);
        assert_eq!(names(&bad, &proxy, type_urls::CLUSTER), names(&good, &proxy, type_urls::CLUSTER));

        let (gate, _, listeners) = rendered(&stages("routes", routes), "lds");
        assert_eq!(gate, "Error 0.0.0.0_80: envoy would wait for ever for rds:80, which nothing makes\n");
        assert!(listeners.contains("\"0.0.0.0_80\""), "render only reports");
    });
}

#[test]
fn a_cluster_whose_endpoints_nobody_makes_is_held_back() {
    deep(|| {
        let (good, proxy) = served(pipeline::stages(&options(true)).unwrap());
        let (bad, _) = served(stages("endpoints", endpoints));
        let mut expected = names(&good, &proxy, type_urls::CLUSTER);
        assert!(expected.contains(&LOST_CLUSTER.to_owned()), "{expected:?}");
        expected.retain(|name| name != LOST_CLUSTER);
        assert_eq!(names(&bad, &proxy, type_urls::CLUSTER), expected);

        let (gate, _, clusters) = rendered(&stages("endpoints", endpoints), "cds");
        let said =
            format!("Error {LOST_CLUSTER}: envoy would wait for ever for eds:{LOST_CLUSTER}, which nothing makes\n");
        assert_eq!(gate, said);
        assert!(clusters.contains(LOST_CLUSTER));
    });
}

#[test]
fn a_route_to_no_cluster_is_said_and_sent() {
    deep(|| {
        let (gate, said, routes) = rendered(&stages("clusters", clusters), "rds");
        assert!(routes.contains(LOST_CLUSTER));
        assert!(!gate.contains("rds"), "{gate}");
        let line = "Warning rds 80 virtual_hosts[";
        let found =
            said.lines().find(|l| l.starts_with(line) && l.ends_with(&format!("there is no cluster {LOST_CLUSTER}")));
        assert!(found.is_some_and(|l| l.contains(".routes[0].route.cluster: ")), "{said}");
        let (_, said, _) = rendered(&pipeline::stages(&options(false)).unwrap(), "rds");
        assert!(!said.contains("there is no cluster"), "{said}");
    });
}
