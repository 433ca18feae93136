//! Names of clusters, which proxies send back to us as the names of endpoint resources.

/// The parts of a cluster's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterName<'a> {
    /// `outbound`, `inbound` or `inbound-vip`.
    pub direction: &'a str,
    /// Port of the service; of the workload when inbound.
    pub port: u32,
    /// Empty for the cluster of the whole service.
    pub subset: &'a str,
    /// Host of the service; empty when inbound.
    pub host: &'a str,
    /// Written in the form that is valid in SNI, as the clusters behind AUTO_PASSTHROUGH gateways are.
    pub sni: bool,
}

impl<'a> ClusterName<'a> {
    /// Takes a name apart; none for names of another form (`PassthroughCluster`).
    pub fn parse(name: &'a str) -> Option<Self> {
        let sni = name.starts_with("outbound_.");
        let mut parts = name.splitn(4, if sni { "_." } else { "|" });
        let (direction, port, subset, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(ClusterName { direction, port: port.parse().ok()?, subset, host, sni })
    }
}

/// Name of the cluster of a service's port and subset.
pub fn outbound(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The same in the form that is valid in SNI: the SNI of mutual TLS inside the mesh, by which gateways between networks
/// find the destination.
pub fn outbound_sni(port: u32, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// Name of the inbound cluster of a workload's port.
pub fn inbound(port: u32) -> String {
    format!("inbound|{port}||")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_apart() {
        let name = ClusterName::parse("outbound|80|v1|a.example").unwrap();
        assert_eq!(
            (name.direction, name.port, name.subset, name.host, name.sni),
            ("outbound", 80, "v1", "a.example", false)
        );
        let inbound_name = inbound(8080);
        let name = ClusterName::parse(&inbound_name).unwrap();
        assert_eq!((name.direction, name.port, name.host), ("inbound", 8080, ""));
        assert!(ClusterName::parse("PassthroughCluster").is_none() && ClusterName::parse("outbound|http||a").is_none());
    }

    #[test]
    fn takes_sni_names_apart() {
        for subset in ["", "v1"] {
            let text = outbound_sni(80, subset, "a.example");
            let name = ClusterName::parse(&text).unwrap();
            assert_eq!((name.port, name.subset, name.host, name.sni), (80, subset, "a.example", true));
        }
    }
}
