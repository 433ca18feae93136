//! `trysail discovery`: from a source to streams, until it is stopped.

mod commit;
mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use trysail_ca::authenticate::Authenticators;
use trysail_ca::sds::{Access as SecretAccess, SecretStore};
use trysail_discovery::Status;
use trysail_discovery::Update;
use trysail_facts::{FactsSnapshot, Inputs, Settings};
use trysail_kube::{NodePods, Reviews, Signing};
use trysail_model::ids::type_urls;
use trysail_model::{ObjectRef, Proxy, Translator as _, TrustBundle, TypeUrl, Watched};
use trysail_plugins::catalogue::{self, PluginStatus};
use trysail_stages::metrics::EngineCollector;
use trysail_stages::{Engine, EngineTranslator};
use trysail_xds::{PushInfo, Server, debounce};

use self::commit::{Committed, Committer, Event, Wake, poll, report_omissions};
use self::files::Files;
use crate::balance::Balance;
use crate::duties::{Duties, Subject};
use crate::env::{Environment, duration_of};
use crate::external::{ClusterPods, ClusterSigner};
use crate::health::Health;
use crate::images;
use crate::metrics;
use crate::omission::{Guard, Omissions};
use crate::pages::{self, Access, Pages, Port};
use crate::pipeline::{self, Mode, Options};
use crate::reviews::{Reviewed, Tokens};
use crate::security::{self, InCluster};
use crate::source::{self, Place, SOURCE, Source};
use crate::statuses;
use crate::terminal::Terminal;
use crate::trust::{Combined, Followed};

/// Settings of the server, from flags and environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub place: Place,
    /// Mesh configuration file; one in the folder goes before it, and it before a cluster's.
    pub mesh_config: PathBuf,
    /// Networks file; one in the folder goes before it, and it before a cluster's.
    pub networks_config: PathBuf,
    /// Folder of plugins, if any.
    pub plugins: Option<PathBuf>,
    /// How images of plugins are got.
    pub images: images::Flags,
    /// Plaintext xDS.
    pub grpc_addr: String,
    /// xDS over TLS.
    pub secure: security::Flags,
    /// Readiness and debug.
    pub http_addr: String,
    /// Metrics and version.
    pub monitoring_addr: String,
    /// How connections of xDS clients are kept alive.
    pub keepalive: Keepalive,
    /// How long streams may take to end at shutdown.
    pub shutdown: Duration,
    /// DNS suffix, cluster and namespace.
    pub settings: Settings,
    /// How stages run.
    pub mode: Mode,
    /// Other names of clusters, `--clusterAliases`.
    pub cluster_aliases: BTreeMap<String, String>,
    /// Kinds that protect something and may be left out all the same.
    pub accept_untranslated: BTreeSet<String>,
}

/// How connections of xDS clients are kept alive.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Time without traffic after which a client is pinged.
    pub interval: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
    /// Age at which a connection is asked to go elsewhere; unset means never.
    pub max_age: Option<Duration>,
}

/// What is known about the control plane's own state, for the debug pages.
#[derive(Default)]
pub struct Report {
    /// The source's state.
    pub folder: Arc<Status>,
    /// Objects that protect something and that no stage translates.
    pub untranslated: Vec<ObjectRef>,
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

/// How long a signer of the cluster may take, as in istiod.
const SIGNER_PATIENCE: Duration = Duration::from_secs(60);
/// How often roots that others publish are fetched anew, as in istiod.
const BUNDLE_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// What health waits for until a translation has passed.
const TRANSLATION: &str = "a translation";

/// What is in the way of being ready once we were asked to stop.
const STOPPING: &str = "the end: stopping";

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

    // Bind first: a port that is taken is the commonest mistake, and nothing has been done yet. xDS is refused until
    // there is somebody to answer, so that nobody takes a half-started server for one that hangs; health is told at once.
    let grpc = bind(&config.grpc_addr, "xDS (--grpcAddr)")?;
    let secure = match &*config.secure.addr {
        "" => None,
        text => Some(bind(text, "xDS over TLS (--secureGRPCAddr)")?),
    };
    let secure_address = secure.as_ref().map(TcpSocket::local_addr).transpose()?;
    let http = bind(&config.http_addr, "readiness and debug (--httpAddr)")?;
    let monitoring = bind(&config.monitoring_addr, "metrics (--monitoringAddr)")?;
    let addresses = [grpc.local_addr()?, http.local_addr()?, monitoring.local_addr()?];

