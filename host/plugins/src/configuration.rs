//! A plugin's configuration: the schema that its component carries, and what is checked against it.

use std::collections::BTreeMap;

use jsonschema::error::ValidationErrorKind;
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

/// Does a component export an interface of the 0.1 line?
pub(crate) fn is_of_first_line(component: &[u8]) -> bool {
    Parser::new(0).parse_all(component).flatten().any(|payload| match payload {
        Payload::ComponentExportSection(exports) => {
            exports.into_iter().flatten().any(|export| export.name.name.contains("@0.1."))
        }
        _ => false,
    })
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
    let said: Vec<String> =
        validator.iter_errors(configuration).take(MAX_ERRORS).map(|error| line(schema, &error)).collect();
    if said.is_empty() { Ok(()) } else { Err(said.join("; ")) }
}

/// Mistakes of a configuration that are told at once.
const MAX_ERRORS: usize = 5;

/// Characters of what is said of a mistake.
const MAX_WORDS: usize = 1000;

/// A mistake, with the field.
fn line(schema: &Value, error: &jsonschema::ValidationError<'_>) -> String {
    let mut field = String::from("spec.configuration");
    for step in error.instance_path().to_string().split('/').skip(1) {
        match step.parse::<usize>() {
            Ok(number) => field.push_str(&format!("[{number}]")),
            Err(_) => field.push_str(&format!(".{}", step.replace("~1", "/").replace("~0", "~"))),
        }
    }
    let words = words(schema, error).unwrap_or_else(|| error.to_string());
    // The choices are the plugin's: a status has no room for thousands.
    format!("{field}: {words}").chars().take(MAX_WORDS).collect()
}

/// Plainer words than the library's, where it leaves out what there is to choose from.
fn words(schema: &Value, error: &jsonschema::ValidationError<'_>) -> Option<String> {
    let at = error.schema_path().to_string();
    let names = |value: &Value| value.as_object().map(|of| of.keys().cloned().collect::<Vec<_>>().join(", "));
    match error.kind() {
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> = options.as_array()?.iter().map(Value::to_string).collect();
            Some(format!("{} is none of {}", error.instance(), options.join(", ")))
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let (parent, _) = at.rsplit_once('/')?;
            let there_are = names(schema.pointer(parent)?.get("properties")?)?;
            Some(format!("there is no {}; there are {there_are}", unexpected.join(", ")))
        }
        ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::OneOfMultipleValid { .. } => {
            let required = |choice: &Value| Some(choice.get("required")?.as_array()?.first()?.as_str()?.to_owned());
            let choices: Option<Vec<String>> = schema.pointer(&at)?.as_array()?.iter().map(required).collect();
            Some(format!("one of {} is needed, and one only", choices?.join(", ")))
        }
        _ => None,
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
    fn what_there_is_to_choose_from_is_said_and_all_mistakes_at_once() {
        let schema = json!({"type": "object", "properties": {"patches": {"type": "array", "items": {
            "additionalProperties": false, "oneOf": [{"required": ["set"]}, {"required": ["merge"]}],
            "properties": {"hook": {"enum": ["clusters", "routes"]}, "set": {}, "merge": {}}}}}});
        let said = |patch: Value| check(Some(&schema), &json!({"patches": [{"set": 1}, patch]})).unwrap_err();
        assert_eq!(
            said(json!({"set": 1, "hook": "cluster"})),
            r#"spec.configuration.patches[1].hook: "cluster" is none of "clusters", "routes""#
        );
        let one = "spec.configuration.patches[1]: one of set, merge is needed, and one only";
        assert_eq!(said(json!({})), one);
        assert_eq!(said(json!({"set": 1, "merge": 2})), one);
        let both = said(json!({"hok": "routes"}));
        assert!(both.contains("there is no hok; there are hook, set, merge") && both.contains(one), "{both}");
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
