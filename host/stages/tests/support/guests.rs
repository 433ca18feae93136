//! Guests as real components: compiled from their crates by a nested cargo, once a process, and run in the real sandbox.

use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};

use trysail_model::QueryDecl;
use trysail_stages::component::{Runtime, RuntimeConfig};
use trysail_stages::queries::OWN;

/// All that the facts interface has, since a component imports all of it.
pub static QUERIES: LazyLock<Vec<QueryDecl>> =
    LazyLock::new(|| trysail_facts::QUERIES.iter().chain(&OWN).copied().collect());

/// The sandbox, without a cache.
pub fn runtime() -> Arc<Runtime> {
    Runtime::new(RuntimeConfig::default(), &QUERIES).unwrap()
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
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let modules = trysail_guests::compile(&workspace, &trysail_guests::folder(target), &[package]).unwrap();
    trysail_guests::encode(&trysail_guests::module(&modules, package)).unwrap()
}
