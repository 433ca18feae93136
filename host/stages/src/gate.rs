//! The gate: what Envoy would refuse, or wait for in vain, is not sent.
//!
//! Each message is judged when its leaf is made and never again. What it waits for (a cluster for its endpoints, a listener
//! for its routes) is judged on the finished list, because only the whole plan says what there will be:
//!
//! ```text
//! clusters/all for a proxy ──▶ items and what they wait for ──▶ endpoints/cluster of these names, for the same proxy
//!                                                                 └─ a name without an item: what waits for it is held back
//! ```
//!
//! The call of the names is the very one that the proxy will subscribe to, so nothing is computed for the check alone, and while
//! nothing changes it is one look-up.
//!
//! An awaited resource that is not there makes Envoy warm the cluster or listener for ever, and at its start everything behind
//! it. So the subscriber keeps what it was last served under that name; without anything to keep, the cluster or listener is
//! left out: the smallest unit that Envoy can live without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use trysail_model::{Fingerprint, ResourceName, Watched};
use trysail_sdk::{Diagnostic, Severity};

use crate::engine::{Engine, Epoch, Names};
use crate::node::{EntryList, Item, Node};
use crate::proxies::ProxyState;

/// What the gate has to say of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why Envoy would refuse it. Empty when it would not.
    pub objections: Vec<String>,
    /// What it waits for once it has it, `rds:80`, whether its maker said so or not.
    pub refs: Vec<String>,
    /// What it claims for itself alone among its siblings, whether its maker said so or not.
    pub claims: Vec<String>,
}

/// Judges a message: its type's full name and its bytes. A hole that is yet to be filled stands in them as a field without
/// meaning, of a number that [`hole`] makes.
pub type Gate = dyn Fn(&str, &[u8]) -> Verdict + Send + Sync;

/// Numbers from here on, which no message uses, stand for holes: the number of the field that is to be filled added, or 0 for a
/// hole whose content is fields itself.
pub const HOLES: u32 = 400_000_000;

/// The field that stands for a hole.
pub(crate) fn hole(field: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(6);
    // A varint of value 0.
    let mut tag = u64::from(HOLES.saturating_add(field)) << 3;
    while tag >= 0x80 {
        bytes.push(u8::try_from(tag & 0x7f).expect("seven bits") | 0x80);
        tag >>= 7;
    }
    bytes.push(u8::try_from(tag).expect("what is left is less than 0x80"));
    bytes.push(0);
    bytes
}

/// What a message cannot do without of those that a function makes for its holes, when Envoy would refuse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing: a route configuration stands without one of its routes.
    #[default]
    Nothing,
    /// At least one: a listener without any filter chain is refused.
    One,
    /// Each: a filter chain without its last filter is refused, and would not do what it is for.
    Each,
}

/// How diagnostics begin whose cause the gate found.
pub const FOUND: &str = "envoy would ";

/// A diagnostic of the gate.
pub(crate) fn found(item: &str, what: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        object: item.to_owned(),
        field: String::new(),
        message: format!("{FOUND}{what}"),
        code: String::new(),
    }
}

/// What the items of a list wait for, by the prefix of the type: the names, one allocation for all who wait for the same.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<Box<str>, Names>);

impl Waits {
    /// What these items wait for.
    pub(crate) fn of(list: &EntryList) -> Waits {
        let mut by_prefix: BTreeMap<&str, BTreeSet<ResourceName>> = BTreeMap::new();
        list.for_each(&mut |item| {
            for (prefix, name) in item.refs.iter().map(|reference| parts(reference)) {
                by_prefix.entry(prefix).or_default().insert(name.into());
            }
        });
        Waits(by_prefix.into_iter().map(|(prefix, names)| (prefix.into(), Arc::new(names))).collect())
    }
}

/// `rds:80` as the type's prefix and the name.
fn parts(reference: &str) -> (&str, &str) {
    reference.split_once(':').unwrap_or(("", reference))
}

/// Nodes without what waits in vain, by the node they were made from, what is missing, and what the subscriber had: proxies
/// that share these share the outcome. The nodes are kept, so that their addresses stay theirs.
pub(crate) type Gated = FxHashMap<(usize, Fingerprint, usize), (Arc<Node>, Option<Arc<Node>>, Arc<Node>)>;

/// Outcomes remembered; above this all are made once more.
const MAX_GATED: usize = 1000;

