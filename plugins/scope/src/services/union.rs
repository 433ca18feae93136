//! One service per host out of what several listeners import.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::BuildHasherDefault;

use trysail_sdk::facts::ServiceSummary;

use super::is_kubernetes;

/// Services in the order in which their hosts came, each host once.
#[derive(Default)]
pub struct Union {
    services: Vec<Member>,
    // Only looked up, never walked; the hasher has no random keys, so that a call stays pure.
    positions: HashMap<String, usize, BuildHasherDefault<DefaultHasher>>,
}

/// A service of the union.
struct Member {
    service: ServiceSummary,
    /// It has all its ports; a listener with a port imports one.
    complete: bool,
}

impl Union {
    /// Adds a service; `complete` when it has all its ports.
    ///
    /// Where the host is there already: a Kubernetes service takes the place of a ServiceEntry's and keeps its own
    /// against one; otherwise the ports of both are joined when they are parts of one service, and the later is left
    /// out when they are not.
    pub fn add(&mut self, service: ServiceSummary, complete: bool) {
        let position = match self.positions.entry(service.host.clone()) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                entry.insert(self.services.len());
                self.services.push(Member { service, complete });
                return;
            }
        };
        let member = &mut self.services[position];
        match (is_kubernetes(&member.service), is_kubernetes(&service)) {
            (true, false) => {}
            (false, true) => *member = Member { service, complete },
            _ if are_parts_of_one(&member.service, &service) => {
                for port in service.ports {
                    if member.service.ports.iter().all(|held| held.port != port.port) {
                        member.service.ports.push(port);
                    }
                }
                member.complete |= complete;
            }
            _ => {}
        }
    }

    /// The service of a host.
    pub fn get(&self, host: &str) -> Option<&ServiceSummary> {
        self.positions.get(host).map(|position| &self.services[*position].service)
    }

    /// Is the host settled: of Kubernetes and with all its ports, so that nothing that is added would change it?
    pub fn is_settled(&self, host: &str) -> bool {
        let member = self.positions.get(host).map(|position| &self.services[*position]);
        member.is_some_and(|member| member.complete && is_kubernetes(&member.service))
    }

    /// The services in order.
    pub fn into_services(self) -> Vec<ServiceSummary> {
        self.services.into_iter().map(|member| member.service).collect()
    }
}

/// Can their ports be joined? istiod also compares labels and selectors, which a summary does not have; two services
/// of one host, namespace and registry that differ in them only do so in error.
fn are_parts_of_one(a: &ServiceSummary, b: &ServiceSummary) -> bool {
    let sorted = |service: &ServiceSummary| {
        let mut export_to = service.export_to.clone();
        export_to.sort_unstable();
        export_to
    };
    a.namespace == b.namespace && a.resolution == b.resolution && sorted(a) == sorted(b)
}
