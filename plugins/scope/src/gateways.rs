//! The Gateways of a proxy at the edge, and the VirtualServices bound to them.
//!
//! ```text
//! gateways (which select the proxy) ──> merged-gateway (their servers by port)
//!                                       gateway-routes (the same by route configuration)
//! gateway-virtual-services GATEWAY      gateway-hosts       gateway-check GATEWAY      unknown-gateways
//! ```
//!
//! Nothing is rejected. What loses a conflict is left out with a diagnostic (see [`merge`]), and `gateway-check` and
//! `unknown-gateways` report VirtualServices that no server takes up.

mod check;
mod merge;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use trysail_sdk::facts::{MergedGateway, Object, SelectorSummary, Strings, VirtualServiceSummary};
use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::extension_provider::Provider;
use trysail_sdk::proto::istio::networking::v1alpha3::Gateway;
use trysail_sdk::{Ctx, Failure, Item, Message, Output, patching};

pub use check::{check, unknown};

use crate::client::Client;

/// The kind of the objects.
const KIND: &str = "Gateway";
/// A Gateway takes up VirtualServices of its own namespace only, and proxies Gateways of theirs.
const FLAG_SCOPE: &str = "PILOT_SCOPE_GATEWAY_TO_NAMESPACE";

/// `scope/gateways`: keys of the Gateways whose selector selects the proxy, oldest first. One without a selector selects
/// all proxies.
pub fn selecting(ctx: &Ctx) -> Result<Output, Failure> {
    let namespaces = ctx.selector_namespaces(KIND)?;
    let mut found = Vec::new();
    if ctx.flags([FLAG_SCOPE])?[0] {
        let client = Client::new(ctx);
        if let Some(own) = client.among(namespaces.iter().map(String::as_str)) {
            found = ctx.selectors(KIND, own)?;
        }
    } else {
        for namespace in &namespaces {
            found.extend(ctx.selectors(KIND, namespace)?);
        }
    }
    found.sort_by(|a, b| age(a).cmp(&age(b)));
    found.retain(|gateway| ctx.proxy_labels_match(&gateway.selector));
    let values: Vec<String> = found.iter().map(|gateway| format!("{}/{}", gateway.namespace, gateway.name)).collect();
    Ok(if values.is_empty() { Output::empty() } else { Output::value(&Strings { values }) })
}

/// Oldest first; of one second by name and namespace.
fn age(gateway: &SelectorSummary) -> (i64, &str, &str) {
    (gateway.creation_seconds, &gateway.name, &gateway.namespace)
}

/// `scope/merged-gateway`: [`MergedGateway`], or none when no Gateway selects the proxy.
pub fn merged(ctx: &Ctx) -> Result<Output, Failure> {
    let keys: Strings = ctx.derived("scope", "gateways", &[])?.unwrap_or_default();
    let mut gateways = Vec::new();
    for key in keys.values {
        if let Some((object, gateway)) = ctx.object::<Gateway>(KIND, &key)? {
            gateways.push((key, object, gateway));
        }
    }
    merge::merge(ctx, gateways)
}

/// `scope/gateway-routes`: of each route configuration its `facts.v1.GatewayRoutes`, by name. Each is an item, so that whoever
/// makes one depends on no other.
pub fn routes(ctx: &Ctx) -> Result<Output, Failure> {
    let mut output = Output::empty();
    for routes in of_proxy(ctx)?.routes {
        output.item(Item::new(routes.name.as_str(), Message::of(&routes)));
    }
    Ok(output)
}

/// The merged gateway of the proxy, from the output of [`merged`].
fn of_proxy(ctx: &Ctx) -> Result<MergedGateway, Failure> {
    Ok(ctx.derived("scope", "merged-gateway", &[])?.unwrap_or_default())
}

