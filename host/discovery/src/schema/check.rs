//! Checks of a completed body against its schema.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;

use base64::Engine;
use serde_json::{Map, Value};

use super::cel::Failure;
use super::types::{Additional, Schema, Type};
use super::{EVALUATED, UNEVALUATED};
use crate::convert::{Violation, quoting_hint, type_name};
use crate::time;

/// What is wrong with a body, in the order of its schema.
///
/// CEL rules are asked only when everything else is right, since they may rely on it.
pub(super) fn check(schema: &Schema, body: &Value) -> Vec<Violation> {
    let mut walk = Walk { path: Vec::new(), violations: Vec::new() };
    walk.value(schema, body);
    if walk.violations.is_empty() {
        walk.rules(schema, body);
    }
    walk.violations
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Key(&'a str),
    Item(usize),
}

struct Walk<'a> {
    path: Vec<Step<'a>>,
    violations: Vec<Violation>,
}

impl<'a> Walk<'a> {
    fn report(&mut self, last: Option<Step<'a>>, reason: impl Into<String>) {
        let mut field = String::new();
        for step in self.path.iter().copied().chain(last) {
            match step {
                Step::Field(name) if field.is_empty() => field.push_str(name),
                Step::Field(name) => {
                    field.push('.');
                    field.push_str(name);
                }
                Step::Key(key) => field.push_str(&format!("[{key}]")),
                Step::Item(at) => field.push_str(&format!("[{at}]")),
            }
        }
        self.violations.push(Violation { field, reason: reason.into() });
    }

