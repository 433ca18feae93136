//! Edits: what plugins want done, done on JSON.
//!
//! **Invariant:** the work is bounded by the size of the fragment and of what the plugin said, whatever that is: no edit multiplies
//! what it brings beyond a budget, since this runs on the host's time and in its memory.

use serde_json::{Map, Value};
use trysail_sdk::{Edit, Position};

use crate::hooks::Items;
use crate::path::{Path, Step};

/// Edits of one outcome.
const MAX_EDITS: usize = 1_000;
/// Bytes of values that all edits of one outcome put into all places, and that a fragment may have after a JSON Patch.
const MAX_BYTES: usize = 16 << 20;

/// What is left of what edits may bring.
struct Budget(usize);

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.0.checked_sub(bytes.max(1));
        self.0 = left.ok_or_else(|| format!("all edits together bring more than {MAX_BYTES} bytes"))?;
        Ok(())
    }
}

/// Applies edits in order. `message` is the name of the items' message, for those that come as protobuf.
///
/// # Errors
/// The first edit that cannot be made: its number, and why.
pub fn apply(items: &mut Items, message: &str, edits: &[Edit]) -> Result<(), String> {
    if edits.len() > MAX_EDITS {
        return Err(format!("{} edits, where {MAX_EDITS} are allowed", edits.len()));
    }
    let mut budget = Budget(MAX_BYTES);
    for (number, edit) in edits.iter().enumerate() {
        one(items, message, edit, &mut budget).map_err(|why| format!("edit {number} ({}): {why}", name(edit)))?;
    }
    Ok(())
}

fn name(edit: &Edit) -> &'static str {
    match edit {
        Edit::Set { .. } => "set",
        Edit::Merge { .. } => "merge",
        Edit::Insert { .. } => "insert",
        Edit::Remove { .. } => "remove",
        Edit::Patch { .. } => "patch",
        Edit::Put { .. } | Edit::PutJson { .. } => "put",
        Edit::Drop(_) => "drop",
    }
}

fn one(items: &mut Items, message: &str, edit: &Edit, budget: &mut Budget) -> Result<(), String> {
    match edit {
        Edit::Set { item, path, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, true, &mut |place| {
                budget.take(length)?;
                *place = value.clone();
                Ok(())
            })
        }
        Edit::Merge { item, path, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, true, &mut |place| {
                budget.take(length)?;
                merge(place, &value)
            })
        }
        Edit::Insert { item, path, at: position, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, true, &mut |place| {
                budget.take(length)?;
                insert(place, position, &value)
            })
        }
        Edit::Remove { item, path } => {
            let path = Path::parse(path);
            if path.is_empty() {
                return Err("there is no path; to have an item gone, drop it".to_owned());
            }
            chosen(items, item)?.for_each(|(_, value)| remove(value, &path));
            Ok(())
        }
        Edit::Patch { item, operations } => {
            let patch: json_patch::Patch = serde_json::from_str(operations).map_err(|error| error.to_string())?;
            for (key, value) in chosen(items, item)? {
                patched(value, &patch, budget).map_err(|why| format!("item {key:?}: {why}"))?;
            }
            Ok(())
        }
        Edit::Put { key, message: bytes } => {
            budget.take(bytes.len())?;
            let value = trysail_codec::json::to_json(message, bytes).map_err(|error| error.to_string())?;
            put(items, key, value)
        }
        Edit::PutJson { key, message } => {
            budget.take(message.len())?;
            put(items, key, json(message)?)
        }
        Edit::Drop(key) => match items.iter().position(|(other, _)| other == key) {
            Some(number) => {
                items.remove(number);
                Ok(())
            }
            None => Err(format!("there is no item {key:?}")),
        },
    }
}

/// Applies a JSON Patch operation by operation: a few that copy what they copied before would fill any memory.
fn patched(value: &mut Value, patch: &json_patch::Patch, budget: &mut Budget) -> Result<(), String> {
    for operation in &patch.0 {
        let before = weight(value);
        json_patch::patch(value, std::slice::from_ref(operation)).map_err(|error| error.to_string())?;
        let after = weight(value);
        budget.take(after.saturating_sub(before))?;
    }
    Ok(())
}

/// About the bytes of a value.
fn weight(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + weight(value)).sum::<usize>() + 2,
        Value::Array(elements) => elements.iter().map(weight).sum::<usize>() + 2,
        Value::String(text) => text.len() + 2,
        _ => 8,
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("the value is no JSON: {error}"))
}

/// The items of a key; all for the empty one.
fn chosen<'a>(items: &'a mut Items, key: &'a str) -> Result<impl Iterator<Item = &'a mut (String, Value)>, String> {
    if !key.is_empty() && !items.iter().any(|(other, _)| other == key) {
        return Err(format!("there is no item {key:?}"));
    }
    Ok(items.iter_mut().filter(move |(other, _)| key.is_empty() || other == key))
}

