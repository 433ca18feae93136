//! Scopes: parts of the control plane whose level of detail is set apart, under istiod's names.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use parking_lot::RwLock;
use tracing_subscriber::EnvFilter;

/// A level of detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// What needs a human.
    Error,
    /// What degrades.
    Warn,
    /// Life-cycle.
    Info,
    /// The rest.
    Debug,
}

impl Level {
    /// As istiod writes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    /// As the filter of `tracing` writes it.
    fn directive(self) -> &'static str {
        if self == Level::None { "off" } else { self.name() }
    }
}

impl FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Level> {
        Ok(match text {
            "none" => Level::None,
            // Go's worst level; here the process would end without it.
            "error" | "fatal" => Level::Error,
            "warn" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            _ => bail!("{text:?} is no log level (debug, info, warn, error, fatal, none)"),
        })
    }
}

/// What is known of a scope.
struct Known {
    name: &'static str,
    description: &'static str,
    /// Modules that write to it; the longest that fits a line counts.
    targets: &'static [&'static str],
}

/// The name of what belongs to no scope.
pub const DEFAULT: &str = "default";
/// Stands for all scopes in flags.
const ALL: &str = "all";
/// Our own code; libraries only warn unless `all` is set.
const OURS: &str = "trysail";

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known { name: "ads", description: "streams of proxies", targets: &["trysail_xds"] },
    Known { name: "authn", description: "who calls", targets: &["trysail_ca::authenticate"] },
    Known { name: "ca", description: "the certificate authority", targets: &["trysail_ca::authority", "trysail_ca::service", "trysail_ca::signer", "trysail_ca::roots"] },
    Known { name: "controllers", description: "leader election and status", targets: &["trysail::controllers", "trysail_kube::leader"] },
    Known { name: DEFAULT, description: "what belongs to no other scope", targets: &[OURS] },
    Known { name: "debug", description: "debug pages", targets: &["trysail::pages"] },
    Known { name: "file", description: "the folder of YAML", targets: &["trysail_discovery"] },
    Known { name: "kube", description: "the Kubernetes API", targets: &["trysail_kube", "kube"] },
    Known { name: "model", description: "facts: services, endpoints, configuration", targets: &["trysail_facts"] },
    Known { name: "plugins", description: "plugins from a folder", targets: &["trysail_stages::plugins"] },
    Known { name: "security", description: "transport and secrets", targets: &["trysail_ca"] },
    Known { name: "stages", description: "the translation", targets: &["trysail_stages"] },
];

/// Scopes of istiod that have nothing to say here: named in flags they are no mistake.
const SILENT: &[&str] = &[
    "adsc",
    "analysis",
    "authorization",
    "controlleruntime",
    "delta",
    "dns",
    "epp",
    "gateway",
    "gatewaycommon",
    "grpc",
    "grpcgen",
    "ip-autoallocate",
    "klog",
    "krt",
    "monitoring",
    "processing",
    "push",
    "retry",
    "serviceentry",
    "spiffe",
    "status",
    "tag-watcher",
    "trustBundle",
    "untaint",
    "validation",
    "validationController",
    "validationServer",
    "wasm",
    "wle",
];

/// A scope as it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Name.
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// Level of detail.
    pub level: Level,
    /// Lines say where in the code they come from.
    pub callers: bool,
}

/// Called with the filter of changed levels.
type OnChange = dyn Fn(EnvFilter) + Send + Sync;

/// All scopes. Levels may be changed while running.
pub struct Scopes {
    state: RwLock<BTreeMap<&'static str, (Level, bool)>>,
    /// Libraries are as loud as `all`.
    libraries: Level,
    on_change: Box<OnChange>,
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.state.read().iter()).finish()
    }
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

impl Scopes {
    /// Reads `scope:level,...` and a list of scopes; a level alone is for the default scope. Returns also what is passed over:
    /// scopes of which nothing is known, so that one set of flags does for several versions.
    ///
    /// # Errors
    /// For what is no level.
    pub fn new(levels: Option<&str>, callers: &str) -> Result<(Scopes, Vec<String>)> {
        let mut warnings = Vec::new();
        let usual = if levels.is_some() { Level::Info } else { Level::Warn };
        let mut state: BTreeMap<_, _> = KNOWN.iter().map(|known| (known.name, (usual, false))).collect();
        let mut libraries = Level::Warn;
        let mut named = std::collections::BTreeSet::new();
        let parts = |list: &str| -> Vec<String> {
            list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let mut default = usual;
        for part in parts(levels.unwrap_or_default()) {
            let (scope, level) = part.split_once(':').unwrap_or((DEFAULT, &part));
            let level: Level = level.trim().parse()?;
            match (scope.trim(), known(scope.trim())) {
                (ALL, _) => {
                    libraries = level;
                    state.values_mut().for_each(|(of, _)| *of = level);
                    named.extend(KNOWN.iter().map(|known| known.name));
                }
                (_, Some(known)) => {
                    default = if known.name == DEFAULT { level } else { default };
                    state.insert(known.name, (level, false));
                    named.insert(known.name);
                }
                (scope, None) if SILENT.contains(&scope) => {}
                (scope, None) => warnings.push(format!("--log_output_level: there is no scope {scope:?}")),
            }
        }
        for (name, (level, _)) in &mut state {
            // As in istiod each scope has its own level, and the default's is only for what has none; but who asks for
            // more detail by default means everything that is not named.
            if !named.contains(name) {
                *level = default;
            }
        }
        for scope in parts(callers) {
            for (_, (_, of)) in state.iter_mut().filter(|(name, _)| scope == ALL || **name == scope) {
                *of = true;
            }
        }
        Ok((Scopes { state: RwLock::new(state), libraries, on_change: Box::new(drop) }, warnings))
    }

    /// The same, with somebody who is told of changes.
    pub fn on_change(self, tell: impl Fn(EnvFilter) + Send + Sync + 'static) -> Scopes {
        Scopes { on_change: Box::new(tell), ..self }
    }

    /// All scopes, by name.
    pub fn all(&self) -> Vec<Scope> {
        KNOWN.iter().filter_map(|known| self.get(known.name)).collect()
    }

    /// A scope.
    pub fn get(&self, name: &str) -> Option<Scope> {
        let known = known(name)?;
        let (level, callers) = *self.state.read().get(name)?;
        Some(Scope { name: known.name, description: known.description, level, callers })
    }

    /// Changes a scope. False when there is none of that name.
    pub fn set(&self, name: &str, level: Option<Level>, callers: bool) -> bool {
        let Some(known) = known(name) else { return false };
        {
            let mut state = self.state.write();
            let Some(of) = state.get_mut(known.name) else { return false };
            *of = (level.unwrap_or(of.0), callers);
        }
        (self.on_change)(self.filter());
        true
    }

    /// The levels as a filter.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(self.directives())
    }

