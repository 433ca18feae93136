//! Checks that a change named every query that it moved.

use trysail_model::{Affected, Query, Snapshot};

/// The queries, of those given, whose answers moved from `old` to `new` though the change did not name them. Sound changes
/// leave this empty; the cost is two answers per query.
pub fn audit<'a>(
    old: &dyn Snapshot,
    new: &dyn Snapshot,
    affected: &[Affected],
    live: impl IntoIterator<Item = &'a Query>,
) -> Vec<Query> {
    let silent = |query: &&Query| !affected.iter().any(|change| change.covers(query));
    let moved = |query: &&Query| old.answer(query).fingerprint != new.answer(query).fingerprint;
    live.into_iter().filter(silent).filter(moved).cloned().collect()
}
