//! What a hit costs, what a miss costs in the sandbox and without it, a sidecar's first configuration, and one change with
//! a thousand services and a thousand proxies.

use std::any::Any;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion};
use parking_lot::Mutex;
use trysail::pipeline::{self, Mode, Options};
use trysail::render;
use trysail_facts::{Change, FactsSnapshot};
use trysail_model::ids::type_urls;
use trysail_model::{Object, Proxy, Translator, TypeUrl, View, Watched};
use trysail_sdk::Level;
use trysail_stages::calls::Call;
use trysail_stages::guest::{Asker, Guest, Unanswered};
use trysail_stages::{Asked, Engine, EngineTranslator, FaultKind, Limits};

#[path = "mesh/generate.rs"]
mod mesh;

use mesh::Size;

fn options(mode: Mode) -> Options {
    Options { mode, audit_share: 0.0, ..Options::default() }
}

const MODES: [(Mode, &str); 2] = [(Mode::Sandboxed, "sandboxed"), (Mode::Native, "native")];

/// Answers as they were recorded; nothing is looked up and nothing recorded, so that the call alone is measured.
struct Answers {
    log: Arc<[Asked]>,
    at: usize,
}

impl Asker for Answers {
    fn ask(&mut self, kind: &'static str, _args: Vec<String>) -> Result<Option<Bytes>, Unanswered> {
        let asked = self.log.get(self.at).ok_or_else(|| Unanswered::Own(FaultKind::Impure(kind.to_owned())))?;
        self.at += 1;
        Ok(asked.answer.clone())
    }

