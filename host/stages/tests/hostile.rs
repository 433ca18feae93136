//! Guests that misbehave, as real components: contained, named, counted, and nobody else's concern.
#![allow(clippy::unwrap_used, reason = "tests and what they are made of")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use support::*;
use trysail_model::{Proxy, Watched};
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};
use trysail_stages::component::LoadError;
use trysail_stages::engine::HookTable;
use trysail_stages::guest::{Asker, Done, Guest, Job, Unanswered};
use trysail_stages::{Advance, Config, Engine, FailurePolicy, Fault, Hooked, Limits, Native, NativeCode};

/// What the setting of a fragment says to make the plugin misbehave, and the kind of fault that it is.
const WAYS: [(&str, &str); 12] = [
    ("trap", "trap"),
    ("stack", "trap"),
    ("loop", "deadline"),
    ("memory", "memory"),
    ("giant", "output_size"),
    ("unclosed", "bad_output"),
    ("unopened", "bad_output"),
    ("field-zero", "bad_output"),
    ("field-range", "bad_output"),
    ("queries", "queries"),
    ("long-questions", "output_size"),
    ("fail", "failed"),
];

/// For an endless loop short enough that it and its longer retry cost three seconds. For all else the deadline is so far
/// away that it is not met first, however busy the machine is.
fn limits(way: &str) -> Limits {
    let deadline = if way == "loop" { Duration::from_millis(250) } else { Duration::from_secs(30) };
    Limits { deadline, memory: 16 << 20, output: 4 << 20, queries: 1000, depth: 8 }
}

fn plugin(policy: FailurePolicy) -> HookTable {
    let (guest, points) = guests::runtime().plugin("rascal", guests::hostile()).unwrap();
    assert_eq!(points, ["clusters", "http-filters"]);
    at_points(guest, policy)
}

fn at_points(guest: Arc<dyn Guest>, policy: FailurePolicy) -> HookTable {
    let hooked = |point| vec![Hooked::free(guest.clone(), point, policy)];
    ["clusters", "http-filters"].map(|point| (point.into(), hooked(point))).into_iter().collect()
}

fn hostile_config(way: &str) -> Config {
    Config { queries: &guests::QUERIES, limits: limits(way), ..config() }
}

/// An engine with the hostile plugin, which is to misbehave in this way.
fn engine_of(world: &World, policy: FailurePolicy, way: &str) -> Arc<Engine> {
    let engine = Engine::new(hostile_config(way), [native()], Arc::new(world.clone()));
    engine.set_hooks(plugin(policy));
    engine
}

fn world(bad: &str) -> World {
    World::default().list("plan", &["a", "bad", "z"]).text("a", "one").text("bad", bad).text("z", "two")
}

fn go(engine: &Engine, old: &mut World, new: World) -> Advance {
    let affected = new.affected(old);
    *old = new;
    engine.advance(Arc::new(old.clone()), &affected)
}

/// What a proxy is served of the three fragments, once no retry is under way; with the faults on the way.
fn settled(engine: &Arc<Engine>, proxy: &Proxy) -> ([Option<String>; 3], Vec<Fault>) {
    engine.resources(proxy, &ALL.into(), &Watched::Wildcard);
    engine.settle();
    let served = engine.resources(proxy, &ALL.into(), &Watched::Wildcard);
    (["a", "bad", "z"].map(|name| text(engine, proxy, name)), served.faults)
}

fn three(a: &str, bad: Option<&str>, z: &str) -> [Option<String>; 3] {
    [Some(a.to_owned()), bad.map(str::to_owned), Some(z.to_owned())]
}

/// Runs that `act` caused.
fn runs(engine: &Engine, act: impl FnOnce()) -> u64 {
    let before = engine.counters().read().runs;
    act();
    engine.counters().read().runs - before
}

