//! A proxy as the control plane sees it: the delta protocol as Envoy speaks it, without the Envoy.
//!
//! It subscribes to clusters, listeners, the endpoints and routes that they name, acknowledges, and keeps what it has when a
//! stream ends, so that it may come back to another replica with the versions that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use trysail_proto::envoy::config::cluster::v3::{Cluster, cluster};
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::config::listener::v3::{Listener, filter};
use trysail_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use trysail_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use trysail_proto::google::rpc::Status as RpcStatus;
use trysail_proto::prost::Message as _;
use trysail_proto::prost_types::{ListValue, Struct, Value as WireValue, value::Kind};

use crate::agent::with_token;

const PREFIX: &str = "type.googleapis.com/envoy.config.";
/// Clusters.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Endpoints.
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Listeners.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Routes.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A resource with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The version on the wire.
    pub version: String,
    /// The message.
    pub body: Bytes,
}

/// Resources by type and name.
pub type Config = BTreeMap<String, BTreeMap<String, Held>>;

/// A proxy, connected or not.
pub struct Proxy {
    node: Node,
    /// What it has.
    pub config: Config,
    names: BTreeMap<&'static str, BTreeSet<String>>,
    stream: Option<Stream>,
    /// A type of which it takes nothing, and what it says to that.
    refuses: Option<(&'static str, String)>,
}

struct Stream {
    requests_tx: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

/// What came in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Resources, by type and name.
    pub changed: BTreeSet<(String, String)>,
    /// Names that are gone.
    pub removed: BTreeSet<(String, String)>,
    /// Responses.
    pub n_responses: usize,
}

impl Received {
    /// Nothing but perhaps empty answers.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

fn wire(value: &Value) -> WireValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(wire).collect() }),
        Value::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), wire(v))).collect() })
        }
    };
    WireValue { kind: Some(kind) }
}

impl Proxy {
    /// The sidecar of a pod.
    pub fn sidecar(name: &str, namespace: &str, ip: &str, labels: &Value) -> Proxy {
        let metadata = serde_json::json!({
            "NAMESPACE": namespace, "LABELS": labels, "INSTANCE_IPS": ip, "SERVICE_ACCOUNT": "default",
            "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0", "INTERCEPTION_MODE": "REDIRECT", "NAME": name,
        });
        let Some(Kind::StructValue(metadata)) = wire(&metadata).kind else {
            unreachable!("written as an object above")
        };
        let id = format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local");
        let node = Node { id, metadata: Some(metadata), ..Node::default() };
        Proxy { node, config: Config::new(), names: BTreeMap::new(), stream: None, refuses: None }
    }