    fn report(&mut self, _level: Level, _message: &str) {}

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn memo_hit(c: &mut Criterion) {
    let inputs = mesh::inputs(Size::of(100));
    let proxy = mesh::sidecars(&inputs).swap_remove(0);
    let options = options(Mode::Native);
    let engine = pipeline::engine(&options, stages(&options), Arc::new(FactsSnapshot::new(inputs)));
    let (cds, wildcard) = (TypeUrl::from(type_urls::CLUSTER), Watched::Wildcard);
    engine.resources(&proxy, &cds, &wildcard);
    c.bench_function("memo-hit/100-services", |b| {
        b.iter(|| black_box(engine.resources(&proxy, &cds, &wildcard).revision))
    });
}

fn stages(options: &Options) -> Vec<Arc<dyn Guest>> {
    pipeline::stages(options).expect("the stages load")
}

/// A call of each kind, as a sidecar in a small mesh needs it, with the answers it was given.
fn cold_fragments(c: &mut Criterion) {
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let seen = calls.clone();
    let native =
        Options { on_run: Some(Arc::new(move |call| seen.lock().push(call.clone()))), ..options(Mode::Native) };
    let inputs = mesh::inputs(Size::of(100));
    let proxy = mesh::sidecars(&inputs).swap_remove(20);
    let engine = pipeline::engine(&native, stages(&native), Arc::new(FactsSnapshot::new(inputs)));
    render::views(&engine, &mesh::scripted(&proxy), &proxy);
    let calls = calls.lock().clone();
    let mut group = c.benchmark_group("cold");
    for wanted in ["clusters/service", "endpoints/cluster", "routes/virtual-service", "listeners/outbound"] {
        let found = calls.iter().find_map(|call| match call {
            Call::Stage { stage, function, args } if format!("{stage}/{function}") == wanted => {
                Some((stage, function, args))
            }
            _ => None,
        });
        let Some((stage, function, args)) = found else {
            println!("cold/{wanted}: no such call was made");
            continue;
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let recording = engine.record(&proxy, stage, function, &args).expect("it ran before");
        let log: Arc<[Asked]> = recording.asked.clone().into();
        println!(
            "cold/{wanted}: {} queries, {} bytes of answers",
            log.len(),
            log.iter().flat_map(|a| &a.answer).map(Bytes::len).sum::<usize>()
        );
        for (mode, how) in MODES {
            let guest =
                stages(&options(mode)).into_iter().find(|guest| guest.name() == &**stage).expect("it is built in");
            let limits = Limits::default();
            let run = || {
                let answers = Answers { log: log.clone(), at: 0 };
                assert!(guest.run(&recording.job, Box::new(answers), &limits, false).0.is_ok(), "it ran before");
            };
            group.bench_function(BenchmarkId::new(wanted, how), |b| b.iter(run));
        }
    }
    group.finish();
}

fn sidecar(c: &mut Criterion) {
    let mut group = c.benchmark_group("sidecar");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for services in [100, 1000] {
        let inputs = mesh::inputs(Size::of(services));
        let scripted = mesh::scripted(&mesh::sidecars(&inputs)[20]);
        let proxy = scripted.proxy.clone().expect("it is well-formed");
        let snapshot = Arc::new(FactsSnapshot::new(inputs));
        for (mode, how) in MODES {
            let options = options(mode);
            let stages = stages(&options);
            group.bench_function(BenchmarkId::new(how, format!("{services}-services")), |b| {
                let fresh = || pipeline::engine(&options, stages.clone(), snapshot.clone());
                let serve = |engine: Arc<Engine>| (render::views(&engine, &scripted, &proxy).views, engine);
                b.iter_batched(fresh, serve, BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

/// A proxy, what it watches, and what it was last served.
type Connected = (Proxy, Vec<(TypeUrl, Watched)>, Mutex<Vec<Arc<View>>>);

/// Connected proxies.
struct Fleet {
    engine: Arc<Engine>,
    snapshot: FactsSnapshot,
    proxies: Vec<Connected>,
}

impl Fleet {
    fn new(size: Size) -> Fleet {
        let options = options(Mode::Sandboxed);
        let inputs = mesh::inputs(size);
        let proxies = mesh::sidecars(&inputs);
        let snapshot = FactsSnapshot::new(inputs);
        let engine = pipeline::engine(&options, stages(&options), Arc::new(snapshot.clone()));
        let began = Instant::now();
        let mut subscriptions = mesh::Subscriptions::new();
        let connect = |proxy: Proxy| {
            let wanted = subscriptions.connect(&engine, &proxy);
            (proxy, wanted, Mutex::default())
        };
        let proxies: Vec<_> = proxies.into_iter().map(connect).collect();
        println!("{} proxies connected in {:?}: {:?}", proxies.len(), began.elapsed(), engine.counters().read());
        let mut fleet = Fleet { engine, snapshot, proxies };
        fleet.push();
        fleet
    }

    /// Takes a change in.
    fn change(&mut self, object: &Arc<Object>) -> trysail_stages::Advance {
        let (next, affected) = self.snapshot.apply(&Change { upserted: vec![object.clone()], ..Change::default() });
        let advance = self.engine.advance(Arc::new(next.clone()), &affected);
        self.snapshot = next;
        advance
    }

    /// Views for all proxies on all processors: the number of resources that changed, and their bytes.
    fn push(&mut self) -> (usize, usize) {
        let (next, resources, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let translator = EngineTranslator(self.engine.clone());
        let work = || {
            while let Some((proxy, wanted, held)) = self.proxies.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut held = held.lock();
                let given: Vec<_> = held.iter().cloned().map(Some).collect();
                let views = translator.views(proxy, wanted, &given).views;
                for (old, new) in held.iter().zip(&views).filter(|(old, new)| !Arc::ptr_eq(old, new)) {
                    let delta = new.since(old);
                    resources.fetch_add(delta.changed.len(), Ordering::Relaxed);
                    bytes.fetch_add(delta.changed.iter().map(|r| r.body.to_bytes().len()).sum(), Ordering::Relaxed);
                }
                *held = views;
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
                let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
                thread.spawn_scoped(scope, work).expect("a thread starts");
            }
        });
        (resources.into_inner(), bytes.into_inner())
    }
}

fn changes(c: &mut Criterion) {
    let size = Size::of(1000);
    let mut fleet = Fleet::new(size);
    let endpoints = [true, false].map(|spare| mesh::slice(size, 500, spare));
    let rules = ["4s", "3s"].map(|timeout| mesh::virtual_service(size, 500, timeout));
    let mut group = c.benchmark_group("change");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for (what, versions) in [("endpoint", endpoints), ("virtual-service", rules)] {
        let before = fleet.engine.counters().read();
        let began = Instant::now();
        let advance = fleet.change(&versions[0]);
        let advanced = began.elapsed();
        let (resources, bytes) = fleet.push();
        let done = fleet.engine.counters().read() - before;
        println!(
            "change/{what}: {} answers moved, facts and advance {advanced:?}, all views {:?}, {done:?}, {resources} resources and {bytes} bytes to send",
            advance.moved.len(),
            began.elapsed() - advanced
        );
        let mut at = 0;
        group.bench_function(BenchmarkId::new(what, "1000-services-1000-proxies"), |b| {
            b.iter(|| {
                at += 1;
                fleet.change(&versions[at % 2]);
                fleet.push()
            });
        });
    }
    group.finish();
}

fn main() {
    let run = || {
        let mut c = Criterion::default().configure_from_args();
        memo_hit(&mut c);
        cold_fragments(&mut c);
        sidecar(&mut c);
        changes(&mut c);
        c.final_summary();
    };
    let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(run);
    thread.expect("a thread starts").join().expect("no bench panics");
}
