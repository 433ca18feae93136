//! The stage over a small world.

use std::collections::BTreeMap;

use trysail_sdk::facts::{self, Endpoint, Health, Locality, NetworkGateway, Port, Protocol, SelectorSummary, Service};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::core::v3::address;
use trysail_sdk::proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint};
use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    DestinationRule, LocalityLoadBalancerSetting, OutlierDetection, Subset, TrafficPolicy,
};
use trysail_sdk::proto::istio::security::v1beta1::PeerAuthentication;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::{MutualTls, mutual_tls::Mode};
use trysail_sdk::{Ctx, Entry, Host, Level, Output, Part};

use crate::translate;

const KEY: &str = "shop/api.example";
const NAME: &str = "outbound|80||api.example";

/// Answers from a table; own calls are run.
#[derive(Default)]
struct World {
    answers: BTreeMap<String, Vec<u8>>,
}

impl World {
    fn new(endpoints: Vec<Endpoint>) -> Self {
        let mut world = World::default();
        world.set("derived scope service-key api.example", &facts::Strings { values: vec![KEY.into()] });
        let port = Port { name: "http".into(), port: 80, protocol: Protocol::Http.into(), ..Default::default() };
        let service = Service {
            host: "api.example".into(),
            namespace: "shop".into(),
            name: "api".into(),
            ports: vec![port],
            ..Default::default()
        };
        world.set(&format!("service {KEY}"), &service);
        world.set(&format!("endpoints {KEY} 80"), &facts::Endpoints { endpoints });
        world
    }

    fn set(&mut self, question: &str, answer: &impl trysail_sdk::prost::Message) {
        self.answers.insert(question.to_owned(), answer.encode_to_vec());
    }

    fn text(mut self, question: &str, answer: &str) -> Self {
        self.answers.insert(question.to_owned(), answer.as_bytes().to_vec());
        self
    }

    fn rule(mut self, spec: &DestinationRule) -> Self {
        let object = facts::Object { spec: spec.encode_to_vec(), ..Default::default() };
        self.set(&format!("derived scope destination-rule {KEY}"), &object);
        self
    }

    fn call(&self, function: &str, arg: &str) -> Output {
        translate(&Ctx::new(self), function, &[arg.to_owned()]).unwrap()
    }

    fn assignment(&self, name: &str) -> ClusterLoadAssignment {
        ClusterLoadAssignment::decode(value(&self.call("cluster", name)).unwrap().as_slice()).unwrap()
    }
}

fn value(output: &Output) -> Option<Vec<u8>> {
    output.entries.first().map(|entry| match entry {
        Entry::Item(item) => match &item.message.parts[..] {
            [Part::Bytes(bytes)] => bytes.clone(),
            [] => Vec::new(),
            _ => panic!("holes"),
        },
        Entry::Include(_) => panic!("an inclusion"),
    })
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        match query {
            "mesh-config" => return self.answers.get(query).cloned(),
            "features" => {
                let on = |name: &&&str| name.ends_with("TELEMETRY_LABEL") || name.contains("AUTO_SEND");
                let values = args.iter().map(|name| if on(&name) { "true".into() } else { String::new() }).collect();
                return Some(facts::Strings { values }.encode_to_vec());
            }
            "derived" if args[0] == "endpoints" => {
                return value(&self.call(args[1], args.get(2).copied().unwrap_or_default()));
            }
            _ => {}
        }
        self.answers.get(format!("{query} {}", args.join(" ")).trim_end()).cloned()
    }

    fn report(&self, _: Level, _: &str) {}
}

fn endpoint(address: &str, change: impl FnOnce(&mut Endpoint)) -> Endpoint {
    let mut endpoint = Endpoint {
        addresses: vec![address.into()],
        port: 8080,
        tls_mode: "istio".into(),
        namespace: "shop".into(),
        workload_name: "api".into(),
        port_name: "http".into(),
        cluster_id: "c".into(),
        ..Default::default()
    };
    change(&mut endpoint);
    endpoint
}

