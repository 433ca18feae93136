//! Reading resources that are JSON.

use serde_json::Value;

/// A field that is text.
pub(super) fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name)?.as_str().map(str::to_owned)
}

/// A text somewhere within.
pub(super) fn field(value: &Value, path: &str) -> Option<String> {
    value.pointer(path)?.as_str().map(str::to_owned)
}

/// A field that is a number.
pub(super) fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name)?.as_u64()
}

/// The members of a list; a list that is absent has none.
pub(super) fn items<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// The texts of a list.
pub(super) fn texts<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    items(value, name).filter_map(Value::as_str).collect()
}

/// The type of what was an `Any`.
pub(super) fn type_of(value: &Value) -> &str {
    value.get("@type").and_then(Value::as_str).unwrap_or_default()
}
