//! The gate before a proxy: rules that Envoy itself applies to what it is sent.
//!
//! Envoy's files state them as protoc-gen-validate options, and Envoy rejects a whole response for one breach, so the
//! host checks every new resource before it is served. Rules are judged deep: what is within an `Any` counts too,
//! because Envoy opens it.
//!
//! An `Any` of a type that the descriptor pool lacks passes: the proxy may know it.
//!
//! istiod has no such gate and is known to send breaches (a virtual host without domains, an empty `stat_prefix`), so
//! compare with istiod before the gate, not after it.

mod check;
mod clean;
mod clusters;
mod filters;
mod plan;
mod references;
mod unique;

pub use references::{Reference, Target};

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};

use crate::path::Step;
use crate::{MAX_DEPTH, find_message, json};

/// A breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where, by proto field names, through every `Any` on the way.
    pub path: String,
    /// The rule as the .proto file spells it (`string.min_len`), or `decode`, `type` or `depth` for bytes that cannot
    /// be judged.
    pub rule: &'static str,
    /// What is wrong, for people.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.path, self.message, self.rule)
    }
}

/// What there is to know of a message before it is sent.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Every breach, in the order of fields within each message. An unknown type or bytes that do not decode are a breach
    /// as well.
    pub violations: Vec<Violation>,
    /// What else it names, in order.
    pub references: Vec<Reference>,
    /// What the message claims for itself alone among its siblings: a virtual host its name and domains.
    pub claims: Vec<String>,
}

/// Looks at the message that `bytes` holds; `message_name` may be a type URL too.
///
/// With `holes` the message is not finished: a field of that number added to another's stands for content of the other that is
/// yet to come, and of the number itself for content of any field. What such content can mend is no breach.
pub fn inspect(message_name: &str, bytes: &[u8], holes: Option<u32>) -> Inspected {
    clean::inspect(message_name, bytes, holes).unwrap_or_else(|| inspect_closely(message_name, bytes, holes))
}

/// Builds the message, and finds the words for every breach.
fn inspect_closely(message_name: &str, bytes: &[u8], holes: Option<u32>) -> Inspected {
    let mut found = Inspected::default();
    match json::decode(message_name, bytes) {
        Ok(message) => {
            judge(&message, &Place { outer: None, step: None, holes }, 0, &mut found);
            found.claims = unique::claims(&message);
        }
        Err(error) => {
            let rule = match error {
                json::JsonError::UnknownMessage { .. } => "type",
                _ => "decode",
            };
            found.violations.push(Violation { path: String::new(), rule, message: error.to_string() });
        }
    }
    found
}

/// Judges the message that `bytes` holds; `message_name` may be a type URL too.
///
/// # Errors
/// See [`Inspected::violations`].
pub fn validate(message_name: &str, bytes: &[u8]) -> Result<(), Vec<Violation>> {
    let Inspected { violations, .. } = inspect(message_name, bytes, None);
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Where the walk is: a list that grows inwards on the stack, and becomes text only for a violation.
#[derive(Clone, Copy)]
struct Place<'a> {
    outer: Option<&'a Place<'a>>,
    /// `None` at the root.
    step: Option<&'a Step<'a>>,
    /// See [`inspect`].
    holes: Option<u32>,
}

impl<'a> Place<'a> {
    fn at(&'a self, step: &'a Step<'a>) -> Place<'a> {
        Place { outer: Some(self), step: Some(step), holes: self.holes }
    }

    fn render(&self) -> String {
        let mut text = self.outer.map(Place::render).unwrap_or_default();
        if let Some(step) = self.step {
            step.push_to(&mut text);
        }
        text
    }

    fn violation(&self, rule: &'static str, message: impl Into<String>) -> Violation {
        Violation { path: self.render(), rule, message: message.into() }
    }
}

/// Rules of this message, then what it holds.
fn judge(message: &DynamicMessage, place: &Place<'_>, depth: usize, found: &mut Inspected) {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        judge_any(message, place, depth, found);
        return;
    }
    references::collect(message, descriptor.full_name(), place, &mut found.references);
    unique::judge(message, descriptor.full_name(), place, &mut found.violations);
    let plan = plan::of(descriptor.full_name());
    if let Some(plan) = plan {
        if plan.is_disabled {
            return;
        }
        let awaited = awaited(message, place.holes);
        let may_come = |field: u32| awaited.contains(&field) || awaited.contains(&0);
        for field in &plan.fields {
            let n = found.violations.len();
            check::field(message, field, place, &mut found.violations);
            if may_come(field.field.number()) {
                let new = found.violations.split_off(n);
                found.violations.extend(new.into_iter().filter(|violation| !is_for_more(violation.rule)));
            }
        }
        for oneof in &plan.required_oneofs {
            if !oneof.fields().any(|field| message.has_field(&field) || may_come(field.number())) {
                let step = Step::Field(oneof.name());
                found.violations.push(place.at(&step).violation("oneof.required", "one of its fields must be set"));
            }
        }
    }
    clusters::judge(message, place, &mut found.violations);
    filters::judge(message, descriptor.full_name(), place, &mut found.violations);
    for (field, value) in message.fields() {
        if plan.is_some_and(|plan| plan.skipped_fields.contains(&field.number())) {
            continue;
        }
        let step = Step::Field(field.name());
        judge_value(value, &place.at(&step), depth, found);
    }
}

/// Numbers of the fields of which more is to come; 0 for any.
fn awaited(message: &DynamicMessage, holes: Option<u32>) -> Vec<u32> {
    let of_hole = |first: u32| message.unknown_fields().filter_map(move |field| field.number().checked_sub(first));
    holes.into_iter().flat_map(of_hole).collect()
}

/// Rules that ask for something to be there.
fn is_for_more(rule: &str) -> bool {
    ["required", "min_items", "min_len", "min_bytes"].iter().any(|name| rule.contains(name))
}

/// Messages within a value of any cardinality.
fn judge_value(value: &Value, place: &Place<'_>, depth: usize, found: &mut Inspected) {
    match value {
        Value::Message(message) => judge(message, place, depth + 1, found),
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                let Value::Message(message) = item else {
                    return;
                };
                let step = Step::Index(index);
                judge(message, &place.at(&step), depth + 1, found);
            }
        }
        Value::Map(entries) => {
            // In the order of keys, as a hash map has none that lasts.
            let mut messages: Vec<(&MapKey, &DynamicMessage)> =
                entries.iter().filter_map(|(key, value)| value.as_message().map(|message| (key, message))).collect();
            messages.sort_unstable_by(|a, b| a.0.cmp(b.0));
            for (key, message) in messages {
                let key = key_text(key);
                let step = Step::Key(&key);
                judge(message, &place.at(&step), depth + 1, found);
            }
        }
        _ => {}
    }
}

fn judge_any(any: &DynamicMessage, place: &Place<'_>, depth: usize, found: &mut Inspected) {
    let (type_url, bytes) = json::any_parts(any);
    let Some(descriptor) = find_message(&type_url) else {
        return;
    };
    if depth >= MAX_DEPTH {
        found.violations.push(place.violation("depth", "nested too deeply"));
        return;
    }
    match DynamicMessage::decode(descriptor, bytes.as_slice()) {
        Ok(message) => judge(&message, place, depth + 1, found),
        Err(error) => found.violations.push(place.violation("decode", format!("not a {type_url}: {error}"))),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

#[cfg(test)]
mod tests;
