//! What plugins changed, read off what is remembered: for status, for shadows, and for who wrote what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;
use trysail_sdk::{Diagnostic, Severity};

use crate::calls::Call;
use crate::engine::Engine;
use crate::node::Node;
use crate::terms::Effect;

/// What a plugin does at present, over all fragments that are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginEffects {
    /// Fragments that it was asked about.
    pub fragments: usize,
    /// Those of them that it changed, or, where it is only watched, would have changed.
    pub changed: usize,
    /// Some of what it changed: the call, and the fields.
    pub examples: Vec<(String, Vec<Effect>)>,
    /// Fields that another plugin wrote as well.
    pub conflicts: BTreeSet<Conflict>,
}

/// A field that another plugin wrote as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The other plugin.
    pub with: String,
    /// The item, a resource's name for instance.
    pub item: String,
    /// The field.
    pub path: String,
    /// Whether what this one wrote is sent: it comes after the other.
    pub wins: bool,
}

/// Calls of a plugin whose effects are kept as examples; fields of which it is kept that another wrote them.
const EXAMPLES: usize = 20;
/// How the code of conflicts reads.
pub const CONFLICT: &str = "plugin-conflict";

/// A plugin's name, without its digest.
fn name(plugin: &str) -> &str {
    plugin.split('@').next().unwrap_or(plugin)
}

impl Engine {
    /// What each plugin does at present.
    pub fn plugin_effects(&self) -> BTreeMap<String, PluginEffects> {
        let mut found: BTreeMap<String, PluginEffects> = BTreeMap::new();
        let mut met = BTreeSet::new();
        for node in self.plugin_nodes(&mut found) {
            let Call::Plugin { plugin, .. } = &node.memo.call else { continue };
            let of = found.entry(name(plugin).to_owned()).or_default();
            met.extend(meetings(&node).into_iter().map(|Meeting { later, earlier, item, path }| {
                (later.to_owned(), earlier.to_owned(), item.to_owned(), path.to_owned())
            }));
            of.fragments += 1;
            if !node.leaf.effects.list.is_empty() {
                of.changed += 1;
                if of.examples.len() < EXAMPLES {
                    of.examples.push((node.memo.call.to_string(), node.leaf.effects.list.clone()));
                }
            }
        }
        for (later, earlier, item, path) in met {
            for (plugin, with, wins) in [(&later, &earlier, true), (&earlier, &later, false)] {
                if let Some(of) = found.get_mut(plugin).filter(|of| of.conflicts.len() < EXAMPLES) {
                    let (with, item, path) = (with.clone(), item.clone(), path.clone());
                    of.conflicts.insert(Conflict { with, item, path, wins });
                }
            }
        }
        found
    }
}

impl Engine {
    /// The nodes of calls of plugins in force; each of these gets an entry in `found`.
    fn plugin_nodes(&self, found: &mut BTreeMap<String, PluginEffects>) -> Vec<Arc<Node>> {
        let table = self.hooks.load();
        let mut nodes = Vec::new();
        let mut unremembered = BTreeSet::new();
        for memo in self.memos.all() {
            let Call::Plugin { plugin, point, .. } = &memo.call else { continue };
            // What other versions did is past.
            if !table.get(point).is_some_and(|hooked| hooked.iter().any(|hooked| hooked.id == *plugin)) {
                continue;
            }
            found.entry(name(plugin).to_owned()).or_default();
            let n_before = nodes.len();
            memo.nodes.read().for_each(&mut |node| nodes.push(node.clone()));
            if nodes.len() == n_before {
                unremembered.insert(memo.id);
            }
        }
        // What was made while a revision came is served and not remembered: proxies alone have it.
        if !unremembered.is_empty() {
            let mut seen = FxHashSet::default();
            for root in self.proxies.roots() {
                held(&root, &unremembered, &mut seen, &mut nodes);
            }
        }
        nodes
    }
}

/// The nodes of these calls at and below a node, each once.
fn held(node: &Arc<Node>, calls: &BTreeSet<u32>, seen: &mut FxHashSet<*const Node>, found: &mut Vec<Arc<Node>>) {
    if !seen.insert(Arc::as_ptr(node)) {
        return;
    }
    if calls.contains(&node.memo.id) {
        found.push(node.clone());
    }
    node.children.iter().chain(&node.asked).for_each(|below| held(below, calls, seen, found));
}

/// A field that two plugins wrote.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Meeting<'a> {
    later: &'a str,
    earlier: &'a str,
    item: &'a str,
    path: &'a str,
}

/// What a node's plugin wrote, if it is sent.
fn sent(node: &Node) -> Option<(&str, &[Effect])> {
    match &node.memo.call {
        Call::Plugin { plugin, .. } if !node.leaf.effects.is_shadow => Some((name(plugin), &node.leaf.effects.list)),
        _ => None,
    }
}

