//! What a DestinationRule and the mesh configuration say of one cluster.
//!
//! Two stages must agree on it: `clusters` writes the cluster, `endpoints` its endpoints. It is a library because a stage
//! that is linked into another would export itself twice. It asks no questions and makes no resource.
//!
//! ```text
//! cluster name ── name ──> port, subset, host
//! DestinationRule ── traffic ──> Policy of that port and subset ── locality ──> Balancing
//! ```

pub mod locality;
pub mod name;
pub mod traffic;

pub use locality::{Balancing, MeshBalancing};
pub use name::ClusterName;
pub use traffic::Policy;

use trysail_sdk::facts::Service;
use trysail_sdk::prost;

/// Does a service stand for an inference pool? All its ports are one cluster, that of the first.
pub fn is_inference_pool(service: &Service) -> bool {
    service.labels.get("internal.istio.io/service-semantics").is_some_and(|semantics| semantics == "inferencepool")
}

/// Ports of a service, as stages tell each other.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Ports {
    /// Numbers.
    #[prost(uint32, repeated, tag = "1")]
    pub ports: Vec<u32>,
}
