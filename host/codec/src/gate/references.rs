//! What a message names that another response, or another resource of the same one, has to bring.

use std::borrow::Cow;

use prost_reflect::{DynamicMessage, Value};

use super::Place;
use crate::path::Step;

/// Where a name is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Endpoints: Envoy warms the cluster until they come.
    Endpoints,
    /// A route configuration: Envoy warms the listener until it comes.
    Routes,
    /// The configuration of a filter: Envoy warms the listener until it comes.
    Extension,
    /// A cluster that requests are sent to. Envoy waits for none: without it they fail.
    Cluster,
}

impl Target {
    /// The short name that stages use in `refs`.
    pub fn prefix(self) -> &'static str {
        match self {
            Target::Endpoints => "eds",
            Target::Routes => "rds",
            Target::Extension => "ecds",
            Target::Cluster => "cluster",
        }
    }

    /// Envoy holds back what names it until it is there.
    pub fn is_awaited(self) -> bool {
        self != Target::Cluster
    }
}

/// A name in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where it is looked up.
    pub target: Target,
    /// The name.
    pub name: String,
    /// Path of the field.
    pub path: String,
}

/// Collects what this message itself names.
pub(super) fn collect(message: &DynamicMessage, full_name: &str, place: &Place<'_>, found: &mut Vec<Reference>) {
    let mut add = |target, name: Cow<'_, str>, field: &str| {
        if !name.is_empty() {
            let path = place.at(&Step::Field(field)).render();
            found.push(Reference { target, name: name.into_owned(), path });
        }
    };
    match full_name {
        "envoy.config.cluster.v3.Cluster" => {
            let eds = inner(message, "eds_cluster_config");
            let by_eds = message.get_field_by_name("type").and_then(|v| v.as_enum_number()) == Some(EDS);
            if let Some(eds) = eds.filter(|eds| by_eds && from_ads(eds, "eds_config")) {
                let named = text(&eds, "service_name");
                let name = if named.is_empty() { text(message, "name") } else { named };
                add(Target::Endpoints, name.into(), "eds_cluster_config");
            }
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds" if from_ads(message, "config_source") => {
            add(Target::Routes, text(message, "route_config_name").into(), "route_config_name");
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"
        | "envoy.config.listener.v3.Filter"
        | "envoy.config.listener.v3.ListenerFilter" => {
            let discovery = inner(message, "config_discovery").filter(|d| from_ads(d, "config_source"));
            // With a default to go on with nobody waits.
            if discovery.is_some_and(|d| !is_true(&d, "apply_default_config_without_warming")) {
                add(Target::Extension, text(message, "name").into(), "name");
            }
        }
        "envoy.config.route.v3.RouteAction"
        | "envoy.config.route.v3.RouteAction.RequestMirrorPolicy"
        | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            add(Target::Cluster, text(message, "cluster").into(), "cluster");
        }
        "envoy.config.route.v3.WeightedCluster.ClusterWeight"
        | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight" => {
            add(Target::Cluster, text(message, "name").into(), "name");
        }
        _ => {}
    }
}

/// Cluster.DiscoveryType.EDS.
const EDS: i32 = 3;

/// Does a ConfigSource in this field say that the aggregated stream brings it?
fn from_ads(message: &DynamicMessage, field: &str) -> bool {
    inner(message, field).is_some_and(|source| source.has_field_by_name("ads"))
}

fn inner<'a>(message: &'a DynamicMessage, field: &str) -> Option<Cow<'a, DynamicMessage>> {
    if !message.has_field_by_name(field) {
        return None;
    }
    match message.get_field_by_name(field)? {
        Cow::Borrowed(Value::Message(inner)) => Some(Cow::Borrowed(inner)),
        Cow::Owned(Value::Message(inner)) => Some(Cow::Owned(inner)),
        _ => None,
    }
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn is_true(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).and_then(|value| value.as_bool()) == Some(true)
}
