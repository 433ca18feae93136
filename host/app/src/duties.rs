//! What only one of several replicas may do in a cluster, and the elections that decide who.
//!
//! Root certificates and the revocation list in all namespaces, or the roots in a ClusterTrustBundle (lock
//! `istio-namespace-controller-election`), addresses of ServiceEntries in their status (`istio-ip-autoallocate`), what there is
//! to say of other objects in theirs (`trysail-status-election`: istiod has nothing like it). The
//! authority's key needs no lock: the secret's version decides between two replicas that renew its certificate at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trysail_ca::PublicBundle;
use trysail_facts::{FactsSnapshot, Settings};
use trysail_kube::addresses::{Allocator, Range, RangeError};
use trysail_kube::election::{self, Election, Form, Leadership, Timing};
use trysail_kube::trust_bundle::BundlePublisher;
use trysail_kube::{Client, Publication, Publisher, statuses};

use crate::env::{Environment, flag_of};

/// The lock of whoever writes into all namespaces.
const NAMESPACES: &str = "istio-namespace-controller-election";
/// The lock of whoever gives addresses to ServiceEntries.
const ADDRESSES: &str = "istio-ip-autoallocate";
/// The lock of whoever says in their status what there is to say of objects.
const STATUSES: &str = "trysail-status-election";
/// All locks that replicas stand for, ConfigMaps of the control plane's namespace.
pub const LOCKS: [&str; 3] = [ADDRESSES, NAMESPACES, STATUSES];
/// Kinds whose status is written, with their groups.
pub const STATUS_WRITTEN: [(&str, &str); 1] = [("networking.istio.io", "serviceentries")];
/// Kinds into whose status conditions are put, beside those of others, with their groups.
pub const CONDITIONS_WRITTEN: [(&str, &str); 6] = [
    ("extensions.istio.io", "trafficextensions"),
    ("extensions.istio.io", "wasmplugins"),
    ("gateway.networking.k8s.io", "backendtlspolicies"),
    ("security.istio.io", "authorizationpolicies"),
    ("security.istio.io", "requestauthentications"),
    ("trysail.io", "plugins"),
];
/// The ConfigMaps that are published unless variables name others.
pub const PUBLISHED: [&str; 2] = ["istio-ca-root-cert", "istio-ca-crl"];
/// Keys of the published texts.
const ROOT_KEY: &str = "root-cert.pem";
const CRL_KEY: &str = "ca-crl.pem";

/// The duties of this replica. Dropping it ends them without giving the locks back.
pub struct Duties {
    stop_tx: watch::Sender<bool>,
    elections: Vec<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the duties are about.
pub struct Subject<'a> {
    /// The cluster.
    pub client: Client,
    /// Flags and names.
    pub environment: &'a dyn Environment,
    /// Namespace and revision.
    pub settings: &'a Settings,
    /// What is public of the authority.
    pub bundle_rx: watch::Receiver<Arc<PublicBundle>>,
    /// Which namespaces are the mesh's.
    pub facts: Arc<ArcSwap<FactsSnapshot>>,
    /// What there is to say of objects.
    pub statuses_rx: watch::Receiver<statuses::Wanted>,
}

impl Duties {
    /// Takes part in the elections, and does what falls to us.
    ///
    /// # Errors
    /// The ranges for addresses of ServiceEntries are none.
    pub fn start(subject: Subject<'_>) -> Result<Duties, RangeError> {
        let Subject { client, environment, settings, bundle_rx, facts, statuses_rx } = subject;
        let mut duties = Duties { stop_tx: watch::Sender::new(false), elections: Vec::new(), tasks: Vec::new() };
        let leadership = duties.stand(NAMESPACES, client.clone(), environment, settings);
        let published = Published::read(environment);
        if published.roots.is_none() {
            let mut bundle_rx = bundle_rx.clone();
            let (roots_tx, wanted_rx) = watch::channel(bundle_rx.borrow().root_pem.clone());
            duties.tasks.push(tokio::spawn(async move {
                while bundle_rx.changed().await.is_ok() {
                    roots_tx.send_replace(bundle_rx.borrow_and_update().root_pem.clone());
                }
                std::future::pending::<()>().await;
            }));
            let publisher = BundlePublisher { client: client.clone(), leadership: leadership.clone(), wanted_rx };
            duties.tasks.push(tokio::spawn(publisher.run()));
        }
        let (wanted_tx, wanted_rx) = watch::channel(published.of(&bundle_rx.borrow()));
        let mut bundle_rx = bundle_rx;
        duties.tasks.push(tokio::spawn(async move {
            while bundle_rx.changed().await.is_ok() {
                let wanted = published.of(&bundle_rx.borrow_and_update());
                wanted_tx.send_if_modified(|old| {
                    let is_other = *old != wanted;
                    *old = wanted;
                    is_other
                });
            }
            // What was published last stays so.
            std::future::pending::<()>().await;
        }));
        let leads = duties.stand(STATUSES, client.clone(), environment, settings);
        let writer = statuses::Writer { client: client.clone(), leadership: leads, wanted_rx: statuses_rx };
        duties.tasks.push(tokio::spawn(writer.run()));
        let features = facts.load().base().environment.clone();
        if features.flag("PILOT_ENABLE_IP_AUTOALLOCATE") {
            let range = |variable| Range::read(features.text(variable));
            let ranges = [range("PILOT_IP_AUTOALLOCATE_IPV4_PREFIX")?, range("PILOT_IP_AUTOALLOCATE_IPV6_PREFIX")?];
            let leadership = duties.stand(ADDRESSES, client.clone(), environment, settings);
            let facts = facts.clone();
            let in_mesh = Arc::new(move |namespace: &str| facts.load().reads_namespace(namespace));
            let allocator = Allocator { client: client.clone(), leadership, ranges, in_mesh };
            duties.tasks.push(tokio::spawn(allocator.run()));
        }
        let selects = Arc::new(move |labels: &BTreeMap<String, String>| facts.load().discovers_namespace(labels));
        let publisher = Publisher { client, leadership, wanted_rx, selects };
        duties.tasks.push(tokio::spawn(publisher.run()));
        Ok(duties)
    }

