//! What the translation hands to the streams: views of resources, and how two of them differ.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{Fingerprint, ObjectRef, Proxy, ResourceName, Rope, TypeUrl};

/// One xDS resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Name within its type.
    pub name: ResourceName,
    /// The encoded message (the `value` of the Any on the wire).
    pub body: Rope,
    /// Hash of `body`: the resource's version in the delta protocol, the same on every replica.
    pub version: Fingerprint,
}

/// The resources of one type as one proxy sees them, sorted by name.
///
/// Proxies whose answers agree share one view: comparing two by [`Arc::ptr_eq`] first is the fast path.
#[derive(Debug)]
pub struct View {
    /// A number that no other view of this process has; key for caches over pairs of views.
    pub id: u64,
    /// Sorted by name, names unique.
    pub resources: Vec<Arc<Resource>>,
    /// Fingerprint over names and versions.
    pub fingerprint: Fingerprint,
}

impl View {
    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        let at = self.resources.binary_search_by(|resource| resource.name.as_str().cmp(name)).ok()?;
        Some(&self.resources[at])
    }

    /// What has to be sent to go from `old` to `self`. Linear in both; callers keep the result per pair of ids.
    pub fn since(&self, old: &View) -> Delta {
        let mut delta = Delta::default();
        let mut before = old.resources.iter().peekable();
        for resource in &self.resources {
            while before.peek().is_some_and(|b| b.name < resource.name) {
                delta.removed.extend(before.next().map(|gone| gone.name.clone()));
            }
            match before.next_if(|b| b.name == resource.name) {
                Some(b) if Arc::ptr_eq(b, resource) || b.version == resource.version => {}
                _ => delta.changed.push(resource.clone()),
            }
        }
        delta.removed.extend(before.map(|gone| gone.name.clone()));
        delta
    }
}

/// The difference of two views.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Added or changed, sorted by name.
    pub changed: Vec<Arc<Resource>>,
    /// Gone, sorted.
    pub removed: Vec<ResourceName>,
}

/// What a proxy watches of a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    /// Everything there is (CDS, LDS).
    Wildcard,
    /// These names; equal sets should be the same allocation, so that they are found by pointer.
    Names(Arc<BTreeSet<ResourceName>>),
}

/// The translation as the streams see it. Calls may compute: use them from threads of their own, not from the
/// async runtime's.
pub trait Translator: Send + Sync {
    /// Revision of the newest snapshot; a push compares it with what it served.
    fn revision(&self) -> u64;

    /// Views of several types of one proxy, all of the same snapshot. An unknown type gives an empty view. Names that do not
    /// exist are simply absent.
    ///
    /// `held` are the views the subscriber was last served, in the same order: where a fault leaves no result, the resource
    /// in them stays.
    fn views(&self, proxy: &Proxy, wanted: &[(TypeUrl, Watched)], held: &[Option<Arc<View>>]) -> Views;

    /// The objects and stages behind a resource, for a log line about a NACK: `routes: VirtualService shop/a, ...`.
    fn provenance(&self, proxy: &Proxy, type_url: &TypeUrl, name: &str) -> Provenance;

    /// Called when a proxy is gone; what only it used may be dropped.
    fn forget(&self, proxy: &Proxy);
}

/// What [`Translator::views`] returns.
#[derive(Clone, Debug)]
pub struct Views {
    /// The revision that everything in here is of.
    pub revision: u64,
    /// The proxy as that revision knows it.
    pub proxy: Arc<Proxy>,
    /// The views, in the order of what was wanted; none when they are withheld.
    pub views: Vec<Arc<View>>,
    /// The proxy must not be told anything new: what it has stays, and what it has not it does not get, not even an empty
    /// answer. Asked again at the next push.
    pub is_withheld: bool,
}

/// Who made a resource.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// Stages, in the order of their calls.
    pub stages: Vec<String>,
    /// Plugins that changed something of it, with the paths of the fields. A plugin is its name, `@`, and its digest.
    pub plugins: Vec<(String, Vec<String>)>,
    /// The objects read, sorted.
    pub objects: Vec<ObjectRef>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(entries: &[(&str, &str)]) -> View {
        let resource = |(name, body): &(&str, &str)| {
            let body = Rope::from_bytes(body.as_bytes().to_vec());
            Arc::new(Resource { name: (*name).into(), version: body.fingerprint(), body })
        };
        View { id: 0, resources: entries.iter().map(resource).collect(), fingerprint: Fingerprint::NONE }
    }

    #[test]
    fn a_delta_names_changed_added_and_removed() {
        let old = view(&[("a", "1"), ("b", "1"), ("d", "1")]);
        let new = view(&[("b", "2"), ("c", "1"), ("d", "1")]);
        let delta = new.since(&old);
        let changed: Vec<&str> = delta.changed.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(changed, ["b", "c"]);
        assert_eq!(delta.removed, ["a".into()]);
        assert!(new.get("c").is_some() && new.get("a").is_none());
    }
}
