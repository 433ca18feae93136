//! The engine: evaluates calls for proxies, remembers what it did, and forgets what a change moved.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use trysail_model::{Affected, Fingerprint, Proxies, Query, QueryDecl, ResourceName, Snapshot};

use crate::aside::Lane;
use crate::calls::{Call, CallId};
use crate::circuit::{Budget, Circuits};
use crate::fault::FailurePolicy;
use crate::gate::{Gate, Gated, Need};
use crate::guest::{Guest, Limits};
use crate::memo::{CallMemo, Memos};
use crate::metrics::Counters;
use crate::proxies::{ProxyState, ProxyTable};
use crate::queries::{Queries, QueryId, Question};
use crate::terms::Terms;

/// How a type's resources are made: the root call.
#[derive(Clone, Debug)]
pub struct Root {
    /// The type.
    pub type_url: &'static str,
    /// The stage.
    pub stage: &'static str,
    /// Its function.
    pub function: &'static str,
    /// One call a name (EDS, RDS), or one call for all (CDS, LDS).
    pub named: bool,
    /// Hook point of named resources, or empty.
    pub hook: &'static str,
    /// How messages that wait for these resources name the type (`rds` of `rds:80`), or empty.
    pub reference: &'static str,
}

/// The type of message that a function's items are, and whether Envoy can live without one of them.
#[derive(Clone, Debug)]
pub struct OutputDecl {
    /// Stage and function.
    pub function: (&'static str, &'static str),
    /// Full protobuf name of the items' message; empty for facts that are not sent.
    pub message: &'static str,
    /// What the message around them needs of them.
    pub need: Need,
}

/// Is told of each call that a guest ran.
pub type OnRun = dyn Fn(&Call) + Send + Sync;

/// What an engine is made of.
#[derive(Clone)]
pub struct Config {
    /// Query kinds that stages may ask.
    pub queries: &'static [QueryDecl],
    /// Roots of the types served.
    pub roots: Vec<Root>,
    /// What the functions make.
    pub outputs: Vec<OutputDecl>,
    /// The messages that plugins insert, by hook point.
    pub inserted: Vec<(&'static str, &'static str)>,
    /// Calls that look at all that a proxy gets and have diagnostics only: made when somebody asks for these, not for a push.
    pub reports: Vec<(&'static str, &'static str)>,
    /// The gate, if there is one.
    pub gate: Option<Arc<Gate>>,
    /// What the gate objects to is left out; else it is only reported (`render`).
    pub hold_back: bool,
    /// Limits of a call.
    pub limits: Limits,
    /// What plugins may cost.
    pub budget: Budget,
    /// Share of runs that are run again on a fresh instance and compared: 1.0 in tests.
    pub audit_share: f64,
    /// Called with each call that a guest ran: what was recomputed.
    pub on_run: Option<Arc<OnRun>>,
    /// Called after something moved without a change of the snapshot: a slow call has come to its end.
    pub on_settled: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// A plugin at a hook point.
#[derive(Clone)]
pub struct Hooked {
    /// Name and digest.
    pub id: Arc<str>,
    /// The code.
    pub guest: Arc<dyn Guest>,
    /// What a fault does.
    pub policy: FailurePolicy,
    /// The hook point as the plugin knows it; its place in the table is the one at which stages hand out the fragment.
    pub hook: Arc<str>,
    /// The terms on which it works; none for one that works everywhere and may do everything.
    pub terms: Option<Arc<dyn Terms>>,
}

impl Hooked {
    /// A plugin that works everywhere and may do everything.
    pub fn free(guest: Arc<dyn Guest>, hook: &str, policy: FailurePolicy) -> Hooked {
        let id = format!("{}@{}", guest.name(), guest.digest()).into();
        Hooked { id, guest, policy, hook: hook.into(), terms: None }
    }
}

/// Plugins by hook point, in order.
pub type HookTable = FxHashMap<Arc<str>, Vec<Hooked>>;

/// A snapshot at the engine's own revision, which also counts changes of plugins.
pub(crate) struct Epoch {
    pub revision: u64,
    pub snapshot: Arc<dyn Snapshot>,
}

/// A set of names that is subscribed to.
pub(crate) type Names = Arc<BTreeSet<ResourceName>>;
/// Calls of sets of names by type and address of the set.
pub(crate) type Subscriptions = FxHashMap<(&'static str, usize), (Weak<BTreeSet<ResourceName>>, Arc<CallMemo>)>;

/// The translation engine. Cheap to share; all methods may be called from any thread, but not from the async runtime's.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) queries: Queries,
    pub(crate) memos: Memos,
    pub(crate) guests: RwLock<FxHashMap<Arc<str>, Arc<dyn Guest>>>,
    pub(crate) hooks: ArcSwap<HookTable>,
    pub(crate) epoch: ArcSwap<Epoch>,
    /// Held for reading while something is remembered, for writing while the present revision changes: what is remembered is
    /// always of the present revision.
    pub(crate) commit: RwLock<()>,
    pub(crate) current: AtomicU64,
    /// Held for reading while something is evaluated, for writing while names are forgotten.
    pub(crate) in_use: RwLock<()>,
    pub(crate) proxies: ProxyTable,
    pub(crate) counters: Counters,
    /// The calls of sets of names, by type and by the set's address: equal sets are mostly one allocation, and a set of thousands
    /// of names is not to be hashed for each proxy. A weak reference keeps the address its own, and lets the names go.
    pub(crate) subscriptions: RwLock<Subscriptions>,
    pub(crate) retrying: Mutex<BTreeSet<(u32, Fingerprint)>>,
    pub(crate) circuits: Circuits,
    pub(crate) lane: Arc<Lane>,
    pub(crate) sampler: AtomicU64,
    /// See [`Gated`].
    pub(crate) gated: Mutex<Gated>,
    decls: FxHashMap<&'static str, QueryDecl>,
}

/// What a change did, for the terminal and for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// The engine's revision now.
    pub revision: u64,
    /// Queries that were answered again.
    pub reanswered: usize,
    /// The queries whose answer moved.
    pub moved: Vec<String>,
    /// Calls that are to be looked at when somebody needs them.
    pub dirty: usize,
}

