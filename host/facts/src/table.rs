//! A sorted map that is cheap to clone and to change a little.
//!
//! Snapshots share all that a change did not touch: a clone is one reference count, an insertion copies one chunk and
//! the list of chunks.

use std::sync::Arc;

/// Entries per chunk beyond which a chunk is split.
const CHUNK: usize = 96;

/// A chunk of entries, sorted.
type Chunk<V> = Arc<Vec<(Arc<str>, V)>>;

/// A sorted copy-on-write map from text to `V`.
///
/// Keys of several parts are joined with NUL by [`key`], so that a prefix names a group.
#[derive(Clone, Debug)]
pub struct Table<V> {
    /// No chunk is empty; all keys of a chunk are less than those of the next.
    chunks: Arc<Vec<Chunk<V>>>,
    len: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table { chunks: Arc::new(Vec::new()), len: 0 }
    }
}

/// Joins the parts of a key. Names never contain NUL.
pub fn key(parts: &[&str]) -> String {
    parts.join("\0")
}

/// The prefix that the keys with these leading parts have in common.
pub fn prefix(parts: &[&str]) -> String {
    let mut text = key(parts);
    text.push('\0');
    text
}

/// The last part of a key.
pub fn last_part(key: &str) -> &str {
    key.rsplit('\0').next().unwrap_or_default()
}

impl<V: Clone> Table<V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key)?)?;
        let at = chunk.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// True when there is an entry of that key.
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Sets the value of a key and returns the one before.
    pub fn insert(&mut self, key: impl Into<Arc<str>>, value: V) -> Option<V> {
        let key = key.into();
        let Some(index) = self.chunk_of(&key).or((!self.chunks.is_empty()).then_some(0)) else {
            Arc::make_mut(&mut self.chunks).push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                chunk.insert(at, (key, value));
                self.len += 1;
                if chunk.len() > CHUNK {
                    let half = chunk.split_off(CHUNK / 2);
                    chunks.insert(index + 1, Arc::new(half));
                }
                None
            }
        }
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        let index = self.chunk_of(key)?;
        let at = self.chunks[index].binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(index);
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(k, v)| (k, v))
    }

    /// The entries from a key on, in order.
    pub fn from<'a>(&'a self, key: &str) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> + use<'a, V> {
        let index = self.chunk_of(key).unwrap_or(0);
        let start = self.chunks.get(index).map_or(0, |chunk| chunk.partition_point(|(k, _)| **k < *key));
        let first = self.chunks.get(index).map_or(&[][..], |chunk| &chunk[start..]);
        let rest = self.chunks.iter().skip(index + 1).flat_map(|chunk| chunk.iter());
        first.iter().chain(rest).map(|(k, v)| (k, v))
    }

    /// The entries whose keys begin with a prefix, in order.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
        self.from(prefix).take_while(move |(k, _)| k.starts_with(prefix))
    }

    /// The last chunk whose first key is at most `key`.
    fn chunk_of(&self, key: &str) -> Option<usize> {
        self.chunks.partition_point(|chunk| *chunk[0].0 <= *key).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in prop::collection::vec((any::<bool>(), 0u16..400), 0..900)) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut before: Option<(Table<u16>, BTreeMap<String, u16>)> = None;
            for (i, (add, n)) in steps.into_iter().enumerate() {
                let key = format!("{}\0{n}", n % 7);
                if add {
                    prop_assert_eq!(table.insert(key.as_str(), n), model.insert(key, n));
                } else {
                    prop_assert_eq!(table.remove(&key), model.remove(&key));
                }
                if i == 300 {
                    before = Some((table.clone(), model.clone()));
                }
            }
            let check = |table: &Table<u16>, model: &BTreeMap<String, u16>| {
                assert_eq!(table.len(), model.len());
                assert!(table.iter().map(|(k, v)| (&**k, v)).eq(model.iter().map(|(k, v)| (k.as_str(), v))));
                for group in 0..8 {
                    let prefix = format!("{group}\0");
                    let expected = model.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, v)| v);
                    assert!(table.with_prefix(&prefix).map(|(_, v)| v).eq(expected));
                }
            };
            check(&table, &model);
            if let Some((table, model)) = before {
                check(&table, &model);
            }
        }
    }
}
