//! The engine as the streams see it: views of resources for connected proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use trysail_model::view::Provenance;
use trysail_model::{Proxy, Translator, TypeUrl, View, Views, Watched};
use trysail_sdk::Diagnostic;

use crate::calls::Call;
use crate::effects;
use crate::engine::{Engine, Epoch};
use crate::eval::Cx;
use crate::fault::Fault;
use crate::memo::CallMemo;
use crate::metrics::add;
use crate::node::Node;
use crate::proxies::{Held, ProxyState};
use crate::queries::Question;

/// Sets of names found by address; above this all are looked up by content once more.
const MAX_SUBSCRIPTIONS: usize = 10_000;

/// A proxy's resources of one type, as the engine made them.
pub struct Served {
    /// The revision they are of.
    pub revision: u64,
    /// The root node; absent when a fault left nothing.
    pub node: Option<Arc<Node>>,
    /// Faults met; what they left is held or withheld.
    pub faults: Vec<Fault>,
}

impl Engine {
    /// The root call of what is watched of a type.
    pub(crate) fn root(&self, type_url: &str, watched: &Watched) -> Option<(&'static str, Arc<CallMemo>)> {
        let root = self.config.roots.iter().find(|root| root.type_url == type_url)?;
        let names = match watched {
            Watched::Names(names) if root.named => names,
            _ if root.named => return None,
            _ => return Some((root.type_url, self.memos.of(Call::stage(root.stage, root.function, &[])))),
        };
        let key = (root.type_url, Arc::as_ptr(names) as usize);
        if let Some((_, memo)) = self.subscriptions.read().get(&key) {
            return Some((root.type_url, memo.clone()));
        }
        let memo = self.memos.of(Call::Names {
            stage: root.stage.into(),
            function: root.function.into(),
            hook: root.hook.into(),
            names: names.clone(),
        });
        let mut subscriptions = self.subscriptions.write();
        if subscriptions.len() >= MAX_SUBSCRIPTIONS {
            subscriptions.clear();
        }
        subscriptions.insert(key, (Arc::downgrade(names), memo.clone()));
        Some((root.type_url, memo))
    }

    /// The resources of several types for a proxy, all at one epoch, and the proxy as of it.
    pub(crate) fn serve(
        self: &Arc<Self>,
        epoch: &Arc<Epoch>,
        proxy: &Proxy,
        wanted: &[(TypeUrl, Watched)],
    ) -> (Arc<Proxy>, Vec<Served>) {
        let _in_use = self.in_use.read_recursive();
        let roots: Vec<_> = wanted.iter().map(|(type_url, watched)| self.root(type_url.as_str(), watched)).collect();
        let types: Vec<&'static str> = roots.iter().map(|root| root.as_ref().map_or("", |(of, _)| of)).collect();
        let (state, held) = self.proxies.fetch(epoch, proxy, &types);
        let mut now = Vec::with_capacity(wanted.len());
        let served: Vec<Served> = roots
            .iter()
            .zip(held)
            .map(|(root, held)| {
                let Some((type_url, root)) = root else {
                    return Served { revision: epoch.revision, node: None, faults: Vec::new() };
                };
                if let Some(held) = held.as_ref().filter(|held| held.still(root, &state, epoch.revision)) {
                    add(&self.counters.hits);
                    let node = held.node.clone();
                    let gated = self.without_vain(epoch, &state, node.clone(), Some(&node));
                    if !Arc::ptr_eq(&gated, &node) {
                        now.push((*type_url, Held { node: gated.clone(), state: state.clone() }));
                    }
                    return Served { revision: epoch.revision, node: Some(gated), faults: Vec::new() };
                }
                let before = held.as_ref().map(|held| &held.node);
                let (node, faults) = self.evaluate(epoch, &state, root, before);
                let node = node.map(|node| self.without_vain(epoch, &state, node, before));
                // What is held on to was not made for this state, so it is not noted as if it were.
                now.extend(node.clone().map(|node| (*type_url, Held { node, state: state.clone() })));
                let node = node.or_else(|| held.map(|held| held.node));
                Served { revision: epoch.revision, node, faults }
            })
            .collect();
        if !now.is_empty() {
            self.proxies.served(proxy, now);
        }
        (state.proxy.clone(), served)
    }

