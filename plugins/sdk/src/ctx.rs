//! The context of a call: typed questions to the host.

use prost::Message;
use trysail_proto::istio::mesh::v1alpha1::{MeshConfig, ProxyConfig};
use trysail_proto::trysail::facts::v1 as facts;

use crate::{CallRef, Failure};

/// How urgent a reported line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever looks.
    Debug,
    /// Life-cycle.
    Info,
    /// Degrades.
    Warn,
    /// Needs a human.
    Error,
}

/// Who answers: the component's imports, or a native host.
pub trait Host {
    /// Answers a query by its WIT name; predicates answer with present or none.
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>>;
    /// Takes a line.
    fn report(&self, level: Level, message: &str);
    /// A plugin's own configuration as JSON.
    fn configuration(&self) -> String {
        "{}".to_owned()
    }
    /// Answers a query as JSON, where the host can.
    fn ask_json(&self, _query: &str, _args: &[&str]) -> Option<String> {
        None
    }
}

/// What a call may know: whatever it asks for.
pub struct Ctx<'a> {
    host: &'a dyn Host,
}

/// A shorthand of this module.
type Answer<T> = Result<T, Failure>;

impl<'a> Ctx<'a> {
    /// A context over a host.
    pub fn new(host: &'a dyn Host) -> Self {
        Ctx { host }
    }

    /// Asks by the name of the query and decodes into any message, also one of your own that reads only some fields.
    ///
    /// # Errors
    /// When the answer is no such message.
    pub fn ask<M: Message + Default>(&self, query: &'static str, args: &[&str]) -> Answer<Option<M>> {
        self.message(query, args)
    }

    /// The plugin's own configuration, read into a type of its own.
    ///
    /// # Errors
    /// When it does not fit; the error names the field.
    pub fn configuration<T: serde::de::DeserializeOwned>(&self) -> Answer<T> {
        serde_json::from_str(&self.host.configuration()).map_err(|error| Failure::BadConfiguration(error.to_string()))
    }

    /// Asks for an answer as JSON; `None` when there is none.
    ///
    /// # Errors
    /// When the host hands out something that is no JSON.
    pub fn json(&self, query: &str, args: &[&str]) -> Answer<Option<serde_json::Value>> {
        let Some(text) = self.host.ask_json(query, args) else { return Ok(None) };
        let bad = |error| Failure::BadAnswer(format!("{query}({}): {error}", args.join(", ")));
        serde_json::from_str(&text).map(Some).map_err(bad)
    }

    fn message<M: Message + Default>(&self, query: &'static str, args: &[&str]) -> Answer<Option<M>> {
        let Some(bytes) = self.host.ask(query, args) else { return Ok(None) };
        let decoded = M::decode(bytes.as_slice())
            .map_err(|e| Failure::BadAnswer(format!("{query}({}): {e}", args.join(", "))))?;
        Ok(Some(decoded))
    }

    fn or_default<M: Message + Default>(&self, query: &'static str, args: &[&str]) -> Answer<M> {
        Ok(self.message(query, args)?.unwrap_or_default())
    }

    fn text(&self, query: &'static str, args: &[&str]) -> Option<String> {
        self.host.ask(query, args).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn strings(&self, query: &'static str, args: &[&str]) -> Answer<Vec<String>> {
        Ok(self.or_default::<facts::Strings>(query, args)?.values)
    }

    /// The named fields of the effective mesh configuration.
    pub fn mesh_config(&self, fields: &[&str]) -> Answer<MeshConfig> {
        self.or_default("mesh-config", fields)
    }

    /// Effective values of feature variables, as text, in the order of the names.
    pub fn features(&self, names: &[&str]) -> Answer<Vec<String>> {
        let mut values = self.strings("features", names)?;
        values.resize(names.len(), String::new());
        Ok(values)
    }

    /// Feature variables that are booleans.
    pub fn flags<const N: usize>(&self, names: [&str; N]) -> Answer<[bool; N]> {
        let values = self.features(&names)?;
        Ok(std::array::from_fn(|i| values[i] == "true"))
    }

    /// A setting of the control plane: `domain`, `cluster-id`, `system-namespace`, `revision`.
    pub fn setting(&self, name: &str) -> String {
        self.text("setting", &[name]).unwrap_or_default()
    }

    /// A service by its key `namespace/host`.
    pub fn service(&self, key: &str) -> Answer<Option<facts::Service>> {
        self.message("service", &[key])
    }

    /// Keys of all services of a host, oldest first.
    pub fn services_of_host(&self, host: &str) -> Answer<Vec<String>> {
        self.strings("services-of-host", &[host])
    }

    /// Services of a visibility (`*` or a namespace), oldest first.
    pub fn service_index(&self, visibility: &str) -> Answer<Vec<facts::ServiceSummary>> {
        Ok(self.or_default::<facts::ServiceSummaries>("service-index", &[visibility])?.services)
    }

    /// Namespaces that have a `service_index` of their own.
    pub fn service_index_namespaces(&self) -> Answer<Vec<String>> {
        self.strings("service-index-namespaces", &[])
    }

    /// Services of a namespace whatever their visibility, oldest first.
    pub fn services_in_namespace(&self, namespace: &str) -> Answer<Vec<facts::ServiceSummary>> {
        Ok(self.or_default::<facts::ServiceSummaries>("services-in-namespace", &[namespace])?.services)
    }

    /// Endpoints of a service port.
    pub fn endpoints(&self, service_key: &str, port: u32) -> Answer<Vec<facts::Endpoint>> {
        Ok(self.or_default::<facts::Endpoints>("endpoints", &[service_key, &port.to_string()])?.endpoints)
    }

    /// Is any endpoint of a service port with these labels ready to serve?
    pub fn has_ready_endpoints<'l>(
        &self,
        service_key: &str,
        port: u32,
        labels: impl IntoIterator<Item = (&'l String, &'l String)>,
    ) -> bool {
        let mut args = vec![service_key.to_owned(), port.to_string()];
        args.extend(labels.into_iter().map(|(name, value)| format!("{name}={value}")));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host.ask("has-ready-endpoints", &args).is_some()
    }

