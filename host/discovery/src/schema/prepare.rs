//! Pruning and defaulting, in the order of an API server: unknown fields go, nulls go where none may be, defaults come.

use serde_json::{Map, Value};

use super::types::{Additional, Schema};
use crate::convert::{Violation, join};

/// Fields that every object has, whatever its schema says.
const OF_EVERY_OBJECT: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Completes a body; `warnings` names what was dropped.
pub(super) fn prepare(schema: &Schema, body: &mut Value, warnings: &mut Vec<Violation>) {
    if let Value::Object(map) = body {
        object(schema, map, "", true, warnings);
    }
}

fn value(schema: &Schema, value: &mut Value, path: &str, warnings: &mut Vec<Violation>) {
    match value {
        Value::Object(map) => object(schema, map, path, false, warnings),
        Value::Array(items) => {
            let Some(of_item) = &schema.items else { return };
            for (at, item) in items.iter_mut().enumerate() {
                if item.is_null()
                    && !of_item.nullable
                    && let Some(default) = &of_item.default
                {
                    *item = default.clone();
                }
                self::value(of_item, item, &format!("{path}[{at}]"), warnings);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn object(schema: &Schema, map: &mut Map<String, Value>, path: &str, is_root: bool, warnings: &mut Vec<Violation>) {
    let keeps_all = schema.preserve || matches!(schema.additional_properties, Some(Additional::Flag(true)));
    let of_others = match &schema.additional_properties {
        Some(Additional::Schema(schema)) => Some(&**schema),
        Some(Additional::Flag(_)) | None => None,
    };
    let known = |name: &str| schema.properties.contains_key(name) || (is_root && OF_EVERY_OBJECT.contains(&name));
    if !keeps_all && of_others.is_none() && map.keys().any(|name| !known(name)) {
        map.retain(|name, _| {
            let keep = known(name);
            if !keep {
                let reason = match nearest(name, schema) {
                    Some(meant) => format!("unknown field, left out (did you mean {meant}?)"),
                    None => "unknown field, left out".to_owned(),
                };
                warnings.push(Violation::new(join(path, name), reason));
            }
            keep
        });
    }
    for (name, of_field) in &schema.properties {
        if is_root && OF_EVERY_OBJECT.contains(&name.as_str()) {
            continue;
        }
        let missing = match map.get(name) {
            None => true,
            Some(Value::Null) => !of_field.nullable,
            Some(_) => false,
        };
        if missing {
            match &of_field.default {
                Some(default) => {
                    map.insert(name.clone(), default.clone());
                }
                // A null where none may be is as good as nothing.
                None => {
                    map.shift_remove(name);
                }
            }
        }
        if let Some(field) = map.get_mut(name) {
            value(of_field, field, &join(path, name), warnings);
        }
    }
    if let Some(of_others) = of_others {
        map.retain(|name, value| schema.properties.contains_key(name) || !value.is_null() || of_others.nullable);
        for (name, field) in map.iter_mut().filter(|(name, _)| !schema.properties.contains_key(*name)) {
            value(of_others, field, &format!("{path}[{name}]"), warnings);
        }
    }
}

/// A field that differs in case or a letter or two: the likely intention behind an unknown one.
fn nearest<'a>(name: &str, schema: &'a Schema) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distances = schema.properties.keys().map(|known| (distance(&lower, &known.to_lowercase()), known.as_str()));
    let allowed = (name.len() / 4).clamp(1, 2);
    distances.filter(|(distance, _)| *distance <= allowed).min().map(|(_, known)| known)
}

/// Letters to change, add or leave out (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, c) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in right.iter().enumerate() {
            let changed = diagonal + usize::from(c != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
