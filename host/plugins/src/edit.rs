//! Edits: what plugins want done, done on JSON.
//!
//! **Invariant:** the work is bounded by the size of the fragment and of what the plugin said, whatever that is: no edit multiplies
//! what it brings beyond a budget, nests deeper, or looks at more places, since this runs on the host's time, in its memory and
//! on its stack.

use json_patch::PatchOperation;
use serde_json::{Map, Value};
use trysail_sdk::{Edit, Position};

use crate::hooks::Items;
use crate::path::{Exhausted, MAX_STEPS, Path, Step, Stop, Work};

/// Edits of one outcome.
const MAX_EDITS: usize = 1_000;
/// Places that all edits of one outcome may look at.
const MAX_PLACES: usize = 2_000_000;
/// Levels of objects and lists in what an edit brings, and below which one puts it.
const MAX_DEPTH: usize = 128;
/// Bytes of a field's name in what an edit brings.
const MAX_NAME: usize = 1024;
/// What a byte of an encoded message counts for, since it may take a hundred bytes and more once it is decoded.
const ENCODED: usize = 4;

/// What is left of what edits may bring, and look at.
struct Budget {
    /// Bytes that all edits of one outcome put into all places.
    bytes: usize,
    /// What they may be in all.
    of: usize,
    work: Work,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.bytes.checked_sub(bytes.max(1));
        self.bytes = left.ok_or_else(|| format!("all edits together bring more than {} bytes", self.of))?;
        Ok(())
    }

    fn look(&mut self, places: usize) -> Result<(), String> {
        self.work.take(places).map_err(|exhausted: Exhausted| exhausted.to_string())
    }
}

