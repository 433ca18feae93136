//! What differs between two versions of a fragment: the ground on which rights, conflicts, shadows and status stand.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use trysail_stages::Effect;

use crate::hooks::Items;
use crate::path::{join, join_step, names_of};

/// Differences of one fragment that are told apart; what is beyond is summed up in one.
const MAX_EFFECTS: usize = 200;
/// Characters of a value that are kept.
const MAX_VALUE: usize = 300;

/// The fields that differ, sorted by item and path: all of them, since rights are judged by them.
pub fn between(before: &Items, after: &Items) -> Vec<Effect> {
    let mut found = Vec::new();
    // Looked up, since a plugin may have made as many as it likes.
    let by_key = |items: &'_ Items| -> BTreeMap<String, usize> {
        items.iter().rev().map(|(key, _)| key.clone()).zip((0..items.len()).rev()).collect()
    };
    let (in_before, in_after) = (by_key(before), by_key(after));
    for (key, old) in before {
        match in_after.get(key) {
            Some(number) => values(key, String::new(), old, &after[*number].1, &mut found),
            None => found.push(effect(key, String::new(), Some(old), None)),
        }
    }
    for (key, new) in after {
        if !in_before.contains_key(key) {
            found.push(effect(key, String::new(), None, Some(new)));
        }
    }
    let kept = |items: &Items, others: &BTreeMap<String, usize>| -> Vec<String> {
        items.iter().map(|(key, _)| key.clone()).filter(|key| others.contains_key(key)).collect()
    };
    let (old, new) = (kept(before, &in_after), kept(after, &in_before));
    if old != new {
        let order = |keys: &[String]| Some(keys.join(", "));
        found.push(Effect { item: String::new(), path: ORDER.into(), before: order(&old), after: order(&new) });
    }
    found.sort();
    found
}

/// As many of them, and as much of their values, as are worth keeping.
pub fn shortened(mut found: Vec<Effect>) -> Vec<Effect> {
    if found.len() > MAX_EFFECTS {
        let more = found.len() - MAX_EFFECTS;
        found.truncate(MAX_EFFECTS);
        found.push(Effect { item: String::new(), path: format!("and {more} more"), before: None, after: None });
    }
    for text in found.iter_mut().flat_map(|effect| [&mut effect.before, &mut effect.after]).flatten() {
        if let Some((end, _)) = text.char_indices().nth(MAX_VALUE) {
            text.truncate(end);
            text.push_str("...");
        }
    }
    found
}

/// The path that stands for the order of what is in a list.
pub const ORDER: &str = "[order]";

fn effect(item: &str, path: String, before: Option<&Value>, after: Option<&Value>) -> Effect {
    let text = |value: &Value| value.to_string();
    Effect { item: item.to_owned(), path, before: before.map(text), after: after.map(text) }
}

fn values(item: &str, path: String, old: &Value, new: &Value, found: &mut Vec<Effect>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            let empty = Map::new();
            // Another type is another message.
            if old.get("@type") != new.get("@type") {
                let (old, new) = (Value::Object(old.clone()), Value::Object(new.clone()));
                return found.push(effect(item, path, Some(&old), Some(&new)));
            }
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let below = join(&path, name);
                match (old.get(name), new.get(name)) {
                    (Some(old), Some(new)) => values(item, below, old, new, found),
                    // Field by field, so that rights can be given for fields.
                    (None, Some(Value::Object(new))) if !new.is_empty() => {
                        values(item, below, &Value::Object(empty.clone()), &Value::Object(new.clone()), found);
                    }
                    (old, new) => found.push(effect(item, below, old, new)),
                }
            }
        }
        (Value::Array(old), Value::Array(new)) => lists(item, &path, old, new, found),
        _ => found.push(effect(item, path, Some(old), Some(new))),
    }
}

