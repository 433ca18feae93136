//! Trace trees: all traces of one call, sharing their beginnings.
//!
//! A pure function's next query is decided by the answers so far. So the traces of one call form a tree: a node is a
//! query, an edge an answer's fingerprint, a leaf whatever the trace led to. Looking up is walking with the present answers.

use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;
use trysail_model::Fingerprint;

use crate::queries::QueryId;

/// A query and the fingerprint it was answered with.
pub type Read = (QueryId, Fingerprint);

/// The traces of one call. Path-compressed: a node is a run of reads with one continuation, then a fork or a leaf.
#[derive(Debug)]
pub struct TraceTree<T> {
    root: Option<Node<T>>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    run: Vec<Read>,
    next: Next<T>,
}

#[derive(Debug)]
enum Next<T> {
    Leaf(T),
    /// One query, answered in several ways. A vector while there are few, since comparing eight pairs of words is
    /// quicker than hashing one.
    Few(QueryId, Vec<(Fingerprint, Node<T>)>),
    Many(QueryId, FxHashMap<Fingerprint, Node<T>>),
}

/// Above this number of answers a fork hashes.
const FEW: usize = 8;

impl<T> Default for TraceTree<T> {
    fn default() -> Self {
        TraceTree { root: None, len: 0 }
    }
}

/// A trace disagrees with the tree on which query comes next after the same answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Fork {
    /// The query that the tree expects.
    pub expected: QueryId,
    /// The query that the trace has, if it goes on at all.
    pub found: Option<QueryId>,
}

impl<T: Clone> TraceTree<T> {
    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no trace yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Walks with the present answers, which `answer` gives; `None` on falling off the tree, or when an answer cannot be had.
    pub fn walk(&self, mut answer: impl FnMut(QueryId) -> Option<Fingerprint>) -> Option<T> {
        let mut node = self.root.as_ref()?;
        loop {
            for (query, fingerprint) in &node.run {
                if answer(*query)? != *fingerprint {
                    return None;
                }
            }
            node = match &node.next {
                Next::Leaf(leaf) => return Some(leaf.clone()),
                Next::Few(query, edges) => {
                    let found = answer(*query)?;
                    &edges.iter().find(|(edge, _)| *edge == found)?.1
                }
                Next::Many(query, edges) => edges.get(&answer(*query)?)?,
            };
        }
    }

    /// Adds a trace; an equal one is replaced.
    ///
    /// # Errors
    /// A [`Fork`] when the function asked something else than before after the same answers: it is not pure.
    pub fn insert(&mut self, trace: &[Read], leaf: T) -> Result<(), Fork> {
        match &mut self.root {
            None => {
                self.root = Some(Node { run: trace.to_vec(), next: Next::Leaf(leaf) });
                self.len = 1;
            }
            Some(root) => self.len += usize::from(insert(root, trace, leaf)?),
        }
        Ok(())
    }

    /// Adds a trace, dropping whatever disagrees with it on the order of queries.
    pub fn replace(&mut self, trace: &[Read], leaf: T) {
        if self.insert(trace, leaf.clone()).is_err() {
            if let Some(root) = &mut self.root {
                cut(root, trace);
            }
            self.len = 0;
            let mut rest = Vec::new();
            if let Some(root) = self.root.take() {
                collect(root, &mut Vec::new(), &mut rest);
            }
            for (path, kept) in rest {
                // What is left agreed before and has only lost leaves since.
                let _ = self.insert(&path, kept);
            }
            let _ = self.insert(trace, leaf);
        }
    }

