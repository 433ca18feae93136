//! Clients of both protocols.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use trysail_model::ids::type_urls;
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use trysail_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use trysail_proto::prost_types::{Struct, Value, value::Kind};

use crate::fake::{Env, PATIENCE};

pub use trysail_model::ids::type_urls::{CLUSTER, ENDPOINT, EXTENSION, LISTENER, NAME_TABLE, ROUTE, SECRET};

/// The node of a sidecar of that name.
pub fn node(name: &str) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let fields = [("NAMESPACE".to_owned(), text("shop")), ("ISTIO_VERSION".to_owned(), text("1.31.0"))];
    Node {
        id: format!("sidecar~10.0.0.1~{name}.shop~shop.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.into() }),
        ..Node::default()
    }
}

pub async fn channel(env: &Env) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", env.address)).expect("a good address");
    // The protocol's own windows; the library's are megabytes, and so slow readers would not look slow.
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    endpoint.connect().await.expect("connects")
}

type Client = AggregatedDiscoveryServiceClient<Channel>;

async fn client(env: &Env) -> Client {
    AggregatedDiscoveryServiceClient::new(channel(env).await).max_decoding_message_size(1 << 30)
}

async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes")
}

/// What a response held.
#[derive(Debug, PartialEq, Eq, Clone, Default)]
pub struct Got {
    /// Short name of the type.
    pub kind: String,
    /// Bodies by name; SotW resources have no name, so their bodies are the names too.
    pub resources: BTreeMap<String, String>,
    pub versions: BTreeMap<String, String>,
    pub removed: Vec<String>,
    pub nonce: String,
    pub version: String,
}

impl Got {
    pub fn names(&self) -> Vec<&str> {
        self.resources.keys().map(String::as_str).collect()
    }
}

fn short(type_url: &str) -> String {
    type_urls::short(type_url).unwrap_or(type_url).to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A stream of the delta protocol.
pub struct Delta {
    tx: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    rx: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
    nonces: HashMap<String, String>,
    fences: usize,
}

impl Delta {
    /// A stream of a proxy of that name; nothing is sent yet.
    pub async fn open(env: &Env, name: &str) -> Delta {
        let (tx, rx) = mpsc::channel(100);
        let call = patient(client(env).await.delta_aggregated_resources(ReceiverStream::new(rx))).await;
        let rx = call.expect("a stream").into_inner();
        Delta { tx: Some(tx), rx, node: Some(node(name)), nonces: HashMap::new(), fences: 0 }
    }

    pub async fn raw(&mut self, request: DeltaDiscoveryRequest) {
        self.tx.as_ref().expect("open").send(request).await.expect("the stream lives");
    }

    pub async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        request.node = self.node.take();
        self.raw(request).await;
    }

    pub async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        self.change(type_url, names, &[]).await;
    }

    pub async fn change(&mut self, type_url: &str, subscribe: &[&str], unsubscribe: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            ..Default::default()
        };
        self.send(request).await;
    }

    /// Subscribes as after a reconnect, with the versions held.
    pub async fn resume(&mut self, type_url: &str, names: &[&str], held: &BTreeMap<String, String>) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: held.clone(),
            ..Default::default()
        };
        self.send(request).await;
    }

    /// The next response, not acknowledged.
    pub async fn next(&mut self) -> Got {
        self.end_or_next().await.expect("a response")
    }

    /// The next response or how the stream ended.
    pub async fn end_or_next(&mut self) -> Result<Got, Option<Status>> {
        let response = patient(self.rx.message()).await.map_err(Some)?.ok_or(None)?;
        self.nonces.insert(response.type_url.clone(), response.nonce.clone());
        let mut got = Got {
            kind: short(&response.type_url),
            removed: response.removed_resources,
            nonce: response.nonce,
            version: response.system_version_info,
            ..Got::default()
        };
        for resource in response.resources {
            let body = resource.resource.expect("a body");
            assert_eq!(body.type_url, response.type_url);
            got.resources.insert(resource.name.clone(), text(&body.value));
            got.versions.insert(resource.name, resource.version);
        }
        Ok(got)
    }

    /// The next response, acknowledged.
    pub async fn take(&mut self) -> Got {
        let got = self.next().await;
        self.ack(&got).await;
        got
    }

    pub async fn ack(&mut self, got: &Got) {
        let (type_url, nonce) = self.nonces.iter().find(|(_, nonce)| **nonce == got.nonce).expect("a nonce");
        let request =
            DeltaDiscoveryRequest { type_url: type_url.clone(), response_nonce: nonce.clone(), ..Default::default() };
        self.send(request).await;
    }

    pub async fn nack(&mut self, type_url: &str, nonce: &str, words: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            error_detail: Some(status(words)),
            ..Default::default()
        };
        self.send(request).await;
    }

    /// Nothing was sent that was not read: the answer to a fence is next.
    pub async fn quiet(&mut self) {
        self.fences += 1;
        let fence = format!("fence-{}", self.fences);
        self.subscribe(EXTENSION, &[&fence]).await;
        let got = self.next().await;
        assert_eq!((got.kind.as_str(), got.resources.len()), ("ecds", 0), "nothing else should come: {got:?}");
        self.ack(&got).await;
    }

    /// Closes the client's side.
    pub fn close(&mut self) {
        self.tx = None;
    }
}

