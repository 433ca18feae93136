//! EnvoyFilters made ready: values of patches become Envoy's messages once, when the object comes.
//!
//! A value that does not fit its message makes a patch with an error, which does nothing; unknown fields are skipped and
//! listed. Nothing rejects: what an older Envoy knew, or a newer one will, is no reason to lose the other patches.
//!
//! Merging is concatenation on the wire but for durations (whose seconds and nanoseconds belong together) and, where the
//! operation says so, lists: those are listed by their field numbers, so that stages can merge without descriptors.

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value as Field};
use serde_json::{Map, Value};
use trysail_codec::json::{self, Options};
use trysail_model::Object;
use trysail_proto::istio::networking::v1alpha3::EnvoyFilter;
use trysail_proto::istio::networking::v1alpha3::envoy_filter::{ApplyTo, EnvoyConfigObjectPatch, patch::Operation};
use trysail_proto::trysail::facts::v1 as facts;

use facts::envoy_filter_patch::AnyPatch;

/// Annotation that lists services which patches send to, so that gateways have clusters for them.
const REFERENCED_SERVICES: &str = "envoyfilter.istio.io/referenced-services";

/// The patches of an EnvoyFilter, in order, and the services that they need.
pub fn prepare(of: &Object, spec: &EnvoyFilter) -> facts::EnvoyFilter {
    let object = format!("{}/{}", of.reference.namespace, of.reference.name);
    let patch = |(index, patch): (usize, &EnvoyConfigObjectPatch)| facts::EnvoyFilterPatch {
        object: object.clone(),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        ..prepared(patch)
    };
    let services = of.annotations.get(REFERENCED_SERVICES).map_or("", String::as_str).split(',');
    facts::EnvoyFilter {
        patches: spec.config_patches.iter().enumerate().map(patch).collect(),
        referenced_services: services.filter(|service| !service.is_empty()).map(str::to_owned).collect(),
    }
}

fn prepared(patch: &EnvoyConfigObjectPatch) -> facts::EnvoyFilterPatch {
    let mut made = facts::EnvoyFilterPatch {
        apply_to: patch.apply_to,
        r#match: patch.r#match.as_ref().map(|m| m.encode_to_vec()).unwrap_or_default(),
        ..Default::default()
    };
    let Some(what) = &patch.patch else {
        made.error = "patch: is missing".into();
        return made;
    };
    let operation = applied(patch.apply_to(), what.operation());
    made.operation = operation.into();
    let Some(message) = message_of(patch.apply_to()) else {
        made.error = "applyTo: is missing or unknown".into();
        return made;
    };
    let Some(value) = &what.value else {
        if operation != Operation::Remove {
            made.error = "patch.value: is missing".into();
        }
        return made;
    };
    let value = Value::Object(structure(value));
    let (message, unknown) = match json::parse_message(message, &value, Options::lenient()) {
        Ok(parsed) => parsed,
        Err(json::JsonError::Field { path, problem }) => {
            let dot = if path.is_empty() { "" } else { "." };
            made.error = format!("patch.value{dot}{path}: {problem}");
            return made;
        }
        Err(error) => {
            made.error = format!("patch.value: {error}");
            return made;
        }
    };
    made.unknown_fields = unknown.into_iter().map(|path| format!("patch.value.{path}")).collect();
    let lists = operation == Operation::MergeAndReplaceList;
    walk(&message, &mut Vec::new(), lists, &mut made.replaced);
    empty_wrappers(&message, "patch.value", &mut made.empty_wrappers);
    made.config = config(&message);
    made.value = Some(trysail_codec::encode::to_bytes(&message));
    made
}

/// Inserting needs an order; where there is none it adds.
fn applied(apply_to: ApplyTo, operation: Operation) -> Operation {
    let ordered =
        matches!(apply_to, ApplyTo::ListenerFilter | ApplyTo::NetworkFilter | ApplyTo::HttpFilter | ApplyTo::HttpRoute);
    match operation {
        Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst if !ordered => Operation::Add,
        other => other,
    }
}