    /// Keeps the leaves that `keep` accepts.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut all = Vec::new();
        if let Some(root) = self.root.take() {
            collect(root, &mut Vec::new(), &mut all);
        }
        self.len = 0;
        for (path, leaf) in all {
            if keep(&leaf) {
                // The traces formed a tree before; fewer of them still do.
                let _ = self.insert(&path, leaf);
            }
        }
    }

    /// Calls `visit` with every query of every trace, some of them more than once.
    pub fn for_each_query(&self, visit: &mut impl FnMut(QueryId)) {
        fn go<T>(node: &Node<T>, visit: &mut impl FnMut(QueryId)) {
            node.run.iter().for_each(|(query, _)| visit(*query));
            match &node.next {
                Next::Leaf(_) => {}
                Next::Few(query, edges) => {
                    visit(*query);
                    edges.iter().for_each(|(_, node)| go(node, visit));
                }
                Next::Many(query, edges) => {
                    visit(*query);
                    edges.values().for_each(|node| go(node, visit));
                }
            }
        }
        if let Some(root) = &self.root {
            go(root, visit);
        }
    }

    /// Calls `visit` with every leaf.
    pub fn for_each(&self, visit: &mut impl FnMut(&T)) {
        fn go<T>(node: &Node<T>, visit: &mut impl FnMut(&T)) {
            match &node.next {
                Next::Leaf(leaf) => visit(leaf),
                Next::Few(_, edges) => edges.iter().for_each(|(_, node)| go(node, visit)),
                Next::Many(_, edges) => edges.values().for_each(|node| go(node, visit)),
            }
        }
        if let Some(root) = &self.root {
            go(root, visit);
        }
    }
}

/// Adds a trace below a node; true when it is new.
fn insert<T>(mut node: &mut Node<T>, mut trace: &[Read], leaf: T) -> Result<bool, Fork> {
    loop {
        let same = node.run.iter().zip(trace).take_while(|(a, b)| a == b).count();
        if same < node.run.len() {
            let Some(found) = trace.get(same) else {
                return Err(Fork { expected: node.run[same].0, found: None });
            };
            if found.0 != node.run[same].0 {
                return Err(Fork { expected: node.run[same].0, found: Some(found.0) });
            }
            // The answers part here: cut the run and fork.
            let tail = node.run.split_off(same + 1);
            let (query, fingerprint) = node.run.pop().expect("the run is longer than what is the same");
            let next = std::mem::replace(&mut node.next, Next::Few(query, Vec::new()));
            let old = (fingerprint, Node { run: tail, next });
            let new = (found.1, Node { run: trace[same + 1..].to_vec(), next: Next::Leaf(leaf) });
            node.next = Next::Few(query, vec![old, new]);
            return Ok(true);
        }
        trace = &trace[same..];
        let query = next_query(&node.next);
        let read = match (&mut node.next, trace.first()) {
            (Next::Leaf(old), None) => {
                *old = leaf;
                return Ok(false);
            }
            (Next::Leaf(_), Some(read)) => return Err(Fork { expected: read.0, found: None }),
            (_, Some(read)) if read.0 == query => read,
            (_, other) => return Err(Fork { expected: query, found: other.map(|read| read.0) }),
        };
        trace = &trace[1..];
        if let Next::Few(_, edges) = &mut node.next
            && edges.len() == FEW
        {
            node.next = Next::Many(query, std::mem::take(edges).into_iter().collect());
        }
        let edge = match &mut node.next {
            Next::Leaf(_) => unreachable!("leaves have returned above"),
            Next::Few(_, edges) => match edges.iter().position(|(edge, _)| *edge == read.1) {
                Some(at) => &mut edges[at].1,
                None => {
                    edges.push((read.1, Node { run: trace.to_vec(), next: Next::Leaf(leaf) }));
                    return Ok(true);
                }
            },
            Next::Many(_, edges) => match edges.entry(read.1) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    new.insert(Node { run: trace.to_vec(), next: Next::Leaf(leaf) });
                    return Ok(true);
                }
            },
        };
        node = edge;
    }
}

fn next_query<T>(next: &Next<T>) -> QueryId {
    match next {
        Next::Leaf(_) => QueryId::MAX,
        Next::Few(query, _) | Next::Many(query, _) => *query,
    }
}

