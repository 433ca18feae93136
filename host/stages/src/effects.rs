//! What plugins changed, read off what is remembered: for status, for shadows, and for who wrote what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_sdk::{Diagnostic, Severity};

use crate::calls::{Call, CallId};
use crate::engine::Engine;
use crate::node::Node;
use crate::terms::{Effect, Effects};

/// What a plugin does at present, over all fragments that are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginEffects {
    /// Fragments that it was asked about.
    pub fragments: usize,
    /// Those of them that it changed, or, where it is only watched, would have changed.
    pub changed: usize,
    /// Some of what it changed: the call, and the fields.
    pub examples: Vec<(String, Vec<Effect>)>,
}

/// Calls of a plugin whose effects are kept as examples.
const EXAMPLES: usize = 20;
/// How the code of conflicts reads.
pub const CONFLICT: &str = "plugin-conflict";

/// A plugin's part in a fragment.
struct Share<'a> {
    id: CallId,
    plugin: &'a str,
    inner: Option<CallId>,
    effects: &'a Effects,
}

/// A plugin's name, without its digest.
fn name(plugin: &str) -> &str {
    plugin.split('@').next().unwrap_or(plugin)
}

impl Engine {
    /// What each plugin does at present.
    pub fn plugin_effects(&self) -> BTreeMap<String, PluginEffects> {
        let mut found: BTreeMap<String, PluginEffects> = BTreeMap::new();
        let table = self.hooks.load();
        for memo in self.memos.all() {
            let Call::Plugin { plugin, point, .. } = &memo.call else { continue };
            // What other versions did is past.
            if !table.get(point).is_some_and(|hooked| hooked.iter().any(|hooked| hooked.id == *plugin)) {
                continue;
            }
            let of = found.entry(name(plugin).to_owned()).or_default();
            memo.nodes.read().for_each(&mut |node| {
                of.fragments += 1;
                if !node.leaf.effects.list.is_empty() {
                    of.changed += 1;
                    if of.examples.len() < EXAMPLES {
                        of.examples.push((memo.call.to_string(), node.leaf.effects.list.clone()));
                    }
                }
            });
        }
        found
    }
}

/// Fields among these nodes that two plugins wrote: who won, and why.
pub(crate) fn conflicts(nodes: &[Arc<Node>]) -> Vec<Diagnostic> {
    let shares: Vec<Share<'_>> = nodes
        .iter()
        .filter_map(|node| match &node.memo.call {
            Call::Plugin { plugin, inner, .. } if !node.leaf.effects.is_shadow => {
                Some(Share { id: node.memo.id, plugin, inner: *inner, effects: &node.leaf.effects })
            }
            _ => None,
        })
        .collect();
    let by_call: BTreeMap<CallId, &Share<'_>> = shares.iter().map(|share| (share.id, share)).collect();
    let mut found = BTreeSet::new();
    for later in &shares {
        let mut inner = later.inner;
        while let Some(earlier) = inner.and_then(|id| by_call.get(&id)) {
            inner = earlier.inner;
            for (effect, other) in overlaps(&later.effects.list, &earlier.effects.list) {
                let path = if effect.path.len() >= other.path.len() { &effect.path } else { &other.path };
                found.insert((name(later.plugin), name(earlier.plugin), effect.item.as_str(), path.as_str()));
            }
        }
    }
    let diagnostic = |(winner, loser, item, path): (&str, &str, &str, &str)| Diagnostic {
        severity: Severity::Warning,
        object: format!("Plugin {loser}"),
        field: String::new(),
        message: format!(
            "{path} of {item:?} is written by {winner} as well, which wins because it comes after it (spec.order, then name)"
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
