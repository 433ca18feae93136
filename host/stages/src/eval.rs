//! Evaluation: from a call and a proxy to a node, by look-up, check, or run.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustc_hash::{FxHashMap, FxHashSet};
use trysail_model::{Answer, Fingerprint, Query, Resource};
use trysail_sdk::{CallRef, Diagnostic, Entry, Output, Severity};

use crate::calls::{Call, plugin_name};
use crate::engine::{Engine, Epoch};
use crate::fault::{FailurePolicy, Fault, FaultKind};
use crate::gate::{Need, Verdict};
use crate::memo::{CallMemo, Faulted};
use crate::metrics::{HOST, add};
use crate::node::{Judging, Leaf, Node};
use crate::proxies::ProxyState;
use crate::queries::{Cell, QueryId, Question};
use crate::run::{self, Runner};
use crate::terms::Effects;
use crate::trace::{Read, TraceTree};

/// Fingerprints of other calls' outputs, as met during one look-up.
type Answers = FxHashMap<QueryId, Fingerprint>;
/// What was read of a proxy for a node, and the nodes of the calls that its leaf asked for.
type Behind = (Arc<[Read]>, Vec<Arc<Node>>);

/// What a run made.
pub(crate) struct Made<'a> {
    pub output: Output,
    /// The items that it was made from, one by one.
    pub seen: &'a [Arc<Resource>],
    /// What a plugin changed.
    pub effects: Effects,
}

/// For whom, at which state, and on the way from which calls something is evaluated.
#[derive(Clone)]
pub(crate) struct Cx {
    pub epoch: Arc<Epoch>,
    pub proxy: Arc<ProxyState>,
    /// What the subscriber was last served, to hold on to after a fault.
    pub held: Option<Arc<Node>>,
    /// The calls under way on this thread, outermost first.
    pub stack: Vec<Arc<CallMemo>>,
    /// Faults met on the way.
    pub faults: Arc<Mutex<Vec<Fault>>>,
}

impl Engine {
    /// The node of a call for a proxy.
    ///
    /// # Errors
    /// The fault that left the call without output.
    pub(crate) fn eval(self: &Arc<Self>, cx: &mut Cx, memo: &Arc<CallMemo>) -> Result<Arc<Node>, Fault> {
        // A hook point without plugins is not there at all.
        if let Call::Hook { point, inner: Some(inner), .. } = &memo.call
            && self.hooks.load().get(point).is_none_or(Vec::is_empty)
        {
            let inner = self.memos.get(*inner);
            inner.add_parent(memo.id);
            return self.eval(cx, &inner);
        }
        let found = memo.lookup(cx.epoch.revision, |query| self.proxy_fingerprint(&cx.epoch, &cx.proxy, query));
        let old = match found {
            Some((node, true)) => {
                add(&self.counters.hits);
                self.counters.remembered(&memo.call);
                return Ok(node);
            }
            Some((node, false)) => Some(node),
            None => None,
        };
        if cx.stack.iter().any(|above| Arc::ptr_eq(above, memo)) {
            return Err(self.fault(memo, FaultKind::Circle(memo.call.to_string())));
        }
        if cx.stack.len() >= self.config.limits.depth {
            return Err(self.fault(memo, FaultKind::Recursion(self.config.limits.depth)));
        }
        cx.stack.push(memo.clone());
        let node = self.leaf(cx, memo).and_then(|leaf| self.node(cx, memo, leaf, old));
        cx.stack.pop();
        node
    }

    /// What the call itself returns to the present answers.
    fn leaf(self: &Arc<Self>, cx: &mut Cx, memo: &Arc<CallMemo>) -> Result<Arc<Leaf>, Fault> {
        add(&self.counters.walks);
        let mut answers = Answers::default();
        if let Some(leaf) = self.walk(cx, &mut answers, &memo.traces)? {
            self.counters.remembered(&memo.call);
            return Ok(leaf);
        }
        if let Some(Faulted { reads, fault, .. }) = self.walk(cx, &mut answers, &memo.faults)? {
            return self.after_fault(cx, memo, fault, reads, false);
        }
        self.compute(cx, memo)
    }