#[test]
fn a_skipped_plugin_leaves_the_fragment_as_it_was() {
    for (way, kind) in WAYS {
        let mut now = world("fine");
        let engine = engine_of(&now, FailurePolicy::Skip, way);
        let (p, other) = (proxy("p", "x", "1"), proxy("other", "x", "1"));
        assert_eq!(settled(&engine, &p).0, three("ONE", Some("FINE"), "TWO"));
        let faulty = now.clone().text("bad", way).text("z", "three");
        go(&engine, &mut now, faulty);
        let first = engine.resources(&p, &ALL.into(), &Watched::Wildcard);
        let (served, later) = settled(&engine, &p);
        assert_eq!(served, three("ONE", Some(way), "THREE"), "{way}");
        let faults = [first.faults, later].concat();
        let fault = faults.iter().find(|fault| fault.kind.label() == kind);
        let fault = fault.unwrap_or_else(|| panic!("{way} is no {kind}: {faults:?}"));
        assert!(fault.guest.starts_with("rascal@") && fault.call.contains("clusters(bad)"), "{way}: {fault}");
        assert!(engine.counters().faults("rascal", kind) >= 1, "{way}");
        if way == "trap" {
            assert!(fault.to_string().contains("asked to, about bad"), "the panic's own words: {fault}");
        }
        let node = engine.resources(&p, &ALL.into(), &Watched::Wildcard).node.unwrap();
        let said = engine.diagnostics(&p, &[node]);
        assert!(
            said.iter().any(|d| d.object.contains("rascal") && d.message.starts_with("skipped")),
            "{way}: {said:?}"
        );
        // Neither the same proxy again, nor one whose answers are the same, nor a change elsewhere has it run again.
        let again = runs(&engine, || {
            assert_eq!(settled(&engine, &p).0, served);
            assert_eq!(settled(&engine, &other).0, served);
        });
        assert_eq!(again, 0, "{way}: the same inputs are not tried again");
        let elsewhere = now.clone().text("z", "four");
        go(&engine, &mut now, elsewhere);
        let again = runs(&engine, || assert_eq!(settled(&engine, &p).0, three("ONE", Some(way), "FOUR")));
        assert_eq!(again, 2, "{way}: the stage and the plugin for what changed");
        let mended = now.clone().text("bad", "mended");
        go(&engine, &mut now, mended);
        assert_eq!(settled(&engine, &p).0, three("ONE", Some("MENDED"), "FOUR"), "{way}");
    }
}

#[test]
fn a_held_fragment_is_what_each_subscriber_was_last_served() {
    for (way, kind) in WAYS {
        let mut now = world("fine");
        let engine = engine_of(&now, FailurePolicy::Hold, way);
        let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
        assert_eq!(settled(&engine, &p).0, three("ONE", Some("FINE"), "TWO"));
        let faulty = now.clone().text("bad", way).text("z", "three");
        go(&engine, &mut now, faulty);
        assert_eq!(settled(&engine, &p).0, three("ONE", Some("FINE"), "THREE"), "{way}: held");
        assert!(engine.counters().faults("rascal", kind) >= 1, "{way}");
        let again = runs(&engine, || {
            assert_eq!(settled(&engine, &late).0, three("ONE", None, "THREE"), "{way}: nothing to hold");
            assert_eq!(settled(&engine, &p).0, three("ONE", Some("FINE"), "THREE"), "{way}: still held");
        });
        assert_eq!(again, 0, "{way}: the same inputs are not tried again");
        let mended = now.clone().text("bad", "mended");
        go(&engine, &mut now, mended);
        for p in [&p, &late] {
            assert_eq!(settled(&engine, p).0, three("ONE", Some("MENDED"), "THREE"), "{way}");
        }
    }
}

#[test]
fn a_new_plugin_that_faults_holds_what_was_served_without_it() {
    let now = world("trap");
    let engine = Engine::new(hostile_config(""), [native()], Arc::new(now.clone()));
    let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
    assert_eq!(settled(&engine, &p).0, three("one", Some("trap"), "two"));
    engine.set_hooks(plugin(FailurePolicy::Hold));
    assert_eq!(settled(&engine, &p).0, three("ONE", Some("trap"), "TWO"), "held, as it was without the plugin");
    assert_eq!(settled(&engine, &late).0, three("ONE", None, "TWO"), "nothing to hold");
    engine.set_hooks(plugin(FailurePolicy::Skip));
    assert_eq!(settled(&engine, &late).0, three("ONE", Some("trap"), "TWO"), "the policy alone changed");
    engine.set_hooks(plugin(FailurePolicy::Hold));
    let newest = proxy("newest", "x", "1");
    assert_eq!(settled(&engine, &newest).0, three("ONE", None, "TWO"), "and back");
}

