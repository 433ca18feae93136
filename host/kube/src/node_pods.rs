//! The pod behind a token, as the API server knows it: on which node it runs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use std::sync::Mutex;

use crate::reviews::Unanswered;

/// Most pods that are remembered.
const MAX_KNOWN: usize = 10_000;

/// Where a pod runs, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPod {
    /// Its unique id.
    pub uid: String,
    /// The service account it runs as.
    pub service_account: String,
    /// Its node.
    pub node: String,
}

/// Finds pods. What is placed is remembered, since a pod never moves: one that is made anew has another id.
pub struct NodePods {
    client: Client,
    known: Mutex<BTreeMap<(String, String), PlacedPod>>,
}

impl NodePods {
    /// Asks an API server.
    pub fn new(client: Client) -> NodePods {
        NodePods { client, known: Mutex::default() }
    }

    /// A pod of that name and id that has a node; nothing when there is none.
    ///
    /// # Errors
    /// Without an answer.
    pub async fn find(&self, namespace: &str, name: &str, uid: &str) -> Result<Option<PlacedPod>, Unanswered> {
        let key = (namespace.to_owned(), name.to_owned());
        let remembered = self.known.lock().ok().and_then(|known| known.get(&key).filter(|pod| pod.uid == uid).cloned());
        if remembered.is_some() {
            return Ok(remembered);
        }
        // Listing needs no right that watching does not need.
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let found = api.list(&only).await.map_err(Box::new)?.items.into_iter().next();
        let placed = found.and_then(|pod| {
            let spec = pod.spec?;
            let placed = PlacedPod {
                uid: pod.metadata.uid?,
                service_account: spec.service_account_name?,
                node: spec.node_name.filter(|node| !node.is_empty())?,
            };
            (placed.uid == uid).then_some(placed)
        });
        if let (Some(placed), Ok(mut known)) = (&placed, self.known.lock()) {
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(key, placed.clone());
        }
        Ok(placed)
    }
}
