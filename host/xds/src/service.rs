//! The two streaming methods of the discovery service, as a tonic service.
//!
//! Generated code would fix the response to a generated message; see [`codec`](crate::codec) for why that is not wanted.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Response, Status, Streaming};
use trysail_model::Caller;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::codec::{AdsCodec, Frame, Incoming};
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
        let method = |protocol| Method { server: self.server.clone(), protocol };
        let limit = self.max_receive_bytes;
        match request.uri().path() {
            SOTW_PATH => {
                let method = method(Protocol::Sotw);
                let mut grpc = Grpc::new(AdsCodec::<DiscoveryRequest>::default()).max_decoding_message_size(limit);
                Box::pin(async move { Ok(grpc.streaming(method, request).await) })
            }
            DELTA_PATH => {
                let method = method(Protocol::Delta);
                let mut grpc = Grpc::new(AdsCodec::<DeltaDiscoveryRequest>::default()).max_decoding_message_size(limit);
                Box::pin(async move { Ok(grpc.streaming(method, request).await) })
            }
            path => {
                let status = Status::unimplemented(format!("unknown method {path}"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// One method.
struct Method {
    server: Server,
    protocol: Protocol,
}

impl StreamingService<Incoming> for Method {
    type Response = Frame;
    type ResponseStream = ReceiverStream<Result<Frame, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: tonic::Request<Streaming<Incoming>>) -> Self::Future {
        let address = request.remote_addr().map(|address| address.to_string());
        // Put there by the authentication in front of the secure port; nobody else has one.
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let origin = Origin { address, caller };
        // One response waits here while the transport has another: more would only grow old.
        let (responses_tx, responses_rx) = mpsc::channel(1);
        tokio::spawn(connection::run(self.server.clone(), self.protocol, origin, request.into_inner(), responses_tx));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(responses_rx))) })
    }
}
