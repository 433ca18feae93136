//! Schemas of the kinds: what an API server makes of an object, and whether it takes it.
//!
//! ```text
//!  body --prune unknown fields (warned of)--> --defaults--> --checks, then CEL rules--> violations
//! ```
//!
//! The schemas of Istio's and Gateway API's kinds are those of their CRDs, condensed (prose taken out; equal
//! versions stored once) into `schemas/`, one file a kind. Those of the Kubernetes kinds are our own: only the
//! fields that Trysail reads, every other field being taken as it is. The status of Istio's and Gateway API's kinds is
//! not looked at: an API server does not take it from those who write the object either.
//!
//! The walkers are own code instead of a JSON Schema library: pruning, defaulting, int-or-string, list types and CEL
//! are Kubernetes' own, and with them only a dozen plain keywords remain.

mod cel;
mod check;
mod embedded;
mod prepare;
mod types;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use crate::convert::Violation;
use crate::kinds::Kind;
use types::{Definition, Schema};

/// More violations of one object than these are not told; the first ones say what to do.
const MAX_VIOLATIONS: usize = 16;

/// Completes a body as an API server would, and says what is wrong with it.
///
/// A kind without a schema is taken as it is. Warnings are about unknown fields, which are gone afterwards.
pub(crate) fn apply(
    kind: &Kind,
    api_version: &str,
    body: &mut Value,
    violations: &mut Vec<Violation>,
    warnings: &mut Vec<Violation>,
) {
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    let Some(schema) = find(kind.group, kind.document_kind, version) else {
        return;
    };
    prepare::prepare(schema, body, warnings);
    let found = check::check(schema, body);
    let left_out = found.len().saturating_sub(MAX_VIOLATIONS);
    violations.extend(found.into_iter().take(MAX_VIOLATIONS));
    if left_out > 0 {
        violations.push(Violation::new("", format!("and {left_out} more mistakes")));
    }
}

/// How often a rule could not be evaluated, by rule; such a rule refuses nothing.
pub fn unevaluated_rules() -> BTreeMap<String, usize> {
    UNEVALUATED.lock().map(|rules| rules.clone()).unwrap_or_default()
}

/// Number of rules evaluated since the start.
pub fn evaluated_rules() -> usize {
    EVALUATED.load(Ordering::Relaxed)
}

static UNEVALUATED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());
static EVALUATED: AtomicUsize = AtomicUsize::new(0);

/// The schema of a kind's version.
fn find(group: &str, kind: &str, version: &str) -> Option<&'static Schema> {
    static DEFINITIONS: [OnceLock<Option<Definition>>; embedded::FILES.len()] =
        [const { OnceLock::new() }; embedded::FILES.len()];
    let at = embedded::FILES.iter().position(|file| file.group == group && file.kind == kind)?;
    // Parsed when the first object of the kind comes: most folders have few kinds.
    let definition = DEFINITIONS[at].get_or_init(|| serde_json::from_str(embedded::FILES[at].text).ok());
    definition.as_ref()?.schema(version)
}

#[cfg(test)]
mod tests;