/// The plugin's node that this plugin's was put on.
fn inner(node: &Node) -> Option<&Arc<Node>> {
    let Call::Plugin { inner: Some(inner), .. } = &node.memo.call else { return None };
    node.children.iter().chain(&node.asked).find(|below| below.memo.id == *inner)
}

/// Fields that a node's plugin and those before it wrote.
fn meetings(node: &Node) -> BTreeSet<Meeting<'_>> {
    let mut found = BTreeSet::new();
    let Some((later, list)) = sent(node).filter(|(_, list)| !list.is_empty()) else { return found };
    let mut below = inner(node);
    while let Some(node) = below {
        if let Some((earlier, others)) = sent(node) {
            found.extend(overlaps(list, others).map(|(effect, other)| {
                let path = if effect.path.len() >= other.path.len() { &effect.path } else { &other.path };
                Meeting { later, earlier, item: &effect.item, path }
            }));
        }
        below = inner(node);
    }
    found
}

/// Fields among these nodes that two plugins wrote: who won, and why.
pub(crate) fn conflicts(nodes: &[Arc<Node>]) -> Vec<Diagnostic> {
    let found: BTreeSet<Meeting<'_>> = nodes.iter().flat_map(|node| meetings(node)).collect();
    let diagnostic = |Meeting { later, earlier, item, path }: Meeting<'_>| Diagnostic {
        severity: Severity::Warning,
        object: format!("Plugin {earlier}"),
        field: String::new(),
        message: format!(
            "{path} of {item:?} is written by {later} as well, which wins because it comes after it (spec.order, then name)"
        ),
        code: CONFLICT.to_owned(),
    };
    found.into_iter().map(diagnostic).collect()
}

/// What plugins put under a name that is taken: of two resources of one name the first is served.
pub(crate) fn clashes(root: &Arc<Node>) -> Vec<Diagnostic> {
    let mut names = BTreeSet::new();
    let mut taken = BTreeSet::new();
    root.entries.for_each(&mut |item| {
        let name = &item.resource.name;
        if !names.insert(name.clone()) {
            taken.insert(name.clone());
        }
    });
    if taken.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    root.for_each(&mut |node| {
        let Call::Plugin { plugin, inner: None, .. } = &node.memo.call else { return };
        node.entries.for_each(&mut |item| {
            let name = &item.resource.name;
            let is_left_out = taken.contains(name) && !root.entries.is_first(name.as_str(), &item.resource);
            if is_left_out && seen.insert((plugin.clone(), name.clone())) {
                found.push(Diagnostic {
                    severity: Severity::Error,
                    object: format!("plugin {}", self::name(plugin)),
                    field: String::new(),
                    message: format!("{name:?} is left out: the name is taken"),
                    code: String::new(),
                });
            }
        });
    });
    found
}

/// Fields in both lists, of which one may hold the other. What is inserted beside each other is no conflict.
fn overlaps<'a>(later: &'a [Effect], earlier: &'a [Effect]) -> impl Iterator<Item = (&'a Effect, &'a Effect)> {
    later.iter().flat_map(move |effect| {
        let same = move |other: &&'a Effect| {
            let within = |a: &str, b: &str| {
                a == b || b.is_empty() || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'))
            };
            effect.item == other.item && (within(&effect.path, &other.path) || within(&other.path, &effect.path))
        };
        earlier.iter().filter(same).map(move |other| (effect, other))
    })
}

/// The plugins that changed something in these nodes, with the fields.
pub(crate) fn writers(nodes: &[Arc<Node>]) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for node in nodes {
        let Call::Plugin { plugin, .. } = &node.memo.call else { continue };
        if node.leaf.effects.is_shadow || node.leaf.effects.list.is_empty() {
            continue;
        }
        let paths = node.leaf.effects.list.iter().map(|effect| effect.path.clone());
        match found.iter_mut().find(|(known, _)| **known == **plugin) {
            Some((_, known)) => known.extend(paths),
            None => found.push((plugin.to_string(), paths.collect())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(item: &str, path: &str) -> Effect {
        Effect { item: item.into(), path: path.into(), before: None, after: None }
    }

    fn meet(later: &str, earlier: &str) -> bool {
        overlaps(&[effect("i", later)], &[effect("i", earlier)]).next().is_some()
    }

    #[test]
    fn fields_meet_where_one_holds_the_other() {
        assert!(meet("a/b", "a/b") && meet("a", "a/b") && meet("a/b", "a") && meet("", "a"));
        assert!(!meet("a/b", "a/c") && !meet("a", "ab") && !meet("filters/name=x", "filters/name=y"));
        assert!(overlaps(&[effect("i", "a")], &[effect("j", "a")]).next().is_none(), "another item");
    }
}