    /// Runs the call and remembers what came of it.
    fn compute(self: &Arc<Self>, cx: &mut Cx, memo: &Arc<CallMemo>) -> Result<Arc<Leaf>, Fault> {
        let (result, reads, seen, effects) = match &memo.call {
            Call::Stage { .. } | Call::Plugin { .. } => {
                if let Err(why) = self.admit(cx, memo) {
                    let guest = memo.call.guest().unwrap_or_default();
                    let kind = FaultKind::PutOff(why.to_string());
                    let fault = Fault { guest: guest.into(), call: memo.call.to_string().into(), kind };
                    return self.after_fault(cx, memo, fault, [].into(), true);
                }
                let ran = Runner { engine: self, memo, is_second: false, keeps_log: false }.run(cx);
                self.charge(memo, &ran, true);
                (ran.result, ran.reads, ran.seen, ran.effects)
            }
            Call::Hook { point, args, inner } => {
                let (output, reads) = self.chain(cx, point, args, *inner);
                (Ok(output), reads, Vec::new(), Effects::default())
            }
            Call::Names { stage, function, hook, names } => {
                let call = |name: &trysail_model::ResourceName| {
                    Entry::Include(CallRef::new(stage, function, [name.as_str()]).hooked(hook))
                };
                let output = Output { entries: names.iter().map(call).collect(), diagnostics: Vec::new() };
                (Ok(output), Vec::new(), Vec::new(), Effects::default())
            }
        };
        let reads: Arc<[Read]> = reads.into();
        let result = match result {
            Ok(output) => {
                let made = Made { output, seen: &seen, effects };
                self.remember(cx, memo, made, reads.clone()).map_err(run::Stopped::Own)
            }
            Err(stopped) => Err(stopped),
        };
        match result {
            Ok(leaf) => Ok(leaf),
            Err(run::Stopped::Fragment(fault)) => Err(fault),
            // Not remembered: the fault is that of another call, which is asked again next time.
            Err(run::Stopped::Asked(fault)) => self.after_fault(cx, memo, fault, reads, true),
            Err(run::Stopped::Own(kind)) => {
                let fault = self.fault(memo, kind);
                self.remember_fault(memo, &reads, &fault);
                // After it is remembered: the retry's end takes its place.
                if matches!(fault.kind, FaultKind::Slow(_)) {
                    run::retry(self, cx, memo, &reads);
                }
                self.after_fault(cx, memo, fault, reads, false)
            }
        }
    }

    /// Takes an output in as a leaf.
    ///
    /// # Errors
    /// When it does not form messages, or shows that the guest is not pure.
    pub(crate) fn remember(
        self: &Arc<Self>,
        cx: &Cx,
        memo: &Arc<CallMemo>,
        made: Made<'_>,
        reads: Arc<[Read]>,
    ) -> Result<Arc<Leaf>, FaultKind> {
        let Made { output, seen, effects } = made;
        let gate = self.config.gate.clone();
        let made = self.made_by(memo);
        let judge = |bytes: &[u8]| match (&gate, made) {
            (Some(gate), Some((message, _))) => gate(message, bytes),
            _ => Verdict::default(),
        };
        let judging = Judging {
            judge: &judge,
            need: made.map(|(_, need)| need).unwrap_or_default(),
            drop_invalid: self.config.hold_back,
        };
        let mut leaf = Leaf::new(output, reads, |call| self.resolve(call), &judging)
            .map_err(|bad| FaultKind::BadOutput(bad.to_string()))?;
        leaf.effects = effects;
        if let Call::Plugin { plugin, .. } = &memo.call {
            let weight = leaf.weight();
            leaf.kept = self.circuits.of(plugin).map(|circuit| circuit.keeps(weight));
        }
        leaf.share(seen);
        if leaf.n_refused > 0 {
            let why = leaf.diagnostics.iter().filter(|d| d.message.starts_with(crate::gate::FOUND));
            let why: Vec<String> = why.map(|d| format!("{}: {}", d.object, d.message)).collect();
            tracing::error!(call = %memo.call, "held back: {}", why.join("; "));
        }
        let leaf = Arc::new(leaf);
        for call in &leaf.calls {
            call.add_parent(memo.id);
        }
        let _shared = self.commit.read();
        // What a guest returned holds for its reads at any revision, and a slow call may take longer than revisions last. The
        // host's own calls look at more than their reads say while plugins change.
        let guest = matches!(memo.call, Call::Stage { .. } | Call::Plugin { .. });
        if guest || self.is_current(&cx.epoch) {
            self.register(memo, &leaf.reads);
            if let Err(fork) = memo.traces.write().insert(&leaf.reads, leaf.clone()) {
                let asked =
                    |id: QueryId| if id == QueryId::MAX { "nothing more".to_owned() } else { self.describe(id) };
                return Err(FaultKind::Impure(format!(
                    "after the same answers it asked {} once and {} now",
                    asked(fork.expected),
                    fork.found.map_or_else(|| "nothing more".to_owned(), asked)
                )));
            }
        }
        Ok(leaf)
    }

