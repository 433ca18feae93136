//! The HTTP pages: readiness, metrics, version, debug.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use prometheus::Encoder as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::render;
use crate::server::Running;

/// Serves pages until it is dropped. `monitoring` says which of istiod's two ports it is: 15014 has metrics and version.
pub async fn serve(listener: TcpListener, running: Arc<Running>, monitoring: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, say: come back when there may be some again.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let running = running.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let running = running.clone();
                async move { Ok::<_, Infallible>(page(&running, request.uri(), monitoring).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP client went away");
            }
        });
    }
}

async fn page(running: &Arc<Running>, uri: &Uri, monitoring: bool) -> Response<Full<Bytes>> {
    match uri.path() {
        "/ready" if !monitoring => reply(StatusCode::OK, "text/plain", String::new()),
        "/metrics" if monitoring => {
            let mut text = Vec::new();
            let encoder = prometheus::TextEncoder::new();
            match encoder.encode(&running.registry.gather(), &mut text) {
                Ok(()) => reply(StatusCode::OK, encoder.format_type(), text),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            }
        }
        "/version" if monitoring => reply(StatusCode::OK, "text/plain", crate::version::line()),
        "/debug" | "/debug/" => reply(StatusCode::OK, "text/plain", PAGES.to_owned()),
        "/debug/status" => json_page(&status(running)),
        "/debug/syncz" => json_page(&syncz(running)),
        "/debug/diagnostics" => {
            let wanted = uri.query().and_then(|query| query.strip_prefix("proxyID=")).unwrap_or_default();
            match diagnostics(running, wanted).await {
                Some(lines) => reply(StatusCode::OK, "text/plain", lines),
                None => reply(StatusCode::NOT_FOUND, "text/plain", format!("no proxy {wanted:?} is connected\n")),
            }
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
    }
}

const PAGES: &str = "/debug/status\n/debug/syncz\n/debug/diagnostics?proxyID=POD.NAMESPACE\n";

/// What stages, plugins and the gate have to say about what a proxy is sent; `None` when it is not connected.
async fn diagnostics(running: &Arc<Running>, id: &str) -> Option<String> {
    let connected = running.xds.status().into_iter().find(|status| &*status.proxy.id == id)?;
    let running = running.clone();
    // Evaluation belongs on a thread of its own.
    let asked = tokio::task::spawn_blocking(move || {
        let scripted = render::Scripted::plain((*connected.proxy).clone());
        let views = render::views(&running.engine, &scripted, &connected.proxy);
        let said = render::diagnostics(&running.engine, &connected.proxy, &views);
        said.iter().map(|diagnostic| format!("{}\n", render::line(diagnostic))).collect()
    });
    Some(asked.await.unwrap_or_else(|panic| format!("the question could not be answered: {panic}\n")))
}

fn reply(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", content_type);
    response.body(Full::new(body.into())).expect("a status and a content type of ours are well-formed")
}

fn json_page(value: &Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// The state of the sources, plugins and the revision served.
fn status(running: &Running) -> Value {
    let report = running.report.lock();
    let folder = &report.folder;
    let rejections: Vec<Value> = folder
        .rejections
        .iter()
        .map(|rejection| {
            json!({
                "file": rejection.origin,
                "document": rejection.document,
                "object": rejection.object.as_ref().map(ToString::to_string),
                "field": rejection.field,
                "reason": rejection.reason,
                "lastGoodInForce": rejection.kept_last_good,
            })
        })
        .collect();
    let plugins: Vec<Value> = report
        .plugins
        .iter()
        .map(|plugin| json!({"name": plugin.name, "digest": plugin.digest, "points": plugin.points, "error": plugin.error}))
        .collect();
    json!({
        "revision": report.revision,
        "kinds": folder.kinds,
        "unreadKinds": folder.unread_kinds,
        "unknownKinds": folder.unknown_kinds,
        "rejections": rejections,
        "warnings": folder.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "plugins": plugins,
    })
}

/// The proxies connected and how far they are, after the shape of istiod's `syncz`.
fn syncz(running: &Running) -> Value {
    let of = |status: &trysail_xds::status::ProxyStatus| {
        let types: serde_json::Map<String, Value> = status
            .types
            .iter()
            .map(|(type_url, of_type)| {
                let state = json!({
                    "sent": of_type.sent_nonce,
                    "acked": of_type.acked_nonce,
                    "lastError": of_type.last_error.as_ref().map(ToString::to_string),
                });
                (type_url.to_string(), state)
            })
            .collect();
        json!({
            "cluster_id": status.proxy.metadata_text("CLUSTER_ID"),
            "proxy": &*status.proxy.id,
            "proxy_type": &*status.proxy.proxy_type,
            "istio_version": status.proxy.metadata_text("ISTIO_VERSION"),
            "connection": &*status.connection,
            "revision": status.revision,
            "resources": types,
        })
    };
    running.xds.status().iter().map(of).collect()
}
