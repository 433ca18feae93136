//! Leaves (what a call returned) and nodes (a leaf with the output of the calls it refers to put in place).

mod entries;
mod leaf;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use trysail_sdk::Diagnostic;

pub use self::entries::{Entries, EntryList, Item, NodeEntry};
pub(crate) use self::leaf::READ;
pub use self::leaf::{BadOutput, Judging, Leaf};
use crate::engine::Names;
use crate::gate;
use crate::memo::CallMemo;
use crate::trace::Read;

/// A call's output for all proxies whose answers, its own and those of the calls below, agree.
pub struct Node {
    /// The call.
    pub memo: Arc<CallMemo>,
    /// What the call itself returned.
    pub leaf: Arc<Leaf>,
    /// The nodes of `leaf.calls`, in their order.
    pub children: Vec<Arc<Node>>,
    /// The nodes of the calls that it asked for: what is in use is what some proxy's nodes lead to.
    pub asked: Vec<Arc<Node>>,
    /// The finished items.
    pub entries: Entries,
    /// Items left out because a sibling of another call claims the same.
    pub conflicts: Vec<Diagnostic>,
    /// What was read of the proxy, here and below, each query once, in the order of execution.
    pub proxy_reads: Arc<[Read]>,
    /// The newest revision at which the node was known to hold.
    pub verified_at: AtomicU64,
    /// Made with something left out or held after a fault; never found by another lookup.
    pub degraded: bool,
    /// Of a call of names: each has its item.
    pub complete: OnceLock<bool>,
}

impl Node {
    /// Is the node known to hold at a revision, for proxies of which it holds at all?
    pub fn holds(&self, revision: u64) -> bool {
        let dirty_at = self.memo.dirty_at.load(Ordering::Acquire);
        dirty_at <= revision && self.verified_at.load(Ordering::Acquire) >= dirty_at
    }

    /// Has each of the names that this is the call of its item?
    pub(crate) fn is_complete(&self, names: &Names) -> bool {
        *self.complete.get_or_init(|| gate::absent(self, names).next().is_none())
    }

    /// The node with other entries, for one subscriber.
    pub(crate) fn with_entries(&self, entries: Entries, conflicts: Vec<Diagnostic>) -> Node {
        Node {
            memo: self.memo.clone(),
            leaf: self.leaf.clone(),
            children: self.children.clone(),
            asked: self.asked.clone(),
            entries,
            conflicts,
            proxy_reads: self.proxy_reads.clone(),
            verified_at: AtomicU64::new(0),
            degraded: true,
            complete: OnceLock::new(),
        }
    }

    /// The node of a call in this one or below: what a subscriber was last served of it.
    pub fn find(self: &Arc<Node>, memo: &Arc<CallMemo>) -> Option<Arc<Node>> {
        if Arc::ptr_eq(&self.memo, memo) {
            return Some(self.clone());
        }
        self.children.iter().find_map(|child| child.find(memo))
    }

    /// Calls `visit` with this node and all below, each once per place.
    pub fn for_each(self: &Arc<Node>, visit: &mut impl FnMut(&Arc<Node>)) {
        visit(self);
        self.children.iter().for_each(|child| child.for_each(visit));
    }
}
