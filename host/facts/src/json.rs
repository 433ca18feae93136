//! Reading JSON bodies: what is missing or of another type is the empty value, because objects were validated before.

use std::collections::BTreeMap;

use serde_json::Value;

/// The value at a path of object keys, or null.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

/// Text at a path, or the empty text.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// A whole number at a path, or 0; numbers in text count.
pub fn number(value: &Value, path: &[&str]) -> u32 {
    match at(value, path) {
        Value::Number(n) => n.as_u64().and_then(|n| n.try_into().ok()).unwrap_or_default(),
        Value::String(text) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

/// The items at a path.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The texts of a list at a path.
pub fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    list(value, path).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A map of texts at a path, or `None` when there is no object.
pub fn text_map(value: &Value, path: &[&str]) -> Option<BTreeMap<String, String>> {
    let entries = at(value, path).as_object()?;
    Some(entries.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
}

/// A boolean at a path, if there is one.
pub fn flag(value: &Value, path: &[&str]) -> Option<bool> {
    at(value, path).as_bool()
}