/// Cuts off everything below the point at which a trace disagrees with the tree on the next query.
fn cut<T>(node: &mut Node<T>, trace: &[Read]) {
    let same = node.run.iter().zip(trace).take_while(|(a, b)| a == b).count();
    let dead = |node: &mut Node<T>| node.next = Next::Few(QueryId::MAX, Vec::new());
    if same < node.run.len() {
        return dead(node);
    }
    match (&mut node.next, trace.get(same)) {
        (Next::Few(query, edges), Some(read)) if *query == read.0 => {
            if let Some((_, below)) = edges.iter_mut().find(|(edge, _)| *edge == read.1) {
                cut(below, &trace[same + 1..]);
            }
        }
        (Next::Many(query, edges), Some(read)) if *query == read.0 => {
            if let Some(below) = edges.get_mut(&read.1) {
                cut(below, &trace[same + 1..]);
            }
        }
        _ => dead(node),
    }
}

/// Takes a tree apart into its traces.
fn collect<T>(node: Node<T>, path: &mut Vec<Read>, out: &mut Vec<(Vec<Read>, T)>) {
    let depth = path.len();
    path.extend_from_slice(&node.run);
    match node.next {
        Next::Leaf(leaf) => out.push((path.clone(), leaf)),
        Next::Few(query, edges) => {
            for (fingerprint, below) in edges {
                path.push((query, fingerprint));
                collect(below, path, out);
                path.pop();
            }
        }
        Next::Many(query, edges) => {
            for (fingerprint, below) in edges {
                path.push((query, fingerprint));
                collect(below, path, out);
                path.pop();
            }
        }
    }
    path.truncate(depth);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fp(n: u128) -> Fingerprint {
        Fingerprint(n)
    }

    /// A pure function of answers: which query comes next is decided by the answers so far.
    fn trace_of(world: &[u128; 6]) -> Vec<Read> {
        let mut trace = vec![(0, fp(world[0]))];
        let mut at = 0;
        while trace.len() < 4 + (world[0] as usize % 2) {
            at = (at + 1 + world[at] as usize) % 6;
            trace.push((at as QueryId, fp(world[at])));
        }
        trace
    }

    proptest! {
        #[test]
        fn a_walk_finds_what_was_inserted_and_nothing_else(
            worlds in prop::collection::vec(prop::array::uniform6(0u128..12), 1..80)
        ) {
            let mut tree = TraceTree::default();
            for world in &worlds {
                let trace = trace_of(world);
                prop_assert_eq!(tree.insert(&trace, trace.clone()), Ok(()));
            }
            for world in &worlds {
                let found = tree.walk(|q| Some(fp(world[q as usize])));
                prop_assert_eq!(found, Some(trace_of(world)));
            }
            let mut distinct: Vec<_> = worlds.iter().map(trace_of).collect();
            distinct.sort();
            distinct.dedup();
            prop_assert_eq!(tree.len(), distinct.len());
            // Dropping a half leaves the other half.
            tree.retain(|trace| trace[0].1 .0 % 2 == 0);
            for world in &worlds {
                let found = tree.walk(|q| Some(fp(world[q as usize])));
                prop_assert_eq!(found.is_some(), world[0] % 2 == 0);
            }
        }
    }

    #[test]
    fn another_question_after_the_same_answers_is_a_fork() {
        let mut tree = TraceTree::default();
        tree.insert(&[(1, fp(1)), (2, fp(2))], 'a').unwrap();
        assert_eq!(tree.insert(&[(1, fp(1)), (3, fp(2))], 'b'), Err(Fork { expected: 2, found: Some(3) }));
        assert!(tree.insert(&[(1, fp(1))], 'b').is_err());
        tree.replace(&[(1, fp(1)), (3, fp(2))], 'b');
        assert_eq!(tree.walk(|q| Some(fp(if q == 1 { 1 } else { 2 }))), Some('b'));
        assert_eq!(tree.len(), 1);
    }
}
