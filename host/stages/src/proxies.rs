//! Connected proxies: what the snapshot knows of each, and what each was last served.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};
use trysail_model::{Affected, Answer, Fingerprint, Proxies, Proxy, Query, Snapshot};

use crate::engine::Epoch;
use crate::memo::CallMemo;
use crate::node::Node;
use crate::queries::QueryId;

/// A proxy with the answers about it, which are pure in the proxy and so hold as long as it does.
pub struct ProxyState {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    answers: RwLock<FxHashMap<QueryId, Arc<Answer>>>,
}

impl ProxyState {
    /// A proxy of which nothing was asked yet.
    pub fn new(proxy: Arc<Proxy>) -> Self {
        ProxyState { proxy, answers: RwLock::default() }
    }

    /// The answer to a query about the proxy.
    pub fn answer(&self, snapshot: &dyn Snapshot, id: QueryId, query: &Query) -> Arc<Answer> {
        if let Some(known) = self.answers.read().get(&id) {
            return known.clone();
        }
        let answer = Arc::new(snapshot.answer_about(&self.proxy, query));
        self.answers.write().insert(id, answer.clone());
        answer
    }

    /// The answer's fingerprint, if it was asked before.
    pub fn known(&self, id: QueryId) -> Option<Fingerprint> {
        self.answers.read().get(&id).map(|answer| answer.fingerprint)
    }
}

/// What a proxy was served of a type, with the state it was made for: as long as both hold, so does the node, and nobody
/// has to walk to it again.
#[derive(Clone)]
pub(crate) struct Held {
    pub node: Arc<Node>,
    pub state: Arc<ProxyState>,
}

impl Held {
    /// Is it what evaluating this root for this state at this revision would find?
    pub fn still(&self, root: &Arc<CallMemo>, state: &Arc<ProxyState>, revision: u64) -> bool {
        Arc::ptr_eq(&self.state, state)
            && Arc::ptr_eq(&self.node.memo, root)
            && !self.node.degraded
            && self.node.holds(revision)
    }
}

/// The connected proxies.
#[derive(Default)]
pub(crate) struct ProxyTable(Mutex<Table>);

#[derive(Default)]
struct Table {
    connected: FxHashMap<Arc<str>, Connected>,
    moved: Moved,
}

struct Connected {
    /// The proxy as of a revision.
    state: Arc<ProxyState>,
    known_at: u64,
    /// What it sent of itself.
    metadata: Arc<Map<String, Value>>,
    /// By type; a handful.
    served: Vec<(&'static str, Held)>,
}

/// At which revision what is known of proxies last moved.
#[derive(Default)]
struct Moved {
    all: u64,
    namespaces: FxHashMap<String, u64>,
    addresses: FxHashMap<String, u64>,
}

/// Above this number of entries single proxies are no longer told apart.
const MAX_MOVED: usize = 10_000;

impl Moved {
    fn mark(&mut self, proxies: &Proxies, revision: u64) {
        match proxies {
            Proxies::All => self.all = revision,
            Proxies::Namespace(namespace) => drop(self.namespaces.insert(namespace.clone(), revision)),
            Proxies::Address(address) => drop(self.addresses.insert(address.clone(), revision)),
        }
        if self.namespaces.len() + self.addresses.len() > MAX_MOVED {
            *self = Moved { all: revision, ..Moved::default() };
        }
    }

    fn last(&self, proxy: &Proxy) -> u64 {
        let namespace = self.namespaces.get(&*proxy.namespace).copied().unwrap_or_default();
        let addresses = proxy.addresses.iter().filter_map(|address| self.addresses.get(address)).max();
        self.all.max(namespace).max(addresses.copied().unwrap_or_default())
    }
}

impl ProxyTable {
    /// Notes the proxies that a change may have moved, before anyone sees the new revision.
    pub fn mark(&self, affected: &[Affected], revision: u64) {
        let mut table = self.0.lock();
        for change in affected {
            if let Affected::Proxies(proxies) = change {
                table.moved.mark(proxies, revision);
            }
        }
    }

    /// The roots of all that proxies were last served.
    pub fn roots(&self) -> Vec<Arc<Node>> {
        let table = self.0.lock();
        let all = table.connected.values().flat_map(|entry| &entry.served);
        all.map(|(_, held)| held.node.clone()).collect()
    }

    /// What a proxy was last served of a type.
    pub fn served_of(&self, proxy: &Proxy, type_url: &'static str) -> Option<Held> {
        let table = self.0.lock();
        table.connected.get(&proxy.node_id).and_then(|entry| entry.held(&[type_url]).pop().flatten())
    }

    /// The proxy's state at an epoch, and what it was last served of each of these types.
    pub fn fetch(&self, epoch: &Epoch, proxy: &Proxy, types: &[&'static str]) -> (Arc<ProxyState>, Vec<Option<Held>>) {
        let mut known = None;
        {
            let mut table = self.0.lock();
            let Table { connected, moved } = &mut *table;
            if let Some(entry) = connected.get_mut(&proxy.node_id) {
                let same = Arc::ptr_eq(&entry.metadata, &proxy.metadata) || entry.metadata == proxy.metadata;
                // A state is of every revision since the proxy last moved.
                if same && moved.last(&entry.state.proxy) <= entry.known_at.min(epoch.revision) {
                    entry.known_at = entry.known_at.max(epoch.revision);
                    return (entry.state.clone(), entry.held(types));
                }
                known = same.then(|| entry.state.clone());
            }
        }
        // Not under the lock: others need not wait for a scan of the registry.
        let state = match known {
            Some(state) => match epoch.snapshot.refresh(&state.proxy) {
                Some(fresh) => Arc::new(ProxyState::new(Arc::new(fresh))),
                None => state,
            },
            None => {
                let fresh = epoch.snapshot.refresh(proxy).unwrap_or_else(|| proxy.clone());
                Arc::new(ProxyState::new(Arc::new(fresh)))
            }
        };
        let mut table = self.0.lock();
        let entry = table.connected.entry(proxy.node_id.clone()).or_insert_with(|| Connected {
            state: state.clone(),
            known_at: epoch.revision,
            metadata: proxy.metadata.clone(),
            served: Vec::new(),
        });
        entry.state = state.clone();
        entry.known_at = epoch.revision;
        entry.metadata = proxy.metadata.clone();
        (state, entry.held(types))
    }

    /// Notes what a proxy was served.
    pub fn served(&self, proxy: &Proxy, now: impl IntoIterator<Item = (&'static str, Held)>) {
        let mut table = self.0.lock();
        let Some(entry) = table.connected.get_mut(&proxy.node_id) else { return };
        for (type_url, held) in now {
            match entry.served.iter_mut().find(|(known, _)| *known == type_url) {
                Some((_, before)) => *before = held,
                None => entry.served.push((type_url, held)),
            }
        }
    }

    /// Forgets a proxy.
    pub fn forget(&self, proxy: &Proxy) {
        self.0.lock().connected.remove(&proxy.node_id);
    }
}

impl Connected {
    fn held(&self, types: &[&'static str]) -> Vec<Option<Held>> {
        let of = |wanted: &&str| self.served.iter().find(|(known, _)| known == wanted).map(|(_, held)| held.clone());
        types.iter().map(of).collect()
    }
}
