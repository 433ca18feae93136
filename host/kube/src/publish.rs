//! Texts that every namespace is to have in a ConfigMap: the root certificates, the revocation list.
//!
//! Names, label, and which namespaces get them are istiod's. Only the leader writes. Levels decide, not events: what is there
//! is compared with what should be, after every change of either and every minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use crate::election::Leadership;

/// Kubernetes' own namespaces, where no proxy runs; `kube-system` is not among them, since node agents may run there.
const IGNORED: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// What istiod marks them with.
const LABEL: (&str, &str) = ("istio.io/config", "true");
/// Between two looks without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failure, doubled up to a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Several reasons that come together are one.
const QUIET: Duration = Duration::from_millis(100);

/// A text and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Name of the ConfigMap in each namespace.
    pub name: String,
    /// Key of the text in it.
    pub key: String,
    /// The text; an empty one is not published.
    pub text: String,
}

/// Does a namespace with these labels belong to the mesh?
pub type Selects = Arc<dyn Fn(&BTreeMap<String, String>) -> bool + Send + Sync>;

/// Keeps ConfigMaps of all namespaces as they should be.
pub struct Publisher {
    /// The API server.
    pub client: Client,
    /// Are we the one who may write?
    pub leadership: Leadership,
    /// What is to be published; the names do not change.
    pub wanted_rx: watch::Receiver<Vec<Publication>>,
    /// The namespaces that get it.
    pub selects: Selects,
}

impl Publisher {
    /// Runs until its task is aborted.
    pub async fn run(mut self) {
        let names: BTreeSet<String> = self.wanted_rx.borrow().iter().map(|wanted| wanted.name.clone()).collect();
        let mut moved = self.moved(&names);
        let mut retry = None;
        loop {
            // A leader that is none any more is told at its next act; one that becomes it has all to do.
            if self.leadership.holds() {
                retry = match self.reconcile().await {
                    Ok(()) => None,
                    Err(error) => {
                        let pause = retry.map_or(FIRST_RETRY, |pause: Duration| (pause * 2).min(RESYNC));
                        tracing::warn!(%error, ?pause, "root certificates are not in all namespaces yet");
                        Some(pause)
                    }
                };
            }
            tokio::select! {
                () = tokio::time::sleep(retry.unwrap_or(RESYNC)) => {}
                changed = self.leadership.changed() => if changed.is_err() { return },
                changed = self.wanted_rx.changed() => if changed.is_err() { return },
                // Streams of watches do not end.
                _ = moved.next() => {
                    tokio::time::sleep(QUIET).await;
                    while moved.next().now_or_never().flatten().is_some() {}
                }
            }
        }
    }

    /// Says when a namespace or one of the ConfigMaps moved.
    fn moved(&self, names: &BTreeSet<String>) -> impl Stream<Item = ()> + Unpin + use<> {
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let namespaces = watcher(namespaces, watcher::Config::default());
        let mut all = vec![namespaces.default_backoff().map(drop).boxed()];
        for name in names {
            let maps: Api<PartialObjectMeta<ConfigMap>> = Api::all(self.client.clone());
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            all.push(watcher(maps, config).default_backoff().map(drop).boxed());
        }
        futures::stream::select_all(all)
    }

    /// Writes what is missing or other than it should be.
    async fn reconcile(&self) -> Result<(), kube::Error> {
        let wanted = self.wanted_rx.borrow().clone();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let all = namespaces.list(&ListParams::default()).await?.items;
        let targets: Vec<String> = all.iter().filter(|namespace| self.is_target(namespace)).filter_map(name).collect();
        for wanted in wanted.iter().filter(|wanted| !wanted.text.is_empty()) {
            let only = ListParams::default().fields(&format!("metadata.name={}", wanted.name));
            let found: Api<ConfigMap> = Api::all(self.client.clone());
            let has: BTreeMap<String, Option<String>> = found
                .list(&only)
                .await?
                .items
                .into_iter()
                .map(|map| {
                    let text = map.data.and_then(|mut data| data.remove(&wanted.key));
                    (map.metadata.namespace.unwrap_or_default(), text)
                })
                .collect();
            for namespace in &targets {
                let found = has.get(namespace);
                if found.is_some_and(|text| text.as_deref() == Some(&*wanted.text)) {
                    continue;
                }
                if !self.leadership.holds() {
                    return Ok(());
                }
                self.write(wanted, namespace, found.is_some()).await?;
            }
        }
        Ok(())
    }

    fn is_target(&self, namespace: &Namespace) -> bool {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        let none = BTreeMap::new();
        let labels = namespace.metadata.labels.as_ref().unwrap_or(&none);
        phase != Some("Terminating")
            && !namespace.metadata.name.as_deref().is_some_and(|name| IGNORED.contains(&name))
            && (self.selects)(labels)
    }

    async fn write(&self, wanted: &Publication, namespace: &str, is_there: bool) -> Result<(), kube::Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let data = BTreeMap::from([(wanted.key.clone(), wanted.text.clone())]);
        let written = if is_there {
            // Other keys are somebody else's.
            api.patch(&wanted.name, &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await
        } else {
            let labels = BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]);
            let metadata =
                ObjectMeta { name: Some(wanted.name.clone()), labels: Some(labels), ..ObjectMeta::default() };
            api.create(&PostParams::default(), &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await
        };
        match written {
            Ok(_) => {
                tracing::info!(namespace, name = wanted.name, "published");
                Ok(())
            }
            // Made or gone since the list, or the namespace is about to go: the watches say so, and the next look sees it.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {
                tracing::debug!(namespace, name = wanted.name, reason = status.message, "not published");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn name(namespace: &Namespace) -> Option<String> {
    namespace.metadata.name.clone()
}