#[test]
fn where_plugins_insert_a_held_fault_keeps_the_resource_around_it() {
    let mut now = world("insert around").text("inserted", "filter");
    let engine = engine_of(&now, FailurePolicy::Hold, "");
    // Only the insertion is of interest here.
    let (guest, _) = guests::runtime().plugin("rascal", guests::hostile()).unwrap();
    let hooks = |policy| {
        let mut table = at_points(guest.clone(), policy);
        table.remove("clusters");
        table
    };
    engine.set_hooks(hooks(FailurePolicy::Hold));
    let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
    let with_filter = settled(&engine, &p).0;
    assert!(with_filter[1].as_ref().unwrap().contains("filter"), "{with_filter:?}");
    let faulty = now.clone().text("inserted", "trap").text("bad", "insert changed").text("z", "three");
    go(&engine, &mut now, faulty);
    let held = settled(&engine, &p).0;
    assert_eq!(
        (&held[1], held[2].as_deref()),
        (&with_filter[1], Some("three")),
        "held whole, never without its filter"
    );
    assert_eq!(settled(&engine, &late).0, three("one", None, "three"), "withheld rather than without its filter");
    engine.set_hooks(hooks(FailurePolicy::Skip));
    assert_eq!(settled(&engine, &late).0, three("one", Some("changed"), "three"), "skipped: nothing is inserted");
}

#[test]
fn a_fault_for_one_proxy_is_none_for_the_next() {
    let mut now = world("trap-for 1");
    let engine = engine_of(&now, FailurePolicy::Skip, "");
    let (bad, good) = (proxy("bad", "x", "1"), proxy("good", "x", "2"));
    let well = |p: &Proxy| text(&engine, p, "well");
    assert_eq!((settled(&engine, &bad).0[1].as_deref(), well(&bad)), (Some("trap-for 1"), None));
    assert_eq!(well(&good).as_deref(), Some("well"));
    // Looked at again from its remembered fault, it must still be the fault of this proxy alone.
    for text in ["3", "4"] {
        let next = now.clone().text("z", text).list("plan", &["a", "bad", "z", text]);
        go(&engine, &mut now, next);
        engine.set_hooks(HookTable::default());
        engine.set_hooks(plugin(FailurePolicy::Skip));
        assert_eq!((settled(&engine, &bad).0[1].as_deref(), well(&bad)), (Some("trap-for 1"), None));
        assert_eq!(well(&good).as_deref(), Some("well"));
    }
}

#[test]
fn state_between_calls_is_found_by_the_audit() {
    for way in ["counter", "pointer"] {
        let now = World::default().list("plan", &["a", "first", "second"]).text("a", "one");
        let engine = engine_of(&now.text("first", way).text("second", way), FailurePolicy::Skip, "");
        let p = proxy("p", "x", "1");
        let served = engine.resources(&p, &ALL.into(), &Watched::Wildcard);
        let fault = served.faults.iter().find(|fault| fault.kind.label() == "impure");
        let fault =
            fault.unwrap_or_else(|| panic!("{way}: the second call of an instance shows it: {:?}", served.faults));
        assert!(fault.guest.starts_with("rascal@") && fault.call.contains("clusters(second)"), "{way}: {fault}");
        assert!(engine.counters().faults("rascal", "impure") >= 1);
        assert_eq!(text(&engine, &p, "second").as_deref(), Some(way), "as it was before the plugin");
        assert_eq!(text(&engine, &p, "a").as_deref(), Some("ONE"));
    }
}

/// Evaluates on a stack as the server's threads have it: calls that ask for calls nest on it.
fn on_a_deep_stack(act: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(act).unwrap().join().unwrap();
}

#[test]
fn a_stage_that_faults_costs_only_what_asked_it() {
    on_a_deep_stack(|| {
        for (way, kind) in WAYS.into_iter().chain([("recursion", "recursion")]) {
            let hostile = guests::runtime().stage("hostile", guests::hostile()).unwrap();
            let mut now = world("fine");
            let engine = Engine::new(hostile_config(way), [native(), hostile], Arc::new(now.clone()));
            let (p, late) = (proxy("p", "x", "1"), proxy("late", "x", "1"));
            assert_eq!(settled(&engine, &p).0, three("one", Some("fine"), "two"));
            let faulty = now.clone().text("bad", &format!("ask hostile {way}")).text("a", "new");
            go(&engine, &mut now, faulty);
            let (served, faults) = settled(&engine, &p);
            assert_eq!(served, three("new", Some("fine"), "two"), "{way}: held");
            assert!(faults.iter().any(|f| &*f.guest == "hostile" && f.kind.label() == kind), "{way}: {faults:?}");
            assert!(faults.iter().any(|f| f.call.starts_with(&format!("hostile/{way}("))), "{way}: {faults:?}");
            assert!(engine.counters().faults("hostile", kind) >= 1, "{way}");
            assert_eq!(settled(&engine, &late).0, three("new", None, "two"), "{way}: nothing to hold");
        }
    });
}

