//! The model test: whatever happened before, every proxy is served what a control plane that just started would serve.
//!
//! Random creates, updates and deletes of every kind that stages read, other mesh configuration and networks, proxies that
//! come and go, memory given back now and then. After each step, byte for byte: the engine that took the change in, one that
//! did so on many threads, and one that started from nothing. And every known query whose answer moved was named.
//!
//! `TRYSAIL_MODEL_STEPS` says how many steps, `TRYSAIL_MODEL_SEED` where to begin; a failure prints both.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trysail::pipeline::{self, Mode, Options};
use trysail::render::{self, Scripted};
use trysail_facts::{Change, FactsSnapshot, Inputs, audit};
use trysail_model::ids::type_urls;
use trysail_model::{Object, ObjectRef, Proxy, Snapshot, Translator};
use trysail_stages::guest::Guest;
use trysail_stages::{Engine, EngineTranslator};

#[path = "model/generate.rs"]
mod generate;

use generate::dice::Dice;
use generate::{mesh, networks, object, proxy};

fn introduced(scripted: &Scripted) -> &Proxy {
    scripted.proxy.as_ref().expect("the node is well-formed")
}

/// All that a proxy is served, by type and name.
type Resources = BTreeMap<(&'static str, String), Vec<u8>>;

fn served(engine: &Arc<Engine>, scripted: &Scripted) -> (Resources, Vec<String>) {
    let all = render::views(engine, scripted, introduced(scripted));
    let mut resources = Resources::new();
    for (short, view) in &all.views {
        for resource in &view.resources {
            resources.insert((*short, resource.name.to_string()), resource.body.to_bytes().to_vec());
        }
    }
    (resources, all.faults)
}

/// The first resource that differs, for a person.
fn difference(here: &Resources, cold: &Resources) -> String {
    let printed = |key: &(&str, String), all: &Resources| {
        let url =
            type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(key.0)).unwrap_or_default();
        all.get(key).map_or("nothing".to_owned(), |bytes| match trysail_codec::json::to_json(url, bytes) {
            Ok(json) => format!("{json:#}"),
            Err(error) => format!("unreadable: {error}"),
        })
    };
    let key = here.keys().chain(cold.keys()).find(|key| here.get(*key) != cold.get(*key));
    key.map_or("none".to_owned(), |key| format!("{key:?}\nhere: {}\ncold: {}", printed(key, here), printed(key, cold)))
}

/// The world, and the engines that followed it.
struct Model<'a> {
    options: &'a Options,
    stages: &'a [Arc<dyn Guest>],
    dice: Dice,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    mesh: Value,
    networks: Value,
    proxies: Vec<Scripted>,
    snapshot: FactsSnapshot,
    /// Asked from one thread, and from several at once.
    engines: [Arc<Engine>; 2],
    n_resources: usize,
}

impl<'a> Model<'a> {
    fn new(options: &'a Options, stages: &'a [Arc<dyn Guest>], seed: u64) -> Self {
        let snapshot = FactsSnapshot::new(Inputs::default());
        let engine = || pipeline::engine(options, stages.to_vec(), Arc::new(snapshot.clone()));
        Model {
            options,
            stages,
            dice: Dice(seed),
            objects: BTreeMap::new(),
            mesh: Value::Null,
            networks: Value::Null,
            proxies: Vec::new(),
            engines: [engine(), engine()],
            snapshot,
            n_resources: 0,
        }
    }

    fn change(&mut self) -> Change {
        let dice = &mut self.dice;
        let mut change = Change::default();
        for _ in 0..dice.below(4) {
            change.upserted.push(object(dice));
        }
        // The more there are, the more go.
        for _ in 0..dice.below(3) {
            let at = dice.below(self.objects.len().max(40));
            change.deleted.extend(self.objects.keys().nth(at).cloned());
        }
        if dice.one_in(15) {
            change.mesh = Some(mesh(dice));
        }
        if dice.one_in(25) {
            change.networks = Some(networks(dice));
        }
        change
    }

    /// Proxies come and go; one that comes back may introduce itself otherwise.
    fn connections(&mut self) {
        if self.dice.one_in(4) && !self.proxies.is_empty() {
            let at = self.dice.below(self.proxies.len());
            let gone = self.proxies.swap_remove(at);
            self.engines.iter().for_each(|engine| EngineTranslator(engine.clone()).forget(introduced(&gone)));
        }
        if self.proxies.len() < 2 || (self.dice.one_in(3) && self.proxies.len() < 5) {
            let new = proxy(&mut self.dice);
            self.proxies.retain(|old| old.name != new.name);
            self.proxies.push(new);
        }
    }

