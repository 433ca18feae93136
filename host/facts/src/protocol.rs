//! The protocol of a port, from what its author declared.

pub use trysail_proto::protocol::parse;
use trysail_proto::trysail::facts::v1::Protocol;

/// Ports whose servers speak first, so that waiting for a client's first bytes would break them: SMTP, DNS, MySQL, MongoDB.
const SERVER_FIRST: [u32; 4] = [25, 53, 3306, 27017];

/// The protocol of a Kubernetes service port: UDP by transport, else `appProtocol`, else the port name's prefix.
pub fn of_service_port(port: u32, name: &str, transport: &str, app_protocol: Option<&str>) -> Protocol {
    if transport == "UDP" {
        return Protocol::Udp;
    }
    match app_protocol {
        Some("kubernetes.io/h2c") => return Protocol::Http2,
        Some("kubernetes.io/ws") => return Protocol::Http,
        Some("kubernetes.io/wss") => return Protocol::Https,
        _ => {}
    }
    let declared = app_protocol.unwrap_or(name);
    // Its hyphen is part of the name, unlike those that end a prefix.
    let grpc_web = "grpc-web";
    if declared.get(..grpc_web.len()).is_some_and(|head| head.eq_ignore_ascii_case(grpc_web)) {
        return Protocol::GrpcWeb;
    }
    match parse(declared.split('-').next().unwrap_or_default()) {
        Protocol::Unsupported if SERVER_FIRST.contains(&port) => Protocol::Tcp,
        protocol => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ports() {
        let of = of_service_port;
        assert_eq!(of(80, "http-web", "TCP", None), Protocol::Http);
        assert_eq!(of(80, "http", "UDP", None), Protocol::Udp);
        assert_eq!(of(80, "GRPC-Web-1", "TCP", None), Protocol::GrpcWeb);
        assert_eq!(of(80, "http", "TCP", Some("kubernetes.io/h2c")), Protocol::Http2);
        assert_eq!(of(80, "http", "TCP", Some("tls-x")), Protocol::Tls);
        assert_eq!(of(3306, "db", "TCP", None), Protocol::Tcp);
        assert_eq!(of(8080, "web", "TCP", None), Protocol::Unsupported);
    }
}
