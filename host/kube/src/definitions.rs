//! Which custom kinds the server knows, as definitions come and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

/// Names of the definitions (`virtualservices.networking.istio.io`); unset before the first list.
pub(crate) type Definitions = Option<Arc<BTreeSet<String>>>;

/// Watches definitions until the last receiver is gone.
pub(crate) async fn watch_definitions(client: Client, page: u32, known_tx: watch::Sender<Definitions>) {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
    let mut events = watcher(api, watcher::Config::default().page_size(page)).default_backoff().boxed();
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    while let Some(event) = events.next().await {
        let name = |object: &PartialObjectMeta<DynamicObject>| object.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(watcher::Event::Init) => {
                listed = BTreeSet::new();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(name(&object));
                continue;
            }
            Ok(watcher::Event::InitDone) => known = std::mem::take(&mut listed),
            Ok(watcher::Event::Apply(object)) => drop(known.insert(name(&object))),
            Ok(watcher::Event::Delete(object)) => drop(known.remove(&name(&object))),
            Err(error) => {
                tracing::warn!(%error, "definitions of custom resources cannot be watched");
                continue;
            }
        }
        if known_tx.is_closed() {
            return;
        }
        known_tx.send_if_modified(|before| {
            let moved = before.as_deref() != Some(&known);
            if moved {
                *before = Some(Arc::new(known.clone()));
            }
            moved
        });
    }
}
