//! A plugin's configuration: the schema that its component carries, and what is checked against it.

use std::collections::BTreeMap;

use serde_json::Value;
use wasmparser::{Parser, Payload};

/// Name of the custom section in which a component carries the JSON Schema of its configuration.
pub const SECTION: &str = "trysail-configuration-schema";

/// The schema in a component, if it carries one.
///
/// # Errors
/// When what it carries is no JSON, or the bytes no component.
pub fn schema(component: &[u8]) -> Result<Option<Value>, String> {
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|error| format!("not a WebAssembly component: {error}"))?;
        if let Payload::CustomSection(section) = payload
            && section.name() == SECTION
        {
            let value = serde_json::from_slice(section.data());
            return value.map(Some).map_err(|error| format!("the schema of its configuration is no JSON: {error}"));
        }
    }
    Ok(None)
}

/// Has a component carry a schema.
pub fn carry(component: &mut Vec<u8>, schema: &Value) {
    use wasm_encoder::Encode as _;
    let data = schema.to_string();
    let section = wasm_encoder::CustomSection { name: SECTION.into(), data: data.as_bytes().into() };
    component.push(CUSTOM);
    section.encode(component);
}

/// The id of custom sections, the same in modules and components.
const CUSTOM: u8 = 0;

/// Checks a configuration.
///
/// # Errors
/// What is wrong, with the field.
pub fn check(schema: Option<&Value>, configuration: &Value) -> Result<(), String> {
    let Some(schema) = schema else { return Ok(()) };
    bounded(schema).map_err(|why| format!("the schema of its configuration: {why}"))?;
    // Expressions that take time in proportion to the text, since they are the plugin's.
    let expressions = jsonschema::PatternOptions::regex().size_limit(MAX_EXPRESSION);
    let validator = jsonschema::options().with_pattern_options(expressions).build(schema);
    let validator = validator.map_err(|error| format!("the schema of its configuration: {error}"))?;
    match validator.iter_errors(configuration).next() {
        None => Ok(()),
        Some(error) => {
            let at = error.instance_path().to_string();
            let field = if at.is_empty() { String::new() } else { at.replace('/', ".") };
            Err(format!("spec.configuration{field}: {error}"))
        }
    }
}

/// Size of a compiled regular expression of a schema, bytes.
const MAX_EXPRESSION: usize = 1 << 20;
/// Ways through a schema by its references: each may be walked for each value.
const MAX_WAYS: usize = 10_000;

/// Is holding something against the schema bounded? It comes with the plugin, and is used on the host's time and stack.
fn bounded(schema: &Value) -> Result<(), String> {
    Ways { schema, known: BTreeMap::new() }.from("#", schema).map(drop)
}

/// The ways through a schema.
struct Ways<'a> {
    schema: &'a Value,
    /// How many begin at a reference; none while it is being walked.
    known: BTreeMap<&'a str, Option<usize>>,
}

impl<'a> Ways<'a> {
    /// How many begin at a place, which is called so.
    fn from(&mut self, name: &'a str, place: &'a Value) -> Result<usize, String> {
        match self.known.get(name) {
            Some(Some(n_ways)) => return Ok(*n_ways),
            Some(None) => return Err(format!("{name} refers to itself")),
            None => {}
        }
        self.known.insert(name, None);
        let n_ways = self.within(place)?;
        self.known.insert(name, Some(n_ways));
        Ok(n_ways)
    }

    fn within(&mut self, place: &'a Value) -> Result<usize, String> {
        let mut n_ways = 1usize;
        match place {
            Value::Array(elements) => {
                for element in elements {
                    n_ways = n_ways.saturating_add(self.within(element)?);
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    n_ways = n_ways.saturating_add(match (name.as_str(), value) {
                        ("$ref", Value::String(target)) => {
                            let pointer =
                                target.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
                            let there = pointer.and_then(|pointer| self.schema.pointer(pointer));
                            let there = there.ok_or_else(|| format!("{target:?} is no place in it"))?;
                            self.from(target, there)?
                        }
                        ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                            return Err(format!("{name} is not taken"));
                        }
                        _ => self.within(value)?,
                    });
                }
            }
            _ => {}
        }
        if n_ways > MAX_WAYS {
            return Err(format!("there are more than {MAX_WAYS} ways through it"));
        }
        Ok(n_ways)
    }
}

/// The hook points that the configuration of the built-in plugin `patch` names.
pub fn hooks(configuration: Option<&Value>) -> Vec<String> {
    let patches = configuration.and_then(|configuration| configuration.get("patches")?.as_array());
    let hook = |patch: &Value| Some(patch.get("hook")?.as_str()?.to_owned());
    patches.into_iter().flatten().filter_map(hook).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_is_held_against_its_schema() {
        let schema = json!({"type": "object", "properties": {"limit": {"type": "integer", "minimum": 1}},
            "required": ["limit"], "additionalProperties": false});
        let check = |configuration: Value| check(Some(&schema), &configuration);
        assert_eq!(check(json!({"limit": 5})), Ok(()));
        let error = check(json!({"limit": 0})).unwrap_err();
        assert!(error.starts_with("spec.configuration.limit: "), "{error}");
        assert!(check(json!({})).unwrap_err().contains("limit"));
        assert!(check(json!({"limit": 1, "limits": 2})).unwrap_err().contains("limits"));
    }

    #[test]
    fn a_schema_that_would_never_come_to_an_end_is_not_used() {
        let why =
            |schema: Value| check(Some(&schema), &json!({"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"})).unwrap_err();
        assert!(why(json!({"$ref": "#"})).contains("refers to itself"));
        assert!(
            why(json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}})).contains("refers")
        );
        assert!(why(json!({"$ref": "https://example.com/schema"})).contains("no place in it"));
        assert!(why(json!({"$dynamicRef": "#a"})).contains("$dynamicRef"));
        // Each of thirty is used twice by the one before it.
        let double = |i: usize| {
            let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
            (i.to_string(), json!({"allOf": [next, next]}))
        };
        let mut defs: serde_json::Map<String, Value> = (0..30).map(double).collect();
        defs.insert("30".to_owned(), json!(true));
        assert!(why(json!({"$ref": "#/$defs/0", "$defs": defs})).contains("ways through it"));
        // An expression that others try in every way ends at once.
        assert!(why(json!({"properties": {"a": {"pattern": "^(a+)+$"}}})).contains("spec.configuration.a"));
        let shared = json!({"properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/s"}}, "$defs": {"s": {"type": "string"}}});
        assert_eq!(check(Some(&shared), &json!({"a": "x"})), Ok(()));
    }

    #[test]
    fn what_is_no_component_carries_no_schema() {
        assert!(schema(b"never a component").is_err());
        // The preamble of an empty component.
        assert_eq!(schema(b"\0asm\x0d\0\x01\0"), Ok(None));
    }

    #[test]
    fn what_is_carried_is_found_again() {
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        carry(&mut component, &json!({"type": "object"}));
        assert_eq!(schema(&component), Ok(Some(json!({"type": "object"}))));
    }

    #[test]
    fn patches_say_where_they_work() {
        let configuration = json!({"patches": [{"hook": "clusters"}, {"hook": "routes"}, {}]});
        assert_eq!(hooks(Some(&configuration)), ["clusters", "routes"]);
        assert!(hooks(None).is_empty());
    }
}
