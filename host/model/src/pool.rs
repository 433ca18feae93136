//! Values that many hold, kept once.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::{Object, ObjectRef};

/// Equal values become one; those that nobody holds any more are dropped from time to time.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// Number of values at which it is looked for those that nobody holds.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 1024;

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Pool { known: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(Borrow::<T>::borrow(&*value)) {
            value.clone_from(known);
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.known.len() * 2).max(FIRST_SWEEP);
        }
        self.known.insert(value.clone());
    }
}

/// Lets objects share what they have in common: names of kinds and namespaces, labels and annotations.
#[derive(Debug, Default)]
pub struct ObjectPool {
    texts: Pool<str>,
    maps: Pool<BTreeMap<String, String>>,
}

impl ObjectPool {
    /// Replaces what is common by what earlier objects have.
    pub fn share(&mut self, object: &mut Object) {
        let Object { reference, api_version, labels, annotations, origin, .. } = object;
        // Names are as good as unique.
        let ObjectRef { kind, namespace, name: _ } = reference;
        [kind, namespace, api_version, origin].into_iter().for_each(|text| self.texts.share(text));
        [labels, annotations].into_iter().for_each(|map| self.maps.share(map));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one_and_unused_ones_go() {
        let mut pool = Pool::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("x".into(), "x".into());
        pool.share(&mut a);
        pool.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..10 * FIRST_SWEEP {
            pool.share(&mut n.to_string().into());
        }
        assert!(pool.known.len() <= FIRST_SWEEP && pool.known.contains("x"));
    }
}
