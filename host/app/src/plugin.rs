//! `trysail plugin`: for those who write plugins.
//!
//! ```text
//! new ──▶ a crate ──build──▶ NAME.wasm ──▶ test: its cases          (folder of YAML in, expected changes out)
//!                                          run, diff: a folder      (what would change for which proxy)
//!                                          inspect                  (line, hooks, questions, limits, size)
//!                                          bench                    (cost of a fragment, and of a mesh)
//!                                          push ──▶ a registry ──▶ the image by digest, for a document
//!
//! EnvoyFilters ──import──▶ plugins without code
//! ```
//!
//! All of them run the plugin as the control plane does, over the same stages, sandbox, terms and gate.

mod bench;
mod build;
mod cases;
mod import;
mod inspect;
mod rehearsal;
mod scaffold;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::images;

pub use build::component as encode;
pub use rehearsal::{Change, Rehearsal, Rehearsed};

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Writes a crate for a new plugin, with a first case to test it by.
    New {
        /// Its name: lower-case letters, digits, dashes.
        name: String,
        /// The hook point that it begins with.
        #[arg(long, default_value = "clusters")]
        hook: String,
        /// Folder for it; NAME when left out.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The SDK's folder, to be used in place of the published crate.
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
    },
    /// Compiles a plugin's crate to NAME.wasm.
    Build {
        /// The crate.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// The component's file; target/NAME.wasm in the crate when left out.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Runs a plugin's cases: exit code 0 when all are as expected, 1 when not.
    Test {
        /// The crate, or a folder with a component and `cases`.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// The component, when it is not to be built.
        #[arg(long, value_name = "FILE")]
        component: Option<PathBuf>,
        /// Writes what is found as what is expected; look at it before you keep it.
        #[arg(long)]
        bless: bool,
        /// An Envoy to validate every result with (`envoy --mode validate`).
        #[arg(long, value_name = "FILE")]
        envoy: Option<PathBuf>,
    },
    /// Says what a component would change in a folder of YAML.
    Run {
        /// The component.
        component: PathBuf,
        /// The folder.
        folder: PathBuf,
        /// What the component is told.
        #[command(flatten)]
        told: Told,
        /// What else applies.
        #[command(flatten)]
        on: On,
    },
    /// Says what the plugins of a folder change, per proxy: its Plugin documents, and those of --plugins.
    Diff {
        /// The folder.
        folder: PathBuf,
        /// Folder of components.
        #[arg(long, value_name = "DIR")]
        plugins: Option<PathBuf>,
        /// What else applies.
        #[command(flatten)]
        on: On,
    },
    /// Writes EnvoyFilters as plugins without code; what no hook means the same as stays an EnvoyFilter. Exit code 0 when nothing stays,
    /// and nothing differs.
    Import {
        /// A file with EnvoyFilters, of YAML or JSON; lists will do, as `kubectl get envoyfilters -A -o yaml` writes them.
        file: PathBuf,
        /// Where to write what takes their place; to the standard output when left out.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// A folder with a mesh: says what its proxies are sent otherwise with the plugins than with the EnvoyFilters.
        #[arg(long, value_name = "DIR")]
        check: Option<PathBuf>,
        /// The control plane's namespace, whose plugins reach all others.
        #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
        root_namespace: String,
    },
    /// Shows a component: line of interfaces, hooks, what it can ask, schema of its configuration, size, digest.
    Inspect {
        /// The component: a file, or an image by digest.
        component: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Where images are.
        #[command(flatten)]
        images: images::Flags,
    },
    /// Puts a component into a registry, and says what to write into a document. Credentials are docker's (DOCKER_CONFIG).
    Push {
        /// The component.
        component: PathBuf,
        /// The image, `registry.example/name[:tag]`.
        image: String,
        /// Where images are.
        #[command(flatten)]
        images: images::Flags,
    },
    /// Measures what a component costs: each hook's fragments, and a mesh of services.
    Bench {
        /// The component.
        component: PathBuf,
        /// Services of the mesh.
        #[arg(long, default_value_t = 1000)]
        services: usize,
        /// What it is told.
        #[command(flatten)]
        told: Told,
    },
}

/// For whom, and how a rehearsal shows.
#[derive(Args, Clone, Default)]
pub struct On {
    /// Only for this pod's proxy, NAMESPACE/NAME.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// An Envoy to validate what comes of it with (`envoy --mode validate`).
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// Where images are.
    #[command(flatten)]
    pub images: images::Flags,
}

/// What a component is told that no document speaks of.
#[derive(Args, Clone, Default)]
pub struct Told {
    /// What the component is told, JSON or YAML: `spec.configuration` of a document.
    #[arg(long, value_name = "FILE")]
    configuration: Option<PathBuf>,
    /// All of its spec, as in cases/NAME/plugin.yaml: configuration, scope, rights, mode, ...
    #[arg(long, value_name = "FILE", conflicts_with = "configuration")]
    spec: Option<PathBuf>,
}

impl Told {
    /// The spec that the files say, without the component.
    fn spec(&self) -> Result<serde_json::Value> {
        match (&self.spec, &self.configuration) {
            (Some(file), _) => document(file),
            (None, Some(file)) => Ok(serde_json::json!({"configuration": document(file)?})),
            (None, None) => Ok(serde_json::json!({})),
        }
    }
}

/// Runs a command; false when what was asked is not so.
///
/// # Errors
/// When it cannot be done.
pub fn run(command: Command) -> Result<bool> {
    match command {
        Command::New { name, hook, out, sdk } => {
            scaffold::new(&name, &hook, out.as_deref(), sdk.as_deref()).map(|()| true)
        }
        Command::Build { folder, out } => {
            let made = build::build(&folder, out.as_deref())?;
            println!("{}", made.display());
            Ok(true)
        }
        Command::Test { folder, component, bless, envoy } => {
            cases::test(&folder, component.as_deref(), bless, envoy.as_deref())
        }
        Command::Run { component, folder, told, on } => {
            show(&Rehearsal::with_spec(&component, &folder, &on, told.spec()?)?.with_shadows(), &on)
        }
        Command::Diff { folder, plugins, on } => {
            show(&Rehearsal::of_folder(&folder, plugins.as_deref(), &on)?.with_shadows(), &on)
        }
        Command::Import { file, out, check, root_namespace } => {
            import::import(&file, out.as_deref(), check.as_deref(), &root_namespace)
        }
        Command::Inspect { component, json, images } => {
            let bytes = images::component(&component, &images)?;
            inspect::inspect(&component, &bytes, json).map(|()| true)
        }
        Command::Push { component, image, images } => inspect::push(&component, &image, &images).map(|()| true),
        Command::Bench { component, services, told } => bench::bench(&component, services, told.spec()?).map(|()| true),
    }
}

fn show(rehearsal: &Rehearsal, on: &On) -> Result<bool> {
    let found = rehearsal.run()?;
    if on.json {
        println!("{:#}", found.json());
    } else {
        print!("{}", found.text());
    }
    let mut fits = found.errors.is_empty();
    if let Some(envoy) = &on.envoy {
        let refused = rehearsal.validate(envoy)?;
        if refused.is_empty() {
            eprintln!("Envoy takes what each of {} proxies would be sent", rehearsal.proxies().len());
        }
        for (proxy, words) in refused {
            eprintln!("{proxy}: Envoy refuses it: {words}");
            fits = false;
        }
    }
    Ok(fits)
}

/// A document of JSON or YAML.
pub(crate) fn document(file: &Path) -> Result<serde_json::Value> {
    use anyhow::Context as _;
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("{} is neither JSON nor YAML", file.display()))
}
