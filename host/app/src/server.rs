//! `trysail discovery`: from a folder to streams, until it is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use trysail_ca::authenticate::Authenticators;
use trysail_ca::sds::{self, SecretStore, is_secret};
use trysail_discovery::{Change, FolderSource, Status};
use trysail_facts::{FactsSnapshot, Inputs, Settings};
use trysail_model::ObjectRef;
use trysail_stages::metrics::EngineCollector;
use trysail_stages::plugins::{PluginFolder, PluginStatus};
use trysail_stages::{Engine, EngineTranslator};
use trysail_xds::{PushInfo, Server, debounce};

use crate::env::{Environment, duration_of};
use crate::pages::{Access, Pages, Port};
use crate::pipeline::{self, Mode, Options};
use crate::terminal::Terminal;
use crate::{metrics, security};

/// Settings of the server, from flags and environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of YAML.
    pub config_dir: PathBuf,
    /// Mesh configuration file; one in the folder goes before it.
    pub mesh_config: PathBuf,
    /// Networks file; one in the folder goes before it.
    pub networks_config: PathBuf,
    /// Folder of plugins, if any.
    pub plugins: Option<PathBuf>,
    /// Plaintext xDS.
    pub grpc_addr: String,
    /// xDS over TLS.
    pub secure: security::Flags,
    /// Readiness and debug.
    pub http_addr: String,
    /// Metrics and version.
    pub monitoring_addr: String,
    /// How long streams may take to end at shutdown.
    pub shutdown: Duration,
    /// DNS suffix, cluster and namespace.
    pub settings: Settings,
    /// How stages run.
    pub mode: Mode,
}

/// What is known about the control plane's own state, for the debug pages.
#[derive(Default)]
pub struct Report {
    /// The folder's state.
    pub folder: Arc<Status>,
    /// Plugins in force, and what is wrong with others.
    pub plugins: Vec<PluginStatus>,
    /// The revision served.
    pub revision: u64,
}

/// A running server: handles for the debug pages and for tests.
pub struct Running {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The streams.
    pub xds: Server,
    /// The debug pages.
    pub pages: Arc<Pages>,
    /// Who calls the pages.
    pub authenticators: Arc<Authenticators>,
    /// Metrics.
    pub registry: Registry,
    /// The addresses in use: xDS, readiness, metrics.
    pub addresses: [SocketAddr; 3],
    /// xDS over TLS, unless it is switched off.
    pub secure_address: Option<SocketAddr>,
}

/// An address as Go writes it: `:15010` is every address of the machine.
fn address(text: &str) -> Result<SocketAddr> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.replace("localhost", "127.0.0.1") };
    full.parse().with_context(|| format!("{text:?} is not an address such as :15010 or 127.0.0.1:15010"))
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
const LISTEN: &str = "cannot listen; did another process take the port meanwhile?";

fn bind(text: &str, what: &str) -> Result<TcpSocket> {
    let at = address(text)?;
    let bound = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of a server that just ended are no reason to wait.
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        std::io::Result::Ok(socket)
    };
    bound().with_context(|| format!("cannot listen on {at} for {what}"))
}

/// What happened since the last push.
enum Event {
    Folder(Box<Change>),
    Settled,
    Plugins,
    Files,
}

