//! MeshNetworks: which network an address belongs to, and the gateways that are stated there.

use ipnet::IpNet;
use serde_json::Value;
use trysail_codec::json::{Options, from_json};
use trysail_proto::istio::mesh::v1alpha1::MeshNetworks;
use trysail_proto::istio::mesh::v1alpha1::network::istio_network_gateway::Gw;
use trysail_proto::istio::mesh::v1alpha1::network::network_endpoints::Ne;
use trysail_proto::trysail::facts::v1::NetworkGateway;

use prost::Message;

/// What the MeshNetworks document says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks {
    /// The network of all of this cluster's endpoints, by `fromRegistry`; empty when none says so.
    registry: String,
    /// Address ranges as written, a single address as a range of its own.
    written: Vec<IpNet>,
    /// Networks by address range, most general first and by name.
    ranges: Vec<(IpNet, String)>,
    /// Gateways with an address.
    pub gateways: Vec<NetworkGateway>,
    /// Gateways that are services of this cluster: host, and network with port.
    pub services: Vec<(String, NetworkGateway)>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

impl Networks {
    /// Reads the document (JSON null: none).
    pub fn new(document: &Value, cluster: &str) -> Networks {
        let mut networks = Networks::default();
        if document.is_null() {
            return networks;
        }
        let read = from_json("istio.mesh.v1alpha1.MeshNetworks", document, Options::lenient());
        let parsed = match read.map(|bytes| MeshNetworks::decode(bytes.as_slice())) {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(error)) => return Networks { warnings: vec![format!("mesh networks: {error}")], ..networks },
            Err(error) => return Networks { warnings: vec![format!("mesh networks: {error}")], ..networks },
        };
        for (name, network) in &parsed.networks {
            let mut from_registry = false;
            for endpoints in &network.endpoints {
                match &endpoints.ne {
                    Some(Ne::FromCidr(text)) => {
                        let alone = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
                        networks.written.extend(text.parse::<IpNet>().ok().or_else(alone));
                        match text.parse::<IpNet>() {
                            Ok(range) => networks.ranges.push((range.trunc(), name.clone())),
                            Err(_) => networks.warnings.push(format!("network {name}: {text:?} is no address range")),
                        }
                    }
                    Some(Ne::FromRegistry(registry)) => from_registry |= registry == cluster,
                    None => {}
                }
            }
            if from_registry && networks.registry.is_empty() {
                networks.registry.clone_from(name);
            }
            for gateway in &network.gateways {
                let found = NetworkGateway { network: name.clone(), port: gateway.port, ..Default::default() };
                match &gateway.gw {
                    Some(Gw::Address(address)) => {
                        networks.gateways.push(NetworkGateway { address: address.clone(), ..found });
                    }
                    Some(Gw::RegistryServiceName(host)) if from_registry => {
                        networks
                            .services
                            .push((host.clone(), NetworkGateway { cluster_id: cluster.to_owned(), ..found }));
                    }
                    _ => {}
                }
            }
        }
        networks.written.sort_by_key(|range| (range.addr(), range.prefix_len()));
        networks.ranges.sort_by_key(|(range, name)| (range.prefix_len(), name.clone()));
        networks
    }

    /// All address ranges as written, by address and length.
    pub fn ranges(&self) -> Vec<String> {
        self.written.iter().map(ToString::to_string).collect()
    }

    /// The network of an address, or the empty text.
    pub fn of(&self, address: &str) -> &str {
        if !self.registry.is_empty() {
            return &self.registry;
        }
        let Ok(ip) = address.parse::<std::net::IpAddr>() else { return "" };
        self.ranges.iter().find(|(range, _)| range.contains(&ip)).map_or("", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_registries_and_gateways() {
        let document = json!({"networks": {
            "n1": {"endpoints": [{"fromCidr": "10.1.0.0/16"}], "gateways": [{"address": "1.1.1.1", "port": 15443}]},
            "n2": {"endpoints": [{"fromRegistry": "other"}], "gateways": [{"registryServiceName": "gw.x.svc.cluster.local", "port": 1}]},
        }});
        let networks = Networks::new(&document, "Kubernetes");
        assert_eq!((networks.of("10.1.2.3"), networks.of("10.2.0.1"), networks.of("x")), ("n1", "", ""));
        assert_eq!(networks.gateways.len(), 1);
        assert!(networks.services.is_empty() && networks.warnings.is_empty());
        assert_eq!(networks.ranges(), ["10.1.0.0/16"]);
        let here = Networks::new(&document, "other");
        assert_eq!(here.of("10.1.2.3"), "n2");
        assert_eq!(here.services[0].0, "gw.x.svc.cluster.local");
    }
}
