//! Addresses for ServiceEntries that have none, written into their status.
//!
//! As istiod's controller: an IPv4 and an IPv6 address for each host, from two ranges; the older of two entries keeps an
//! address that both have. Only the leader writes. Levels decide, not events: all entries are looked at after any of them
//! moved, and every minute.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};

pub use plan::{Range, RangeError};

use crate::election::Leadership;
use plan::{Entry, Given, plan};

/// Between two looks without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Several entries that move together are one reason.
const QUIET: Duration = Duration::from_millis(50);

/// Namespace and name.
type Name = (String, String);

/// Is a namespace of the mesh?
pub type InMesh = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Gives addresses to ServiceEntries.
pub struct Allocator {
    /// The API server.
    pub client: Client,
    /// Are we the one who may write?
    pub leadership: Leadership,
    /// Where IPv4 and IPv6 addresses come from.
    pub ranges: [Range; 2],
    /// Namespaces whose entries count.
    pub in_mesh: InMesh,
}

/// What is known of all entries.
#[derive(Default)]
struct Known {
    entries: BTreeMap<Name, (Entry, Version)>,
    /// Those of the list that is coming in.
    listed: BTreeMap<Name, (Entry, Version)>,
    has_listed: bool,
}

/// Version of an object, so that nobody's later word is overwritten.
type Version = String;

impl Allocator {
    /// Runs until its task is aborted.
    pub async fn run(mut self) {
        let resource = ApiResource {
            group: "networking.istio.io".into(),
            version: "v1".into(),
            api_version: "networking.istio.io/v1".into(),
            kind: "ServiceEntry".into(),
            plural: "serviceentries".into(),
        };
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let mut events = watcher(all, watcher::Config::default()).default_backoff().boxed();
        let mut known = Known::default();
        let mut pause = RESYNC;
        loop {
            if known.has_listed && self.leadership.holds() {
                pause = if self.reconcile(&known, &resource).await { RESYNC } else { RETRY };
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.leadership.changed() => if changed.is_err() { return },
                // Streams of watches do not end.
                event = events.next() => {
                    known.hear(event);
                    tokio::time::sleep(QUIET).await;
                    while let Some(event) = events.next().now_or_never() {
                        known.hear(event);
                    }
                }
            }
        }
    }

    /// Writes what is missing. False when something could not be written.
    async fn reconcile(&mut self, known: &Known, resource: &ApiResource) -> bool {
        let in_mesh = known.entries.iter().filter(|((namespace, _), _)| (self.in_mesh)(namespace));
        let entries = in_mesh.map(|(name, (entry, _))| (name.clone(), entry.clone())).collect();
        let mut all_written = true;
        for (name, addresses) in plan(&entries, &mut self.ranges) {
            if !self.leadership.holds() {
                return true;
            }
            let Some((_, version)) = known.entries.get(&name) else { continue };
            all_written &= self.write(&name, version, &addresses, resource).await;
        }
        all_written
    }

    async fn write(&self, name: &Name, version: &str, addresses: &[Given], resource: &ApiResource) -> bool {
        let (namespace, name) = name;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        let listed: Vec<Value> =
            addresses.iter().map(|(host, address)| json!({"value": address.to_string(), "host": host})).collect();
        // With the version that it was decided by: whoever wrote since is heard first.
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"addresses": listed}});
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                tracing::info!(namespace, name, n_addresses = addresses.len(), "addresses of a ServiceEntry written");
                true
            }
            // Moved or gone since: the watch says so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
            Err(error) => {
                tracing::warn!(namespace, name, %error, "addresses of a ServiceEntry could not be written");
                false
            }
        }
    }
}

impl Known {
    fn hear(&mut self, event: Option<Result<watcher::Event<DynamicObject>, watcher::Error>>) {
        match event {
            Some(Ok(watcher::Event::Init)) => self.listed.clear(),
            Some(Ok(watcher::Event::InitApply(object))) => drop(self.listed.insert(name(&object), read(&object))),
            Some(Ok(watcher::Event::InitDone)) => {
                self.entries = std::mem::take(&mut self.listed);
                self.has_listed = true;
            }
            Some(Ok(watcher::Event::Apply(object))) => drop(self.entries.insert(name(&object), read(&object))),
            Some(Ok(watcher::Event::Delete(object))) => drop(self.entries.remove(&name(&object))),
            // The kind may not be defined yet; the watch tries again.
            Some(Err(error)) => tracing::debug!(%error, "ServiceEntries cannot be watched"),
            None => {}
        }
    }
}

fn name(object: &DynamicObject) -> Name {
    let metadata = &object.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn read(object: &DynamicObject) -> (Entry, Version) {
    let value = serde_json::to_value(object).unwrap_or_default();
    (Entry::read(&value), object.metadata.resource_version.clone().unwrap_or_default())
}
