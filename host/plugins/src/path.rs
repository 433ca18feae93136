//! Paths into a message as JSON: `filter_chains/*/filters/name=envoy.filters.network.tcp_proxy/typed_config`.

use std::fmt;

use serde_json::{Map, Value};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of a message, a key of a map, or the number of an element.
    Field(String),
    /// Every element of a list, every value of a map.
    All,
    /// The elements whose field has this text.
    With(String, String),
    /// In patterns: anything at all, also nothing, at any depth.
    Deep,
}

/// A path. The empty path is the message itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Step>);

impl Path {
    /// Reads a path. `~1` in a step stands for `/`, `~0` for `~`. A leading `/` is no harm.
    pub fn parse(text: &str) -> Path {
        let text = text.strip_prefix('/').unwrap_or(text);
        if text.is_empty() {
            return Path::default();
        }
        let step = |part: &str| match part {
            "*" => Step::All,
            "**" => Step::Deep,
            _ => match part.split_once('=') {
                Some((field, value)) => Step::With(unescape(field), unescape(value)),
                None => Step::Field(unescape(part)),
            },
        };
        Path(text.split('/').map(step).collect())
    }

    /// Is it the message itself?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path to the parent, and the last step.
    pub fn split_last(&self) -> Option<(Path, &Step)> {
        let (last, before) = self.0.split_last()?;
        Some((Path(before.to_vec()), last))
    }

    /// Does this path, as a pattern, cover a concrete one (as [`visit`](Path::visit) gives them)?
    ///
    /// A pattern covers what lies below it, too: who may write a message may write its fields.
    pub fn covers(&self, concrete: &str) -> bool {
        fn matches(pattern: &[Step], parts: &[&str]) -> bool {
            match (pattern.split_first(), parts.split_first()) {
                (None, _) => true,
                (Some((Step::Deep, rest)), _) => (0..=parts.len()).any(|skipped| matches(rest, &parts[skipped..])),
                (Some(_), None) => false,
                (Some((step, rest)), Some((part, parts))) => {
                    let fits = match step {
                        Step::All => true,
                        Step::Field(name) => unescape(part) == *name,
                        Step::With(field, value) => {
                            part.split_once('=').is_some_and(|(f, v)| unescape(f) == *field && unescape(v) == *value)
                        }
                        Step::Deep => unreachable!("it is matched above"),
                    };
                    fits && matches(rest, parts)
                }
            }
        }
        let parts: Vec<&str> = if concrete.is_empty() { Vec::new() } else { concrete.split('/').collect() };
        matches(&self.0, &parts)
    }

    /// Calls `visit` with every place that the path leads to, and the concrete path there. With `makes`, fields on the way that are not
    /// there are made; elements of lists never are. The number of places.
    ///
    /// # Errors
    /// What `visit` says.
    pub fn visit<E>(
        &self,
        value: &mut Value,
        makes: bool,
        visit: &mut impl FnMut(&str, &mut Value) -> Result<(), E>,
    ) -> Result<usize, E> {
        walk(&self.0, value, String::new(), makes, visit)
    }
}

fn walk<E>(
    steps: &[Step],
    value: &mut Value,
    at: String,
    makes: bool,
    visit: &mut impl FnMut(&str, &mut Value) -> Result<(), E>,
) -> Result<usize, E> {
    let Some((step, rest)) = steps.split_first() else {
        visit(&at, value)?;
        return Ok(1);
    };
    let mut n_places = 0;
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => {
            if makes && !fields.contains_key(name) {
                fields.insert(name.clone(), empty_before(rest));
            }
            if let Some(inner) = fields.get_mut(name) {
                n_places += walk(rest, inner, join(&at, name), makes, visit)?;
            }
        }
        (Step::Field(name), Value::Array(elements)) => {
            if let Some(inner) = name.parse::<usize>().ok().and_then(|number| elements.get_mut(number)) {
                n_places += walk(rest, inner, join(&at, name), makes, visit)?;
            }
        }
        (Step::All, Value::Object(fields)) => {
            for (name, inner) in fields.iter_mut() {
                n_places += walk(rest, inner, join(&at, name), makes, visit)?;
            }
        }
        (Step::All, Value::Array(elements)) => {
            let names = names_of(elements);
            for (inner, name) in elements.iter_mut().zip(names) {
                n_places += walk(rest, inner, join_step(&at, &name), makes, visit)?;
            }
        }
        (Step::With(field, wanted), Value::Array(elements)) => {
            for inner in elements.iter_mut() {
                if inner.get(field).and_then(Value::as_str) == Some(wanted) {
                    let here = join_step(&at, &format!("{}={}", escape(field), escape(wanted)));
                    n_places += walk(rest, inner, here, makes, visit)?;
                }
            }
        }
        _ => {}
    }
    Ok(n_places)
}

/// What a field that is made holds at first.
fn empty_before(rest: &[Step]) -> Value {
    if rest.is_empty() { Value::Null } else { Value::Object(Map::new()) }
}