impl Engine {
    /// The node without the items that wait for what nobody makes; the node itself when there are none. `held` is what the
    /// subscriber was last served.
    pub(crate) fn without_vain(
        self: &Arc<Self>,
        epoch: &Arc<Epoch>,
        proxy: &Arc<ProxyState>,
        node: Arc<Node>,
        held: Option<&Arc<Node>>,
    ) -> Arc<Node> {
        let Some(waits) = node.entries.waits() else { return node };
        let mut missing: BTreeSet<String> = BTreeSet::new();
        for (prefix, names) in &waits.0 {
            self.missing(epoch, proxy, prefix, names, &mut missing);
        }
        if missing.is_empty() {
            return node;
        }
        let key = (
            Arc::as_ptr(&node) as usize,
            Fingerprint::of_parts(missing.iter().map(String::as_bytes)),
            held.map_or(0, |held| Arc::as_ptr(held) as usize),
        );
        if let Some((_, _, known)) = self.gated.lock().get(&key) {
            return known.clone();
        }
        let gated = self.gate(&node, &missing, held);
        let mut known = self.gated.lock();
        if known.len() >= MAX_GATED {
            known.clear();
        }
        known.entry(key).or_insert((node, held.cloned(), gated)).2.clone()
    }

    /// Adds those of the names that have no item, with their prefix.
    fn missing(
        self: &Arc<Self>,
        epoch: &Arc<Epoch>,
        proxy: &Arc<ProxyState>,
        prefix: &str,
        names: &Names,
        missing: &mut BTreeSet<String>,
    ) {
        let all = || names.iter().map(|name| format!("{prefix}:{name}"));
        let root = self.config.roots.iter().find(|root| root.reference == prefix && root.named);
        let memo = root.and_then(|root| self.root(root.type_url, &Watched::Names(names.clone())));
        let Some((type_url, memo)) = memo else { return missing.extend(all()) };
        // A fault leaves there what the subscriber was last served of it; and what it was served tells mostly all.
        let held = self.proxies.served_of(&proxy.proxy, type_url);
        if held.as_ref().is_some_and(|held| held.still(&memo, proxy, epoch.revision) && held.node.is_complete(names)) {
            return;
        }
        match self.evaluate(epoch, proxy, &memo, held.as_ref().map(|held| &held.node)).0 {
            Some(node) if node.is_complete(names) => {}
            Some(node) => missing.extend(absent(&node, names).map(|name| format!("{prefix}:{name}"))),
            None => missing.extend(all()),
        }
    }

    fn gate(&self, node: &Arc<Node>, missing: &BTreeSet<String>, held: Option<&Arc<Node>>) -> Arc<Node> {
        let mut kept: Vec<Item> = Vec::with_capacity(node.entries.n_items);
        let mut conflicts = node.conflicts.clone();
        node.entries.for_each(&mut |item| {
            let Some(vain) = item.refs.iter().find(|reference| missing.contains(*reference)) else {
                return kept.push(item.clone());
            };
            let name = item.resource.name.as_str();
            let why = format!("wait for ever for {vain}, which nothing makes");
            tracing::error!(item = name, "held back: envoy would {why}");
            conflicts.push(found(name, &why));
            if !self.config.hold_back {
                kept.push(item.clone());
            } else if let Some(good) = held.and_then(|held| held.entries.find(name)) {
                kept.push(good.clone());
            }
        });
        let entries = EntryList::of_items(kept);
        // Equal lists are one list, so that nothing looks new; and what was made from the same stays as it is.
        let same = held.filter(|held| held.entries.fingerprint == entries.fingerprint);
        match same {
            Some(held) if Arc::ptr_eq(&held.leaf, &node.leaf) && held.conflicts == conflicts => held.clone(),
            Some(held) => Arc::new(node.with_entries(held.entries.clone(), conflicts)),
            None => Arc::new(node.with_entries(entries, conflicts)),
        }
    }
}

/// The names without an item of theirs, in a node of the call of these names.
pub(crate) fn absent<'a>(node: &'a Node, names: &'a Names) -> impl Iterator<Item = &'a ResourceName> {
    let child = |at: usize| node.children.get(at);
    let is_there = move |at: usize, name: &str| child(at).is_some_and(|child| child.entries.find(name).is_some());
    names.iter().enumerate().filter(move |(at, name)| !is_there(*at, name.as_str())).map(|(_, name)| name)
}
