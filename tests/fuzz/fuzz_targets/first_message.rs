//! The first message of a stream, in both protocols.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use trysail_xds::{Request, first_message};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = DiscoveryRequest::decode(bytes) {
        let _ = first_message(&Request::from(request));
    }
    if let Ok(request) = DeltaDiscoveryRequest::decode(bytes) {
        let _ = first_message(&Request::from(request));
    }
});
