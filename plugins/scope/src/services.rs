//! The services that a proxy sees: through one egress listener, through all, and the one that a host name means.
//!
//! A service is *imported* when a listener's hosts name it; what VirtualServices of the listener route to is *inferred*,
//! after what is imported. Several namespaces may define one host: one of them is chosen.
//!
//! A VirtualService destination that names only ports which its service does not have is left out with a diagnostic.

mod inferred;
mod undecoded;
mod union;

use std::collections::BTreeSet;

use trysail_sdk::facts::{EgressListener, Protocol, Service, ServiceSummaries, ServiceSummary, Strings};
use trysail_sdk::{Ctx, Failure, Output};

use crate::client::Client;
use crate::imports::Imports;
use crate::sidecar;
use undecoded::Summaries;
use union::Union;

/// Registry of services that Kubernetes defines.
const KUBERNETES: &str = "Kubernetes";

/// `scope/services INDEX`: what one egress listener imports. First services that are not public, then public ones, each
/// oldest first. A listener with a port imports that port only.
///
/// One host is of one namespace, but may be there twice: once of a Kubernetes Service, once of a ServiceEntry.
pub fn of_listener(ctx: &Ctx, listener: &EgressListener) -> Result<Output, Failure> {
    let client = Client::new(ctx);
    let candidates = candidates(ctx, &client, listener)?;
    if let Candidates::Everything(summaries) = &candidates
        && summaries.has_each_host_once()?
    {
        return Ok(Output::value(summaries));
    }
    let services = imported(ctx, &client, listener, candidates)?;
    Ok(Output::value(&ServiceSummaries { services }))
}

/// `scope/services all`: the union of what all egress listeners import and what their VirtualServices route to, each
/// host once, with the ports of all listeners: these are the services that the proxy has clusters for.
pub fn all(ctx: &Ctx) -> Result<Output, Failure> {
    let client = Client::new(ctx);
    let mut union = Union::default();
    let mut output = Output::empty();
    let listeners = sidecar::listeners(ctx)?;
    for listener in &listeners {
        let candidates = candidates(ctx, &client, listener)?;
        if let Candidates::Everything(summaries) = &candidates
            && listeners.len() == 1
            && summaries.is_all(ctx, listener.index)?
        {
            return Ok(Output::value(summaries));
        }
        for service in imported(ctx, &client, listener, candidates)? {
            union.add(service, !matches_port(listener));
        }
        inferred::add(ctx, &client, listener, None, &mut union, &mut output)?;
    }
    output.entries = Output::value(&ServiceSummaries { services: union.into_services() }).entries;
    Ok(output)
}

/// `scope/service-key HOST`: `namespace/host` of the service that the host means to the proxy, or none when no listener
/// leads there: the entry of that host in [`all`], found without looking at any other service.
pub fn key_of_host(ctx: &Ctx, host: &str) -> Result<Output, Failure> {
    let keys: BTreeSet<String> = ctx.services_of_host(host)?.into_iter().collect();
    if keys.is_empty() {
        return Ok(Output::empty());
    }
    let client = Client::new(ctx);
    let mut candidates = Vec::new();
    for key in &keys {
        let Some(service) = ctx.service(key)? else { continue };
        if client.sees(&service.export_to, &service.namespace) {
            candidates.push(summary(service));
        }
    }
    let namespaces = keys.iter().filter_map(|key| key.split_once('/')).map(|(namespace, _)| namespace);
    if candidates.is_empty() && client.among(namespaces).is_none() {
        return Ok(Output::empty());
    }
    by_age(&mut candidates);
    candidates.sort_by_key(|service| is_public(&service.export_to));

    let mut union = Union::default();
    for listener in sidecar::listeners(ctx)? {
        let imports = Imports::new(&listener, &client);
        let services = candidates.iter().filter_map(|service| import(&imports, &listener, service.clone()));
        let mut services: Vec<_> = services.collect();
        one_namespace_per_host(ctx, &client, &mut services)?;
        for service in services {
            union.add(service, !matches_port(&listener));
        }
        // Only a Kubernetes service takes the place of one that is there.
        let may_change = match union.get(host) {
            Some(found) => !is_kubernetes(found) && keys.len() > 1,
            None => true,
        };
        if may_change {
            inferred::add(ctx, &client, &listener, Some(host), &mut union, &mut Output::empty())?;
        }
    }
    Ok(match union.get(host) {
        Some(found) => Output::value(&Strings { values: vec![format!("{}/{}", found.namespace, found.host)] }),
        None => Output::empty(),
    })
}

/// Services among which a listener chooses.
enum Candidates {
    /// It takes all that are visible.
    Everything(Summaries),
    /// It takes some of these.
    Some(Imports, Vec<ServiceSummary>),
}

/// What a listener chooses from: of a few namespaces or single services it asks for no others.
fn candidates(ctx: &Ctx, client: &Client, listener: &EgressListener) -> Result<Candidates, Failure> {
    let imports = Imports::new(listener, client);
    let services = match (imports.as_list(), imports.namespaces()) {
        (Some(list), _) => one_by_one(ctx, client, &list)?,
        (None, Some(namespaces)) => of_namespaces(ctx, client, &namespaces)?,
        (None, None) => {
            let visible = Summaries::visible(ctx, client)?;
            if imports.everything() && !matches_port(listener) {
                return Ok(Candidates::Everything(visible));
            }
            visible.decode()?
        }
    };
    Ok(Candidates::Some(imports, services))
}