fn at(region: &str) -> impl FnOnce(&mut Endpoint) {
    let locality = Locality { region: region.into(), ..Default::default() };
    move |endpoint| endpoint.locality = Some(locality)
}

fn address(endpoint: &LbEndpoint) -> String {
    let Some(lb_endpoint::HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("no address") };
    match host.address.as_ref().unwrap().address.as_ref().unwrap() {
        address::Address::SocketAddress(socket) => socket.address.clone(),
        address::Address::Pipe(pipe) => pipe.path.clone(),
        address::Address::EnvoyInternalAddress(internal) => internal.endpoint_id.clone(),
    }
}

fn addresses(assignment: &ClusterLoadAssignment) -> Vec<Vec<String>> {
    assignment.endpoints.iter().map(|group| group.lb_endpoints.iter().map(address).collect()).collect()
}

fn has_mutual_tls(endpoint: &LbEndpoint) -> bool {
    endpoint.metadata.as_ref().unwrap().filter_metadata.contains_key("envoy.transport_socket_match")
}

#[test]
fn unknown_names_get_an_empty_answer() {
    let world = World::new(vec![endpoint("10.0.0.1", |_| {})]);
    for name in ["outbound|80||other.example", "outbound|81||api.example", "nonsense"] {
        let assignment = world.assignment(name);
        assert_eq!((assignment.cluster_name.as_str(), assignment.endpoints.len()), (name, 0));
    }
}

#[test]
fn endpoints_are_grouped_by_locality() {
    let world = World::new(vec![
        endpoint("10.0.0.1", at("us")),
        endpoint("10.0.0.2", at("eu")),
        endpoint("10.0.0.3", |e| e.weight = 4),
        endpoint("api.example", |_| {}),
    ]);
    let assignment = world.assignment(NAME);
    assert_eq!(addresses(&assignment), [["10.0.0.3"], ["10.0.0.2"], ["10.0.0.1"]]);
    assert_eq!(assignment.endpoints[0].load_balancing_weight, Some(4));
    assert!(has_mutual_tls(&assignment.endpoints[0].lb_endpoints[0]));
}

#[test]
fn subsets_select_by_labels() {
    let labelled = |version: &str| {
        let version = version.to_owned();
        move |e: &mut Endpoint| _ = e.labels.insert("version".into(), version)
    };
    let subset =
        Subset { name: "v2".into(), labels: [("version".to_owned(), "v2".to_owned())].into(), ..Default::default() };
    let rule = DestinationRule { subsets: vec![subset], ..Default::default() };
    let endpoints = vec![endpoint("10.0.0.1", labelled("v1")), endpoint("10.0.0.2", labelled("v2"))];
    let world = World::new(endpoints).rule(&rule);
    assert_eq!(addresses(&world.assignment("outbound|80|v2|api.example")), [["10.0.0.2"]]);
}

#[test]
fn endpoints_that_are_not_ready_depend_on_panic() {
    let unready = |e: &mut Endpoint| e.health = Health::Unhealthy.into();
    let world = World::new(vec![endpoint("10.0.0.1", unready)]);
    assert_eq!(addresses(&world.assignment(NAME)), [["10.0.0.1"]]);
    let outlier = OutlierDetection { min_health_percent: 20, ..Default::default() };
    let policy = TrafficPolicy { outlier_detection: Some(outlier), ..Default::default() };
    let world = world.rule(&DestinationRule { traffic_policy: Some(policy), ..Default::default() });
    assert!(world.assignment(NAME).endpoints.is_empty());
}

#[test]
fn nearer_regions_come_first_where_hosts_can_fail() {
    let mut world =
        World::new(vec![endpoint("10.0.0.1", at("us")), endpoint("10.0.0.2", at("eu"))]).text("proxy locality", "us/a");
    let locality_lb_setting = Some(LocalityLoadBalancerSetting::default());
    world.set("mesh-config", &MeshConfig { locality_lb_setting, ..Default::default() });
    let priorities =
        |world: &World| -> Vec<u32> { world.assignment(NAME).endpoints.iter().map(|g| g.priority).collect() };
    assert_eq!(priorities(&world), [0, 0]);
    let policy = TrafficPolicy { outlier_detection: Some(OutlierDetection::default()), ..Default::default() };
    let world = world.rule(&DestinationRule { traffic_policy: Some(policy), ..Default::default() });
    assert_eq!(priorities(&world), [1, 0]);
}

