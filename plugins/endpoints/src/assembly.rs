//! Endpoints grouped by locality, and their form on the wire.

use std::collections::BTreeMap;

use trysail_sdk::facts::{Endpoint, Health, Locality, NetworkGateway};
use trysail_sdk::prost_types::{Struct, Value, value::Kind};
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, Address, EnvoyInternalAddress, HealthStatus, Metadata, Pipe, SocketAddress, address,
    envoy_internal_address, socket_address,
};
use trysail_sdk::proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, endpoint::AdditionalAddress,
    lb_endpoint,
};

use crate::select::wants_tunnel;

/// Metadata by which Envoy chooses among a cluster's transport sockets.
const META_TRANSPORT: &str = "envoy.transport_socket_match";
/// Metadata that Istio's filters read.
const META_ISTIO: &str = "istio";
/// Metadata with the address behind a tunnel.
const META_TUNNEL: &str = "envoy.filters.listener.original_dst";
/// Internal listener that opens HBONE tunnels.
const CONNECT_ORIGINATE: &str = "connect_originate";
/// `security.istio.io/tlsMode` of workloads that take no mutual TLS.
const TLS_DISABLED: &str = "disabled";
/// The same of workloads that do.
pub const TLS_ISTIO: &str = "istio";

/// What an assignment points to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'e> {
    /// The workload itself.
    Workload(&'e Endpoint),
    /// The gateway of its network.
    Gateway(&'e NetworkGateway),
}

/// One endpoint of an assignment.
#[derive(Clone, Debug)]
pub struct Member<'e> {
    /// What it points to.
    pub target: Target<'e>,
    /// Its share within the locality; at least 1.
    pub weight: u32,
    /// Health as told.
    pub health: Option<Health>,
    /// Mutual TLS is possible.
    pub mtls: bool,
}

/// The endpoints of a locality that share a priority.
#[derive(Clone, Debug)]
pub struct Group<'e> {
    /// Where they are.
    pub locality: Locality,
    /// Who they are.
    pub members: Vec<Member<'e>>,
    /// The locality's share; unset when it has none left.
    pub weight: Option<u32>,
    /// 0 is used first.
    pub priority: u32,
}

impl Group<'_> {
    /// Sum of the members' weights.
    pub fn member_weight(&self) -> u32 {
        self.members.iter().fold(0, |sum, member| sum.saturating_add(member.weight))
    }
}

/// Groups members by locality in the order of their labels.
pub fn by_locality<'e>(members: impl IntoIterator<Item = (&'e Endpoint, Member<'e>)>) -> Vec<Group<'e>> {
    let mut groups: BTreeMap<String, Group<'e>> = BTreeMap::new();
    for (endpoint, member) in members {
        let place = endpoint.locality.as_ref();
        let group = groups.entry(crate::select::locality_label(place)).or_insert_with(|| Group {
            locality: place.cloned().unwrap_or_default(),
            members: Vec::new(),
            weight: None,
            priority: 0,
        });
        group.members.push(member);
    }
    let mut groups: Vec<Group<'e>> = groups.into_values().collect();
    for group in &mut groups {
        group.weight = Some(group.member_weight());
    }
    groups
}

/// Settings of the form.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form<'s> {
    /// Further addresses of an endpoint are written (happy eyeballs).
    pub dual_stack: bool,
    /// The workload's name and canonical service are written, for metrics of clients.
    pub telemetry: bool,
    /// Name, revision and namespace that stand for the workloads of a mesh-external service.
    pub canonical: Option<Canonical<'s>>,
    /// HBONE is preferred to mutual TLS.
    pub prefer_tunnel: bool,
}

/// Canonical service of a mesh-external service.
#[derive(Clone, Copy, Debug)]
pub struct Canonical<'s> {
    /// Name and revision, where the service is labelled with them.
    pub labels: Option<(&'s str, &'s str)>,
    /// Namespace of the service.
    pub namespace: &'s str,
}

/// The assignment.
pub fn assignment(name: &str, groups: &[Group<'_>], form: &Form<'_>) -> ClusterLoadAssignment {
    let endpoints = groups.iter().map(|group| LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: group.locality.region.clone(),
            zone: group.locality.zone.clone(),
            sub_zone: group.locality.sub_zone.clone(),
        }),
        lb_endpoints: group.members.iter().map(|member| lb_endpoint(member, form)).collect(),
        load_balancing_weight: group.weight,
        priority: group.priority,
        ..Default::default()
    });
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: endpoints.collect(), ..Default::default() }
}

