//! Services that no listener imports, but that VirtualServices of the listener route to.

use std::collections::BTreeSet;

use trysail_sdk::facts::virtual_service_summary::Destination;
use trysail_sdk::facts::{EgressListener, ServiceSummary};
use trysail_sdk::{Ctx, Failure, Output, Severity, prost};

use super::union::Union;
use super::{for_port, is_kubernetes, matches_port, summary};
use crate::client::Client;

/// `facts.v1.VirtualServiceSummaries` with what is needed here only.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Routings {
    #[prost(message, repeated, tag = "1")]
    routings: Vec<Routing>,
}

/// A VirtualService's name and destinations.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Routing {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "7")]
    destinations: Vec<Destination>,
}

/// The listener's VirtualServices, from the output of `scope/virtual-services`.
fn listed(ctx: &Ctx, listener: u32) -> Result<Vec<Routing>, Failure> {
    Ok(ctx.derived::<Routings>("scope", "virtual-services", &[&listener.to_string()])?.unwrap_or_default().routings)
}

/// Hosts that the listener's VirtualServices route to.
pub fn destinations(ctx: &Ctx, listener: u32) -> Result<BTreeSet<String>, Failure> {
    let destinations = listed(ctx, listener)?.into_iter().flat_map(|routing| routing.destinations);
    Ok(destinations.map(|destination| destination.host).collect())
}

/// Adds the destinations of the listener's VirtualServices, in their order; `only` those of one host, if given.
///
/// What is there already is not replaced, but gets the ports that were missing.
pub fn add(
    ctx: &Ctx,
    client: &Client,
    listener: &EgressListener,
    only: Option<&str>,
    union: &mut Union,
    output: &mut Output,
) -> Result<(), Failure> {
    for routing in listed(ctx, listener.index)? {
        for (host, destinations) in by_host(&routing.destinations) {
            if only.is_some_and(|only| only != host) || union.is_settled(host) {
                continue;
            }
            // Asking for the service first: most hosts that are not settled are not services at all.
            let Some(service) = choose(ctx, client, host)? else { continue };
            let Some(ports) = ports(client, &destinations) else { continue };
            let n_ports = service.ports.len();
            let trimmed = match matches_port(listener) {
                true => for_port(listener, service),
                false => of_ports(service, &ports, &routing, output),
            };
            if let Some(service) = trimmed {
                let complete = service.ports.len() == n_ports;
                union.add(service, complete);
            }
        }
    }
    Ok(())
}

/// The destinations of each host, in order of the first.
fn by_host(destinations: &[Destination]) -> Vec<(&str, Vec<&Destination>)> {
    let mut hosts: Vec<(&str, Vec<&Destination>)> = Vec::new();
    for destination in destinations {
        match hosts.iter_mut().find(|(host, _)| *host == destination.host) {
            Some((_, held)) => held.push(destination),
            None => hosts.push((&destination.host, vec![destination])),
        }
    }
    hosts
}

/// Ports that routes for this proxy name, 0 standing for all; none when no route is for this proxy.
fn ports(client: &Client, destinations: &[&Destination]) -> Option<BTreeSet<u32>> {
    let reaches = |destination: &&&Destination| {
        let from = &destination.source_namespaces;
        from.is_empty() || client.among(from.iter().map(String::as_str)).is_some()
    };
    let ports: BTreeSet<u32> = destinations.iter().filter(reaches).map(|destination| destination.port).collect();
    (!ports.is_empty()).then_some(ports)
}

/// The service that a destination means: that of the proxy's own namespace, whatever its visibility; else a visible one
/// of Kubernetes, else the oldest visible one (without `PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE`: that of the first
/// namespace by name).
fn choose(ctx: &Ctx, client: &Client, host: &str) -> Result<Option<ServiceSummary>, Failure> {
    let mut keys = Vec::new();
    for key in ctx.services_of_host(host)? {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Ok(None);
    }
    let namespaces: Vec<&str> =
        keys.iter().filter_map(|key| key.split_once('/')).map(|(namespace, _)| namespace).collect();
    if let Some(own) = client.among(namespaces.iter().copied()) {
        return Ok(ctx.service(&format!("{own}/{host}"))?.map(summary));
    }
    if keys.len() > 1 && !ctx.flags(["PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE"])?[0] {
        keys.sort_unstable();
        for key in &keys {
            if let Some(service) =
                ctx.service(key)?.filter(|service| client.sees(&service.export_to, &service.namespace))
            {
                return Ok(Some(summary(service)));
            }
        }
        return Ok(None);
    }
    let mut oldest = None;
    for key in &keys {
        let Some(service) = ctx.service(key)? else { continue };
        if !client.sees(&service.export_to, &service.namespace) {
            continue;
        }
        let service = summary(service);
        if is_kubernetes(&service) {
            return Ok(Some(service));
        }
        oldest.get_or_insert(service);
    }
    Ok(oldest)
}

/// The service with the ports that a VirtualService's destinations name, or none when it has none of them.
fn of_ports(
    mut service: ServiceSummary,
    ports: &BTreeSet<u32>,
    routing: &Routing,
    output: &mut Output,
) -> Option<ServiceSummary> {
    if ports.contains(&0) {
        return Some(service);
    }
    service.ports.retain(|port| ports.contains(&port.port));
    if service.ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u32::to_string).collect();
        output.diagnose(
            Severity::Warning,
            format!("VirtualService {}/{}", routing.namespace, routing.name),
            "",
            format!("destination {} has none of the ports {}", service.host, ports.join(", ")),
        );
        return None;
    }
    Some(service)
}