#[test]
fn other_networks_are_reached_through_their_gateways() {
    let remote = |e: &mut Endpoint| e.network = "b".into();
    let plain = |e: &mut Endpoint| (e.network, e.tls_mode) = ("b".into(), String::new());
    let endpoints = vec![
        endpoint("10.0.0.1", |e| e.network = "a".into()),
        endpoint("10.1.0.1", remote),
        endpoint("10.1.0.2", remote),
        endpoint("10.1.0.3", plain),
    ];
    let mut world = World::new(endpoints).text("proxy network", "a").text("proxy ip-families", "ipv4");
    let gateway = |address: &str| NetworkGateway {
        network: "b".into(),
        address: address.into(),
        port: 15443,
        ..Default::default()
    };
    let gateways = vec![gateway("1.1.1.2"), gateway("1.1.1.1"), gateway("gateway.example")];
    world.set("network-gateways", &facts::NetworkGateways { gateways });
    let assignment = world.assignment(NAME);
    assert_eq!(addresses(&assignment), [["10.0.0.1", "1.1.1.1", "1.1.1.2"]]);
    let weights: Vec<_> = assignment.endpoints[0].lb_endpoints.iter().map(|e| e.load_balancing_weight).collect();
    assert_eq!(weights, [Some(2), Some(2), Some(2)], "weights are scaled by the number of gateways and shared");
}

#[test]
fn sidecars_without_mutual_tls_get_none() {
    let mut world = World::new(vec![endpoint("10.0.0.1", |_| {}), endpoint("10.0.0.2", |e| e.port = 9090)]);
    world.set("mesh-config", &MeshConfig { root_namespace: "root".into(), ..Default::default() });
    let policy = SelectorSummary { namespace: "shop".into(), name: "off".into(), ..Default::default() };
    world.set("selectors PeerAuthentication shop", &facts::SelectorSummaries { entries: vec![policy] });
    let mtls = MutualTls { mode: Mode::Disable.into() };
    let spec = PeerAuthentication { mtls: Some(mtls), ..Default::default() }.encode_to_vec();
    world.set("object PeerAuthentication shop/off", &facts::Object { spec, ..Default::default() });
    let assignment = world.assignment(NAME);
    assert!(assignment.endpoints[0].lb_endpoints.iter().all(|endpoint| !has_mutual_tls(endpoint)));
}

#[test]
fn a_policy_that_switches_nothing_off_is_no_answer() {
    let mut world = World::new(Vec::new());
    let policy = SelectorSummary { namespace: "shop".into(), name: "strict".into(), ..Default::default() };
    world.set("selectors PeerAuthentication shop", &facts::SelectorSummaries { entries: vec![policy] });
    let mtls = MutualTls { mode: Mode::Strict.into() };
    let spec = PeerAuthentication { mtls: Some(mtls), ..Default::default() }.encode_to_vec();
    world.set("object PeerAuthentication shop/strict", &facts::Object { spec, ..Default::default() });
    assert!(world.call("peer-modes", "shop").entries.is_empty());
}

#[test]
fn inline_endpoints_may_be_names_and_must_be_some() {
    let mut world = World::new(vec![endpoint("api.example", |_| {})]);
    let output = world.call("assignment", NAME);
    let assignment = ClusterLoadAssignment::decode(value(&output).unwrap().as_slice()).unwrap();
    assert_eq!(addresses(&assignment), [["api.example"]]);
    world.set(&format!("endpoints {KEY} 80"), &facts::Endpoints::default());
    assert!(world.call("assignment", NAME).entries.is_empty());
}