/// Runs until `shutdown` is done. `started` is called once, when everything listens.
///
/// # Errors
/// When the folder cannot be read, an address not be bound, or the sandbox not start.
pub async fn run(
    config: Config,
    environment: &dyn Environment,
    shutdown: impl Future<Output = ()> + Send + 'static,
    started: impl FnOnce(&Running),
) -> Result<()> {
    let terminal = Arc::new(Terminal::new());
    let debouncing = debounce::Config {
        after: duration_of(environment, "PILOT_DEBOUNCE_AFTER", Duration::from_millis(100)),
        max: duration_of(environment, "PILOT_DEBOUNCE_MAX", Duration::from_secs(10)),
    };
    let (events_tx, events_rx) = mpsc::unbounded_channel();

    // Bind first: a port that is taken is the commonest mistake, and nothing has been done yet. Connections are refused until
    // there is somebody to answer, so that nobody takes a half-started server for one that hangs.
    let grpc = bind(&config.grpc_addr, "xDS (--grpcAddr)")?;
    let secure = match &*config.secure.addr {
        "" => None,
        text => Some(bind(text, "xDS over TLS (--secureGRPCAddr)")?),
    };
    let secure_address = secure.as_ref().map(TcpSocket::local_addr).transpose()?;
    let http = bind(&config.http_addr, "readiness and debug (--httpAddr)")?;
    let monitoring = bind(&config.monitoring_addr, "metrics (--monitoringAddr)")?;
    let addresses = [grpc.local_addr()?, http.local_addr()?, monitoring.local_addr()?];

    let (source, first) = watch(&config, events_tx.clone())?;
    for rejection in &first.status.rejections {
        terminal.problem(&format!("refused: {rejection}"));
    }
    terminal.loaded(&config.config_dir, &first.status);

    let files = Files::read(&config);
    let mesh = files.mesh(&first.settings);
    let inputs = Inputs {
        objects: pipeline::for_stages(&first.changes.added),
        mesh: mesh.clone(),
        networks: files.networks(&first.settings),
        environment: environment.all(),
        settings: config.settings.clone(),
    };
    let secrets = Arc::new(SecretStore::new(None));
    secrets.configure(&mesh);
    secrets.apply(first.changes.added.iter().map(|object| (&object.reference, Some(object))));
    let began = Instant::now();
    let settled = events_tx.clone();
    let options = Options {
        mode: config.mode,
        on_run: Some({
            let terminal = terminal.clone();
            Arc::new(move |call| terminal.ran(call))
        }),
        on_settled: Some(Arc::new(move || drop(settled.send(vec![Event::Settled])))),
        ..Options::default()
    };
    let (engine, snapshot, plugins) = {
        let plugins = config.plugins.clone();
        tokio::task::spawn_blocking(move || -> Result<_> {
            let snapshot = FactsSnapshot::new(inputs);
            let loaded = pipeline::load(&options)?;
            let engine = pipeline::engine(&options, loaded.stages, Arc::new(snapshot.clone()));
            let plugins = match (plugins, loaded.runtime) {
                (Some(folder), Some(runtime)) => Some(PluginFolder::new(folder, runtime)),
                (Some(_), None) => bail!("plugins need the sandbox: leave out --native"),
                (None, _) => None,
            };
            Ok((engine, snapshot, plugins))
        })
        .await
        .context("the start of the stages panicked")??
    };
    terminal.say(&format!("stages ready in {} ms", began.elapsed().as_millis()));

    let registry = Registry::new();
    let secure = match secure {
        None => None,
        Some(listener) => {
            let (settings, mesh) = (&config.settings, &mesh);
            let read = security::Config::read(
                &config.secure,
                environment,
                mesh,
                &settings.system_namespace,
                &settings.revision,
            );
            let started =
                security::start(read?, &registry).await.context("the secure port (--secureGRPCAddr= for none)")?;
            terminal.say(&format!("certificate authority: {}", started.place));
            Some((listener, started))
        }
    };
    let streams = trysail_xds::Metrics::register(&registry).context("metrics")?;
    engine.counters().register(&registry).context("metrics")?;
    registry.register(Box::new(EngineCollector::new(engine.clone()))).context("metrics")?;
    metrics::register_process(&registry).context("metrics")?;
    let commits = metrics::Commits::register(&registry).context("metrics")?;
    first.status.rejections.iter().for_each(|rejection| commits.refused(rejection.object.as_ref()));
    commits
        .changes(&FactsSnapshot::new(Inputs::default()), first.changes.added.iter().map(|o| (&o.reference, Some(o))));
    let report =
        Arc::new(Mutex::new(Report { folder: first.status.clone(), plugins: Vec::new(), revision: engine.revision() }));
    let facts = Arc::new(ArcSwap::from_pointee(snapshot));
    let pages = Arc::new(Pages {
        access: Access::read(environment, &config.settings.system_namespace),
        facts: facts.clone(),
        engine: engine.clone(),
        secrets: secrets.clone(),
        report: report.clone(),
        identifier: crate::version::identifier(environment),
        problems: Mutex::default(),
    });
    metrics::StateCollector::register(&registry, &pages).context("metrics")?;
    let xds = Server::new(
        Arc::new(EngineTranslator(engine.clone())),
        trysail_xds::Config {
            metrics: streams.clone(),
            secrets: Some(secrets.clone()),
            accepts_unnamed_accounts: security::accepts_unnamed_accounts(environment),
            debug: Some(pages.clone()),
            on_push: Some({
                let terminal = terminal.clone();
                Arc::new(move |report| terminal.pushed(report))
            }),
            max_connection_age_grace: config.shutdown,
            ..trysail_xds::Config::default()
        },
    );
    let running = Running {
        engine: engine.clone(),
        xds: xds.clone(),
        pages,
        authenticators: secure.as_ref().map(|(_, secure)| secure.authenticators.clone()).unwrap_or_default(),
        registry,
        addresses,
        secure_address,
    };
    let plugins = plugins.map(|folder| Arc::new(Mutex::new(folder)));
    let committer = Arc::new(Committer {
        engine: engine.clone(),
        facts,
        secrets,
        files: Mutex::new(files),
        config: config.clone(),
        plugins: plugins.clone(),
        report,
        metrics: commits,
        terminal: terminal.clone(),
        settings: Mutex::new(first.settings.clone()),
        served: Mutex::new(engine.revision()),
        collected: Mutex::new(0),
    });
    if plugins.is_some() {
        committer.scan_plugins();
    }
    poll(&committer, events_tx)?;

    let [grpc, http, monitoring] = [grpc, http, monitoring].map(|socket| socket.listen(BACKLOG));
    let (grpc, http, monitoring) = (grpc.context(LISTEN)?, http.context(LISTEN)?, monitoring.context(LISTEN)?);
    let secure = match secure {
        Some((socket, secure)) => Some((socket.listen(BACKLOG).context(LISTEN)?, secure)),
        None => None,
    };
    let running = Arc::new(running);
    let pages = [(http, Port::Http), (monitoring, Port::Monitoring)]
        .map(|(listener, port)| tokio::spawn(crate::pages::serve(listener, running.clone(), port)));
    started(&running);
    let over_tls = secure_address.map(|address| format!(", over TLS on {address}")).unwrap_or_default();
    let [grpc_at, http_at, metrics_at] = addresses;
    terminal.say(&format!("xDS on {grpc_at}{over_tls}, ready on {http_at}, metrics on {metrics_at}"));

    let pushing = {
        let (xds, metrics) = (xds.clone(), streams);
        debounce::run(
            debouncing,
            events_rx,
            |all: &mut Vec<Event>, more| all.extend(more),
            move |batch| {
                let (xds, metrics, committer) = (xds.clone(), metrics.clone(), committer.clone());
                async move {
                    metrics.debounced(batch.waited);
                    let since = batch.since.into_std();
                    let committed = tokio::task::spawn_blocking(move || committer.commit(batch.changes)).await;
                    match committed {
                        Ok(Some(Committed { revision, reasons, secrets })) => {
                            xds.notify(PushInfo { since, secrets, ..PushInfo::new(revision, reasons) })
                        }
                        Ok(None) => {}
                        Err(panic) => tracing::error!(%panic, "a change could not be taken in; what was served stays"),
                    }
                }
            },
        )
    };
    let stopping = xds.clone();
    let (stop_tx, stop_rx) = tokio::sync::watch::channel(false);
    let stopped = || {
        let mut stop = stop_rx.clone();
        async move { drop(stop.wait_for(|stop| *stop).await) }
    };
    let serving = async {
        let plain = async { xds.serve(grpc, stopped()).await.context("the xDS server failed") };
        let over_tls = async {
            match secure {
                Some((listener, secure)) => secure.serve(listener, &xds, stopped()).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(plain, over_tls).map(drop)
    };
    let stop = async {
        shutdown.await;
        // Both servers listen as long as we do.
        let _ = stop_tx.send(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = serving => served?,
        () = pushing => {}
        () = stop => {}
    }
    stopping.stop();
    pages.iter().for_each(tokio::task::JoinHandle::abort);
    drop(source);
    terminal.say("stopped");
    Ok(())
}

/// Starts to watch the folder; returns its first state.
fn watch(config: &Config, events: mpsc::UnboundedSender<Vec<Event>>) -> Result<(FolderSource, Change)> {
    let discovery = trysail_discovery::Config {
        system_namespace: config.settings.system_namespace.clone(),
        revision: config.settings.revision.clone(),
        read_kinds: Some(pipeline::READ_KINDS.iter().chain(&sds::READ_KINDS).map(|kind| (*kind).to_owned()).collect()),
        ..trysail_discovery::Config::default()
    };
    let (first_tx, first_rx) = std::sync::mpsc::sync_channel(1);
    let on_change = move |change: Change| {
        if change.initial {
            // The receiver waits for exactly this one.
            let _ = first_tx.send(change);
        } else {
            let _ = events.send(vec![Event::Folder(Box::new(change))]);
        }
    };
    let folder = &config.config_dir;
    let source = FolderSource::start(folder, discovery, on_change)
        .with_context(|| format!("cannot read --configDir {}", folder.display()))?;
    let first = first_rx.recv().context("the folder's first state never came")?;
    Ok((source, first))
}

/// Looks for changes of single files and of plugins: a few `stat` calls, four times a second, on a thread of their own, since
/// a new plugin has to be compiled.
fn poll(committer: &Arc<Committer>, events: mpsc::UnboundedSender<Vec<Event>>) -> Result<()> {
    let committer = Arc::downgrade(committer);
    let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut last = None;
    let run = move || {
        while let Some(committer) = committer.upgrade() {
            let now = [&committer.config.mesh_config, &committer.config.networks_config].map(stamp);
            let mut found = Vec::new();
            if last.replace(now).is_some_and(|last| last != now) {
                found.push(Event::Files);
            }
            if committer.scan_plugins() {
                found.push(Event::Plugins);
            }
            if !found.is_empty() && events.send(found).is_err() {
                return;
            }
            drop(committer);
            std::thread::sleep(Duration::from_millis(250));
        }
    };
    let spawned = std::thread::Builder::new().name("files".into()).spawn(run);
    spawned.context("cannot start a thread").map(drop)
}

/// The files beside the folder.
struct Files {
    mesh: Option<Value>,
    networks: Option<Value>,
}

impl Files {
    fn read(config: &Config) -> Files {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).ok()?;
            serde_yaml_ng::from_str(&text)
                .inspect_err(
                    |error| tracing::error!(file = %path.display(), %error, "not YAML; the last good version stays"),
                )
                .ok()
        };
        Files { mesh: read(&config.mesh_config), networks: read(&config.networks_config) }
    }

    fn mesh(&self, folder: &trysail_discovery::Settings) -> Value {
        folder.mesh.as_deref().cloned().or_else(|| self.mesh.clone()).unwrap_or(Value::Null)
    }

    fn networks(&self, folder: &trysail_discovery::Settings) -> Value {
        folder.networks.as_deref().cloned().or_else(|| self.networks.clone()).unwrap_or(Value::Null)
    }
}

/// Takes changes in: facts, then stages.
struct Committer {
    engine: Arc<Engine>,
    /// Written here alone, and one commit at a time.
    facts: Arc<ArcSwap<FactsSnapshot>>,
    /// Secrets and who may have them: not among the facts, which stages see.
    secrets: Arc<SecretStore>,
    files: Mutex<Files>,
    settings: Mutex<trysail_discovery::Settings>,
    config: Config,
    plugins: Option<Arc<Mutex<PluginFolder>>>,
    report: Arc<Mutex<Report>>,
    metrics: metrics::Commits,
    terminal: Arc<Terminal>,
    /// The newest revision that the streams were told of.
    served: Mutex<u64>,
    /// Nodes put together until the last collection.
    collected: Mutex<u64>,
}

/// What a commit came to.
struct Committed {
    revision: u64,
    reasons: Vec<String>,
    /// Secrets, or who may have them, changed.
    secrets: bool,
}

/// Nodes put together between two collections.
const COLLECT_AFTER: u64 = 20_000;

impl Committer {
    /// Commits what happened. The new revision and why, or nothing when no answer can have moved.
    fn commit(&self, events: Vec<Event>) -> Option<Committed> {
        let span = tracing::info_span!("commit", revision = tracing::field::Empty).entered();
        let began = Instant::now();
        let mut reasons = Vec::new();
        let mut change = trysail_facts::Change::default();
        let mut objects: BTreeMap<ObjectRef, Option<Arc<trysail_model::Object>>> = BTreeMap::new();
        let mut settings_moved = false;
        for event in events {
            match event {
                Event::Folder(folder) => {
                    settings_moved |= folder.changes.settings;
                    self.take(&folder, &mut objects);
                    *self.settings.lock() = folder.settings.clone();
                    self.report.lock().folder = folder.status.clone();
                }
                Event::Settled => reasons.push("unknown".to_owned()),
                Event::Plugins => reasons.push("global".to_owned()),
                Event::Files => {
                    let fresh = Files::read(&self.config);
                    let mut files = self.files.lock();
                    files.mesh = fresh.mesh.or(files.mesh.take());
                    files.networks = fresh.networks.or(files.networks.take());
                    settings_moved = true;
                }
            }
        }
        let changes = objects.iter().map(|(reference, object)| (reference, object.as_ref()));
        reasons.extend(self.metrics.changes(&self.facts.load(), changes));
        if settings_moved {
            reasons.push("global".to_owned());
        }
        let mut secrets = self.secrets.apply(objects.iter().map(|(reference, object)| (reference, object.as_ref())));
        for (reference, object) in objects {
            match object {
                _ if is_secret(&reference) => {}
                Some(object) => change.upserted.push(object),
                None => change.deleted.push(reference),
            }
        }
        if settings_moved {
            let (files, settings) = (self.files.lock(), self.settings.lock());
            let mesh = files.mesh(&settings);
            secrets |= self.secrets.configure(&mesh);
            change.mesh = Some(mesh);
            change.networks = Some(files.networks(&settings));
        }
        if !change.upserted.is_empty() || !change.deleted.is_empty() || settings_moved {
            let (next, affected) = self.facts.load().apply(&change);
            let next = Arc::new(next);
            let advance = self.engine.advance(next.clone(), &affected);
            self.facts.store(next);
            self.metrics.took(began.elapsed());
            self.terminal.advanced(&advance);
        }
        self.collect();
        let revision = self.engine.revision();
        self.report.lock().revision = revision;
        span.record("revision", revision);
        // A slow call's end has moved the revision before it was told here.
        let served = std::mem::replace(&mut *self.served.lock(), revision);
        (revision != served || secrets).then_some(Committed { revision, reasons, secrets })
    }

    /// Drops what was made for proxies that are gone and states that are past, once there is enough of it to be worth a look
    /// at everything.
    fn collect(&self) {
        let made = self.engine.counters().read().assembled;
        let mut collected = self.collected.lock();
        if made.saturating_sub(*collected) > COLLECT_AFTER {
            *collected = made;
            self.engine.collect(2);
        }
    }

    fn take(&self, folder: &Change, objects: &mut BTreeMap<ObjectRef, Option<Arc<trysail_model::Object>>>) {
        let changes = &folder.changes;
        for object in &changes.added {
            self.terminal.say(&format!("+ {}", object.reference));
            objects.insert(object.reference.clone(), Some(object.clone()));
        }
        for updated in &changes.updated {
            self.terminal.say(&format!("~ {}", updated.new.reference));
            objects.insert(updated.new.reference.clone(), Some(updated.new.clone()));
        }
        for object in &changes.deleted {
            self.terminal.say(&format!("- {}", object.reference));
            objects.insert(object.reference.clone(), None);
        }
        for rejection in &folder.reported {
            self.metrics.refused(rejection.object.as_ref());
            self.terminal.problem(&format!("refused: {rejection}"));
        }
        for rejection in &folder.resolved {
            self.terminal.say(&format!("mended: {}", rejection.origin));
        }
    }

    /// Looks into the plugins' folder. True when something changed.
    fn scan_plugins(&self) -> bool {
        let Some(plugins) = &self.plugins else { return false };
        let mut plugins = plugins.lock();
        let Some(advance) = plugins.refresh(&self.engine) else { return false };
        let status = plugins.status();
        for plugin in &status {
            match &plugin.error {
                Some(error) => self.terminal.problem(&format!("plugin {}: {error}", plugin.name)),
                None => self.terminal.say(&format!("plugin {} in force at {}", plugin.name, plugin.points.join(", "))),
            }
        }
        self.terminal.advanced(&advance);
        self.report.lock().plugins = status;
        true
    }
}
