//! What Envoy asks of clusters beyond its field rules.

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};

use super::{Place, awaited};
use crate::path::Step;
use crate::{find_message, json};

/// Options of HTTP that a cluster carries by their type's name.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster whose hosts are where connections were going to leaves the choice to itself, and one that resolves hosts by itself
/// checks the names that it connects to.
pub(super) fn judge(message: &DynamicMessage, place: &Place<'_>, violations: &mut Vec<super::Violation>) {
    if message.descriptor().full_name() == "envoy.config.cluster.v3.Cluster" {
        original_destination(message, place, violations);
        resolving(message, place, violations);
    }
}

/// Number of the type of clusters whose hosts are where connections were going to.
pub(super) const ORIGINAL_DST: i32 = 4;
/// Number of the only policy that these may have.
pub(super) const CLUSTER_PROVIDED: i32 = 6;

fn original_destination(message: &DynamicMessage, place: &Place<'_>, violations: &mut Vec<super::Violation>) {
    let number = |field: &str| message.get_field_by_name(field).and_then(|value| value.as_enum_number());
    let policy = message.descriptor().get_field_by_name("lb_policy").map(|field| field.number());
    let awaited = awaited(message, place.holes);
    let may_come = awaited.contains(&0) || policy.is_some_and(|policy| awaited.contains(&policy));
    if number("type") == Some(ORIGINAL_DST)
        && number("lb_policy") != Some(CLUSTER_PROVIDED)
        && !message.has_field_by_name("load_balancing_policy")
        && !may_come
    {
        let why = "a cluster of type ORIGINAL_DST must have the policy CLUSTER_PROVIDED";
        violations.push(place.at(&Step::Field("lb_policy")).violation("original_dst", why));
    }
}

/// A cluster that resolves hosts by itself must check the names that it connects to, unless it says that it need not. Without
/// any options Envoy fills in that it does; with some it does not.
fn resolving(message: &DynamicMessage, place: &Place<'_>, violations: &mut Vec<super::Violation>) {
    if !resolves_hosts(message) {
        return;
    }
    let options = message.get_field_by_name("typed_extension_protocol_options");
    let of_http =
        |value: &Value| value.as_map()?.get(&MapKey::String(HTTP_OPTIONS.into()))?.as_message().and_then(opened);
    let Some(options) = options.as_deref().and_then(of_http) else { return };
    let checks = inner(&options, "upstream_http_protocol_options")
        .is_some_and(|options| is_true(&options, "auto_sni") && is_true(&options, "auto_san_validation"));
    if !checks {
        let step = Step::Field("typed_extension_protocol_options");
        let why = "a dynamic forward proxy cluster must have auto_sni and auto_san_validation";
        violations.push(place.at(&step).violation("dynamic_forward_proxy", why));
    }
}

fn resolves_hosts(cluster: &DynamicMessage) -> bool {
    let config = inner(cluster, "cluster_type").and_then(|custom| inner(&custom, "typed_config"));
    let Some(config) = config.as_ref().and_then(opened) else { return false };
    config.descriptor().full_name() == "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
        && !is_true(&config, "allow_insecure_cluster_options")
}

/// What an `Any` holds, if its type is known and its bytes decode.
fn opened(any: &DynamicMessage) -> Option<DynamicMessage> {
    let (type_url, bytes) = json::any_parts(any);
    DynamicMessage::decode(find_message(&type_url)?, bytes.as_slice()).ok()
}

fn inner(message: &DynamicMessage, field: &str) -> Option<DynamicMessage> {
    message.has_field_by_name(field).then(|| message.get_field_by_name(field)?.as_message().cloned())?
}

fn is_true(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).and_then(|value| value.as_bool()) == Some(true)
}
