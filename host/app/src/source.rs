//! Where objects come from: a folder, or a cluster.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;
use trysail_ca::sds;
use trysail_discovery::{FolderSource, Update};
use trysail_facts::Settings;
use trysail_kube::{Client, ClusterSource, Connection};

use crate::env::Environment;
use crate::health::Health;
use crate::omission::PROTECTIVE;
use crate::pipeline;
use crate::terminal::Terminal;

/// What health waits for until the source has said everything.
pub const SOURCE: &str = "the source";

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Place {
    /// A folder of YAML.
    Folder(PathBuf),
    /// A Kubernetes cluster.
    Cluster(Connection),
}

impl Place {
    /// The cluster, if it is one.
    pub fn cluster(&self) -> Option<&Connection> {
        match self {
            Place::Folder(_) => None,
            Place::Cluster(connection) => Some(connection),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Folder(folder) => write!(f, "{}", folder.display()),
            Place::Cluster(Connection { kubeconfig: Some(file), .. }) => write!(f, "the cluster of {}", file.display()),
            Place::Cluster(_) => f.write_str("this cluster"),
        }
    }
}

/// A source that is followed. Dropping it ends that.
pub struct Source {
    /// The cluster, if it is one.
    pub client: Option<Client>,
    /// What moved since the first state.
    pub updates_rx: mpsc::UnboundedReceiver<Update>,
    _folder: Option<FolderSource>,
    _cluster: Option<ClusterSource>,
}

/// How often somebody who looks on is told what is waited for.
const REPORT: Duration = Duration::from_secs(5);

/// Kinds that a cluster decides by itself when it is asked.
const DECIDED_BY_REVIEW: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// Kinds that are read from a cluster, as [`trysail_discovery::kinds`] names them. Beside the definitions of custom kinds they
/// are all that is watched, and what the control plane's account has to be allowed to list and watch.
pub fn cluster_kinds() -> BTreeSet<&'static str> {
    // What is not translated has to be known all the same.
    read_kinds().filter(|kind| !DECIDED_BY_REVIEW.contains(kind)).chain(PROTECTIVE).collect()
}

/// The kinds that somebody reads: stages, and whoever hands out secrets.
fn read_kinds() -> impl Iterator<Item = &'static str> {
    pipeline::READ_KINDS.iter().chain(&sds::READ_KINDS).copied()
}

/// Starts to follow a source; returns it with its first state, however long that takes for a cluster.
///
/// # Errors
/// When the folder or the kubeconfig cannot be read.
pub async fn open(
    place: &Place,
    settings: &Settings,
    environment: &dyn Environment,
    health: &Health,
    terminal: &Terminal,
) -> Result<(Source, Update)> {
    let mut objects = trysail_discovery::Config {
        system_namespace: settings.system_namespace.clone(),
        revision: settings.revision.clone(),
        read_kinds: Some(read_kinds().map(str::to_owned).collect()),
        ..trysail_discovery::Config::default()
    };
    let (updates_tx, mut updates_rx) = mpsc::unbounded_channel();
    match place {
        Place::Folder(folder) => {
            let on_change = move |change: trysail_discovery::Change| drop(updates_tx.send(change.into()));
            let source = FolderSource::start(folder, objects, on_change)
                .with_context(|| format!("cannot read --configDir {}", folder.display()))?;
            let first = updates_rx.recv().await.context("the folder's first state never came")?;
            Ok((Source { client: None, updates_rx, _folder: Some(source), _cluster: None }, first))
        }
        Place::Cluster(connection) => {
            let list = |name: &str| -> Vec<String> {
                let text = environment.get(name).unwrap_or_default();
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            };
            objects.shared_mesh_config = environment.get("SHARED_MESH_CONFIG");
            objects.read_kinds = Some(cluster_kinds().into_iter().map(str::to_owned).collect());
            let config = trysail_kube::Config {
                objects,
                ignored: list("PILOT_IGNORE_RESOURCES"),
                included: list("PILOT_INCLUDE_RESOURCES"),
                ..trysail_kube::Config::default()
            };
            let client = trysail_kube::connect(connection).await.context("no way to the API server")?;
            let source = ClusterSource::start(client.clone(), config, updates_tx);
            let progress = source.progress();
            let first = loop {
                match tokio::time::timeout(REPORT, updates_rx.recv()).await {
                    Ok(Some(first)) => break first,
                    Ok(None) => bail!("the watches on the cluster ended"),
                    Err(_) => {
                        let waiting = progress.borrow().waiting.join(", ");
                        terminal.say(&format!("waiting for {place}: {waiting}"));
                        health.lacks(SOURCE, waiting);
                    }
                }
            };
            Ok((Source { client: Some(client), updates_rx, _folder: None, _cluster: Some(source) }, first))
        }
    }
}
