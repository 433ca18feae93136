//! Services and endpoints: `registryz`, `endpointShardz`, `instancesz`, `networkz`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use trysail_model::Proxy;
use trysail_proto::trysail::facts::v1::{Endpoint, Health, NetworkGateway, Port, Protocol, Resolution};

use super::{text_map, time};
use crate::FactsSnapshot;
use crate::kept::Kept;
use crate::services::Service;

impl FactsSnapshot {
    /// All services, by host and namespace.
    pub fn dump_services(&self) -> Value {
        let mut services: Vec<_> = self.view().state.services.iter().map(|(_, service)| service).collect();
        services.sort_by_key(|service| (service.host(), service.namespace(), &service.order));
        services.into_iter().map(|service| self.dump_service(service)).collect()
    }

    /// The services of these keys (`namespace/host`), by key.
    pub fn dump_services_of(&self, keys: &BTreeSet<String>) -> Vec<Value> {
        let view = self.view();
        let services = keys.iter().filter_map(|key| view.state.services_of(key).into_iter().next());
        services.map(|service| self.dump_service(&service)).collect()
    }

    /// Number of services.
    pub fn n_services(&self) -> usize {
        self.view().state.services.len()
    }

    /// Number of VirtualServices.
    pub fn n_virtual_services(&self) -> usize {
        self.view().state.virtuals.len()
    }

    /// Endpoints by host, namespace and source.
    pub fn dump_shards(&self) -> Value {
        let view = self.view();
        let cluster = &self.base().settings.cluster_id;
        let mut hosts: Map<String, Value> = Map::new();
        let mut keys: Vec<(&str, &str, &str)> =
            view.state.services.iter().map(|(_, s)| (s.host(), s.namespace(), s.key.as_str())).collect();
        keys.sort_unstable();
        keys.dedup();
        for (host, namespace, service_key) in keys {
            let found = view.endpoints_of(service_key);
            if found.endpoints.is_empty() {
                continue;
            }
            let accounts: BTreeSet<&str> = found.endpoints.iter().map(|e| e.service_account.as_str()).collect();
            let accounts: Map<String, Value> =
                accounts.into_iter().filter(|a| !a.is_empty()).map(|a| (a.to_owned(), json!({}))).collect();
            let registry = view.state.services_of(service_key);
            let registry = registry.first().map_or("", |service| &service.record.registry);
            let endpoints: Vec<Value> = found.endpoints.iter().map(dump_endpoint).collect();
            let entry = json!({"Shards": {format!("{registry}/{cluster}"): endpoints}, "ServiceAccounts": accounts});
            let of_host = hosts.entry(host).or_insert_with(|| json!({}));
            of_host[namespace] = entry;
        }
        Value::Object(hosts)
    }

    /// The service ports that a proxy's workload is an endpoint of.
    pub fn dump_targets(&self, proxy: &Proxy) -> Value {
        let targets = self.view().targets_of(proxy, &proxy.labels);
        let dump = targets.iter().map(|target| {
            let mut port = dump_port(&target.port);
            port["TargetPort"] = target.number.into();
            json!({"Service": self.dump_service(&target.service), "Port": port})
        });
        dump.collect()
    }

    /// Gateways to other networks; null when there are none.
    pub fn dump_network_gateways(&self) -> Value {
        let (gateways, _) = crate::gateways::all(self.view().state, self.base());
        let dump = |gateway: &NetworkGateway| {
            let (namespace, name) = gateway.service_account.split_once('/').unwrap_or(("", &gateway.service_account));
            json!({
                "Network": gateway.network,
                "Cluster": gateway.cluster_id,
                "Addr": gateway.address,
                "Port": gateway.port,
                "HBONEPort": gateway.hbone_port,
                "ServiceAccount": {"Namespace": namespace, "Name": name},
            })
        };
        if gateways.is_empty() { Value::Null } else { gateways.iter().map(dump).collect() }
    }

