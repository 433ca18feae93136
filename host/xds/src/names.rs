//! Interning of names and of sets of names.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use trysail_model::ResourceName;

/// A set of names as it is subscribed to.
pub(crate) type NameSet = Arc<BTreeSet<ResourceName>>;

/// Makes equal names and equal sets one allocation each, over all streams.
///
/// Thousands of proxies subscribe to the same thousands of names; and translators find a set that they know by pointer.
#[derive(Default)]
pub(crate) struct Interner {
    tables: Mutex<Tables>,
    hasher: RandomState,
}

#[derive(Default)]
struct Tables {
    names: HashSet<ResourceName>,
    sets: HashMap<u64, Vec<Weak<BTreeSet<ResourceName>>>>,
    /// Sizes at which the tables are swept: twice what was alive after the last sweep.
    names_limit: usize,
    sets_limit: usize,
}

/// Below this size a table is not worth sweeping.
const MIN_LIMIT: usize = 1024;

impl Interner {
    /// The one allocation of a name.
    pub(crate) fn name(&self, text: &str) -> ResourceName {
        let mut tables = self.tables.lock();
        if let Some(known) = tables.names.get(text) {
            return known.clone();
        }
        if tables.names.len() >= tables.names_limit.max(MIN_LIMIT) {
            // Whoever holds only the table's own reference is used by nobody.
            tables.names.retain(|name| Arc::strong_count(&name.0) > 1);
            tables.names_limit = tables.names.len() * 2;
        }
        let name = ResourceName::from(text);
        tables.names.insert(name.clone());
        name
    }

    /// The one allocation of a set.
    pub(crate) fn set(&self, names: BTreeSet<ResourceName>) -> NameSet {
        let hash = self.hasher.hash_one(&names);
        let mut tables = self.tables.lock();
        if tables.sets.len() >= tables.sets_limit.max(MIN_LIMIT) {
            tables.sets.retain(|_, sets| {
                sets.retain(|set| set.strong_count() > 0);
                !sets.is_empty()
            });
            tables.sets_limit = tables.sets.len() * 2;
        }
        let bucket = tables.sets.entry(hash).or_default();
        bucket.retain(|set| set.strong_count() > 0);
        if let Some(known) = bucket.iter().filter_map(Weak::upgrade).find(|known| **known == names) {
            return known;
        }
        let set = Arc::new(names);
        bucket.push(Arc::downgrade(&set));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(interner: &Interner, names: &[&str]) -> NameSet {
        interner.set(names.iter().map(|name| interner.name(name)).collect())
    }

    #[test]
    fn equal_sets_are_one_allocation() {
        let interner = Interner::default();
        let (a, b) = (set(&interner, &["x", "y"]), set(&interner, &["y", "x"]));
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(&a, &set(&interner, &["x"])));
        let (x, again) = (interner.name("x"), interner.name("x"));
        assert!(Arc::ptr_eq(&x.0, &again.0));
    }

    #[test]
    fn what_nobody_holds_is_dropped() {
        let interner = Interner::default();
        let held = set(&interner, &["held"]);
        for n in 0..10_000 {
            set(&interner, &[&n.to_string()]);
        }
        let tables = interner.tables.lock();
        assert!(tables.names.len() <= 2 * MIN_LIMIT && tables.sets.len() <= 2 * MIN_LIMIT);
        drop(tables);
        assert!(Arc::ptr_eq(&held, &set(&interner, &["held"])));
    }
}
