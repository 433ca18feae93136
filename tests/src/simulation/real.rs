//! The stated calls as real connections, to an Envoy in a network namespace.
//!
//! Connections of the workload come to Envoy by their source port: of one range to the listener for outbound traffic, of
//! another to that for inbound traffic, as if they had been redirected where Istio does it. What Envoy itself sends out goes
//! to a stand-in that takes every address.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::{Call, Mode, Outcome, Protocol, Tls};
use crate::control_plane::ControlPlane;
use crate::netns::Netns;
use crate::sds::Identity;
use crate::tls::anybody;

/// Where the stand-in listens.
pub const STAND_IN: u16 = 15999;

/// What it says.
const HERE: &str = "stand-in";

/// Source ports of each kind of connections.
const N_SOURCES: u16 = 1000;

/// First source port of connections that come in to a workload.
const INBOUND: u16 = 21_000;

/// First source port of connections that go out from a workload.
const OUTBOUND: u16 = INBOUND + N_SOURCES;

/// First source port of connections that are simply made.
const DIRECT: u16 = OUTBOUND + N_SOURCES;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rules that bring connections to Envoy and from Envoy to the stand-in, as `iptables-restore` reads them.
pub fn rules() -> String {
    let of_kind = |first: u16| format!("{first}:{}", first + N_SOURCES - 1);
    let control_plane = ControlPlane::address(false);
    format!(
        "*nat
-A OUTPUT -p tcp --sport {} -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp --sport {} -j REDIRECT --to-ports 15001
-A OUTPUT -d 127.0.0.0/8 -j RETURN
-A OUTPUT -d {} -p tcp --dport {} -j RETURN
-A OUTPUT -p tcp -j REDIRECT --to-ports {STAND_IN}
COMMIT",
        of_kind(INBOUND),
        of_kind(OUTBOUND),
        control_plane.ip(),
        control_plane.port()
    )
}

/// Answers on every address: HTTP with a status, anything else with a line. Who begins with TLS is left.
///
/// # Errors
/// When its port is taken.
pub fn stand_in(netns: &Netns) -> Result<JoinHandle<()>> {
    let listener: TcpListener = netns.listen(Ipv4Addr::UNSPECIFIED, STAND_IN)?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    }))
}

async fn answer(mut stream: TcpStream) {
    let mut start = [0; 4096];
    let n = stream.peek(&mut start).await.unwrap_or_default();
    match &start[..n] {
        [] | [0x16, ..] => {}
        text if text.starts_with(b"PRI") => {
            let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(HERE)))) });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
        text => {
            let is_http = text.windows(8).any(|part| part == b"HTTP/1.1");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", HERE.len());
            let said = if is_http { head + HERE } else { HERE.to_owned() };
            let _ = stream.read(&mut start).await;
            let _ = stream.write_all(said.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    }
}

/// Access logging of the mesh that says where calls went: fields of a MeshConfig.
pub fn logging(file: &Path) -> Value {
    let format = serde_json::json!({
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "route": "%ROUTE_NAME%",
        "chain": "%FILTER_CHAIN_NAME%",
        "flags": "%RESPONSE_FLAGS%",
        "from": "%DOWNSTREAM_REMOTE_PORT%",
    });
    serde_json::json!({
        "accessLogFile": file,
        "accessLogEncoding": "JSON",
        "accessLogFormat": format.to_string(),
    })
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct Seen {
    /// There was a connection.
    pub connected: bool,
    /// Status of an HTTP answer.
    pub status: Option<u16>,
    /// The stand-in answered.
    pub answered: bool,
    /// Source port of the connection.
    pub from: u16,
    /// What Envoy logged of it.
    pub logged: Vec<Value>,
}

impl Seen {
    /// Whether a line of the log is about this call.
    pub fn is_of(&self, line: &Value) -> bool {
        let from = line.get("from");
        let number = from.and_then(Value::as_u64).or_else(|| from?.as_str()?.parse().ok());
        number == Some(u64::from(self.from))
    }

    /// What contradicts an expectation, a line for each fact. `full` is the whole result, of which the expectation may state a
    /// part only.
    pub fn contradicts(&self, expected: &Outcome, full: &Outcome) -> Vec<String> {
        let mut wrong = Vec::new();
        let field = |name: &str| -> Vec<&str> {
            let values = self.logged.iter().filter_map(|line| line.get(name)?.as_str());
            values.filter(|value| !value.is_empty()).collect()
        };
        let mut same = |name: &str, want: Option<&String>| {
            if let Some(want) = want.filter(|want| !want.is_empty())
                && !field(name).contains(&want.as_str())
            {
                wrong.push(format!("{name}: want {want}, got {self:?}"));
            }
        };
        let Some(error) = expected.error.as_deref().filter(|error| !error.is_empty()) else {
            same("cluster", full.cluster.as_ref());
            same("route", full.route.as_ref());
            same("chain", full.filter_chain.as_ref());
            return wrong;
        };
        let reached = field("cluster");
        let as_stated = match error {
            "no listener matched" => !self.connected,
            "tls required, sending 301" => self.status == Some(301),
            "no route matched" | "no virtual host matched" => self.status == Some(404) && reached.is_empty(),
            // A TCP proxy may choose its cluster, and log it, before the handshake fails: what counts is that nothing came through.
            "invalid TLS" | "invalid mTLS" => self.connected && !self.answered && self.status.is_none(),
            _ => {
                self.connected && reached.is_empty() && !self.answered && self.status.is_none_or(|status| status >= 400)
            }
        };
        if !as_stated {
            wrong.push(format!("{error}: got {self:?}"));
        }
        wrong
    }
}

/// Who calls.
pub struct Caller<'a> {
    /// Where Envoy is.
    pub netns: &'a Netns,
    /// Whether it is a gateway, which is simply called.
    pub gateway: bool,
    /// What a sidecar of the mesh would show.
    pub identity: &'a Identity,
}

