//! A plugin's configuration: the schema that its component carries, and what is checked against it.

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
    let validator =
        jsonschema::validator_for(schema).map_err(|error| format!("the schema of its configuration: {error}"))?;
    match validator.iter_errors(configuration).next() {
        None => Ok(()),
        Some(error) => {
            let at = error.instance_path().to_string();
            let field = if at.is_empty() { String::new() } else { at.replace('/', ".") };
            Err(format!("spec.configuration{field}: {error}"))
        }
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