    /// Does the call need no run: is there an output for the present answers, or a fault that is no mere slowness?
    pub(crate) fn is_known(self: &Arc<Self>, cx: &mut Cx, memo: &CallMemo) -> bool {
        let mut answers = Answers::default();
        let made = self.walk(cx, &mut answers, &memo.traces);
        let is_final = |faulted: &Faulted| !matches!(faulted.fault.kind, FaultKind::Slow(_));
        matches!(made, Ok(Some(_)))
            || self.walk(cx, &mut answers, &memo.faults).is_ok_and(|faulted| faulted.as_ref().is_some_and(is_final))
    }

    /// Has the same inputs not tried again. The fault holds for these reads at any revision.
    pub(crate) fn remember_fault(&self, memo: &CallMemo, reads: &Arc<[Read]>, fault: &Fault) {
        let _shared = self.commit.read();
        self.register(memo, reads);
        let kept = match &memo.call {
            Call::Plugin { plugin, .. } => self.circuits.of(plugin),
            _ => None,
        };
        let kept = kept.map(|circuit| Arc::new(circuit.keeps(reads.len() * crate::node::READ)));
        memo.faults.write().replace(reads, Faulted { reads: reads.clone(), fault: fault.clone(), _kept: kept });
    }

    /// Has the call looked at again when what it read moves.
    fn register(&self, memo: &CallMemo, reads: &[Read]) {
        for (query, _) in reads {
            let cell = self.queries.cell(*query);
            match &cell.question {
                Question::Mesh(_) | Question::Hooked(_) => {
                    if !cell.readers.read().contains(&memo.id) {
                        cell.readers.write().insert(memo.id);
                    }
                }
                // Proxies do not change, and changes of plugins mark the hooks themselves.
                Question::Proxy(_) | Question::Plugins(_) => {}
                Question::Derived(call) | Question::DerivedExists(call) | Question::DerivedItem(call, _) => {
                    self.memos.get(*call).add_parent(memo.id);
                }
            }
        }
    }

