//! What is known of one kind, and how events move it. Pure: no clock, no network.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Fingerprint, Object, ObjectRef, Rejection};

use crate::read::Read;

/// A list that is older than what is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// One object that moved.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) reference: ObjectRef,
    pub(crate) what: What,
    /// What is wrong with it now; empty when nothing is.
    pub(crate) refusals: Vec<Rejection>,
    /// Mesh configuration in it; unset when that did not move.
    pub(crate) mesh: Option<Setting>,
    /// Networks in it; unset when they did not move.
    pub(crate) networks: Option<Setting>,
}

/// A setting as it is now; unset when there is none any more.
pub(crate) type Setting = Option<Arc<Value>>;

/// How an object moved.
#[derive(Debug)]
pub(crate) enum What {
    /// It was not in force.
    Added(Arc<Object>),
    /// It differs.
    Updated(Arc<Object>),
    /// It is gone.
    Deleted,
    /// What is in force is as it was; what is wrong with the newest version is not.
    Kept,
}

#[derive(Debug)]
struct Entry {
    uid: Fingerprint,
    version: u64,
    /// Of what is in force; unset when no version of it was ever good.
    content: Option<Fingerprint>,
    is_refused: bool,
    /// The settings in it, as far as they were good.
    settings: Option<Box<[Setting; 2]>>,
}

/// Everything of one kind.
#[derive(Debug, Default)]
pub(crate) struct Known {
    entries: HashMap<ObjectRef, Entry>,
}

impl Known {
    /// Takes an event in; nothing when it is old news.
    pub(crate) fn apply(&mut self, read: Read) -> Option<Moved> {
        let entry = self.entries.get(&read.reference);
        if entry.is_some_and(|entry| entry.uid == read.uid && entry.version > read.version) {
            return None;
        }
        self.take(read)
    }

    /// Takes a deletion in.
    pub(crate) fn delete(&mut self, reference: &ObjectRef, uid: Fingerprint) -> Option<Moved> {
        // Another object of that name may be there already.
        if self.entries.get(reference).is_none_or(|entry| entry.uid != uid) {
            return None;
        }
        self.entries.remove(reference).map(|entry| gone(reference.clone(), entry))
    }

    /// Takes a whole list in: what is not in it is gone.
    ///
    /// # Errors
    /// When something in the list is older than what is known; then nothing moved.
    pub(crate) fn list(&mut self, all: Vec<Read>) -> Result<Vec<Moved>, Stale> {
        let is_older = |read: &Read| {
            let entry = self.entries.get(&read.reference);
            entry.is_some_and(|entry| entry.uid == read.uid && entry.version > read.version)
        };
        if all.iter().any(is_older) {
            return Err(Stale);
        }
        Ok(self.replace(all))
    }

    /// Takes a whole list in, old or not: a store that was put back from a backup has older versions of everything.
    pub(crate) fn replace(&mut self, all: Vec<Read>) -> Vec<Moved> {
        let mut before = std::mem::take(&mut self.entries);
        let mut moved = Vec::new();
        self.entries.reserve(all.len());
        for read in all {
            if let Some((reference, entry)) = before.remove_entry(&read.reference) {
                self.entries.insert(reference, entry);
            }
            moved.extend(self.take(read));
        }
        moved.extend(before.into_iter().map(|(reference, entry)| gone(reference, entry)));
        moved
    }

    fn take(&mut self, read: Read) -> Option<Moved> {
        let Read { reference, uid, version, object, refusals, content, mesh, networks } = read;
        let before = self.entries.remove(&reference);
        let in_force = before.as_ref().and_then(|entry| entry.content);
        let settings_before = before.as_ref().and_then(|entry| entry.settings.as_deref()).cloned().unwrap_or_default();
        let was_refused = before.is_some_and(|entry| entry.is_refused);
        let is_refused = !refusals.is_empty();
        let [mesh_before, networks_before] = settings_before;
        // A setting that cannot be read keeps the one before.
        let keep = |now: Option<Setting>, before: &Setting| match now {
            None => None,
            Some(None) => before.clone(),
            Some(good) => good,
        };
        let (mesh, networks) = (keep(mesh, &mesh_before), keep(networks, &networks_before));
        let moves = |now: &Setting, before: &Setting| (now != before).then(|| now.clone());
        let (mesh_moved, networks_moved) = (moves(&mesh, &mesh_before), moves(&networks, &networks_before));
        let has_settings = mesh.is_some() || networks.is_some();
        let entry = Entry {
            uid,
            version,
            content: object.as_ref().map(|_| content).or(in_force),
            is_refused,
            settings: has_settings.then(|| Box::new([mesh, networks])),
        };
        self.entries.insert(reference.clone(), entry);
        let what = match (object, in_force) {
            (None, _) => What::Kept,
            (Some(_), Some(before)) if before == content => What::Kept,
            (Some(object), Some(_)) => What::Updated(object),
            (Some(object), None) => What::Added(object),
        };
        let refusals: Vec<Rejection> =
            refusals.into_iter().map(|refusal| Rejection { kept_last_good: in_force.is_some(), ..refusal }).collect();
        let is_news = !matches!(what, What::Kept)
            || is_refused
            || was_refused
            || mesh_moved.is_some()
            || networks_moved.is_some();
        is_news.then_some(Moved { reference, what, refusals, mesh: mesh_moved, networks: networks_moved })
    }
}

