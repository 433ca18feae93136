//! Finished items in order, in lists that nodes share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use trysail_model::{Fingerprint, Resource, View};
use trysail_sdk::facts;
use trysail_sdk::prost::Message as _;

use crate::gate::{Need, Waits};

/// A message, finished.
#[derive(Clone, Debug)]
pub struct Item {
    /// Name (or key), bytes and their fingerprint.
    pub resource: Arc<Resource>,
    /// What it claims among its siblings.
    pub claims: Arc<[String]>,
    /// What Envoy waits for once it has it.
    pub refs: Arc<[String]>,
}

/// One entry of a node.
#[derive(Clone)]
pub enum NodeEntry {
    /// An item.
    Item(Item),
    /// All items of another node, whose list is shared.
    Include(Entries),
}

/// The entries of a node, shared.
pub type Entries = Arc<EntryList>;

/// Items in order, some in shared sub-lists.
#[derive(Default)]
pub struct EntryList {
    /// The entries.
    pub entries: Vec<NodeEntry>,
    /// Fingerprint over names, versions, claims, references and order.
    pub fingerprint: Fingerprint,
    /// Number of items, sub-lists included.
    pub n_items: usize,
    /// Some item has claims, which siblings elsewhere may conflict with.
    pub(super) has_claims: bool,
    /// Some item waits for another resource.
    pub(super) has_refs: bool,
    /// What is left out of it, told by what the messages around need of it.
    pub(super) lacks: Need,
    waits: OnceLock<Arc<Waits>>,
    view: OnceLock<Arc<View>>,
}

static NEXT_VIEW: AtomicU64 = AtomicU64::new(1);

impl EntryList {
    /// A list of which nothing is left out here.
    fn new(entries: Vec<NodeEntry>) -> Entries {
        EntryList::lacking(entries, Need::Nothing)
    }

    pub(super) fn lacking(entries: Vec<NodeEntry>, mut lacks: Need) -> Entries {
        let mut hasher = blake3::Hasher::new();
        let (mut n_items, mut has_claims, mut has_refs) = (0, false, false);
        for entry in &entries {
            match entry {
                NodeEntry::Item(item) => {
                    hasher.update(&(item.resource.name.as_str().len() as u64).to_le_bytes());
                    hasher.update(item.resource.name.as_str().as_bytes());
                    hasher.update(&item.resource.version.to_bytes());
                    for claim in item.claims.iter().chain(item.refs.iter()) {
                        hasher.update(&(claim.len() as u64).to_le_bytes());
                        hasher.update(claim.as_bytes());
                    }
                    n_items += 1;
                    has_claims |= !item.claims.is_empty();
                    has_refs |= !item.refs.is_empty();
                }
                NodeEntry::Include(list) => {
                    hasher.update(b"include");
                    hasher.update(&list.fingerprint.to_bytes());
                    n_items += list.n_items;
                    has_claims |= list.has_claims;
                    has_refs |= list.has_refs;
                    lacks = lacks.max(list.lacks);
                }
            }
        }
        // "No item" is the absence of an answer, wherever it comes from.
        let fingerprint = if n_items == 0 { Fingerprint::NONE } else { Fingerprint::from_hash(&hasher.finalize()) };
        let (waits, view) = (OnceLock::new(), OnceLock::new());
        Arc::new(EntryList { entries, fingerprint, n_items, has_claims, has_refs, lacks, waits, view })
    }

    /// A list of these items.
    pub(crate) fn of_items(items: impl IntoIterator<Item = Item>) -> Entries {
        EntryList::new(items.into_iter().map(NodeEntry::Item).collect())
    }

    /// Would a message around it be the same with the other?
    pub(crate) fn looks_like(&self, other: &EntryList) -> bool {
        self.fingerprint == other.fingerprint && self.lacks == other.lacks
    }

    /// What the items wait for; `None` when they wait for nothing.
    pub(crate) fn waits(&self) -> Option<&Arc<Waits>> {
        let mut waiting = self.entries.iter().filter(|entry| match entry {
            NodeEntry::Item(item) => !item.refs.is_empty(),
            NodeEntry::Include(list) => list.has_refs,
        });
        match (waiting.next()?, waiting.next()) {
            // A proxy's own part waits for nothing: the shared part's names are shared as well.
            (NodeEntry::Include(only), None) => only.waits(),
            _ => Some(self.waits.get_or_init(|| Arc::new(Waits::of(self)))),
        }
    }

    /// Calls `visit` with each item in order.
    pub fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a Item)) {
        for entry in &self.entries {
            match entry {
                NodeEntry::Item(item) => visit(item),
                NodeEntry::Include(list) => list.for_each(visit),
            }
        }
    }

    /// The bytes of all items, one after the other: the answer to a derived query. `None` without items.
    pub fn concatenated(&self) -> Option<Bytes> {
        let mut pieces = Vec::new();
        self.for_each(&mut |item| pieces.push(item.resource.body.to_bytes()));
        match pieces.len() {
            0 => None,
            1 => pieces.pop(),
            _ => Some(pieces.concat().into()),
        }
    }

    /// The items one by one, as `facts.v1.Items`. `None` without items.
    pub fn each(&self) -> Option<Bytes> {
        let mut items = Vec::with_capacity(self.n_items);
        self.for_each(&mut |item| {
            items.push(facts::items::Item {
                key: item.resource.name.as_str().to_owned(),
                message: item.resource.body.to_bytes().into(),
                claims: item.claims.to_vec(),
                refs: item.refs.to_vec(),
            });
        });
        (!items.is_empty()).then(|| facts::Items { items }.encode_to_vec().into())
    }

    /// The items as resources sorted by name; of two with one name the first stays.
    pub fn view(&self) -> Arc<View> {
        let build = || {
            let mut resources = Vec::with_capacity(self.n_items);
            self.for_each(&mut |item| resources.push(item.resource.clone()));
            resources.sort_by(|a: &Arc<Resource>, b| a.name.cmp(&b.name));
            resources.dedup_by(|later, first| later.name == first.name);
            let id = NEXT_VIEW.fetch_add(1, Ordering::Relaxed);
            let mut hasher = blake3::Hasher::new();
            for resource in &resources {
                hasher.update(&(resource.name.as_str().len() as u64).to_le_bytes());
                hasher.update(resource.name.as_str().as_bytes());
                hasher.update(&resource.version.to_bytes());
            }
            Arc::new(View { id, resources, fingerprint: Fingerprint::from_hash(&hasher.finalize()) })
        };
        self.view.get_or_init(build).clone()
    }

    /// The resource of a name, found in the [`view`](EntryList::view).
    pub fn by_name(&self, name: &str) -> Option<Arc<Resource>> {
        let view = self.view();
        let at = view.resources.binary_search_by(|resource| resource.name.as_str().cmp(name)).ok()?;
        Some(view.resources[at].clone())
    }

    /// Is this the resource that is served under the name, as the first that has it?
    pub(crate) fn is_first(&self, name: &str, resource: &Arc<Resource>) -> bool {
        self.find(name).is_some_and(|first| Arc::ptr_eq(&first.resource, resource))
    }

    /// The item of a name.
    pub fn find(&self, name: &str) -> Option<&Item> {
        let mut found = None;
        self.for_each(&mut |item| {
            if found.is_none() && item.resource.name.as_str() == name {
                found = Some(item);
            }
        });
        found
    }
}