impl Engine {
    /// An engine at a first snapshot.
    pub fn new(
        config: Config,
        guests: impl IntoIterator<Item = Arc<dyn Guest>>,
        snapshot: Arc<dyn Snapshot>,
    ) -> Arc<Self> {
        let guests = guests.into_iter().map(|guest| (Arc::from(guest.name()), guest)).collect();
        let decls = config.queries.iter().map(|decl| (decl.kind, *decl)).collect();
        Arc::new(Engine {
            decls,
            config,
            queries: Queries::default(),
            memos: Memos::default(),
            guests: RwLock::new(guests),
            hooks: ArcSwap::default(),
            epoch: ArcSwap::from_pointee(Epoch { revision: 1, snapshot }),
            commit: RwLock::new(()),
            current: AtomicU64::new(1),
            in_use: RwLock::new(()),
            proxies: ProxyTable::default(),
            counters: Counters::default(),
            subscriptions: RwLock::default(),
            retrying: Mutex::default(),
            circuits: Circuits::default(),
            lane: Arc::default(),
            sampler: AtomicU64::new(0),
            gated: Mutex::default(),
        })
    }

    /// The engine's revision: it grows with snapshots, plugins and retries that came to an end.
    pub fn revision(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// The present snapshot.
    pub fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.epoch.load().snapshot.clone()
    }

    /// Counters of work done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The known queries, for the audit of what changes name.
    pub fn live_queries(&self) -> Vec<Query> {
        self.queries.mesh_queries()
    }

    /// Moves to the next revision, alone: `step` is told its number, and returns the snapshot to go on with.
    fn step<T>(&self, step: impl FnOnce(u64) -> (Arc<dyn Snapshot>, T)) -> T {
        let _exclusive = self.commit.write();
        let revision = self.current.load(Ordering::Acquire) + 1;
        // First the number, then the answers: whoever sees an answer and then still the old number has an old answer.
        self.current.store(revision, Ordering::Release);
        let (snapshot, result) = step(revision);
        self.epoch.store(Arc::new(Epoch { revision, snapshot }));
        result
    }

    /// Moves to a snapshot of which only the named queries can be answered otherwise than before.
    pub fn advance(&self, snapshot: Arc<dyn Snapshot>, affected: &[Affected]) -> Advance {
        self.step(|revision| {
            let mut advance = Advance { revision, ..Advance::default() };
            let mut readers = Vec::new();
            for id in self.queries.affected(affected) {
                let cell = self.queries.cell(id);
                let Question::Mesh(query) = &cell.question else { continue };
                let Some(before) = cell.answer.read().clone() else { continue };
                let now = snapshot.answer(query);
                advance.reanswered += 1;
                let moved = now.fingerprint != before.fingerprint;
                // Equal bytes from other objects are a new answer for `explain` alone.
                *cell.answer.write() = Some(Arc::new(now));
                if moved {
                    advance.moved.push(query.to_string());
                    readers.extend(cell.readers.read().iter().copied());
                }
            }
            advance.dirty = self.memos.mark_dirty(readers, revision);
            self.proxies.mark(affected, revision);
            (snapshot, advance)
        })
    }

    /// Moves to a snapshot about which nothing is known: every query is answered again.
    pub fn advance_all(&self, snapshot: Arc<dyn Snapshot>) -> Advance {
        let kinds = self.config.queries.iter().map(|decl| Affected::Kind(decl.kind));
        let all: Vec<Affected> = kinds.chain([Affected::Proxies(Proxies::All)]).collect();
        self.advance(snapshot, &all)
    }

