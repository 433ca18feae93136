//! The wiring between facts and stages: which stage makes which type, which query is answered how, and what the gate judges.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use trysail_codec::gate::{self, Target};
use trysail_model::ids::type_urls;
use trysail_model::{Images, QueryDecl, Snapshot};
use trysail_plugins::catalogue::{Catalogue, Sources};
use trysail_stages::component::Runtime;
#[cfg(feature = "components")]
use trysail_stages::component::RuntimeConfig;
use trysail_stages::guest::Guest;
use trysail_stages::queries::OWN;
use trysail_stages::{Budget, Config, Engine, Limits, Native, NativeCode, Need, OnRun, OutputDecl, Root, Verdict};

use crate::env::Environment;

/// The built-in stages' code, for native runs.
pub const NATIVE: [(&str, trysail_sdk::StageFn); 8] = [
    ("clusters", stage_clusters::translate),
    ("dns", stage_dns::translate),
    ("endpoints", stage_endpoints::translate),
    ("envoyfilter", stage_envoyfilter::translate),
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
    /// What plugins may cost.
    pub budget: Budget,
    /// Share of calls that are audited.
    pub audit_share: f64,
    /// What the gate objects to is left out; else only reported.
    pub hold_back: bool,
    /// Switches the gate off, for measuring.
    pub gate: bool,
    /// Folder for compiled components.
    pub cache: Option<PathBuf>,
    /// Folder of plugins, if any.
    pub plugins: Option<PathBuf>,
    /// Images of plugins, if any are to be fetched.
    pub images: Option<Arc<dyn Images>>,
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
            budget: Budget::default(),
            audit_share: 0.001,
            hold_back: true,
            gate: true,
            cache: cache_folder().map(|folder| folder.join("components")),
            plugins: None,
            images: None,
            on_run: None,
            on_settled: None,
        }
    }
}

/// Share of one core that the plugins of one tenant have.
const TENANT_SHARE: f64 = 0.25;

/// What plugins may cost while others are served: `TRYSAIL_TENANT_PLUGIN_SHARE`, the share of one core that the plugins of one
/// namespace have, 0 for no bound; `TRYSAIL_TENANT_PLUGIN_MEMORY_MIB`, what may be remembered for them.
pub fn budget(environment: &dyn Environment) -> Budget {
    const SHARE: &str = "TRYSAIL_TENANT_PLUGIN_SHARE";
    let share = match environment.get(SHARE) {
        None => TENANT_SHARE,
        Some(text) => match text.parse::<f64>() {
            Ok(share) if share.is_finite() && share >= 0.0 => share,
            _ => {
                tracing::error!("{SHARE}: {text:?} is no share; {TENANT_SHARE} is used");
                TENANT_SHARE
            }
        },
    };
    const MEMORY: &str = "TRYSAIL_TENANT_PLUGIN_MEMORY_MIB";
    let kept = environment.get(MEMORY).map(|text| text.parse::<usize>().map_err(|_| text));
    let kept = match kept {
        None => Budget::default().kept,
        Some(Ok(mebibytes)) => mebibytes.saturating_mul(1 << 20),
        Some(Err(text)) => {
            tracing::error!("{MEMORY}: {text:?} is no number; the default is used");
            Budget::default().kept
        }
    };
    Budget { share: (share > 0.0).then_some(share), kept, ..Budget::default() }
}

/// The user's folder for compiled components and images of plugins: `$TRYSAIL_CACHE`, else below `$XDG_CACHE_HOME` or `~/.cache`.
/// Each has a folder of its own in it, which it keeps clear of what it does not know.
pub fn cache_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TRYSAIL_CACHE") {
        return Some(folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("trysail"))
}

/// The roots of the types that stages make.
fn roots() -> Vec<Root> {
    let all = |type_url, stage| Root { type_url, stage, function: "all", named: false, hook: "", reference: "" };
    let named = |type_url, stage, function, hook, target: Target| Root {
        type_url,
        stage,
        function,
        named: true,
        hook,
        reference: target.prefix(),
    };
    vec![
        all(type_urls::CLUSTER, "clusters"),
        named(type_urls::ENDPOINT, "endpoints", "cluster", "endpoints", Target::Endpoints),
        all(type_urls::LISTENER, "listeners"),
        named(type_urls::ROUTE, "routes", "config", "", Target::Routes),
        named(type_urls::EXTENSION, "envoyfilter", "extension-config", "", Target::Extension),
        all(type_urls::NAME_TABLE, "dns"),
    ]
}

