//! What a call returned: checked, judged, and ready to have its holes filled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustc_hash::FxHashSet;
use trysail_model::rope::RopeBuilder;
use trysail_model::{Resource, ResourceName, Rope};
use trysail_sdk::{Diagnostic, Entry, Output, Part};

use super::{Entries, EntryList, Item, Node, NodeEntry};
use crate::circuit::Kept;
use crate::gate::{self, Need, Verdict};
use crate::memo::CallMemo;
use crate::terms::{Effect, Effects};
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
    /// What a plugin changed.
    pub effects: Effects,
    /// Stands in for an output after a fault that may be over without any read moving; nodes of it are not remembered.
    pub passing: bool,
    /// Of a plugin: what it comes to in memory.
    pub(crate) kept: Option<Kept>,
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

/// What an entry takes beside its texts, bytes.
const ENTRY: usize = 100;
/// What a question takes that was asked, with its answer's place, bytes.
pub(crate) const READ: usize = 200;

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
        let (effects, finished) = (Effects::default(), OnceLock::new());
        Ok(Leaf { reads, calls, diagnostics, n_refused, effects, passing: false, kept: None, entries, need, finished })
    }

    /// About the memory that it takes, bytes, with what it shares.
    pub(crate) fn weight(&self) -> usize {
        let part = |part: &LeafPart| if let LeafPart::Bytes(bytes) = part { bytes.len() } else { 16 };
        let entry = |entry: &LeafEntry| match entry {
            LeafEntry::Item(item) => item.name.as_str().len() + item.parts.iter().map(part).sum::<usize>() + ENTRY,
            LeafEntry::Include(_) => ENTRY,
        };
        let said = |said: &Diagnostic| said.object.len() + said.field.len() + said.message.len() + ENTRY;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let effect = |effect: &Effect| {
            effect.item.len() + effect.path.len() + text(&effect.before) + text(&effect.after) + ENTRY
        };
        self.entries.iter().map(entry).sum::<usize>()
            + self.diagnostics.iter().map(said).sum::<usize>()
            + self.effects.list.iter().map(effect).sum::<usize>()
            + self.reads.len() * READ
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