impl Caller<'_> {
    /// Makes the `n`th call.
    pub async fn call(&self, n: usize, call: &Call) -> Seen {
        let mut call = call.clone();
        call.fill_defaults();
        let mut seen = Seen { from: self.source(n, &call), ..Seen::default() };
        let exchange = self.exchange(&call, &mut seen);
        // However it ended: what is seen counts.
        let _ = tokio::time::timeout(PATIENCE, exchange).await;
        seen
    }

    fn source(&self, n: usize, call: &Call) -> u16 {
        let first = match call.call_mode {
            _ if self.gateway => DIRECT,
            Mode::Inbound => INBOUND,
            Mode::Outbound => OUTBOUND,
        };
        first + u16::try_from(n).unwrap_or_default() % N_SOURCES
    }

    async fn exchange(&self, call: &Call, seen: &mut Seen) -> Result<()> {
        let stream = self.connect(seen.from, call).await?;
        seen.connected = true;
        if call.tls == Tls::Plaintext {
            return talk(stream, call, seen).await;
        }
        let own = (call.tls == Tls::Mtls).then(|| (self.identity.chain_pem(), self.identity.key_pem()));
        let mut config = anybody(own)?;
        if !call.alpn.is_empty() {
            config.alpn_protocols = vec![call.alpn.clone().into_bytes()];
        }
        // An address goes into no ClientHello.
        let name = if call.sni.is_empty() { "127.0.0.1".to_owned() } else { call.sni.clone() };
        let name = ServerName::try_from(name).context("no server name")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("no TLS")?;
        talk(stream, call, seen).await
    }

    async fn connect(&self, source: u16, call: &Call) -> Result<TcpStream> {
        let socket = self.netns.enter(TcpSocket::new_v4).context("cannot make a socket")?;
        socket.bind((Ipv4Addr::UNSPECIFIED, source).into()).context("the source port is taken")?;
        let address = if self.gateway { Ok(Ipv4Addr::LOCALHOST) } else { call.address.parse() };
        let to = SocketAddr::from((address.context("no IPv4 address")?, call.port));
        socket.connect(to).await.context("no connection")
    }
}

/// Speaks what the call says.
async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    call: &Call,
    seen: &mut Seen,
) -> Result<()> {
    if call.protocol == Protocol::Tcp {
        stream.write_all(b"hello\n").await?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        seen.answered = String::from_utf8_lossy(&answer).contains(HERE);
        return Ok(());
    }
    let second = call.protocol == Protocol::Http2;
    // HTTP/2 has no request without an authority.
    let host = if call.host_header.is_empty() { "nobody.example" } else { &call.host_header };
    let uri = if second { format!("http://{host}{}", call.path) } else { call.path.clone() };
    let mut request = Request::builder().uri(uri);
    if !second {
        request = request.header("host", host).header("connection", "close");
    }
    let request = request.body(Empty::<Bytes>::new()).context("no request")?;
    let response = if second {
        let opened = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.context("no HTTP/2")?;
        let _connection = Background(tokio::spawn(async move { drop(connection.await) }));
        read(sender.send_request(request).await.context("no answer")?).await
    } else {
        let opened = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.context("no HTTP")?;
        let _connection = Background(tokio::spawn(async move { drop(connection.await) }));
        read(sender.send_request(request).await.context("no answer")?).await
    };
    (seen.status, seen.answered) = response;
    Ok(())
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> (Option<u16>, bool) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    (Some(status), String::from_utf8_lossy(&body).contains(HERE))
}

/// A task that ends with its owner.
struct Background(JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}
