//! Editing lists of filters and typed configuration.

use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::patch::Operation;

use crate::patch::{Notes, Patch, no_such_operation};
use crate::wire::{self, Fields};

/// TransportSocket.typed_config.
const SOCKET_CONFIG: u32 = 3;
/// Any.type_url and Any.value.
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// Where a filter has its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Field of the `Any`.
    pub config: u32,
    /// The other field of its oneof, which names configuration that comes by discovery.
    pub discovery: u32,
    /// A merge may give it another name.
    pub renames: bool,
}

/// Network and HTTP filters.
pub const FILTER: Shape = Shape { config: 4, discovery: 5, renames: true };
/// Listener filters.
pub const LISTENER_FILTER: Shape = Shape { config: 3, discovery: 5, renames: false };

/// A message after the patches that match it; none if one removes it. What is added is not about it.
pub fn edited<'a, 'p: 'a>(
    patches: impl Iterator<Item = &'a Patch<'p>>,
    message: &[u8],
    matches: impl Fn(&Patch<'_>, &[u8]) -> bool,
    merge: impl Fn(&Patch<'_>, &[u8], &mut Notes) -> Vec<u8>,
    notes: &mut Notes,
) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    for patch in patches {
        if patch.operation == Operation::Add || !matches(patch, &message) {
            continue;
        }
        match patch.operation {
            Operation::Remove => {
                notes.applied(patch, true);
                return None;
            }
            _ if patch.merges() => {
                let merged = merge(patch, &message, notes);
                notes.applied(patch, merged != message);
                message = merged;
            }
            _ => notes.refused(patch, no_such_operation(patch)),
        }
    }
    Some(message)
}

/// Does all of a patch to a list of filters but merging. `named` says that the patch names the filter, by `matches`: without
/// a name, inserting before is the beginning and after is the end; removing and replacing need one.
pub fn arrange(
    patch: &Patch<'_>,
    filters: &mut Vec<Vec<u8>>,
    named: bool,
    matches: impl Fn(&[u8]) -> bool,
    notes: &mut Notes,
) {
    let value = || patch.value().to_vec();
    let found = || filters.iter().position(|filter| matches(filter));
    match patch.operation {
        Operation::Add => filters.push(value()),
        Operation::InsertFirst => filters.insert(0, value()),
        Operation::InsertAfter if !named => filters.push(value()),
        Operation::InsertBefore if !named => filters.insert(0, value()),
        Operation::InsertAfter => match found() {
            Some(at) => filters.insert(at + 1, value()),
            None => return,
        },
        Operation::InsertBefore => match found() {
            Some(at) => filters.insert(at, value()),
            None => return,
        },
        Operation::Replace | Operation::Remove if !named => {
            let operation = patch.operation.as_str_name();
            return notes.refused(patch, format!("{operation} does nothing without a filter in its match"));
        }
        Operation::Replace => match found() {
            Some(at) => filters[at] = value(),
            None => return,
        },
        Operation::Remove => {
            let before = filters.len();
            filters.retain(|filter| !matches(filter));
            if filters.len() == before {
                return;
            }
        }
        Operation::Merge => return,
        _ => return notes.refused(patch, no_such_operation(patch)),
    }
    notes.applied(patch, true);
}

/// The filter with a patch's configuration, and name, merged into it.
pub fn merge_filter(patch: &Patch<'_>, filter: &[u8], shape: Shape, notes: &mut Notes) -> Vec<u8> {
    let mut fields = Fields::parse(filter);
    let alternatives = [shape.config, shape.discovery];
    if fields.set_of(&alternatives) != Some(shape.config) {
        notes.refused(patch, format!("filter {:?} has no typed_config to merge into", fields.text(1)));
        return filter.to_vec();
    }
    let value = Fields::parse(patch.value());
    if value.set_of(&alternatives) == Some(shape.config)
        && let Some(own) = fields.message(shape.config).map(|own| own.into_owned())
        && let Some(merged) = merge_any(patch, &own, notes)
    {
        fields.set(shape.config, merged);
    }
    let name = value.text(1);
    if shape.renames && !name.is_empty() && name != fields.text(1) {
        fields.set(1, name);
    }
    let merged = fields.encode();
    notes.applied(patch, merged != filter);
    merged
}

/// The transport socket with a patch's one, of the same name, merged into it; none if that cannot be.
pub fn merge_socket(patch: &Patch<'_>, own: &[u8], socket: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let mut fields = Fields::parse(own);
    let config = fields.message(SOCKET_CONFIG)?.into_owned();
    if !Fields::parse(socket).has(SOCKET_CONFIG) {
        return None;
    }
    fields.set(SOCKET_CONFIG, merge_any(patch, &config, notes)?);
    Some(fields.encode())
}

/// The `Any` with a patch's typed configuration merged into it; none if they are of different types.
fn merge_any(patch: &Patch<'_>, own: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let fields = Fields::parse(own);
    let type_url = fields.text(TYPE_URL);
    let Some(config) = &patch.made.config else {
        notes.refused(patch, "its typed_config is of a type that is not known here, so it cannot be merged");
        return None;
    };
    let full_name = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    let (there, here) = (full_name(&type_url), full_name(&config.type_url));
    if there != here {
        notes.refused(patch, format!("its typed_config is a {here}, which does not merge into a {there}"));
        return None;
    }
    let mut merged = Fields::default();
    merged.set(TYPE_URL, type_url);
    merged.set(VALUE, wire::merge(fields.bytes(VALUE), &config.value, &config.replaced));
    Some(merged.encode())
}
