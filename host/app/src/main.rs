//! `trysail`: see `trysail help`.

mod cli;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use cli::{Cli, Command, DiscoveryFlags, ExplainFlags, Format};
use trysail::images::Waiting;
use trysail::omission::PROTECTIVE;
use trysail::pipeline::{self, Mode, Options};
use trysail::source::Place;
use trysail::{env, explain, logging, plugin, render, security, server, version};
use trysail_ca::tls::ServingFiles;
use trysail_facts::FactsSnapshot;
use trysail_kube::Connection;
use trysail_model::Images;

fn main() -> ExitCode {
    let (args, unknown) = cli::tolerate(std::env::args_os());
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => cli.command,
        Err(help) => {
            let code = if help.use_stderr() { 2 } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = help.print();
            return ExitCode::from(code);
        }
    };
    match run(command, &unknown) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("trysail: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, unknown: &[String]) -> Result<ExitCode> {
    if !matches!(command, Command::Discovery(_)) {
        logging::start(&logging::Config::default(), None)?;
    }
    match command {
        Command::Discovery(flags) => discovery(*flags, unknown)?,
        Command::Render { folder, all, out, proxies, native, plugins, images, only, show_secrets, output } => {
            let images = Waiting::new(&images, &trysail_facts::Settings::default().system_namespace)?;
            let images: Option<Arc<dyn Images>> = Some(Arc::new(images));
            let options = Options {
                mode: mode(native),
                hold_back: false,
                audit_share: 0.0,
                plugins,
                images,
                ..Options::default()
            };
            match (folder, all) {
                (Some(folder), None) => render_one(&options, &folder, proxies.as_deref(), &out, show_secrets, output)?,
                (None, Some(root)) => render_all(&options, &root, &only, &out, show_secrets, output)?,
                _ => bail!("name a folder, or --all ROOT"),
            }
        }
        Command::Explain(flags) => on_a_big_stack(|| explain_command(&flags))?,
        Command::Plugin(command) => {
            return Ok(if on_a_big_stack(|| plugin::run(command))? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Replay { file, native } => return on_a_big_stack(|| replay(&file, native)),
        Command::Signer => {
            trysail_ca::signer::run_child(&trysail::ca_secret::open).context("the control plane is gone")?
        }
        Command::Component { module, out } => component(&module, &out)?,
        Command::Version { short, output } => match output {
            None => {
                println!("{}", if short { version::ISTIO.to_owned() } else { version::line().trim_end().to_owned() })
            }
            Some(format) => {
                print(&serde_json::json!({"version": version::ISTIO, "trysail": env!("CARGO_PKG_VERSION")}), format)?
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn mode(native: bool) -> Mode {
    if native { Mode::Native } else { Mode::Sandboxed }
}

fn print(value: &serde_json::Value, format: Format) -> Result<()> {
    match format {
        Format::Json => println!("{value:#}"),
        Format::Yaml => print!("{}", serde_yaml_ng::to_string(value)?),
    }
    Ok(())
}

fn component(module: &Path, out: &Path) -> Result<()> {
    let bytes = std::fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
    let component = plugin::encode(&bytes);
    let component = component.with_context(|| format!("{} is no guest module made with the SDK", module.display()))?;
    // Whole or not at all: a server may be watching the folder.
    let fresh = out.with_extension("new");
    std::fs::write(&fresh, &component).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, out).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {} bytes", out.display(), component.len());
    Ok(())
}

/// No process lives so long; istiod's word for "never" is longer.
const LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn discovery(flags: DiscoveryFlags, unknown: &[String]) -> Result<()> {
    let place = place(&flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Commits run stages' queries, but never stages; plugins are compiled there.
        .thread_stack_size(trysail_stages::STACK)
        .build()
        .context("cannot start the runtime")?;
    let logs = logging::Config {
        levels: flags.log_output_level,
        callers: flags.log_caller,
        as_json: flags.log_as_json,
        targets: flags.log_target,
        export: flags.otlp_endpoint.map(|endpoint| logging::Export { endpoint, share: flags.otlp_share }),
    };
    let (scopes, exporting) = logging::start(&logs, Some(runtime.handle()))?;
    for flag in unknown {
        tracing::warn!(flag, "unknown flag ignored, as istiod does");
    }
    if let Some(kind) = flags.accept_untranslated.iter().find(|kind| !PROTECTIVE.contains(&kind.as_str())) {
        bail!("--accept-untranslated={kind}: the kinds that proxies are held back for are {}", PROTECTIVE.join(", "));
    }
    let files = (!flags.tls_cert_file.is_empty()).then(|| ServingFiles {
        certificate: flags.tls_cert_file.into(),
        key: flags.tls_key_file.into(),
        roots: (!flags.ca_cert_file.is_empty()).then(|| flags.ca_cert_file.into()),
    });
    let secure = security::Flags {
        addr: flags.secure_grpc_addr,
        files,
        cipher_suites: flags.tls_cipher_suites,
        min_version: flags.tls_min_version,
        signer: security::SignerAt::Process(std::env::current_exe().context("cannot find this program")?),
    };
    let length = |flag: &str, text: &str| {
        env::duration(text).with_context(|| format!("--{flag}={text} is no duration such as 30m"))
    };
    let max_age = flags.keepalive_max_server_connection_age.as_deref();
    let max_age = max_age.map(|text| length("keepaliveMaxServerConnectionAge", text)).transpose()?;
    let keepalive = server::Keepalive {
        interval: length("keepaliveInterval", &flags.keepalive_interval)?,
        timeout: length("keepaliveTimeout", &flags.keepalive_timeout)?,
        max_age: max_age.filter(|age| *age < LIFETIME),
    };
    let config = server::Config {
        keepalive,
        secure,
        place,
        mesh_config: flags.mesh_config,
        networks_config: flags.networks_config,
        plugins: flags.plugins,
        images: flags.images,
        grpc_addr: flags.grpc_addr,
        http_addr: flags.http_addr,
        monitoring_addr: flags.monitoring_addr,
        shutdown: env::duration(&flags.shutdown_duration).context("--shutdownDuration is no duration such as 10s")?,
        settings: trysail_facts::Settings {
            domain: flags.domain,
            cluster_id: flags.cluster_id,
            system_namespace: flags.namespace,
            revision: flags.revision,
        },
        mode: mode(flags.native),
        cluster_aliases: aliases(&flags.cluster_aliases)?,
        accept_untranslated: flags.accept_untranslated.into_iter().collect(),
    };
    let controlz = (flags.ctrlz_port > 0).then_some((flags.ctrlz_address, flags.ctrlz_port));
    let served = runtime.block_on(async {
        if let Some(address) = controlz {
            match tokio::net::TcpListener::bind(&address).await {
                Ok(listener) => drop(tokio::spawn(trysail::controlz::serve(listener, scopes))),
                // It is for looking in; serving does not depend on it.
                Err(error) => tracing::warn!(?address, %error, "no ControlZ"),
            }
        }
        server::run(config, &env::Process, stopped(), |_| {}).await
    });
    if let Some(exporting) = exporting {
        exporting.stop();
    }
    served
}

/// `--clusterAliases`: each cluster has at most one other name, as in istiod.
fn aliases(words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut aliases = BTreeMap::new();
    for word in words.iter().filter(|word| !word.is_empty()) {
        let pair = word.split_once('=').with_context(|| format!("--clusterAliases: {word:?} is not ALIAS=CLUSTER"))?;
        if aliases.values().any(|cluster| cluster == pair.1) {
            bail!("--clusterAliases: cluster {:?} has two aliases", pair.1);
        }
        aliases.insert(pair.0.to_owned(), pair.1.to_owned());
    }
    Ok(aliases)
}

/// Where the flags say that objects come from.
fn place(flags: &DiscoveryFlags) -> Result<Place> {
    let registries: Vec<&str> = flags.registries.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    if let Some(other) = registries.iter().find(|name| **name != "Kubernetes") {
        bail!("--registries={other}: Kubernetes is the only registry there is");
    }
    match &flags.config_dir {
        Some(_) if !registries.is_empty() => {
            bail!(
                "--configDir and --registries=Kubernetes: objects come from one or the other; use --registries= with a folder"
            )
        }
        Some(folder) => Ok(Place::Folder(folder.clone())),
        None if registries.is_empty() && !flags.registries.is_empty() => {
            bail!("--registries= without --configDir: there is nothing to read from")
        }
        None => Ok(Place::Cluster(Connection {
            kubeconfig: flags.kubeconfig.clone().filter(|file| !file.as_os_str().is_empty()),
            requests_per_second: flags.kubernetes_api_qps,
            burst: flags.kubernetes_api_burst,
        })),
    }
}

/// Done when the process is asked to stop.
async fn stopped() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}

fn explain_command(flags: &ExplainFlags) -> Result<()> {
    let config = trysail_discovery::Config::scenario();
    let folder = trysail_discovery::load_folder(&flags.folder, &config)
        .with_context(|| format!("cannot read {}", flags.folder.display()))?;
    let proxy = if let Some(pod) = &flags.pod {
        let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
        let found = folder.objects.iter().find(|object| {
            &*object.reference.kind == "Pod"
                && &*object.reference.namespace == namespace
                && &*object.reference.name == name
        });
        explain::proxy_of(found.with_context(|| format!("there is no Pod {namespace}/{name} in the folder"))?)?
    } else {
        let document = folder.settings.proxies.as_deref().context("name a --pod: the folder has no proxies.yaml")?;
        let wanted = flags.proxy.as_deref().context("name a --pod, or a --proxy of proxies.yaml")?;
        let all = render::proxies(document)?;
        let found = all.into_iter().find(|scripted| scripted.name == wanted);
        found.with_context(|| format!("proxies.yaml has no proxy {wanted:?}"))?.proxy?
    };
    let mut inputs = render::inputs(&folder);
    inputs.environment.extend(env::Environment::all(&env::Process));
    let options = Options { mode: mode(flags.native), audit_share: 0.0, ..Options::default() };
    let engine = pipeline::engine(&options, pipeline::stages(&options)?, Arc::new(FactsSnapshot::new(inputs)));
    if let Some(file) = &flags.record {
        let [stage, function, args @ ..] = &flags.call[..] else {
            bail!("--record needs --call STAGE FUNCTION [ARGS]")
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let recording =
            engine.record(&proxy, stage, function, &args).with_context(|| format!("{stage}/{function} faulted"))?;
        std::fs::write(file, recording.to_json()).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{} questions of {stage}/{function} recorded in {}", recording.asked.len(), file.display());
        return Ok(());
    }
    let (Some(kind), Some(name)) = (&flags.kind, &flags.name) else {
        bail!("name a TYPE (cds, eds, lds, rds) and a RESOURCE")
    };
    let answer = explain::explain(&engine, &proxy, kind, name, flags.field.as_deref())?;
    match flags.output {
        Some(format) => print(&explain::json(&answer), format),
        None => {
            print!("{}", explain::text(&answer, flags.verbose));
            Ok(())
        }
    }
}

fn replay(file: &Path, native: bool) -> Result<ExitCode> {
    use trysail_stages::replay::{Recording, Replayed};
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let recording = Recording::from_json(&text).with_context(|| file.display().to_string())?;
    let options = Options { mode: mode(native), ..Options::default() };
    let stages = pipeline::stages(&options)?;
    let guest = stages.iter().find(|guest| guest.name() == recording.guest);
    let guest = guest.with_context(|| format!("there is no built-in stage {:?}", recording.guest))?;
    if !native && guest.digest() != recording.digest {
        eprintln!("note: recorded with {} {}, this is {}", recording.guest, recording.digest, guest.digest());
    }
    match recording.replay(&**guest, &options.limits) {
        Replayed::Same => println!("the same output"),
        Replayed::Fault(kind) => bail!("{} {kind}", recording.guest),
        Replayed::Different(then, now) => {
            println!("recorded:\n{then:#}\nnow:\n{now:#}");
            return Ok(ExitCode::from(3));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn render_one(
    options: &Options,
    folder: &Path,
    proxies: Option<&Path>,
    out: &Path,
    show_secrets: bool,
    output: Option<Format>,
) -> Result<()> {
    let loaded = pipeline::load(options)?;
    let rendered = on_a_big_stack(|| render::scenario(options, &loaded, folder, proxies, out, show_secrets))?;
    if let Some(format) = output {
        let render::Rendered { n_resources, refused, warnings } = rendered;
        let done = serde_json::json!({"out": out, "resources": n_resources, "refused": refused, "warnings": warnings});
        return print(&done, format);
    }
    for line in rendered.refused {
        eprintln!("refused: {line}");
    }
    for line in rendered.warnings {
        eprintln!("warning: {line}");
    }
    println!("{} resources in {}", rendered.n_resources, out.display());
    Ok(())
}

fn render_all(
    options: &Options,
    root: &Path,
    only: &str,
    out: &Path,
    show_secrets: bool,
    output: Option<Format>,
) -> Result<()> {
    let loaded = pipeline::load(options)?;
    let mut scenarios = render::scenarios(root)?;
    scenarios.retain(|folder| folder.display().to_string().contains(only));
    let (next, n_failed, n_resources) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some(folder) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = folder.strip_prefix(root).unwrap_or(folder);
            match render::scenario(options, &loaded, folder, None, &out.join(name), show_secrets) {
                Ok(rendered) => {
                    n_resources.fetch_add(rendered.n_resources, Ordering::Relaxed);
                }
                Err(error) => {
                    n_failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{}: {error:#}", name.display());
                }
            }
        }
    };
    let n_workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..n_workers {
            let builder = std::thread::Builder::new().stack_size(trysail_stages::STACK);
            builder.spawn_scoped(scope, work).context("cannot start a thread")?;
        }
        Ok(())
    })?;
    let (n_failed, n_resources) = (n_failed.into_inner(), n_resources.into_inner());
    match output {
        None => println!("{} scenarios, {n_resources} resources in {}", scenarios.len(), out.display()),
        Some(format) => {
            let n_scenarios = scenarios.len();
            let done = serde_json::json!({
                "out": out, "scenarios": n_scenarios, "failed": n_failed, "resources": n_resources
            });
            print(&done, format)?;
        }
    }
    match n_failed {
        0 => Ok(()),
        n => bail!("{n} scenarios could not be rendered"),
    }
}

/// Calls nest, each on its guest's stack: evaluation wants more than a main thread has.
fn on_a_big_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        let thread = builder.spawn_scoped(scope, work).context("cannot start a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
