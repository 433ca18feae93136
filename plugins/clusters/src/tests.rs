//! The stage over a small world.

use std::collections::BTreeMap;

use trysail_sdk::facts::{self, MtlsMode, ObjectRef, PeerPolicy, Port, Protocol, Resolution, Service};
use trysail_sdk::prost::Message as _;
use trysail_sdk::prost_types::{Duration, value::Kind};
use trysail_sdk::proto::any::unpack;
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use trysail_sdk::proto::envoy::config::core::v3::transport_socket;
use trysail_sdk::proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
use trysail_sdk::proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::connection_pool_settings::TcpSettings;
use trysail_sdk::proto::istio::networking::v1alpha3::load_balancer_settings::{LbPolicy as Asked, SimpleLb};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings, LocalityLoadBalancerSetting,
    OutlierDetection, Subset, TrafficPolicy,
};
use trysail_sdk::{Ctx, Entry, Host, Level, Message, Output, Part};

use crate::draft::HTTP_OPTIONS;
use crate::settings::go_duration;
use crate::translate;

const KEY: &str = "shop/api.shop.svc.cluster.local";

/// Answers from a table; own calls are run.
#[derive(Default)]
struct World {
    answers: BTreeMap<String, Vec<u8>>,
    flags: BTreeMap<&'static str, &'static str>,
}

impl World {
    fn new() -> Self {
        let mesh = MeshConfig {
            connect_timeout: Some(Duration { seconds: 10, nanos: 0 }),
            enable_auto_mtls: Some(true),
            ..Default::default()
        };
        let flags = [
            ("PILOT_ENABLE_METADATA_EXCHANGE", "true"),
            ("PILOT_ENABLE_TELEMETRY_LABEL", "true"),
            ("PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS", "true"),
            ("DISABLE_TRACK_REMAINING_CB_METRICS", "true"),
        ];
        let mut world = World { flags: flags.into(), ..Default::default() };
        world.set("mesh-config", &mesh);
        world.answers.insert("proxy type".into(), b"sidecar".to_vec());
        world.answers.insert("proxy ip-families".into(), b"ipv4".to_vec());
        world.answers.insert("proxy addresses".into(), b"10.0.0.1".to_vec());
        let permissive = PeerPolicy { mode: MtlsMode::MtlsPermissive.into(), ..Default::default() };
        world.set(&format!("derived security service-mtls-mode {KEY} 80"), &permissive);
        let accounts = facts::Strings { values: vec!["spiffe://td/ns/shop/sa/api".into()] };
        world.set(&format!("service-accounts {KEY}"), &accounts);
        world.service(|_| {})
    }

    fn set(&mut self, question: &str, answer: &impl trysail_sdk::prost::Message) {
        self.answers.insert(question.to_owned(), answer.encode_to_vec());
    }

    fn service(mut self, change: impl FnOnce(&mut Service)) -> Self {
        let port =
            |port, protocol: Protocol| Port { name: "p".into(), port, protocol: protocol.into(), ..Default::default() };
        let mut service = Service {
            host: "api.shop.svc.cluster.local".into(),
            namespace: "shop".into(),
            name: "api".into(),
            registry: "Kubernetes".into(),
            ports: vec![port(80, Protocol::Http), port(53, Protocol::Udp)],
            ..Default::default()
        };
        change(&mut service);
        self.set(&format!("service {KEY}"), &service);
        self
    }

    fn rule(mut self, spec: &DestinationRule) -> Self {
        let object = facts::Object {
            r#ref: Some(ObjectRef { kind: "DestinationRule".into(), namespace: "shop".into(), name: "api".into() }),
            api_version: "networking.istio.io/v1".into(),
            spec: spec.encode_to_vec(),
            ..Default::default()
        };
        self.set(&format!("derived scope destination-rule {KEY}"), &object);
        self
    }

    fn call(&self, function: &str, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        translate(&Ctx::new(self), function, &args).unwrap()
    }

    /// Clusters of a call, by name.
    fn clusters(&self, function: &str, args: &[&str]) -> BTreeMap<String, Cluster> {
        let items = self.call(function, args).entries.into_iter().filter_map(|entry| match entry {
            Entry::Item(item) => Some((item.key, Cluster::decode(bytes(&item.message).as_slice()).unwrap())),
            Entry::Include(_) => None,
        });
        items.collect()
    }

