//! Metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use tonic::Request;
use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_tests::agent::{self, with_token};

use crate::mesh::{get, mesh, recorded};
use crate::support::{self, CLUSTER};

/// A family of metrics: its type and the labels that its series have.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: Vec<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            let series = line.split([' ', '{']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = base.filter(|base| all.get(*base).is_some_and(|f| f.kind == "histogram")).unwrap_or(series);
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
            let family = all.get_mut(name).unwrap_or_else(|| panic!("{line} has no type"));
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once("=\"").unwrap();
                if key == "le" {
                    let bound = value.trim_end_matches('"').to_owned();
                    if !family.bounds.contains(&bound) {
                        family.bounds.push(bound);
                    }
                } else {
                    family.labels.insert(key.to_owned());
                }
            }
        }
    }
    all
}

/// Families that a mesh at work shows, with their types and labels. Those of istiod are compared with the recording too.
const FAMILIES: &[(&str, &str, &[&str])] = &[
    ("citadel_server_authentication_failure_count", "counter", &[]),
    ("citadel_server_csr_count", "counter", &[]),
    ("citadel_server_csr_sign_err_count", "counter", &["error"]),
    ("citadel_server_root_cert_expiry_seconds", "gauge", &[]),
    ("citadel_server_root_cert_expiry_timestamp", "gauge", &[]),
    ("citadel_server_success_cert_issuance_count", "counter", &[]),
    ("endpoint_no_pod", "gauge", &[]),
    ("grpc_server_handled_total", "counter", &["grpc_code", "grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_handling_seconds", "histogram", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_msg_received_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_msg_sent_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_started_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("istio_build", "gauge", &["component", "tag"]),
    ("istiod_managed_clusters", "gauge", &["cluster_type"]),
    ("istiod_uptime_seconds", "gauge", &[]),
    ("pilot_conflict_inbound_listener", "gauge", &[]),
    ("pilot_conflict_outbound_listener_tcp_over_current_tcp", "gauge", &[]),
    ("pilot_debounce_time", "histogram", &[]),
    ("pilot_destrule_subsets", "gauge", &[]),
    ("pilot_dns_cluster_without_endpoints", "gauge", &[]),
    ("pilot_duplicate_envoy_clusters", "gauge", &[]),
    ("pilot_eds_no_instances", "gauge", &[]),
    ("pilot_endpoint_not_ready", "gauge", &[]),
    ("pilot_inbound_updates", "counter", &["type"]),
    ("pilot_info", "gauge", &["version"]),
    ("pilot_k8s_cfg_events", "counter", &["event", "type"]),
    ("pilot_k8s_endpoints_pending_pod", "gauge", &[]),
    ("pilot_k8s_proxies_with_no_service_targets", "counter", &["reason"]),
    ("pilot_k8s_reg_events", "counter", &["event", "type"]),
    ("pilot_no_ip", "gauge", &[]),
    ("pilot_proxy_convergence_time", "histogram", &[]),
    ("pilot_proxy_queue_time", "histogram", &[]),
    ("pilot_push_triggers", "counter", &["type"]),
    ("pilot_pushcontext_init_seconds", "histogram", &[]),
    ("pilot_sds_certificate_errors_total", "counter", &[]),
    ("pilot_services", "gauge", &[]),
    ("pilot_total_rejected_configs", "counter", &["name", "type"]),
    ("pilot_total_xds_internal_errors", "counter", &[]),
    ("pilot_total_xds_rejects", "counter", &["type"]),
    ("pilot_virt_services", "gauge", &[]),
    ("pilot_vservice_dup_domain", "gauge", &[]),
    ("pilot_xds", "gauge", &["version"]),
    ("pilot_xds_cds_reject", "gauge", &["err", "node"]),
    ("pilot_xds_config_size_bytes", "histogram", &["type"]),
    ("pilot_xds_expired_nonce", "counter", &["type"]),
    ("pilot_xds_push_time", "histogram", &["type"]),
    ("pilot_xds_pushes", "counter", &["type"]),
    ("pilot_xds_recv_max", "gauge", &[]),
    ("pilot_xds_send_time", "histogram", &[]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("trysail_assembled_total", "counter", &[]),
    ("trysail_memo_hits_total", "counter", &[]),
    ("trysail_memo_walks_total", "counter", &[]),
    ("trysail_refused_objects", "gauge", &["kind"]),
    ("trysail_revision", "gauge", &[]),
    ("trysail_sent_bytes_total", "counter", &["type"]),
    ("trysail_stage_output_bytes_total", "counter", &["stage"]),
    ("trysail_stage_runs_total", "counter", &[]),
    ("trysail_stage_seconds", "histogram", &["stage"]),
];

/// Families of istiod that are not here: of Go's runtime, of webhooks that are not there yet, and some for which nothing is
/// counted yet.
const ABSENT: &[&str] = &[
    "galley_validation_",
    "go_",
    "process_network_",
    "process_virtual_memory_max_bytes",
    "sidecar_injection_",
    "webhook_patch_",
];

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_istiods_names_types_and_labels() {
    let mut mesh = mesh(&[]).await;
    // Something of everything: certificates, given and not; a NACK; a nonce that is long gone; a change.
    let token = mesh.issuer.token("shop", "reviews").unwrap();
    agent::certify(&mesh.channel, &token).await.unwrap();
    let csr = |csr: &str| IstioCertificateRequest { csr: csr.into(), validity_duration: 60, metadata: None };
    assert!(agent::create(&mesh.channel, with_token(csr("nonsense"), &token)).await.is_err());
    assert!(agent::create(&mesh.channel, Request::new(csr(""))).await.is_err());
    let stream = &mut mesh.proxies[0];
    let clusters = DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() };
    let error_detail =
        Some(trysail_proto::google::rpc::Status { code: 13, message: "no".into(), ..Default::default() });
    let stale = DiscoveryRequest { response_nonce: "long gone".into(), ..clusters.clone() };
    let nack = DiscoveryRequest { response_nonce: "long gone".into(), error_detail, ..clusters };
    stream.requests.send(stale).await.unwrap();
    stream.requests.send(nack).await.unwrap();
    let config = mesh.server.folder.path().join("config");
    let more = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "more"},
        "spec": {"clusterIP": "10.96.2.99", "ports": [{"name": "http", "port": 80}]}});
    let refused = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"namespace": "shop", "name": "also-refused"}, "spec": {"hosts": "a"}});
    support::write(&config, "more.yaml", &format!("{more}\n---\n{refused}"));
    while stream.next().await.unwrap().type_url != CLUSTER {}

    let missing = |families: &BTreeMap<String, Family>| {
        let absent = |(name, ..): &&(&str, &str, &[&str])| !families.contains_key(*name);
        FAMILIES.iter().filter(absent).map(|(name, ..)| *name).collect::<Vec<_>>()
    };
    let mut ours = BTreeMap::new();
    for _ in 0..100 {
        ours = families(&get(mesh.server.monitoring, "/metrics").2);
        if missing(&ours).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(missing(&ours), [""; 0]);
    for (name, kind, labels) in FAMILIES {
        let family = &ours[*name];
        let labels: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!((family.kind.as_str(), &family.labels), (*kind, &labels), "{name}");
    }
    for name in ours.keys() {
        let is_istiods =
            ["citadel_", "endpoint_", "grpc_", "istio", "pilot_", "process_"].iter().any(|p| name.starts_with(p));
        assert!(is_istiods || name.starts_with("trysail_"), "{name} is neither istiod's nor under our name");
    }
    let rejected = get(mesh.server.monitoring, "/metrics").2;
    assert!(rejected.contains("pilot_xds_cds_reject{err=\"Internal\",node=\"reviews-v1.shop\"} 1"), "{rejected}");
    assert!(rejected.contains("grpc_server_handled_total{grpc_code=\"OK\""), "{rejected}");
    assert!(rejected.contains("trysail_refused_objects{kind=\"VirtualService\"} 2"), "{rejected}");

    let Some(recorded) = recorded("metrics/metrics.json") else { return };
    for (name, istiods) in recorded.as_object().unwrap() {
        if ABSENT.iter().any(|prefix| name.starts_with(prefix)) {
            assert!(!ours.contains_key(name), "{name} is here: compare it");
            continue;
        }
        // The same family for another type.
        let Some(family) =
            ours.get(name).or_else(|| ours.get("pilot_xds_cds_reject").filter(|_| name.ends_with("_reject")))
        else {
            panic!("{name} is missing")
        };
        let labels: BTreeSet<String> = istiods["labels"].as_object().unwrap().keys().cloned().collect();
        assert_eq!((istiods["type"].as_str().unwrap(), &labels), (family.kind.as_str(), &family.labels), "{name}");
        if let Some(bounds) = istiods["buckets"].as_array() {
            let numbers = |bounds: Vec<&str>| {
                bounds.iter().map(|bound| bound.replace("+Inf", "inf").parse::<f64>().unwrap()).collect::<Vec<_>>()
            };
            let istiods = numbers(bounds.iter().map(|bound| bound.as_str().unwrap()).collect());
            assert_eq!(numbers(family.bounds.iter().map(String::as_str).collect()), istiods, "{name}");
        }
    }
}