    /// Identities of a service's endpoints.
    pub fn service_accounts(&self, service_key: &str) -> Answer<Vec<String>> {
        self.strings("service-accounts", &[service_key])
    }

    /// Service ports of the workload of an address.
    pub fn targets_at(&self, address: &str) -> Answer<Vec<facts::ServiceTarget>> {
        Ok(self.or_default::<facts::ServiceTargets>("targets-at", &[address])?.targets)
    }

    /// The workload of an address.
    pub fn workload_at(&self, address: &str) -> Answer<Option<facts::Workload>> {
        self.message("workload-at", &[address])
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Answer<Option<facts::Namespace>> {
        self.message("namespace", &[name])
    }

    /// Gateways of all networks.
    pub fn network_gateways(&self) -> Answer<Vec<facts::NetworkGateway>> {
        Ok(self.or_default::<facts::NetworkGateways>("network-gateways", &[])?.gateways)
    }

    /// Address ranges of all networks, by address and length.
    pub fn network_ranges(&self) -> Answer<Vec<String>> {
        self.strings("network-ranges", &[])
    }

    /// An object and its document.
    pub fn object<M: Message + Default>(&self, kind: &str, key: &str) -> Answer<Option<(facts::Object, M)>> {
        let Some(object) = self.message::<facts::Object>("object", &[kind, key])? else { return Ok(None) };
        let spec = M::decode(object.spec.as_slice()).map_err(|e| Failure::BadAnswer(format!("{kind} {key}: {e}")))?;
        Ok(Some((object, spec)))
    }

    /// Objects of a kind in a namespace with their selectors, oldest first.
    pub fn selectors(&self, kind: &str, namespace: &str) -> Answer<Vec<facts::SelectorSummary>> {
        Ok(self.or_default::<facts::SelectorSummaries>("selectors", &[kind, namespace])?.entries)
    }

    /// An EnvoyFilter by its key `namespace/name`, with its patches as Envoy's messages.
    pub fn envoy_filter(&self, key: &str) -> Answer<Option<facts::EnvoyFilter>> {
        self.message("envoy-filter", &[key])
    }

    /// Namespaces that have objects of a kind, sorted.
    pub fn selector_namespaces(&self, kind: &str) -> Answer<Vec<String>> {
        self.strings("selector-namespaces", &[kind])
    }

    /// VirtualServices of a visibility, oldest first.
    pub fn virtual_service_index(&self, visibility: &str) -> Answer<Vec<facts::VirtualServiceSummary>> {
        let index: facts::VirtualServiceSummaries = self.or_default("virtual-service-index", &[visibility])?;
        Ok(index.virtual_services)
    }

    /// Namespaces that have a `virtual_service_index` of their own.
    pub fn virtual_service_index_namespaces(&self) -> Answer<Vec<String>> {
        self.strings("virtual-service-index-namespaces", &[])
    }

    /// VirtualServices of a gateway (`namespace/name`) and a visibility, oldest first.
    pub fn gateway_virtual_services(
        &self,
        gateway: &str,
        visibility: &str,
    ) -> Answer<Vec<facts::VirtualServiceSummary>> {
        let found: facts::VirtualServiceSummaries =
            self.or_default("gateway-virtual-services", &[gateway, visibility])?;
        Ok(found.virtual_services)
    }

    /// Namespaces that have `gateway_virtual_services` of their own.
    pub fn gateway_virtual_service_namespaces(&self, gateway: &str) -> Answer<Vec<String>> {
        self.strings("gateway-virtual-service-namespaces", &[gateway])
    }

    /// Hosts that VirtualServices of a gateway lead to; with a source namespace those only that it is routed to.
    pub fn gateway_destinations(&self, gateway: &str, source_namespace: &str) -> Answer<Vec<String>> {
        self.strings("gateway-destinations", &[gateway, source_namespace])
    }

    /// Gateways that VirtualServices name, without `mesh`.
    pub fn virtual_service_gateways(&self) -> Answer<Vec<String>> {
        self.strings("virtual-service-gateways", &[])
    }

    /// DestinationRules that cover a host, oldest first.
    pub fn destination_rules_matching(&self, host: &str) -> Answer<Vec<facts::DestinationRuleSummary>> {
        let found: facts::DestinationRuleSummaries = self.or_default("destination-rules-matching", &[host])?;
        Ok(found.destination_rules)
    }

    /// An attribute of the proxy as text; see `facts.wit`.
    pub fn proxy(&self, attribute: &str) -> Option<String> {
        self.text("proxy", &[attribute])
    }

    /// A node metadata value as text.
    pub fn proxy_metadata(&self, key: &str) -> Option<String> {
        self.proxy(&format!("metadata:{key}"))
    }

    /// Which of the namespaces is the proxy's. Asks nothing when there is none to choose from.
    pub fn proxy_in_namespaces(&self, namespaces: &[&str]) -> Option<String> {
        if namespaces.is_empty() {
            return None;
        }
        self.text("proxy-in-namespaces", namespaces)
    }

    /// Does the proxy's workload have all of these labels? Asks nothing for an empty selector.
    pub fn proxy_labels_match<'l>(&self, labels: impl IntoIterator<Item = (&'l String, &'l String)>) -> bool {
        self.all_pairs("proxy-labels-match", labels)
    }