fn lists(item: &str, path: &str, old: &[Value], new: &[Value], found: &mut Vec<Effect>) {
    let (names_old, names_new) = (names_of(old), names_of(new));
    // Looked up, since a plugin may have made the list as long as it likes.
    let by_name = |names: &'_ [String]| -> BTreeMap<String, usize> { names.iter().cloned().zip(0..).collect() };
    let (in_old, in_new) = (by_name(&names_old), by_name(&names_new));
    for (name, old) in names_old.iter().zip(old) {
        let below = join_step(path, name);
        match in_new.get(name) {
            Some(number) => values(item, below, old, &new[*number], found),
            None => found.push(effect(item, below, Some(old), None)),
        }
    }
    for (name, new) in names_new.iter().zip(new) {
        if !in_old.contains_key(name) {
            found.push(effect(item, join_step(path, name), None, Some(new)));
        }
    }
    let common = |names: &[String], others: &BTreeMap<String, usize>| -> Vec<String> {
        names.iter().filter(|name| others.contains_key(*name)).cloned().collect()
    };
    let (before, after) = (common(&names_old, &in_new), common(&names_new, &in_old));
    if before != after {
        let text = |names: &[String]| Some(names.join(", "));
        let (before, after) = (text(&before), text(&after));
        found.push(Effect { item: item.to_owned(), path: join_step(path, ORDER), before, after });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn differences(old: Value, new: Value) -> Vec<String> {
        let items = |value: Value| vec![("i".to_owned(), value)];
        let said = |effect: &Effect| {
            let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
            format!("{} {} > {}", effect.path, text(&effect.before), text(&effect.after))
        };
        between(&items(old), &items(new)).iter().map(said).collect()
    }

    #[test]
    fn each_field_that_differs_is_named() {
        assert_eq!(differences(json!({"a": 1, "b": {"c": 2}}), json!({"a": 1, "b": {"c": 3}})), ["b/c 2 > 3"]);
        assert_eq!(differences(json!({"a": 1}), json!({"b": {"c": 1, "d": 2}})), ["a 1 > -", "b/c - > 1", "b/d - > 2"]);
        assert!(differences(json!({"a": [1, 2]}), json!({"a": [1, 2]})).is_empty());
    }

    #[test]
    fn elements_with_names_are_known_by_them() {
        let list = |names: &[&str]| json!({"l": names.iter().map(|n| json!({"name": n, "x": 1})).collect::<Vec<_>>()});
        assert_eq!(differences(list(&["a", "b"]), list(&["a", "n", "b"])), [r#"l/name=n - > {"name":"n","x":1}"#]);
        assert_eq!(differences(list(&["a", "b"]), list(&["b", "a"])), ["l/[order] name=a, name=b > name=b, name=a"]);
        assert_eq!(differences(json!({"l": [1, 2]}), json!({"l": [1, 3, 4]})), ["l/1 2 > 3", "l/2 - > 4"]);
    }

    #[test]
    fn items_come_go_and_change_places() {
        let items = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect::<Items>();
        let paths = |old: &[&str], new: &[&str]| {
            let found = between(&items(old), &items(new));
            found.into_iter().map(|effect| format!("{}:{}", effect.item, effect.path)).collect::<Vec<_>>()
        };
        assert_eq!(paths(&["a", "b"], &["b", "c"]), ["a:", "c:"]);
        assert_eq!(paths(&["a", "b"], &["b", "a"]), [":[order]"]);
    }

    #[test]
    fn long_values_and_many_differences_are_cut() {
        let long = Effect { item: "i".into(), path: "a".into(), before: None, after: Some("x".repeat(1000)) };
        let cut = shortened(vec![long]).remove(0).after.unwrap_or_default();
        assert!(cut.len() < 400 && cut.ends_with("..."));
        let many: Map<String, Value> = (0..500).map(|i| (format!("f{i:03}"), json!(i))).collect();
        let items = |value: Value| vec![("i".to_owned(), value)];
        let found = between(&items(json!({})), &items(Value::Object(many)));
        assert_eq!(found.len(), 500);
        let found = shortened(found);
        assert_eq!((found.len(), found[MAX_EFFECTS].path.as_str()), (MAX_EFFECTS + 1, "and 300 more"));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..3i32).prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[ab]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Nothing that differs goes unseen: rights stand on this.
        #[test]
        fn there_is_a_difference_where_values_differ(old in value(), new in value()) {
            let found = differences(old.clone(), new.clone());
            prop_assert_eq!(found.is_empty(), old == new, "{:?}", found);
        }
    }
}
