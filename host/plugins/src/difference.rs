//! What differs between two versions of a fragment: the ground on which rights, conflicts, shadows and status stand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::{Map, Value};
use trysail_stages::Effect;

use crate::hooks::Items;
use crate::path::{escape, names_of, push_step};

/// How much is kept of what differs.
#[derive(Clone, Copy)]
struct Most {
    /// Differences that are told apart; what is beyond is summed up in one.
    effects: usize,
    /// Bytes of a value, and of a path.
    bytes: usize,
}

/// Where plugins that nobody knows are at work.
const KEPT: Most = Most { effects: 200, bytes: 300 };

/// The fields that differ, sorted by item and path, with all of their values: for who looks at plugins of his own.
pub fn between(before: &Items, after: &Items) -> Vec<Effect> {
    let all = Most { effects: usize::MAX, bytes: usize::MAX };
    look(before, after, all, &mut |_, _| Ok(())).unwrap_or_default()
}

/// Some of them with the beginnings of their values, after `judge` was told of every field that differs, by item and path: rights
/// stand on this. A plugin may have made as many fields as it likes, under names as long as it likes, so that nothing is kept of
/// more than a few.
///
/// # Errors
/// The first thing that `judge` says.
pub fn judged(
    before: &Items,
    after: &Items,
    judge: &mut dyn FnMut(&str, &str) -> Result<(), String>,
) -> Result<Vec<Effect>, String> {
    look(before, after, KEPT, judge)
}

fn look(
    before: &Items,
    after: &Items,
    most: Most,
    judge: &mut dyn FnMut(&str, &str) -> Result<(), String>,
) -> Result<Vec<Effect>, String> {
    let mut found = Found { judge, most, path: String::new(), list: Vec::new(), more: 0 };
    // Looked up, since there may be many.
    let by_key = |items: &'_ Items| -> BTreeMap<String, usize> {
        items.iter().rev().map(|(key, _)| key.clone()).zip((0..items.len()).rev()).collect()
    };
    let (in_before, in_after) = (by_key(before), by_key(after));
    for (key, old) in before {
        match in_after.get(key) {
            Some(number) if *old == after[*number].1 => {}
            Some(number) => found.values(key, old, &after[*number].1)?,
            None => found.differs(key, Some(old), None)?,
        }
    }
    for (key, new) in after {
        if !in_before.contains_key(key) {
            found.differs(key, None, Some(new))?;
        }
    }
    let kept = |items: &Items, others: &BTreeMap<String, usize>| -> Vec<String> {
        items.iter().map(|(key, _)| key.clone()).filter(|key| others.contains_key(key)).collect()
    };
    found.order("", &kept(before, &in_after), &kept(after, &in_before))?;
    let Found { mut list, more, .. } = found;
    list.sort();
    if more > 0 {
        list.push(Effect { item: String::new(), path: format!("and {more} more"), before: None, after: None });
    }
    Ok(list)
}

/// The path that stands for the order of what is in a list.
pub const ORDER: &str = "[order]";

/// What was found so far, and where the look is.
struct Found<'a> {
    judge: &'a mut dyn FnMut(&str, &str) -> Result<(), String>,
    most: Most,
    path: String,
    list: Vec<Effect>,
    more: usize,
}

