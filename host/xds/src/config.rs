//! What the server is told: its settings, and that a new snapshot is there.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trysail_model::{Proxy, Secrets, TrustBundle};

use crate::{Debug, Metrics};

/// Whoever wants to know what was sent to whom.
pub type Observer = dyn Fn(&PushReport) + Send + Sync;

/// Settings of a [`Server`](crate::Server).
#[derive(Clone)]
pub struct Config {
    /// Threads that translate; 0 means one per core. The counterpart of `PILOT_PUSH_THROTTLE`.
    pub n_workers: usize,
    /// Concurrent streams of one connection, `ISTIO_GPRC_MAXSTREAMS`.
    pub max_streams: u32,
    /// Largest request in bytes, `ISTIO_GPRC_MAXRECVMSGSIZE`.
    pub max_receive_bytes: usize,
    /// Time without traffic after which a client is pinged, `--keepaliveInterval`.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take, `--keepaliveTimeout`.
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to go elsewhere, `--keepaliveMaxServerConnectionAge`; unset means never.
    pub max_connection_age: Option<Duration>,
    /// How long a connection that was asked to go may stay.
    pub max_connection_age_grace: Duration,
    /// Streams that may begin in a second, `PILOT_MAX_REQUESTS_PER_SECOND`; 0 for no limit.
    pub max_streams_per_second: f64,
    /// Resources that the shared cache of differences may name, all entries together.
    pub max_cached_differences: usize,
    /// The secrets of gateways; without them no stream is served any.
    pub secrets: Option<Arc<dyn Secrets>>,
    /// The roots that proxies are told to trust; without them that type is not served.
    pub trust_bundle: Option<Arc<dyn TrustBundle>>,
    /// Let a proxy leave out which service account it runs as, as istiod does: then any account of a namespace gets the
    /// configuration of any other.
    pub accepts_unnamed_accounts: bool,
    /// Answers questions of debug types; without it they are refused.
    pub debug: Option<Arc<dyn Debug>>,
    /// Where the server counts.
    pub metrics: Metrics,
    /// Called for each response with what it holds, after it was handed to the transport. It runs on the runtime's
    /// threads, so it must not block.
    pub on_push: Option<Arc<Observer>>,
}

impl Default for Config {
    /// istiod's defaults, and metrics that no registry shows.
    fn default() -> Self {
        Config {
            n_workers: 0,
            max_streams: 100_000,
            max_receive_bytes: 4 << 20,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connection_age: None,
            max_connection_age_grace: Duration::from_secs(10),
            max_streams_per_second: 0.0,
            max_cached_differences: 100_000,
            secrets: None,
            trust_bundle: None,
            accepts_unnamed_accounts: false,
            debug: None,
            metrics: Metrics::unregistered(),
            on_push: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("n_workers", &self.n_workers).finish_non_exhaustive()
    }
}

/// A new snapshot is committed.
#[derive(Clone, Debug)]
pub struct PushInfo {
    /// Its revision; streams that were served it already do nothing.
    pub revision: u64,
    /// Why, for `pilot_push_triggers`: `config`, `endpoint`, `service`, ... One entry per merged event or kind of event.
    pub reasons: Vec<String>,
    /// When the first of the changes was seen: convergence is measured from here.
    pub since: Instant,
    /// Send everything that is watched, also what did not change (an operator asked for it).
    pub forced: bool,
    /// Secrets or the roots to trust changed, which are not part of a snapshot.
    pub secrets: bool,
}

impl PushInfo {
    /// A push whose changes were seen just now.
    pub fn new(revision: u64, reasons: Vec<String>) -> Self {
        PushInfo { revision, reasons, since: Instant::now(), forced: false, secrets: false }
    }
}

/// One response that went to one proxy.
#[derive(Clone, Debug)]
pub struct PushReport {
    /// To whom.
    pub proxy: Arc<Proxy>,
    /// Connection id, `<proxy id>-<number>`.
    pub connection: Arc<str>,
    /// Short name of the type, `cds`.
    pub kind: &'static str,
    /// The resources in it that are new or differ from those sent before, sorted. A state-of-the-world response may hold
    /// more.
    pub changed: Vec<String>,
    /// Resources that are gone since the response before, sorted.
    pub removed: Vec<String>,
    /// Resources in the response.
    pub n_resources: usize,
    /// Length of the resources' bodies.
    pub bytes: usize,
    /// Revision of the snapshot that it was made from.
    pub revision: u64,
}