    fn directives(&self) -> String {
        let state = self.state.read();
        let mut directives = vec![self.libraries.directive().to_owned()];
        if self.libraries == Level::Warn {
            // It writes a line for each attempt to reach the API server; ours says once what fails.
            directives.push("kube_client=off".to_owned());
        }
        for known in KNOWN {
            let level = state.get(known.name).map_or(Level::Info, |(level, _)| *level);
            directives.extend(known.targets.iter().map(|target| format!("{target}={}", level.directive())));
        }
        directives.join(",")
    }

    /// The scope of a module, and whether its lines say where they come from.
    pub fn of(&self, target: &str) -> (&'static str, bool) {
        let fits = |module: &str| {
            let rest = target.strip_prefix(module);
            // A crate's name begins like those of its neighbours.
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || module == OURS)
        };
        let longest = KNOWN
            .iter()
            .flat_map(|known| known.targets.iter().map(move |module| (known.name, *module)))
            .filter(|(_, module)| fits(module))
            .max_by_key(|(_, module)| module.len());
        let name = longest.map_or(DEFAULT, |(name, _)| name);
        (name, self.state.read().get(name).is_some_and(|(_, callers)| *callers))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn level(scopes: &Scopes, name: &str) -> Level {
        scopes.get(name).unwrap().level
    }

    #[test]
    fn flags_set_scopes() {
        let (scopes, warnings) = Scopes::new(Some("ads:debug,default:error, delta:info,nonsense:warn"), "ads").unwrap();
        assert_eq!((level(&scopes, "ads"), level(&scopes, "model")), (Level::Debug, Level::Error));
        assert_eq!(warnings, ["--log_output_level: there is no scope \"nonsense\""]);
        assert!(scopes.get("ads").unwrap().callers && !scopes.get("model").unwrap().callers);
        let directives = scopes.directives();
        assert!(directives.starts_with("warn,") && directives.contains("trysail_xds=debug"), "{directives}");
        assert!(directives.contains("trysail=error"), "{directives}");
        assert!(Scopes::new(Some("ads:loud"), "").is_err());
        let (alone, _) = Scopes::new(Some("debug"), "").unwrap();
        assert_eq!(level(&alone, "ads"), Level::Debug);
        let (all, _) = Scopes::new(Some("all:none,ads:info"), "").unwrap();
        assert!(all.directives().starts_with("off,") && all.directives().contains("trysail_xds=info"));
        let (usual, _) = Scopes::new(Some("ads:debug"), "").unwrap();
        assert_eq!(level(&usual, "model"), Level::Info);
    }

    #[test]
    fn levels_change_while_running() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let (scopes, _) = Scopes::new(None, "").unwrap();
        let scopes = scopes.on_change(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(level(&scopes, "ads"), Level::Warn);
        assert!(scopes.set("ads", Some(Level::Debug), true));
        assert_eq!((level(&scopes, "ads"), told.load(Ordering::Relaxed)), (Level::Debug, 1));
        assert!(!scopes.set("nothing", Some(Level::Debug), true));
        assert!(scopes.set("ads", None, false), "a level that is not named stays");
        assert_eq!(level(&scopes, "ads"), Level::Debug);
    }

    #[test]
    fn modules_belong_to_scopes() {
        let (scopes, _) = Scopes::new(None, "ca").unwrap();
        for (target, scope) in [
            ("trysail_xds::connection", "ads"),
            ("trysail_ca::authenticate::jwt", "authn"),
            ("trysail_ca::service", "ca"),
            ("trysail_ca::tls", "security"),
            ("trysail::server", "default"),
            ("trysail_model", "default"),
            ("h2::codec", "default"),
            ("kube_client", "default"),
        ] {
            assert_eq!(scopes.of(target), (scope, scope == "ca"), "{target}");
        }
    }
}
