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

/// Steps of a path that a plugin gives: fewer than what nests in any message of Envoy, since walking one takes stack.
pub const MAX_STEPS: usize = 64;
/// Bytes of such a path.
const MAX_TEXT: usize = 4096;

/// Places that may still be looked at. Patterns with `*` lead to many, and this is the host's time.
#[derive(Debug)]
pub struct Work(usize);

/// There is nothing left of [`Work`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("has the host look at more places than is allowed")]
pub struct Exhausted;

impl Work {
    /// So many places.
    pub fn new(places: usize) -> Work {
        Work(places)
    }

    /// Halves it: for what is paid for on the way, and for the way.
    pub(crate) fn split(&mut self) -> Work {
        let half = self.0 / 2;
        self.0 -= half;
        Work(half)
    }

    /// Puts what was left of a part back.
    pub(crate) fn join(&mut self, other: Work) {
        self.0 += other.0;
    }

    /// Takes places off.
    ///
    /// # Errors
    /// When there are not as many left.
    pub fn take(&mut self, places: usize) -> Result<(), Exhausted> {
        match self.0.checked_sub(places) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                self.0 = 0;
                Err(Exhausted)
            }
        }
    }
}

/// Why a visit ended early.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// There was more to look at than may be.
    Exhausted,
    /// What the visitor said.
    Said(E),
}

impl<E> From<Exhausted> for Stop<E> {
    fn from(_: Exhausted) -> Self {
        Stop::Exhausted
    }
}

impl From<Stop<String>> for String {
    fn from(stop: Stop<String>) -> String {
        match stop {
            Stop::Exhausted => Exhausted.to_string(),
            Stop::Said(why) => why,
        }
    }
}

impl Path {
    /// Reads a path that a plugin gave.
    ///
    /// # Errors
    /// When it is longer than any that leads somewhere.
    pub fn given(text: &str) -> Result<Path, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("a path of {} bytes, where {MAX_TEXT} are allowed", text.len()));
        }
        let path = Path::parse(text);
        if path.0.len() > MAX_STEPS {
            return Err(format!("a path of {} steps, where {MAX_STEPS} are allowed", path.0.len()));
        }
        Ok(path)
    }

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
        let parts: Vec<&str> = if concrete.is_empty() { Vec::new() } else { concrete.split('/').collect() };
        let (mut step, mut part) = (0, 0);
        // After the last `**`: the step that follows it, and the part at which that was last tried. Whatever an earlier one could
        // skip, this one can, so that none but the last is ever tried again: patterns are a tenant's, and the time is the host's.
        let mut again: Option<(usize, usize)> = None;
        loop {
            let fits = match self.0.get(step) {
                None => return true,
                Some(Step::Deep) => {
                    step += 1;
                    again = Some((step, part));
                    continue;
                }
                Some(wanted) => parts.get(part).is_some_and(|part| is_step(wanted, part)),
            };
            if fits {
                (step, part) = (step + 1, part + 1);
                continue;
            }
            match &mut again {
                Some((after, tried)) if *tried < parts.len() => {
                    *tried += 1;
                    (step, part) = (*after, *tried);
                }
                _ => return false,
            }
        }
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
        match self.visit_within(&mut Work::new(usize::MAX), value, makes, visit) {
            Ok(n_places) => Ok(n_places),
            Err(Stop::Said(error)) => Err(error),
            Err(Stop::Exhausted) => unreachable!("no message has as many places as there are numbers"),
        }
    }

    /// As [`visit`](Path::visit), where looking is bounded.
    ///
    /// # Errors
    /// What `visit` says, and when there is too much to look at.
    pub fn visit_within<E>(
        &self,
        work: &mut Work,
        value: &mut Value,
        makes: bool,
        visit: &mut impl FnMut(&str, &mut Value) -> Result<(), E>,
    ) -> Result<usize, Stop<E>> {
        Walk { makes, work, visit }.go(&self.0, value, &mut String::new())
    }
}

/// Does a step of a pattern fit a part of a concrete path?
fn is_step(step: &Step, part: &str) -> bool {
    match step {
        Step::All | Step::Deep => true,
        Step::Field(name) => unescape(part) == *name,
        Step::With(field, value) => {
            part.split_once('=').is_some_and(|(f, v)| unescape(f) == *field && unescape(v) == *value)
        }
    }
}

