//! Authentication before a gRPC service: who is behind it sees proved callers only.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::{Authenticators, Credentials};
use crate::limits::Patience;
use crate::metrics::Metrics;
use crate::tls::Peer;

/// A service behind authentication. The caller stands in the request's extensions.
#[derive(Clone)]
pub struct Authenticated<S> {
    inner: S,
    authenticators: Arc<Authenticators>,
    patience: Arc<Patience>,
    /// What those hear who are not known; nothing about why.
    refusal: &'static str,
    metrics: Option<Metrics>,
}

impl<S> Authenticated<S> {
    /// Puts authenticators before a service. With `metrics` requests and failures are counted as the authority's.
    pub fn new(
        inner: S,
        authenticators: Arc<Authenticators>,
        patience: Arc<Patience>,
        refusal: &'static str,
        metrics: Option<Metrics>,
    ) -> Self {
        Authenticated { inner, authenticators, patience, refusal, metrics }
    }
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Authenticated<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The instance that said it is ready serves; the clone is for the next.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (authenticators, refusal, metrics) = (self.authenticators.clone(), self.refusal, self.metrics.clone());
        let patience = self.patience.clone();
        Box::pin(async move {
            let began = Instant::now();
            if let Some(metrics) = &metrics {
                metrics.requested();
            }
            let credentials = Credentials::new(request.extensions().get::<Peer>(), request.headers());
            let address = credentials.ip();
            if !patience.admits(address).await {
                return Ok(Status::resource_exhausted("too many failures; try again later").into_http());
            }
            match authenticators.authenticate(&credentials).await {
                Ok(caller) => {
                    request.extensions_mut().insert(Arc::new(caller));
                    inner.call(request).await
                }
                Err(failure) => {
                    patience.failed(address);
                    if let Some(metrics) = &metrics {
                        metrics.unauthenticated();
                        metrics.called(Code::Unauthenticated, began.elapsed());
                    }
                    let address = credentials.address.map(|address| address.to_string()).unwrap_or_default();
                    tracing::warn!(address, %failure, "authentication failed");
                    Ok(Status::unauthenticated(refusal).into_http())
                }
            }
        })
    }
}