    /// What a fault leaves: for a plugin that may be skipped the fragment before it, else nothing. `reads` led to the fault, so
    /// that proxies for which there is none are told apart; `passing` says that it may be over without any of them moving.
    fn after_fault(
        self: &Arc<Self>,
        cx: &Cx,
        memo: &Arc<CallMemo>,
        fault: Fault,
        reads: Arc<[Read]>,
        passing: bool,
    ) -> Result<Arc<Leaf>, Fault> {
        cx.faults.lock().push(fault.clone());
        let Call::Plugin { plugin, point, args, inner, .. } = &memo.call else { return Err(fault) };
        if self.hooked(plugin, point).is_none_or(|hooked| hooked.policy == FailurePolicy::Hold) {
            return Err(fault);
        }
        let mut output = Output::empty();
        output.entries.extend(inner.map(|id| Entry::Include(by_number(id))));
        output.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            object: format!("plugin {}", plugin_name(plugin)),
            field: String::new(),
            message: format!("skipped at {point}({}): {}", args.join(", "), fault.kind).replace('\n', " "),
            code: String::new(),
        });
        let leaf = Leaf::new(output, reads, |call| self.resolve(call), &Judging::none());
        let mut leaf = leaf.map_err(|bad| self.fault(memo, FaultKind::BadOutput(bad.to_string())))?;
        leaf.passing = passing;
        for call in &leaf.calls {
            call.add_parent(memo.id);
        }
        Ok(Arc::new(leaf))
    }

    /// Puts the children of a leaf in place.
    fn node(
        self: &Arc<Self>,
        cx: &mut Cx,
        memo: &Arc<CallMemo>,
        leaf: Arc<Leaf>,
        old: Option<Arc<Node>>,
    ) -> Result<Arc<Node>, Fault> {
        let old = old.filter(|old| Arc::ptr_eq(&old.leaf, &leaf) && !old.degraded);
        let revision = cx.epoch.revision;
        let mut children = Vec::with_capacity(leaf.calls.len());
        let mut same = old.is_some();
        let mut degraded = leaf.passing;
        for (i, call) in leaf.calls.iter().enumerate() {
            if let Some(old) = &old {
                let dirty_at = call.dirty_at.load(Ordering::Acquire);
                if dirty_at <= revision && old.verified_at.load(Ordering::Acquire) >= dirty_at {
                    children.push(old.children[i].clone());
                    continue;
                }
            }
            let child = match self.eval(cx, call) {
                // What Envoy would refuse does not take the place of what it has.
                Ok(child) if child.leaf.n_refused > 0 => {
                    match self.held(cx, call).filter(|held| held.leaf.n_refused == 0) {
                        Some(held) => {
                            degraded = true;
                            held
                        }
                        None => child,
                    }
                }
                Ok(child) => child,
                // A hook point passes a fault on: what is held or withheld is the fragment as a whole, or where plugins insert,
                // the resource around it.
                Err(fault) if leaf.includes(i) && !matches!(memo.call, Call::Hook { .. }) => {
                    // What the subscriber has of it stays; with nothing to hold it is withheld.
                    degraded = true;
                    cx.faults.lock().push(fault);
                    self.held(cx, call).unwrap_or_else(|| self.empty_node(call))
                }
                Err(fault) => return Err(fault),
            };
            degraded |= child.degraded;
            same &= old.as_ref().is_some_and(|old| old.children[i].entries.looks_like(&child.entries));
            children.push(child);
        }
        let (proxy_reads, asked) = self.proxy_reads(cx, &leaf, &children)?;
        let mut conflicts = Vec::new();
        let entries = match &old {
            Some(old) if same => {
                conflicts.clone_from(&old.conflicts);
                old.entries.clone()
            }
            _ => {
                add(&self.counters.assembled);
                leaf.assemble(&children, self.config.hold_back, &mut conflicts)
            }
        };
        if let Some(old) = old
            && same
            && !degraded
            && old.proxy_reads == proxy_reads
            && same_nodes(&old.children, &children)
            && same_nodes(&old.asked, &asked)
        {
            old.verified_at.fetch_max(revision, Ordering::AcqRel);
            return Ok(old);
        }
        let node = Arc::new(Node {
            memo: memo.clone(),
            leaf,
            children,
            asked,
            entries,
            conflicts,
            proxy_reads,
            verified_at: revision.into(),
            degraded,
            complete: OnceLock::new(),
        });
        if !degraded {
            let _shared = self.commit.read();
            if self.is_current(&cx.epoch) {
                memo.nodes.write().replace(&node.proxy_reads, node.clone());
            }
        }
        Ok(node)
    }

    /// What the subscriber was last served of a call.
    fn held(&self, cx: &Cx, call: &Arc<CallMemo>) -> Option<Arc<Node>> {
        let held = cx.held.as_ref()?;
        held.find(call).or_else(|| match &call.call {
            // Without plugins the hook point was not there, and the call behind it was served.
            Call::Hook { inner: Some(inner), .. } => held.find(&self.memos.get(*inner)),
            _ => None,
        })
    }

    /// A node without items, for what is withheld.
    fn empty_node(&self, memo: &Arc<CallMemo>) -> Arc<Node> {
        let leaf = Leaf::new(Output::empty(), [].into(), |call| self.resolve(call), &Judging::none());
        let leaf = Arc::new(leaf.expect("an output without items is well-formed"));
        let entries = leaf.assemble(&[], true, &mut Vec::new());
        Arc::new(Node {
            memo: memo.clone(),
            leaf,
            children: Vec::new(),
            asked: Vec::new(),
            entries,
            conflicts: Vec::new(),
            proxy_reads: [].into(),
            verified_at: 0.into(),
            degraded: true,
            complete: OnceLock::new(),
        })
    }

    /// What is read of the proxy by a leaf, the calls it asked for, and its children: each query once, in the order of
    /// execution, so that the reads of all nodes of a call form a trace tree. With them the nodes of the calls asked for.
    fn proxy_reads(self: &Arc<Self>, cx: &mut Cx, leaf: &Leaf, children: &[Arc<Node>]) -> Result<Behind, Fault> {
        let mut lists: FxHashSet<*const Read> = FxHashSet::default();
        let mut known: FxHashSet<QueryId> = FxHashSet::default();
        let mut reads = Vec::new();
        let mut asked = Vec::new();
        let mut add_list = |list: &Arc<[Read]>, reads: &mut Vec<Read>, known: &mut FxHashSet<QueryId>| {
            if !list.is_empty() && lists.insert(list.as_ptr()) {
                reads.extend(list.iter().filter(|read| known.insert(read.0)));
            }
        };
        for read in leaf.reads.iter() {
            let cell = self.queries.cell(read.0);
            match &cell.question {
                Question::Proxy(_) => {
                    if known.insert(read.0) {
                        reads.push(*read);
                    }
                }
                Question::Derived(call) | Question::DerivedExists(call) | Question::DerivedItem(call, _) => {
                    let node = self.eval(cx, &self.memos.get(*call))?;
                    add_list(&node.proxy_reads, &mut reads, &mut known);
                    asked.push(node);
                }
                Question::Mesh(_) | Question::Plugins(_) | Question::Hooked(_) => {}
            }
        }
        for child in children {
            add_list(&child.proxy_reads, &mut reads, &mut known);
        }
        // The common case: one child's list is all there is.
        if let Some(child) =
            children.iter().find(|child| child.proxy_reads.len() == reads.len() && *child.proxy_reads == *reads)
        {
            return Ok((child.proxy_reads.clone(), asked));
        }
        Ok((reads.into(), asked))
    }

    /// Walks a tree with the present answers. Calls that the tree asks for are evaluated with the tree unlocked, since that can
    /// take as long as guests run.
    fn walk<T: Clone>(
        self: &Arc<Self>,
        cx: &mut Cx,
        known: &mut Answers,
        tree: &RwLock<TraceTree<T>>,
    ) -> Result<Option<T>, Fault> {
        loop {
            let mut wanted = None;
            let found = tree.read().walk(|id| {
                let cell = self.queries.cell(id);
                match &cell.question {
                    Question::Mesh(query) => Some(self.mesh_answer(&cx.epoch, &cell, query).fingerprint),
                    Question::Proxy(_) => self.proxy_fingerprint(&cx.epoch, &cx.proxy, id),
                    Question::Plugins(point) => Some(self.hooks_fingerprint(point)),
                    Question::Hooked(point) => Some(self.hooked_fingerprint(point)),
                    Question::Derived(call) | Question::DerivedExists(call) | Question::DerivedItem(call, _) => {
                        let known = known.get(&id).copied();
                        if known.is_none() {
                            wanted = Some((id, *call, cell.clone()));
                        }
                        known
                    }
                }
            });
            let Some((id, call, cell)) = wanted else { return Ok(found) };
            let node = self.eval(cx, &self.memos.get(call))?;
            known.insert(id, cell.question.fingerprint_in(&node.entries));
        }
    }

    /// The answer to a query of the mesh, remembered while it is of the present revision.
    pub(crate) fn mesh_answer(&self, epoch: &Epoch, cell: &Cell, query: &Query) -> Arc<Answer> {
        if let Some(answer) = cell.answer.read().as_ref() {
            // An answer that is read and still of the present revision afterwards was of it all the while.
            if self.is_current(epoch) {
                return answer.clone();
            }
        }
        let answer = Arc::new(epoch.snapshot.answer(query));
        let _shared = self.commit.read();
        if self.is_current(epoch) {
            *cell.answer.write() = Some(answer.clone());
        }
        answer
    }

    pub(crate) fn is_current(&self, epoch: &Epoch) -> bool {
        self.current.load(Ordering::Acquire) == epoch.revision
    }

    /// The call that a reference means.
    pub(crate) fn resolve(&self, call: &CallRef) -> Arc<CallMemo> {
        if call.stage == BY_NUMBER {
            let id = call.function.parse().expect("references by number are made in here");
            return self.memos.get(id);
        }
        let args: Arc<[String]> = call.args.clone().into();
        if call.stage == "hooks" {
            return self.memos.of(Call::Hook { point: call.function.as_str().into(), args, inner: None });
        }
        let memo = self.memos.of(Call::Stage {
            stage: call.stage.as_str().into(),
            function: call.function.as_str().into(),
            args: args.clone(),
        });
        if call.hook.is_empty() {
            return memo;
        }
        self.memos.of(Call::Hook { point: call.hook.as_str().into(), args, inner: Some(memo.id) })
    }

    /// Full name of the message that a call's items are, and what those around them need of them.
    fn made_by(&self, memo: &CallMemo) -> Option<(&'static str, Need)> {
        let mut call = memo.call.clone();
        loop {
            match call {
                Call::Stage { stage, function, .. } => {
                    let decl = self.config.outputs.iter().find(|decl| decl.function == (&*stage, &*function))?;
                    return (!decl.message.is_empty()).then_some((decl.message, decl.need));
                }
                Call::Plugin { inner: Some(inner), .. } | Call::Hook { inner: Some(inner), .. } => {
                    call = self.memos.get(inner).call.clone();
                }
                // Nothing needs what a plugin adds.
                Call::Plugin { point, inner: None, .. } => {
                    let inserted = self.config.inserted.iter().find(|(at, _)| *at == &*point);
                    return inserted.map(|(_, message)| (*message, Need::Nothing));
                }
                Call::Hook { inner: None, .. } | Call::Names { .. } => return None,
            }
        }
    }

    /// A fault in a call, counted and logged.
    pub(crate) fn fault(&self, memo: &CallMemo, kind: FaultKind) -> Fault {
        let guest = memo.call.guest().unwrap_or(HOST).to_owned();
        self.counters.fault(plugin_name(&guest), kind.label());
        let fault = Fault { guest: guest.into(), call: memo.call.to_string().into(), kind };
        tracing::error!(guest = plugin_name(&fault.guest), call = %fault.call, "{}", fault.kind);
        fault
    }

    /// A query as text.
    pub(crate) fn describe(&self, id: QueryId) -> String {
        match &self.queries.cell(id).question {
            Question::Mesh(query) | Question::Proxy(query) => query.to_string(),
            Question::Derived(call) => format!("derived({})", self.memos.get(*call).call),
            Question::DerivedExists(call) => format!("derived-exists({})", self.memos.get(*call).call),
            Question::DerivedItem(call, key) => format!("derived-item({key:?} of {})", self.memos.get(*call).call),
            Question::Plugins(point) => format!("plugins({point})"),
            Question::Hooked(point) => format!("hooked({point})"),
        }
    }
}

/// Stage name under which calls are referred to by their number, in outputs that the host makes itself. No file has this name.
const BY_NUMBER: &str = "\0call";

/// A reference to a call by its number.
pub(crate) fn by_number(id: u32) -> CallRef {
    CallRef { stage: BY_NUMBER.into(), function: id.to_string(), ..CallRef::default() }
}

fn same_nodes(a: &[Arc<Node>], b: &[Arc<Node>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
