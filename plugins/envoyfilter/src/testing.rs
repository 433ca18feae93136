//! Patches, and a host of made-up answers, for tests.

use std::collections::BTreeMap;

use trysail_sdk::facts::{EnvoyFilterPatch, envoy_filter_patch::AnyPatch};
use trysail_sdk::prost::{self, Message as _};
use trysail_sdk::prost_types::Any;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, ClusterMatch, EnvoyConfigObjectMatch, ListenerMatch, RouteConfigurationMatch,
    envoy_config_object_match::ObjectTypes, listener_match, patch::Operation, route_configuration_match,
};
use trysail_sdk::{Ctx, Host, Level, Output};

/// A patch that matches everything.
pub fn patch(apply_to: ApplyTo, operation: Operation, value: &impl prost::Message) -> EnvoyFilterPatch {
    EnvoyFilterPatch {
        object: "ns/a".into(),
        apply_to: apply_to.into(),
        operation: operation.into(),
        value: Some(value.encode_to_vec()),
        ..Default::default()
    }
}

/// The same with a match.
pub fn matching(object_types: ObjectTypes, patch: EnvoyFilterPatch) -> EnvoyFilterPatch {
    let matching = EnvoyConfigObjectMatch { object_types: Some(object_types), ..Default::default() };
    EnvoyFilterPatch { r#match: matching.encode_to_vec(), ..patch }
}

/// The same with what the host says of the typed configuration in it.
pub fn configured(config: &Any, patch: EnvoyFilterPatch) -> EnvoyFilterPatch {
    let config = AnyPatch { type_url: config.type_url.clone(), value: config.value.clone(), replaced: Vec::new() };
    EnvoyFilterPatch { config: Some(config), ..patch }
}

/// Matches a network filter, and in it an HTTP filter.
pub fn filter(name: &str, sub_filter: Option<&str>) -> ObjectTypes {
    let filter = listener_match::FilterMatch {
        name: name.into(),
        sub_filter: sub_filter.map(|name| listener_match::SubFilterMatch { name: name.into() }),
    };
    let chain = listener_match::FilterChainMatch { filter: Some(filter), ..Default::default() };
    ObjectTypes::Listener(ListenerMatch { filter_chain: Some(chain), ..Default::default() })
}

/// Matches a cluster of a service.
pub fn service(host: &str) -> ObjectTypes {
    ObjectTypes::Cluster(ClusterMatch { service: host.into(), ..Default::default() })
}

/// Matches a route by its name.
pub fn route(name: &str) -> ObjectTypes {
    let route = route_configuration_match::RouteMatch { name: name.into(), ..Default::default() };
    let vhost = route_configuration_match::VirtualHostMatch { route: Some(route), ..Default::default() };
    ObjectTypes::RouteConfiguration(RouteConfigurationMatch { vhost: Some(vhost), ..Default::default() })
}

/// Answers by query and arguments, put together with spaces; calls of this stage are made. All else is none.
#[derive(Default)]
pub struct World(BTreeMap<String, Vec<u8>>);

impl World {
    /// Adds an answer that is a message.
    pub fn answer(self, question: &str, answer: &impl prost::Message) -> Self {
        self.bytes(question, answer.encode_to_vec())
    }

    /// Adds an answer that is text; empty for a predicate that holds.
    pub fn bytes(mut self, question: &str, answer: impl Into<Vec<u8>>) -> Self {
        self.0.insert(question.to_owned(), answer.into());
        self
    }

    /// Calls the stage.
    pub fn call(&self, function: &str, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        crate::translate(&Ctx::new(self), function, &args).expect("the call succeeds")
    }

    /// The bytes of the items of a call.
    pub fn items(&self, function: &str, args: &[&str]) -> Vec<(String, Vec<u8>)> {
        let bytes = |part: &trysail_sdk::Part| match part {
            trysail_sdk::Part::Bytes(bytes) => bytes.clone(),
            other => panic!("a hole: {other:?}"),
        };
        let item = |entry: trysail_sdk::Entry| match entry {
            trysail_sdk::Entry::Item(item) => (item.key, item.message.parts.iter().flat_map(bytes).collect()),
            trysail_sdk::Entry::Include(call) => panic!("an inclusion: {call:?}"),
        };
        self.call(function, args).entries.into_iter().map(item).collect()
    }
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        if query == "derived" && args[0] == "envoyfilter" {
            let bytes: Vec<u8> = self.items(args[1], &args[2..]).into_iter().flat_map(|(_, bytes)| bytes).collect();
            return (!bytes.is_empty()).then_some(bytes);
        }
        self.0.get(&[&[query], args].concat().join(" ")).cloned()
    }

    fn report(&self, _: Level, _: &str) {}
}