/// How the elements of a list are called in paths: by their names where these tell them apart, else by their numbers.
pub(crate) fn names_of(elements: &[Value]) -> Vec<String> {
    let names: Vec<Option<&str>> = elements.iter().map(|element| element.get("name").and_then(Value::as_str)).collect();
    let mut seen = std::collections::BTreeSet::new();
    if names.iter().all(|name| name.is_some_and(|name| !name.is_empty() && seen.insert(name))) {
        return names.into_iter().flatten().map(|name| format!("name={}", escape(name))).collect();
    }
    (0..elements.len()).map(|number| number.to_string()).collect()
}

/// A path with one more step, a field's name.
pub(crate) fn join(path: &str, name: &str) -> String {
    join_step(path, &escape(name))
}

/// A path with one more step, as it is written.
pub(crate) fn join_step(path: &str, step: &str) -> String {
    if path.is_empty() { step.to_owned() } else { format!("{path}/{step}") }
}

fn escape(text: &str) -> String {
    text.replace('~', "~0").replace('/', "~1")
}

fn unescape(text: &str) -> String {
    text.replace("~1", "/").replace("~0", "~")
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("/")?;
            }
            match step {
                Step::Field(name) => f.write_str(&escape(name))?,
                Step::All => f.write_str("*")?,
                Step::Deep => f.write_str("**")?,
                Step::With(field, value) => write!(f, "{}={}", escape(field), escape(value))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn places(path: &str, mut value: Value) -> Vec<String> {
        let mut found = Vec::new();
        let visited = Path::parse(path).visit(&mut value, false, &mut |at, value| {
            found.push(format!("{at}: {value}"));
            Ok::<(), ()>(())
        });
        assert_eq!(visited, Ok(found.len()));
        found
    }

    #[test]
    fn a_path_leads_to_every_place_that_it_names() {
        let listener = json!({"filter_chains": [
            {"filters": [{"name": "a", "x": 1}, {"name": "b", "x": 2}]},
            {"filters": [{"name": "b", "x": 3}]}
        ], "metadata": {"m/n": 4}});
        assert_eq!(
            places("filter_chains/*/filters/name=b/x", listener.clone()),
            ["filter_chains/0/filters/name=b/x: 2", "filter_chains/1/filters/name=b/x: 3"]
        );
        assert_eq!(places("filter_chains/0/filters/1/x", listener.clone()), ["filter_chains/0/filters/1/x: 2"]);
        assert_eq!(
            places("/filter_chains/0/filters/*/x", listener.clone()),
            ["filter_chains/0/filters/name=a/x: 1", "filter_chains/0/filters/name=b/x: 2"]
        );
        assert_eq!(places("metadata/m~1n", listener.clone()), ["metadata/m~1n: 4"]);
        assert_eq!(places("", json!(1)), [": 1"]);
        assert!(places("filter_chains/7", listener.clone()).is_empty() && places("nothing/here", listener).is_empty());
    }

    #[test]
    fn fields_on_the_way_are_made_and_elements_are_not() {
        let mut value = json!({"list": []});
        let set = |path: &str, value: &mut Value| {
            Path::parse(path).visit(value, true, &mut |_, place| {
                *place = json!(1);
                Ok::<(), ()>(())
            })
        };
        assert_eq!(set("a/b/c", &mut value), Ok(1));
        assert_eq!(set("list/0/x", &mut value), Ok(0));
        assert_eq!(value, json!({"list": [], "a": {"b": {"c": 1}}}));
    }

    #[test]
    fn a_pattern_covers_places_and_what_is_below() {
        let covers = |pattern: &str, place: &str| Path::parse(pattern).covers(place);
        assert!(covers("connect_timeout", "connect_timeout"));
        assert!(covers("circuit_breakers", "circuit_breakers/thresholds/0/max_requests"));
        assert!(!covers("circuit_breakers/thresholds", "circuit_breakers") && !covers("connect", "connect_timeout"));
        assert!(covers("filter_chains/*/filters/name=a", "filter_chains/3/filters/name=a/typed_config/x"));
        assert!(!covers("filter_chains/*/filters/name=a", "filter_chains/3/filters/name=b"));
        assert!(covers("**/access_log", "filter_chains/0/filters/name=h/typed_config/access_log/0"));
        assert!(covers("", "anything") && covers("**", "") && !covers("**/a", "b/c"));
    }

    proptest! {
        /// What a visit calls a place leads there again, and a path covers where it leads.
        #[test]
        fn places_are_paths(fields in prop::collection::vec("[a-c/~=]{1,3}", 1..4)) {
            let mut value = json!(1);
            for field in fields.iter().rev() {
                value = json!({ field.as_str(): value });
            }
            let path = Path(fields.iter().map(|field| Step::Field(field.clone())).collect());
            let mut at = String::new();
            let visited = path.visit(&mut value, false, &mut |place, _| { at = place.to_owned(); Ok::<(), ()>(()) });
            prop_assert_eq!(visited, Ok(1));
            prop_assert!(path.covers(&at), "{} covers {}", path, at);
        }
    }
}
