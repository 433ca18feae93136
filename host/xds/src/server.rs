//! The server: what all streams share.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prost_types::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::server::TcpIncoming;
use trysail_model::{Proxy, Secrets, Translator, TrustBundle};

use crate::admission::Admission;
use crate::age;
use crate::config::{Config, Observer, PushInfo};
use crate::diff::DeltaCache;
use crate::kind::Kind;
use crate::names::Interner;
use crate::pool::{Lane, Pool};
use crate::reflection;
use crate::request::Protocol;
use crate::service::AdsService;
use crate::status::{Entry, ProxyStatus};
use crate::{Debug, Metrics};

/// Time between two proxies that are sent elsewhere, at most.
const LONGEST_STEP: Duration = Duration::from_millis(50);

/// A discovery server. Clones are handles of the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    translator: Arc<dyn Translator>,
    pool: Pool,
    deltas: Arc<DeltaCache>,
    interner: Interner,
    metrics: Metrics,
    on_push: Option<Arc<Observer>>,
    secrets: Option<Arc<dyn Secrets>>,
    trust_bundle: Option<Arc<dyn TrustBundle>>,
    accepts_unnamed_accounts: bool,
    debug: Option<Arc<dyn Debug>>,
    transport: Transport,
    pushes_tx: watch::Sender<Push>,
    stop_tx: watch::Sender<bool>,
    /// New streams are sent elsewhere.
    drains: AtomicBool,
    admission: Admission,
    connections: Mutex<BTreeMap<u64, Arc<Entry>>>,
    n_connections: AtomicU64,
    /// What tells this process's nonces from those of others.
    process: u64,
}

/// What the transport needs of [`Config`].
struct Transport {
    max_streams: u32,
    max_receive_bytes: usize,
    keepalive_interval: std::time::Duration,
    keepalive_timeout: std::time::Duration,
    max_connection_age: Option<std::time::Duration>,
    max_connection_age_grace: std::time::Duration,
}

/// The newest push. Streams see only this one, however many they missed.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    pub(crate) revision: u64,
    /// `<time>/<counter>`.
    pub(crate) version: Arc<str>,
    pub(crate) since: Instant,
    /// Forced pushes so far: whoever missed one sees that the number grew.
    pub(crate) n_forced: u64,
    /// Changes of secrets so far.
    pub(crate) n_secrets: u64,
    counter: u64,
}

impl Server {
    /// A server of a translation. Its threads start now and end with the last handle and stream.
    pub fn new(translator: Arc<dyn Translator>, config: Config) -> Server {
        let Config {
            n_workers,
            max_streams,
            max_receive_bytes,
            keepalive_interval,
            keepalive_timeout,
            max_connection_age,
            max_connection_age_grace,
            max_streams_per_second,
            max_cached_differences,
            secrets,
            trust_bundle,
            accepts_unnamed_accounts,
            debug,
            metrics,
            on_push,
        } = config;
        let push = Push {
            revision: translator.revision(),
            version: version(1),
            since: Instant::now(),
            n_forced: 0,
            n_secrets: 0,
            counter: 1,
        };
        let shared = Shared {
            translator,
            pool: Pool::new(n_workers),
            deltas: Arc::new(DeltaCache::new(max_cached_differences)),
            interner: Interner::default(),
            metrics,
            on_push,
            secrets,
            trust_bundle,
            accepts_unnamed_accounts,
            debug,
            transport: Transport {
                max_streams,
                max_receive_bytes,
                keepalive_interval,
                keepalive_timeout,
                max_connection_age,
                max_connection_age_grace,
            },
            pushes_tx: watch::Sender::new(push),
            stop_tx: watch::Sender::new(false),
            drains: AtomicBool::new(false),
            admission: Admission::new(max_streams_per_second),
            connections: Mutex::default(),
            n_connections: AtomicU64::new(0),
            // The standard library's way to a random number.
            process: RandomState::new().hash_one(SystemTime::now()),
        };
        Server { shared: Arc::new(shared) }
    }

    /// Tells all streams that a new snapshot is committed. Returns at once; streams that are busy or slow see only the
    /// newest of the pushes that they missed.
    pub fn notify(&self, push: PushInfo) {
        let PushInfo { revision, reasons, since, forced, secrets } = push;
        self.shared.metrics.triggered(&reasons);
        self.shared.pushes_tx.send_modify(|newest| {
            newest.counter += 1;
            newest.version = version(newest.counter);
            // Two threads may notify in the wrong order.
            newest.revision = newest.revision.max(revision);
            newest.since = since;
            newest.n_forced += u64::from(forced);
            newest.n_secrets += u64::from(secrets);
        });
    }

    /// The discovery service, for a router of the caller's.
    pub fn service(&self) -> AdsService {
        AdsService::new(self.clone(), self.shared.transport.max_receive_bytes)
    }

