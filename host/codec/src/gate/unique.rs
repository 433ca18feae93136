//! What may be there once only, which no field rule says: Envoy refuses the whole response for a second one.
//!
//! Within one message it is a breach. Between messages of different calls each states what it claims.

use std::collections::HashMap;
use std::net::IpAddr;

use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};

use super::{Place, Violation};
use crate::path::Step;

/// Names and domains within a route configuration, matches within a listener.
pub(super) fn judge(message: &DynamicMessage, full_name: &str, place: &Place<'_>, violations: &mut Vec<Violation>) {
    match full_name {
        "envoy.config.route.v3.RouteConfiguration" => {
            let of_host =
                |host: &DynamicMessage| claims(host).into_iter().map(|c| (c.clone().into_bytes(), c)).collect();
            once(message, "virtual_hosts", of_host, place, violations);
        }
        // A matcher chooses chains by their names, and what they match themselves says nothing.
        "envoy.config.listener.v3.Listener" if !message.has_field_by_name("filter_chain_matcher") => {
            let of_chain = |chain: &DynamicMessage| {
                claims(chain).into_iter().map(|claim| (claim.into_bytes(), "the same match".to_owned())).collect()
            };
            once(message, "filter_chains", of_chain, place, violations);
        }
        _ => {}
    }
}

/// What a message claims among its siblings: a virtual host its name and its domains, which do not differ by case; a filter
/// chain each combination of what it matches.
pub(super) fn claims(message: &DynamicMessage) -> Vec<String> {
    match message.descriptor().full_name() {
        "envoy.config.route.v3.VirtualHost" => of_virtual_host(message),
        "envoy.config.listener.v3.FilterChain" => of_chain(message),
        _ => Vec::new(),
    }
}

fn of_virtual_host(message: &DynamicMessage) -> Vec<String> {
    let name = message.get_field_by_name("name");
    let name = name.as_deref().and_then(Value::as_str).unwrap_or_default();
    let domains = message.get_field_by_name("domains");
    let domains = domains.as_deref().and_then(Value::as_list).unwrap_or_default();
    let domains = domains.iter().filter_map(Value::as_str).map(|domain| format!("domain:{}", domain.to_lowercase()));
    std::iter::once(format!("name:{name}")).chain(domains).collect()
}

/// The criteria of a match that are lists: one of each has to fit.
const ANY_OF: [&str; 6] = [
    "prefix_ranges",
    "server_names",
    "application_protocols",
    "direct_source_prefix_ranges",
    "source_prefix_ranges",
    "source_ports",
];

/// Combinations of one chain that are looked at; a chain with more of them is not compared with others.
const MAX_COMBINATIONS: usize = 1000;

fn of_chain(chain: &DynamicMessage) -> Vec<String> {
    let found = chain.get_field_by_name("filter_chain_match");
    found.as_deref().and_then(Value::as_message).map(of_match).unwrap_or_default()
}

/// Each combination of what a filter chain matches.
pub(super) fn of_match(found: &DynamicMessage) -> Vec<String> {
    let scalar = |name: &str| found.get_field_by_name(name).map(|value| value.to_string()).unwrap_or_default();
    let port = if found.has_field_by_name("destination_port") { scalar("destination_port") } else { String::new() };
    let mut all = vec![format!("{port}/{}/{}", scalar("transport_protocol"), scalar("source_type"))];
    for name in ANY_OF {
        let field = found.get_field_by_name(name);
        let values = field.as_deref().and_then(Value::as_list).unwrap_or_default();
        let mut values: Vec<String> = values.iter().map(one_of).collect();
        if values.is_empty() {
            values.push(String::new());
        }
        if all.len().saturating_mul(values.len()) > MAX_COMBINATIONS {
            return Vec::new();
        }
        all = all.iter().flat_map(|start| values.iter().map(move |value| format!("{start}/{value}"))).collect();
    }
    all.into_iter().map(|combination| format!("match:{combination}")).collect()
}

/// A value of a criterion as Envoy compares it: of a network its own bits only.
fn one_of(value: &Value) -> String {
    let network = |range: &DynamicMessage| {
        let length = range.get_field_by_name("prefix_len")?.as_message()?.get_field_by_number(1)?.as_u32()?;
        let address: IpAddr = range.get_field_by_name("address_prefix")?.as_str()?.parse().ok()?;
        let address = match address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() & high_bits(length, 32) as u32).into()),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() & high_bits(length, 128)).into()),
        };
        Some(format!("{address}+{length}"))
    };
    value.as_message().and_then(network).unwrap_or_else(|| value.to_string())
}

/// The first bits of so many.
fn high_bits(length: u32, width: u32) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & all.checked_shl(width.saturating_sub(length)).unwrap_or(0)
}

fn once(
    message: &DynamicMessage,
    field: &str,
    claims: impl Fn(&DynamicMessage) -> Vec<(Vec<u8>, String)>,
    place: &Place<'_>,
    violations: &mut Vec<Violation>,
) {
    let list = message.get_field_by_name(field);
    let list = list.as_deref().and_then(Value::as_list).unwrap_or_default();
    if list.len() < 2 {
        return;
    }
    let mut taken: HashMap<Vec<u8>, usize> = HashMap::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        for (key, words) in item.as_message().map(&claims).unwrap_or_default() {
            if let Some(first) = taken.get(&key) {
                let (in_list, at) = (Step::Field(field), Step::Index(index));
                let place = place.at(&in_list);
                violations.push(place.at(&at).violation("unique", format!("{words} as {field}[{first}]")));
            } else {
                taken.insert(key, index);
            }
        }
    }
}
