//! What runs beside a sidecar: a server that says who it is and what it was asked, and a client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::kube::{PodSpec, Speaks};
use crate::netns::Netns;
use crate::tls::Outside;

/// Header that makes the server wait so many milliseconds.
pub const DELAY: &str = "x-delay-ms";

/// Header that makes the server answer with this status.
pub const STATUS: &str = "x-answer-status";

/// Header that makes the server answer with [`STATUS`] only the first so many times for a path.
pub const TIMES: &str = "x-answer-times";

/// Header that makes only the pod of this name answer with [`STATUS`].
pub const ONLY: &str = "x-answer-pod";

/// What runs in a pod, on all of its ports.
#[derive(Clone)]
pub struct Workload {
    who: Value,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
    outside: Option<Outside>,
}

impl Workload {
    /// The workload of a pod. `outside` gives it certificates if it is to speak TLS.
    pub fn new(pod: &PodSpec, outside: Option<Outside>) -> Workload {
        let app = pod.labels.get("app").unwrap_or(&pod.name);
        let version = pod.labels.get("version").map(String::as_str).unwrap_or_default();
        Workload { who: json!({"app": app, "version": version, "pod": pod.name}), seen: Arc::default(), outside }
    }

    /// Serves until the task is aborted.
    pub fn serve(&self, listener: TcpListener, speaks: Speaks) -> JoinHandle<()> {
        let workload = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let mut workload = workload.clone();
                workload.who["peer"] = json!(peer.ip().to_string());
                tokio::spawn(async move {
                    let _ = match speaks {
                        Speaks::Http => workload.http(stream).await,
                        Speaks::Tcp => workload.lines(stream).await,
                        Speaks::Tls => workload.tls(stream, false).await,
                        Speaks::MutualTls => workload.tls(stream, true).await,
                    };
                });
            }
        })
    }

    /// How many requests for a path have come so far.
    pub fn n_seen(&self, path: &str) -> u64 {
        self.seen.lock().map(|seen| seen.get(path).copied().unwrap_or_default()).unwrap_or_default()
    }

    fn see(&self, path: &str) -> u64 {
        let Ok(mut seen) = self.seen.lock() else { return 0 };
        let n = seen.entry(path.to_owned()).or_default();
        *n += 1;
        *n
    }

    async fn tls(mut self, stream: TcpStream, mutual: bool) -> Result<()> {
        let outside = self.outside.take().context("a workload that speaks TLS needs certificates")?;
        let stream = TlsAcceptor::from(outside.server(mutual)).accept(stream).await.context("no TLS")?;
        let session = stream.get_ref().1;
        self.who["sni"] = json!(session.server_name().unwrap_or_default());
        self.who["client_certificate"] = json!(session.peer_certificates().is_some());
        self.http(stream).await
    }

    async fn http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<()> {
        let service = service_fn(move |request| answer(self.clone(), request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connection.await.context("a connection broke off")
    }

    async fn lines(self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.context("cannot read a line")?;
        let mut who = self.who;
        who["line"] = json!(line.trim_end());
        stream.write_all(format!("{who}\n").as_bytes()).await.context("cannot write a line")?;
        stream.shutdown().await.context("cannot end a connection")
    }
}

async fn answer(workload: Workload, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let n_seen = workload.see(request.uri().path());
    let mut who = workload.who;
    let number = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(delay) = number(DELAY) {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let only = request.headers().get(ONLY).and_then(|pod| pod.to_str().ok());
    let is_meant = only.is_none_or(|pod| who.get("pod").and_then(Value::as_str) == Some(pod));
    let asked = number(STATUS).filter(|_| is_meant && number(TIMES).is_none_or(|times| n_seen <= times));
    let status = asked.and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    let headers: BTreeMap<&str, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    who["path"] = json!(request.uri().path());
    who["method"] = json!(request.method().as_str());
    who["query"] = json!(request.uri().query().unwrap_or_default());
    who["headers"] = json!(headers);
    let mut response = Response::new(Full::new(Bytes::from(who.to_string())));
    if let Ok(status) = status.try_into() {
        *response.status_mut() = status;
    }
    Ok(response)
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Text.
    pub body: String,
    /// What a workload said of itself; null if a proxy answered.
    pub who: Value,
}

impl Reply {
    /// A word of the workload about itself: `app`, `version`, `pod`, `path`.
    pub fn said(&self, key: &str) -> &str {
        self.who.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A header as the workload got it.
    pub fn sent(&self, header: &str) -> &str {
        self.who.pointer("/headers").and_then(|headers| headers.get(header)).and_then(Value::as_str).unwrap_or_default()
    }
}

/// One request on a new connection.
pub struct Call<'a> {
    /// Where the connection goes, seen from the caller's pod.
    pub to: SocketAddr,
    /// Host header.
    pub host: &'a str,
    /// Method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a call from a network namespace.
///
/// # Errors
/// When there is no answer.
pub async fn call(from: &Netns, call: Call<'_>) -> Result<Reply> {
    let host = call.host;
    let exchange = async { Session::open(from, call.to, None).await?.send(&call).await };
    let reply = tokio::time::timeout(PATIENCE, exchange).await;
    reply.with_context(|| format!("{host}: no answer in {PATIENCE:?}"))?
}

/// Makes a call within TLS that the workload itself speaks; `name` goes into the handshake.
///
/// # Errors
/// When there is no answer, or the server does not prove its name.
pub async fn call_tls(from: &Netns, call: Call<'_>, name: &str, outside: &Outside) -> Result<Reply> {
    call_tls_as(from, call, name, outside.client()).await
}

/// The same as a client of one's own.
///
/// # Errors
/// When there is no answer, or the server does not prove its name.
pub async fn call_tls_as(from: &Netns, call: Call<'_>, name: &str, client: Arc<ClientConfig>) -> Result<Reply> {
    let exchange = async { Session::open(from, call.to, Some((name, client))).await?.send(&call).await };
    let reply = tokio::time::timeout(PATIENCE, exchange).await;
    reply.with_context(|| format!("{}: no answer in {PATIENCE:?}", call.host))?
}

async fn connect(from: &Netns, to: SocketAddr) -> Result<TcpStream> {
    // A socket stays in the namespace that it was made in; connecting need not block the namespace's thread.
    let socket = from.enter(TcpSocket::new_v4).context("cannot make a socket")?;
    socket.connect(to).await.with_context(|| format!("cannot connect to {to}"))
}

/// A connection that takes one request after the other.
pub struct Session {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    certificate: Option<Vec<u8>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Opens a connection from a network namespace, with TLS to a server of this name if there is a client for that.
    ///
    /// # Errors
    /// When there is no connection, or the server does not prove its name.
    pub async fn open(from: &Netns, to: SocketAddr, tls: Option<(&str, Arc<ClientConfig>)>) -> Result<Session> {
        let stream = connect(from, to).await?;
        let Some((name, client)) = tls else { return Session::over(stream, None).await };
        let name = ServerName::try_from(name.to_owned()).context("no server name")?;
        let stream = TlsConnector::from(client).connect(name, stream).await.context("no TLS")?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let shown = shown.map(|certificate| certificate.to_vec());
        Session::over(stream, shown).await
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificate: Option<Vec<u8>>,
    ) -> Result<Session> {
        let opened = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.context("no HTTP")?;
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Session { sender, connection, certificate })
    }

    /// The certificate that the server showed.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_deref()
    }

    /// Makes a call; where it says it goes does not matter any more.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&mut self, call: &Call<'_>) -> Result<Reply> {
        self.sender.ready().await.context("the connection is closed")?;
        request(&mut self.sender, call).await
    }
}

async fn request(sender: &mut SendRequest<Full<Bytes>>, call: &Call<'_>) -> Result<Reply> {
    let Call { to, host, method, path, headers } = *call;
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).context("bad request")?;
    let response = sender.send_request(request).await.with_context(|| format!("no answer from {to}"));
    let (parts, body) = response?.into_parts();
    let body = body.collect().await.context("the answer broke off")?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    let headers = parts.headers.iter();
    let headers =
        headers.map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let who = serde_json::from_str(&body).unwrap_or_default();
    Ok(Reply { status: parts.status.as_u16(), headers: headers.collect(), body, who })
}

/// Sends bytes on a new connection and reads until the other side ends it.
///
/// # Errors
/// When there is no connection, or it does not end in time. One that is reset counts as ended.
pub async fn send(from: &Netns, to: SocketAddr, bytes: &[u8]) -> Result<String> {
    let exchange = async {
        let mut stream = connect(from, to).await?;
        let mut answer = Vec::new();
        // A proxy may end a connection at once; what it said before that is still to be read.
        if stream.write_all(bytes).await.is_ok() {
            let _ = stream.read_to_end(&mut answer).await;
        }
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("{to}: no end in {PATIENCE:?}"))?
}