fn at(
    items: &mut Items,
    item: &str,
    path: &str,
    makes: bool,
    change: &mut dyn FnMut(&mut Value) -> Result<(), String>,
) -> Result<(), String> {
    let path = Path::parse(path);
    for (key, value) in chosen(items, item)? {
        let visited = path
            .visit(value, makes, &mut |at, place| change(place).map_err(|why| format!("item {key:?}: {at}: {why}")))?;
        // Of a certain item something is expected; of all items some may lack it.
        if visited == 0 && !item.is_empty() {
            return Err(format!("item {key:?} has nothing at {path}"));
        }
    }
    Ok(())
}

/// Merges a value into a place: objects field by field, a null takes a field away, all else is replaced.
fn merge(place: &mut Value, value: &Value) -> Result<(), String> {
    let Value::Object(fields) = value else {
        *place = value.clone();
        return Ok(());
    };
    if place.is_null() {
        *place = Value::Object(Map::new());
    }
    let Value::Object(there) = place else {
        *place = value.clone();
        return Ok(());
    };
    if let (Some(has), Some(wants)) = (there.get("@type"), fields.get("@type"))
        && has != wants
    {
        return Err(format!("is a {has}, and cannot be merged with a {wants}"));
    }
    for (name, value) in fields {
        if value.is_null() {
            there.shift_remove(name);
        } else {
            merge(there.entry(name.clone()).or_insert(Value::Null), value)?;
        }
    }
    Ok(())
}

fn insert(place: &mut Value, position: &Position, value: &Value) -> Result<(), String> {
    if place.is_null() {
        *place = Value::Array(Vec::new());
    }
    let Value::Array(elements) = place else { return Err("is no list".to_owned()) };
    let named = |name: &str| {
        let found = elements.iter().position(|element| element.get("name").and_then(Value::as_str) == Some(name));
        found.ok_or_else(|| format!("has no element of the name {name:?}"))
    };
    let number = match position {
        Position::First => 0,
        Position::Last => elements.len(),
        Position::Before(name) => named(name)?,
        Position::After(name) => named(name)? + 1,
    };
    elements.insert(number, value.clone());
    Ok(())
}

