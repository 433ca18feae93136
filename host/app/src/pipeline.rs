//! The wiring between facts and stages: which stage makes which type, which query is answered how, and what the gate judges.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use trysail_model::Snapshot;
use trysail_model::ids::type_urls;
use trysail_stages::component::Runtime;
#[cfg(feature = "components")]
use trysail_stages::component::RuntimeConfig;
use trysail_stages::guest::Guest;
use trysail_stages::{Config, Engine, Limits, Native, NativeCode, OnRun, OutputDecl, QueryDecl, Root};

/// The built-in stages' code, for native runs.
pub const NATIVE: [(&str, trysail_sdk::StageFn); 7] = [
    ("clusters", stage_clusters::translate),
    ("dns", stage_dns::translate),
    ("endpoints", stage_endpoints::translate),
    ("listeners", stage_listeners::translate),
    ("routes", stage_routes::translate),
    ("scope", stage_scope::translate),
    ("security", stage_security::translate),
];

/// How stages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// As sandboxed components.
    #[default]
    Sandboxed,
    /// As native code: for debugging, and to measure what the sandbox costs.
    Native,
}

/// Settings of the pipeline.
#[derive(Clone)]
pub struct Options {
    /// How stages run.
    pub mode: Mode,
    /// Limits of a call.
    pub limits: Limits,
    /// Share of calls that are audited.
    pub audit_share: f64,
    /// What the gate objects to is left out; else only reported.
    pub hold_back: bool,
    /// Switches the gate off, for measuring.
    pub gate: bool,
    /// Folder for compiled components.
    pub cache: Option<PathBuf>,
    /// Called with each call that a guest ran.
    pub on_run: Option<Arc<OnRun>>,
    /// Called when a slow call came to its end.
    pub on_settled: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mode: Mode::default(),
            limits: Limits::default(),
            audit_share: 0.001,
            hold_back: true,
            gate: true,
            cache: cache_folder(),
            on_run: None,
            on_settled: None,
        }
    }
}

/// The user's folder for compiled components: `$TRYSAIL_CACHE`, else below `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TRYSAIL_CACHE") {
        return Some(folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("trysail/components"))
}

/// The roots of the types that stages make.
fn roots() -> Vec<Root> {
    let root = |type_url, stage, function, named, hook| Root { type_url, stage, function, named, hook };
    vec![
        root(type_urls::CLUSTER, "clusters", "all", false, ""),
        root(type_urls::ENDPOINT, "endpoints", "cluster", true, "endpoints"),
        root(type_urls::LISTENER, "listeners", "all", false, ""),
        root(type_urls::ROUTE, "routes", "config", true, ""),
        root(type_urls::NAME_TABLE, "dns", "all", false, ""),
    ]
}

/// What the functions make, for the gate: fragments are judged by themselves, once.
fn outputs() -> Vec<OutputDecl> {
    let decl = |stage, function, message| OutputDecl { function: (stage, function), message };
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
    const LISTENER: &str = "envoy.config.listener.v3.Listener";
    const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
    const ROUTE: &str = "envoy.config.route.v3.Route";
    vec![
        decl("clusters", "service", CLUSTER),
        decl("clusters", "inbound-port", CLUSTER),
        decl("clusters", "fixed", CLUSTER),
        decl("endpoints", "cluster", "envoy.config.endpoint.v3.ClusterLoadAssignment"),
        decl("routes", "config", ROUTES),
        decl("routes", "inbound", ROUTES),
        decl("routes", "virtual-service", ROUTE),
        decl("routes", "service-default", ROUTE),
        decl("listeners", "all", LISTENER),
        decl("listeners", "outbound", LISTENER),
        decl("listeners", "inbound", LISTENER),
    ]
}

/// Rules about what must be there: the holes of a message that is judged without its fragments may fill it.
fn may_be_filled(rule: &str) -> bool {
    ["required", "min_items", "min_len", "min_bytes"].iter().any(|name| rule.contains(name))
}