    /// Serves plaintext gRPC, with reflection, until `shutdown` is done; see [`Server::serve_with`].
    ///
    /// # Errors
    /// The transport failed as a whole; failures of single connections are theirs alone.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        self.serve_with(incoming, |builder| builder.add_service(self.service()), &[], shutdown).await
    }

    /// Serves services, among them [`Server::service`], and reflection (of those that are `named`, too), on connections of
    /// whatever transport, until
    /// `shutdown` is done; then ends all streams with `Unavailable`, so that proxies go elsewhere, and returns once they are
    /// closed, or after the grace time. [`Server::stop`] ends it too.
    ///
    /// # Errors
    /// The transport failed as a whole; failures of single connections are theirs alone.
    pub async fn serve_with<C, E>(
        &self,
        incoming: impl tokio_stream::Stream<Item = Result<C, E>>,
        services: impl FnOnce(&mut tonic::transport::Server) -> tonic::transport::server::Router,
        named: &[&str],
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error>
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let transport = &self.shared.transport;
        let mut builder = tonic::transport::Server::builder()
            .max_concurrent_streams(transport.max_streams)
            .http2_keepalive_interval(Some(transport.keepalive_interval))
            .http2_keepalive_timeout(Some(transport.keepalive_timeout));
        if let Some(age) = transport.max_connection_age {
            let grace = age::remaining(age) + transport.max_connection_age_grace;
            builder = builder.max_connection_age(age::announced(age)).max_connection_age_grace(grace);
        }
        let descriptors = reflection::descriptors(named);
        let reflect =
            || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(&descriptors);
        let (v1, v1alpha) = (reflect().build_v1(), reflect().build_v1alpha());
        let router = services(&mut builder);
        // Both are made from the descriptors of this binary; without them everything else still works.
        let router = router.add_optional_service(v1.ok()).add_optional_service(v1alpha.ok());
        let mut stop = self.stop_rx();
        let serving = router.serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
        let grace = transport.max_connection_age_grace;
        let mut stop = self.stop_rx();
        let stopping = async {
            tokio::select! {
                () = shutdown => self.stop(),
                _ = stop.wait_for(|stop| *stop) => {}
            }
            // A client that does not read does not hear that its stream ended either.
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            served = serving => served,
            () = stopping => Ok(()),
        }
    }

    /// Sends proxies elsewhere, one after the other within a time, so that the other replicas are not stormed; streams that
    /// come are refused at once. Returns when all have been told.
    pub async fn drain(&self, within: Duration) {
        self.shared.drains.store(true, Ordering::Relaxed);
        self.let_go(usize::MAX, within).await;
    }

    /// Sends so many proxies elsewhere, those first that came first, one after the other within a time.
    pub async fn let_go(&self, n: usize, within: Duration) {
        let entries: Vec<Arc<Entry>> = self.shared.connections.lock().values().take(n).cloned().collect();
        let Ok(n_entries) = u32::try_from(entries.len()) else { return };
        // A few are nobody's storm.
        let step = (within / n_entries.max(1)).min(LONGEST_STEP);
        let began = tokio::time::Instant::now();
        for (at, entry) in (1..).zip(&entries) {
            entry.leave.send_replace(true);
            tokio::time::sleep_until(began + step * at).await;
        }
    }

    /// When a stream that begins now is to end; `None` for never.
    pub(crate) fn stream_age(&self) -> Option<Duration> {
        self.shared.transport.max_connection_age.map(age::of_stream)
    }

    /// How many streams there are.
    pub fn n_streams(&self) -> usize {
        self.shared.connections.lock().len()
    }

    /// Lets a stream begin, in its turn.
    ///
    /// # Errors
    /// When there are too many, or we are leaving.
    pub(crate) async fn enter(&self) -> Result<(), Status> {
        if self.shared.drains.load(Ordering::Relaxed) {
            return Err(Status::unavailable("the server is stopping"));
        }
        self.shared.admission.turn().await
    }

    /// Ends all streams, and those that come, with `Unavailable`.
    pub fn stop(&self) {
        self.shared.stop_tx.send_replace(true);
    }

    /// The proxies that are connected now, in the order in which they came.
    pub fn status(&self) -> Vec<ProxyStatus> {
        let entries: Vec<Arc<Entry>> = self.shared.connections.lock().values().cloned().collect();
        entries.iter().map(|entry| entry.status()).collect()
    }

    /// The first connected proxy whose connection id contains a text, as istiod finds proxies, among those that `accepts`.
    pub fn find(&self, part: &str, accepts: impl Fn(&Proxy) -> bool) -> Option<ProxyStatus> {
        let connections = self.shared.connections.lock();
        let mut found = connections.values().filter(|entry| entry.connection.contains(part));
        found.find(|entry| accepts(&entry.proxy())).map(|entry| entry.status())
    }

    /// Ends the stream of a connection id. False when there is none.
    pub fn disconnect(&self, connection: &str) -> bool {
        let connections = self.shared.connections.lock();
        let found = connections.values().find(|entry| &*entry.connection == connection);
        found.inspect(|entry| entry.end()).is_some()
    }

    /// Sends everything that is watched to everybody, changed or not. The number of connected proxies.
    pub fn push_all(&self) -> usize {
        let revision = self.shared.translator.revision();
        self.notify(PushInfo { forced: true, ..PushInfo::new(revision, vec!["debug".to_owned()]) });
        self.shared.connections.lock().len()
    }

    pub(crate) fn translator(&self) -> &Arc<dyn Translator> {
        &self.shared.translator
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(crate) fn deltas(&self) -> &Arc<DeltaCache> {
        &self.shared.deltas
    }

    pub(crate) fn interner(&self) -> &Interner {
        &self.shared.interner
    }

    /// Where the server counts.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn on_push(&self) -> Option<&Arc<Observer>> {
        self.shared.on_push.as_ref()
    }

    pub(crate) fn trust_bundle(&self) -> Option<&Arc<dyn TrustBundle>> {
        self.shared.trust_bundle.as_ref()
    }

    pub(crate) fn secrets(&self) -> Option<&Arc<dyn Secrets>> {
        self.shared.secrets.as_ref()
    }

    pub(crate) fn accepts_unnamed_accounts(&self) -> bool {
        self.shared.accepts_unnamed_accounts
    }

    pub(crate) fn debug(&self) -> Option<&Arc<dyn Debug>> {
        self.shared.debug.as_ref()
    }

    pub(crate) fn pushes_rx(&self) -> watch::Receiver<Push> {
        self.shared.pushes_tx.subscribe()
    }

    pub(crate) fn stop_rx(&self) -> watch::Receiver<bool> {
        self.shared.stop_tx.subscribe()
    }

    /// The version of a response that is made now.
    pub(crate) fn version(&self) -> Arc<str> {
        self.shared.pushes_tx.borrow().version.clone()
    }

    /// A nonce that no other response has, of whatever stream or replica. It begins with the version, like istiod's.
    pub(crate) fn nonce(&self, version: &str, connection: u64, number: u64) -> String {
        format!("{version}-{:016x}-{connection:x}-{number:x}", self.shared.process)
    }

    /// Takes a proxy into the registry.
    pub(crate) fn admit(&self, protocol: Protocol, address: Option<String>, proxy: Proxy) -> Admitted {
        let number = self.shared.n_connections.fetch_add(1, Ordering::Relaxed) + 1;
        let connection: Arc<str> = format!("{}-{number}", proxy.id).into();
        let version = proxy.metadata_text("ISTIO_VERSION").unwrap_or_default();
        let entry = Arc::new(Entry::new(connection, protocol, address, Arc::new(proxy)));
        self.shared.connections.lock().insert(number, entry.clone());
        let version_label = self.shared.metrics.connected.add(&version);
        Admitted { server: self.clone(), number, entry, version_label }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("n_connected", &self.shared.connections.lock().len()).finish_non_exhaustive()
    }
}