    /// A predicate of pairs, in an order of their own so that equal questions are one.
    fn all_pairs<'l>(&self, query: &'static str, of: impl IntoIterator<Item = (&'l String, &'l String)>) -> bool {
        let mut pairs: Vec<String> = of.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.sort();
        let args: Vec<&str> = pairs.iter().map(String::as_str).collect();
        args.is_empty() || self.host.ask(query, &args).is_some()
    }

    /// Is one of the addresses the proxy's own?
    pub fn proxy_has_address(&self, addresses: &[&str]) -> bool {
        !addresses.is_empty() && self.host.ask("proxy-has-address", addresses).is_some()
    }

    /// Is the proxy at least of this version?
    pub fn proxy_version_at_least(&self, version: &str) -> bool {
        self.host.ask("proxy-version-at-least", &[version]).is_some()
    }

    /// Is there anything in the proxy's version that this regular expression finds?
    pub fn proxy_version_matches(&self, pattern: &str) -> bool {
        self.host.ask("proxy-version-matches", &[pattern]).is_some()
    }

    /// Does the proxy's node metadata have all of these texts? Asks nothing when there are none.
    pub fn proxy_metadata_match<'l>(&self, pairs: impl IntoIterator<Item = (&'l String, &'l String)>) -> bool {
        self.all_pairs("proxy-metadata-match", pairs)
    }

    /// Service ports that the proxy's own workload is an endpoint of, oldest service first.
    pub fn proxy_targets(&self) -> Answer<Vec<facts::ServiceTarget>> {
        Ok(self.or_default::<facts::ServiceTargets>("proxy-targets", &[])?.targets)
    }

    /// The named fields of the effective proxy configuration: the proxy's own, else the mesh's default.
    pub fn proxy_config(&self, fields: &[&str]) -> Answer<ProxyConfig> {
        if let Some(own) = self.message("proxy-config", fields)? {
            return Ok(own);
        }
        Ok(self.mesh_config(&["default_config"])?.default_config.unwrap_or_default())
    }

    /// The output of another call as a message; none when it has no item.
    pub fn derived<M: Message + Default>(&self, stage: &str, function: &str, args: &[&str]) -> Answer<Option<M>> {
        self.message("derived", &[&[stage, function], args].concat())
    }

    /// The items of another call, as the plugins at its hook point leave them.
    pub fn derived_items(&self, call: &CallRef) -> Answer<Vec<facts::items::Item>> {
        let head = [call.hook.as_str(), &call.stage, &call.function].into_iter();
        let args: Vec<&str> = head.chain(call.args.iter().map(String::as_str)).collect();
        Ok(self.or_default::<facts::Items>("derived-items", &args)?.items)
    }

    /// The item of that key in the output of another call; none when there is no such item. Unlike [`Ctx::derived`] it does not
    /// depend on the other items.
    pub fn derived_item<M: Message + Default>(
        &self,
        stage: &str,
        function: &str,
        key: &str,
        args: &[&str],
    ) -> Answer<Option<M>> {
        self.message("derived-item", &[&[stage, function, key], args].concat())
    }

    /// Does any plugin stand at this hook point?
    pub fn hooked(&self, point: &str) -> bool {
        self.host.ask("hooked", &[point]).is_some()
    }

    /// Does another call have any item?
    pub fn derived_exists(&self, stage: &str, function: &str, args: &[&str]) -> bool {
        self.host.ask("derived-exists", &[&[stage, function], args].concat()).is_some()
    }

    /// Hands a line to the host's log.
    pub fn report(&self, level: Level, message: &str) {
        self.host.report(level, message);
    }
}
