//! What the files say together: one accepted version of each object, kept until it is fixed or deleted.
//!
//! ```text
//!  per file: claims (good, refused, unreadable)  --apply-->  objects in force + what changed
//! ```
//!
//! Pure: no clock, no disk. The order in which files are handed in does not matter within one call.
//!
//! **Invariant:** an object in force goes away only when no file claims it any more. A refused claim and a
//! document that cannot be read keep what the file said before, because half of an edit must not take
//! traffic down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_model::{Object, ObjectRef, Rejection};

use crate::convert::{ENVIRONMENT, FileInput, MESH_CONFIG, MESH_NETWORKS, PROXIES};
use crate::{Settings, Status, Warning};

/// What happens to refused objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The last good version stays in force, or the object is left out when there was none: a server.
    #[default]
    Strict,
    /// They are taken all the same, and reported: `render`.
    Lenient,
}

/// An object that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// The version that was in force.
    pub old: Arc<Object>,
    /// The version that is in force now.
    pub new: Arc<Object>,
}

/// How the objects in force differ from those before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Objects that were not there.
    pub added: Vec<Arc<Object>>,
    /// Objects that differ in more than the place they were read from.
    pub updated: Vec<Updated>,
    /// Objects that are gone, as they were.
    pub deleted: Vec<Arc<Object>>,
    /// True when mesh configuration, networks, environment or proxies differ.
    pub settings: bool,
}

impl Changes {
    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.deleted.is_empty() && !self.settings
    }
}

/// The reconciler; see the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    mode: Mode,
    files: BTreeMap<Arc<str>, File>,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    claimants: BTreeMap<ObjectRef, BTreeSet<Arc<str>>>,
    conflicts: BTreeSet<ObjectRef>,
}

#[derive(Clone, Debug, Default)]
struct File {
    versions: BTreeMap<ObjectRef, Version>,
    /// Refusals of its documents, with `kept_last_good` not yet known.
    refusals: Vec<Rejection>,
    /// Documents about an object of which an earlier document of the same file spoke.
    repeated: Vec<Rejection>,
    warnings: Vec<Warning>,
    unknown_kinds: BTreeSet<String>,
}

/// What a file has to say about an object.
#[derive(Clone, Debug)]
struct Version {
    /// Where it stands; unset for an object that an unreadable document may or may not hold.
    document: Option<usize>,
    /// The newest usable version; unset when there never was one.
    object: Option<Arc<Object>>,
}

impl Ledger {
    /// A ledger without files.
    pub fn new(mode: Mode) -> Self {
        Ledger { mode, ..Ledger::default() }
    }

    /// Takes new contents of files (`None`: the file is gone), all at once.
    pub fn apply(&mut self, edits: impl IntoIterator<Item = (Arc<str>, Option<FileInput>)>) -> Changes {
        let mut touched = BTreeSet::new();
        for (path, input) in edits {
            let before = self.files.remove(&path).unwrap_or_default();
            for reference in before.versions.keys() {
                if let Some(paths) = self.claimants.get_mut(reference) {
                    paths.remove(&path);
                }
                touched.insert(reference.clone());
            }
            let Some(input) = input else { continue };
            let file = File::new(&path, input, before, self.mode);
            for reference in file.versions.keys() {
                self.claimants.entry(reference.clone()).or_default().insert(path.clone());
                touched.insert(reference.clone());
            }
            self.files.insert(path, file);
        }
        let mut changes = Changes::default();
        for reference in touched {
            self.resolve(reference, &mut changes);
        }
        changes
    }

