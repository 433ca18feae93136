//! Flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

/// A control plane for the Istio service mesh whose translation stages are sandboxed WebAssembly components.
#[derive(Parser)]
#[command(name = "trysail", disable_help_subcommand = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A machine-readable form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Serves configuration to proxies: the server, with istiod's flags.
    Discovery(Box<DiscoveryFlags>),
    /// Writes what proxies would be sent as JSON, one file a type. Exit code 0 also when objects were refused, which is said on
    /// stderr; 1 when a folder could not be rendered.
    Render {
        /// A scenario folder, or any folder of YAML together with --proxies.
        #[arg(required_unless_present = "all")]
        folder: Option<PathBuf>,
        /// Renders every scenario (a folder with input.yaml and proxies.yaml) below this folder.
        #[arg(long, value_name = "ROOT", conflicts_with = "folder")]
        all: Option<PathBuf>,
        /// Folder for the files; with --all it mirrors the folders.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The proxies, in place of the folder's proxies.yaml.
        #[arg(long, value_name = "FILE")]
        proxies: Option<PathBuf>,
        /// Runs the stages as native code, not as components.
        #[arg(long)]
        native: bool,
        /// Folder of plugins (NAME.wasm).
        #[arg(long, value_name = "DIR")]
        plugins: Option<PathBuf>,
        /// Images of plugins.
        #[command(flatten)]
        images: trysail::images::Flags,
        /// With --all: only scenarios whose path contains this text.
        #[arg(long, default_value = "")]
        only: String,
        /// Shows private keys in the clear.
        #[arg(long)]
        show_secrets: bool,
        /// What was done in a machine-readable form.
        #[arg(short, long)]
        output: Option<Format>,
    },
    /// Says where a proxy's resource, or a field in it, comes from.
    Explain(ExplainFlags),
    /// Runs a recorded call again and compares: exit code 0 for the same output, 3 for another.
    Replay {
        /// The recording.
        file: PathBuf,
        /// Runs the stage as native code, for a debugger.
        #[arg(long)]
        native: bool,
    },
    /// Makes a component of a guest module, as `cargo build --target wasm32-unknown-unknown` leaves it.
    Component {
        /// The module.
        module: PathBuf,
        /// The component's file, NAME.wasm in a folder of plugins.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// For those who write plugins: new, build, test, run, diff, inspect, bench, push.
    #[command(subcommand)]
    Plugin(trysail::plugin::Command),
    /// Holds the signing key; started by discovery, which talks to it over standard input.
    #[command(hide = true)]
    Signer,
    /// Prints the version.
    Version {
        /// Only the number.
        #[arg(short, long)]
        short: bool,
        /// A machine-readable form.
        #[arg(short, long)]
        output: Option<Format>,
    },
}

