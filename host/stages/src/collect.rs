//! Forgetting: what no connected proxy leads to any more, results first, then the names of calls and queries.
//!
//! Names are numbers, and a number may be on its way in a run from where it was learnt to where something is remembered under
//! it. So results go at any time, and names only while nobody evaluates. A number is never given out again.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;

use crate::calls::{Call, CallId};
use crate::engine::Engine;
use crate::memo::CallMemo;
use crate::queries::QueryId;

/// How long a collection waits for a moment in which nobody evaluates; without one names are dropped the next time.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a collection dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Nodes and leaves.
    pub results: usize,
    /// Calls of which nothing is remembered and that nothing refers to.
    pub calls: usize,
    /// Queries in no trace.
    pub queries: usize,
}

impl Engine {
    /// Drops what no connected proxy uses. `spare_leaves` of each call are kept all the same, for changes that are taken back.
    pub fn collect(&self, spare_leaves: usize) -> Collected {
        let mut results = 0;
        {
            let _shared = self.commit.read();
            self.gated.lock().clear();
            // Children become free when their parents went; a plan has four levels or so.
            for _ in 0..8 {
                let now = self.memos.collect(spare_leaves);
                results += now;
                if now == 0 {
                    break;
                }
            }
        }
        let (calls, queries) = self.collect_names();
        Collected { results, calls, queries }
    }

    /// Drops calls without results and queries without traces; the numbers of both.
    fn collect_names(&self) -> (usize, usize) {
        // Not at any price: a plugin that runs to its deadline would have everybody wait who has a change to make.
        let Some(_alone) = self.in_use.try_write_for(PATIENCE) else { return (0, 0) };
        // The call itself may hold the set; any other reference is a stream's.
        self.subscriptions.write().retain(|_, (names, memo)| {
            let own =
                matches!(&memo.call, Call::Names { names: own, .. } if std::ptr::eq(Arc::as_ptr(own), names.as_ptr()));
            names.strong_count() > usize::from(own)
        });
        let all = self.memos.all();
        let mut live = Live::default();
        for memo in &all {
            // One reference in the table, one in `all`; a third is a leaf's or a node's.
            if Arc::strong_count(memo) > 2 || memo.has_results() {
                live.call(memo.id);
            }
        }
        while let Some(id) = live.todo.pop() {
            live.look(self, &self.memos.get(id));
        }
        let before = all.len();
        drop(all);
        self.memos.retain(|id| live.calls.contains(&id));
        let queries = self.queries.retain(|id| live.queries.contains(&id), |id| live.calls.contains(&id));
        (before - live.calls.len(), queries)
    }
}

/// What is found to be in use, and what of it was not looked at yet.
#[derive(Default)]
struct Live {
    calls: FxHashSet<CallId>,
    queries: FxHashSet<QueryId>,
    todo: Vec<CallId>,
}

impl Live {
    fn call(&mut self, id: CallId) {
        if self.calls.insert(id) {
            self.todo.push(id);
        }
    }

    /// Everything that a call refers to by number.
    fn look(&mut self, engine: &Engine, memo: &CallMemo) {
        if let Call::Hook { inner: Some(inner), .. } | Call::Plugin { inner: Some(inner), .. } = &memo.call {
            self.call(*inner);
        }
        let mut asked = FxHashSet::default();
        let mut note = |id: QueryId| {
            asked.insert(id);
        };
        memo.traces.read().for_each_query(&mut note);
        memo.nodes.read().for_each_query(&mut note);
        memo.faults.read().for_each_query(&mut note);
        for id in asked {
            if self.queries.insert(id)
                && let Some(call) = engine.queries.cell(id).question.call()
            {
                self.call(call);
            }
        }
    }
}
