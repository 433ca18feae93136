//! Protocols by the names that users write.

use crate::trysail::facts::v1::Protocol;

/// A protocol by its name in any case, as Istio's documents name it; [`Protocol::Unsupported`], which the proxy then detects,
/// when it is not known.
pub fn parse(name: &str) -> Protocol {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "grpc" => Protocol::Grpc,
        "grpc-web" => Protocol::GrpcWeb,
        "http" => Protocol::Http,
        "http_proxy" => Protocol::HttpProxy,
        "http2" => Protocol::Http2,
        "https" => Protocol::Https,
        "tls" => Protocol::Tls,
        "mongo" => Protocol::Mongo,
        "redis" => Protocol::Redis,
        "mysql" => Protocol::Mysql,
        _ => Protocol::Unsupported,
    }
}