/// Envoy's own field rules.
fn judge(message: &str, bytes: &[u8], whole: bool) -> Vec<String> {
    let Err(violations) = trysail_codec::gate::validate(message, bytes) else { return Vec::new() };
    let counts = violations.into_iter().filter(|violation| whole || !may_be_filled(violation.rule));
    counts.map(|violation| format!("{}: {} ({})", violation.path, violation.message, violation.rule)).collect()
}

/// The query kinds, as the engine wants them.
pub fn queries() -> &'static [QueryDecl] {
    static QUERIES: std::sync::OnceLock<Vec<QueryDecl>> = std::sync::OnceLock::new();
    QUERIES.get_or_init(|| {
        let convert = |decl: &trysail_facts::QueryDecl| QueryDecl {
            kind: decl.kind,
            about_proxy: decl.about_proxy,
            predicate: decl.predicate,
            takes_list: decl.takes_list,
            arity: decl.arity,
        };
        let derived = |kind, predicate| QueryDecl { kind, about_proxy: false, predicate, takes_list: true, arity: 2 };
        let own = [derived("derived", false), derived("derived-exists", true)];
        trysail_facts::QUERIES.iter().map(convert).chain(own).collect()
    })
}

/// Kinds that some stage reads; others are named at load.
pub const READ_KINDS: [&str; 15] = [
    "ConfigMap",
    "DestinationRule",
    "EndpointSlice",
    "Gateway",
    "KubernetesGateway",
    "Namespace",
    "Node",
    "PeerAuthentication",
    "Pod",
    "Service",
    "ServiceEntry",
    "Sidecar",
    "VirtualService",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// The objects that stages may ask about. **Invariant:** secrets are not among them.
pub fn for_stages(objects: &[Arc<trysail_model::Object>]) -> Vec<Arc<trysail_model::Object>> {
    objects.iter().filter(|object| !trysail_ca::sds::is_secret(&object.reference)).cloned().collect()
}

/// Stages, and the sandbox they run in.
pub struct Loaded {
    /// The stages.
    pub stages: Vec<Arc<dyn Guest>>,
    /// The sandbox; absent when they run as native code.
    pub runtime: Option<Arc<Runtime>>,
}

/// The built-in stages.
///
/// # Errors
/// When the sandbox cannot start, or was not built in.
pub fn load(options: &Options) -> Result<Loaded> {
    match options.mode {
        Mode::Native => {
            let native =
                |(name, code): (&str, _)| Arc::new(Native::new(name, NativeCode::Stage(code))) as Arc<dyn Guest>;
            Ok(Loaded { stages: NATIVE.into_iter().map(native).collect(), runtime: None })
        }
        Mode::Sandboxed => sandboxed(options),
    }
}

/// The built-in stages alone.
///
/// # Errors
/// See [`load`].
pub fn stages(options: &Options) -> Result<Vec<Arc<dyn Guest>>> {
    Ok(load(options)?.stages)
}

#[cfg(feature = "components")]
fn sandboxed(options: &Options) -> Result<Loaded> {
    let runtime = Runtime::new(RuntimeConfig { cache: options.cache.clone() }, queries())?;
    let load = |builtin: &trysail_bundle::Builtin| {
        runtime
            .stage(builtin.name, builtin.component)
            .with_context(|| format!("cannot load the built-in stage {}", builtin.name))
    };
    let stages = trysail_bundle::BUILTINS.iter().map(load).collect::<Result<_>>()?;
    Ok(Loaded { stages, runtime: Some(runtime) })
}

#[cfg(not(feature = "components"))]
fn sandboxed(_options: &Options) -> Result<Loaded> {
    None.context("this binary was built without the components feature; use --native")
}

/// An engine with the built-in stages.
///
/// # Errors
/// See [`stages`].
pub fn engine(options: &Options, stages: Vec<Arc<dyn Guest>>, snapshot: Arc<dyn Snapshot>) -> Arc<Engine> {
    let config = Config {
        queries: queries(),
        roots: roots(),
        outputs: outputs(),
        gate: options.gate.then(|| Arc::new(judge) as Arc<_>),
        hold_back: options.hold_back,
        limits: options.limits,
        audit_share: options.audit_share,
        on_run: options.on_run.clone(),
        on_settled: options.on_settled.clone(),
    };
    Engine::new(config, stages, snapshot)
}