fn lb_endpoint(member: &Member<'_>, form: &Form<'_>) -> LbEndpoint {
    let mut metadata = BTreeMap::new();
    let address = match member.target {
        Target::Workload(endpoint) => workload(endpoint, member.mtls, form, &mut metadata),
        Target::Gateway(gateway) => {
            metadata.insert(META_TRANSPORT.to_owned(), fields([("tlsMode", TLS_ISTIO)]));
            if form.telemetry {
                metadata.insert(META_ISTIO.to_owned(), fields([("workload", &format!(";;;;{}", gateway.cluster_id))]));
            }
            EnvoyEndpoint { address: Some(socket(&gateway.address, gateway.port)), ..Default::default() }
        }
    };
    let health = match member.health {
        None => HealthStatus::Unknown,
        Some(Health::Unhealthy) => HealthStatus::Unhealthy,
        Some(Health::Draining) => HealthStatus::Draining,
        Some(_) => HealthStatus::Healthy,
    };
    LbEndpoint {
        health_status: health.into(),
        metadata: Some(Metadata { filter_metadata: metadata, ..Default::default() }),
        load_balancing_weight: Some(member.weight),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(address)),
    }
}

fn workload(
    endpoint: &Endpoint,
    mtls: bool,
    form: &Form<'_>,
    metadata: &mut BTreeMap<String, Struct>,
) -> EnvoyEndpoint {
    if mtls && !endpoint.tls_mode.is_empty() && endpoint.tls_mode != TLS_DISABLED {
        metadata.insert(META_TRANSPORT.to_owned(), fields([("tlsMode", &endpoint.tls_mode)]));
    }
    if form.telemetry {
        metadata.insert(META_ISTIO.to_owned(), fields([("workload", &workload_text(endpoint, form))]));
    }
    let first = endpoint.addresses.first().map_or("", String::as_str);
    let legacy = endpoint.tls_mode == TLS_ISTIO && !form.prefer_tunnel;
    if wants_tunnel(endpoint) && !legacy {
        let target = host_port(first, endpoint.port);
        metadata.insert(META_TUNNEL.to_owned(), fields([("local", &target)]));
        metadata.insert(META_TRANSPORT.to_owned(), fields([("tunnel", "http")]));
        return EnvoyEndpoint { address: Some(internal(CONNECT_ORIGINATE, &target)), ..Default::default() };
    }
    let others = if form.dual_stack { endpoint.addresses.get(1..).unwrap_or_default() } else { &[] };
    EnvoyEndpoint {
        address: Some(socket(first, endpoint.port)),
        additional_addresses: others
            .iter()
            .map(|other| AdditionalAddress { address: Some(socket(other, endpoint.port)) })
            .collect(),
        ..Default::default()
    }
}

/// `workload;namespace;canonical name;canonical revision;cluster`, the default revision left out. Read by Istio's metrics
/// filter.
fn workload_text(endpoint: &Endpoint, form: &Form<'_>) -> String {
    let label = |keys: [&str; 3]| keys.into_iter().find_map(|key| endpoint.labels.get(key)).map(String::as_str);
    let own_name = label(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let own_revision = label(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let external = form.canonical.and_then(|canonical| canonical.labels);
    let name = external.map(|(name, _)| name).or(own_name).unwrap_or(&endpoint.workload_name);
    let revision =
        external.map(|(_, revision)| revision).or(own_revision).filter(|r| *r != "latest").unwrap_or_default();
    let namespace = form.canonical.map_or(endpoint.namespace.as_str(), |canonical| canonical.namespace);
    format!("{};{namespace};{name};{revision};{}", endpoint.workload_name, endpoint.cluster_id)
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> Struct {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    Struct { fields: pairs.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect() }
}

/// An address and port; a path of a socket where there is no port.
pub fn socket(address: &str, port: u32) -> Address {
    let address = if port == 0 {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        address::Address::Pipe(Pipe { path: path.to_owned(), ..Default::default() })
    } else {
        address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })
    };
    Address { address: Some(address) }
}

fn internal(listener: &str, endpoint_id: &str) -> Address {
    let name = envoy_internal_address::AddressNameSpecifier::ServerListenerName(listener.to_owned());
    let address = EnvoyInternalAddress { endpoint_id: endpoint_id.to_owned(), address_name_specifier: Some(name) };
    Address { address: Some(address::Address::EnvoyInternalAddress(address)) }
}

fn host_port(host: &str, port: u32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
