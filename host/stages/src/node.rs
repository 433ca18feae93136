//! Leaves (what a call returned) and nodes (a leaf with the output of the calls it refers to put in place).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustc_hash::FxHashSet;
use trysail_model::rope::RopeBuilder;
use trysail_model::{Fingerprint, Resource, ResourceName, Rope, View};
use trysail_sdk::prost::Message as _;
use trysail_sdk::{Diagnostic, Entry, Output, Part, facts};

use crate::engine::Names;
use crate::gate::{self, Need, Verdict, Waits};
use crate::memo::CallMemo;
use crate::trace::Read;

/// What a run of a call returned, with the trace that led to it. Shared by all proxies whose answers agree.
pub struct Leaf {
    /// What the call read, in order.
    pub reads: Arc<[Read]>,
    /// The calls that the output refers to, in order.
    pub calls: Vec<Arc<CallMemo>>,
    /// What the stage has to say, with what the gate found.
    pub diagnostics: Vec<Diagnostic>,
    /// Items left out because Envoy would refuse them.
    pub n_refused: usize,
    /// Stands in for an output after a fault that may be over without any read moving; nodes of it are not remembered.
    pub passing: bool,
    entries: Vec<LeafEntry>,
    /// What the messages around need of these.
    need: Need,
    /// The entries of a leaf without calls; every node of it has the same.
    finished: OnceLock<Entries>,
}

enum LeafEntry {
    Item(LeafItem),
    Include(usize),
}

struct LeafItem {
    name: ResourceName,
    parts: Vec<LeafPart>,
    claims: Arc<[String]>,
    refs: Arc<[String]>,
}

enum LeafPart {
    Bytes(Bytes),
    Open(u32),
    Close,
    Call(usize, u32),
}

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
    has_claims: bool,
    /// Some item waits for another resource.
    has_refs: bool,
    /// What is left out of it, told by what the messages around need of it.
    lacks: Need,
    waits: OnceLock<Arc<Waits>>,
    view: OnceLock<Arc<View>>,
}

static NEXT_VIEW: AtomicU64 = AtomicU64::new(1);

impl EntryList {
    /// A list of which nothing is left out here.
    fn new(entries: Vec<NodeEntry>) -> Entries {
        EntryList::lacking(entries, Need::Nothing)
    }

    fn lacking(entries: Vec<NodeEntry>, mut lacks: Need) -> Entries {
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

/// Why an output cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOutput {
    /// `close` without `open`, or the reverse.
    #[error("item {0:?} has unbalanced open and close parts")]
    Unbalanced(String),
    /// A field number that protobuf does not have.
    #[error("item {0:?} names field number {1}, which is out of range")]
    Field(String, u32),
}

/// How the messages of a leaf are judged.
pub struct Judging<'a> {
    /// Given a message's own bytes, with fields that stand for its holes.
    pub judge: &'a dyn Fn(&[u8]) -> Verdict,
    /// What the messages around need of these.
    pub need: Need,
    /// What the judge objects to is left out; else it is only reported.
    pub drop_invalid: bool,
}

impl Judging<'_> {
    /// All pass.
    pub fn none() -> Judging<'static> {
        Judging { judge: &|_| Verdict::default(), need: Need::Nothing, drop_invalid: false }
    }
}