    /// Connects over plaintext and asks for everything, with the versions that it knows.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(&mut self, address: SocketAddr) -> Result<()> {
        let channel = Endpoint::from_shared(format!("http://{address}")).context("an address")?;
        let channel = channel.connect_timeout(Duration::from_secs(5)).connect().await.context("cannot connect")?;
        self.connect_over(channel, None).await
    }

    /// Connects over whatever there is, with a token if one is asked for.
    ///
    /// # Errors
    /// When the stream is refused.
    pub async fn connect_over(&mut self, channel: Channel, token: Option<&str>) -> Result<()> {
        let (requests_tx, requests_rx) = mpsc::channel(64);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(256 << 20);
        let mut first = Some(self.node.clone());
        for kind in [CLUSTER, LISTENER, ENDPOINT, ROUTE] {
            let names = self.names.get(kind).cloned().unwrap_or_default();
            let is_named = matches!(kind, ENDPOINT | ROUTE);
            if is_named && names.is_empty() {
                continue;
            }
            let known = self.config.get(kind).into_iter().flatten();
            let request = DeltaDiscoveryRequest {
                node: first.take(),
                type_url: kind.to_owned(),
                resource_names_subscribe: if is_named { names.into_iter().collect() } else { vec!["*".into()] },
                initial_resource_versions: known.map(|(name, held)| (name.clone(), held.version.clone())).collect(),
                ..DeltaDiscoveryRequest::default()
            };
            requests_tx.send(request).await.context("the stream is gone")?;
        }
        let stream = ReceiverStream::new(requests_rx);
        let request = match token {
            Some(token) => with_token(stream, token),
            None => Request::new(stream),
        };
        let opened = client.delta_aggregated_resources(request).await;
        self.stream = Some(Stream { requests_tx, responses: opened.context("no stream")?.into_inner() });
        Ok(())
    }

    /// Leaves, and keeps what it has.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// From now on it takes nothing of a type, and says why; with `None` it takes everything.
    pub fn refuse(&mut self, refuses: Option<(&'static str, &str)>) {
        self.refuses = refuses.map(|(kind, words)| (kind, words.to_owned()));
    }

    /// Is the stream open still? Unset after an error of it.
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Takes what comes until nothing has come for so long.
    ///
    /// # Errors
    /// When the stream ends.
    pub async fn settle(&mut self, quiet: Duration) -> Result<Received> {
        let mut received = Received::default();
        loop {
            let Some(stream) = &mut self.stream else { bail!("not connected") };
            match tokio::time::timeout(quiet, stream.responses.message()).await {
                Err(_) => return Ok(received),
                Ok(Ok(Some(response))) => self.take(response, &mut received).await?,
                Ok(Ok(None)) => {
                    self.stream = None;
                    bail!("the stream ended");
                }
                Ok(Err(status)) => {
                    self.stream = None;
                    return Err(status).context("the stream ended");
                }
            }
        }
    }

    /// Takes what comes until it satisfies.
    ///
    /// # Errors
    /// When it does not in time, or the stream ends.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        is_good: impl Fn(&Config) -> bool,
    ) -> Result<Received> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut received = Received::default();
        while !is_good(&self.config) {
            let Some(stream) = &mut self.stream else { bail!("{what}: not connected") };
            let response = tokio::time::timeout_at(deadline, stream.responses.message()).await;
            let response = response.with_context(|| format!("{what}: not within {patience:?}"))?;
            let response = response.context("the stream ended")?.context("the stream ended")?;
            self.take(response, &mut received).await?;
        }
        Ok(received)
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse, received: &mut Received) -> Result<()> {
        received.n_responses += 1;
        let kind = response.type_url.clone();
        if let (Some((_, words)), Some(stream)) = (self.refuses.as_ref().filter(|(of, _)| *of == kind), &self.stream) {
            let error_detail = Some(RpcStatus { code: 13, message: words.clone(), details: Vec::new() });
            let (type_url, response_nonce) = (kind, response.nonce);
            let nack = DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
            return stream.requests_tx.send(nack).await.context("the stream is gone");
        }
        let of_kind = self.config.entry(kind.clone()).or_default();
        let named = matches!(kind.as_str(), ENDPOINT | ROUTE);
        for resource in response.resources {
            // What it unsubscribed from may be on its way still.
            if named && !self.names.get(kind.as_str()).is_some_and(|names| names.contains(&resource.name)) {
                continue;
            }
            let body: Bytes = resource.resource.unwrap_or_default().value.into();
            received.changed.insert((kind.clone(), resource.name.clone()));
            of_kind.insert(resource.name, Held { version: resource.version, body });
        }
        for name in response.removed_resources {
            of_kind.remove(&name);
            received.removed.insert((kind.clone(), name));
        }
        let Some(stream) = &self.stream else { bail!("not connected") };
        let ack = DeltaDiscoveryRequest {
            type_url: kind.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        stream.requests_tx.send(ack).await.context("the stream is gone")?;
        let (named, wanted) = match kind.as_str() {
            CLUSTER => (ENDPOINT, self.endpoints_wanted()?),
            LISTENER => (ROUTE, self.routes_wanted()?),
            _ => return Ok(()),
        };
        let known = self.names.entry(named).or_default();
        let request = DeltaDiscoveryRequest {
            type_url: named.to_owned(),
            resource_names_subscribe: wanted.difference(known).cloned().collect(),
            resource_names_unsubscribe: known.difference(&wanted).cloned().collect(),
            ..DeltaDiscoveryRequest::default()
        };
        if let Some(of_kind) = self.config.get_mut(named) {
            of_kind.retain(|name, _| wanted.contains(name));
        }
        *known = wanted;
        if !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty() {
            let Some(stream) = &self.stream else { bail!("not connected") };
            stream.requests_tx.send(request).await.context("the stream is gone")?;
        }
        Ok(())
    }

    fn endpoints_wanted(&self) -> Result<BTreeSet<String>> {
        let mut wanted = BTreeSet::new();
        for held in self.config.get(CLUSTER).into_iter().flat_map(BTreeMap::values) {
            let cluster = Cluster::decode(held.body.clone()).context("a cluster")?;
            let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
            if cluster.cluster_discovery_type == Some(eds) {
                let service = cluster.eds_cluster_config.map(|config| config.service_name).unwrap_or_default();
                wanted.insert(if service.is_empty() { cluster.name } else { service });
            }
        }
        Ok(wanted)
    }

    fn routes_wanted(&self) -> Result<BTreeSet<String>> {
        let mut wanted = BTreeSet::new();
        for held in self.config.get(LISTENER).into_iter().flat_map(BTreeMap::values) {
            let listener = Listener::decode(held.body.clone()).context("a listener")?;
            let chains = listener.filter_chains.into_iter().chain(listener.default_filter_chain);
            for any in chains.flat_map(|chain| chain.filters).filter_map(|filter| filter.config_type) {
                let filter::ConfigType::TypedConfig(any) = any else { continue };
                if !any.type_url.ends_with(".HttpConnectionManager") {
                    continue;
                }
                let manager = HttpConnectionManager::decode(any.value.as_slice()).context("a connection manager")?;
                if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
                    wanted.insert(rds.route_config_name);
                }
            }
        }
        Ok(wanted)
    }

    /// Is there a resource whose bytes contain a text?
    pub fn mentions(config: &Config, kind: &str, name: &str, text: &str) -> bool {
        let held = config.get(kind).and_then(|of_kind| of_kind.get(name));
        held.is_some_and(|held| held.body.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

/// What differs between two configurations, in words; empty when nothing does.
pub fn differences(one: &Config, other: &Config) -> Vec<String> {
    let mut all = Vec::new();
    let kinds: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for kind in kinds {
        let (a, b) = (one.get(kind), other.get(kind));
        let names: BTreeSet<&String> =
            a.into_iter().flatten().chain(b.into_iter().flatten()).map(|(name, _)| name).collect();
        for name in names {
            let (a, b) = (a.and_then(|of_kind| of_kind.get(name)), b.and_then(|of_kind| of_kind.get(name)));
            let short = kind.strip_prefix(PREFIX).unwrap_or(kind);
            match (a, b) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) if a.body == b.body => {
                    all.push(format!("{short} {name}: versions {} and {}", a.version, b.version))
                }
                (Some(_), Some(_)) => all.push(format!("{short} {name}: other bytes")),
                (a, _) => {
                    all.push(format!("{short} {name}: only in the {}", if a.is_some() { "first" } else { "second" }))
                }
            }
        }
    }
    all
}
