//! What a change did to the state, in terms of what is indexed.

use std::sync::Arc;

use trysail_model::ObjectRef;

use crate::config::Config;
use crate::config::destination_rule::Rule;
use crate::config::virtual_service::Root;
use crate::pods::Pod;
use crate::service_entry::Entry;
use crate::services::Service;
use crate::slices::Slice;
use crate::workloads::Instance;

/// Old and new form of one thing.
pub type Moved<T> = (Option<Arc<T>>, Option<Arc<T>>);

/// Which object with a document, whether its place in the order moved, its old and its new form.
pub type TouchedConfig = (ObjectRef, bool, Option<Arc<Config>>, Option<Arc<Config>>);

/// Everything that moved. Things that are equal in both forms are not in it.
#[derive(Debug, Default)]
pub struct Touched {
    /// Namespaces whose labels or annotations moved, or that came or went.
    pub namespaces: Vec<String>,
    /// Nodes whose locality moved.
    pub nodes: Vec<String>,
    /// Pods.
    pub pods: Vec<Moved<Pod>>,
    /// Slices.
    pub slices: Vec<Moved<Slice>>,
    /// WorkloadEntries.
    pub workloads: Vec<Moved<Instance>>,
    /// ServiceEntries.
    pub entries: Vec<Moved<Entry>>,
    /// Services of either registry.
    pub services: Vec<Moved<Service>>,
    /// Objects with documents: which, whether its place in the order moved, old and new form.
    pub configs: Vec<TouchedConfig>,
    /// Root VirtualServices.
    pub roots: Vec<Moved<Root>>,
    /// DestinationRules.
    pub rules: Vec<Moved<Rule>>,
    /// Gateways of networks, other than by their services.
    pub gateways: bool,
    /// The network of this cluster's workloads.
    pub network: bool,
}
