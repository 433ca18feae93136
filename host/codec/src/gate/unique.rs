//! What may be there once only, which no field rule says: Envoy refuses the whole response for a second one.
//!
//! Within one message it is a breach. Between messages of different calls each states what it claims.

use std::collections::HashMap;

use prost_reflect::prost::Message;
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
                let found = chain.get_field_by_name("filter_chain_match");
                let encoded = found.as_deref().and_then(Value::as_message).map(Message::encode_to_vec);
                vec![(encoded.unwrap_or_default(), "the same match".to_owned())]
            };
            once(message, "filter_chains", of_chain, place, violations);
        }
        _ => {}
    }
}

/// What a message claims among its siblings: a virtual host its name and its domains, which do not differ by case.
pub(super) fn claims(message: &DynamicMessage) -> Vec<String> {
    if message.descriptor().full_name() != "envoy.config.route.v3.VirtualHost" {
        return Vec::new();
    }
    let name = message.get_field_by_name("name");
    let name = name.as_deref().and_then(Value::as_str).unwrap_or_default();
    let domains = message.get_field_by_name("domains");
    let domains = domains.as_deref().and_then(Value::as_list).unwrap_or_default();
    let domains = domains.iter().filter_map(Value::as_str).map(|domain| format!("domain:{}", domain.to_lowercase()));
    std::iter::once(format!("name:{name}")).chain(domains).collect()
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