impl Found<'_> {
    /// Here something differs.
    fn differs(&mut self, item: &str, before: Option<&Value>, after: Option<&Value>) -> Result<(), String> {
        let most = self.most.bytes;
        self.note(item, || (before.map(|value| short(value, most)), after.map(|value| short(value, most))))
    }

    fn note(&mut self, item: &str, values: impl FnOnce() -> (Option<String>, Option<String>)) -> Result<(), String> {
        (self.judge)(item, &self.path)?;
        if self.list.len() < self.most.effects {
            let (before, after) = values();
            let (item, path) = (cut(item, self.most.bytes), cut(&self.path, self.most.bytes));
            self.list.push(Effect { item, path, before, after });
        } else {
            self.more += 1;
        }
        Ok(())
    }

    /// The order of what is in both, where it differs.
    fn order(&mut self, item: &str, before: &[String], after: &[String]) -> Result<(), String> {
        if before == after {
            return Ok(());
        }
        let most = self.most.bytes;
        let text = |names: &[String]| {
            let mut text = Short { text: Vec::new(), most };
            // It has enough when it says so.
            let _ =
                names.iter().zip(std::iter::once("").chain(std::iter::repeat(", "))).try_for_each(|(name, comma)| {
                    text.write_all(comma.as_bytes())?;
                    text.write_all(name.as_bytes())
                });
            Some(text.end())
        };
        self.at(ORDER, |found| found.note(item, || (text(before), text(after))))
    }

    /// Looks one step deeper.
    fn at(&mut self, step: &str, look: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        let length = self.path.len();
        push_step(&mut self.path, step);
        let looked = look(self);
        self.path.truncate(length);
        looked
    }

    fn values(&mut self, item: &str, old: &Value, new: &Value) -> Result<(), String> {
        match (old, new) {
            (Value::Object(before), Value::Object(after)) => {
                // Another type is another message.
                if before.get(TYPE) == after.get(TYPE) {
                    self.fields(item, before, after)
                } else {
                    self.differs(item, Some(old), Some(new))
                }
            }
            (Value::Array(old), Value::Array(new)) => self.lists(item, old, new),
            _ if old == new => Ok(()),
            _ => self.differs(item, Some(old), Some(new)),
        }
    }

    fn fields(&mut self, item: &str, old: &Map<String, Value>, new: &Map<String, Value>) -> Result<(), String> {
        let empty = Map::new();
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            self.at(&escape(name), |found| match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) => found.values(item, old, new),
                // Field by field, so that rights can be given for fields.
                (None, Some(Value::Object(new))) if !new.is_empty() && !new.contains_key(TYPE) => {
                    found.fields(item, &empty, new)
                }
                (old, new) => found.differs(item, old, new),
            })?;
        }
        Ok(())
    }

    fn lists(&mut self, item: &str, old: &[Value], new: &[Value]) -> Result<(), String> {
        let (names_old, names_new) = (names_of(old), names_of(new));
        let by_name = |names: &'_ [String]| -> BTreeMap<String, usize> { names.iter().cloned().zip(0..).collect() };
        let (in_old, in_new) = (by_name(&names_old), by_name(&names_new));
        for (name, old) in names_old.iter().zip(old) {
            self.at(name, |found| match in_new.get(name) {
                Some(number) => found.values(item, old, &new[*number]),
                None => found.differs(item, Some(old), None),
            })?;
        }
        for (name, new) in names_new.iter().zip(new) {
            if !in_old.contains_key(name) {
                self.at(name, |found| found.differs(item, None, Some(new)))?;
            }
        }
        let common = |names: &[String], others: &BTreeMap<String, usize>| -> Vec<String> {
            names.iter().filter(|name| others.contains_key(*name)).cloned().collect()
        };
        self.order(item, &common(&names_old, &in_new), &common(&names_new, &in_old))
    }
}

/// Where the type of what an `Any` holds stands.
const TYPE: &str = "@type";

/// The beginning of a text.
struct Short {
    text: Vec<u8>,
    most: usize,
}

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() > self.most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(&bytes[..bytes.len().min(self.most.saturating_add(1))]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Short {
    fn end(self) -> String {
        cut(&String::from_utf8_lossy(&self.text), self.most)
    }
}

/// A value as JSON, as much of it as is worth keeping.
fn short(value: &Value, most: usize) -> String {
    let mut text = Short { text: Vec::new(), most };
    // It has enough when it says so.
    let _ = serde_json::to_writer(&mut text, value);
    text.end()
}

/// As much of a text as is worth keeping.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &text[..end])
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
    fn long_values_and_many_differences_are_cut_and_all_are_judged() {
        let judged = |old: Value, new: Value| {
            judged(&vec![("i".into(), old)], &vec![("i".into(), new)], &mut |_, _| Ok(())).expect("nobody objects")
        };
        let long = judged(json!({}), json!({"a": "ä".repeat(1000)}));
        let cut = long[0].after.clone().unwrap_or_default();
        assert!(cut.len() < 400 && cut.ends_with("..."), "{cut}");
        let many: Map<String, Value> = (0..500).map(|i| (format!("f{i:03}"), json!(i))).collect();
        let items = |value: Value| vec![("i".to_owned(), value)];
        let mut seen = 0;
        let found = super::judged(&items(json!({})), &items(Value::Object(many)), &mut |_, _| {
            seen += 1;
            Ok(())
        });
        let found = found.expect("nobody objects");
        assert_eq!(seen, 500);
        assert_eq!((found.len(), found[KEPT.effects].path.as_str()), (KEPT.effects + 1, "and 300 more"));
    }

    #[test]
    fn a_long_name_around_many_fields_is_not_kept_once_for_each() {
        let many: Map<String, Value> = (0..20_000).map(|i| (i.to_string(), json!(i))).collect();
        let name = "n".repeat(100_000);
        let (old, new) = (vec![("i".into(), json!({}))], vec![("i".into(), json!({ name: many }))]);
        let found = judged(&old, &new, &mut |_, _| Ok(())).expect("nobody objects");
        let kept: usize = found.iter().map(|effect| effect.path.len()).sum();
        assert!(kept < 100_000, "{kept} bytes of paths");
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
