//! What is remembered of one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use trysail_model::Fingerprint;

use crate::calls::{Call, CallId};
use crate::circuit::Kept;
use crate::fault::Fault;
use crate::node::{Leaf, Node};
use crate::queries::QueryId;
use crate::trace::{Read, TraceTree};

/// Everything remembered of one call.
///
/// There are two trees because there are two questions. `traces` has all that the call itself read, and leads to what it
/// returned: it holds for ever, since the call is pure. `nodes` has only what was read of the *proxy*, by the call and by all
/// calls below, and leads to the assembled output: it is how a push finds that nothing changed for a proxy without looking at
/// a thousand children. It holds as long as no answer of the snapshot below it moved, which `dirty_at` says.
pub struct CallMemo {
    /// Number of the call.
    pub id: CallId,
    /// The call.
    pub call: Call,
    /// Own reads to leaf.
    pub traces: RwLock<TraceTree<Arc<Leaf>>>,
    /// Proxy reads, own and below, to node.
    pub nodes: RwLock<TraceTree<Arc<Node>>>,
    /// Own reads to the fault they end in, so that the same inputs are not tried again and again.
    pub faults: RwLock<TraceTree<Faulted>>,
    /// The newest revision at which something that the call or one below read has moved. A node that was verified
    /// at this revision or later holds.
    pub dirty_at: AtomicU64,
    /// The calls that refer to this one.
    pub parents: RwLock<Vec<CallId>>,
}

/// A fault and the reads that led to it.
#[derive(Clone)]
pub struct Faulted {
    /// What the call read before.
    pub reads: Arc<[Read]>,
    /// The fault.
    pub fault: Fault,
    /// Of a plugin: what it comes to in memory, until this is dropped.
    pub(crate) _kept: Option<Arc<Kept>>,
}

impl CallMemo {
    fn new(id: CallId, call: Call) -> Self {
        CallMemo {
            id,
            call,
            traces: RwLock::default(),
            nodes: RwLock::default(),
            faults: RwLock::default(),
            dirty_at: AtomicU64::new(0),
            parents: RwLock::default(),
        }
    }

    /// The node that holds for these answers about a proxy, and whether it is known to hold at `revision`.
    pub fn lookup(
        &self,
        revision: u64,
        answer: impl FnMut(QueryId) -> Option<Fingerprint>,
    ) -> Option<(Arc<Node>, bool)> {
        let node = self.nodes.read().walk(answer)?;
        let holds = node.holds(revision);
        Some((node, holds))
    }

    /// Is anything remembered of the call?
    pub fn has_results(&self) -> bool {
        !self.nodes.read().is_empty() || !self.traces.read().is_empty() || !self.faults.read().is_empty()
    }

    /// Forgets all results.
    pub fn forget(&self) {
        *self.traces.write() = TraceTree::default();
        *self.nodes.write() = TraceTree::default();
        *self.faults.write() = TraceTree::default();
    }

    /// Remembers that a call refers to this one.
    pub fn add_parent(&self, parent: CallId) {
        let mut parents = self.parents.write();
        if let Err(at) = parents.binary_search(&parent) {
            parents.insert(at, parent);
        }
    }
}

impl std::fmt::Debug for CallMemo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.call)
    }
}

/// The memos of all calls.
#[derive(Default)]
pub struct Memos {
    ids: RwLock<FxHashMap<Call, CallId>>,
    /// By number; empty where a call was forgotten.
    memos: RwLock<Vec<Option<Arc<CallMemo>>>>,
}

impl Memos {
    /// The memo of a call, new or known.
    pub fn of(&self, call: Call) -> Arc<CallMemo> {
        if let Some(id) = self.ids.read().get(&call) {
            return self.get(*id);
        }
        let mut ids = self.ids.write();
        if let Some(id) = ids.get(&call) {
            return self.get(*id);
        }
        let mut memos = self.memos.write();
        let id = CallId::try_from(memos.len()).expect("fewer than 2^32 calls fit into memory");
        let memo = Arc::new(CallMemo::new(id, call.clone()));
        memos.push(Some(memo.clone()));
        ids.insert(call, id);
        memo
    }

    /// The memo of a number.
    ///
    /// # Panics
    /// When the call was forgotten: whoever holds a number that leads to a result keeps it from that.
    pub fn get(&self, id: CallId) -> Arc<CallMemo> {
        self.memos.read()[id as usize].clone().expect("a call that something refers to is not forgotten")
    }

    /// The memo of a number, unless the call was forgotten.
    pub fn find(&self, id: CallId) -> Option<Arc<CallMemo>> {
        self.memos.read().get(id as usize).cloned().flatten()
    }

    /// All memos.
    pub fn all(&self) -> Vec<Arc<CallMemo>> {
        self.memos.read().iter().flatten().cloned().collect()
    }

    /// Number of calls.
    pub fn len(&self) -> usize {
        self.ids.read().len()
    }

    /// Forgets the calls that `keep` does not accept.
    pub fn retain(&self, keep: impl Fn(CallId) -> bool) {
        let mut ids = self.ids.write();
        ids.retain(|_, id| keep(*id));
        ids.shrink_to_fit();
        for (id, memo) in (0..).zip(self.memos.write().iter_mut()) {
            if !keep(id) {
                *memo = None;
            }
            if let Some(memo) = memo {
                memo.parents.write().retain(|parent| keep(*parent));
            }
        }
    }

    /// True when nothing was ever called.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks the calls and all that refer to them, however far up, as moved at `revision`. Returns how many.
    pub fn mark_dirty(&self, calls: impl IntoIterator<Item = CallId>, revision: u64) -> usize {
        let memos = self.memos.read();
        let mut stack: Vec<CallId> = calls.into_iter().collect();
        let mut marked = 0;
        while let Some(id) = stack.pop() {
            // Whoever read something and was forgotten since has nothing that could be stale.
            let Some(memo) = &memos[id as usize] else { continue };
            if memo.dirty_at.swap(revision, Ordering::AcqRel) != revision {
                marked += 1;
                stack.extend(memo.parents.read().iter());
            }
        }
        marked
    }

    /// Drops what nobody uses: nodes that only their tree holds, and leaves of no node beyond the newest few of a call.
    pub fn collect(&self, spare_leaves: usize) -> usize {
        let mut dropped = 0;
        // Parents before children would need a second pass to see the children free; calls are numbered when they are first
        // referred to, so parents mostly come first.
        for memo in self.all() {
            let mut nodes = memo.nodes.write();
            let before = nodes.len();
            nodes.retain(|node| Arc::strong_count(node) > 1);
            dropped += before - nodes.len();
            drop(nodes);
            let mut traces = memo.traces.write();
            let unused = |leaf: &Arc<Leaf>| Arc::strong_count(leaf) == 1;
            let mut n_unused = 0;
            traces.for_each(&mut |leaf| n_unused += usize::from(unused(leaf)));
            if n_unused > spare_leaves {
                let mut to_drop = n_unused - spare_leaves;
                dropped += to_drop;
                traces.retain(|leaf| {
                    let drop = to_drop > 0 && unused(leaf);
                    to_drop -= usize::from(drop);
                    !drop
                });
            }
        }
        dropped
    }
}