impl Leaf {
    /// Takes an output in. `intern` turns references into calls. What the judge objects to is reported, and left out when it
    /// is to be.
    ///
    /// # Errors
    /// When the parts do not form messages.
    pub fn new(
        output: Output,
        reads: Arc<[Read]>,
        mut intern: impl FnMut(&trysail_sdk::CallRef) -> Arc<CallMemo>,
        judging: &Judging<'_>,
    ) -> Result<Leaf, BadOutput> {
        let Judging { judge, need, drop_invalid } = *judging;
        let mut calls = Vec::new();
        let mut entries = Vec::with_capacity(output.entries.len());
        let mut diagnostics = output.diagnostics;
        let mut n_refused = 0;
        let mut claimed: BTreeMap<String, String> = BTreeMap::new();
        for entry in output.entries {
            let item = match entry {
                Entry::Include(call) => {
                    calls.push(intern(&call));
                    entries.push(LeafEntry::Include(calls.len() - 1));
                    continue;
                }
                Entry::Item(item) => item,
            };
            let parts = item.message.parts;
            check(&item.key, &parts)?;
            let own = own_bytes(&parts);
            let whole = !parts.iter().any(|part| matches!(part, Part::Call(_)));
            let verdict = judge(&own);
            // What the bytes say counts, where they say anything of the kind.
            let kind = |claim: &str| claim.split(':').next().map(str::to_owned);
            let mut claims = item.claims;
            claims.retain(|said| !verdict.claims.iter().any(|found| kind(found) == kind(said)));
            let claims = united(claims, verdict.claims);
            if let Some((claim, other)) = claims.iter().find_map(|claim| Some((claim, claimed.get(claim)?))) {
                diagnostics.push(conflict(&item.key, claim, other));
                if drop_invalid {
                    continue;
                }
            }
            let refused = !verdict.objections.is_empty();
            let refusal = |why: String| gate::found(&item.key, &format!("refuse it: {why}"));
            diagnostics.extend(verdict.objections.into_iter().map(refusal));
            if refused && drop_invalid {
                n_refused += 1;
                continue;
            }
            for claim in &claims {
                claimed.entry(claim.clone()).or_insert_with(|| item.key.clone());
            }
            let parts = if whole {
                vec![LeafPart::Bytes(own.into())]
            } else {
                let part = |part: Part| match part {
                    Part::Bytes(bytes) => LeafPart::Bytes(bytes.into()),
                    Part::Open(number) => LeafPart::Open(number),
                    Part::Close => LeafPart::Close,
                    Part::Call(call) => {
                        calls.push(intern(&call));
                        LeafPart::Call(calls.len() - 1, call.field)
                    }
                };
                parts.into_iter().map(part).collect()
            };
            entries.push(LeafEntry::Item(LeafItem {
                name: item.key.into(),
                parts,
                claims: claims.into(),
                refs: united(item.refs, verdict.refs).into(),
            }));
        }
        Ok(Leaf { reads, calls, diagnostics, n_refused, passing: false, entries, need, finished: OnceLock::new() })
    }

    /// Has items without calls share the segments of what they were made from, which `before` holds by name: a patch of a few bytes
    /// in a listener leaves all else of it shared with the listeners of other proxies.
    pub fn share(&mut self, before: &[Arc<Resource>]) {
        for entry in &mut self.entries {
            let LeafEntry::Item(item) = entry else { continue };
            let [LeafPart::Bytes(own)] = &item.parts[..] else { continue };
            if let Some(source) = before.iter().find(|source| source.name == item.name) {
                item.parts = source.body.share_with(own).into_iter().map(LeafPart::Bytes).collect();
            }
        }
    }

    /// Is call `i` an inclusion (and not a hole in an item)?
    pub fn includes(&self, i: usize) -> bool {
        self.entries.iter().any(|entry| matches!(entry, LeafEntry::Include(at) if *at == i))
    }

    /// Puts the children's items in place. `old` is an earlier node of the same leaf, whose items are taken over where
    /// nothing below them changed. Of items from different calls with conflicting claims the later one is reported, and left
    /// out when `drop_invalid`.
    pub fn assemble(&self, children: &[Arc<Node>], drop_invalid: bool, diagnostics: &mut Vec<Diagnostic>) -> Entries {
        if self.calls.is_empty() {
            return self.finished.get_or_init(|| self.list(children, true, &mut Vec::new())).clone();
        }
        if let [LeafEntry::Include(at)] = &self.entries[..] {
            return children[*at].entries.clone();
        }
        let list = self.list(children, drop_invalid, diagnostics);
        if list.has_claims && children.iter().any(|child| child.entries.has_claims) {
            without_conflicts(&list, drop_invalid, diagnostics)
        } else {
            list
        }
    }

