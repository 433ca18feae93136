//! Differences of views, computed once for all proxies that go the same way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use trysail_model::{Delta, View};

/// A shared, bounded cache of differences by the ids of the two views.
pub(crate) struct DeltaCache {
    table: Mutex<Table>,
    /// Resources that all entries together may name.
    max_weight: usize,
    nothing: Arc<Delta>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<(u64, u64), Entry>,
    /// Finished entries with their weight, oldest first.
    order: VecDeque<((u64, u64), usize)>,
    weight: usize,
}

/// Whoever comes second waits for whoever computes.
type Entry = Arc<OnceLock<Arc<Delta>>>;

impl DeltaCache {
    pub(crate) fn new(max_weight: usize) -> Self {
        DeltaCache { table: Mutex::default(), max_weight, nothing: Arc::default() }
    }

    /// What has to be sent to go from `old` to `new`; from nothing when `old` is unset.
    pub(crate) fn between(&self, old: Option<&Arc<View>>, new: &Arc<View>) -> Arc<Delta> {
        let Some(old) = old else {
            return Arc::new(Delta { changed: new.resources.clone(), removed: Vec::new() });
        };
        if Arc::ptr_eq(old, new) || old.fingerprint == new.fingerprint {
            return self.nothing.clone();
        }
        let key = (old.id, new.id);
        let entry = self.table.lock().entries.entry(key).or_default().clone();
        let mut is_mine = false;
        // Computed outside the table's lock: only those who want the same difference wait.
        let delta = entry.get_or_init(|| {
            is_mine = true;
            Arc::new(new.since(old))
        });
        if is_mine {
            self.finish(key, 1 + delta.changed.len() + delta.removed.len());
        }
        delta.clone()
    }

    fn finish(&self, key: (u64, u64), weight: usize) {
        let mut table = self.table.lock();
        table.order.push_back((key, weight));
        table.weight += weight;
        while table.weight > self.max_weight {
            let Some((oldest, weight)) = table.order.pop_front() else {
                break;
            };
            table.weight -= weight;
            table.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use trysail_model::{Fingerprint, Resource, Rope};

    use super::*;

    fn view(id: u64, entries: &[(&str, &str)]) -> Arc<View> {
        let resource = |(name, body): &(&str, &str)| {
            let body = Rope::from_bytes(body.as_bytes().to_vec());
            Arc::new(Resource { name: (*name).into(), version: body.fingerprint(), body })
        };
        Arc::new(View { id, resources: entries.iter().map(resource).collect(), fingerprint: Fingerprint(id.into()) })
    }

    #[test]
    fn is_computed_once() {
        let cache = DeltaCache::new(100);
        let (old, new) = (view(1, &[("a", "1"), ("b", "1")]), view(2, &[("a", "2")]));
        let delta = cache.between(Some(&old), &new);
        assert_eq!((delta.changed.len(), delta.removed.len()), (1, 1));
        assert!(Arc::ptr_eq(&delta, &cache.between(Some(&old), &new)));
        assert!(cache.between(Some(&new), &new).changed.is_empty());
        assert_eq!(cache.between(None, &new).changed.len(), 1);
    }

    #[test]
    fn is_bounded() {
        let cache = DeltaCache::new(10);
        let base = view(0, &[]);
        for id in 1..100 {
            cache.between(Some(&base), &view(id, &[("a", "1"), ("b", "1")]));
        }
        let table = cache.table.lock();
        assert!(table.weight <= 10 && table.entries.len() == table.order.len());
    }
}
