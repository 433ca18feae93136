//! Services without an address: their hosts have the addresses of their endpoints, and so have named pods.

use std::collections::BTreeMap;

use trysail_sdk::facts::{Endpoint, Health, Service, Strings};
use trysail_sdk::proto::istio::networking::nds::v1::name_table::NameInfo;
use trysail_sdk::{Ctx, Failure, Item, Output};

use crate::addresses::is_address;
use crate::table::{entry, named};

/// Label of services that stand for an inference pool, whose endpoints count for all ports.
const SEMANTICS: &str = "internal.istio.io/service-semantics";
const INFERENCE_POOL: &str = "inferencepool";

/// The function `host`.
pub fn host(ctx: &Ctx<'_>, key: &str, port: u32) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some(service) = ctx.service(key)? else { return Ok(output) };
    let ips = of_host(ctx, &Reached::ask(ctx, key, &service, port)?)?;
    if !ips.is_empty() {
        let info = named(&service.registry, &service.host, &service.name, &service.namespace, ips);
        output.item(Item::new(&service.host, entry(&service.host, &info)));
    }
    Ok(output)
}

/// The function `addresses`.
pub fn addresses(ctx: &Ctx<'_>, key: &str, port: u32) -> Result<Output, Failure> {
    let Some(service) = ctx.service(key)? else { return Ok(Output::empty()) };
    let values = of_host(ctx, &Reached::ask(ctx, key, &service, port)?)?;
    Ok(if values.is_empty() { Output::empty() } else { Output::value(&Strings { values }) })
}

/// Endpoints of the proxy's own cluster and network. Kubernetes answers with no others either, and those of other
/// networks could not be reached, since nothing leads a connection to an address through a gateway.
fn of_host(ctx: &Ctx<'_>, reached: &Reached) -> Result<Vec<String>, Failure> {
    let elsewhere = reached.endpoints.iter().any(|(_, same_cluster)| !same_cluster);
    let every_cluster = elsewhere && ctx.flags(["ENABLE_MULTICLUSTER_HEADLESS"])?[0];
    let chosen = reached.endpoints.iter().filter(|(_, same_cluster)| every_cluster || *same_cluster);
    Ok(chosen.flat_map(|(endpoint, _)| endpoint.addresses.iter().cloned()).collect())
}

/// The function `pods`: `hostname.subdomain` in the service's domain, as Kubernetes has it. Pods of other clusters count
/// where the own one has none of that name.
pub fn pods(ctx: &Ctx<'_>, key: &str, port: u32) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some(service) = ctx.service(key)? else { return Ok(output) };
    let Some((_, domain)) = service.host.split_once('.') else { return Ok(output) };
    let reached = Reached::ask(ctx, key, &service, port)?;
    // By name: the addresses in the own cluster and in others.
    let mut names: BTreeMap<String, [Vec<String>; 2]> = BTreeMap::new();
    for (endpoint, same_cluster) in reached.endpoints.iter().filter(|(endpoint, _)| !endpoint.sub_domain.is_empty()) {
        let ips = names.entry(format!("{}.{}", endpoint.host_name, endpoint.sub_domain)).or_default();
        ips[usize::from(!same_cluster)].extend(endpoint.addresses.iter().cloned());
    }
    for (name, [near, far]) in names {
        let host = format!("{name}.{domain}");
        let info = NameInfo {
            ips: if near.is_empty() { far } else { near },
            registry: service.registry.clone(),
            shortname: name,
            namespace: service.namespace.clone(),
            ..Default::default()
        };
        output.item(Item::new(&host, entry(&host, &info)));
    }
    Ok(output)
}

/// Endpoints of the proxy's network that may be answered with, and whether they are of its cluster.
struct Reached {
    endpoints: Vec<(Endpoint, bool)>,
}

impl Reached {
    /// Asks about the proxy only what endpoints make matter: what they do not say is everywhere.
    fn ask(ctx: &Ctx<'_>, key: &str, service: &Service, port: u32) -> Result<Self, Failure> {
        let mut endpoints = Vec::new();
        if service.labels.get(SEMANTICS).is_some_and(|value| value == INFERENCE_POOL) {
            for port in &service.ports {
                endpoints.extend(ctx.endpoints(key, port.port)?);
            }
        } else {
            endpoints = ctx.endpoints(key, port)?;
        }
        endpoints.retain(|endpoint| {
            !endpoint.addresses.is_empty()
                && endpoint.addresses.iter().all(|address| is_address(address))
                && (service.publish_not_ready_addresses
                    || matches!(endpoint.health(), Health::Healthy | Health::Unknown))
        });
        let place = |of: fn(&Endpoint) -> &str, attribute: &str| match endpoints.iter().all(|e| of(e).is_empty()) {
            true => String::new(),
            false => ctx.proxy(attribute).unwrap_or_default(),
        };
        let network = place(|endpoint| &endpoint.network, "network");
        let cluster = place(|endpoint| &endpoint.cluster_id, "cluster-id");
        let same = |own: &str, other: &str| own.is_empty() || other.is_empty() || own == other;
        endpoints.retain(|endpoint| same(&network, &endpoint.network));
        let with_place = |endpoint: Endpoint| {
            let same_cluster = same(&cluster, &endpoint.cluster_id);
            (endpoint, same_cluster)
        };
        Ok(Reached { endpoints: endpoints.into_iter().map(with_place).collect() })
    }
}
