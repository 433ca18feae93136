//! Names that other parts of a proxy's configuration must spell the same way: clusters, hosts, statistics.

use trysail_sdk::facts::Service;

/// Name of an outbound cluster.
pub fn outbound_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The same in the form that is valid in SNI, of clusters behind AUTO_PASSTHROUGH.
pub fn sni_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// Name of an inbound cluster.
pub fn inbound_cluster(port: u32) -> String {
    format!("inbound|{port}||")
}

/// Cluster of a route's destination. Without a port it is the service's only one, else the listener's. An alias leads
/// to what it stands for. An empty host comes from Gateway API routes with invalid references.
pub fn destination_cluster(
    host: &str,
    subset: &str,
    port: Option<u32>,
    service: Option<&Service>,
    listener_port: u32,
) -> String {
    if host.is_empty() {
        return "UnknownService".into();
    }
    let real = service.map(|s| s.external_name.as_str()).filter(|name| !name.is_empty()).unwrap_or(host);
    let only = service.and_then(|s| if let [port] = s.ports.as_slice() { Some(port.port) } else { None });
    outbound_cluster(port.or(only).unwrap_or(listener_port), subset, real)
}

/// A statistics name from the mesh's pattern for outbound clusters.
pub fn stat_prefix(pattern: &str, service: &Service, host: &str, subset: &str, port: u32, port_name: &str) -> String {
    let kubernetes = service.registry == "Kubernetes";
    let short = if kubernetes { format!("{}.{}", service.name, service.namespace) } else { host.to_owned() };
    let name = if kubernetes { service.name.as_str() } else { host };
    // Which pattern is replaced first shows when a value holds another one: this is istiod's order.
    pattern
        .replace("%SERVICE%", &short)
        .replace("%SERVICE_NAME%", name)
        .replace("%SERVICE_FQDN%", host)
        .replace("%SUBSET_NAME%", subset)
        .replace("%TARGET_PORT%", "0")
        .replace("%SERVICE_PORT%", &port.to_string())
        .replace("%SERVICE_PORT_NAME%", port_name)
}

/// Shorter names of a host that mean the same to a proxy of this DNS domain, and its absolute form.
pub fn short_names(host: &str, domain: &str, absolute: bool) -> Vec<String> {
    let mut names = Vec::new();
    if absolute && host.parse::<std::net::IpAddr>().is_err() {
        names.push(format!("{host}."));
    }
    if let Some((namespace, suffix)) = domain.split_once(".svc.") {
        let service_domain = format!("svc.{suffix}");
        if let (true, Some((name, of_service))) =
            (host.ends_with(&service_domain), host.split_once(".svc.").and_then(|(left, _)| left.split_once('.')))
        {
            let qualified = format!("{name}.{of_service}");
            if of_service == namespace {
                names.extend([name.to_owned(), format!("{qualified}.svc"), qualified]);
            } else {
                names.extend([qualified.clone(), format!("{qualified}.svc")]);
            }
        }
        return names;
    }
    // Outside Kubernetes: what both names end in can be left out.
    let host_parts: Vec<&str> = host.split('.').collect();
    let domain_parts: Vec<&str> = domain.split('.').collect();
    let shared = host_parts.iter().rev().zip(domain_parts.iter().rev()).take_while(|(a, b)| a == b).count();
    if shared == 0 || domain.is_empty() {
        return names;
    }
    let unique = host_parts[..host_parts.len() - shared].join(".");
    let two = host_parts.len() - shared == 2;
    names.push(unique.clone());
    if two {
        names.push(format!("{unique}.{}", host_parts[host_parts.len() - shared]));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::facts::Port;

    #[test]
    fn clusters_of_destinations() {
        let service = Service { ports: vec![Port { port: 8080, ..Default::default() }], ..Default::default() };
        assert_eq!(destination_cluster("a.b", "v1", None, Some(&service), 80), "outbound|8080|v1|a.b");
        assert_eq!(destination_cluster("a.b", "", Some(9), Some(&service), 80), "outbound|9||a.b");
        assert_eq!(destination_cluster("a.b", "", None, None, 80), "outbound|80||a.b");
        assert_eq!(destination_cluster("", "", None, None, 80), "UnknownService");
    }

    #[test]
    fn short_names_by_domain() {
        let host = "a.shop.svc.cluster.local";
        assert_eq!(
            short_names(host, "shop.svc.cluster.local", true),
            [&format!("{host}."), "a", "a.shop.svc", "a.shop"]
        );
        assert_eq!(short_names(host, "other.svc.cluster.local", false), ["a.shop", "a.shop.svc"]);
        assert!(short_names("a.example", "shop.svc.cluster.local", false).is_empty());
    }
}
