//! How to reach an API server.

use std::path::PathBuf;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::limit::RateLimitLayer;

/// Where the API server is, and how much of it we may use.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Kubeconfig file; unset for the service account of the pod that we are in.
    pub kubeconfig: Option<PathBuf>,
    /// Requests per second in the long run, `--kubernetesApiQPS`.
    pub requests_per_second: f32,
    /// Requests that may come at once, `--kubernetesApiBurst`.
    pub burst: u64,
}

impl Default for Connection {
    fn default() -> Self {
        Connection { kubeconfig: None, requests_per_second: 80.0, burst: 160 }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be used.
    #[error("kubeconfig {}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// We are not in a pod.
    #[error("not in a cluster (outside of one, --kubeconfig names a file)")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// No transport.
    #[error("no transport to the API server")]
    Transport(#[source] Box<kube::Error>),
}

/// A client. Nothing is asked of the server yet.
///
/// # Errors
/// When the credentials cannot be read.
pub async fn connect(connection: &Connection) -> Result<Client, ClientError> {
    let Connection { kubeconfig, requests_per_second, burst } = connection;
    let mut config = match kubeconfig {
        Some(path) => {
            let unusable = |source| ClientError::Kubeconfig { path: path.clone(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(unusable)?
        }
        None => Config::incluster().map_err(|error| ClientError::InCluster(Box::new(error)))?,
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    let builder = ClientBuilder::try_from(config).map_err(|error| ClientError::Transport(Box::new(error)))?;
    let burst = (*burst).max(1);
    let window = Duration::from_secs_f32(burst as f32 / requests_per_second.max(0.1));
    Ok(builder.with_layer(&RateLimitLayer::new(burst, window)).build())
}
