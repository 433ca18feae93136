//! The stage over a small world.

use std::collections::BTreeMap;

use trysail_sdk::facts::{self, EgressListener, Endpoint, Health, Port, Resolution, Service, ServiceSummary};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::nds::v1::NameTable;
use trysail_sdk::{Ctx, Entry, Host, Level, Message, Part};

use crate::translate;

const HEADLESS: &str = "db.shop.svc.cluster.local";

/// Services, one list per egress listener, and endpoints; own calls are run.
#[derive(Default)]
struct World {
    listeners: Vec<Vec<ServiceSummary>>,
    endpoints: Vec<Endpoint>,
    publish_not_ready: bool,
    proxy: BTreeMap<&'static str, &'static str>,
    flags: Vec<&'static str>,
}

impl World {
    fn new(services: &[ServiceSummary]) -> Self {
        World { listeners: vec![services.to_vec()], ..Default::default() }
    }

    fn endpoint(mut self, address: &str, pod: &str, change: impl FnOnce(&mut Endpoint)) -> Self {
        let mut endpoint = Endpoint {
            addresses: vec![address.into()],
            host_name: pod.into(),
            sub_domain: if pod.is_empty() { String::new() } else { "db".into() },
            ..Default::default()
        };
        change(&mut endpoint);
        self.endpoints.push(endpoint);
        self
    }

    /// The entries of a message: the parts, with the items of calls in their places.
    fn bytes(&self, message: &Message) -> Vec<u8> {
        let mut whole = Message::default();
        for part in &message.parts {
            match part {
                Part::Bytes(bytes) => whole.parts.push(Part::Bytes(bytes.clone())),
                Part::Call(call) => {
                    let output = translate(&Ctx::new(self), &call.function, &call.args).unwrap();
                    for entry in output.entries {
                        let Entry::Item(item) = entry else { panic!("an inclusion") };
                        whole = whole.field(call.field, item.message);
                    }
                }
                _ => panic!("fields with holes are not needed here"),
            }
        }
        whole.parts.into_iter().flat_map(|part| if let Part::Bytes(bytes) = part { bytes } else { panic!() }).collect()
    }

    fn table(&self) -> NameTable {
        let output = translate(&Ctx::new(self), "all", &[]).unwrap();
        let [Entry::Item(item)] = output.entries.as_slice() else { panic!("not one item") };
        assert_eq!(item.key, "");
        NameTable::decode(self.bytes(&item.message).as_slice()).unwrap()
    }

    fn ips(&self) -> Vec<(String, String)> {
        self.table().table.into_iter().map(|(host, info)| (host, info.ips.join(" "))).collect()
    }
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        Some(match (query, args) {
            ("derived", ["scope", "egress"]) => {
                let listener = |index: usize| EgressListener { index: index.try_into().unwrap(), ..Default::default() };
                let listeners = (0..self.listeners.len()).map(listener).collect();
                facts::EgressListeners { listeners, ..Default::default() }.encode_to_vec()
            }
            ("derived", ["scope", "services", index]) => {
                let services = self.listeners[index.parse::<usize>().unwrap()].clone();
                facts::ServiceSummaries { services }.encode_to_vec()
            }
            ("derived", ["dns", function, args @ ..]) => {
                let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
                let output = translate(&Ctx::new(self), function, &args).unwrap();
                let Entry::Item(item) = output.entries.first()? else { panic!("an inclusion") };
                self.bytes(&item.message)
            }
            ("service", [key]) => {
                let listed =
                    self.listeners.iter().flatten().find(|s| format!("{}/{}", s.namespace, s.host) == **key)?;
                Service {
                    host: listed.host.clone(),
                    namespace: listed.namespace.clone(),
                    name: listed.name.clone(),
                    registry: listed.registry.clone(),
                    publish_not_ready_addresses: self.publish_not_ready,
                    ..Default::default()
                }
                .encode_to_vec()
            }
            ("endpoints", [_, "5432"]) => facts::Endpoints { endpoints: self.endpoints.clone() }.encode_to_vec(),
            ("features", names) => {
                let values = names.iter().map(|name| self.flags.contains(name).to_string()).collect();
                facts::Strings { values }.encode_to_vec()
            }
            ("proxy", [attribute]) => self.proxy.get(attribute)?.as_bytes().to_vec(),
            _ => return None,
        })
    }

    fn report(&self, _: Level, _: &str) {}
}

fn kubernetes(host: &str, addresses: &[&str]) -> ServiceSummary {
    let resolution = if addresses.is_empty() { Resolution::Passthrough } else { Resolution::ClientSideLb };
    ServiceSummary {
        host: host.into(),
        namespace: "shop".into(),
        name: host.split('.').next().unwrap().into(),
        ports: vec![Port { port: 5432, ..Default::default() }],
        resolution: resolution.into(),
        address: (*addresses.first().unwrap_or(&"0.0.0.0")).into(),
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        registry: "Kubernetes".into(),
        ..Default::default()
    }
}

fn entry(host: &str, addresses: &[&str]) -> ServiceSummary {
    ServiceSummary {
        name: host.into(),
        registry: "External".into(),
        resolution: Resolution::DnsLb.into(),
        ..kubernetes(host, addresses)
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(host, ips)| ((*host).to_owned(), (*ips).to_owned())).collect()
}

