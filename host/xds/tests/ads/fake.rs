//! A translation that serves what tests put into it, and the server around it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use trysail_model::view::Provenance;
use trysail_model::{
    Fingerprint, ObjectRef, Proxy, Resource, ResourceName, Rope, Translator, TypeUrl, View, Views, Watched,
};
use trysail_xds::{Config, Metrics, PushInfo, PushReport, Server};

/// How long a test waits for what must come. Nothing waits so long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Resources by type and name, the same for every proxy.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
    changed: Condvar,
    next_id: AtomicU64,
    /// Calls of `views`.
    pub n_calls: AtomicUsize,
    /// The next translations panic.
    pub panics: AtomicBool,
    /// Nobody may be told anything new.
    pub withholds: AtomicBool,
    /// Proxies that were forgotten.
    pub forgotten: Mutex<Vec<String>>,
    /// Allocations of sets of names that were asked for.
    pub sets: Mutex<BTreeSet<usize>>,
    /// Views by type and names, so that equal answers are the same view.
    views: Mutex<HashMap<Subscription, Arc<View>>>,
}

/// A type and the names asked for; unset for all.
type Subscription = (TypeUrl, Option<Vec<ResourceName>>);

#[derive(Default)]
struct State {
    revision: u64,
    types: BTreeMap<String, BTreeMap<String, Arc<Resource>>>,
    is_blocked: bool,
}

impl Fake {
    /// Sets resources of a type without a new revision; `None` removes.
    pub fn set(&self, type_url: &str, entries: &[(&str, Option<&str>)]) {
        let mut state = self.state.lock();
        let resources = state.types.entry(type_url.to_owned()).or_default();
        for (name, body) in entries {
            match body {
                Some(body) => {
                    let body = Rope::from_bytes(body.as_bytes().to_vec());
                    let resource = Resource { name: (*name).into(), version: body.fingerprint(), body };
                    resources.insert((*name).to_owned(), Arc::new(resource));
                }
                None => drop(resources.remove(*name)),
            }
        }
    }

    /// A new revision.
    pub fn commit(&self) -> u64 {
        let mut state = self.state.lock();
        state.revision += 1;
        state.revision
    }

    /// Makes translations wait, or lets them go on.
    pub fn block(&self, is_blocked: bool) {
        self.state.lock().is_blocked = is_blocked;
        self.changed.notify_all();
    }

    fn view(&self, state: &State, type_url: &TypeUrl, watched: &Watched) -> Arc<View> {
        let names = match watched {
            Watched::Wildcard => None,
            Watched::Names(names) => {
                self.sets.lock().insert(Arc::as_ptr(names) as usize);
                Some(names.iter().cloned().collect::<Vec<_>>())
            }
        };
        let all = state.types.get(type_url.as_str());
        let wanted = |name: &String| names.as_ref().is_none_or(|names| names.iter().any(|n| n.as_str() == name));
        let resources: Vec<Arc<Resource>> =
            all.into_iter().flatten().filter(|(name, _)| wanted(name)).map(|(_, resource)| resource.clone()).collect();
        let parts = resources.iter().flat_map(|r| [r.name.as_str().as_bytes().to_vec(), r.version.to_bytes().to_vec()]);
        let parts: Vec<Vec<u8>> = parts.collect();
        let fingerprint = Fingerprint::of_parts(parts.iter().map(Vec::as_slice));
        let mut views = self.views.lock();
        let known = views.get(&(type_url.clone(), names.clone()));
        if let Some(known) = known.filter(|known| known.fingerprint == fingerprint) {
            return known.clone();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let view = Arc::new(View { id, resources, fingerprint });
        views.insert((type_url.clone(), names), view.clone());
        view
    }
}

impl Translator for Fake {
    fn revision(&self) -> u64 {
        self.state.lock().revision
    }

