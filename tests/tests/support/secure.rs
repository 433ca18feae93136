//! The program as a process, and streams to its secure port.

#![allow(dead_code, reason = "each suite uses a part")]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use trysail_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use trysail_proto::prost_types::{Struct, Value as WireValue, value::Kind};
use trysail_tests::agent::{self, Issuer, with_token};
use trysail_tests::{control_plane, quiet};

pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program, on ports of its own, with its signer in another process.
pub struct Server {
    pub child: Child,
    pub plain: SocketAddr,
    pub secure: SocketAddr,
    pub http: SocketAddr,
    pub monitoring: SocketAddr,
    pub folder: tempfile::TempDir,
    ca: std::path::PathBuf,
    pub log: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Replaces a file at once.
pub fn write(folder: &Path, name: &str, text: &str) {
    let fresh = folder.join(format!(".{name}.new"));
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, folder.join(name)).unwrap();
}

/// Starts the program on a folder with these objects, without the sandbox.
pub fn start(issuer: &Issuer, environment: &[(&str, &str)], flags: &[&str], objects: &str) -> Server {
    let flags: Vec<&str> = std::iter::once("--native").chain(flags.iter().copied()).collect();
    launch(issuer, environment, &flags, objects)
}

/// Starts the program on a folder with these objects.
pub fn launch(issuer: &Issuer, environment: &[(&str, &str)], flags: &[&str], objects: &str) -> Server {
    let binary = control_plane::binary(quiet).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::create_dir(&config).unwrap();
    write(&config, "objects.yaml", objects);
    let ca = folder.path().join("state/ca");
    let mut command = Command::new(binary);
    command.args(["discovery", "--registries=", "--configDir"]).arg(&config);
    for flag in ["--grpcAddr", "--httpAddr", "--monitoringAddr", "--secureGRPCAddr"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    command.args(flags);
    command.env("RUST_LOG", "trace").env("TRYSAIL_CA_DIR", &ca).env("JWT_RULE", issuer.rule());
    command.env("ROOT_CA_DIR", folder.path().join("plugged")).envs(environment.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (lines_tx, lines_rx) = std::sync::mpsc::channel::<String>();
    let out: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for stream in out {
        let (log, lines_tx) = (log.clone(), lines_tx.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                log.lock().unwrap().push_str(&format!("{line}\n"));
                let _ = lines_tx.send(line);
            }
        });
    }
    drop(lines_tx);
    let found = loop {
        match lines_rx.recv_timeout(PATIENCE) {
            Ok(line) if line.contains("over TLS on ") => break line,
            Ok(_) => {}
            Err(_) => panic!("the control plane did not start:\n{}", log.lock().unwrap()),
        }
    };
    let address = |before: &str| {
        let rest = &found[found.find(before).unwrap() + before.len()..];
        rest.split([',', ' ']).next().unwrap().parse().unwrap()
    };
    let (plain, secure) = (address("xDS on "), address("over TLS on "));
    let (http, monitoring) = (address("ready on "), address("metrics on "));
    Server { child, plain, secure, http, monitoring, folder, ca, log }
}

impl Server {
    pub fn root(&self) -> String {
        std::fs::read_to_string(self.ca.join("ca-cert.pem")).unwrap()
    }

    pub async fn channel(&self) -> Channel {
        agent::connect(self.secure, &self.root(), None).await.unwrap()
    }
}

/// A node of a pod `pod-1`.
pub fn node(proxy_type: &str, namespace: &str, account: Option<&str>) -> Node {
    let mut fields = std::collections::BTreeMap::new();
    let text = |text: &str| WireValue { kind: Some(Kind::StringValue(text.to_owned())) };
    fields.insert("NAMESPACE".to_owned(), text(namespace));
    if let Some(account) = account {
        fields.insert("SERVICE_ACCOUNT".to_owned(), text(account));
    }
    let id = format!("{proxy_type}~10.0.0.9~pod-1.{namespace}~{namespace}.svc.cluster.local");
    Node { id, metadata: Some(Struct { fields }), ..Node::default() }
}

/// A state-of-the-world stream.
pub struct Stream {
    pub requests: mpsc::Sender<DiscoveryRequest>,
    responses: tonic::Streaming<DiscoveryResponse>,
}

impl Stream {
    pub async fn open(channel: &Channel, token: Option<&str>, first: DiscoveryRequest) -> Result<Stream, Status> {
        let (requests, rx) = mpsc::channel(8);
        requests.send(first).await.unwrap();
        let stream = ReceiverStream::new(rx);
        let request = match token {
            Some(token) => with_token(stream, token),
            None => Request::new(stream),
        };
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let responses = client.stream_aggregated_resources(request).await?.into_inner();
        Ok(Stream { requests, responses })
    }

    pub async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        tokio::time::timeout(PATIENCE, self.responses.next()).await.expect("an answer in time").expect("an open stream")
    }

    pub async fn acknowledge(&self, response: &DiscoveryResponse, names: &[&str]) {
        let request = DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            version_info: response.version_info.clone(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

/// A first request.
pub fn ask(node: Node, type_url: &str, names: &[&str]) -> DiscoveryRequest {
    let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
    DiscoveryRequest { node: Some(node), type_url: type_url.into(), resource_names, ..DiscoveryRequest::default() }
}
