//! Spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! The collector is meant to be near: HTTP without TLS, as agents on the node take it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::Full;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Layer, Registry};

use crate::http;

/// How long a batch may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// `http://host:port`, with or without a path; without one it is OTLP's `/v1/traces`.
    pub endpoint: String,
    /// Share of the traces that are sent.
    pub share: f64,
}

/// A running export. It sends what it has when it is stopped.
pub struct Exporting(SdkTracerProvider);

impl Exporting {
    /// Sends what waits, and ends.
    pub fn stop(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

impl Export {
    /// The whole URL.
    ///
    /// # Errors
    /// When it is no plain HTTP URL.
    fn url(&self) -> Result<String> {
        let Some(rest) = self.endpoint.strip_prefix("http://") else {
            bail!("--otlpEndpoint {:?}: only http:// is known; run a collector near by", self.endpoint)
        };
        let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
        if authority.is_empty() {
            bail!("--otlpEndpoint {:?} names no host", self.endpoint);
        }
        Ok(format!("http://{authority}/{}", if path.is_empty() { "v1/traces" } else { path }))
    }

    /// Starts to export.
    ///
    /// # Errors
    /// When the address is none.
    pub fn start(&self, runtime: Handle) -> Result<(Box<dyn Layer<Registry> + Send + Sync>, Exporting)> {
        let url = self.url()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(TIMEOUT)
            .with_http_client(Client { runtime })
            .build()
            .context("--otlpEndpoint")?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::TraceIdRatioBased(self.share))
            .with_resource(Resource::builder().with_service_name("trysail").with_attribute(version).build())
            .build();
        // Spans of our own; the exporter must not export what it does itself.
        let ours = ["trysail", "trysail_xds", "trysail_facts", "trysail_ca"].map(|target| (target, LevelFilter::INFO));
        // Calls of stages are many, and what a trace of a push is read for.
        let ours = Targets::new().with_targets(ours).with_target("trysail_stages", LevelFilter::DEBUG);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("trysail")).with_filter(ours);
        Ok((Box::new(layer), Exporting(provider)))
    }
}

/// Sends requests on the runtime, from a thread that is none of its own.
#[derive(Clone, Debug)]
struct Client {
    runtime: Handle,
}

#[tonic::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.runtime.spawn(async move { tokio::time::timeout(TIMEOUT, send(request)).await });
        sent.await??
    }
}

async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let authority = request.uri().authority().ok_or("a request without a host")?.clone();
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let (mut parts, body) = request.into_parts();
    parts.headers.insert("host", authority.as_str().parse()?);
    // In the form that servers, not proxies, take.
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    http::exchange(address, Request::from_parts(parts, Full::new(body)), MAX_ANSWER).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(endpoint: &str) -> Result<String> {
        Export { endpoint: endpoint.into(), share: 1.0 }.url()
    }

    #[test]
    fn endpoints() {
        assert_eq!(url("http://collector:4318").unwrap(), "http://collector:4318/v1/traces");
        assert_eq!(url("http://collector:4318/").unwrap(), "http://collector:4318/v1/traces");
        assert_eq!(url("http://collector:4318/own/path").unwrap(), "http://collector:4318/own/path");
        for bad in ["collector:4318", "https://collector:4318", "http://"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_reach_a_collector() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tracing_subscriber::layer::SubscriberExt as _;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let received = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            // Until the span's name, which stands in the body as it is.
            while !all.windows(9).any(|part| part == b"translate") {
                let mut part = [0; 4096];
                let n = stream.read(&mut part).await.unwrap();
                assert!(n > 0, "{}", String::from_utf8_lossy(&all));
                all.extend_from_slice(&part[..n]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&all).into_owned()
        });
        let (layer, exporting) = Export { endpoint, share: 1.0 }.start(Handle::current()).unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!(target: "trysail_xds", "translate", proxy = "a.ns").in_scope(|| {});
            tracing::info_span!(target: "hyper", "foreign").in_scope(|| {});
        });
        tokio::task::spawn_blocking(move || exporting.stop()).await.unwrap();
        let received = received.await.unwrap();
        assert!(received.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{received}");
        assert!(received.contains("service.version") && received.contains("a.ns"), "{received}");
        assert!(!received.contains("foreign"), "{received}");
    }
}