/// Envoy's message for what a patch applies to.
fn message_of(apply_to: ApplyTo) -> Option<&'static str> {
    Some(match apply_to {
        ApplyTo::Invalid => return None,
        ApplyTo::Listener => "envoy.config.listener.v3.Listener",
        ApplyTo::ListenerFilter => "envoy.config.listener.v3.ListenerFilter",
        ApplyTo::FilterChain => "envoy.config.listener.v3.FilterChain",
        ApplyTo::NetworkFilter => "envoy.config.listener.v3.Filter",
        ApplyTo::HttpFilter => "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        ApplyTo::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
        ApplyTo::VirtualHost => "envoy.config.route.v3.VirtualHost",
        ApplyTo::HttpRoute => "envoy.config.route.v3.Route",
        ApplyTo::Cluster => "envoy.config.cluster.v3.Cluster",
        ApplyTo::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
        ApplyTo::Bootstrap => "envoy.config.bootstrap.v3.Bootstrap",
    })
}

/// Notes the fields that a merge replaces.
fn walk(message: &DynamicMessage, path: &mut Vec<u32>, lists: bool, found: &mut Vec<facts::FieldPath>) {
    for (field, value) in message.fields() {
        path.push(field.number());
        let whole = if field.is_list() { lists } else { is(&field, |m| m.full_name() == "google.protobuf.Duration") };
        if whole {
            found.push(facts::FieldPath { numbers: path.clone() });
        } else if let (false, false, Field::Message(inner)) = (field.is_list(), field.is_map(), value) {
            walk(inner, path, lists, found);
        }
        path.pop();
    }
}

/// Notes the wrappers that hold their type's zero: a merge adds nothing to what is there.
fn empty_wrappers(message: &DynamicMessage, path: &str, found: &mut Vec<String>) {
    for (field, value) in message.fields() {
        let Field::Message(inner) = value else { continue };
        let path = format!("{path}.{}", field.name());
        if is_wrapper(&inner.descriptor()) {
            if inner.fields().next().is_none() {
                found.push(path);
            }
        } else {
            empty_wrappers(inner, &path, found);
        }
    }
}

fn is_wrapper(message: &MessageDescriptor) -> bool {
    message.full_name().strip_prefix("google.protobuf.").is_some_and(|name| name.ends_with("Value") && name != "Value")
        && message.full_name() != "google.protobuf.ListValue"
}

fn is(field: &FieldDescriptor, which: impl Fn(&MessageDescriptor) -> bool) -> bool {
    matches!(field.kind(), Kind::Message(message) if which(&message))
}

/// The typed configuration in a filter, or in the transport socket of a cluster or filter chain.
fn config(message: &DynamicMessage) -> Option<AnyPatch> {
    let inner = |message: &DynamicMessage, name: &str| -> Option<DynamicMessage> {
        if !message.has_field_by_name(name) {
            return None;
        }
        message.get_field_by_name(name)?.as_message().cloned()
    };
    let any = match inner(message, "transport_socket") {
        Some(socket) => inner(&socket, "typed_config")?,
        None => inner(message, "typed_config")?,
    };
    let text = any.get_field_by_name("type_url")?.as_str()?.to_owned();
    let bytes = any.get_field_by_name("value")?.as_bytes()?.to_vec();
    let mut replaced = Vec::new();
    // A type that is not known is not merged, since nobody can say how.
    let decoded = json::decode(&text, &bytes).ok()?;
    walk(&decoded, &mut Vec::new(), false, &mut replaced);
    Some(AnyPatch { type_url: text, value: bytes, replaced })
}

/// A `google.protobuf.Struct` as the JSON that it stands for.
fn structure(value: &prost_types::Struct) -> Map<String, Value> {
    value.fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
}