/// Removes what a path leads to; nothing there is no error.
pub(crate) fn remove(value: &mut Value, path: &Path) {
    let Some((parent, last)) = path.split_last() else { return };
    let visited = parent.visit(value, false, &mut |_, place| {
        match (last, place) {
            (Step::Field(name), Value::Object(fields)) => drop(fields.shift_remove(name)),
            (Step::Field(name), Value::Array(elements)) => {
                if let Some(number) = name.parse().ok().filter(|number| *number < elements.len()) {
                    elements.remove(number);
                }
            }
            (Step::All, Value::Object(fields)) => fields.clear(),
            (Step::All, Value::Array(elements)) => elements.clear(),
            (Step::With(field, wanted), Value::Array(elements)) => {
                elements.retain(|element| element.get(field).and_then(Value::as_str) != Some(wanted));
            }
            _ => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    visited.unwrap_or_else(|never| match never {});
}

fn put(items: &mut Items, key: &str, value: Value) -> Result<(), String> {
    if key.is_empty() {
        return Err("an item needs a key".to_owned());
    }
    match items.iter_mut().find(|(other, _)| other == key) {
        Some((_, there)) => *there = value,
        None => items.push((key.to_owned(), value)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    fn items() -> Items {
        vec![
            ("a".into(), json!({"name": "a", "list": [{"name": "x"}, {"name": "y"}]})),
            ("b".into(), json!({"name": "b"})),
        ]
    }

    fn after(edit: Edit) -> Items {
        let mut items = items();
        apply(&mut items, CLUSTER, &[edit]).expect("it can be made");
        items
    }

    fn why_not(edit: Edit) -> String {
        apply(&mut items(), CLUSTER, &[edit]).expect_err("it cannot be made")
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn a_field_is_set_in_one_item_or_all() {
        let one = after(Edit::Set { item: text("b"), path: text("m/n"), value: text("1") });
        assert_eq!((&one[0].1, &one[1].1), (&items()[0].1, &json!({"name": "b", "m": {"n": 1}})));
        let all = after(Edit::Set { item: text(""), path: text("z"), value: text("1") });
        assert!(all.iter().all(|(_, value)| value["z"] == 1));
        let error = why_not(Edit::Set { item: text("c"), path: text("z"), value: text("1") });
        assert!(error.contains("edit 0 (set)") && error.contains("\"c\""), "{error}");
        let error = why_not(Edit::Set { item: text("a"), path: text("list/5/q"), value: text("1") });
        assert!(error.contains("nothing at list/5/q"), "{error}");
        let error = why_not(Edit::Set { item: text("a"), path: text("z"), value: text("{") });
        assert!(error.contains("no JSON"), "{error}");
    }

    #[test]
    fn objects_merge_and_all_else_is_replaced() {
        let merged = |value: Value| {
            after(Edit::Merge { item: text("a"), path: text(""), value: value.to_string() })[0].1.clone()
        };
        assert_eq!(merged(json!({"m": {"n": 1}}))["m"]["n"], 1);
        assert_eq!(merged(json!({"list": [1]})), json!({"name": "a", "list": [1]}));
        assert_eq!(merged(json!({"list": null})), json!({"name": "a"}));
        let mut typed: Items = vec![("a".into(), json!({"c": {"@type": "t", "x": 1}}))];
        let edit = |kind: &str| {
            [Edit::Merge { item: text("a"), path: text("c"), value: json!({"@type": kind, "y": 2}).to_string() }]
        };
        assert_eq!(apply(&mut typed, CLUSTER, &edit("t")), Ok(()));
        assert_eq!(typed[0].1["c"], json!({"@type": "t", "x": 1, "y": 2}));
        assert!(apply(&mut typed, CLUSTER, &edit("u")).expect_err("another type").contains("cannot be merged"));
    }

    #[test]
    fn elements_go_where_they_should() {
        let inserted = |position: Position| {
            let edit = Edit::Insert {
                item: text("a"),
                path: text("list"),
                at: position,
                value: json!({"name": "n"}).to_string(),
            };
            let items = after(edit);
            let list = items[0].1["list"].as_array().expect("it is one").clone();
            list.iter().map(|e| e["name"].as_str().unwrap_or_default().to_owned()).collect::<String>()
        };
        assert_eq!(inserted(Position::First), "nxy");
        assert_eq!(inserted(Position::Last), "xyn");
        assert_eq!(inserted(Position::Before(text("y"))), "xny");
        assert_eq!(inserted(Position::After(text("x"))), "xny");
        let at =
            |path: &str, position| Edit::Insert { item: text("a"), path: text(path), at: position, value: text("1") };
        assert!(why_not(at("list", Position::Before(text("q")))).contains("no element of the name \"q\""));
        assert!(why_not(at("name", Position::Last)).contains("is no list"));
    }

    #[test]
    fn what_is_removed_is_gone_and_what_is_not_there_is_no_error() {
        let without = |path: &str| after(Edit::Remove { item: text("a"), path: text(path) })[0].1.clone();
        assert_eq!(without("list/name=x"), json!({"name": "a", "list": [{"name": "y"}]}));
        assert_eq!(without("list/1"), json!({"name": "a", "list": [{"name": "x"}]}));
        assert_eq!(without("list"), json!({"name": "a"}));
        assert_eq!(without("nothing/here"), items()[0].1);
        assert!(why_not(Edit::Remove { item: text("a"), path: text("") }).contains("drop it"));
    }

    #[test]
    fn a_json_patch_is_one_as_the_standard_has_it() {
        let patch = |operations: Value| Edit::Patch { item: text("a"), operations: operations.to_string() };
        let patched = after(patch(
            json!([{"op": "test", "path": "/name", "value": "a"}, {"op": "add", "path": "/list/0", "value": 1}]),
        ));
        assert_eq!(patched[0].1["list"][0], 1);
        assert!(why_not(patch(json!([{"op": "remove", "path": "/nothing"}]))).contains("\"a\""));
        assert!(why_not(patch(json!([{"op": "burn", "path": "/name"}]))).contains("burn"));
    }

    #[test]
    fn no_edit_multiplies_what_it_brings() {
        let many = vec![Edit::Remove { item: text(""), path: text("q") }; MAX_EDITS + 1];
        assert!(apply(&mut items(), CLUSTER, &many).expect_err("too many").contains("are allowed"));
        // A megabyte into each of a hundred places.
        let mut wide: Items = vec![("a".into(), json!({"list": vec![json!({}); 100]}))];
        let big = json!("x".repeat(1 << 20)).to_string();
        let everywhere = Edit::Set { item: text("a"), path: text("list/*/x"), value: big };
        assert!(apply(&mut wide, CLUSTER, &[everywhere]).expect_err("too much").contains("bring more than"));
        // Thirty operations that double what the one before left.
        let double = json!({"op": "copy", "from": "/list", "path": "/list/-"});
        let operations = json!(vec![double; 30]).to_string();
        let bomb = Edit::Patch { item: text("a"), operations };
        assert!(apply(&mut items(), CLUSTER, &[bomb]).expect_err("too much").contains("bring more than"));
        let deep = Edit::PutJson { key: text("a"), message: "[".repeat(100_000) };
        assert!(why_not(deep).contains("no JSON"));
    }

    #[test]
    fn items_come_and_go() {
        let put = after(Edit::PutJson { key: text("b"), message: json!({"name": "b2"}).to_string() });
        assert_eq!(put[1], ("b".into(), json!({"name": "b2"})));
        assert_eq!(after(Edit::PutJson { key: text("c"), message: text("{}") }).len(), 3);
        assert_eq!(after(Edit::Drop(text("a"))).len(), 1);
        assert!(why_not(Edit::Drop(text("q"))).contains("no item"));
        // Field 1 is the name.
        let bytes = after(Edit::Put { key: text("c"), message: vec![0x0a, 1, b'n'] });
        assert_eq!(bytes[2], ("c".into(), json!({"name": "n"})));
        assert!(why_not(Edit::Put { key: text("c"), message: vec![0x0a] }).contains("edit 0 (put)"));
    }
}
