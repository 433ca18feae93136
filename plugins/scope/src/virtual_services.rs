//! The VirtualServices of the mesh that a proxy sees through one egress listener.
//!
//! Of each only what decides about it is read; entries of the index are handed on as they came.

use trysail_sdk::facts::EgressListener;
use trysail_sdk::prost::{self, Message as _};
use trysail_sdk::{Ctx, Failure, Output};

use crate::client::Client;
use crate::imports::Imports;

/// Name of the gateway that stands for all sidecars.
const MESH: &str = "mesh";

/// `facts.v1.VirtualServiceSummaries` with its entries as bytes.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Summaries {
    /// Each a `facts.v1.VirtualServiceSummary`.
    #[prost(bytes = "vec", repeated, tag = "1")]
    virtual_services: Vec<Vec<u8>>,
}

/// What decides about a `facts.v1.VirtualServiceSummary`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Head {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its hosts, fully qualified.
    #[prost(string, repeated, tag = "4")]
    pub hosts: Vec<String>,
    /// Its gateways, `mesh` if it names none.
    #[prost(string, repeated, tag = "5")]
    pub gateways: Vec<String>,
    /// It was made from routes of the Gateway API.
    #[prost(bool, tag = "11")]
    pub gateway_semantics: bool,
}

/// An entry and what was read of it.
type Entry = (Head, Vec<u8>);

/// `scope/virtual-services`: those of gateway `mesh` that the listener imports. First those private to the proxy's
/// namespace, then those exported to it by name, then public ones; each oldest first, but those that were made from
/// routes of the Gateway API in the proxy's own namespace before the others: a consumer's routes override.
pub fn of_listener(ctx: &Ctx, listener: &EgressListener) -> Result<Output, Failure> {
    let client = Client::new(ctx);
    let imports = Imports::new(listener, &client);
    let mut virtual_services = Vec::new();
    for mut group in visible(ctx, &client)? {
        group.retain(|(head, _)| head.gateways.iter().any(|gateway| gateway == MESH) && imports.virtual_service(head));
        consumers_first(ctx, &client, &mut group)?;
        virtual_services.extend(group.into_iter().map(|(_, bytes)| bytes));
    }
    Ok(Output::value(&Summaries { virtual_services }))
}

/// All that are visible in the proxy's namespace: private ones, exported ones, public ones.
fn visible(ctx: &Ctx, client: &Client) -> Result<[Vec<Entry>; 3], Failure> {
    let special = ctx.virtual_service_index_namespaces()?;
    let (private, exported) = match client.among(special.iter().map(String::as_str)) {
        Some(namespace) => index(ctx, namespace)?.into_iter().partition(|(head, _)| head.namespace == namespace),
        None => (Vec::new(), Vec::new()),
    };
    Ok([private, exported, index(ctx, "*")?])
}

/// The entries of a visibility.
fn index(ctx: &Ctx, visibility: &str) -> Result<Vec<Entry>, Failure> {
    let found = ctx.ask::<Summaries>("virtual-service-index", &[visibility])?.unwrap_or_default();
    let read = |bytes: Vec<u8>| match Head::decode(bytes.as_slice()) {
        Ok(head) => Ok((head, bytes)),
        Err(error) => Err(Failure::BadAnswer(format!("virtual-service-index({visibility}): {error}"))),
    };
    found.virtual_services.into_iter().map(read).collect()
}

/// Puts those of the proxy's own namespace that were made from the Gateway API first.
fn consumers_first(ctx: &Ctx, client: &Client, group: &mut [Entry]) -> Result<(), Failure> {
    let from_gateway_api = group.iter().filter(|(head, _)| head.gateway_semantics);
    if let Some(own) = client.among(from_gateway_api.map(|(head, _)| head.namespace.as_str()))
        && ctx.flags(["PILOT_UNIFIED_SIDECAR_SCOPE"])?[0]
    {
        group.sort_by_key(|(head, _)| !(head.gateway_semantics && head.namespace == own));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