    /// The node of a root, if a fault does not prevent it, and the faults met.
    pub(crate) fn evaluate(
        self: &Arc<Self>,
        epoch: &Arc<Epoch>,
        state: &Arc<ProxyState>,
        root: &Arc<CallMemo>,
        held: Option<&Arc<Node>>,
    ) -> (Option<Arc<Node>>, Vec<Fault>) {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let (epoch, proxy) = (epoch.clone(), state.clone());
        let mut cx = Cx { epoch, proxy, held: held.cloned(), stack: Vec::new(), faults: faults.clone() };
        let node = self.eval(&mut cx, root).map_err(|fault| faults.lock().push(fault)).ok();
        let faults = std::mem::take(&mut *faults.lock());
        (node, faults)
    }

    /// The resources of one type for a proxy at the present snapshot.
    pub fn resources(self: &Arc<Self>, proxy: &Proxy, type_url: &TypeUrl, watched: &Watched) -> Served {
        let epoch = self.epoch.load_full();
        let (_, served) = self.serve(&epoch, proxy, &[(type_url.clone(), watched.clone())]);
        served.into_iter().next().expect("one type was asked for")
    }

    /// The node of a call for a proxy at the present snapshot.
    pub(crate) fn node_of(self: &Arc<Self>, proxy: &Proxy, call: u32) -> Result<Arc<Node>, Fault> {
        let _in_use = self.in_use.read_recursive();
        self.eval(&mut self.cx(proxy), &self.memos.get(call))
    }

    /// A context for a proxy at the present snapshot.
    pub(crate) fn cx(self: &Arc<Self>, proxy: &Proxy) -> Cx {
        let epoch = self.epoch.load_full();
        let (state, _) = self.proxies.fetch(&epoch, proxy, &[]);
        Cx { epoch, proxy: state, held: None, stack: Vec::new(), faults: Arc::default() }
    }

    /// Calls `visit` with every node behind some nodes: what they put in place, and what they asked other calls for. Each leaf
    /// once, in order.
    fn behind(self: &Arc<Self>, proxy: &Proxy, nodes: &[Arc<Node>], mut visit: impl FnMut(&Arc<Node>)) {
        let _in_use = self.in_use.read_recursive();
        let mut seen = rustc_hash::FxHashSet::default();
        let mut todo: Vec<Arc<Node>> = nodes.iter().rev().cloned().collect();
        while let Some(node) = todo.pop() {
            if !seen.insert(Arc::as_ptr(&node.leaf)) {
                continue;
            }
            visit(&node);
            todo.extend(node.children.iter().rev().cloned());
            for (id, _) in node.leaf.reads.iter() {
                let Some(cell) = self.queries.find(*id) else { continue };
                todo.extend(cell.question.call().and_then(|call| self.node_of(proxy, call).ok()));
            }
        }
    }

    /// What the calls behind a proxy's resources have to say, and the reports about all of them, each thing once.
    pub fn diagnostics(self: &Arc<Self>, proxy: &Proxy, roots: &[Arc<Node>]) -> Vec<Diagnostic> {
        let mut found: Vec<Diagnostic> = Vec::new();
        let reports = self.config.reports.iter().map(|(stage, function)| {
            let call = self.memos.of(Call::stage(stage, function, &[]));
            self.node_of(proxy, call.id)
        });
        // A fault in one was counted and logged; it keeps nobody from the others.
        let nodes: Vec<Arc<Node>> = roots.iter().cloned().chain(reports.flatten()).collect();
        let mut by_plugins = Vec::new();
        self.behind(proxy, &nodes, |node| {
            found.extend(node.leaf.diagnostics.iter().cloned());
            found.extend(node.conflicts.iter().cloned());
            by_plugins.extend(matches!(node.memo.call, Call::Plugin { .. }).then(|| node.clone()));
        });
        found.extend(effects::conflicts(&by_plugins));
        found.extend(roots.iter().flat_map(effects::clashes));
        let mut known = BTreeSet::new();
        found.retain(|d| known.insert((d.object.clone(), d.field.clone(), d.message.clone())));
        found
    }

