//! EndpointSlices.

use serde_json::Value;
use trysail_model::{Object, ObjectRef};
use trysail_proto::trysail::facts::v1::Health;

use crate::json;

/// Label: the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of slices that multi-cluster services imported; they are not this cluster's endpoints.
const IMPORTED: &str = "multicluster.kubernetes.io/service-name";

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Addresses.
    pub addresses: Vec<String>,
    /// Namespace and name of the pod that it is.
    pub pod: Option<(String, String)>,
    /// Conditions; unset ones mean true.
    pub ready: bool,
    /// Answers, though perhaps ending.
    pub serving: bool,
    /// Ending.
    pub terminating: bool,
}

impl Member {
    /// Its health. Draining is told only of services with persistent sessions, and nothing without the service.
    pub fn health(&self, service_known: bool, drains: bool) -> Health {
        match self {
            Member { ready: true, .. } => Health::Healthy,
            Member { serving: true, terminating: true, .. } if service_known && drains => Health::Draining,
            Member { terminating: true, .. } if service_known => Health::Terminating,
            _ => Health::Unhealthy,
        }
    }
}

/// A slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Its object.
    pub reference: ObjectRef,
    /// Name of the service, of the slice's namespace.
    pub service: String,
    /// IPv6 addresses.
    pub ipv6: bool,
    /// Names and numbers.
    pub ports: Vec<(String, u32)>,
    /// Members in order.
    pub members: Vec<Member>,
}

impl Slice {
    /// Reads a slice; `None` for those that istiod passes by: of no service, imported, or of host names.
    pub fn new(object: &Object) -> Option<Slice> {
        let service = object.labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?.clone();
        let body = &*object.body.read();
        let family = json::text(body, &["addressType"]);
        if object.labels.contains_key(IMPORTED) || family == "FQDN" {
            return None;
        }
        let port = |port: &Value| (json::text(port, &["name"]).to_owned(), json::number(port, &["port"]));
        let member = |endpoint: &Value| {
            let condition = |name| json::flag(endpoint, &["conditions", name]).unwrap_or(true);
            let is_pod = json::text(endpoint, &["targetRef", "kind"]) == "Pod";
            let target = |field| json::text(endpoint, &["targetRef", field]).to_owned();
            Member {
                addresses: json::texts(endpoint, &["addresses"]),
                pod: is_pod.then(|| (target("namespace"), target("name"))),
                ready: condition("ready"),
                serving: condition("serving"),
                terminating: condition("terminating"),
            }
        };
        Some(Slice {
            reference: object.reference.clone(),
            service,
            ipv6: family == "IPv6",
            ports: json::list(body, &["ports"]).iter().map(port).collect(),
            members: json::list(body, &["endpoints"]).iter().map(member).collect(),
        })
    }

    /// All addresses, with repetitions.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.members.iter().flat_map(|member| &member.addresses).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{object, slice};

    #[test]
    fn reads_members() {
        let slice = Slice::new(&slice("n", "a", "a-1", &[("10.0.0.1", "p"), ("10.0.0.2", "")])).unwrap();
        assert_eq!(slice.members[0].pod, Some(("n".into(), "p".into())));
        assert_eq!(slice.members[1].pod, None);
        assert_eq!(slice.addresses().collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
        assert!(Slice::new(&object("EndpointSlice", "n", "x", json!({}))).is_none());
    }

    #[test]
    fn health_of_members() {
        let member = |ready, serving, terminating| Member { addresses: vec![], pod: None, ready, serving, terminating };
        assert_eq!(member(true, false, true).health(true, true), Health::Healthy);
        assert_eq!(member(false, true, true).health(true, true), Health::Draining);
        assert_eq!(member(false, true, true).health(true, false), Health::Terminating);
        assert_eq!(member(false, true, true).health(false, true), Health::Unhealthy);
        assert_eq!(member(false, false, false).health(true, true), Health::Unhealthy);
    }
}
