//! What Envoy asks of filters and listeners beyond their field rules: an extension has a type, what ends a chain is last, and a
//! listener for connections has a chain.
//!
//! The pitfalls of EnvoyFilters: a filter that is added goes behind the router, and one that is told by its name alone was
//! enough for Envoy before 1.22.

use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};

use super::{Place, Violation, awaited, json};
use crate::find_message;
use crate::path::Step;

/// Messages with an extension: the field that holds it, and those that make up for it.
pub(super) const EXTENSIONS: [(&str, &[&str]); 5] = [
    (HTTP_FILTER, &["typed_config", "config_discovery", "is_optional"]),
    ("envoy.config.listener.v3.Filter", &["typed_config", "config_discovery"]),
    ("envoy.config.listener.v3.ListenerFilter", &["typed_config", "config_discovery"]),
    ("envoy.config.core.v3.TransportSocket", &["typed_config"]),
    ("envoy.config.accesslog.v3.AccessLog", &["typed_config"]),
];

/// Fields of a listener of which one says what becomes of what it receives.
pub(super) const RECEIVES: [&str; 4] = ["filter_chains", "default_filter_chain", "udp_listener_config", "api_listener"];

/// A message with filters in order.
pub(super) struct Chain {
    /// The message.
    pub(super) message: &'static str,
    /// Its filters.
    pub(super) filters: &'static str,
    /// Those that end the chain, and nothing may come after.
    pub(super) ends: &'static [&'static str],
    /// Those that may do so, as their configuration says.
    may_end: &'static [&'static str],
}

const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";

pub(super) const CHAINS: [Chain; 2] = [
    Chain {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        filters: "http_filters",
        ends: &["envoy.extensions.filters.http.router.v3.Router"],
        may_end: &[
            "envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "envoy.extensions.filters.http.mcp_router.v3.McpRouter",
            "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
        ],
    },
    Chain {
        message: "envoy.config.listener.v3.FilterChain",
        filters: "filters",
        ends: &[
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
            "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy",
            "envoy.extensions.filters.network.direct_response.v3.Config",
            "envoy.extensions.filters.network.echo.v3.Echo",
        ],
        may_end: &[
            "envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy",
            "envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter",
            "envoy.extensions.filters.network.generic_proxy.v3.GenericProxy",
            "envoy.extensions.filters.network.golang.v3alpha.Config",
            "envoy.extensions.filters.network.reverse_tunnel.v3.ReverseTunnel",
            "envoy.extensions.filters.network.rocketmq_proxy.v3.RocketmqProxy",
            "envoy.extensions.filters.network.sip_proxy.v3alpha.SipProxy",
        ],
    },
];

pub(super) fn judge(message: &DynamicMessage, full_name: &str, place: &Place<'_>, violations: &mut Vec<Violation>) {
    let absent = |fields: &[&str]| {
        let awaited = awaited(message, place.holes);
        let number = |field: &str| message.descriptor().get_field_by_name(field).map(|field| field.number());
        let may_come = |field: &&&str| awaited.contains(&0) || number(field).is_some_and(|n| awaited.contains(&n));
        !fields.iter().any(|field| message.has_field_by_name(field) || may_come(&field))
    };
    if let Some((_, fields)) = EXTENSIONS.iter().find(|(name, _)| *name == full_name)
        && absent(fields)
    {
        let why = "Envoy finds extensions by the type of their configuration, not by their name";
        violations.push(place.at(&Step::Field("typed_config")).violation("extension", why));
    }
    if full_name == "envoy.config.listener.v3.Listener" && absent(&RECEIVES) {
        violations.push(place.at(&Step::Field("filter_chains")).violation("chains", "a listener needs a filter chain"));
    }
    if let Some(chain) = CHAINS.iter().find(|chain| chain.message == full_name) {
        // What is yet to come may stand anywhere among the filters.
        let awaited = awaited(message, place.holes);
        let number = message.descriptor().get_field_by_name(chain.filters).map(|field| field.number());
        if !awaited.contains(&0) && !number.is_some_and(|number| awaited.contains(&number)) {
            order(message, chain, place, violations);
        }
    }
}

/// What ends the chain is last, and the last ends it.
fn order(message: &DynamicMessage, chain: &Chain, place: &Place<'_>, violations: &mut Vec<Violation>) {
    let filters = message.get_field_by_name(chain.filters);
    let filters = filters.as_deref().and_then(Value::as_list).unwrap_or_default();
    let Some(last) = filters.len().checked_sub(1) else { return };
    let list = Step::Field(chain.filters);
    let place = place.at(&list);
    for (index, filter) in filters.iter().enumerate() {
        let Some(of) = filter.as_message().and_then(type_of) else { continue };
        let ends = chain.ends.contains(&of.as_str());
        let why = match index == last {
            false if ends => "what ends the chain must be the last of the filters",
            // A type that is not known may end it.
            true if !ends && !chain.may_end.contains(&of.as_str()) && find_message(&of).is_some() => {
                "the last of the filters must be one that ends the chain"
            }
            _ => continue,
        };
        violations.push(place.at(&Step::Index(index)).violation("terminal", why));
    }
}

/// The type of a filter's configuration.
fn type_of(filter: &DynamicMessage) -> Option<String> {
    let config = filter.has_field_by_name("typed_config").then(|| filter.get_field_by_name("typed_config"))??;
    let (type_url, _) = json::any_parts(config.as_message()?);
    Some(trysail_proto::any::full_name(&type_url).to_owned())
}
