//! The root certificates as a ClusterTrustBundle, which pods mount without a ConfigMap in each namespace.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::election::Leadership;

/// istiod's name of it; the part before the last colon is the signer's, as Kubernetes demands.
pub const NAME: &str = "istio.io:istiod-ca:root-cert";
/// Whose roots they are.
pub const SIGNER: &str = "istio.io/istiod-ca";

/// Between two looks without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failure, doubled up to a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Keeps it as it should be.
pub struct BundlePublisher {
    /// The API server.
    pub client: Client,
    /// Are we the one who may write?
    pub leadership: Leadership,
    /// The roots, PEM; an empty text is not published.
    pub wanted_rx: watch::Receiver<String>,
}

impl BundlePublisher {
    /// Runs until its task is aborted.
    pub async fn run(mut self) {
        let mut moved = self.moved();
        let mut retry = None;
        loop {
            if self.leadership.holds() {
                retry = match self.reconcile().await {
                    Ok(()) => None,
                    Err(error) => {
                        let pause = retry.map_or(FIRST_RETRY, |pause: Duration| (pause * 2).min(RESYNC));
                        tracing::warn!(%error, ?pause, "the root certificates are not in the ClusterTrustBundle yet");
                        Some(pause)
                    }
                };
            }
            tokio::select! {
                () = tokio::time::sleep(retry.unwrap_or(RESYNC)) => {}
                changed = self.leadership.changed() => if changed.is_err() { return },
                changed = self.wanted_rx.changed() => if changed.is_err() { return },
                _ = moved.next() => {}
            }
        }
    }

    fn api(&self) -> Api<ClusterTrustBundle> {
        Api::all(self.client.clone())
    }

    fn moved(&self) -> impl Stream<Item = ()> + Unpin + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        watcher(self.api(), config).default_backoff().map(drop).boxed()
    }

    async fn reconcile(&self) -> Result<(), kube::Error> {
        let wanted = self.wanted_rx.borrow().clone();
        if wanted.is_empty() {
            return Ok(());
        }
        let spec = ClusterTrustBundleSpec { signer_name: Some(SIGNER.to_owned()), trust_bundle: wanted };
        let (api, post) = (self.api(), PostParams::default());
        let written = match api.get_opt(NAME).await? {
            Some(found) if found.spec.trust_bundle == spec.trust_bundle => return Ok(()),
            Some(found) => api.replace(NAME, &post, &ClusterTrustBundle { spec, ..found }).await,
            None => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                api.create(&post, &ClusterTrustBundle { metadata, spec }).await
            }
        };
        match written {
            // Somebody else was quicker; the watch says so.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        }
    }
}