    /// Walks into the parts of a value that have a schema.
    fn children(&mut self, schema: &'a Schema, value: &'a Value, visit: fn(&mut Self, &'a Schema, &'a Value)) {
        match value {
            Value::Object(map) => {
                for (name, field) in map {
                    let (step, of_field) = match (schema.properties.get(name), &schema.additional_properties) {
                        (Some(of_field), _) => (Step::Field(name), of_field),
                        (None, Some(Additional::Schema(of_field))) => (Step::Key(name), &**of_field),
                        (None, _) => continue,
                    };
                    // Metadata has been read by then, and is the same for all kinds.
                    if self.path.is_empty() && name == "metadata" {
                        continue;
                    }
                    self.path.push(step);
                    visit(self, of_field, field);
                    self.path.pop();
                }
            }
            Value::Array(items) => {
                let Some(of_item) = &schema.items else { return };
                for (at, item) in items.iter().enumerate() {
                    self.path.push(Step::Item(at));
                    visit(self, of_item, item);
                    self.path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn value(&mut self, schema: &'a Schema, value: &'a Value) {
        if value.is_null() && schema.nullable {
            return;
        }
        if let Some(reason) = wrong_type(schema, value) {
            return self.report(None, reason);
        }
        match value {
            Value::Object(map) => self.object(schema, map),
            Value::Array(items) => self.list(schema, items),
            Value::String(text) => self.text(schema, text),
            Value::Number(number) => self.number(schema, number.as_f64().unwrap_or(f64::NAN)),
            Value::Null | Value::Bool(_) => {}
        }
        if !schema.allowed.is_empty() && !schema.allowed.contains(value) {
            let allowed: Vec<_> = schema.allowed.iter().map(ToString::to_string).collect();
            self.report(None, format!("unsupported value {}: must be one of {}", short(value), allowed.join(", ")));
        }
        self.combinations(schema, value);
        self.children(schema, value, Self::value);
    }

    fn object(&mut self, schema: &'a Schema, map: &Map<String, Value>) {
        for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
            self.report(Some(Step::Field(name)), "required value");
        }
        self.count(map.len(), schema.min_properties, schema.max_properties, "entries");
        if matches!(schema.additional_properties, Some(Additional::Flag(false))) {
            for name in map.keys().filter(|name| !schema.properties.contains_key(*name)) {
                self.report(None, format!("unknown field {name}"));
            }
        }
    }

    fn list(&mut self, schema: &'a Schema, items: &[Value]) {
        self.count(items.len(), schema.min_items, schema.max_items, "items");
        let is_set = schema.list_type.as_deref() == Some("set");
        if !is_set && schema.list_type.as_deref() != Some("map") {
            return;
        }
        let mut seen = HashSet::new();
        for (at, item) in items.iter().enumerate() {
            let identity = if is_set {
                item.clone()
            } else {
                let keys = schema.list_map_keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
                Value::Object(keys.collect())
            };
            let text = identity.to_string();
            if seen.contains(&text) {
                self.report(Some(Step::Item(at)), format!("duplicate value {text}"));
            }
            seen.insert(text);
        }
    }

    fn text(&mut self, schema: &'a Schema, text: &str) {
        // Counting characters is left for where bytes do not decide already.
        let length = || text.chars().count();
        if let Some(min) = schema.min_length.filter(|min| length() < *min) {
            let reason =
                if min == 1 { "must not be empty".to_owned() } else { format!("must have at least {min} characters") };
            self.report(None, reason);
        }
        if let Some(max) = schema.max_length.filter(|max| text.len() > *max && length() > *max) {
            self.report(None, format!("must have at most {max} characters, has {}", length()));
        }
        if let Some(pattern) = &schema.pattern
            && pattern.regex().is_some_and(|regex| !regex.is_match(text))
        {
            self.report(None, format!("{} must match '{}'", short(&text.into()), pattern.text));
        }
        let wanted = match schema.format.as_deref() {
            Some("date-time") if time::parse_rfc3339(text).is_none() => "a time such as 2026-01-31T08:00:00Z",
            Some("ipv4") if text.parse::<Ipv4Addr>().is_err() => "an IPv4 address",
            Some("ipv6") if text.parse::<Ipv6Addr>().is_err() => "an IPv6 address",
            Some("byte") if base64::engine::general_purpose::STANDARD.decode(text).is_err() => "base64",
            _ => return,
        };
        self.report(None, format!("{} must be {wanted}", short(&text.into())));
    }

    fn number(&mut self, schema: &'a Schema, number: f64) {
        if let Some(min) = schema.minimum.filter(|min| number < *min) {
            self.report(None, format!("{number} must be at least {min}"));
        }
        if let Some(max) = schema.maximum.filter(|max| number > *max) {
            self.report(None, format!("{number} must be at most {max}"));
        }
        if schema.format.as_deref() == Some("int32") && (number < f64::from(i32::MIN) || number > f64::from(i32::MAX)) {
            self.report(None, format!("{number} must fit in 32 bits"));
        }
    }

    fn count(&mut self, count: usize, min: Option<usize>, max: Option<usize>, what: &str) {
        if let Some(min) = min.filter(|min| count < *min) {
            self.report(None, format!("must have at least {min} {what}, has {count}"));
        }
        if let Some(max) = max.filter(|max| count > *max) {
            self.report(None, format!("must have at most {max} {what}, has {count}"));
        }
    }

    fn combinations(&mut self, schema: &'a Schema, value: &'a Value) {
        for part in &schema.all_of {
            self.value(part, value);
        }
        if !schema.any_of.is_empty() && !schema.any_of.iter().any(|part| holds(part, value)) {
            self.report(None, format!("must satisfy one of: {}", alternatives(&schema.any_of)));
        }
        if !schema.one_of.is_empty() {
            let n_holding = schema.one_of.iter().filter(|part| holds(part, value)).count();
            if n_holding != 1 {
                self.report(None, format!("must satisfy exactly one of: {}", alternatives(&schema.one_of)));
            }
        }
        if schema.not.as_ref().is_some_and(|part| holds(part, value)) {
            self.report(None, "has a combination of fields that is not allowed");
        }
    }

    fn rules(&mut self, schema: &'a Schema, value: &'a Value) {
        if value.is_null() && schema.nullable {
            return;
        }
        for rule in &schema.rules {
            let outcome = match rule.program() {
                Ok(program) if program.is_transition => continue,
                Ok(program) => program.eval(value),
                Err(failure) => Err(failure),
            };
            EVALUATED.fetch_add(1, Ordering::Relaxed);
            match outcome {
                Ok(true) => {}
                Ok(false) if rule.message.is_empty() => self.report(None, format!("failed rule: {}", rule.rule)),
                Ok(false) => self.report(None, rule.message.clone()),
                Err(Failure::Value(reason)) => {
                    self.report(None, format!("{reason}, asked by the rule: {}", rule.message))
                }
                // What we cannot judge, we do not refuse.
                Err(Failure::Unsupported(reason)) => {
                    tracing::debug!(rule = rule.rule, reason, "a validation rule could not be evaluated");
                    if let Ok(mut rules) = UNEVALUATED.lock() {
                        *rules.entry(rule.rule.clone()).or_default() += 1;
                    }
                }
            }
        }
        self.children(schema, value, Self::rules);
    }
}

/// True when a value satisfies a schema, rules aside (which are not allowed inside combinations).
fn holds(schema: &Schema, value: &Value) -> bool {
    let mut walk = Walk { path: Vec::new(), violations: Vec::new() };
    walk.value(schema, value);
    walk.violations.is_empty()
}

fn wrong_type(schema: &Schema, value: &Value) -> Option<String> {
    let is_integer = value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0);
    if schema.int_or_string {
        let fits = is_integer || value.is_string();
        return (!fits).then(|| format!("must be an integer or a string, is {}", type_name(value)));
    }
    let (fits, wanted) = match schema.kind? {
        Type::Object => (value.is_object(), "a mapping"),
        Type::Array => (value.is_array(), "a list"),
        Type::String => (value.is_string(), "a string"),
        Type::Integer => (is_integer, "an integer"),
        Type::Number => (value.is_number(), "a number"),
        Type::Boolean => (value.is_boolean(), "a boolean"),
    };
    let hint = if schema.kind == Some(Type::String) { quoting_hint(value) } else { "" };
    (!fits).then(|| format!("must be {wanted}, is {}{hint}", type_name(value)))
}

/// What the parts of a `oneOf` or `anyOf` ask for; nearly always that some field be there.
fn alternatives(parts: &[Schema]) -> String {
    let mut names = Vec::new();
    for part in parts {
        if part.not.is_some() {
            names.push("none of them set".to_owned());
        } else if !part.required.is_empty() {
            names.push(format!("{} set", part.required.join(" and ")));
        } else if let Some(nested) = part.any_of.iter().chain(&part.one_of).find(|part| !part.required.is_empty()) {
            names.push(format!("{} set", nested.required.join(" and ")));
        } else if let Some(kind) = part.kind {
            names.push(format!("type {}", format!("{kind:?}").to_lowercase()));
        } else if !part.allowed.is_empty() {
            names.push(part.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "));
        } else if let Some(pattern) = &part.pattern {
            names.push(format!("matches '{}'", pattern.text));
        } else if part.max_length == Some(0) {
            names.push("empty".to_owned());
        } else {
            names.push("another form".to_owned());
        }
    }
    names.join(", ")
}

/// A value as it stands in a message.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
