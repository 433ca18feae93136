//! Addresses of services as domains: clients also call services by address.
//!
//! Nothing warns or rejects.

use trysail_sdk::facts::ServiceSummary;
use trysail_sdk::families::{Families, answers_with_allocated};
use trysail_sdk::{Ctx, Failure};

use crate::virtual_hosts::{Candidate, Candidates};

/// What of a service's addresses this proxy can reach.
pub struct Addresses {
    families: Families,
    /// The proxy's DNS answers with automatically allocated addresses.
    allocated: bool,
    all_ports: bool,
}

impl Addresses {
    /// Asks for what the given services make necessary.
    pub fn ask(ctx: &Ctx<'_>, candidates: &Candidates<'_>, port: u32) -> Result<Self, Failure> {
        let has_vip = |c: &Candidate<'_>| c.service.registry == "Kubernetes" && known(&c.service.address);
        let has_allocated =
            |c: &Candidate<'_>| !known(&c.service.address) && !c.service.auto_allocated_addresses.is_empty();
        let allocated = candidates.iter().any(has_allocated) && answers_with_allocated(ctx)?;
        let families = Families::ask(ctx, allocated || candidates.iter().any(has_vip))?;
        Ok(Addresses { families, allocated, all_ports: port == 0 })
    }

    /// The addresses that become domains. Those of ServiceEntries are taken whatever their family, because Envoy only
    /// compares them with what clients ask for.
    pub fn of(&self, service: &ServiceSummary) -> Vec<String> {
        if service.registry == "Kubernetes" {
            let own =
                if service.addresses.is_empty() { std::slice::from_ref(&service.address) } else { &service.addresses };
            return self.reachable(own);
        }
        if !known(&service.address) {
            if !self.allocated {
                return Vec::new();
            }
            let mut reachable = self.reachable(&service.auto_allocated_addresses);
            if !self.all_ports {
                reachable.truncate(1);
            }
            return reachable;
        }
        vec![service.address.clone()]
    }

    fn reachable(&self, addresses: &[String]) -> Vec<String> {
        self.families.reachable(addresses).filter(|address| known(address)).cloned().collect()
    }
}

/// Is this an address, and not the mark for "none"?
fn known(address: &str) -> bool {
    !address.is_empty() && address != "0.0.0.0"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(families: Families, allocated: bool, all_ports: bool, service: &ServiceSummary) -> Vec<String> {
        Addresses { families, allocated, all_ports }.of(service)
    }

    fn texts(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|a| (*a).to_owned()).collect()
    }

    #[test]
    fn addresses_of_clusters_follow_the_proxys_families() {
        let service = ServiceSummary {
            registry: "Kubernetes".into(),
            address: "fd00::1".into(),
            addresses: texts(&["fd00::1", "10.0.0.1"]),
            ..Default::default()
        };
        assert_eq!(of(Families::All, false, false, &service), ["fd00::1", "10.0.0.1"]);
        assert_eq!(of(Families::First, false, false, &service), ["fd00::1"]);
        assert_eq!(of(Families::Ipv4, false, false, &service), ["10.0.0.1"]);
        let headless =
            ServiceSummary { registry: "Kubernetes".into(), address: "0.0.0.0".into(), ..Default::default() };
        assert!(of(Families::All, false, false, &headless).is_empty());
    }

    #[test]
    fn addresses_of_service_entries_are_taken_as_they_are() {
        let service =
            ServiceSummary { address: "fd00::1".into(), addresses: texts(&["fd00::1"]), ..Default::default() };
        assert_eq!(of(Families::Ipv4, false, false, &service), ["fd00::1"]);
    }

    #[test]
    fn allocated_addresses_need_a_proxy_that_answers_with_them() {
        let service = ServiceSummary {
            address: "0.0.0.0".into(),
            auto_allocated_addresses: texts(&["240.240.0.1", "2001:2::1"]),
            ..Default::default()
        };
        assert!(of(Families::All, false, false, &service).is_empty());
        assert_eq!(of(Families::All, true, false, &service), ["240.240.0.1"]);
        assert_eq!(of(Families::Ipv6, true, false, &service), ["2001:2::1"]);
        assert_eq!(of(Families::All, true, true, &service), ["240.240.0.1", "2001:2::1"]);
    }
}