/// What a listener imports.
fn imported(
    ctx: &Ctx,
    client: &Client,
    listener: &EgressListener,
    from: Candidates,
) -> Result<Vec<ServiceSummary>, Failure> {
    let mut services = match from {
        Candidates::Everything(summaries) => summaries.decode()?,
        Candidates::Some(imports, services) => {
            services.into_iter().filter_map(|service| import(&imports, listener, service)).collect()
        }
    };
    one_namespace_per_host(ctx, client, &mut services)?;
    Ok(services)
}

/// The visible services of some namespaces, in the order of [`Summaries::visible`].
fn of_namespaces(ctx: &Ctx, client: &Client, namespaces: &[&str]) -> Result<Vec<ServiceSummary>, Failure> {
    let mut services = Vec::new();
    for namespace in namespaces {
        let found = ctx.services_in_namespace(namespace)?.into_iter();
        services.extend(found.filter(|service| client.sees(&service.export_to, &service.namespace)));
    }
    by_age(&mut services);
    services.sort_by_key(|service| is_public(&service.export_to));
    Ok(services)
}

/// The visible ones among a few services, by namespace and host, oldest first.
fn one_by_one(ctx: &Ctx, client: &Client, list: &[(&str, &str)]) -> Result<Vec<ServiceSummary>, Failure> {
    let mut services = Vec::new();
    for (namespace, host) in list {
        let Some(service) = ctx.service(&format!("{namespace}/{host}"))? else { continue };
        if client.sees(&service.export_to, &service.namespace) {
            services.push(summary(service));
        }
    }
    by_age(&mut services);
    Ok(services)
}

/// Imports one service, with the aliases and the port that the listener is for.
fn import(imports: &Imports, listener: &EgressListener, service: ServiceSummary) -> Option<ServiceSummary> {
    imports.service(service).and_then(|service| for_port(listener, service))
}

/// Does the listener import only services of its port? An `HTTP_PROXY` listener leads everywhere.
fn matches_port(listener: &EgressListener) -> bool {
    listener.port != 0 && listener.protocol() != Protocol::HttpProxy
}

/// The service with the listener's port only, or none when it does not have it.
fn for_port(listener: &EgressListener, mut service: ServiceSummary) -> Option<ServiceSummary> {
    if matches_port(listener) {
        let position = service.ports.iter().position(|port| port.port == listener.port)?;
        service.ports.drain(position + 1..);
        service.ports.drain(..position);
    }
    Some(service)
}

/// Keeps the services of one namespace per host: the proxy's own, else that of the first, unless a Kubernetes service
/// comes after a ServiceEntry.
fn one_namespace_per_host(ctx: &Ctx, client: &Client, services: &mut Vec<ServiceSummary>) -> Result<(), Failure> {
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_unstable_by(|a, b| services[*a].host.cmp(&services[*b].host).then(a.cmp(b)));
    let same_host = order.chunk_by(|a, b| services[*a].host == services[*b].host);
    let contested: Vec<&[usize]> = same_host
        .filter(|group| group.iter().any(|i| services[*i].namespace != services[group[0]].namespace))
        .collect();
    if contested.is_empty() {
        return Ok(());
    }
    let [prefers_kubernetes] = ctx.flags(["PILOT_UNIFIED_SIDECAR_SCOPE"])?;
    let own = client.among(contested.iter().flat_map(|group| group.iter()).map(|i| services[*i].namespace.as_str()));
    let is_own = |service: &ServiceSummary| own == Some(service.namespace.as_str());
    let mut keep = vec![true; services.len()];
    for group in contested {
        let mut winner = group[0];
        for &i in &group[1..] {
            let (held, found) = (&services[winner], &services[i]);
            let takes = prefers_kubernetes && !is_kubernetes(held) && is_kubernetes(found) && !is_own(held);
            if is_own(found) || takes {
                winner = i;
            }
        }
        for &i in group {
            keep[i] = services[i].namespace == services[winner].namespace;
        }
    }
    let mut keep = keep.into_iter();
    services.retain(|_| keep.next().unwrap_or(true));
    Ok(())
}

fn is_kubernetes(service: &ServiceSummary) -> bool {
    service.registry == KUBERNETES
}

fn is_public(export_to: &[String]) -> bool {
    export_to.iter().any(|to| to == "*")
}

/// Sorts as indexes are sorted: oldest first, then by name and namespace.
fn by_age(services: &mut [ServiceSummary]) {
    services
        .sort_by(|a, b| (a.creation_seconds, &a.name, &a.namespace).cmp(&(b.creation_seconds, &b.name, &b.namespace)));
}

/// The summary of a service.
fn summary(service: Service) -> ServiceSummary {
    ServiceSummary {
        host: service.host,
        namespace: service.namespace,
        name: service.name,
        creation_seconds: service.creation_seconds,
        ports: service.ports,
        resolution: service.resolution,
        address: service.address,
        addresses: service.addresses,
        mesh_external: service.mesh_external,
        export_to: service.export_to,
        headless: service.headless,
        registry: service.registry,
        kubernetes_type: service.kubernetes_type,
        aliases: service.aliases,
        auto_allocated_addresses: service.auto_allocated_addresses,
        external_name: service.external_name,
        external_ips: service.external_ips,
    }
}

#[cfg(test)]
mod tests;
