//! The replicas behind a Service.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::reviews::Unanswered;

/// A replica that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its pod.
    pub pod: String,
    /// The port that was asked for.
    pub address: SocketAddr,
}

/// The ready endpoints of a Service at its port of that name, each pod once.
///
/// # Errors
/// Without an answer.
pub async fn peers(client: &Client, namespace: &str, service: &str, port: &str) -> Result<Vec<Peer>, Unanswered> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = api.list(&of_service).await.map_err(Box::new)?.items;
    let mut found: Vec<Peer> = slices.iter().flat_map(|slice| of_slice(slice, port)).collect();
    found.sort_by(|a, b| a.pod.cmp(&b.pod));
    // Of a pod with addresses of two families one is enough.
    found.dedup_by(|later, first| later.pod == first.pod);
    Ok(found)
}

fn of_slice(slice: &EndpointSlice, port: &str) -> Vec<Peer> {
    let ports = slice.ports.iter().flatten();
    let number = ports.filter(|known| known.name.as_deref() == Some(port)).find_map(|known| known.port);
    let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { return Vec::new() };
    let endpoints = slice.endpoints.iter().flatten();
    let peer = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone())?;
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        is_ready.then(|| Peer { pod, address: SocketAddr::new(ip, number) })
    };
    endpoints.filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_pods_at_the_named_port() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4", "metadata": {"name": "istiod-1"},
            "ports": [{"name": "grpc-xds", "port": 15010}, {"name": "http-monitoring", "port": 15014}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "a"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"name": "b"}},
                {"addresses": ["10.0.0.3"], "conditions": {}, "targetRef": {"name": "c"}},
                {"addresses": ["10.0.0.4"], "conditions": {"ready": true}},
            ],
        }))
        .unwrap();
        let found: Vec<String> =
            of_slice(&slice, "http-monitoring").iter().map(|peer| format!("{} {}", peer.pod, peer.address)).collect();
        assert_eq!(found, ["a 10.0.0.1:15014", "c 10.0.0.3:15014"]);
        assert_eq!(of_slice(&slice, "other"), []);
    }
}