/// A walk along a path.
struct Walk<'a, V> {
    makes: bool,
    work: &'a mut Work,
    visit: &'a mut V,
}

impl<V> Walk<'_, V> {
    /// `at` is the concrete path to `value`.
    fn go<E>(&mut self, steps: &[Step], value: &mut Value, at: &mut String) -> Result<usize, Stop<E>>
    where
        V: FnMut(&str, &mut Value) -> Result<(), E>,
    {
        self.work.take(1)?;
        let Some((step, rest)) = steps.split_first() else {
            (self.visit)(at, value).map_err(Stop::Said)?;
            return Ok(1);
        };
        let mut n_places = 0;
        match (step, value) {
            (Step::Field(name), Value::Object(fields)) => {
                if self.makes && !fields.contains_key(name) {
                    fields.insert(name.clone(), empty_before(rest));
                }
                if let Some(inner) = fields.get_mut(name) {
                    n_places += self.below(rest, inner, at, &escape(name))?;
                }
            }
            (Step::Field(name), Value::Array(elements)) => {
                if let Some(inner) = name.parse::<usize>().ok().and_then(|number| elements.get_mut(number)) {
                    n_places += self.below(rest, inner, at, &escape(name))?;
                }
            }
            (Step::All, Value::Object(fields)) => {
                for (name, inner) in fields.iter_mut() {
                    n_places += self.below(rest, inner, at, &escape(name))?;
                }
            }
            (Step::All, Value::Array(elements)) => {
                self.work.take(elements.len())?;
                let names = names_of(elements);
                for (inner, name) in elements.iter_mut().zip(names) {
                    n_places += self.below(rest, inner, at, &name)?;
                }
            }
            (Step::With(field, wanted), Value::Array(elements)) => {
                self.work.take(elements.len())?;
                for inner in elements.iter_mut() {
                    if inner.get(field).and_then(Value::as_str) == Some(wanted) {
                        let here = format!("{}={}", escape(field), escape(wanted));
                        n_places += self.below(rest, inner, at, &here)?;
                    }
                }
            }
            _ => {}
        }
        Ok(n_places)
    }

    fn below<E>(&mut self, rest: &[Step], inner: &mut Value, at: &mut String, step: &str) -> Result<usize, Stop<E>>
    where
        V: FnMut(&str, &mut Value) -> Result<(), E>,
    {
        let length = at.len();
        push_step(at, step);
        let found = self.go(rest, inner, at);
        at.truncate(length);
        found
    }
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

/// Adds a step, as it is written.
pub(crate) fn push_step(path: &mut String, step: &str) {
    if !path.is_empty() {
        path.push('/');
    }
    path.push_str(step);
}

/// A name as a step of a path.
pub(crate) fn escape(text: &str) -> String {
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
        assert!(covers("**/a/**/b", "a/x/a/y/z/b/c") && !covers("**/a/**/b", "b/a") && covers("a/**", "a"));
        assert!(covers("**/a/b", "a/a/b") && !covers("**/a/*/b", "a/b"));
    }

    #[test]
    fn a_pattern_costs_no_more_than_its_length_times_the_place() {
        // Tried in every way this would take longer than the world lasts.
        let pattern = Path::parse(&["**/a/"; 200].concat());
        let place = vec!["a"; 150].join("/");
        assert!(!pattern.covers(&place));
    }

    #[test]
    fn what_is_given_has_bounds() {
        assert!(Path::given(&"a/".repeat(MAX_STEPS + 1)).is_err_and(|why| why.contains("steps")));
        assert!(Path::given(&"a".repeat(MAX_TEXT + 1)).is_err_and(|why| why.contains("bytes")));
        assert!(Path::given("a/b/*/name=x").is_ok());
        let mut wide = json!({"list": vec![json!({"x": [1, 2, 3]}); 100]});
        let mut look = |places: usize| {
            let mut nothing = |_: &str, _: &mut Value| Ok::<(), ()>(());
            Path::parse("list/*/x/*").visit_within(&mut Work::new(places), &mut wide, false, &mut nothing)
        };
        assert_eq!(look(10_000), Ok(300));
        assert_eq!(look(300), Err(Stop::Exhausted));
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