    /// Stands for a lock.
    fn stand(&mut self, lock: &str, client: Client, environment: &dyn Environment, settings: &Settings) -> Leadership {
        let mut stop_rx = self.stop_tx.subscribe();
        if !flag_of(environment, "ENABLE_LEADER_ELECTION", true) {
            let (sole_tx, leadership) = Leadership::sole();
            self.elections.push(tokio::spawn(async move {
                let _ = stop_rx.wait_for(|stop| *stop).await;
                drop(sole_tx);
            }));
            return leadership;
        }
        let identity = environment.get("POD_NAME").unwrap_or_else(|| format!("trysail-{}", std::process::id()));
        let config = election::Config {
            name: lock.to_owned(),
            namespace: settings.system_namespace.clone(),
            form: Form::ConfigMap,
            identity,
            revision: settings.revision.clone(),
            is_default: settings.revision == "default",
            timing: Timing::default(),
        };
        let (election, leadership) = Election::new(client, config);
        let stop = async move { drop(stop_rx.wait_for(|stop| *stop).await) };
        self.elections.push(tokio::spawn(election.run(stop)));
        leadership
    }

    /// Ends the duties, then gives the locks back, so that another replica need not wait for them to run out.
    pub async fn end(mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        let _ = self.stop_tx.send(true);
        for election in self.elections.drain(..) {
            // It bounds its own time.
            let _ = election.await;
        }
    }
}

impl Drop for Duties {
    fn drop(&mut self) {
        self.tasks.iter().chain(&self.elections).for_each(JoinHandle::abort);
    }
}

/// Names of what is published.
struct Published {
    /// Unset when they are in a ClusterTrustBundle instead (`ENABLE_CLUSTER_TRUST_BUNDLE_API`).
    roots: Option<String>,
    /// Unset when revocation lists are not published.
    crl: Option<String>,
}

impl Published {
    fn read(environment: &dyn Environment) -> Published {
        let name = |variable: &str, default: &str| environment.get(variable).unwrap_or_else(|| default.to_owned());
        let [roots, crl] = PUBLISHED;
        Published {
            roots: (!flag_of(environment, "ENABLE_CLUSTER_TRUST_BUNDLE_API", false))
                .then(|| name("PILOT_CA_CERT_CONFIGMAP", roots)),
            crl: flag_of(environment, "PILOT_ENABLE_CA_CRL", true).then(|| name("PILOT_CRL_CONFIGMAP", crl)),
        }
    }

    fn of(&self, bundle: &PublicBundle) -> Vec<Publication> {
        let publication = |name: &str, key: &str, text: &str| Publication {
            name: name.to_owned(),
            key: key.to_owned(),
            text: text.to_owned(),
        };
        let crl = self.crl.iter().map(|name| publication(name, CRL_KEY, &bundle.crl_pem));
        let roots = self.roots.iter().map(|name| publication(name, ROOT_KEY, &bundle.root_pem));
        roots.chain(crl).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_istiods_and_can_be_set() {
        let bundle = PublicBundle { root_pem: "root".into(), crl_pem: "crl".into(), ..PublicBundle::default() };
        let of = |pairs: &[(&str, &str)]| -> Vec<String> {
            let environment: BTreeMap<String, String> =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let all = Published::read(&environment).of(&bundle);
            all.iter().map(|one| format!("{} {} {}", one.name, one.key, one.text)).collect()
        };
        assert_eq!(of(&[]), ["istio-ca-root-cert root-cert.pem root", "istio-ca-crl ca-crl.pem crl"]);
        let set = [("PILOT_CA_CERT_CONFIGMAP", "mine"), ("PILOT_ENABLE_CA_CRL", "false")];
        assert_eq!(of(&set), ["mine root-cert.pem root"]);
        assert_eq!(of(&[("ENABLE_CLUSTER_TRUST_BUNDLE_API", "true")]), ["istio-ca-crl ca-crl.pem crl"]);
    }
}