    fn list(&self, children: &[Arc<Node>], drop_invalid: bool, diagnostics: &mut Vec<Diagnostic>) -> Entries {
        let mut lacks = if self.n_refused > 0 { self.need } else { Need::Nothing };
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let item = match entry {
                LeafEntry::Include(at) => {
                    entries.push(NodeEntry::Include(children[*at].entries.clone()));
                    continue;
                }
                LeafEntry::Item(item) => item,
            };
            if item.cannot_be(children) {
                let why = "refuse it without what was left out of it";
                diagnostics.push(gate::found(item.name.as_str(), why));
                lacks = lacks.max(self.need);
                continue;
            }
            let body = item.assemble(children, drop_invalid, diagnostics);
            let version = body.fingerprint();
            let resource = Arc::new(Resource { name: item.name.clone(), body, version });
            entries.push(NodeEntry::Item(Item {
                resource,
                claims: item.claims.clone(),
                refs: item.all_refs(children),
            }));
        }
        EntryList::lacking(entries, lacks)
    }
}

impl LeafItem {
    /// Does it lack what it needs for a hole?
    fn cannot_be(&self, children: &[Arc<Node>]) -> bool {
        let holes = |part: &LeafPart| match part {
            LeafPart::Call(at, number) => Some((&children[*at].entries, *number)),
            _ => None,
        };
        let lacking = self.parts.iter().filter_map(holes).filter(|(entries, _)| entries.lacks > Need::Nothing);
        let is_inline = |number: u32| self.parts.iter().any(|part| matches!(part, LeafPart::Open(n) if *n == number));
        let is_filled = |number: u32| {
            self.parts.iter().filter_map(holes).any(|(entries, n)| n == number && entries.n_items > 0)
                || is_inline(number)
        };
        lacking.into_iter().any(|(entries, number)| entries.lacks == Need::Each || !is_filled(number))
    }

    fn assemble(&self, children: &[Arc<Node>], drop_invalid: bool, diagnostics: &mut Vec<Diagnostic>) -> Rope {
        let refused = self.refused(children, diagnostics);
        let is_left_out = |part: usize, item: &Item| {
            drop_invalid && !refused.is_empty() && refused.contains(&(part, Arc::as_ptr(&item.resource)))
        };
        let mut builder = RopeBuilder::new();
        for (i, part) in self.parts.iter().enumerate() {
            match part {
                LeafPart::Bytes(bytes) => builder.bytes(bytes.clone()),
                LeafPart::Open(number) => builder.open(*number),
                LeafPart::Close => assert!(builder.close(), "parts were checked to be balanced"),
                LeafPart::Call(at, number) => children[*at].entries.for_each(&mut |item| match number {
                    _ if is_left_out(i, item) => {}
                    0 => builder.rope(&item.resource.body),
                    number => builder.field(*number, &item.resource.body),
                }),
            }
        }
        builder.finish().expect("parts were checked to be balanced")
    }

