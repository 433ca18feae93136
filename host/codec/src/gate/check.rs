//! One value against its rules. Rule names are those of protoc-gen-validate.

use std::collections::HashSet;
use std::fmt::Display;

use prost_reflect::{DynamicMessage, EnumDescriptor, Kind, MapKey, Value};
use trysail_proto::prost_types::Duration;
use trysail_proto::validate;

use super::plan::{self, Check, FieldPlan, Header, Range, Rules, TextRules};
use super::{Place, Violation, key_text};
use crate::json;
use crate::path::Step;

/// What a rule found, before it is known where.
pub(super) type Finding = (&'static str, String);

/// Judges one field of a message, set or not.
pub(super) fn field(message: &DynamicMessage, plan: &FieldPlan, place: &Place<'_>, violations: &mut Vec<Violation>) {
    let field = &plan.field;
    let step = Step::Field(field.name());
    let place = place.at(&step);
    if !message.has_field(field) && field.supports_presence() {
        // Rules speak of a value that is there; whether it must be is a rule of its own. A member of a oneof need not
        // be: "required" then says only that the oneof may not name it without a value.
        if plan.rules.is_required && field.containing_oneof().is_none() {
            violations.push(place.violation("message.required", "must be set"));
        }
        return;
    }
    let kind = field.kind();
    let value = message.get_field(field);
    match (&plan.rules.check, value.as_ref()) {
        (Check::List { rules, items }, Value::List(values)) => {
            list(values, rules, items.as_deref(), &kind, &place, violations);
        }
        (Check::Map { rules, keys, values: value_rules }, Value::Map(values)) => {
            let mut findings = Vec::new();
            count_pairs(values.len(), rules, &mut findings);
            report(findings, &place, violations);
            if rules.ignore_empty() && values.is_empty() {
                return;
            }
            let Kind::Message(entry) = &kind else {
                return;
            };
            let mut sorted: Vec<(&MapKey, &Value)> = values.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
            for (key, value) in sorted {
                let text = key_text(key);
                let step = Step::Key(&text);
                let place = place.at(&step);
                if let Some(rules) = keys {
                    let kind = entry.map_entry_key_field().kind();
                    single(&Value::from(key.clone()), rules, &kind, &place, violations);
                }
                if let Some(rules) = value_rules {
                    single(value, rules, &entry.map_entry_value_field().kind(), &place, violations);
                }
            }
        }
        (_, value) => single(value, &plan.rules, &kind, &place, violations),
    }
}

fn list(
    values: &[Value],
    rules: &validate::RepeatedRules,
    items: Option<&Rules>,
    kind: &Kind,
    place: &Place<'_>,
    violations: &mut Vec<Violation>,
) {
    if rules.ignore_empty() && values.is_empty() {
        return;
    }
    let count = values.len() as u64;
    let mut findings = Vec::new();
    if rules.min_items.is_some_and(|min| count < min) {
        findings.push(("repeated.min_items", too_few(count, rules.min_items())));
    }
    if rules.max_items.is_some_and(|max| count > max) {
        findings.push(("repeated.max_items", too_many(count, rules.max_items())));
    }
    if rules.unique() && has_duplicates(values) {
        findings.push(("repeated.unique", "has equal items".to_owned()));
    }
    report(findings, place, violations);
    if let Some(items) = items {
        for (index, value) in values.iter().enumerate() {
            let step = Step::Index(index);
            single(value, items, kind, &place.at(&step), violations);
        }
    }
}

fn has_duplicates(values: &[Value]) -> bool {
    // Only scalars are asked to be unique. Their debug form tells them apart, and unlike floats it can be hashed.
    let mut seen = HashSet::with_capacity(values.len());
    !values.iter().all(|value| seen.insert(format!("{value:?}")))
}

fn count_pairs(count: usize, rules: &validate::MapRules, findings: &mut Vec<Finding>) {
    let count = count as u64;
    if rules.ignore_empty() && count == 0 {
        return;
    }
    if rules.min_pairs.is_some_and(|min| count < min) {
        findings.push(("map.min_pairs", too_few(count, rules.min_pairs())));
    }
    if rules.max_pairs.is_some_and(|max| count > max) {
        findings.push(("map.max_pairs", too_many(count, rules.max_pairs())));
    }
}

/// Judges a value that is neither list nor map.
fn single(value: &Value, rules: &Rules, kind: &Kind, place: &Place<'_>, violations: &mut Vec<Violation>) {
    let mut findings = Vec::new();
    match (&rules.check, value) {
        (Check::Any(rules), Value::Message(any)) => type_url(&json::any_parts(any).0, rules, &mut findings),
        (Check::Duration(range), Value::Message(message)) => {
            let seconds = message.get_field_by_number(1).and_then(|value| value.as_i64()).unwrap_or_default();
            let nanos = message.get_field_by_number(2).and_then(|value| value.as_i32()).unwrap_or_default();
            duration(Duration { seconds, nanos }, range, &mut findings);
        }
        // Rules for scalars on a wrapper speak of what it holds.
        (check, Value::Message(wrapper)) if !matches!(check, Check::Nothing) => {
            if let (Some(inner), Kind::Message(descriptor)) = (wrapper.get_field_by_number(1), kind)
                && let Some(field) = descriptor.get_field(1)
            {
                scalar(&inner, check, &field.kind(), &mut findings);
            }
        }
        (check, value) => scalar(value, check, kind, &mut findings),
    }
    report(findings, place, violations);
}

fn scalar(value: &Value, check: &Check, kind: &Kind, findings: &mut Vec<Finding>) {
    match (check, value) {
        (Check::Integer(range), Value::I32(v)) => integer(i128::from(*v), range, findings),
        (Check::Integer(range), Value::I64(v)) => integer(i128::from(*v), range, findings),
        (Check::Integer(range), Value::U32(v)) => integer(i128::from(*v), range, findings),
        (Check::Integer(range), Value::U64(v)) => integer(i128::from(*v), range, findings),
        (Check::Float(range), Value::F32(v)) => number(f64::from(*v), range, "float", f64::to_string, findings),
        (Check::Float(range), Value::F64(v)) => number(*v, range, "double", f64::to_string, findings),
        (Check::Bool(expected), Value::Bool(v)) if expected != v => {
            findings.push(("bool.const", format!("must be {expected}")));
        }
        (Check::Text(rules), Value::String(v)) => text(v, rules, findings),
        (Check::Bytes(rules), Value::Bytes(v)) => bytes(v, rules, findings),
        (Check::Enum(rules), Value::EnumNumber(v)) => enum_number(*v, rules, kind.as_enum(), findings),
        _ => {}
    }
}

/// A duration against bounds in nanoseconds.
pub(super) fn duration(value: Duration, range: &Range<i128>, findings: &mut Vec<Finding>) {
    number(plan::nanos(value), range, "duration", |nanos| format!("{}s", *nanos as f64 / 1e9), findings);
}

pub(super) fn integer(value: i128, range: &Range<i128>, findings: &mut Vec<Finding>) {
    number(value, range, "int", i128::to_string, findings);
}

pub(super) fn number<T: PartialOrd + Copy + Default>(
    value: T,
    range: &Range<T>,
    family: &'static str,
    show: impl Fn(&T) -> String,
    findings: &mut Vec<Finding>,
) {
    if range.ignore_empty && value == T::default() {
        return;
    }
    let is_above = match (range.gt, range.gte) {
        (Some(min), _) => Some(value > min),
        (None, Some(min)) => Some(value >= min),
        (None, None) => None,
    };
    let is_below = match (range.lt, range.lte) {
        (Some(max), _) => Some(value < max),
        (None, Some(max)) => Some(value <= max),
        (None, None) => None,
    };
    let fits = match (is_above, is_below) {
        (None, None) => true,
        (Some(fits), None) | (None, Some(fits)) => fits,
        // Bounds the wrong way round ask for what is outside of them.
        (Some(above), Some(below)) if is_inverted(range) => above || below,
        (Some(above), Some(below)) => above && below,
    };
    if !fits {
        let bounds: Vec<String> = [("> ", range.gt), (">= ", range.gte), ("< ", range.lt), ("<= ", range.lte)]
            .iter()
            .filter_map(|(sign, bound)| bound.as_ref().map(|bound| format!("{sign}{}", show(bound))))
            .collect();
        let message = format!("{} must be {}", show(&value), bounds.join(", "));
        findings.push((rule_name(family, "range"), message));
    }
    if range.equal.is_some_and(|expected| value != expected) {
        findings.push((rule_name(family, "const"), format!("{} is not allowed", show(&value))));
    }
    if !range.one_of.is_empty() && !range.one_of.contains(&value) || range.none_of.contains(&value) {
        findings.push((rule_name(family, "in"), format!("{} is not allowed", show(&value))));
    }
}

fn is_inverted<T: PartialOrd + Copy>(range: &Range<T>) -> bool {
    match (range.gt.or(range.gte), range.lt.or(range.lte)) {
        (Some(min), Some(max)) => max < min,
        _ => false,
    }
}

fn rule_name(family: &'static str, rule: &'static str) -> &'static str {
    match (family, rule) {
        ("int", "range") => "int.range",
        ("int", "const") => "int.const",
        ("int", _) => "int.in",
        ("duration", "range") => "duration.range",
        ("duration", "const") => "duration.const",
        ("duration", _) => "duration.in",
        (_, "range") => "double.range",
        (_, "const") => "double.const",
        _ => "double.in",
    }
}

