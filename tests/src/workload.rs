//! What runs beside a sidecar: a server that says who it is and what it was asked, and a client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::kube::PodSpec;
use crate::netns::Netns;

/// Header that makes the server wait so many milliseconds.
pub const DELAY: &str = "x-delay-ms";

/// Header that makes the server answer with this status.
pub const STATUS: &str = "x-answer-status";

/// Serves until the task is aborted.
pub fn serve(listener: TcpListener, pod: &PodSpec) -> JoinHandle<()> {
    let app = pod.labels.get("app").unwrap_or(&pod.name).clone();
    let version = pod.labels.get("version").cloned().unwrap_or_default();
    let pod = pod.name.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let who = json!({"app": app, "version": version, "pod": pod});
            let service = service_fn(move |request| answer(who.clone(), request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(mut who: Value, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let number = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(delay) = number(DELAY) {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let status = number(STATUS).and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    let headers: BTreeMap<&str, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    who["path"] = json!(request.uri().path());
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
    let Call { to, host, method, path, headers } = call;
    // A socket stays in the namespace that it was made in; connecting need not block the namespace's thread.
    let socket = from.enter(TcpSocket::new_v4).context("cannot make a socket")?;
    let exchange = async {
        let stream = socket.connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("no HTTP")?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::<Bytes>::default()).context("bad request")?;
        let response = sender.send_request(request).await.with_context(|| format!("no answer from {to}"));
        let (parts, body) = response?.into_parts();
        let body = body.collect().await.context("the answer broke off")?.to_bytes();
        connection.abort();
        Ok::<_, anyhow::Error>((parts, body))
    };
    let (parts, body) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{host}: no answer in {PATIENCE:?}"))??;
    let body = String::from_utf8_lossy(&body).into_owned();
    let headers = parts.headers.iter();
    let headers =
        headers.map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let who = serde_json::from_str(&body).unwrap_or_default();
    Ok(Reply { status: parts.status.as_u16(), headers: headers.collect(), body, who })
}