#[test]
fn a_plugin_that_asks_for_what_has_no_output_is_skipped() {
    on_a_deep_stack(|| {
        let hostile = guests::runtime().stage("hostile", guests::hostile()).unwrap();
        let now = world("recursion 0");
        let engine = Engine::new(hostile_config(""), [native(), hostile], Arc::new(now));
        engine.set_hooks(plugin(FailurePolicy::Skip));
        let (served, faults) = settled(&engine, &proxy("p", "x", "1"));
        assert_eq!(served, three("ONE", Some("recursion 0"), "TWO"));
        assert!(faults.iter().any(|f| &*f.guest == "hostile" && f.kind.label() == "recursion"), "{faults:?}");
    });
}

/// A guest that has no time at its first run, so that the call is slow on any machine. Its second waits until it is let go.
struct SlowAtFirst {
    inner: Arc<dyn Guest>,
    runs: AtomicU32,
    started: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Guest for SlowAtFirst {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn run(
        &self,
        job: &Job,
        asker: Box<dyn Asker>,
        limits: &Limits,
        fresh: bool,
    ) -> (Result<Done, Unanswered>, Box<dyn Asker>) {
        match self.runs.fetch_add(1, Ordering::SeqCst) {
            0 => return self.inner.run(job, asker, &Limits { deadline: Duration::from_millis(1), ..*limits }, fresh),
            1 => {
                self.started.send(()).unwrap();
                self.go.lock().recv().unwrap();
            }
            _ => {}
        }
        self.inner.run(job, asker, limits, fresh)
    }
}

#[test]
fn a_slow_call_is_served_after_its_second_try() {
    let (settled_tx, settled_rx) = mpsc::channel();
    let (started_tx, started_rx) = mpsc::channel();
    let (go_tx, go_rx) = mpsc::channel();
    let mut now = World::default().list("plan", &["a", "bad"]).text("a", "one").text("bad", "work 100000000");
    let on_settled = Arc::new(move || settled_tx.send(()).unwrap());
    // Time enough for the work on any machine; only the first try is cut short.
    let config = Config { on_settled: Some(on_settled), audit_share: 0.0, ..hostile_config("") };
    let stage: Arc<dyn Guest> = Arc::new(Native::new("toy", NativeCode::Stage(plan_of_one)));
    let engine = Engine::new(config, [stage], Arc::new(now.clone()));
    let (inner, _) = guests::runtime().plugin("rascal", guests::hostile()).unwrap();
    let slow = Arc::new(SlowAtFirst { inner, runs: AtomicU32::new(0), started: started_tx, go: Mutex::new(go_rx) });
    engine.set_hooks(at_points(slow.clone(), FailurePolicy::Skip));
    let p = proxy("p", "x", "1");
    let served = engine.resources(&p, &ALL.into(), &Watched::Wildcard);
    assert!(served.faults.iter().any(|fault| fault.kind.label() == "slow"), "{:?}", served.faults);
    assert_eq!(text(&engine, &p, "bad").as_deref(), Some("work 100000000"), "meanwhile it is skipped");
    started_rx.recv().unwrap();
    // What changes elsewhere while the retry runs must not cost its result, or a busy cluster would never get it.
    let elsewhere = now.clone().text("elsewhere", "changed");
    go(&engine, &mut now, elsewhere);
    assert_eq!(text(&engine, &p, "work"), None);
    assert_eq!(slow.runs.load(Ordering::SeqCst), 2, "one retry, for which nobody waits");
    go_tx.send(()).unwrap();
    settled_rx.recv().unwrap();
    engine.settle();
    let n = slow.runs.load(Ordering::SeqCst);
    assert_eq!(text(&engine, &p, "work").as_deref(), Some("done"));
    assert_eq!(slow.runs.load(Ordering::SeqCst), n, "what the retry returned is remembered");
    assert_eq!(text(&engine, &p, "bad"), None, "its output is in force now");
}

/// A plan of one fragment, so that the plugin's first run is the slow one.
fn plan_of_one(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    if function != "all" {
        return toy(ctx, function, args);
    }
    let mut output = Output::empty();
    output.include(CallRef::new("toy", "piece", ["bad"]).hooked("clusters"));
    output.item(Item::new("own", Message::default()));
    Ok(output)
}

#[test]
fn components_of_the_wrong_world_are_refused() {
    let runtime = guests::runtime();
    let as_stage = runtime.stage("limit", guests::local_rate_limit()).map(drop);
    assert!(matches!(as_stage, Err(LoadError::DoesNotFit { .. })), "{as_stage:?}");
    let garbage = runtime.plugin("limit", b"garbage").map(drop);
    assert!(matches!(garbage, Err(LoadError::NotAComponent { .. })), "{garbage:?}");
    let (_, points) = runtime.plugin("limit", guests::local_rate_limit()).unwrap();
    assert_eq!(points, ["http-filters"]);
}