    fn step(&mut self) {
        let change = self.change();
        self.objects.extend(change.upserted.iter().map(|object| (object.reference.clone(), object.clone())));
        change.deleted.iter().for_each(|gone| drop(self.objects.remove(gone)));
        if let Some(mesh) = &change.mesh {
            self.mesh = mesh.clone();
        }
        if let Some(networks) = &change.networks {
            self.networks = networks.clone();
        }
        let (next, affected) = self.snapshot.apply(&change);
        let live = self.engines[0].live_queries();
        let unnamed = audit(&self.snapshot, &next, &affected, &live);
        assert!(unnamed.is_empty(), "moved without being named: {unnamed:?}\nby {change:#?}\nnamed: {affected:?}");
        for engine in &self.engines {
            engine.advance(Arc::new(next.clone()), &affected);
        }
        self.snapshot = next;
        self.connections();
        if self.dice.one_in(7) {
            let spare = self.dice.below(5);
            for engine in &self.engines {
                engine.collect(spare);
            }
        }
        self.compare(&change);
    }

    /// What the threads of the second engine are served.
    fn in_parallel(&self) -> Vec<(Resources, Vec<String>)> {
        std::thread::scope(|scope| {
            let engine = &self.engines[1];
            let serve = |scripted| {
                let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
                thread.spawn_scoped(scope, move || served(engine, scripted)).expect("a thread starts")
            };
            let threads: Vec<_> = self.proxies.iter().map(serve).collect();
            threads.into_iter().map(|thread| thread.join().expect("nothing panics")).collect()
        })
    }

    fn compare(&mut self, change: &Change) {
        let cold = FactsSnapshot::new(Inputs {
            objects: self.objects.values().rev().cloned().collect(),
            mesh: self.mesh.clone(),
            networks: self.networks.clone(),
            ..Inputs::default()
        });
        for query in self.engines[0].live_queries() {
            let (here, there) = (self.snapshot.answer(&query), cold.answer(&query));
            assert!(here.value == there.value, "{query} is answered {here:?}, and {there:?} after a cold start");
        }
        let cold = pipeline::engine(self.options, self.stages.to_vec(), Arc::new(cold));
        let in_parallel = self.in_parallel();
        for (scripted, in_parallel) in self.proxies.iter().zip(in_parallel) {
            if self.dice.one_in(4) {
                let proxy = introduced(scripted);
                let said = |engine| render::diagnostics(engine, proxy, &render::views(engine, scripted, proxy));
                assert_eq!(said(&self.engines[0]), said(&cold), "{}\nafter {change:#?}", scripted.name);
            }
            let (here, (fresh, _)) = (served(&self.engines[0], scripted), served(&cold, scripted));
            for (how, (resources, faults)) in [("the engine", &here), ("the engine on threads", &in_parallel)] {
                let name = &scripted.name;
                assert!(faults.is_empty(), "{how}: {name}: {faults:#?}\nafter {change:#?}");
                let found = difference(resources, &fresh);
                assert!(*resources == fresh, "{how} serves {name} other than a cold start: {found}\nafter {change:#?}");
            }
            self.n_resources += fresh.len();
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("it is a number"))
}

/// Says where to begin again, when a step panics.
struct Announce {
    seed: u64,
    step: u64,
}

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, steps) = (self.seed, self.step + 1);
            eprintln!("failed at step {steps}: TRYSAIL_MODEL_SEED={seed} TRYSAIL_MODEL_STEPS={steps}");
        }
    }
}

/// Steps of one world: a failure is near a beginning.
const WORLD: u64 = 100;

fn run(options: &Options, seed: u64, steps: u64) {
    let stages = pipeline::stages(options).expect("the stages load");
    let walk = || {
        let mut n_resources = 0;
        for first in (0..steps).step_by(100) {
            let mut announce = Announce { seed: seed + first / WORLD, step: 0 };
            let mut model = Model::new(options, &stages, announce.seed);
            for step in 0..WORLD.min(steps - first) {
                announce.step = step;
                model.step();
            }
            n_resources += model.n_resources;
        }
        assert!(n_resources > 0, "there was something to compare");
        println!("{steps} steps from seed {seed}: {n_resources} resources compared");
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("model".into()).stack_size(trysail_stages::STACK);
        let walked = thread.spawn_scoped(scope, walk).expect("a thread starts").join();
        walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn every_state_is_served_as_after_a_cold_start() {
    let options = Options { mode: Mode::Native, audit_share: 0.0, ..Options::default() };
    run(&options, number("TRYSAIL_MODEL_SEED", 1), number("TRYSAIL_MODEL_STEPS", 600));
}

#[cfg(feature = "components")]
#[test]
fn the_same_in_the_sandbox() {
    let options = Options { mode: Mode::Sandboxed, audit_share: 1.0, ..Options::default() };
    run(&options, number("TRYSAIL_MODEL_SEED", 1), number("TRYSAIL_MODEL_STEPS", 600).min(20));
}