/// `scope/gateway-virtual-services GATEWAY`: `facts.v1.VirtualServiceSummaries` of those bound to the gateway that the
/// proxy sees. First those private to its namespace, then those exported to it by name, then public ones; each oldest
/// first, but of the public ones those first that were made from routes of the Gateway API in the proxy's own namespace.
pub fn virtual_services(ctx: &Ctx, gateway: &str) -> Result<Output, Failure> {
    let client = Client::new(ctx);
    let special = ctx.gateway_virtual_service_namespaces(gateway)?;
    let mut found = Vec::new();
    if let Some(own) = client.among(special.iter().map(String::as_str)) {
        let (private, exported): (Vec<_>, Vec<_>) =
            ctx.gateway_virtual_services(gateway, own)?.into_iter().partition(|rule| rule.namespace == own);
        found.extend(private.into_iter().chain(exported));
    }
    let mut public = ctx.gateway_virtual_services(gateway, "*")?;
    let from_gateway_api = public.iter().filter(|rule| rule.gateway_semantics);
    if let Some(own) = client.among(from_gateway_api.map(|rule| rule.namespace.as_str())) {
        public.sort_by_key(|rule| !(rule.gateway_semantics && rule.namespace == own));
    }
    found.extend(public);
    let virtual_services: Vec<_> = found.into_iter().map(without_destinations).collect();
    Ok(if virtual_services.is_empty() {
        Output::empty()
    } else {
        Output::value(&trysail_sdk::facts::VirtualServiceSummaries { virtual_services })
    })
}

/// What plans of gateways read: where routes lead is not their business, so they do not notice when it moves.
fn without_destinations(rule: VirtualServiceSummary) -> VirtualServiceSummary {
    VirtualServiceSummary { destinations: Vec::new(), creation_seconds: 0, ..rule }
}

/// `scope/gateway-hosts`: hosts that the proxy's gateways lead to, and `namespace/host` of services that the mesh itself or
/// EnvoyFilters call: all that a gateway needs clusters for.
pub fn hosts(ctx: &Ctx) -> Result<Output, Failure> {
    let [scoped] = ctx.flags([FLAG_SCOPE])?;
    let mut values = BTreeSet::new();
    for gateway in of_proxy(ctx)?.gateways {
        let namespace = gateway.split_once('/').map_or("", |(namespace, _)| namespace);
        values.extend(ctx.gateway_destinations(&gateway, if scoped { namespace } else { "" })?);
    }
    values.extend(provider_services(&ctx.mesh_config(&["extension_providers"])?));
    let of_filters: Option<Strings> = ctx.derived(patching::STAGE, "referenced-services", &[])?;
    values.extend(of_filters.unwrap_or_default().values);
    Ok(Output::value(&Strings { values: values.into_iter().collect() }))
}

/// Services of the mesh's extension providers, as written: `host` or `namespace/host`.
fn provider_services(mesh: &MeshConfig) -> Vec<String> {
    let service = |provider: &Provider| match provider {
        Provider::EnvoyExtAuthzHttp(p) => Some(p.service.clone()),
        Provider::EnvoyExtAuthzGrpc(p) => Some(p.service.clone()),
        Provider::Zipkin(p) => Some(p.service.clone()),
        Provider::Datadog(p) => Some(p.service.clone()),
        Provider::Skywalking(p) => Some(p.service.clone()),
        Provider::Opentelemetry(p) => Some(p.service.clone()),
        Provider::EnvoyHttpAls(p) => Some(p.service.clone()),
        Provider::EnvoyTcpAls(p) => Some(p.service.clone()),
        Provider::EnvoyOtelAls(p) => Some(p.service.clone()),
        Provider::Sds(p) => Some(p.service.clone()),
        _ => None,
    };
    let providers = mesh.extension_providers.iter().filter_map(|provider| provider.provider.as_ref());
    providers.filter_map(service).filter(|service| !service.is_empty()).collect()
}

/// The Gateway's name for people.
fn title(object: &Object) -> String {
    let named = object.r#ref.clone().unwrap_or_default();
    format!("{KIND} {}/{}", named.namespace, named.name)
}