/// What the functions make, for the gate: fragments are judged by themselves, once.
fn outputs() -> Vec<OutputDecl> {
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
    const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
    const ROUTE: &str = "envoy.config.route.v3.Route";
    const VIRTUAL_HOST: &str = "envoy.config.route.v3.VirtualHost";
    const LISTENER: &str = "envoy.config.listener.v3.Listener";
    const CHAIN: &str = "envoy.config.listener.v3.FilterChain";
    const FILTER: &str = "envoy.config.listener.v3.Filter";
    let made = |stage: &'static str, message, need, functions: &[&'static str]| {
        let decl = |function: &&'static str| OutputDecl { function: (stage, *function), message, need };
        functions.iter().map(decl).collect::<Vec<_>>()
    };
    let all = [
        made("clusters", CLUSTER, Need::Nothing, &["service", "inbound-port", "fixed"]),
        made("endpoints", "envoy.config.endpoint.v3.ClusterLoadAssignment", Need::Nothing, &["cluster"]),
        made("envoyfilter", CLUSTER, Need::Nothing, &["clusters", "added-clusters"]),
        made("envoyfilter", LISTENER, Need::Nothing, &["listeners", "added-listeners"]),
        made("envoyfilter", ROUTES, Need::Each, &["routes"]),
        made("envoyfilter", "envoy.config.core.v3.TypedExtensionConfig", Need::Nothing, &["extension-config"]),
        made("routes", ROUTES, Need::Nothing, &["config", "unpatched"]),
        // Inside a connection manager, which is none without it.
        made("routes", ROUTES, Need::Each, &["inbound"]),
        made("routes", VIRTUAL_HOST, Need::Nothing, &["virtual-host", "catch-all", "gateway-host", "inbound-host"]),
        made("routes", ROUTE, Need::Nothing, &["virtual-service", "service-default"]),
        made("listeners", LISTENER, Need::Nothing, &["outbound-listener", "http-proxy", "virtual-outbound"]),
        made("listeners", LISTENER, Need::Nothing, &["inbound", "inbound-bound", "gateway-listener"]),
        // Without one of them its connections would be taken for those of another, with less in their way.
        made("listeners", CHAIN, Need::Each, &["inbound-chains", "inbound-passthrough"]),
        made("listeners", CHAIN, Need::One, &["sni-chains"]),
        made("listeners", CHAIN, Need::One, &["gateway-https-chain", "gateway-tcp-chain", "gateway-tls-chain"]),
        made("listeners", FILTER, Need::Each, &["inbound-http", "inbound-tcp", "unknown-destination"]),
    ];
    all.concat()
}

/// Envoy's own field rules, and what the message waits for.
fn judge(message: &str, bytes: &[u8]) -> Verdict {
    let found = gate::inspect(message, bytes, Some(trysail_stages::HOLES));
    let awaited = found.references.iter().filter(|reference| reference.target.is_awaited());
    Verdict {
        objections: found.violations.iter().map(ToString::to_string).collect(),
        refs: awaited.map(|reference| format!("{}:{}", reference.target.prefix(), reference.name)).collect(),
        claims: found.claims,
    }
}

/// The query kinds, as the engine wants them.
pub fn queries() -> &'static [QueryDecl] {
    static QUERIES: std::sync::OnceLock<Vec<QueryDecl>> = std::sync::OnceLock::new();
    QUERIES.get_or_init(|| trysail_facts::QUERIES.iter().chain(&OWN).copied().collect())
}

/// Kinds that some stage reads; others are named at load.
pub const READ_KINDS: [&str; 18] = [
    "ConfigMap",
    "DestinationRule",
    "EndpointSlice",
    "EnvoyFilter",
    "Gateway",
    "KubernetesGateway",
    // Revision tags.
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PeerAuthentication",
    "Plugin",
    "Pod",
    "Service",
    "ServiceEntry",
    "Sidecar",
    "VirtualService",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// The objects that stages may ask about. **Invariant:** secrets are not among them.
pub fn for_stages(mut objects: Vec<Arc<trysail_model::Object>>) -> Vec<Arc<trysail_model::Object>> {
    objects.retain(|object| !trysail_ca::sds::is_secret(&object.reference));
    objects
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

/// The plugins over a sandbox, as documents and the folder say; none where stages run as native code.
pub fn catalogue(loaded: &Loaded, options: &Options, root_namespace: &str) -> Option<Catalogue> {
    #[cfg(feature = "components")]
    let builtins = trysail_bundle::PLUGINS;
    #[cfg(not(feature = "components"))]
    let builtins = &[];
    Some(Catalogue::new(Sources {
        runtime: loaded.runtime.clone()?,
        folder: options.plugins.clone(),
        builtins,
        images: options.images.clone(),
        documents: trysail_facts::documents::message_of,
        root_namespace: root_namespace.to_owned(),
    }))
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
        inserted: trysail_plugins::hooks::inserted().collect(),
        reports: vec![("envoyfilter", "report")],
        gate: options.gate.then(|| Arc::new(judge) as Arc<_>),
        hold_back: options.hold_back,
        limits: options.limits,
        budget: options.budget,
        audit_share: options.audit_share,
        on_run: options.on_run.clone(),
        on_settled: options.on_settled.clone(),
    };
    Engine::new(config, stages, snapshot)
}
