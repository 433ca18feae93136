//! What the certificate service asks of a cluster: signatures of its signers, and on which node a pod runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tonic::async_trait;
use trysail_ca::node::{NodePod, Pods};
use trysail_ca::registration::{NotSigned, RequestSigner, SignRequest};
use trysail_facts::FactsSnapshot;
use trysail_kube::{NodePods, Signing};
use trysail_model::identity::PodBinding;

/// Signs by the cluster's CertificateSigningRequests.
pub struct ClusterSigner(pub Signing);

#[async_trait]
impl RequestSigner for ClusterSigner {
    async fn sign(&self, request: SignRequest) -> Result<String, NotSigned> {
        let SignRequest { csr_pem, signer, lifetime } = request;
        let signed = self.0.sign(&csr_pem, &signer, lifetime).await;
        signed.map_err(|error| NotSigned(error.to_string()))
    }
}

/// The pods of our own cluster.
pub struct ClusterPods {
    /// Name of the cluster.
    pub cluster: String,
    /// Who knows ids, which facts do not keep.
    pub placed: NodePods,
    /// Who knows which accounts run on a node.
    pub facts: Arc<ArcSwap<FactsSnapshot>>,
}

#[async_trait]
impl Pods for ClusterPods {
    async fn pod(&self, cluster: &str, bound: &PodBinding) -> Option<NodePod> {
        if cluster != self.cluster {
            return None;
        }
        let found = self.placed.find(&bound.namespace, &bound.name, &bound.uid).await;
        let found = found.inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(error, pod = bound.name, namespace = bound.namespace, "on which node does it run?");
        });
        let pod = found.ok()??;
        Some(NodePod { uid: pod.uid, service_account: pod.service_account, node: pod.node })
    }

    async fn runs(&self, cluster: &str, node: &str, namespace: &str, service_account: &str) -> bool {
        cluster == self.cluster && self.facts.load().runs_on_node(node, namespace, service_account)
    }
}