    let [http, monitoring] = [http, monitoring].map(|socket| socket.listen(BACKLOG));
    let (http, monitoring) = (http.context(LISTEN)?, monitoring.context(LISTEN)?);
    let health = Arc::new(Health::starting(&[SOURCE, TRANSLATION]));
    let _pages = Aborted(
        [(http, Port::Http), (monitoring, Port::Monitoring)]
            .map(|(listener, port)| tokio::spawn(pages::serve(listener, health.clone(), port)))
            .into(),
    );
    terminal.say(&format!("health on {}, metrics on {}", addresses[1], addresses[2]));
    let mut shutdown = std::pin::pin!(shutdown);

    let opened = source::open(&config.place, &config.settings, environment, &health, &terminal);
    let (source, first) = tokio::select! {
        opened = opened => opened?,
        () = &mut shutdown => return Ok(()),
    };
    health.has(SOURCE);
    let Update { added, settings, status, .. } = first;
    let Source { client, mut updates_rx, .. } = source;
    for rejection in &status.rejections {
        terminal.problem(&format!("refused: {rejection}"));
    }
    terminal.loaded(&config.place, &status);

    let of_plugins: Vec<_> = added.iter().filter(|object| catalogue::concerns(object)).cloned().collect();
    let files = Files::read(&config);
    let mesh = files.mesh(&settings);
    let access = client.clone().map(|client| {
        let events = events_tx.clone();
        let moved = move || drop(events.send(vec![Event::Secrets]));
        Arc::new(Reviewed::new(client, moved)) as Arc<dyn SecretAccess>
    });
    let trust = Arc::new(Followed::new(&mesh, &terminal));
    let secrets = Arc::new(SecretStore::new(access));
    secrets.configure(&mesh);
    let registry = Registry::new();
    let commits = metrics::Commits::register(&registry).context("metrics")?;
    status.rejections.iter().for_each(|rejection| commits.refused(rejection.object.as_ref()));
    let mut omissions = Omissions::accepting(config.accept_untranslated.clone());
    omissions.configure(&mesh, &config.settings.system_namespace);
    {
        let all = || added.iter().map(|object| (&object.reference, Some(object)));
        secrets.apply(all());
        omissions.apply(all());
        commits.changes(&FactsSnapshot::new(Inputs::default()), all());
    }
    report_omissions(&omissions, &terminal, &health);
    let inputs = Inputs {
        objects: pipeline::for_stages(added),
        mesh: mesh.clone(),
        networks: files.networks(&settings),
        environment: environment.all(),
        settings: config.settings.clone(),
    };
    let began = Instant::now();
    let settled = events_tx.clone();
    let (wake, woken_rx) = Wake::new();
    let images = {
        let wake = wake.clone();
        let root_namespace = &config.settings.system_namespace;
        images::store(&config.images, environment, root_namespace, &registry, move || wake.images())?
    };
    let options = Options {
        mode: config.mode,
        plugins: config.plugins.clone(),
        budget: pipeline::budget(environment),
        images: Some(images),
        on_run: Some({
            let terminal = terminal.clone();
            Arc::new(move |call| terminal.ran(call))
        }),
        on_settled: Some(Arc::new(move || drop(settled.send(vec![Event::Settled])))),
        ..Options::default()
    };
    let (engine, snapshot, plugins) = {
        let root_namespace = config.settings.system_namespace.clone();
        tokio::task::spawn_blocking(move || -> Result<_> {
            let snapshot = FactsSnapshot::new(inputs);
            let loaded = pipeline::load(&options)?;
            let engine = pipeline::engine(&options, loaded.stages.clone(), Arc::new(snapshot.clone()));
            if options.plugins.is_some() && loaded.runtime.is_none() {
                bail!("plugins need the sandbox: leave out --native");
            }
            let mut plugins = pipeline::catalogue(&loaded, &options, &root_namespace);
            if let Some(plugins) = &mut plugins {
                plugins.apply(of_plugins.iter().map(|object| (&object.reference, Some(object))));
            }
            Ok((engine, snapshot, plugins))
        })
        .await
        .context("the start of the stages panicked")??
    };
    terminal.say(&format!("stages ready in {} ms", began.elapsed().as_millis()));

