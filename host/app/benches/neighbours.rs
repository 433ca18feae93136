//! What a tenant's hostile plugin costs the other tenants: how long they wait for changes of their own while it runs at its limits.
//!
//! Not criterion: it is about the tail, with threads that take turns as the server's do. Every quarter of a second a VirtualService changes that
//! everybody sees, and a label that the hostile plugin reads, so that all of its calls are to be made again; what is printed is how
//! long the proxies of other namespaces wait for the views with the former.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use trysail::pipeline::{self, Loaded, Options};
use trysail_facts::{Change, FactsSnapshot};
use trysail_model::{Object, ObjectRef, Proxy, Translator as _, TypeUrl, Watched};
use trysail_stages::{Budget, Engine, EngineTranslator};

#[path = "mesh/generate.rs"]
mod mesh;

use mesh::Size;

const SIZE: Size = Size { namespaces: 10, ..Size::of(200) };
/// Where the hostile plugin is.
const TENANT: &str = "namespace-0";
const CHANGES: usize = 40;
const BETWEEN: Duration = Duration::from_millis(250);
/// How long what settled is collected before it is pushed.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// As in the streams' pool: whose last took long comes after the rest of its wave.
const PATIENCE: u32 = 4;
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// Proxies that wait for a thread, each once, by whose turn it is.
#[derive(Default)]
struct Queue {
    waiting: Mutex<BinaryHeap<Reverse<(Instant, usize)>>>,
    more: Condvar,
    is_over: AtomicBool,
}

struct Connected {
    proxy: Proxy,
    wanted: Vec<(TypeUrl, Watched)>,
    is_queued: AtomicBool,
    /// How long its last views took.
    took: Mutex<Duration>,
    /// The newest revision that it has.
    has: Mutex<u64>,
}

struct Fleet {
    engine: Arc<Engine>,
    proxies: Vec<Connected>,
    queue: Queue,
    /// Revisions and when they came.
    changes: Mutex<Vec<(u64, Instant)>>,
    waits: Mutex<Vec<Duration>>,
}

impl Fleet {
    fn notify(&self) {
        let mut waiting = self.queue.waiting.lock();
        for (number, connected) in self.proxies.iter().enumerate() {
            if !connected.is_queued.swap(true, Ordering::AcqRel) {
                let patience = connected.took.lock().saturating_mul(PATIENCE).min(MOST_PATIENCE);
                waiting.push(Reverse((Instant::now() + patience, number)));
            }
        }
        self.queue.more.notify_all();
    }

    fn work(&self) {
        let translator = EngineTranslator(self.engine.clone());
        loop {
            let number = {
                let mut waiting = self.queue.waiting.lock();
                loop {
                    if self.queue.is_over.load(Ordering::Acquire) {
                        return;
                    }
                    if let Some(Reverse((_, number))) = waiting.pop() {
                        break number;
                    }
                    self.queue.more.wait(&mut waiting);
                }
            };
            let connected = &self.proxies[number];
            connected.is_queued.store(false, Ordering::Release);
            let started = Instant::now();
            let views = translator.views(&connected.proxy, &connected.wanted, &[]);
            let now = Instant::now();
            *connected.took.lock() = now - started;
            let had = std::mem::replace(&mut *connected.has.lock(), views.revision);
            if &*connected.proxy.namespace != TENANT {
                let new = |(revision, at): &(u64, Instant)| {
                    (*revision > had && *revision <= views.revision).then(|| now.saturating_duration_since(*at))
                };
                let waits: Vec<Duration> = self.changes.lock().iter().filter_map(new).collect();
                self.waits.lock().extend(waits);
            }
        }
    }
}

fn plugin(way: &str, amount: u64) -> Arc<Object> {
    let spec = json!({
        "component": {"file": "hostile.wasm"},
        "configuration": {"way": way, "at": "", "amount": amount, "namespace": TENANT},
    });
    object("Plugin", TENANT, "hostile", [], json!({ "spec": spec }))
}

fn object(
    kind: &str,
    namespace: &str,
    name: &str,
    labels: impl IntoIterator<Item = (&'static str, String)>,
    body: Value,
) -> Arc<Object> {
    Arc::new(Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::new(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        annotations: Arc::default(),
        body: body.into(),
        origin: "generated".into(),
    })
}

fn label(n: usize) -> Arc<Object> {
    object("Namespace", "", TENANT, [("turn", n.to_string())], json!({"metadata": {"labels": {"turn": n.to_string()}}}))
}

fn component() -> Vec<u8> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it is there");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target folder");
    let folder = trysail_guests::folder(target);
    let modules = trysail_guests::compile(&workspace, &folder, &["hostile-plugin"]).expect("it compiles");
    trysail_guests::encode(&trysail_guests::module(&modules, "hostile-plugin")).expect("it is a component")
}