    /// Items in different holes of one field that claim what an earlier one does, each with the number of its part.
    fn refused(
        &self,
        children: &[Arc<Node>],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> FxHashSet<(usize, *const Resource)> {
        let mut refused = FxHashSet::default();
        let claiming = |part: &&LeafPart| matches!(part, LeafPart::Call(at, _) if children[*at].entries.has_claims);
        // Within one hole the call itself has seen to it.
        if self.parts.iter().filter(claiming).nth(1).is_none() {
            return refused;
        }
        // By the number of the field within the innermost message that is open.
        let mut claimed: BTreeMap<(usize, u32, &str), &str> = BTreeMap::new();
        let mut open = vec![0];
        for (i, part) in self.parts.iter().enumerate() {
            match part {
                LeafPart::Open(_) => open.push(i + 1),
                LeafPart::Close => drop(open.pop()),
                LeafPart::Bytes(_) => {}
                LeafPart::Call(at, number) => children[*at].entries.for_each(&mut |item| {
                    let inside = open.last().copied().unwrap_or_default();
                    let key = |claim| (inside, *number, claim);
                    let name = item.resource.name.as_str();
                    let taken = item.claims.iter().find_map(|claim| Some((claim, claimed.get(&key(claim.as_str()))?)));
                    if let Some((claim, other)) = taken {
                        diagnostics.push(conflict(name, claim, other));
                        refused.insert((i, Arc::as_ptr(&item.resource)));
                    } else {
                        claimed.extend(item.claims.iter().map(|claim| (key(claim.as_str()), name)));
                    }
                }),
            }
        }
        refused
    }

    /// What it waits for, with what is put in its holes.
    fn all_refs(&self, children: &[Arc<Node>]) -> Arc<[String]> {
        let mut all = BTreeSet::new();
        for part in &self.parts {
            if let LeafPart::Call(at, _) = part
                && children[*at].entries.has_refs
            {
                children[*at].entries.for_each(&mut |item| all.extend(item.refs.iter().cloned()));
            }
        }
        if all.is_empty() {
            return self.refs.clone();
        }
        all.extend(self.refs.iter().cloned());
        all.into_iter().collect()
    }
}

/// What a maker said and what the gate found, each once.
fn united(mut said: Vec<String>, found: Vec<String>) -> Vec<String> {
    for text in found {
        if !said.contains(&text) {
            said.push(text);
        }
    }
    said
}

/// Checks that the parts form a message.
fn check(key: &str, parts: &[Part]) -> Result<(), BadOutput> {
    let field = |number: u32| if number < 1 << 29 { Ok(()) } else { Err(BadOutput::Field(key.to_owned(), number)) };
    let mut depth = 0usize;
    for part in parts {
        match part {
            Part::Bytes(_) => {}
            Part::Call(call) => field(call.field)?,
            Part::Open(0) => return Err(BadOutput::Field(key.to_owned(), 0)),
            Part::Open(number) => {
                field(*number)?;
                depth += 1;
            }
            Part::Close => depth = depth.checked_sub(1).ok_or_else(|| BadOutput::Unbalanced(key.to_owned()))?,
        }
    }
    if depth == 0 { Ok(()) } else { Err(BadOutput::Unbalanced(key.to_owned())) }
}

/// The message as the parts alone make it, with fields that stand for its holes.
fn own_bytes(parts: &[Part]) -> Vec<u8> {
    if let [Part::Bytes(only)] = parts {
        return only.clone();
    }
    let mut builder = RopeBuilder::new();
    for part in parts {
        match part {
            Part::Bytes(bytes) => builder.bytes(Bytes::copy_from_slice(bytes)),
            Part::Open(number) => builder.open(*number),
            Part::Close => assert!(builder.close(), "parts were checked to be balanced"),
            Part::Call(call) => builder.bytes(gate::hole(call.field).into()),
        }
    }
    builder.finish().expect("parts were checked to be balanced").to_bytes().into()
}

fn conflict(key: &str, claim: &str, other: &str) -> Diagnostic {
    gate::found(key, &format!("refuse it: {claim} is taken by {other}"))
}

/// The list without the later of two items that claim the same; with it when that is only to be reported.
fn without_conflicts(list: &Entries, drop_invalid: bool, diagnostics: &mut Vec<Diagnostic>) -> Entries {
    let mut claimed: BTreeMap<&str, &str> = BTreeMap::new();
    let mut refused = FxHashSet::default();
    list.for_each(&mut |item| {
        let taken = item.claims.iter().find_map(|claim| Some((claim, claimed.get(claim.as_str())?)));
        match taken {
            Some((claim, other)) => {
                diagnostics.push(conflict(item.resource.name.as_str(), claim, other));
                refused.insert(Arc::as_ptr(&item.resource));
            }
            None => claimed.extend(item.claims.iter().map(|claim| (claim.as_str(), item.resource.name.as_str()))),
        }
    });
    if refused.is_empty() || !drop_invalid {
        return list.clone();
    }
    let mut kept = Vec::with_capacity(list.n_items);
    list.for_each(&mut |item| {
        if !refused.contains(&Arc::as_ptr(&item.resource)) {
            kept.push(item.clone());
        }
    });
    EntryList::of_items(kept)
}
