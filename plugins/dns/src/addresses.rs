//! Addresses that a service has of its own: those a cluster or a ServiceEntry gives it, or allocated ones.

use std::net::IpAddr;

use trysail_sdk::families::{Families, answers_with_allocated, is_ipv6};
use trysail_sdk::{Ctx, Failure};

use crate::table::Service;

/// Stands for "no address".
const NONE: &str = "0.0.0.0";

/// Where the addresses of a service are.
#[derive(Debug, PartialEq, Eq)]
pub enum Own {
    /// Here; none that the proxy can use is a possible answer.
    Some(Vec<String>),
    /// It has none: its endpoints' are its own, if it is headless.
    Endpoints,
}

/// What of services' addresses a proxy can reach.
pub struct Addresses {
    families: Families,
    /// The proxy's DNS answers with automatically allocated addresses.
    allocated: bool,
    /// The proxy is of the cluster whose addresses services have. Others know only the first.
    own_cluster: bool,
}

impl Addresses {
    /// Asks for what the given services make necessary.
    pub fn ask(ctx: &Ctx<'_>, services: &[Service]) -> Result<Self, Failure> {
        let has_allocated = services.iter().any(|service| !service.auto_allocated_addresses.is_empty());
        let allocated = has_allocated && answers_with_allocated(ctx)?;
        let families = Families::ask(ctx, allocated || services.iter().any(Service::is_kubernetes))?;
        let has_several = |service: &Service| service.is_kubernetes() && service.addresses.len() > 1;
        let own_cluster = !services.iter().any(has_several)
            || ctx.proxy("cluster-id").is_some_and(|cluster| cluster == ctx.setting("cluster-id"));
        Ok(Addresses { families, allocated, own_cluster })
    }

    /// The addresses of a service.
    pub fn of(&self, service: &Service) -> Own {
        if service.is_kubernetes() {
            let own = match self.own_cluster && !service.addresses.is_empty() {
                true => self.reachable(&service.addresses),
                false => Vec::new(),
            };
            return match own.is_empty() {
                // Where no family fits, the first address is filtered too, which also hides headless services from
                // proxies with IPv6 only, because their mark is an IPv4 address.
                true => usable(self.reachable(std::slice::from_ref(&service.address))),
                false => usable(own),
            };
        }
        if self.allocated && !service.auto_allocated_addresses.is_empty() {
            let mut sorted = service.auto_allocated_addresses.clone();
            sorted.sort_by_key(|address| is_ipv6(address));
            let own = self.reachable(&sorted);
            if !own.is_empty() {
                return usable(own);
            }
        }
        // Those of ServiceEntries are answered whatever their family: Envoy only compares them with what clients ask for.
        match service.addresses.is_empty() {
            true => usable(vec![service.address.clone()]),
            false => usable(service.addresses.clone()),
        }
    }

    fn reachable(&self, addresses: &[String]) -> Vec<String> {
        self.families.reachable(addresses).cloned().collect()
    }
}

/// Drops what DNS cannot answer with: networks.
fn usable(mut addresses: Vec<String>) -> Own {
    if addresses.iter().any(|address| address == NONE) {
        return Own::Endpoints;
    }
    addresses.retain(|address| is_address(address));
    Own::Some(addresses)
}

/// Is it an IP address?
pub fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    }

    fn service(registry: &str, addresses: &[&str], allocated: &[&str]) -> Service {
        Service {
            registry: registry.into(),
            address: (*addresses.first().unwrap_or(&NONE)).into(),
            addresses: texts(addresses),
            auto_allocated_addresses: texts(allocated),
            ..Default::default()
        }
    }

    fn proxy(families: Families) -> Addresses {
        Addresses { families, allocated: true, own_cluster: true }
    }

    #[test]
    fn cluster_addresses_follow_the_families() {
        let both = service("Kubernetes", &["fd00::1", "10.0.0.1"], &[]);
        let of = |families| proxy(families).of(&both);
        assert_eq!(of(Families::All), Own::Some(texts(&["fd00::1", "10.0.0.1"])));
        assert_eq!(of(Families::First), Own::Some(texts(&["fd00::1"])));
        assert_eq!(of(Families::Ipv4), Own::Some(texts(&["10.0.0.1"])));
        let elsewhere = Addresses { own_cluster: false, ..proxy(Families::Ipv4) };
        assert_eq!(elsewhere.of(&both), Own::Some(Vec::new()), "of another cluster only the first address is known");
    }

    #[test]
    fn headless_services_are_marked_by_an_ipv4_address() {
        let headless = service("Kubernetes", &[], &[]);
        assert_eq!(proxy(Families::Ipv4).of(&headless), Own::Endpoints);
        assert_eq!(proxy(Families::All).of(&headless), Own::Endpoints);
        assert_eq!(proxy(Families::Ipv6).of(&headless), Own::Some(Vec::new()));
    }

    #[test]
    fn addresses_of_service_entries() {
        let declared = service("External", &["192.0.2.0/24", "fd00::1"], &[]);
        assert_eq!(proxy(Families::Ipv4).of(&declared), Own::Some(texts(&["fd00::1"])));
        let allocated = service("External", &[], &["240.240.0.1", "2001:2::1"]);
        assert_eq!(proxy(Families::First).of(&allocated), Own::Some(texts(&["240.240.0.1"])));
        assert_eq!(proxy(Families::Ipv6).of(&allocated), Own::Some(texts(&["2001:2::1"])));
        let plain = Addresses { allocated: false, ..proxy(Families::Ipv4) };
        assert_eq!(plain.of(&allocated), Own::Endpoints);
    }
}