pub(super) fn text(value: &str, text: &TextRules, findings: &mut Vec<Finding>) {
    let rules = &text.rules;
    if rules.ignore_empty() && value.is_empty() {
        return;
    }
    let chars = value.chars().count() as u64;
    let bytes = value.len() as u64;
    let mut require = |holds: bool, rule: &'static str, message: &dyn Fn() -> String| {
        if !holds {
            findings.push((rule, message()));
        }
    };
    if let Some(expected) = &rules.r#const {
        require(value == expected, "string.const", &|| format!("must be {expected:?}"));
    }
    if let Some(len) = rules.len {
        require(chars == len, "string.len", &|| format!("{chars} characters, must be {len}"));
    }
    if let Some(min) = rules.min_len {
        require(chars >= min, "string.min_len", &|| too_few(chars, min));
    }
    if let Some(max) = rules.max_len {
        require(chars <= max, "string.max_len", &|| too_many(chars, max));
    }
    if let Some(len) = rules.len_bytes {
        require(bytes == len, "string.len_bytes", &|| format!("{bytes} bytes, must be {len}"));
    }
    if let Some(min) = rules.min_bytes {
        require(bytes >= min, "string.min_bytes", &|| too_few(bytes, min));
    }
    if let Some(max) = rules.max_bytes {
        require(bytes <= max, "string.max_bytes", &|| too_many(bytes, max));
    }
    if let Some(pattern) = &text.pattern {
        require(pattern.is_match(value), "string.pattern", &|| format!("must match {pattern}"));
    }
    if let Some(prefix) = &rules.prefix {
        require(value.starts_with(prefix), "string.prefix", &|| format!("must start with {prefix:?}"));
    }
    if let Some(suffix) = &rules.suffix {
        require(value.ends_with(suffix), "string.suffix", &|| format!("must end with {suffix:?}"));
    }
    if let Some(part) = &rules.contains {
        require(value.contains(part), "string.contains", &|| format!("must contain {part:?}"));
    }
    if let Some(part) = &rules.not_contains {
        require(!value.contains(part), "string.not_contains", &|| format!("must not contain {part:?}"));
    }
    let is_listed = |list: &[String]| list.iter().any(|item| item == value);
    require(rules.r#in.is_empty() || is_listed(&rules.r#in), "string.in", &|| {
        format!("must be one of {:?}", rules.r#in)
    });
    require(!is_listed(&rules.not_in), "string.not_in", &|| "is not allowed".to_owned());
    if let Some(header) = text.header {
        require(fits_header(value, header), "string.well_known_regex", &|| {
            "has characters that an HTTP header may not have".to_owned()
        });
    }
}

