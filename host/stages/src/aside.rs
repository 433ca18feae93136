//! Calls of plugins that nobody waits for: on a few threads of their own, one at a time for each plugin, in turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::calls::{Call, CallId};
use crate::circuit::{Circuit, Next, PutOff, Standing};
use crate::engine::Engine;
use crate::eval::Cx;
use crate::fault::FaultKind;
use crate::memo::CallMemo;
use crate::proxies::ProxyState;
use crate::run::{self, Ran, Runner, Stopped};

/// How often a thread that has nothing to do looks whether the engine is still there.
const LOOK: Duration = Duration::from_millis(200);

/// The threads.
#[derive(Default)]
pub(crate) struct Lane {
    threads: Mutex<usize>,
    more: Condvar,
}

/// At most so many threads: half of the cores stay with those who are waited for.
fn most_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

impl Engine {
    /// May a plugin's call be made now, while somebody waits for it? If not, it will be, aside.
    pub(crate) fn admit(self: &Arc<Self>, cx: &Cx, memo: &CallMemo) -> Result<(), PutOff> {
        let Call::Plugin { plugin, .. } = &memo.call else { return Ok(()) };
        let Some(circuit) = self.circuits.of(plugin) else { return Ok(()) };
        let admitted = circuit.admit(&self.config.budget, memo.id, &cx.proxy, Instant::now());
        if let Err(why) = &admitted {
            self.counters.put_off(&circuit.plugin, why.label());
            self.make_aside();
        }
        admitted
    }

    /// A slow call of a plugin is made again aside. False when there is no such plugin any more.
    pub(crate) fn again_aside(self: &Arc<Self>, cx: &Cx, memo: &CallMemo) -> bool {
        let Call::Plugin { plugin, .. } = &memo.call else { return false };
        let Some(circuit) = self.circuits.of(plugin) else { return false };
        circuit.wait(memo.id, &cx.proxy);
        self.make_aside();
        true
    }

    /// Takes in what a run took of the time of all.
    pub(crate) fn charge(self: &Arc<Self>, memo: &CallMemo, ran: &Ran, somebody: bool) {
        let Call::Plugin { plugin, .. } = &memo.call else { return };
        let Some(circuit) = self.circuits.of(plugin) else { return };
        let (budget, now) = (&self.config.budget, Instant::now());
        circuit.spent(budget, ran.took, now);
        let Err(Stopped::Own(kind)) = &ran.result else { return };
        let what = match kind {
            // There is no third try.
            FaultKind::Slow(limit) if !somebody => FaultKind::Deadline(*limit).to_string(),
            other => other.to_string(),
        };
        if let Some(why) = circuit.lost(budget, ran.took, somebody, &what, now) {
            self.counters.tripped(&circuit.plugin);
            tracing::error!(plugin = circuit.plugin, "its circuit opens: {why}");
        }
    }

    /// How it stands with each plugin in force, by name.
    pub fn standings(&self) -> std::collections::BTreeMap<String, Standing> {
        self.circuits.standings(&self.config.budget, Instant::now())
    }

    /// Has what waits be made.
    fn make_aside(self: &Arc<Self>) {
        let mut threads = self.lane.threads.lock();
        if *threads >= most_threads() {
            self.lane.more.notify_all();
            return;
        }
        let (engine, lane) = (Arc::downgrade(self), self.lane.clone());
        let builder = std::thread::Builder::new().name("aside".into()).stack_size(crate::STACK);
        match builder.spawn(move || work(&engine, &lane)) {
            Ok(_) => *threads += 1,
            Err(error) => tracing::error!(%error, "no thread for plugins' calls that nobody waits for"),
        }
    }

    /// Makes a call aside, and has looked again at what depends on it.
    fn make_one(self: &Arc<Self>, circuit: &Circuit, call: CallId, proxy: Arc<ProxyState>) {
        let made = catch_unwind(AssertUnwindSafe(|| {
            let _in_use = self.in_use.read_recursive();
            // Nothing is owed to a call that was forgotten since.
            self.memos.find(call).is_some_and(|memo| self.make(&memo, proxy))
        }));
        let succeeded = made.unwrap_or_else(|_| {
            tracing::error!(plugin = circuit.plugin, "the host panicked in a call that was made aside");
            false
        });
        let mut moved = vec![call];
        if succeeded && circuit.succeeded(Instant::now()) {
            tracing::warn!(plugin = circuit.plugin, "its circuit closes");
            moved.extend(circuit.release());
        }
        // Before it counts as done: who waits for the end has to see what came of it.
        self.tell(circuit.made(&self.config.budget, moved, Instant::now()));
        circuit.done();
    }

    /// Has everybody look again at what depends on these calls.
    fn tell(&self, made: Vec<CallId>) {
        if made.is_empty() {
            return;
        }
        self.touch(made);
        if let Some(notify) = &self.config.on_settled {
            notify();
        }
    }

    /// Makes a call, with more time than when somebody waits. True when it succeeded.
    fn make(self: &Arc<Self>, memo: &Arc<CallMemo>, proxy: Arc<ProxyState>) -> bool {
        let faults = Arc::default();
        let mut cx = Cx { epoch: self.epoch.load_full(), proxy, held: None, stack: Vec::new(), faults };
        if self.is_known(&mut cx, memo) {
            return false;
        }
        let ran = Runner { engine: self, memo, is_second: true, keeps_log: false }.run(&mut cx);
        self.charge(memo, &ran, false);
        run::take_in(self, &cx, memo, ran)
    }
}

fn work(engine: &Weak<Engine>, lane: &Lane) {
    loop {
        let Some(engine) = engine.upgrade() else { return };
        let mut threads = lane.threads.lock();
        // Under the lock: who puts a call off does so before asking for a thread.
        let (next, circuit) = engine.circuits.next(&engine.config.budget, Instant::now());
        match (next, circuit) {
            (Next::Call(call, proxy), Some(circuit)) => {
                drop(threads);
                engine.make_one(&circuit, call, proxy);
            }
            (Next::Tell(calls), _) => {
                drop(threads);
                engine.tell(calls);
            }
            (Next::Wait(wait), _) => {
                drop(engine);
                lane.more.wait_for(&mut threads, wait.min(LOOK));
            }
            _ => {
                *threads -= 1;
                return;
            }
        }
    }
}