    /// Number of findings by their code, each thing once however many proxies it concerns.
    pub fn findings(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeSet::new();
        for memo in self.memos.all() {
            memo.nodes.read().for_each(&mut |node| {
                let coded = node.leaf.diagnostics.iter().filter(|said| !said.code.is_empty());
                found.extend(coded.map(|said| (said.code.clone(), said.object.clone(), said.message.clone())));
            });
        }
        let mut counted = BTreeMap::new();
        found.into_iter().for_each(|(code, ..)| *counted.entry(code).or_default() += 1);
        counted
    }

    /// Objects and stages behind a node.
    pub(crate) fn provenance_of(self: &Arc<Self>, proxy: &Proxy, node: &Arc<Node>) -> Provenance {
        let _in_use = self.in_use.read_recursive();
        let cx = self.cx(proxy);
        let epoch = cx.epoch.clone();
        let mut stages: Vec<String> = Vec::new();
        let mut objects = BTreeSet::new();
        let mut by_plugins = Vec::new();
        self.behind(proxy, std::slice::from_ref(node), |node| {
            match &node.memo.call {
                Call::Stage { stage, .. } if !stages.iter().any(|known| *known == **stage) => {
                    stages.push(stage.to_string());
                }
                Call::Plugin { .. } => by_plugins.push(node.clone()),
                _ => {}
            }
            for (id, _) in node.leaf.reads.iter() {
                let Some(cell) = self.queries.find(*id) else { continue };
                match &cell.question {
                    Question::Mesh(query) => {
                        objects.extend(self.mesh_answer(&epoch, &cell, query).objects.iter().cloned());
                    }
                    Question::Proxy(query) => {
                        objects.extend(cx.proxy.answer(&*epoch.snapshot, *id, query).objects.iter().cloned());
                    }
                    _ => {}
                }
            }
        });
        let plugins = effects::writers(&by_plugins);
        Provenance { stages, plugins, objects: objects.into_iter().collect() }
    }

    /// The node that made an item of a name, below a node: the one nearest to it.
    pub(crate) fn maker(node: &Arc<Node>, name: &str) -> Option<Arc<Node>> {
        node.entries.find(name)?;
        let below = node.children.iter().find_map(|child| Engine::maker(child, name));
        below.or_else(|| Some(node.clone()))
    }
}

/// The engine behind the [`Translator`] trait.
#[derive(Clone)]
pub struct EngineTranslator(pub Arc<Engine>);

impl Translator for EngineTranslator {
    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn views(&self, proxy: &Proxy, wanted: &[(TypeUrl, Watched)], held: &[Option<Arc<View>>]) -> Views {
        let epoch = self.0.epoch.load_full();
        let (proxy, served) = self.0.serve(&epoch, proxy, wanted);
        let views = served.into_iter().zip(held.iter().map(Some).chain(std::iter::repeat(None)));
        let views = views.map(|(served, held)| match (served.node, held.cloned().flatten()) {
            (Some(node), _) => node.entries.view(),
            // A fault at the very root, and nothing of an earlier push known to the engine.
            (None, Some(held)) if !served.faults.is_empty() => held,
            (None, _) => empty_view(),
        });
        Views { revision: epoch.revision, proxy, views: views.collect(), is_withheld: false }
    }

    fn provenance(&self, proxy: &Proxy, type_url: &TypeUrl, name: &str) -> Provenance {
        let root = self.0.config.roots.iter().find(|root| root.type_url == type_url.as_str());
        let watched = match root {
            Some(root) if root.named => Watched::Names(Arc::new([name.into()].into())),
            _ => Watched::Wildcard,
        };
        let served = self.0.resources(proxy, type_url, &watched);
        let maker = served.node.as_ref().and_then(|node| Engine::maker(node, name));
        maker.map(|node| self.0.provenance_of(proxy, &node)).unwrap_or_default()
    }

    fn forget(&self, proxy: &Proxy) {
        self.0.proxies.forget(proxy);
    }
}

fn empty_view() -> Arc<View> {
    static EMPTY: std::sync::OnceLock<Arc<View>> = std::sync::OnceLock::new();
    let empty = || Arc::new(View { id: 0, resources: Vec::new(), fingerprint: trysail_model::Fingerprint::NONE });
    EMPTY.get_or_init(empty).clone()
}