/// Applies edits in order. `message` is the name of the items' message, for those that come as protobuf; `bytes` is what they may
/// bring in all, counted in each place that they put it into.
///
/// # Errors
/// The first edit that cannot be made: its number, and why. What the items are then is of no use to anybody.
pub fn apply(items: &mut Items, message: &str, edits: &[Edit], bytes: usize) -> Result<(), String> {
    if edits.len() > MAX_EDITS {
        return Err(format!("{} edits, where {MAX_EDITS} are allowed", edits.len()));
    }
    let mut budget = Budget { bytes, of: bytes, work: Work::new(MAX_PLACES) };
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
    budget.look(1 + items.len())?;
    match edit {
        Edit::Set { item, path, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, budget, &mut |place, budget| {
                budget.take(length)?;
                *place = value.clone();
                Ok(())
            })
        }
        Edit::Merge { item, path, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, budget, &mut |place, budget| {
                budget.take(length)?;
                merge(place, &value)
            })
        }
        Edit::Insert { item, path, at: position, value } => {
            let (length, value) = (value.len(), json(value)?);
            at(items, item, path, budget, &mut |place, budget| {
                budget.take(length)?;
                budget.look(place.as_array().map_or(0, Vec::len))?;
                insert(place, position, &value)
            })
        }
        Edit::Remove { item, path } => {
            let path = Path::given(path)?;
            if path.is_empty() {
                return Err("there is no path; to have an item gone, drop it".to_owned());
            }
            for (_, value) in chosen(items, item)? {
                removed(value, &path, &mut budget.work).map_err(|exhausted| exhausted.to_string())?;
            }
            Ok(())
        }
        Edit::Patch { item, operations } => {
            budget.take(operations.len())?;
            let patch: json_patch::Patch = serde_json::from_str(operations).map_err(|error| error.to_string())?;
            for (key, value) in chosen(items, item)? {
                patched(value, &patch, budget).map_err(|why| format!("item {key:?}: {why}"))?;
            }
            Ok(())
        }
        Edit::Put { key, message: bytes } => {
            budget.take(bytes.len().saturating_mul(ENCODED))?;
            let value = trysail_codec::json::to_json(message, bytes).map_err(|error| error.to_string())?;
            measure(&value)?;
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

/// Applies a JSON Patch operation by operation, each once it is known what it costs: a few that copy what they copied before would
/// fill any memory, or nest deeper than any stack bears.
fn patched(value: &mut Value, patch: &json_patch::Patch, budget: &mut Budget) -> Result<(), String> {
    for operation in &patch.0 {
        let path = operation.path().as_str();
        // The way there, and what stands after a place in a list, which has to move.
        budget.look(1 + path.len() / 8)?;
        let list = path.rsplit_once('/').and_then(|(parent, _)| value.pointer(parent)?.as_array());
        budget.look(list.map_or(0, Vec::len) / 8)?;
        let brings = match operation {
            PatchOperation::Add(add) => Some(measure(&add.value)?),
            PatchOperation::Replace(replace) => Some(measure(&replace.value)?),
            PatchOperation::Test(test) => {
                budget.look(measure(&test.value)?.values)?;
                None
            }
            PatchOperation::Copy(copy) => {
                let copied = value.pointer(copy.from.as_str()).map(measure).transpose()?;
                budget.take(copied.as_ref().map_or(0, |copied| copied.weight))?;
                copied
            }
            PatchOperation::Move(moved) => value.pointer(moved.from.as_str()).map(measure).transpose()?,
            PatchOperation::Remove(_) => None,
        };
        if let Some(brings) = brings {
            budget.take(brings.weight)?;
            budget.look(brings.values)?;
            if brings.depth + path.matches('/').count() > MAX_DEPTH + MAX_STEPS {
                return Err(too_deep());
            }
        }
        json_patch::patch_unsafe(value, std::slice::from_ref(operation)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What a value comes to.
#[derive(Clone, Copy, Default)]
struct Measure {
    /// About its bytes.
    weight: usize,
    /// Values in it.
    values: usize,
    /// Levels of it.
    depth: usize,
}

/// Measures a value.
///
/// # Errors
/// When it nests too deeply, or a field has a name that is none.
fn measure(value: &Value) -> Result<Measure, String> {
    fn go(value: &Value, depth: usize, all: &mut Measure) -> Result<(), String> {
        if depth > MAX_DEPTH + MAX_STEPS {
            return Err(too_deep());
        }
        all.values += 1;
        all.depth = all.depth.max(depth);
        all.weight += 2;
        match value {
            Value::Object(fields) => fields.iter().try_for_each(|(name, inner)| {
                if name.len() > MAX_NAME {
                    return Err(format!("has a field with a name of {} bytes", name.len()));
                }
                all.weight += name.len();
                go(inner, depth + 1, all)
            }),
            Value::Array(elements) => elements.iter().try_for_each(|inner| go(inner, depth + 1, all)),
            Value::String(text) => {
                all.weight += text.len();
                Ok(())
            }
            _ => {
                all.weight += 6;
                Ok(())
            }
        }
    }
    let mut all = Measure::default();
    go(value, 0, &mut all)?;
    Ok(all)
}

fn too_deep() -> String {
    format!("nests more than {MAX_DEPTH} levels deep")
}

fn json(text: &str) -> Result<Value, String> {
    let value = serde_json::from_str(text).map_err(|error| format!("the value is no JSON: {error}"))?;
    measure(&value)?;
    Ok(value)
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
    budget: &mut Budget,
    change: &mut dyn FnMut(&mut Value, &mut Budget) -> Result<(), String>,
) -> Result<(), String> {
    let path = Path::given(path)?;
    for (key, value) in chosen(items, item)? {
        // Apart, so that what is changed can be paid for while the way to the next place is.
        let mut work = std::mem::replace(&mut budget.work, Work::new(0));
        let left = work.split();
        budget.work = left;
        let visited = path.visit_within(&mut work, value, true, &mut |at, place| {
            change(place, budget).map_err(|why| format!("item {key:?}: {at}: {why}"))
        });
        budget.work.join(work);
        // Of a certain item something is expected; of all items some may lack it.
        if visited.map_err(String::from)? == 0 && !item.is_empty() {
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
    removed(value, path, &mut Work::new(usize::MAX)).expect("no message has as many places as there are numbers");
}

fn removed(value: &mut Value, path: &Path, work: &mut Work) -> Result<(), Exhausted> {
    let Some((parent, last)) = path.split_last() else { return Ok(()) };
    let visited = parent.visit_within(work, value, false, &mut |_, place| {
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
    match visited {
        Ok(_) => Ok(()),
        Err(Stop::Exhausted) => Err(Exhausted),
        Err(Stop::Said(never)) => match never {},
    }
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
    const BYTES: usize = 4 << 20;

    fn apply(items: &mut Items, message: &str, edits: &[Edit]) -> Result<(), String> {
        super::apply(items, message, edits, BYTES)
    }

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
    fn nothing_nests_deeper_than_the_stack_bears() {
        // Fields on the way are made, so that a path is a way to nest.
        let path = Edit::Set { item: text("a"), path: "x/".repeat(1_000_000), value: text("1") };
        assert!(why_not(path).contains("a path of"));
        let steps = Edit::Set { item: text("a"), path: "x/".repeat(200), value: text("1") };
        assert!(why_not(steps).contains("steps"));
        // Each operation puts what is there into its own depth, and so doubles that.
        let mut operations = vec![json!({"op": "add", "path": "/x", "value": {}})];
        for power in 0..16 {
            let place = "/x".repeat((1 << power) + 1);
            operations.push(json!({"op": "copy", "from": "/x", "path": place}));
        }
        let bomb = Edit::Patch { item: text("b"), operations: Value::from(operations).to_string() };
        let error = why_not(bomb);
        assert!(error.contains("levels deep"), "{error}");
    }

    #[test]
    fn looking_is_bounded_as_well() {
        let wide = json!({"list": vec![json!({"x": vec![0; 50]}); 1000]});
        let nothing = |path: &str| Edit::Remove { item: text(""), path: text(path) };
        let many = vec![nothing("list/*/x/*/y/z"); MAX_EDITS];
        let error = apply(&mut vec![("a".into(), wide.clone())], CLUSTER, &many).expect_err("too much to look at");
        assert!(error.contains("look at more places"), "{error}");
        let test = json!({"op": "test", "path": "/list", "value": wide["list"]});
        let tests = Edit::Patch { item: text(""), operations: json!(vec![test; 10]).to_string() };
        let error = apply(&mut vec![("a".into(), wide.clone())], CLUSTER, &vec![tests; 40]).expect_err("too much");
        assert!(error.contains("bring more than") || error.contains("look at more places"), "{error}");
        let fronts = Edit::Patch {
            item: text(""),
            operations: json!(vec![json!({"op": "add", "path": "/list/0", "value": 1}); 10_000]).to_string(),
        };
        let error = apply(&mut vec![("a".into(), wide)], CLUSTER, &vec![fronts; 10]).expect_err("too much");
        assert!(error.contains("bring more than") || error.contains("look at more places"), "{error}");
    }

    #[test]
    fn names_have_a_length() {
        let long = json!({ "n".repeat(MAX_NAME + 1): 1 }).to_string();
        let error = why_not(Edit::Merge { item: text("a"), path: text(""), value: long });
        assert!(error.contains("a name of"), "{error}");
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