    fn views(&self, proxy: &Proxy, wanted: &[(TypeUrl, Watched)], held: &[Option<Arc<View>>]) -> Views {
        assert_eq!(wanted.len(), held.len());
        self.n_calls.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        while state.is_blocked {
            self.changed.wait(&mut state);
        }
        assert!(!self.panics.load(Ordering::Relaxed), "told to panic");
        let is_withheld = self.withholds.load(Ordering::Relaxed);
        let wanted = wanted.iter().filter(|_| !is_withheld);
        let views = wanted.map(|(type_url, watched)| self.view(&state, type_url, watched)).collect();
        Views { revision: state.revision, proxy: Arc::new(proxy.clone()), views, is_withheld }
    }

    fn provenance(&self, _: &Proxy, type_url: &TypeUrl, name: &str) -> Provenance {
        let stage = type_url.as_str().rsplit('.').next().unwrap_or_default().to_lowercase();
        Provenance {
            stages: vec![stage],
            plugins: vec![("limits@abc".to_owned(), vec!["connect_timeout".to_owned()])],
            objects: vec![ObjectRef::new("Thing", "shop", name)],
        }
    }

    fn forget(&self, proxy: &Proxy) {
        self.forgotten.lock().push(proxy.id.to_string());
    }
}

/// A running server.
pub struct Env {
    pub fake: Arc<Fake>,
    pub server: Server,
    pub address: SocketAddr,
    pub registry: prometheus::Registry,
    reports_rx: mpsc::UnboundedReceiver<PushReport>,
    stop_tx: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Env {
    /// Serves the resources given, as revision 1.
    pub async fn start(resources: &[(&str, &[(&str, &str)])]) -> Env {
        Env::start_with(resources, Config::default()).await
    }

    /// The same with other settings.
    pub async fn start_with(resources: &[(&str, &[(&str, &str)])], config: Config) -> Env {
        let fake = Arc::new(Fake::default());
        for (type_url, entries) in resources {
            let entries: Vec<_> = entries.iter().map(|(name, body)| (*name, Some(*body))).collect();
            fake.set(type_url, &entries);
        }
        fake.commit();
        let registry = prometheus::Registry::new();
        let (reports_tx, reports_rx) = mpsc::unbounded_channel();
        let config = Config {
            n_workers: 2,
            metrics: Metrics::register(&registry).expect("a new registry"),
            on_push: Some(Arc::new(move |report: &PushReport| drop(reports_tx.send(report.clone())))),
            ..config
        };
        let server = Server::new(fake.clone(), config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port");
        let address = listener.local_addr().expect("bound");
        let (stop_tx, stop_rx) = oneshot::channel::<()>();
        let running = server.clone();
        let serving = tokio::spawn(async move {
            let shutdown = async { drop(stop_rx.await) };
            running.serve(listener, shutdown).await.expect("serves");
        });
        Env { fake, server, address, registry, reports_rx, stop_tx: Some(stop_tx), serving }
    }

    /// Changes resources of a type and pushes.
    pub fn push(&self, type_url: &str, entries: &[(&str, Option<&str>)]) {
        self.fake.set(type_url, entries);
        self.notify();
    }

    /// Pushes what was set.
    pub fn notify(&self) {
        self.server.notify(PushInfo::new(self.fake.commit(), vec!["config".into()]));
    }

    /// What the observer was told so far.
    pub fn reports(&mut self) -> Vec<PushReport> {
        std::iter::from_fn(|| self.reports_rx.try_recv().ok()).collect()
    }

    /// The value of a counter or gauge, or the count of a histogram, with a label value; 0 when there is none.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.iter().flat_map(|family| family.get_metric());
        let metric =
            metrics.into_iter().find(|m| m.get_label().is_empty() || m.get_label().iter().any(|l| l.value() == label));
        metric.map_or(0.0, |m| {
            m.get_counter().get_value() + m.get_gauge().get_value() + m.get_histogram().get_sample_count() as f64
        })
    }

    /// Waits until the server knows of so many proxies.
    pub async fn connected(&self, n: usize) {
        until(|| self.server.status().len() == n).await;
    }

    /// Stops and waits for the end.
    pub async fn stop(mut self) {
        drop(self.stop_tx.take());
        tokio::time::timeout(PATIENCE, self.serving).await.expect("stops").expect("without a panic");
    }
}

/// Waits for a condition that other threads bring about.
pub async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it comes about");
}