/// A stream of the state-of-the-world protocol.
pub struct Sotw {
    tx: Option<mpsc::Sender<DiscoveryRequest>>,
    rx: Streaming<DiscoveryResponse>,
    node: Option<Node>,
    /// Names and last nonce by type.
    held: HashMap<String, (Vec<String>, String)>,
}

impl Sotw {
    pub async fn open(env: &Env, name: &str) -> Sotw {
        let (tx, rx) = mpsc::channel(100);
        let call = patient(client(env).await.stream_aggregated_resources(ReceiverStream::new(rx))).await;
        let rx = call.expect("a stream").into_inner();
        Sotw { tx: Some(tx), rx, node: Some(node(name)), held: HashMap::new() }
    }

    pub async fn raw(&mut self, request: DiscoveryRequest) {
        self.tx.as_ref().expect("open").send(request).await.expect("the stream lives");
    }

    pub async fn send(&mut self, mut request: DiscoveryRequest) {
        request.node = self.node.take();
        self.raw(request).await;
    }

    /// A request with names and nonce as given.
    pub async fn ask(&mut self, type_url: &str, names: &[&str], nonce: &str) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.held.insert(type_url.into(), (names.clone(), nonce.into()));
        let request = DiscoveryRequest {
            type_url: type_url.into(),
            resource_names: names,
            response_nonce: nonce.into(),
            ..Default::default()
        };
        self.send(request).await;
    }

    pub async fn next(&mut self) -> Got {
        self.end_or_next().await.expect("a response")
    }

    pub async fn end_or_next(&mut self) -> Result<Got, Option<Status>> {
        let response = patient(self.rx.message()).await.map_err(Some)?.ok_or(None)?;
        let held = self.held.entry(response.type_url.clone()).or_default();
        held.1.clone_from(&response.nonce);
        let bodies = response.resources.iter().map(|any| (text(&any.value), text(&any.value)));
        Ok(Got {
            kind: short(&response.type_url),
            resources: bodies.collect(),
            nonce: response.nonce,
            version: response.version_info,
            ..Got::default()
        })
    }

    pub async fn take(&mut self) -> Got {
        let got = self.next().await;
        self.ack(&got).await;
        got
    }

    pub async fn ack(&mut self, got: &Got) {
        let held = self.held.iter().find(|(_, (_, nonce))| *nonce == got.nonce).expect("a nonce");
        let (type_url, (names, nonce)) = held;
        let request = DiscoveryRequest {
            type_url: type_url.clone(),
            resource_names: names.clone(),
            response_nonce: nonce.clone(),
            version_info: got.version.clone(),
            ..Default::default()
        };
        self.send(request).await;
    }

    pub async fn nack(&mut self, type_url: &str, nonce: &str, words: &str) {
        let names = self.held.get(type_url).map(|(names, _)| names.clone()).unwrap_or_default();
        let request = DiscoveryRequest {
            type_url: type_url.into(),
            resource_names: names,
            response_nonce: nonce.into(),
            error_detail: Some(status(words)),
            ..Default::default()
        };
        self.send(request).await;
    }

    /// Nothing was sent that was not read: the answer to a fence is next.
    pub async fn quiet(&mut self) {
        self.ask(NAME_TABLE, &[], "").await;
        let got = self.next().await;
        assert_eq!(got.kind, "nds", "nothing else should come: {got:?}");
        self.ack(&got).await;
    }

    /// Closes the client's side.
    pub fn close(&mut self) {
        self.tx = None;
    }
}

fn status(words: &str) -> trysail_proto::google::rpc::Status {
    trysail_proto::google::rpc::Status { code: 13, message: words.into(), ..Default::default() }
}
