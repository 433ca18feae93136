//! Certificates for others: a node's proxy (ztunnel) asks for the workloads of its node.

use std::collections::BTreeSet;

use tonic::async_trait;
use trysail_model::identity::PodBinding;
use trysail_model::{Caller, Identity};

use crate::trust::TrustRx;

/// A pod as far as it counts here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// Its unique id.
    pub uid: String,
    /// The service account it runs as.
    pub service_account: String,
    /// Its node; empty before it is scheduled.
    pub node: String,
}

/// Knows the pods of clusters.
#[async_trait]
pub trait Pods: Send + Sync {
    /// The pod that a proof is bound to; `None` when there is none of that name and id, no such cluster, or no answer.
    async fn pod(&self, cluster: &str, bound: &PodBinding) -> Option<NodePod>;

    /// Does a pod of a service account run on a node?
    async fn runs(&self, cluster: &str, node: &str, namespace: &str, service_account: &str) -> bool;
}

/// Judges who may ask for whom.
pub struct NodeAuthorizer {
    /// Accounts of node proxies, namespace and name (`CA_TRUSTED_NODE_ACCOUNTS`).
    pub trusted: BTreeSet<(String, String)>,
    /// The pods.
    pub pods: Box<dyn Pods>,
    /// Our trust domain. istiod does not look at the requested one, and so signs identities of others.
    pub trust: TrustRx,
    /// Do as istiod does there.
    pub accepts_foreign_trust_domains: bool,
}

impl NodeAuthorizer {
    /// Reads `CA_TRUSTED_NODE_ACCOUNTS`: `namespace/name`, with commas. What is no account is left out.
    pub fn accounts(text: &str) -> BTreeSet<(String, String)> {
        let pair = |part: &str| {
            let (namespace, name) = part.trim().split_once('/')?;
            (!namespace.is_empty() && !name.is_empty()).then(|| (namespace.to_owned(), name.to_owned()))
        };
        text.split(',').filter_map(pair).collect()
    }

    /// May this caller have a certificate of that identity?
    ///
    /// # Errors
    /// Why not, for the log.
    pub async fn judge(&self, caller: &Caller, cluster: Option<&str>, wanted: &str) -> Result<Identity, String> {
        // As with istiod a certificate does not do: it does not say on which pod, and so on which node, its owner runs.
        let Some(binding) = &caller.pod else {
            return Err("the caller's proof names no pod".into());
        };
        let PodBinding { name, namespace, uid, service_account } = binding;
        if !self.trusted.contains(&(namespace.clone(), service_account.clone())) {
            return Err(format!("{namespace}/{service_account} is not trusted to ask for others"));
        }
        let wanted: Identity =
            wanted.parse().map_err(|error: trysail_model::identity::IdentityError| error.to_string())?;
        if !self.accepts_foreign_trust_domains && !self.trust.borrow().is_ours(&wanted.trust_domain) {
            return Err(format!("{wanted} is of another trust domain than {}", self.trust.borrow().domain));
        }
        let Some(cluster) = cluster.filter(|cluster| !cluster.is_empty()) else {
            return Err("the request names no cluster (header clusterid)".into());
        };
        let pod = self.pods.pod(cluster, binding).await;
        let pod = pod.ok_or_else(|| format!("there is no pod {namespace}/{name} in cluster {cluster:?}"))?;
        if pod.uid != *uid || pod.service_account != *service_account || pod.node.is_empty() {
            return Err(format!("pod {namespace}/{name} is another one by now"));
        }
        let runs = self.pods.runs(cluster, &pod.node, &wanted.namespace, &wanted.service_account).await;
        if runs { Ok(wanted) } else { Err(format!("no pod of {wanted} runs on node {:?}", pod.node)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Trust;
    use trysail_model::identity::Proof;

    struct TwoNodes;

    #[async_trait]
    impl Pods for TwoNodes {
        async fn pod(&self, cluster: &str, bound: &PodBinding) -> Option<NodePod> {
            let pod = |node: &str| NodePod { uid: "1".into(), service_account: "ztunnel".into(), node: node.into() };
            match (cluster, &*bound.namespace, &*bound.name) {
                ("Kubernetes", "istio-system", "ztunnel-a") => Some(pod("node-a")),
                ("Kubernetes", "istio-system", "ztunnel-b") => Some(pod("node-b")),
                ("Kubernetes", "istio-system", "ztunnel-new") => Some(pod("")),
                _ => None,
            }
        }

        async fn runs(&self, cluster: &str, node: &str, namespace: &str, service_account: &str) -> bool {
            (cluster, node, namespace, service_account) == ("Kubernetes", "node-a", "shop", "reviews")
        }
    }

    fn caller(pod: &str, account: &str, uid: &str) -> Caller {
        let pod = PodBinding {
            name: pod.into(),
            namespace: "istio-system".into(),
            uid: uid.into(),
            service_account: account.into(),
        };
        Caller {
            proof: Proof::Token,
            identities: vec!["spiffe://td/ns/istio-system/sa/ztunnel".into()],
            pod: Some(pod),
        }
    }

    /// The impersonation cases of `corpus/live/ca/create-certificate.json`, and a foreign trust domain refused.
    #[tokio::test]
    async fn a_node_proxy_asks_for_its_own_node_only() {
        let trusted = NodeAuthorizer::accounts("istio-system/ztunnel, bad, /x, other/a");
        assert_eq!(trusted.len(), 2);
        let authorizer = |accepts_foreign_trust_domains| NodeAuthorizer {
            trusted: trusted.clone(),
            pods: Box::new(TwoNodes),
            trust: Trust::of("td").fixed(),
            accepts_foreign_trust_domains,
        };
        let strict = authorizer(false);
        let (own, wanted) = (caller("ztunnel-a", "ztunnel", "1"), "spiffe://td/ns/shop/sa/reviews");
        let cluster = Some("Kubernetes");
        assert_eq!(strict.judge(&own, cluster, wanted).await.unwrap().to_string(), wanted);
        let refused = [
            (own.clone(), None, wanted),
            (own.clone(), Some("other"), wanted),
            (own.clone(), cluster, "spiffe://td/ns/shop/sa/nobody"),
            (own.clone(), cluster, "reviews"),
            (own.clone(), cluster, "spiffe://foreign/ns/shop/sa/reviews"),
            (caller("ztunnel-b", "ztunnel", "1"), cluster, wanted),
            (caller("ztunnel-a", "ztunnel", "2"), cluster, wanted),
            (caller("ztunnel-a", "productpage", "1"), cluster, wanted),
            (caller("ztunnel-new", "ztunnel", "1"), cluster, wanted),
            (caller("", "ztunnel", ""), cluster, wanted),
            (Caller { pod: None, ..own.clone() }, cluster, wanted),
        ];
        for (caller, cluster, wanted) in refused {
            assert!(strict.judge(&caller, cluster, wanted).await.is_err(), "{caller:?} {cluster:?} {wanted}");
        }
        assert!(authorizer(true).judge(&own, cluster, "spiffe://foreign/ns/shop/sa/reviews").await.is_ok());
    }
}