/// Flags of `trysail discovery`. Those of istiod that are not here are accepted and ignored, as istiod ignores unknown ones.
#[derive(Args)]
pub struct DiscoveryFlags {
    /// Folder of YAML and JSON to read objects from; without it they come from a Kubernetes cluster.
    #[arg(long = "configDir", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Registries to read from: Kubernetes, which is the default without --configDir.
    #[arg(long, value_delimiter = ',', num_args = 0..=1, default_missing_value = "")]
    pub registries: Vec<String>,
    /// How to reach the cluster from outside; inside, the pod's service account says it.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Requests per second to the API server, in the long run.
    #[arg(long = "kubernetesApiQPS", default_value_t = 80.0)]
    pub kubernetes_api_qps: f32,
    /// Requests to the API server at once.
    #[arg(long = "kubernetesApiBurst", default_value_t = 160)]
    pub kubernetes_api_burst: u64,
    /// Mesh configuration file; mesh.yaml in the folder goes before it, and it before the cluster's ConfigMap.
    #[arg(long = "meshConfig", value_name = "FILE", default_value = "./etc/istio/config/mesh")]
    pub mesh_config: PathBuf,
    /// Networks file; networks.yaml in the folder goes before it, and it before the cluster's ConfigMap.
    #[arg(long = "networksConfig", value_name = "FILE", default_value = "./etc/istio/config/meshNetworks")]
    pub networks_config: PathBuf,
    /// Folder of plugins (NAME.wasm), watched.
    #[arg(long = "plugins", value_name = "DIR", env = "TRYSAIL_PLUGINS")]
    pub plugins: Option<PathBuf>,
    /// Images of plugins.
    #[command(flatten)]
    pub images: trysail::images::Flags,
    /// Plaintext xDS.
    #[arg(long = "grpcAddr", default_value = ":15010")]
    pub grpc_addr: String,
    /// xDS over TLS, and certificates; empty for none.
    #[arg(long = "secureGRPCAddr", default_value = ":15012")]
    pub secure_grpc_addr: String,
    /// Certificate of the secure port, in place of one of our own authority.
    #[arg(long = "tlsCertFile", value_name = "FILE", default_value = "", requires = "tls_key_file")]
    pub tls_cert_file: String,
    /// Its key.
    #[arg(long = "tlsKeyFile", value_name = "FILE", default_value = "")]
    pub tls_key_file: String,
    /// Roots that go with it: they are published, and vouch for clients.
    #[arg(long = "caCertFile", value_name = "FILE", default_value = "")]
    pub ca_cert_file: String,
    /// Cipher suites of TLS 1.2 by Go's names.
    #[arg(long = "tls-cipher-suites", value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,
    /// Oldest version of TLS, 1.2 or 1.3.
    #[arg(long = "tls-min-version", default_value = "1.2")]
    pub tls_min_version: String,
    /// Readiness and debug pages.
    #[arg(long = "httpAddr", default_value = ":8080")]
    pub http_addr: String,
    /// Metrics and version.
    #[arg(long = "monitoringAddr", default_value = ":15014")]
    pub monitoring_addr: String,
    /// Levels of detail of the log, SCOPE:LEVEL,...; LEVEL is debug, info, warn, error or none. Without it RUST_LOG counts.
    #[arg(long = "log_output_level", value_name = "LEVELS")]
    pub log_output_level: Option<String>,
    /// Scopes whose lines say where in the code they come from.
    #[arg(long = "log_caller", value_name = "SCOPES", default_value = "")]
    pub log_caller: String,
    /// Writes the log as JSON.
    #[arg(long = "log_as_json", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub log_as_json: bool,
    /// Where the log goes: stdout, stderr or a file; may be given more than once.
    #[arg(long = "log_target", value_name = "TARGET", value_delimiter = ',')]
    pub log_target: Vec<String>,
    /// Where ControlZ listens, for `istioctl admin log`.
    #[arg(long = "ctrlz_address", default_value = "localhost")]
    pub ctrlz_address: String,
    /// Port of ControlZ; 0 for none.
    #[arg(long = "ctrlz_port", default_value_t = 9876)]
    pub ctrlz_port: u16,
    /// Sends traces to an OpenTelemetry collector, http://HOST:4318.
    #[arg(long = "otlpEndpoint", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that are sent, 0 to 1.
    #[arg(long = "otlpShare", value_name = "SHARE", default_value_t = 1.0)]
    pub otlp_share: f64,
    /// Time without traffic after which an xDS client is pinged.
    #[arg(long = "keepaliveInterval", env = "GRPC_KEEPALIVE_INTERVAL", default_value = "30s")]
    pub keepalive_interval: String,
    /// How long the answer to a ping may take.
    #[arg(long = "keepaliveTimeout", env = "GRPC_KEEPALIVE_TIMEOUT", default_value = "10s")]
    pub keepalive_timeout: String,
    /// Age at which an xDS connection is asked to go elsewhere, a tenth more or less; without it never.
    #[arg(long = "keepaliveMaxServerConnectionAge", value_name = "AGE")]
    pub keepalive_max_server_connection_age: Option<String>,
    /// How long streams may take to end at shutdown.
    #[arg(long = "shutdownDuration", default_value = "10s")]
    pub shutdown_duration: String,
    /// DNS suffix of services.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// Name of the own cluster.
    #[arg(long = "clusterID", env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Other names of clusters in tokens and nodes: ALIAS=CLUSTER.
    #[arg(long = "clusterAliases", value_name = "ALIAS=CLUSTER", value_delimiter = ',')]
    pub cluster_aliases: Vec<String>,
    /// Namespace of the control plane.
    #[arg(short, long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub namespace: String,
    /// Revision: objects with another istio.io/rev label are not read.
    #[arg(long, env = "REVISION", default_value = "default")]
    pub revision: String,
    /// A kind that protects something and that no stage translates yet (AuthorizationPolicy, ...): configure proxies as if its
    /// objects were not there, instead of holding back those that they select.
    #[arg(long = "accept-untranslated", value_name = "KIND", value_delimiter = ',')]
    pub accept_untranslated: Vec<String>,
    /// Runs the stages as native code, not as components.
    #[arg(long)]
    pub native: bool,
}