#[test]
fn hosts_with_addresses() {
    let world = World::new(&[
        kubernetes("web.shop.svc.cluster.local", &["10.96.0.1"]),
        kubernetes("web.shop.svc.clusterset.local", &["10.96.0.2"]),
        entry("*.wild.example", &["192.0.2.1", "192.0.2.0/28"]),
        entry("plain.example", &[]),
    ]);
    let table = world.table().table;
    assert_eq!(
        table.keys().collect::<Vec<_>>(),
        ["*.wild.example", "web.shop.svc.cluster.local", "web.shop.svc.clusterset.local"]
    );
    let short = |host: &str| (table[host].shortname.as_str(), table[host].namespace.as_str());
    assert_eq!(short("web.shop.svc.cluster.local"), ("web", "shop"));
    assert_eq!(short("web.shop.svc.clusterset.local"), ("", ""));
    assert_eq!((short("*.wild.example"), &*table["*.wild.example"].registry), (("", ""), "External"));
    assert_eq!(table["*.wild.example"].ips, ["192.0.2.1"]);
}

#[test]
fn services_of_one_host() {
    let (host, other) = ("web.shop.svc.cluster.local", "b.example");
    let both = World::new(&[
        entry(host, &["192.0.2.1"]),
        kubernetes(host, &["10.96.0.1"]),
        entry(host, &["192.0.2.3"]),
        entry(other, &["192.0.2.1"]),
        entry(other, &["192.0.2.2"]),
    ]);
    assert_eq!(both.ips(), pairs(&[(other, "192.0.2.1 192.0.2.2"), (host, "10.96.0.1")]));
    assert_eq!(both.table().table[host].shortname, "web");

    let mut twice = World::new(&[entry(other, &["192.0.2.1"])]);
    twice.listeners.push(twice.listeners[0].clone());
    assert_eq!(twice.ips(), pairs(&[(other, "192.0.2.1 192.0.2.1")]));

    let world = World::new(&[entry(HEADLESS, &["192.0.2.1"]), kubernetes(HEADLESS, &[])]);
    assert_eq!(world.ips(), pairs(&[(HEADLESS, "192.0.2.1")]), "without endpoints Kubernetes takes nothing");
    let world = world.endpoint("10.0.0.1", "", |_| {});
    assert_eq!(world.ips(), pairs(&[(HEADLESS, "10.0.0.1")]));
}

#[test]
fn headless_services_and_their_pods() {
    let pod = "db-0.db.shop.svc.cluster.local";
    let world = World::new(&[kubernetes(HEADLESS, &[]), entry(pod, &["192.0.2.1"])])
        .endpoint("10.0.0.1", "db-0", |_| {})
        .endpoint("10.0.0.2", "", |_| {})
        .endpoint("10.0.0.3", "", |e| e.health = Health::Unhealthy.into())
        .endpoint("db.example", "", |_| {});
    assert_eq!(world.ips(), pairs(&[(pod, "10.0.0.1"), (HEADLESS, "10.0.0.1 10.0.0.2")]));
    let info = &world.table().table[pod];
    assert_eq!((&*info.shortname, &*info.namespace, &*info.registry), ("db-0.db", "shop", "Kubernetes"));
    let all = World { publish_not_ready: true, ..world };
    assert_eq!(all.ips()[1].1, "10.0.0.1 10.0.0.2 10.0.0.3");
    assert!(World::new(&[kubernetes(HEADLESS, &[])]).ips().is_empty());
}

#[test]
fn endpoints_elsewhere() {
    let at = |network: &'static str, cluster: &'static str| {
        move |e: &mut Endpoint| (e.network, e.cluster_id) = (network.into(), cluster.into())
    };
    let mut world = World::new(&[kubernetes(HEADLESS, &[])])
        .endpoint("10.0.0.1", "db-0", at("n", "c"))
        .endpoint("10.1.0.1", "db-0", at("n", "d"))
        .endpoint("10.1.0.2", "db-1", at("", "d"))
        .endpoint("10.2.0.1", "db-2", at("m", "c"));
    world.proxy = [("network", "n"), ("cluster-id", "c")].into();
    let pods = [("db-0.db.shop.svc.cluster.local", "10.0.0.1"), ("db-1.db.shop.svc.cluster.local", "10.1.0.2")];
    assert_eq!(world.ips(), pairs(&[pods[0], pods[1], (HEADLESS, "10.0.0.1")]));
    world.flags = vec!["ENABLE_MULTICLUSTER_HEADLESS"];
    assert_eq!(world.ips(), pairs(&[pods[0], pods[1], (HEADLESS, "10.0.0.1 10.1.0.1 10.1.0.2")]));
}

#[test]
fn allocated_addresses_need_a_proxy_that_captures() {
    let host = "a.example";
    let allocated = ServiceSummary { auto_allocated_addresses: vec!["240.240.0.1".into()], ..entry(host, &[]) };
    let mut world = World::new(&[allocated]);
    assert!(world.ips().is_empty());
    world.flags = vec!["PILOT_ENABLE_IP_AUTOALLOCATE"];
    assert!(world.ips().is_empty());
    world.proxy = [("metadata:DNS_CAPTURE", "true")].into();
    assert_eq!(world.ips(), pairs(&[(host, "240.240.0.1")]));
    world.flags.clear();
    assert!(world.ips().is_empty());
    world.proxy.insert("metadata:DNS_AUTO_ALLOCATE", "true");
    assert_eq!(world.ips(), pairs(&[(host, "240.240.0.1")]));
}

#[test]
fn wrong_calls_are_told() {
    let world = World::default();
    let call = |function: &str, args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        translate(&Ctx::new(&world), function, &args).is_err()
    };
    assert!(call("all", &["x"]) && call("host", &["shop/a", "x"]) && call("pods", &[]) && call("nothing", &[]));
    assert!(!call("host", &["shop/a", "80"]));
}