    /// Objects in force, settings excepted, sorted by kind, namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().filter(|object| !is_setting(&object.reference))
    }

    /// An object in force.
    pub fn get(&self, reference: &ObjectRef) -> Option<&Arc<Object>> {
        self.objects.get(reference)
    }

    /// Mesh configuration and the like; a file goes before a ConfigMap.
    pub fn settings(&self) -> Settings {
        let find = |kind: &str| {
            let from = ObjectRef::new(kind, "", "");
            // A file's setting has no namespace and so comes first.
            let first = self.objects.range(from..).next().filter(|(reference, _)| &*reference.kind == kind);
            first.map(|(_, object)| object.body.tree())
        };
        Settings {
            mesh: find(MESH_CONFIG),
            networks: find(MESH_NETWORKS),
            env: find(ENVIRONMENT),
            proxies: find(PROXIES),
        }
    }

    /// What is in force and what is wrong; `reads` tells which kinds a stage reads.
    pub fn status(&self, reads: impl Fn(&str) -> bool) -> Status {
        let mut status = Status::default();
        for object in self.objects.values() {
            *status.kinds.entry(object.reference.kind.to_string()).or_default() += 1;
        }
        let unread = status.kinds.iter().filter(|(kind, _)| !is_setting_kind(kind) && !reads(kind));
        status.unread_kinds = unread.map(|(kind, count)| (kind.clone(), *count)).collect();
        for file in self.files.values() {
            status.warnings.extend(file.warnings.iter().cloned());
            status.unknown_kinds.extend(file.unknown_kinds.iter().cloned());
            status.rejections.extend(file.repeated.iter().cloned());
            let keeps_ghosts = file.versions.values().any(|version| version.document.is_none());
            for refusal in &file.refusals {
                let kept = match &refusal.object {
                    Some(reference) => self.mode == Mode::Strict && self.objects.contains_key(reference),
                    None => keeps_ghosts,
                };
                status.rejections.push(Rejection { kept_last_good: kept, ..refusal.clone() });
            }
        }
        for reference in &self.conflicts {
            self.report_conflict(reference, &mut status.rejections);
        }
        status.rejections.sort();
        status
    }

    /// Decides which version of an object is in force.
    fn resolve(&mut self, reference: ObjectRef, changes: &mut Changes) {
        let before = self.objects.get(&reference).cloned();
        let claims = self.claims(&reference);
        let usable = claims.iter().find_map(|(_, version)| version.object.clone());
        let first = claims.first().map(|(path, _)| path.clone());
        let certain = claims.iter().filter(|(_, version)| version.document.is_some()).count();
        if certain > 1 {
            self.conflicts.insert(reference.clone());
        } else {
            self.conflicts.remove(&reference);
        }
        let after = match (usable, first) {
            (Some(object), _) => Some(object),
            (None, None) => None,
            // Moved to another file and spoilt in one edit: the file it moved to inherits the last good one.
            (None, Some(path)) => {
                let heir = self.files.get_mut(&path).and_then(|file| file.versions.get_mut(&reference));
                if let Some(heir) = heir {
                    heir.object.clone_from(&before);
                }
                before.clone()
            }
        };
        match &after {
            Some(object) => self.objects.insert(reference.clone(), object.clone()),
            None => self.objects.remove(&reference),
        };
        if self.claimants.get(&reference).is_some_and(BTreeSet::is_empty) {
            self.claimants.remove(&reference);
        }
        let setting = is_setting(&reference);
        match (before, after) {
            (None, None) => {}
            (Some(old), Some(new)) if same(&old, &new) => {}
            _ if setting => changes.settings = true,
            (None, Some(new)) => changes.added.push(new),
            (Some(old), Some(new)) => changes.updated.push(Updated { old, new }),
            (Some(old), None) => changes.deleted.push(old),
        }
    }

    /// Who claims an object: by path, and last those who only may have it.
    fn claims(&self, reference: &ObjectRef) -> Vec<(Arc<str>, &Version)> {
        let paths = self.claimants.get(reference).into_iter().flatten();
        let mut claims: Vec<_> =
            paths.filter_map(|path| Some((path.clone(), self.files.get(path)?.versions.get(reference)?))).collect();
        claims.sort_by_key(|(_, version)| version.document.is_none());
        claims
    }

    fn report_conflict(&self, reference: &ObjectRef, rejections: &mut Vec<Rejection>) {
        let claims: Vec<_> =
            self.claims(reference).into_iter().filter(|(_, version)| version.document.is_some()).collect();
        let Some(used) = claims.iter().position(|(_, version)| version.object.is_some()) else {
            return;
        };
        let (used_path, used_version) = &claims[used];
        for (_, (path, version)) in claims.iter().enumerate().filter(|(at, _)| *at != used) {
            rejections.push(Rejection {
                origin: path.to_string(),
                document: version.document.unwrap_or_default(),
                object: Some(reference.clone()),
                field: String::new(),
                reason: format!(
                    "the same object stands in {used_path} (document {}), which is used",
                    used_version.document.unwrap_or_default()
                ),
                kept_last_good: false,
            });
        }
    }
}

impl File {
    fn new(path: &str, input: FileInput, mut before: File, mode: Mode) -> Self {
        let broken = input.is_broken();
        let mut versions: BTreeMap<ObjectRef, Version> = BTreeMap::new();
        let (mut refusals, mut repeated) = (Vec::new(), Vec::new());
        for claim in input.claims {
            let Some(reference) = claim.reference else {
                refusals.extend(claim.refusals);
                continue;
            };
            if let Some(first) = versions.get(&reference) {
                repeated.push(Rejection {
                    origin: path.to_owned(),
                    document: claim.document,
                    object: Some(reference),
                    field: String::new(),
                    reason: format!(
                        "the same object stands in document {}, which is used",
                        first.document.unwrap_or(0)
                    ),
                    kept_last_good: false,
                });
                continue;
            }
            let good = claim.refusals.is_empty() || mode == Mode::Lenient;
            let object = match claim.object.filter(|_| good) {
                Some(object) => Some(object),
                None => before.versions.remove(&reference).and_then(|version| version.object),
            };
            refusals.extend(claim.refusals);
            versions.insert(reference, Version { document: Some(claim.document), object });
        }
        if broken {
            // Any of the objects that are missing now may stand in the document that cannot be read.
            for (reference, version) in before.versions {
                versions.entry(reference).or_insert(Version { document: None, object: version.object });
            }
        }
        File { versions, refusals, repeated, warnings: input.warnings, unknown_kinds: input.unknown_kinds }
    }
}

/// Equal but for the place that they were read from: moving an object is no change of it.
fn same(old: &Arc<Object>, new: &Arc<Object>) -> bool {
    Arc::ptr_eq(old, new)
        || (old.body == new.body && old.api_version == new.api_version && old.creation_nanos == new.creation_nanos)
}

fn is_setting(reference: &ObjectRef) -> bool {
    is_setting_kind(&reference.kind)
}

fn is_setting_kind(kind: &str) -> bool {
    matches!(kind, MESH_CONFIG | MESH_NETWORKS | ENVIRONMENT | PROXIES)
}

#[cfg(test)]
mod tests;
