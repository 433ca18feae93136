//! Which filter chains an inbound port has: by its protocol and by how strict mTLS is.

use trysail_sdk::facts::{MtlsMode, PeerPolicy, Protocol};
use trysail_sdk::proto::envoy::config::listener::v3::FilterChainMatch;

use crate::plan::{Class, class};

/// How the connections of a chain are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Passed on as they come.
    None,
    /// Terminated, clients show their mesh identity.
    Mtls,
    /// Terminated by settings of the Sidecar's listener.
    OwnTls,
}

/// One chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Served as HTTP, else as TCP.
    pub http: bool,
    /// Security.
    pub security: Security,
    /// `tls` or `raw_buffer`.
    pub transport: &'static str,
    /// Application protocols that it takes; empty for all.
    pub alpn: Alpn,
}

/// A list of application protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// All.
    Any,
    /// Plain HTTP as the inspector names it.
    Plaintext,
    /// What clients of the mesh send for HTTP.
    MeshHttp,
    /// What clients of the mesh send for TCP.
    MeshTcp,
    /// All that clients of the mesh send.
    Mesh,
}

impl Alpn {
    /// The names; those of plain HTTP depend on the control plane.
    pub fn names(self, plaintext: &[String]) -> Vec<String> {
        let names: &[&str] = match self {
            Alpn::Any => &[],
            Alpn::Plaintext => return plaintext.to_vec(),
            Alpn::MeshHttp => &["istio-http/1.0", "istio-http/1.1", "istio-h2"],
            Alpn::MeshTcp => &["istio-peer-exchange", "istio"],
            Alpn::Mesh => &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"],
        };
        names.iter().map(|n| (*n).to_owned()).collect()
    }
}

const fn row(http: bool, security: Security, transport: &'static str, alpn: Alpn) -> Row {
    Row { http, security, transport, alpn }
}

const TLS: &str = "tls";
const RAW: &str = "raw_buffer";

// Declared HTTP: nothing but HTTP comes, so only mesh clients and plain text are told apart.
const HTTP_STRICT: &[Row] = &[row(true, Security::Mtls, TLS, Alpn::Any)];
const HTTP_PERMISSIVE: &[Row] =
    &[row(true, Security::Mtls, TLS, Alpn::Mesh), row(true, Security::None, RAW, Alpn::Any)];
const HTTP_PLAIN: &[Row] = &[row(true, Security::None, RAW, Alpn::Any)];
// Detected: the client's sidecar says by ALPN what it found; plain text is looked at here.
const AUTO_STRICT: &[Row] =
    &[row(true, Security::Mtls, TLS, Alpn::MeshHttp), row(false, Security::Mtls, TLS, Alpn::Any)];
const AUTO_PERMISSIVE: &[Row] = &[
    row(true, Security::Mtls, TLS, Alpn::MeshHttp),
    row(true, Security::None, RAW, Alpn::Plaintext),
    row(false, Security::Mtls, TLS, Alpn::MeshTcp),
    row(false, Security::None, RAW, Alpn::Any),
    // TLS of the application itself.
    row(false, Security::None, TLS, Alpn::Any),
];
const AUTO_PLAIN: &[Row] =
    &[row(true, Security::None, RAW, Alpn::Plaintext), row(false, Security::None, RAW, Alpn::Any)];
const TCP_STRICT: &[Row] = &[row(false, Security::Mtls, TLS, Alpn::Any)];
const TCP_PERMISSIVE: &[Row] = &[
    row(false, Security::Mtls, TLS, Alpn::Mesh),
    row(false, Security::None, TLS, Alpn::Any),
    row(false, Security::None, RAW, Alpn::Any),
];
const TCP_PLAIN: &[Row] = &[row(false, Security::None, RAW, Alpn::Any)];
const OWN_HTTP: &[Row] = &[row(true, Security::OwnTls, TLS, Alpn::Any)];
const OWN_TCP: &[Row] = &[row(false, Security::OwnTls, TLS, Alpn::Any)];

/// The chains of a port.
pub fn rows(mode: MtlsMode, protocol: Protocol) -> &'static [Row] {
    match (class(protocol), mode) {
        (Class::Http, MtlsMode::MtlsStrict) => HTTP_STRICT,
        (Class::Http, MtlsMode::MtlsPermissive) => HTTP_PERMISSIVE,
        (Class::Http, _) => HTTP_PLAIN,
        (Class::Auto, MtlsMode::MtlsStrict) => AUTO_STRICT,
        (Class::Auto, MtlsMode::MtlsPermissive) => AUTO_PERMISSIVE,
        (Class::Auto, _) => AUTO_PLAIN,
        // UDP ports have chains, too: istiod does not look further than "neither HTTP nor detected".
        (Class::Tcp | Class::Unserved, MtlsMode::MtlsStrict) => TCP_STRICT,
        (Class::Tcp | Class::Unserved, MtlsMode::MtlsPermissive) => TCP_PERMISSIVE,
        (Class::Tcp | Class::Unserved, _) => TCP_PLAIN,
    }
}

/// The chain of a port with TLS settings of its own.
pub fn own_tls_rows(protocol: Protocol) -> &'static [Row] {
    if class(protocol) == Class::Http { OWN_HTTP } else { OWN_TCP }
}

/// What is inside of TLS.
pub fn after_tls(protocol: Protocol) -> Protocol {
    match protocol {
        Protocol::Https => Protocol::Http,
        Protocol::Tls => Protocol::Tcp,
        other => other,
    }
}

/// The mode of a port.
pub fn mode(policy: &PeerPolicy, port: u32) -> MtlsMode {
    let of_port = policy.ports.get(&port).and_then(|m| MtlsMode::try_from(*m).ok());
    of_port.filter(|m| *m != MtlsMode::MtlsUnknown).unwrap_or(policy.mode())
}

/// The match of a chain.
pub fn chain_match(row: &Row, port: u32, plaintext: &[String]) -> FilterChainMatch {
    FilterChainMatch {
        destination_port: (port > 0).then_some(port),
        application_protocols: row.alpn.names(plaintext),
        transport_protocol: row.transport.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix() {
        let count = |mode, protocol| rows(mode, protocol).len();
        assert_eq!(count(MtlsMode::MtlsPermissive, Protocol::Unsupported), 5);
        assert_eq!(count(MtlsMode::MtlsStrict, Protocol::Unsupported), 2);
        assert_eq!(count(MtlsMode::MtlsPermissive, Protocol::Grpc), 2);
        assert_eq!(count(MtlsMode::MtlsPermissive, Protocol::Mongo), 3);
        assert_eq!(rows(MtlsMode::MtlsUnknown, Protocol::Http), HTTP_PLAIN);
        assert_eq!(rows(MtlsMode::MtlsStrict, Protocol::Udp), TCP_STRICT);
    }

    #[test]
    fn modes_of_ports() {
        let mut policy = PeerPolicy { mode: MtlsMode::MtlsStrict as i32, ..Default::default() };
        policy.ports.insert(80, MtlsMode::MtlsDisable as i32);
        assert_eq!(mode(&policy, 80), MtlsMode::MtlsDisable);
        assert_eq!(mode(&policy, 81), MtlsMode::MtlsStrict);
    }
}