fn fits_header(value: &str, header: Header) -> bool {
    match header {
        Header::StrictName => {
            let name = value.strip_prefix(':').unwrap_or(value);
            // The original expression has the range `+-.`, which lets the comma in.
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&b))
        }
        Header::StrictValue => value.bytes().all(|b| b == b'\t' || b >= b' ' && b != 0x7f),
        Header::Loose => !value.contains(['\0', '\n', '\r']),
    }
}

pub(super) fn bytes(value: &[u8], rules: &validate::BytesRules, findings: &mut Vec<Finding>) {
    if rules.ignore_empty() && value.is_empty() {
        return;
    }
    let len = value.len() as u64;
    if rules.len.is_some_and(|expected| len != expected) {
        findings.push(("bytes.len", format!("{len} bytes, must be {}", rules.len())));
    }
    if rules.min_len.is_some_and(|min| len < min) {
        findings.push(("bytes.min_len", too_few(len, rules.min_len())));
    }
    if rules.max_len.is_some_and(|max| len > max) {
        findings.push(("bytes.max_len", too_many(len, rules.max_len())));
    }
    let is_listed = |list: &[Vec<u8>]| list.iter().any(|item| item == value);
    let fits = rules.r#const.as_ref().is_none_or(|expected| value == expected)
        && rules.prefix.as_ref().is_none_or(|prefix| value.starts_with(prefix))
        && rules.suffix.as_ref().is_none_or(|suffix| value.ends_with(suffix))
        && rules.contains.as_ref().is_none_or(|part| value.windows(part.len().max(1)).any(|window| window == part))
        && (rules.r#in.is_empty() || is_listed(&rules.r#in))
        && !is_listed(&rules.not_in);
    if !fits {
        findings.push(("bytes.in", "is not allowed".to_owned()));
    }
}

pub(super) fn enum_number(
    value: i32,
    rules: &validate::EnumRules,
    of: Option<&EnumDescriptor>,
    findings: &mut Vec<Finding>,
) {
    let is_defined = of.is_none_or(|descriptor| descriptor.get_value(value).is_some());
    if rules.defined_only() && !is_defined {
        findings.push(("enum.defined_only", format!("{value} is not a value of this enum")));
    }
    let is_allowed = rules.r#const.is_none_or(|expected| value == expected)
        && (rules.r#in.is_empty() || rules.r#in.contains(&value))
        && !rules.not_in.contains(&value);
    if !is_allowed {
        findings.push(("enum.in", format!("{value} is not allowed")));
    }
}

pub(super) fn type_url(type_url: &str, rules: &validate::AnyRules, findings: &mut Vec<Finding>) {
    let is_listed = |list: &[String]| list.iter().any(|listed| listed == type_url);
    if !rules.r#in.is_empty() && !is_listed(&rules.r#in) || is_listed(&rules.not_in) {
        findings.push(("any.in", format!("{type_url} is not allowed")));
    }
}

fn report(findings: Vec<Finding>, place: &Place<'_>, violations: &mut Vec<Violation>) {
    violations.extend(findings.into_iter().map(|(rule, message)| place.violation(rule, message)));
}

fn too_few(found: impl Display, min: impl Display) -> String {
    format!("has {found}, at least {min} required")
}

fn too_many(found: impl Display, max: impl Display) -> String {
    format!("has {found}, at most {max} allowed")
}
