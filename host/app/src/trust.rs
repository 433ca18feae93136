//! Whom the mesh trusts, followed: the mesh configuration as it changes, roots that others publish, and what proxies are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trysail_ca::PublicBundle;
use trysail_ca::authenticate::fetch;
use trysail_ca::trust::{Trust, TrustRx, bundle_roots};
use trysail_model::TrustBundle;

use crate::terminal::Terminal;

/// The configuration's part, for whoever wants to follow it.
pub struct Followed {
    trust_tx: watch::Sender<Arc<Trust>>,
    /// What was complained of last: nothing is said twice.
    said: Mutex<Vec<String>>,
}

impl Followed {
    /// As a mesh configuration says it.
    pub fn new(mesh: &Value, terminal: &Terminal) -> Followed {
        let followed = Followed { trust_tx: watch::Sender::new(Arc::default()), said: Mutex::default() };
        followed.configure(mesh, terminal);
        followed
    }

    /// Takes another mesh configuration in.
    pub fn configure(&self, mesh: &Value, terminal: &Terminal) {
        let (trust, problems) = Trust::read(mesh);
        let said = std::mem::replace(&mut *self.said.lock(), problems.clone());
        problems.iter().filter(|problem| !said.contains(problem)).for_each(|problem| {
            terminal.problem(&format!("mesh configuration: {problem}; left out"));
        });
        self.trust_tx.send_if_modified(|before| {
            let is_other = **before != trust;
            *before = Arc::new(trust);
            is_other
        });
    }

    /// What is trusted now, and from now on.
    pub fn subscribe(&self) -> TrustRx {
        self.trust_tx.subscribe()
    }
}

/// The field of Istio's ProxyConfig that proxies read roots from.
#[derive(Clone, PartialEq, Message)]
struct ProxyConfig {
    #[prost(string, repeated, tag = "34")]
    ca_certificates_pem: Vec<String>,
}

/// All roots together, as proxies are told them. Dropping it ends the following.
pub struct Combined {
    encoded: Arc<Mutex<Bytes>>,
    following: JoinHandle<()>,
}

impl Combined {
    /// Follows the authority, the configuration, and the bundles that it names, which are fetched anew every `interval`.
    /// `moved` is called when another set of roots is to be trusted.
    pub fn start(
        mut bundle_rx: watch::Receiver<Arc<PublicBundle>>,
        mut trust_rx: TrustRx,
        interval: Duration,
        moved: impl Fn() + Send + 'static,
    ) -> Combined {
        let encode = |trust: &Trust, bundle: &PublicBundle, fetched: &BTreeMap<String, Vec<String>>| {
            let fetched: Vec<String> =
                trust.bundle_urls.iter().filter_map(|url| fetched.get(url)).flatten().cloned().collect();
            Bytes::from(ProxyConfig { ca_certificates_pem: trust.combined(bundle, &fetched) }.encode_to_vec())
        };
        let mut fetched: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let encoded = Arc::new(Mutex::new(encode(&trust_rx.borrow(), &bundle_rx.borrow(), &fetched)));
        let told = encoded.clone();
        let following = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            loop {
                let (trust, bundle) = (trust_rx.borrow_and_update().clone(), bundle_rx.borrow_and_update().clone());
                let fresh = encode(&trust, &bundle, &fetched);
                if std::mem::replace(&mut *told.lock(), fresh.clone()) != fresh {
                    moved();
                }
                let is_due = tokio::select! {
                    _ = ticks.tick() => true,
                    changed = trust_rx.changed() => match changed { Ok(()) => true, Err(_) => return },
                    changed = bundle_rx.changed() => match changed { Ok(()) => false, Err(_) => return },
                };
                if is_due {
                    let urls = trust_rx.borrow().bundle_urls.clone();
                    fetched.retain(|url, _| urls.contains(url));
                    for url in urls {
                        match fetch(&url).await.map_err(|error| error.to_string()).and_then(|json| bundle_roots(&json))
                        {
                            Ok(roots) => drop(fetched.insert(url, roots)),
                            // What was trusted stays; nothing else is trusted in its place.
                            Err(error) => tracing::warn!(url, error, "a SPIFFE bundle cannot be had"),
                        }
                    }
                }
            }
        });
        Combined { encoded, following }
    }
}

impl TrustBundle for Combined {
    fn encoded(&self) -> Bytes {
        self.encoded.lock().clone()
    }
}

impl Drop for Combined {
    fn drop(&mut self) {
        self.following.abort();
    }
}
