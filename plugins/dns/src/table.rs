//! The table: which hosts there are, and whose addresses a host has that several services share.

use std::collections::BTreeMap;

use trysail_sdk::facts::{EgressListeners, Resolution, Strings};
use trysail_sdk::prost::{self, Message as _};
use trysail_sdk::proto::istio::networking::nds::v1::name_table::NameInfo;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};

use crate::addresses::{Addresses, Own};

/// Registry of services that Kubernetes defines.
pub const KUBERNETES: &str = "Kubernetes";
/// Domain of services that span clusters. They have no short names, which are those of the service of one cluster.
const CLUSTER_SET: &str = ".clusterset.local";
/// Field of the table in `NameTable`.
const TABLE: u32 = 1;

/// `facts.v1.ServiceSummaries`, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    services: Vec<Service>,
}

/// A `facts.v1.ServiceSummary`, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Service {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub name: String,
    /// Encoded: of all ports only the first is read, and only where there is no address.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub ports: Vec<Vec<u8>>,
    #[prost(enumeration = "Resolution", tag = "6")]
    pub resolution: i32,
    #[prost(string, tag = "7")]
    pub address: String,
    #[prost(string, repeated, tag = "8")]
    pub addresses: Vec<String>,
    #[prost(string, tag = "12")]
    pub registry: String,
    #[prost(string, repeated, tag = "15")]
    pub auto_allocated_addresses: Vec<String>,
}

/// The number of a `facts.v1.Port`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Number {
    #[prost(uint32, tag = "2")]
    port: u32,
}

impl Service {
    /// Is it of Kubernetes, and not of a ServiceEntry?
    pub fn is_kubernetes(&self) -> bool {
        self.registry == KUBERNETES
    }

    /// The port whose endpoints are the addresses of a service that has none of its own.
    fn endpoints_port(&self) -> Result<Option<u32>, Failure> {
        let Some(first) = self.ports.first().filter(|_| self.resolution() == Resolution::Passthrough) else {
            return Ok(None);
        };
        let number = Number::decode(first.as_slice());
        number.map(|number| Some(number.port)).map_err(|e| Failure::BadAnswer(format!("port of {}: {e}", self.host)))
    }

    fn call(&self, function: &str, port: u32) -> CallRef {
        CallRef::new("dns", function, [self.key(), port.to_string()])
    }

    fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.host)
    }
}

/// The function `all`.
pub fn all(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let services = services(ctx)?;
    let addresses = Addresses::ask(ctx, &services)?;
    let mut hosts: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
    let mut headless: Vec<CallRef> = Vec::new();
    for service in &services {
        let same = hosts.entry(&service.host).or_default();
        same.push(service);
        if let Own::Endpoints = addresses.of(service)
            && let Some(port) = service.endpoints_port()?
        {
            let pods = service.call("pods", port);
            if !headless.contains(&pods) {
                headless.push(pods);
            }
        }
    }
    let mut message = Message::default();
    for (host, services) in hosts {
        message = match services.as_slice() {
            [service] => one(message, service, &addresses)?,
            _ => match merge(ctx, &services, &addresses)? {
                Some(info) => message.field(TABLE, entry(host, &info)),
                None => message,
            },
        };
    }
    // After the hosts, since of two entries for one name the later counts: a pod goes before a ServiceEntry of its name.
    for pods in headless {
        message = message.hole(TABLE, pods);
    }
    let mut output = Output::empty();
    output.item(Item::new("", message));
    Ok(output)
}

/// What each egress listener imports, one after the other. What VirtualServices route to beyond that has no names.
fn services(ctx: &Ctx<'_>) -> Result<Vec<Service>, Failure> {
    let listeners = ctx.derived::<EgressListeners>("scope", "egress", &[])?.unwrap_or_default().listeners;
    let mut services = Vec::new();
    for listener in listeners {
        let listed = ctx.derived::<Listed>("scope", "services", &[&listener.index.to_string()])?;
        services.append(&mut listed.unwrap_or_default().services);
    }
    Ok(services)
}

/// The entry of a host that one service has.
fn one(message: Message, service: &Service, addresses: &Addresses) -> Result<Message, Failure> {
    Ok(match addresses.of(service) {
        Own::Some(ips) if ips.is_empty() => message,
        Own::Some(ips) => message.field(TABLE, entry(&service.host, &info(service, ips))),
        Own::Endpoints => match service.endpoints_port()? {
            Some(port) => message.hole(TABLE, service.call("host", port)),
            None => message,
        },
    })
}

/// The entry of a host that several services have: the first of Kubernetes has it alone; ServiceEntries share it, and
/// an address that two of them have is there twice, as istiod has it.
fn merge(ctx: &Ctx<'_>, services: &[&Service], addresses: &Addresses) -> Result<Option<NameInfo>, Failure> {
    let mut held: Option<NameInfo> = None;
    for service in services {
        let ips = match (addresses.of(service), service.endpoints_port()?) {
            (Own::Some(ips), _) => ips,
            (Own::Endpoints, None) => continue,
            (Own::Endpoints, Some(port)) => {
                let args = [&*service.key(), &port.to_string()];
                ctx.derived::<Strings>("dns", "addresses", &args)?.unwrap_or_default().values
            }
        };
        match &mut held {
            _ if ips.is_empty() => {}
            Some(held) if held.registry == KUBERNETES => {}
            Some(held) if !service.is_kubernetes() => held.ips.extend(ips),
            _ => held = Some(info(service, ips)),
        }
    }
    Ok(held)
}

fn info(service: &Service, ips: Vec<String>) -> NameInfo {
    named(&service.registry, &service.host, &service.name, &service.namespace, ips)
}

/// What the table says of a service's host.
pub fn named(registry: &str, host: &str, name: &str, namespace: &str, ips: Vec<String>) -> NameInfo {
    let mut info = NameInfo { ips, registry: registry.to_owned(), ..Default::default() };
    if registry == KUBERNETES && !host.ends_with(CLUSTER_SET) {
        info.shortname = name.to_owned();
        info.namespace = namespace.to_owned();
    }
    info
}

/// An entry of the table: protobuf's maps are repeated pairs of key and value.
pub fn entry(host: &str, info: &NameInfo) -> Message {
    Message::default().text(1, host).field(2, Message::of(info))
}
