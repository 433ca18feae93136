//! A patch, and what is noted of its effect.

use std::collections::BTreeMap;

use trysail_sdk::Failure;
use trysail_sdk::facts::EnvoyFilterPatch;
use trysail_sdk::patching::{Context, Patched};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, ClusterMatch, EnvoyConfigObjectMatch, ListenerMatch, PatchContext, RouteConfigurationMatch,
    envoy_config_object_match::ObjectTypes, listener_match, patch::Operation, route_configuration_match,
};

use crate::wire;

/// A patch that a proxy has.
pub struct Patch<'p> {
    /// As the host prepared it.
    pub made: &'p EnvoyFilterPatch,
    /// What it applies to.
    pub apply_to: ApplyTo,
    /// What it does.
    pub operation: Operation,
    /// Place among the patches of its kind and context: the order in which they apply.
    pub at: usize,
    matching: EnvoyConfigObjectMatch,
}

impl<'p> Patch<'p> {
    /// All patches of a list.
    ///
    /// # Errors
    /// A match that cannot be decoded.
    pub fn all(patches: &'p [EnvoyFilterPatch]) -> Result<Vec<Self>, Failure> {
        patches.iter().enumerate().map(|(at, made)| Patch::new(at, made)).collect()
    }

    fn new(at: usize, made: &'p EnvoyFilterPatch) -> Result<Self, Failure> {
        let matching = EnvoyConfigObjectMatch::decode(made.r#match.as_slice())
            .map_err(|e| Failure::BadAnswer(format!("match of EnvoyFilter {}: {e}", made.object)))?;
        let apply_to = ApplyTo::try_from(made.apply_to).unwrap_or_default();
        let operation = Operation::try_from(made.operation).unwrap_or_default();
        Ok(Patch { made, apply_to, operation, at, matching })
    }

    /// Envoy's message; empty for removals.
    pub fn value(&self) -> &'p [u8] {
        self.made.value.as_deref().unwrap_or_default()
    }

    /// Is it one of the two kinds of merge?
    pub fn merges(&self) -> bool {
        matches!(self.operation, Operation::Merge | Operation::MergeAndReplaceList)
    }

    /// The message with the value merged into it.
    pub fn merged(&self, message: &[u8]) -> Vec<u8> {
        wire::merge(message, self.value(), &self.made.replaced)
    }

    /// What it matches in listeners.
    pub fn listener(&self) -> Option<&ListenerMatch> {
        match &self.matching.object_types {
            Some(ObjectTypes::Listener(listener)) => Some(listener),
            _ => None,
        }
    }

    /// What it matches in filter chains.
    pub fn chain(&self) -> Option<&listener_match::FilterChainMatch> {
        self.listener()?.filter_chain.as_ref()
    }

    /// The network filter that it names.
    pub fn filter(&self) -> Option<&listener_match::FilterMatch> {
        self.chain()?.filter.as_ref()
    }

    /// The HTTP filter that it names.
    pub fn sub_filter(&self) -> Option<&str> {
        Some(&self.filter()?.sub_filter.as_ref()?.name)
    }

    /// The listener filter that it names.
    pub fn listener_filter(&self) -> Option<&str> {
        self.listener().map(|listener| listener.listener_filter.as_str()).filter(|name| !name.is_empty())
    }

    /// What it matches in route configurations.
    pub fn routes(&self) -> Option<&RouteConfigurationMatch> {
        match &self.matching.object_types {
            Some(ObjectTypes::RouteConfiguration(routes)) => Some(routes),
            _ => None,
        }
    }

    /// What it matches in virtual hosts.
    pub fn virtual_host(&self) -> Option<&route_configuration_match::VirtualHostMatch> {
        self.routes()?.vhost.as_ref()
    }

    /// What it matches in routes.
    pub fn route(&self) -> Option<&route_configuration_match::RouteMatch> {
        self.virtual_host()?.route.as_ref()
    }

    /// What it matches in clusters.
    pub fn cluster(&self) -> Option<&ClusterMatch> {
        match &self.matching.object_types {
            Some(ObjectTypes::Cluster(cluster)) => Some(cluster),
            _ => None,
        }
    }

    /// Does it add a whole cluster or listener in a context? One for any context does so towards others only.
    pub fn adds_whole(&self, patched: Patched, context: Context) -> bool {
        let whole = match patched {
            Patched::Clusters => ApplyTo::Cluster,
            Patched::Listeners => ApplyTo::Listener,
            Patched::Routes => return false,
        };
        self.apply_to == whole
            && self.operation == Operation::Add
            && (self.matching.context() != PatchContext::Any || context != Context::Inbound)
    }

    /// Does it match a context?
    pub fn matches_context(matching: &EnvoyConfigObjectMatch, context: Context) -> bool {
        matches!(
            (matching.context(), context),
            (PatchContext::Any, _)
                | (PatchContext::SidecarInbound, Context::Inbound)
                | (PatchContext::SidecarOutbound, Context::Outbound)
                | (PatchContext::Gateway, Context::Gateway)
        )
    }
}

/// What applies to a kind.
pub fn group(apply_to: ApplyTo) -> Option<Patched> {
    Some(match apply_to {
        ApplyTo::Cluster => Patched::Clusters,
        ApplyTo::Listener
        | ApplyTo::ListenerFilter
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter => Patched::Listeners,
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => Patched::Routes,
        ApplyTo::Invalid | ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => return None,
    })
}

/// What became of a patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Something was what it matches.
    pub matched: bool,
    /// It changed something.
    pub changed: bool,
    /// Why it did not, where it matched.
    pub reasons: Vec<String>,
}

/// What became of patches, by their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(pub BTreeMap<usize, Effect>);

impl Notes {
    fn of(&mut self, patch: &Patch<'_>) -> &mut Effect {
        self.0.entry(patch.at).or_default()
    }

    /// The patch matched and did its work, or did not change anything.
    pub fn applied(&mut self, patch: &Patch<'_>, changed: bool) {
        let effect = self.of(patch);
        effect.matched = true;
        effect.changed |= changed;
    }

    /// The patch matched and did nothing, and why.
    pub fn refused(&mut self, patch: &Patch<'_>, reason: impl Into<String>) {
        let (effect, reason) = (self.of(patch), reason.into());
        effect.matched = true;
        if !effect.reasons.contains(&reason) {
            effect.reasons.push(reason);
        }
    }
}

/// Says that an operation does nothing for what the patch applies to.
pub fn no_such_operation(patch: &Patch<'_>) -> String {
    format!("{} does nothing for {}", patch.operation.as_str_name(), patch.apply_to.as_str_name())
}