/// Flags of `trysail explain`.
#[derive(Args)]
pub struct ExplainFlags {
    /// A folder of YAML.
    pub folder: PathBuf,
    /// Type of the resource: cds, eds, lds, rds.
    pub kind: Option<String>,
    /// Name of the resource, such as 80 or outbound|80||backend.default.svc.cluster.local.
    pub name: Option<String>,
    /// A field of it: virtual_hosts[0].routes[0].route.cluster; [name=VALUE] picks an element by name.
    #[arg(long, value_name = "PATH")]
    pub field: Option<String>,
    /// The sidecar of this pod, NAMESPACE/NAME.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// A proxy of the folder's proxies.yaml.
    #[arg(long, value_name = "NAME", conflicts_with = "pod")]
    pub proxy: Option<String>,
    /// Runs the stages as native code.
    #[arg(long)]
    pub native: bool,
    /// Shows every question of every call.
    #[arg(short, long)]
    pub verbose: bool,
    /// A machine-readable form.
    #[arg(short, long)]
    pub output: Option<Format>,
    /// Records the call named by --call in this file, for `trysail replay`.
    #[arg(long, value_name = "FILE", requires = "call")]
    pub record: Option<PathBuf>,
    /// The call to record: STAGE FUNCTION [ARGS].
    #[arg(long, num_args = 2.., value_name = "WORD")]
    pub call: Vec<String>,
}

/// Takes the flags out of a `discovery` command line that are unknown: istiod accepts them silently, so that one set of
/// arguments works with several versions. A value that follows an unknown flag goes with it.
pub fn tolerate(args: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<String>) {
    let args: Vec<OsString> = args.collect();
    if args.get(1).is_none_or(|command| command != "discovery") {
        return (args, Vec::new());
    }
    let cli = Cli::command();
    let known = |name: &str| {
        let discovery = cli.find_subcommand("discovery").expect("the command is defined above");
        name == "help" || discovery.get_arguments().any(|arg| arg.get_long() == Some(name))
    };
    let (mut kept, mut unknown) = (Vec::new(), Vec::new());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        match text.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag)) {
            Some(name) if !name.is_empty() && !known(name) => {
                unknown.push(format!("--{name}"));
                if !text.contains('=') && args.peek().is_some_and(|next| !next.to_string_lossy().starts_with('-')) {
                    args.next();
                }
            }
            _ => kept.push(arg),
        }
    }
    (kept, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> (Vec<String>, Vec<String>) {
        let (kept, unknown) = tolerate(line.split(' ').map(OsString::from));
        (kept.into_iter().map(|arg| arg.into_string().unwrap()).collect(), unknown)
    }

    #[test]
    fn unknown_flags_of_the_server_are_tolerated() {
        let (kept, unknown) = split("trysail discovery --log_rotate=x --configDir d --log_stacktrace_level 9 --native");
        assert_eq!(kept, ["trysail", "discovery", "--configDir", "d", "--native"]);
        assert_eq!(unknown, ["--log_rotate", "--log_stacktrace_level"]);
        assert!(split("trysail render --nonsense x").1.is_empty(), "other commands say what is wrong");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["trysail", "discovery", "--configDir", "d", "--registries="]).unwrap();
        let Command::Discovery(flags) = cli.command else { panic!("it is discovery") };
        assert_eq!(flags.registries, [""]);
        assert!(!flags.log_as_json);
        for (form, as_json) in [("--log_as_json", true), ("--log_as_json=true", true), ("--log_as_json=false", false)] {
            let cli = Cli::try_parse_from(["trysail", "discovery", form, "--configDir", "d"]).unwrap();
            let Command::Discovery(flags) = cli.command else { panic!("it is discovery") };
            assert_eq!((flags.log_as_json, flags.config_dir.is_some()), (as_json, true), "{form}");
        }
    }
}
