//! The HTTP pages: readiness, metrics, version, debug.
//!
//! ```text
//!  8080, 15014 ─▶ serve ─▶ health, /metrics, /version
//!                    └───▶ access (who asks, may they) ─┐
//!  15010, 15012 ─▶ streams ─▶ over_xds (who, may they) ─┴─▶ debug (which page) ─▶ connections, config_dump, mesh, own
//! ```

mod access;
mod config_dump;
mod connections;
mod debug;
mod mesh;
mod over_xds;
pub(crate) mod own;
pub(crate) mod page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::Encoder as _;
use tokio::net::TcpListener;

pub use access::{Access, Viewer};
pub use debug::Pages;

use crate::health::Health;
use crate::server::Running;
use debug::Query;
use page::Page;

/// Which of istiod's two ports it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 8080: readiness and debug.
    Http,
    /// 15014: metrics, version and debug.
    Monitoring,
}

/// Serves health, and pages once there is something to show, until it is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>, port: Port) {
    let answer = move |request: Request<Incoming>, peer| {
        let health = health.clone();
        async move {
            match (request.uri().path(), port) {
                ("/ready" | "/healthz/ready", Port::Http) => said(health.readiness()),
                ("/healthz/live", Port::Http) => said(health.liveness()),
                _ => match health.running() {
                    Some(running) => answer(running, &request, peer, port).await,
                    None => said((false, "starting\n".to_owned())),
                },
            }
        }
    };
    listen(listener, answer).await;
}

/// Answers requests until it is dropped.
pub(crate) async fn listen<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Page> + Send + 'static,
{
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, say: come back when there may be some again.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let page = answer(request, peer);
                async move { Ok::<_, Infallible>(page.await.into_response()) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP client went away");
            }
        });
    }
}

/// What health says; as with istiod a good answer has no body, unless there is something to be said.
fn said((is_good, text): (bool, String)) -> Page {
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if text.is_empty() { Page::empty(status) } else { Page::text(status, text) }
}

async fn answer(running: &Arc<Running>, request: &Request<Incoming>, peer: SocketAddr, port: Port) -> Page {
    match (request.uri().path(), port) {
        ("/metrics", Port::Monitoring) => {
            let running = running.clone();
            blocking(move || metrics(&running, peer)).await
        }
        ("/version", Port::Monitoring) => Page::text(StatusCode::OK, crate::version::line()),
        ("/debug" | "/debug/", _) if running.pages.access.is_on_http => running.pages.index(),
        (path, _) if running.pages.access.is_on_http => match path.strip_prefix("/debug/") {
            Some(name) => debug_page(running, request, name, peer).await,
            None => Page::not_found(),
        },
        _ => Page::not_found(),
    }
}

async fn debug_page(running: &Arc<Running>, request: &Request<Incoming>, name: &str, peer: SocketAddr) -> Page {
    let Some(page) = running.pages.find(name) else { return Page::not_found() };
    let access = &running.pages.access;
    let caller = access.caller(&running.authenticators, peer, request.headers()).await;
    let viewer = match caller.and_then(|caller| access.admit(running.pages.viewer(caller.as_ref()), name)) {
        Ok(viewer) => viewer,
        Err(status) => return Page::empty(status),
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let (pages, xds) = (running.pages.clone(), running.xds.clone());
    blocking(move || pages.make(page, &xds, &viewer, &query)).await
}

/// Pages look at everything there is, and some translate: not on the runtime's threads.
async fn blocking(make: impl FnOnce() -> Page + Send + 'static) -> Page {
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|panic| Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer: {panic}\n")))
}

fn metrics(running: &Running, peer: SocketAddr) -> Page {
    if running.pages.access.metrics_for_loopback_only && !peer.ip().to_canonical().is_loopback() {
        return Page::text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n");
    }
    let mut text = Vec::new();
    let encoder = prometheus::TextEncoder::new();
    match encoder.encode(&running.registry.gather(), &mut text) {
        Ok(()) => Page::of("text/plain; version=0.0.4; charset=utf-8; escaping=underscores", text),
        Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