    let facts = Arc::new(ArcSwap::from_pointee(snapshot));
    let mut trust_bundle: Option<Arc<Combined>> = None;
    let secure = match secure {
        None => None,
        Some(listener) => {
            let (settings, mesh) = (&config.settings, &mesh);
            let read = security::Config::read(
                &config.secure,
                environment,
                mesh,
                &trust.subscribe(),
                &settings.system_namespace,
                &settings.revision,
                config.place.cluster(),
            );
            let in_cluster = client.clone().map(|client| InCluster {
                reviewer: Arc::new(Tokens { reviews: Reviews(client.clone()), cluster: settings.cluster_id.clone() }),
                cluster: settings.cluster_id.clone(),
                aliases: config.cluster_aliases.clone(),
                pods: Box::new(ClusterPods {
                    cluster: settings.cluster_id.clone(),
                    placed: NodePods::new(client.clone()),
                    facts: facts.clone(),
                }),
                signer: Arc::new(ClusterSigner(Signing { client, patience: SIGNER_PATIENCE })),
            });
            let read = read?;
            let is_multi_root = read.is_multi_root();
            let started = security::start(read, trust.subscribe(), in_cluster, &registry)
                .await
                .context("the secure port (--secureGRPCAddr= for none)")?;
            terminal.say(&format!("certificate authority: {}", started.place));
            trust_bundle = is_multi_root.then(|| {
                let events = events_tx.clone();
                let moved = move || drop(events.send(vec![Event::Roots]));
                Arc::new(Combined::start(started.signer.bundle(), trust.subscribe(), BUNDLE_INTERVAL, moved))
            });
            Some((listener, started))
        }
    };
    let streams = trysail_xds::Metrics::register(&registry).context("metrics")?;
    engine.counters().register(&registry).context("metrics")?;
    registry.register(Box::new(EngineCollector::new(engine.clone()))).context("metrics")?;
    metrics::register_process(&registry).context("metrics")?;
    let report = Arc::new(Mutex::new(Report {
        folder: status.clone(),
        untranslated: omissions.objects().cloned().collect(),
        plugins: Vec::new(),
        revision: engine.revision(),
    }));
    let guard = Guard::new(EngineTranslator(engine.clone()), omissions.clone(), facts.clone(), &registry);
    let guard = Arc::new(guard.context("metrics")?);
    let pages = Arc::new(Pages {
        access: Access::read(environment, &config.settings.system_namespace),
        facts: facts.clone(),
        engine: engine.clone(),
        secrets: secrets.clone(),
        report: report.clone(),
        guard: guard.clone(),
        identifier: crate::version::identifier(environment),
        problems: Mutex::default(),
    });
    metrics::StateCollector::register(&registry, &pages).context("metrics")?;
    let xds = Server::new(
        guard.clone(),
        trysail_xds::Config {
            metrics: streams.clone(),
            secrets: Some(secrets.clone()),
            trust_bundle: trust_bundle.map(|bundle| bundle as Arc<dyn TrustBundle>),
            accepts_unnamed_accounts: security::accepts_unnamed_accounts(environment),
            debug: Some(pages.clone()),
            on_push: Some({
                let terminal = terminal.clone();
                Arc::new(move |report| terminal.pushed(report))
            }),
            keepalive_interval: config.keepalive.interval,
            keepalive_timeout: config.keepalive.timeout,
            max_connection_age: config.keepalive.max_age,
            max_connection_age_grace: config.shutdown.mul_f64(1.0 - DRAIN_SHARE),
            max_streams_per_second: streams_per_second(environment),
            ..trysail_xds::Config::default()
        },
    );
    metrics::ProxyCollector::register(&registry, xds.clone(), facts.clone()).context("metrics")?;
    metrics::PluginCollector::register(&registry, &pages, xds.clone()).context("metrics")?;
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
        facts: facts.clone(),
        omissions: Mutex::new(omissions),
        guard,
        health: health.clone(),
        secrets,
        trust,
        files: Mutex::new(files),
        config: config.clone(),
        plugins: plugins.clone(),
        plugin_changes: Mutex::default(),
        wake,
        report: report.clone(),
        metrics: commits,
        terminal: terminal.clone(),
        settings: Mutex::new(settings.clone()),
        served: Mutex::new(engine.revision()),
        collected: Mutex::new(0),
    });
    if plugins.is_some() {
        committer.scan_plugins();
    }
    let updates = events_tx.clone();
    let _following = Aborted(vec![tokio::spawn(async move {
        while let Some(update) = updates_rx.recv().await {
            if updates.send(vec![Event::Source(Box::new(update))]).is_err() {
                return;
            }
        }
    })]);
    poll(&committer, events_tx, woken_rx)?;

    let grpc = grpc.listen(BACKLOG).context(LISTEN)?;
    let secure = match secure {
        Some((socket, secure)) => Some((socket.listen(BACKLOG).context(LISTEN)?, secure)),
        None => None,
    };
    let (statuses_tx, statuses_rx) = tokio::sync::watch::channel(Arc::default());
    let _telling = Aborted(match &client {
        Some(_) => {
            let looking = statuses::Looking { report, engine: engine.clone(), streams: streams.clone() };
            vec![tokio::spawn(statuses::watch(looking, statuses_tx))]
        }
        None => Vec::new(),
    });
    let duties = match (client.clone(), &secure) {
        (Some(client), Some((_, secure))) => {
            let subject = Subject {
                client,
                environment,
                settings: &config.settings,
                bundle_rx: secure.bundle_rx.clone(),
                facts: facts.clone(),
                statuses_rx,
            };
            Some(
                Duties::start(subject)
                    .context("PILOT_IP_AUTOALLOCATE_IPV4_PREFIX, PILOT_IP_AUTOALLOCATE_IPV6_PREFIX")?,
            )
        }
        _ => None,
    };
    let balance = client.and_then(|client| Balance::new(client, xds.clone(), environment, &config.settings));
    let _balancing = Aborted(balance.map(|balance| tokio::spawn(balance.run())).into_iter().collect());
    let running = Arc::new(running);
    health.serves(running.clone());
    let _trying = Aborted(vec![tokio::spawn(try_translation(engine.clone(), config.settings.clone(), health.clone()))]);
    started(&running);
    let over_tls = secure_address.map(|address| format!(", over TLS on {address}")).unwrap_or_default();
    let [grpc_at, http_at, metrics_at] = addresses;
    terminal.say(&format!("xDS on {grpc_at}{over_tls}, ready on {http_at}, metrics on {metrics_at}"));

    let pushing = {
        let (xds, metrics, health) = (xds.clone(), streams, health.clone());
        debounce::run(
            debouncing,
            events_rx,
            |all: &mut Vec<Event>, more| all.extend(more),
            move |batch| {
                let (xds, metrics, committer) = (xds.clone(), metrics.clone(), committer.clone());
                let health = health.clone();
                async move {
                    metrics.debounced(batch.waited);
                    let since = batch.since.into_std();
                    let commit = move || {
                        let _at_work = health.works("taking a change in");
                        committer.commit(batch.changes)
                    };
                    let committed = tokio::task::spawn_blocking(commit).await;
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
    let (stopping, stopping_health) = (xds.clone(), health.clone());
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
        // First nobody else is sent here, then those who are here are sent away.
        stopping_health.lacks(STOPPING, "");
        stopping.drain(config.shutdown.mul_f64(DRAIN_SHARE)).await;
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
    if let Some(duties) = duties {
        duties.end().await;
    }
    terminal.say("stopped");
    Ok(())
}

/// Translates for a proxy that nobody is, until that works: whoever is ready can translate.
async fn try_translation(engine: Arc<Engine>, settings: Settings, health: Arc<Health>) {
    loop {
        let (engine, settings, at_work) = (engine.clone(), settings.clone(), health.clone());
        let tried = tokio::task::spawn_blocking(move || {
            let _at_work = at_work.works("the first translation");
            let Settings { domain, system_namespace, .. } = settings;
            let node = format!("sidecar~127.0.0.1~nobody.{system_namespace}~{system_namespace}.svc.{domain}");
            let proxy = Proxy::from_node(&node, serde_json::Map::new(), <[String; 3]>::default());
            let proxy = proxy.map_err(|error| error.to_string())?;
            let translator = EngineTranslator(engine.clone());
            let wanted = [(TypeUrl::from(type_urls::LISTENER), Watched::Wildcard)];
            let made = translator.views(&proxy, &wanted, &[None]);
            translator.forget(&made.proxy);
            let n_made: usize = made.views.iter().map(|view| view.resources.len()).sum();
            drop(made);
            engine.collect(0);
            if n_made == 0 { Err("no listener could be made; the log says why".to_owned()) } else { Ok(()) }
        });
        match tried.await {
            Ok(Ok(())) => return health.has(TRANSLATION),
            Ok(Err(why)) => health.lacks(TRANSLATION, why),
            Err(panic) => health.lacks(TRANSLATION, panic.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Streams that may begin in a second. istiod allows 25 on two cores, where each costs it a translation; here most of them
/// share one, so the limit only has to keep what is served from starving.
fn streams_per_second(environment: &dyn Environment) -> f64 {
    let set = environment.get("PILOT_MAX_REQUESTS_PER_SECOND").and_then(|text| text.parse::<f64>().ok());
    let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    set.filter(|rate| *rate > 0.0).unwrap_or(200.0 * n_cores as f64)
}

/// Part of the time for stopping in which streams are sent elsewhere, one after the other; the rest is for those that linger.
const DRAIN_SHARE: f64 = 0.7;

/// Tasks that end with their owner.
struct Aborted(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