    fn dump_service(&self, service: &Service) -> Value {
        let record = &service.record;
        let clusters = |addresses: &[String]| match addresses {
            [] => json!({"Addresses": null}),
            _ => json!({"Addresses": {&self.base().settings.cluster_id: addresses}}),
        };
        let exports: Map<String, Value> = record.export_to.iter().map(|export| (export.clone(), json!({}))).collect();
        // The mesh's default is told from what the service states by its annotation alone, as in istiod.
        let is_default = !record.annotations.contains_key(crate::labels::EXPORT_TO) && service.is_kubernetes();
        let aliases = record.aliases.iter().map(|alias| {
            let (namespace, host) = alias.split_once('/').unwrap_or(("", alias));
            json!({"Hostname": host, "Namespace": namespace})
        });
        let aliases: Vec<Value> = aliases.collect();
        let version = self.view().state.objects.get(&crate::state::object_key(&service.source));
        let version = version
            .and_then(Kept::object)
            .map(|object| crate::json::text(&object.body.part("metadata"), &["resourceVersion"]).to_owned());
        let mut dump = json!({
            "Attributes": {
                "ServiceRegistry": record.registry,
                "Name": record.name,
                "Namespace": record.namespace,
                "Labels": text_map(&record.labels),
                "ExportTo": if is_default || exports.is_empty() { Value::Null } else { Value::Object(exports) },
                "Visibility": 0,
                "LabelSelectors": text_map(&record.label_selectors),
                "Aliases": if aliases.is_empty() { Value::Null } else { Value::Array(aliases) },
                "ClusterExternalAddresses": clusters(&record.external_ips),
                "ClusterExternalPorts": null,
                "PassthroughTargetPorts": null,
                "Type": record.kubernetes_type,
                "ExternalName": record.external_name,
                "NodeLocal": record.node_local,
                "TrafficDistribution": match record.traffic_distribution.as_str() {
                    "PreferClose" => 1,
                    "PreferSameNode" => 2,
                    _ => 0,
                },
                "ObjectName": if service.is_kubernetes() { "" } else { &*service.source.name },
                "DNSConnectStrategy": 0,
                "PublishNotReadyAddresses": record.publish_not_ready_addresses,
            },
            "ports": record.ports.iter().map(dump_port).collect::<Vec<_>>(),
            "creationTime": time(record.creation_seconds),
            "hostname": record.host,
            "clusterVIPs": clusters(&record.addresses),
            "defaultAddress": record.address,
        });
        for (field, address) in
            ["autoAllocatedIPv4Address", "autoAllocatedIPv6Address"].iter().zip(&record.auto_allocated_addresses)
        {
            if !address.is_empty() {
                dump[field] = address.as_str().into();
            }
        }
        dump["Resolution"] = i32::from(record.resolution()).into();
        dump["MeshExternal"] = record.mesh_external.into();
        dump["ResourceVersion"] = version.unwrap_or_default().into();
        dump
    }
}

fn dump_port(port: &Port) -> Value {
    json!({"name": port.name, "port": port.port, "protocol": protocol(port.protocol())})
}

/// A protocol as istiod spells it.
fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Unsupported => "UnsupportedProtocol",
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-Web",
        Protocol::Https => "HTTPS",
        Protocol::Tls => "TLS",
        Protocol::Mongo => "Mongo",
        Protocol::Redis => "Redis",
        Protocol::Mysql => "MySQL",
        Protocol::HttpProxy => "HTTP_PROXY",
        Protocol::Hbone => "HBONE",
        Protocol::DoubleHbone => "DoubleHBONE",
    }
}

fn dump_endpoint(endpoint: &Endpoint) -> Value {
    let locality = endpoint.locality.clone().unwrap_or_default();
    let label = match (locality.region.as_str(), locality.zone.as_str(), locality.sub_zone.as_str()) {
        ("", "", "") => String::new(),
        (region, zone, sub_zone) => format!("{region}/{zone}/{sub_zone}"),
    };
    let health = match endpoint.health() {
        Health::Healthy => 1,
        Health::Unhealthy => 2,
        Health::Draining => 3,
        Health::Terminating => 4,
        Health::Unknown => 0,
    };
    json!({
        "Labels": text_map(&endpoint.labels),
        "Addresses": endpoint.addresses,
        "ServicePortName": endpoint.port_name,
        "LegacyClusterPortKey": endpoint.legacy_cluster_port_key.parse::<u32>().unwrap_or_default(),
        "ServiceAccount": endpoint.service_account,
        "Network": endpoint.network,
        "Locality": {"Label": label, "ClusterID": endpoint.cluster_id},
        "EndpointPort": endpoint.port,
        "LbWeight": endpoint.weight,
        "TLSMode": endpoint.tls_mode,
        "Namespace": endpoint.namespace,
        "WorkloadName": endpoint.workload_name,
        "HostName": endpoint.host_name,
        "SubDomain": endpoint.sub_domain,
        "HealthStatus": health,
        "SendUnhealthyEndpoints": true,
        "NodeName": endpoint.node_name,
    })
}

/// A service's number of resolution in dumps is the one of our own messages.
const _: () = assert!(Resolution::ClientSideLb as i32 == 0 && Resolution::DynamicDns as i32 == 5);
