//! Guests as real components: compiled from their crates by a nested cargo, once a process, and run in the real sandbox.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use trysail_stages::QueryDecl;
use trysail_stages::component::{Runtime, RuntimeConfig};

/// All that the facts interface has, since a component imports all of it.
pub const QUERIES: &[QueryDecl] = &[
    mesh("setting", 1),
    mesh("service", 1),
    mesh("services-of-host", 1),
    mesh("service-index", 1),
    mesh("service-index-namespaces", 0),
    mesh("services-in-namespace", 1),
    mesh("endpoints", 2),
    mesh("service-accounts", 1),
    mesh("targets-at", 1),
    mesh("workload-at", 1),
    mesh("namespace", 1),
    mesh("network-gateways", 0),
    mesh("network-ranges", 0),
    mesh("object", 2),
    mesh("selectors", 2),
    mesh("selector-namespaces", 1),
    mesh("virtual-service-index", 1),
    mesh("virtual-service-index-namespaces", 0),
    mesh("gateway-virtual-services", 2),
    mesh("gateway-virtual-service-namespaces", 1),
    mesh("gateway-destinations", 2),
    mesh("virtual-service-gateways", 0),
    mesh("destination-rules-matching", 1),
    of_list(mesh("mesh-config", 0)),
    of_list(mesh("features", 0)),
    truth(of_list(mesh("has-ready-endpoints", 2))),
    of_list(mesh("derived", 2)),
    truth(of_list(mesh("derived-exists", 2))),
    proxy("proxy", 1),
    proxy("proxy-targets", 0),
    of_list(proxy("proxy-in-namespaces", 0)),
    of_list(proxy("proxy-config", 0)),
    truth(of_list(proxy("proxy-labels-match", 0))),
    truth(of_list(proxy("proxy-has-address", 0))),
    truth(proxy("proxy-version-at-least", 1)),
];

const fn mesh(kind: &'static str, arity: usize) -> QueryDecl {
    QueryDecl { kind, about_proxy: false, predicate: false, takes_list: false, arity }
}

const fn proxy(kind: &'static str, arity: usize) -> QueryDecl {
    QueryDecl { about_proxy: true, ..mesh(kind, arity) }
}

const fn of_list(decl: QueryDecl) -> QueryDecl {
    QueryDecl { takes_list: true, ..decl }
}

const fn truth(decl: QueryDecl) -> QueryDecl {
    QueryDecl { predicate: true, ..decl }
}

/// The sandbox, without a cache.
pub fn runtime() -> Arc<Runtime> {
    Runtime::new(RuntimeConfig::default(), QUERIES).unwrap()
}

/// The stage and plugin that misbehave.
pub fn hostile() -> &'static [u8] {
    static HOSTILE: OnceLock<Vec<u8>> = OnceLock::new();
    HOSTILE.get_or_init(|| component("hostile-guests"))
}

/// A plugin as users write it.
pub fn local_rate_limit() -> &'static [u8] {
    static LIMIT: OnceLock<Vec<u8>> = OnceLock::new();
    LIMIT.get_or_init(|| component("local-rate-limit"))
}

/// Compiles a crate of the workspace for the guests' target and makes it a component.
pub fn component(package: &str) -> Vec<u8> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    // The folder that the bundle's build script uses as well, so that what both need is compiled once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("guests");
    build(&workspace, &target, package);
    let module = target.join("wasm32-unknown-unknown/guest").join(format!("{}.wasm", package.replace('-', "_")));
    encode(&module)
}

fn encode(module: &Path) -> Vec<u8> {
    let module = std::fs::read(module).unwrap();
    wit_component::ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

fn build(workspace: &Path, target: &Path, package: &str) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace).args(["build", "--profile", "guest", "--target", "wasm32-unknown-unknown"]);
    cargo.args(["-p", package, "--target-dir"]).arg(target);
    // What is meant for the host must not reach the guests; see host/bundle/build.rs.
    for (name, _) in std::env::vars() {
        let outer = ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PROFILE_"].iter().any(|prefix| name.starts_with(prefix));
        let single =
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET"];
        if outer || single.contains(&name.as_str()) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap();
    assert!(status.success(), "{package} does not compile for wasm32-unknown-unknown: {status}");
}