    fn cluster(&self) -> Cluster {
        self.clusters("service", &[KEY]).remove("outbound|80||api.shop.svc.cluster.local").unwrap()
    }
}

/// The bytes between holes.
fn bytes(message: &Message) -> Vec<u8> {
    let part = |part: &Part| if let Part::Bytes(bytes) = part { bytes.clone() } else { Vec::new() };
    message.parts.iter().flat_map(part).collect()
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        match query {
            "mesh-config" => return self.answers.get(query).cloned(),
            "features" => {
                let values =
                    args.iter().map(|name| self.flags.get(name).copied().unwrap_or_default().to_owned()).collect();
                return Some(facts::Strings { values }.encode_to_vec());
            }
            "derived" if args[0] == "clusters" => {
                let output = self.call(args[1], &args[2..]);
                let item = output.entries.first().map(|entry| match entry {
                    Entry::Item(item) => bytes(&item.message),
                    Entry::Include(_) => unreachable!("values are items"),
                });
                return item;
            }
            _ => {}
        }
        self.answers.get(&format!("{query} {}", args.join(" "))).cloned()
    }

    fn report(&self, _: Level, _: &str) {}
}

fn tls_of(socket: Option<&trysail_sdk::proto::envoy::config::core::v3::TransportSocket>) -> UpstreamTlsContext {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(transport_socket::ConfigType::TypedConfig(any)) => unpack(any).unwrap().unwrap(),
        None => panic!("no socket"),
    }
}

fn policy(change: impl FnOnce(&mut TrafficPolicy)) -> Option<TrafficPolicy> {
    let mut policy = TrafficPolicy::default();
    change(&mut policy);
    Some(policy)
}

fn balancer(simple: SimpleLb) -> Option<LoadBalancerSettings> {
    Some(LoadBalancerSettings { lb_policy: Some(Asked::Simple(simple.into())), ..Default::default() })
}

#[test]
fn a_plain_service_has_a_cluster_per_port_with_automatic_mutual_tls() {
    let clusters = World::new().clusters("service", &[KEY]);
    assert_eq!(clusters.len(), 1, "not for UDP");
    let cluster = World::new().cluster();
    assert_eq!(cluster.alt_stat_name, "outbound|80||api.shop.svc.cluster.local;");
    assert_eq!(cluster.eds_cluster_config.as_ref().unwrap().service_name, cluster.name);
    assert_eq!(cluster.lb_policy(), LbPolicy::LeastRequest);
    assert_eq!(cluster.filters[0].name, "istio.metadata_exchange");
    assert_eq!(cluster.circuit_breakers.as_ref().unwrap().thresholds[0].max_connections, Some(u32::MAX));
    let [istio, disabled] = &cluster.transport_socket_matches[..] else { panic!("two matches") };
    let tls = tls_of(istio.transport_socket.as_ref());
    assert_eq!(tls.sni, "outbound_.80_._.api.shop.svc.cluster.local");
    assert_eq!(tls.common_tls_context.unwrap().alpn_protocols, ["istio-peer-exchange", "istio"]);
    assert_eq!(disabled.name, "tlsMode-disabled");
}

#[test]
fn endpoints_are_waited_for() {
    let output = World::new().call("service", &[KEY]);
    let Some(Entry::Item(item)) = output.entries.first() else { panic!("an item") };
    assert_eq!(item.refs, ["eds:outbound|80||api.shop.svc.cluster.local"]);
}