fn plain(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(value)) => Value::from(*value),
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::StructValue(value)) => Value::Object(structure(value)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(plain).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use trysail_proto::envoy::config::cluster::v3::Cluster;

    use super::*;
    use crate::testing::object;

    fn one(patch: Value) -> facts::EnvoyFilterPatch {
        let name = "istio.networking.v1alpha3.EnvoyFilter";
        let bytes = json::from_json(name, &json!({"configPatches": [patch]}), Options::lenient()).unwrap();
        let spec = EnvoyFilter::decode(bytes.as_slice()).unwrap();
        prepare(&object("EnvoyFilter", "n", "a", json!({})), &spec).patches.remove(0)
    }

    fn of(apply_to: &str, operation: &str, value: Value) -> facts::EnvoyFilterPatch {
        one(json!({"applyTo": apply_to, "patch": {"operation": operation, "value": value}}))
    }

    fn paths(found: &[facts::FieldPath]) -> Vec<&[u32]> {
        found.iter().map(|path| path.numbers.as_slice()).collect()
    }

    #[test]
    fn a_value_becomes_envoys_message() {
        let made = of("CLUSTER", "MERGE", json!({"connect_timeout": "8s", "perConnectionBufferLimitBytes": 9}));
        let cluster = Cluster::decode(made.value()).unwrap();
        assert_eq!((made.object.as_str(), cluster.per_connection_buffer_limit_bytes), ("n/a", Some(9)));
        assert_eq!(paths(&made.replaced), [&[4]], "the timeout, a duration");
        assert!(made.error.is_empty() && made.unknown_fields.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_an_error_with_its_path() {
        let wrong = of("CLUSTER", "MERGE", json!({"circuit_breakers": {"thresholds": [{"max_retries": "many"}]}}));
        assert!(wrong.error.starts_with("patch.value.circuit_breakers.thresholds[0].max_retries: "), "{}", wrong.error);
        assert_eq!(wrong.value, None);
        let unknown = of("CLUSTER", "MERGE", json!({"no_such": 1, "name": "x"}));
        assert_eq!(unknown.unknown_fields, ["patch.value.no_such"]);
        assert!(unknown.error.is_empty() && unknown.value.is_some());
        assert_eq!(of("INVALID", "MERGE", json!({})).error, "applyTo: is missing or unknown");
        assert_eq!(one(json!({"applyTo": "CLUSTER"})).error, "patch: is missing");
        let bare = |operation: &str| one(json!({"applyTo": "CLUSTER", "patch": {"operation": operation}})).error;
        assert_eq!((bare("ADD").as_str(), bare("REMOVE").as_str()), ("patch.value: is missing", ""));
    }

    #[test]
    fn lists_are_replaced_where_the_operation_says_so() {
        let value = json!({"name": "h", "domains": ["a"], "retry_policy": {"retriable_status_codes": [503]}});
        assert!(of("VIRTUAL_HOST", "MERGE", value.clone()).replaced.is_empty());
        let made = of("VIRTUAL_HOST", "MERGE_AND_REPLACE_LIST", value);
        assert_eq!(paths(&made.replaced), [&[2][..], &[16, 7][..]]);
    }

    #[test]
    fn inserting_without_an_order_adds() {
        assert_eq!(of("CLUSTER", "INSERT_FIRST", json!({})).operation, i32::from(Operation::Add));
        assert_eq!(of("HTTP_ROUTE", "INSERT_FIRST", json!({})).operation, i32::from(Operation::InsertFirst));
    }

    #[test]
    fn typed_configuration_is_taken_out() {
        let url = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        let made = of("HTTP_FILTER", "MERGE", json!({"name": "r", "typed_config": {"@type": url}}));
        assert_eq!(made.config.unwrap().type_url, url);
        let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let socket = json!({"name": "tls", "typed_config": {"@type": url, "max_session_keys": 0}});
        let made = of("CLUSTER", "MERGE", json!({"transport_socket": socket, "ignore_health_on_host_removal": false}));
        assert_eq!(made.config.unwrap().type_url, url);
        assert_eq!(of("HTTP_FILTER", "ADD", json!({"name": "r"})).config, None);
    }

    #[test]
    fn services_may_be_annotated() {
        let mut given = object("EnvoyFilter", "n", "a", json!({}));
        Arc::make_mut(&mut given.annotations).insert(REFERENCED_SERVICES.into(), "a.example,n/b.example".into());
        assert_eq!(prepare(&given, &EnvoyFilter::default()).referenced_services, ["a.example", "n/b.example"]);
    }

    #[test]
    fn wrappers_of_nothing_are_noted() {
        let made = of("CLUSTER", "MERGE", json!({"per_connection_buffer_limit_bytes": 0, "upstream_bind_config": {}}));
        assert_eq!(made.empty_wrappers, ["patch.value.per_connection_buffer_limit_bytes"]);
    }
}