fn measure(options: &Options, loaded: &Loaded, what: &str, plugin: Option<Arc<Object>>) {
    let settled = Arc::new(AtomicBool::new(false));
    let told = settled.clone();
    let on_settled = Arc::new(move || told.store(true, Ordering::Release));
    let options = Options { on_settled: Some(on_settled), ..options.clone() };
    let inputs = mesh::inputs(SIZE);
    let proxies = mesh::sidecars(&inputs);
    let mut snapshot = FactsSnapshot::new(inputs);
    let engine = pipeline::engine(&options, loaded.stages.clone(), Arc::new(snapshot.clone()));
    let mut subscriptions = mesh::Subscriptions::new();
    let connect = |proxy: Proxy| {
        let wanted = subscriptions.connect(&engine, &proxy);
        Connected { proxy, wanted, is_queued: AtomicBool::new(false), took: Mutex::default(), has: Mutex::default() }
    };
    let proxies = proxies.into_iter().map(connect).collect();
    let mut catalogue = pipeline::catalogue(loaded, &options, "istio-system").expect("the sandbox is there");
    catalogue.apply(plugin.iter().map(|plugin| (&plugin.reference, Some(plugin))));
    catalogue.refresh(&engine);
    let fleet = Fleet {
        engine: engine.clone(),
        proxies,
        queue: Queue::default(),
        changes: Mutex::default(),
        waits: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
            thread.spawn_scoped(scope, || fleet.work()).expect("a thread starts");
        }
        fleet.notify();
        std::thread::sleep(Duration::from_secs(2));
        for n in 0..CHANGES {
            // Of a namespace that is not the tenant's, seen by all.
            let rule = mesh::virtual_service(SIZE, 110 + 1, ["3s", "4s"][n % 2]);
            let change = Change { upserted: vec![rule, label(n)], ..Change::default() };
            let at = Instant::now();
            let (next, affected) = snapshot.apply(&change);
            let advance = engine.advance(Arc::new(next.clone()), &affected);
            snapshot = next;
            fleet.changes.lock().push((advance.revision, at));
            fleet.notify();
            while at.elapsed() < BETWEEN {
                std::thread::sleep(DEBOUNCE.min(BETWEEN.saturating_sub(at.elapsed())));
                if settled.swap(false, Ordering::AcqRel) {
                    fleet.notify();
                }
            }
        }
        std::thread::sleep(Duration::from_secs(3));
        fleet.queue.is_over.store(true, Ordering::Release);
        fleet.queue.more.notify_all();
    });
    let mut waits = std::mem::take(&mut *fleet.waits.lock());
    waits.sort();
    let at = |share: f64| waits.get(((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1)));
    let ms = |share: f64| at(share).map_or(0.0, |wait| wait.as_secs_f64() * 1000.0);
    let did = engine.counters().of_guest(&format!("{TENANT}/hostile"));
    let standing = engine.standings().get(&format!("{TENANT}/hostile")).cloned().unwrap_or_default();
    println!(
        "neighbours/{what}: {} waits, p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, most {:.1} ms; plugin: {} runs in {:.1} s, {} faults, {} put off, circuit {}",
        waits.len(),
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(1.0),
        did.runs,
        did.seconds,
        did.faults,
        did.put_off,
        standing.conduct.name()
    );
}

fn run() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    fs::write(folder.path().join("hostile.wasm"), component()).expect("a file can be written");
    let shared = Budget { share: Some(0.25), ..Budget::default() };
    let options =
        Options { audit_share: 0.0, plugins: Some(folder.path().to_owned()), budget: shared, ..Options::default() };
    let loaded = pipeline::load(&options).expect("the stages load");
    measure(&options, &loaded, "none", None);
    for (way, amount) in [
        ("nothing", 0),
        ("work", 100_000_000),
        ("loop", 0),
        ("memory", 0),
        ("questions", 0),
        ("lines", 0),
        ("edits", 0),
        ("trap", 0),
    ] {
        measure(&options, &loaded, way, Some(plugin(way, amount)));
    }
    // What it would be if nobody saw to it.
    let never = Duration::from_secs(1_000_000);
    let unbounded =
        Options { budget: Budget { share: None, calm: never, trip: never, ..Budget::default() }, ..options };
    for (way, amount) in [("work", 100_000_000), ("loop", 0)] {
        measure(&unbounded, &loaded, &format!("{way}-unbounded"), Some(plugin(way, amount)));
    }
}

fn main() {
    let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(run);
    thread.expect("a thread starts").join().expect("nothing panics");
}