    /// Puts plugins at their hook points, in place of those before.
    pub fn set_hooks(&self, table: HookTable) -> Advance {
        self.step(|revision| {
            let ids = |hooked: &[Hooked]| hooked.iter().map(|h| (h.id.clone(), h.policy)).collect::<Vec<_>>();
            self.circuits.follow(&table, Instant::now());
            self.counters.keep(&table, &|name| self.guests.read().contains_key(name));
            let old = self.hooks.swap(Arc::new(table));
            let new = self.hooks.load();
            let points: BTreeSet<&Arc<str>> = old.keys().chain(new.keys()).collect();
            let none = Vec::new();
            let moved: Vec<&Arc<str>> = points
                .into_iter()
                .filter(|point| ids(old.get(*point).unwrap_or(&none)) != ids(new.get(*point).unwrap_or(&none)))
                .collect();
            let hooks = self.memos.all().into_iter().filter(|memo| match &memo.call {
                // Of plugins because what their faults leave depends on the policy.
                Call::Hook { point, .. } | Call::Plugin { point, .. } => moved.contains(&point),
                _ => false,
            });
            let mut concerned: Vec<_> = hooks.map(|memo| memo.id).collect();
            for point in &moved {
                let asked = self.queries.cell(self.queries.intern(&Question::Hooked((*point).clone())));
                concerned.extend(asked.readers.read().iter());
            }
            let dirty = self.memos.mark_dirty(concerned, revision);
            let moved = moved.into_iter().map(|point| format!("plugins({point})")).collect();
            (self.snapshot(), Advance { revision, reanswered: 0, moved, dirty })
        })
    }

    /// Has calls looked at again although no answer moved: a retry came to its end.
    pub(crate) fn touch(&self, calls: impl IntoIterator<Item = CallId>) {
        self.step(|revision| {
            self.memos.mark_dirty(calls, revision);
            (self.snapshot(), ())
        });
    }

    /// Forgets what these stages made, and what the host put together, so that the next look makes it again: for benchmarks,
    /// which have to see the same work twice. What the snapshot answered stays known.
    pub fn forget(&self, stages: &[&str]) {
        self.step(|revision| {
            self.gated.lock().clear();
            let is_forgotten = |memo: &Arc<CallMemo>| match &memo.call {
                Call::Stage { stage, .. } => stages.contains(&&**stage),
                Call::Names { stage, .. } => stages.contains(&&**stage),
                Call::Hook { inner: Some(inner), .. } | Call::Plugin { inner: Some(inner), .. } => {
                    self.memos.get(*inner).call.guest().is_some_and(|stage| stages.contains(&stage))
                }
                Call::Hook { inner: None, .. } | Call::Plugin { inner: None, .. } => true,
            };
            let forgotten = self.memos.all().into_iter().filter(is_forgotten).map(|memo| {
                memo.forget();
                memo.id
            });
            self.memos.mark_dirty(forgotten, revision);
            (self.snapshot(), ())
        });
    }

    /// How a query kind is asked.
    pub fn decl(&self, kind: &str) -> Option<&QueryDecl> {
        self.decls.get(kind)
    }

    /// Runs until no retry of a slow call is under way, and no call waits but those of plugins that are left alone: for `render`, which
    /// has no second push.
    pub fn settle(&self) {
        while !self.retrying.lock().is_empty() || self.circuits.are_at_work() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// A plugin at a hook point, if it is in force there.
    pub(crate) fn hooked(&self, id: &str, point: &str) -> Option<Hooked> {
        self.hooks.load().get(point)?.iter().find(|hooked| &*hooked.id == id).cloned()
    }

    /// The fingerprint of the plugins at a hook point.
    pub(crate) fn hooks_fingerprint(&self, point: &str) -> Fingerprint {
        let table = self.hooks.load();
        match table.get(point) {
            None => Fingerprint::NONE,
            Some(hooked) => Fingerprint::of_parts(hooked.iter().map(|h| h.id.as_bytes())),
        }
    }

    /// The fingerprint of whether there is a plugin at a hook point.
    pub(crate) fn hooked_fingerprint(&self, point: &str) -> Fingerprint {
        crate::queries::exists(self.hooks.load().get(point).map_or(0, Vec::len))
    }

    /// The answer's fingerprint for a query about the proxy.
    pub(crate) fn proxy_fingerprint(&self, epoch: &Epoch, proxy: &ProxyState, id: QueryId) -> Option<Fingerprint> {
        if let Some(known) = proxy.known(id) {
            return Some(known);
        }
        match &self.queries.cell(id).question {
            Question::Proxy(query) => Some(proxy.answer(&*epoch.snapshot, id, query).fingerprint),
            _ => None,
        }
    }
}