fn gone(reference: ObjectRef, entry: Entry) -> Moved {
    let settings = entry.settings.unwrap_or_default();
    let [mesh, networks] = settings.map(|setting| setting.map(|_| None));
    let what = if entry.content.is_some() { What::Deleted } else { What::Kept };
    Moved { reference, what, refusals: Vec::new(), mesh, networks }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::read::tests::raw;

    fn uid(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    fn service(name: &str, uid: &str, version: u64, host: &str) -> Read {
        raw("VirtualService", name, uid, version, json!({"spec": {"hosts": [host]}}))
    }

    fn words(moved: &[Moved]) -> Vec<String> {
        let word = |moved: &Moved| match moved.what {
            What::Added(_) => format!("+{}", moved.reference.name),
            What::Updated(_) => format!("~{}", moved.reference.name),
            What::Deleted => format!("-{}", moved.reference.name),
            What::Kept => format!("={}", moved.reference.name),
        };
        let mut words: Vec<String> = moved.iter().map(word).collect();
        words.sort();
        words
    }

    #[test]
    fn a_list_is_one_change_and_the_same_again_is_none() {
        let mut known = Known::default();
        let list = || vec![service("a", "1", 5, "a"), service("b", "2", 6, "b")];
        assert_eq!(words(&known.list(list()).unwrap()), ["+a", "+b"]);
        assert_eq!(words(&known.list(list()).unwrap()), [""; 0]);
        let moved = known.list(vec![service("b", "2", 9, "c"), service("c", "3", 8, "c")]).unwrap();
        assert_eq!(words(&moved), ["+c", "-a", "~b"]);
    }

    #[test]
    fn nothing_goes_back_in_time() {
        let mut known = Known::default();
        known.list(vec![service("a", "1", 5, "a")]).unwrap();
        assert!(known.apply(service("a", "1", 9, "new")).is_some());
        assert!(known.apply(service("a", "1", 7, "old")).is_none(), "an event that came late");
        assert_eq!(known.list(vec![service("a", "1", 5, "a")]).unwrap_err(), Stale, "a server that is behind");
        // Another object of that name is a new story, whatever its version.
        assert!(known.apply(service("a", "other", 3, "again")).is_some());
        assert!(
            known.delete(&ObjectRef::new("VirtualService", "n", "a"), uid("1")).is_none(),
            "the end of the first one"
        );
        assert!(known.delete(&ObjectRef::new("VirtualService", "n", "a"), uid("other")).is_some());
        // Put back from a backup.
        known.list(vec![service("b", "2", 50, "b")]).unwrap();
        assert_eq!(words(&known.replace(vec![service("b", "2", 10, "was")])), ["~b"]);
    }

    #[test]
    fn a_refused_version_leaves_the_good_one() {
        let bad = |version| raw("VirtualService", "a", "1", version, json!({"spec": {"hosts": 1}}));
        let mut known = Known::default();
        let moved = known.apply(bad(1)).unwrap();
        assert!(matches!(moved.what, What::Kept) && !moved.refusals[0].kept_last_good);
        assert_eq!(words(&[known.apply(service("a", "1", 2, "a")).unwrap()]), ["+a"]);
        let moved = known.apply(bad(3)).unwrap();
        assert!(matches!(moved.what, What::Kept) && moved.refusals[0].kept_last_good);
        let mended = known.apply(service("a", "1", 4, "a")).unwrap();
        assert!(matches!(mended.what, What::Kept) && mended.refusals.is_empty(), "as it was before");
        known.apply(bad(5)).unwrap();
        assert_eq!(words(&known.list(vec![]).unwrap()), ["-a"]);
    }
}
