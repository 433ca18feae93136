//! The two streaming methods of the discovery service, as a tonic service.
//!
//! Generated code would fix the response to a generated message, and tonic's own bodies keep each stream's largest one; see
//! [`codec`](crate::codec) and [`body`](crate::body) for why neither is wanted.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use trysail_model::Caller;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::body::ResponseBody;
use crate::codec::{IncomingMessage, RequestDecoder};
use crate::connection::{self, Origin};
use crate::request::Protocol;
use crate::server::Server;

/// The service's name in URLs and in reflection.
pub(crate) const SERVICE_NAME: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
const SOTW_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The aggregated discovery service of a server; add it to a tonic router.
#[derive(Clone, Debug)]
pub struct AdsService {
    server: Server,
    max_receive_bytes: usize,
}

impl AdsService {
    pub(crate) fn new(server: Server, max_receive_bytes: usize) -> Self {
        AdsService { server, max_receive_bytes }
    }
}

impl NamedService for AdsService {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for AdsService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let response = match request.uri().path() {
            SOTW_PATH => self.open::<DiscoveryRequest, B>(Protocol::Sotw, request),
            DELTA_PATH => self.open::<DeltaDiscoveryRequest, B>(Protocol::Delta, request),
            path => Status::unimplemented(format!("unknown method {path}")).into_http(),
        };
        Box::pin(std::future::ready(Ok(response)))
    }
}

impl AdsService {
    /// Opens a stream; what goes wrong with it from here on ends it with a status.
    fn open<X, B>(&self, protocol: Protocol, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        X: IncomingMessage,
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let decoder = RequestDecoder::<X>::default();
        let inbound = Streaming::new_request(decoder, body, None, Some(self.max_receive_bytes));
        let request = tonic::Request::from_parts(MetadataMap::new(), parts.extensions, ());
        let address = request.remote_addr().map(|address| address.to_string());
        // Put there by the authentication in front of the secure port; nobody else has one.
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let origin = Origin { address, caller };
        // One response waits here while the transport has another: more would only grow old.
        let (responses_tx, responses_rx) = mpsc::channel(1);
        tokio::spawn(connection::run(self.server.clone(), protocol, origin, inbound, responses_tx));
        let mut response = http::Response::new(tonic::body::Body::new(ResponseBody::new(responses_rx)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}