/// A proxy's place in the registry; dropping it takes the proxy out and lets the translation forget it.
pub(crate) struct Admitted {
    server: Server,
    pub(crate) number: u64,
    pub(crate) entry: Arc<Entry>,
    version_label: String,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let shared = &self.server.shared;
        shared.connections.lock().remove(&self.number);
        shared.metrics.connected.remove(&self.version_label);
        let status = self.entry.status();
        for (kind, of) in status.types.iter().filter_map(|(url, of)| Some((Kind::of(url.as_str())?, of))) {
            shared.metrics.refuses(kind, &status.proxy.id, of.last_code, None);
        }
        tracing::info!(proxy = &*self.entry.connection, "disconnected");
        let (translator, proxy) = (shared.translator.clone(), self.entry.proxy());
        // Nobody waits for it; a panic in it is nobody's either.
        drop(shared.pool.run(Lane::Request, move || translator.forget(&proxy)));
    }
}

/// `<RFC 3339 time, in seconds>/<counter>`.
fn version(counter: u64) -> Arc<str> {
    let mut now = Timestamp::from(SystemTime::now());
    now.nanos = 0;
    format!("{now}/{counter}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_look_like_istiods() {
        let version = version(12);
        let (time, counter) = version.split_once('/').unwrap();
        assert_eq!(counter, "12");
        assert_eq!((time.len(), time.ends_with('Z')), ("2026-11-21T06:31:32Z".len(), true));
    }
}