#[test]
fn subsets_override_the_rule() {
    let rule = DestinationRule {
        traffic_policy: policy(|p| {
            p.connection_pool = Some(ConnectionPoolSettings {
                tcp: Some(TcpSettings { max_connections: 7, ..Default::default() }),
                ..Default::default()
            });
        }),
        subsets: vec![Subset {
            name: "v2".into(),
            traffic_policy: policy(|p| p.load_balancer = balancer(SimpleLb::RoundRobin)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let clusters = World::new().rule(&rule).clusters("service", &[KEY]);
    let subset = &clusters["outbound|80|v2|api.shop.svc.cluster.local"];
    assert_eq!(subset.lb_policy(), LbPolicy::RoundRobin);
    assert_eq!(subset.circuit_breakers.as_ref().unwrap().thresholds[0].max_connections, Some(7));
    let meta = &subset.metadata.as_ref().unwrap().filter_metadata["istio"].fields;
    let text = |key: &str| match &meta[key].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => panic!("no text"),
    };
    assert_eq!(text("config"), "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/api");
    assert_eq!(text("subset"), "v2");
    let whole = &clusters["outbound|80||api.shop.svc.cluster.local"];
    assert_eq!(whole.lb_policy(), LbPolicy::LeastRequest);
}

#[test]
fn passthrough_has_no_endpoints_and_no_choice_of_sockets() {
    let rule = DestinationRule {
        traffic_policy: policy(|p| p.load_balancer = balancer(SimpleLb::Passthrough)),
        ..Default::default()
    };
    let mut world = World::new().rule(&rule);
    let strict = PeerPolicy { mode: MtlsMode::MtlsStrict.into(), ..Default::default() };
    world.set(&format!("derived security service-mtls-mode {KEY} 80 passthrough"), &strict);
    let cluster = world.cluster();
    let kind: i32 = DiscoveryType::OriginalDst.into();
    assert!(matches!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(k)) if k == kind));
    assert!(cluster.eds_cluster_config.is_none() && cluster.transport_socket_matches.is_empty());
    assert!(cluster.transport_socket.is_some());
}

#[test]
fn tls_without_a_key_is_reported_and_left_out() {
    let tls = ClientTlsSettings { mode: TlSmode::Mutual.into(), ..Default::default() };
    let rule = DestinationRule { traffic_policy: policy(|p| p.tls = Some(tls)), ..Default::default() };
    let world = World::new().rule(&rule);
    let output = world.call("service", &[KEY]);
    assert_eq!(output.diagnostics[0].object, "DestinationRule shop/api");
    assert!(world.cluster().transport_socket.is_none());
}

#[test]
fn settings_of_localities_without_effect_are_reported() {
    let said = |settings: LoadBalancerSettings, ejects: bool, metadata: &[u8]| {
        let rule = DestinationRule {
            traffic_policy: policy(|p| {
                p.load_balancer = Some(settings);
                p.outlier_detection = ejects.then(OutlierDetection::default);
            }),
            ..Default::default()
        };
        let mut world = World::new().rule(&rule);
        world.answers.insert("proxy metadata:ENABLE_SELF_DISCOVERY".into(), metadata.to_vec());
        let found = world.call("service", &[KEY]).diagnostics;
        found.into_iter().map(|diagnostic| diagnostic.field).collect::<Vec<_>>()
    };
    let locality = LocalityLoadBalancerSetting { failover_priority: vec!["zone".into()], ..Default::default() };
    let failover = LoadBalancerSettings { locality_lb_setting: Some(locality), ..Default::default() };
    let zones = LoadBalancerSettings { zone_aware_lb_setting: Some(Default::default()), ..Default::default() };
    let path = |field: &str| vec![format!("spec.trafficPolicy.loadBalancer.{field}")];
    assert_eq!(said(failover.clone(), false, b""), path("localityLbSetting"));
    assert_eq!(said(zones.clone(), true, b""), path("zoneAwareLbSetting"));
    assert!(said(failover, true, b"").is_empty() && said(zones, false, b"true").is_empty());
}

#[test]
fn simple_tls_takes_names_from_requests() {
    let tls = ClientTlsSettings { mode: TlSmode::Simple.into(), ..Default::default() };
    let rule = DestinationRule { traffic_policy: policy(|p| p.tls = Some(tls)), ..Default::default() };
    let cluster = World::new().rule(&rule).cluster();
    let options: HttpProtocolOptions =
        unpack(&cluster.typed_extension_protocol_options[HTTP_OPTIONS]).unwrap().unwrap();
    let upstream = options.upstream_http_protocol_options.unwrap();
    assert!(upstream.auto_sni && upstream.auto_san_validation);
    let context = tls_of(cluster.transport_socket.as_ref()).common_tls_context.unwrap();
    assert!(context.alpn_protocols.is_empty());
}

#[test]
fn dns_clusters_have_a_hole_for_their_endpoints_or_do_not_exist() {
    let mut world = World::new().service(|service| service.resolution = Resolution::DnsLb.into());
    assert!(world.call("service", &[KEY]).entries.is_empty());
    let name = "outbound|80||api.shop.svc.cluster.local";
    world.answers.insert(format!("derived-exists endpoints assignment {name}"), Vec::new());
    let output = world.call("service", &[KEY]);
    let Some(Entry::Item(item)) = output.entries.first() else { panic!("an item") };
    let Some(Part::Call(call)) = item.message.parts.last() else { panic!("a hole") };
    assert_eq!((call.stage.as_str(), call.field, call.args[0].as_str()), ("endpoints", 33, name));
}

#[test]
fn only_named_ports_are_made() {
    assert!(World::new().call("service", &[KEY, "81"]).entries.is_empty());
    assert_eq!(World::new().call("service", &[KEY, "81,80"]).entries.len(), 1);
}

#[test]
fn inbound_clusters_keep_the_destination_and_name_their_services() {
    let clusters = World::new().clusters("inbound-port", &["8080", &format!("{KEY}|80|p")]);
    let cluster = &clusters["inbound|8080||"];
    assert_eq!(cluster.cleanup_interval.unwrap().seconds, 9_223_372_035);
    assert_eq!(cluster.upstream_bind_config.as_ref().unwrap().source_address.as_ref().unwrap().address, "127.0.0.6");
    assert!(cluster.metadata.as_ref().unwrap().filter_metadata["istio"].fields.contains_key("services"));
    assert!(cluster.filters.is_empty());
}

#[test]
fn without_redirection_there_is_nothing_inbound() {
    let mut world = World::new();
    world.answers.insert("proxy metadata:INTERCEPTION_MODE".into(), b"NONE".to_vec());
    assert!(world.call("inbound", &[]).entries.is_empty());
}

#[test]
fn fixed_clusters() {
    let outbound = World::new().clusters("fixed", &["outbound"]);
    assert!(outbound.keys().eq(["BlackHoleCluster", "PassthroughCluster"]));
    let inbound = World::new().clusters("fixed", &["inbound"]);
    assert!(inbound["InboundPassthroughCluster"].filters.is_empty());
    assert!(World::new().clusters("fixed", &["unpatched"]).is_empty());
}

#[test]
fn durations_of_go() {
    let of = |text| go_duration(text).map(|d| (d.seconds, d.nanos));
    assert_eq!(of("100ms"), Some((0, 100_000_000)));
    assert_eq!(of("1m0.5s"), Some((60, 500_000_000)));
    assert_eq!((of(""), of("5"), of("1x")), (Some((0, 0)), None, None));
}

#[test]
fn what_patches_can_touch_is_led_through_them() {
    let mut world = World::new();
    let summary = facts::ServiceSummary {
        host: "api.shop.svc.cluster.local".into(),
        namespace: "shop".into(),
        ..Default::default()
    };
    let services = facts::ServiceSummaries { services: vec![summary] };
    world.answers.insert("derived scope services all".into(), services.encode_to_vec());
    let included = |world: &World, args: &[&str]| match &world.call("outbound", args).entries[..] {
        [Entry::Include(call)] => call.clone(),
        other => panic!("{other:?}"),
    };
    let plain = included(&world, &[]);
    assert_eq!((plain.stage.as_str(), plain.hook.as_str()), ("clusters", "clusters"));
    let mut scope = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let scope = facts::PatchScope { hosts, ..Default::default() };
        let question = "derived envoyfilter scope clusters SIDECAR_OUTBOUND";
        world.answers.insert(question.into(), scope.encode_to_vec());
        included(&world, &["SIDECAR_OUTBOUND"])
    };
    assert_eq!(scope(&["other.example.com"]), plain, "what no patch is about stays as it is");
    let patched = scope(&["api.shop.svc.cluster.local"]);
    assert_eq!((patched.stage.as_str(), patched.function.as_str()), ("envoyfilter", "clusters"));
    assert_eq!(patched.args, ["SIDECAR_OUTBOUND", "", "clusters", "clusters", "service", plain.args[0].as_str()]);
}
