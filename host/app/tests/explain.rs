//! Questions about the example mesh, with their answers: which objects made a field, and which only were looked at.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::path::Path;
use std::sync::Arc;

use trysail::explain::{Answer, explain, proxy_of};
use trysail::pipeline::{self, Mode, Options};
use trysail::render;
use trysail_facts::FactsSnapshot;

const ROUTE: &str = "virtual_hosts[name=frontend.default.svc.cluster.local:80].routes[0]";

/// Asks about a resource that the sidecar of `frontend` has.
fn ask(short: &str, name: &str, path: Option<&str>) -> Answer {
    ask_of("frontend-backend", "frontend-v1", short, name, path)
}

/// Asks about a resource that the proxy of a pod in an example has.
fn ask_of(example: &str, pod: &str, short: &str, name: &str, path: Option<&str>) -> Answer {
    ask_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(example), pod, short, name, path)
}

/// Asks about a resource that the proxy of a pod in a folder has.
fn ask_in(folder: &Path, pod: &str, short: &str, name: &str, path: Option<&str>) -> Answer {
    let folder = trysail_discovery::load_folder(folder, &trysail_discovery::Config::scenario()).unwrap();
    let pod = folder.objects.iter().find(|o| &*o.reference.kind == "Pod" && &*o.reference.name == pod).unwrap();
    let proxy = proxy_of(pod).unwrap();
    let options = Options { mode: Mode::Native, audit_share: 1.0, ..Options::default() };
    let snapshot = Arc::new(FactsSnapshot::new(render::inputs(&folder)));
    let engine = pipeline::engine(&options, pipeline::stages(&options).unwrap(), snapshot);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        thread.spawn_scoped(scope, || explain(&engine, &proxy, short, name, path).unwrap()).unwrap().join().unwrap()
    })
}

/// Which objects made a field, and its value.
fn made_by(short: &str, name: &str, path: &str) -> (Vec<String>, String) {
    let answer = ask(short, name, Some(path));
    let objects = answer.explanation.made_by.iter().map(ToString::to_string).collect();
    (objects, answer.value.unwrap())
}

#[test]
fn why_do_requests_to_frontend_go_to_this_cluster() {
    let (objects, value) = made_by("rds", "80", &format!("{ROUTE}.route.cluster"));
    assert_eq!(value, r#""outbound|80|v1|backend.default.svc.cluster.local""#);
    // Without either service the virtual host or the cluster's port would be the same: the rule alone says where to.
    assert_eq!(objects, ["VirtualService default/frontend-vs"]);
}

#[test]
fn where_do_the_endpoints_of_the_subset_come_from() {
    let (objects, value) = made_by("eds", "outbound|80|v1|backend.default.svc.cluster.local", "endpoints");
    assert!(value.contains("10.244.0.12") && !value.contains("10.244.0.13"), "only v1: {value}");
    let expected = [
        "DestinationRule default/backend-dr",
        "EndpointSlice default/backend-1",
        "Pod default/backend-v1",
        "Service default/backend",
    ];
    assert_eq!(objects, expected);
}

#[test]
fn whose_certificate_does_the_client_expect() {
    let sans = "transport_socket_matches[name=tlsMode-istio].transport_socket.typed_config.common_tls_context\
                .combined_validation_context.default_validation_context.match_subject_alt_names";
    let (objects, value) = made_by("cds", "outbound|80||backend.default.svc.cluster.local", sans);
    assert!(value.contains("spiffe://cluster.local/ns/default/sa/backend"), "{value}");
    // Both pods have the service account: either of them would be enough.
    assert_eq!(objects, ["EndpointSlice default/backend-1", "Service default/backend"]);
}

#[test]
fn who_set_the_timeout() {
    let answer = ask("rds", "80", Some(&format!("{ROUTE}.route.timeout")));
    assert_eq!(answer.value.as_deref(), Some(r#""0s""#));
    let read: Vec<String> = answer.explanation.objects.iter().map(ToString::to_string).collect();
    // Nobody: it is the default for any route there is, though all of these were looked at.
    assert_eq!(answer.explanation.made_by, []);
    assert!(read.contains(&"VirtualService default/frontend-vs".to_owned()), "{read:?}");
}

#[test]
fn what_would_change_the_cluster_if_it_were_there() {
    let answer = ask("cds", "outbound|80||frontend.default.svc.cluster.local", None);
    let asked_in_vain = |step: &trysail_stages::explain::Step| {
        let none = step.reads.iter().filter(|(_, objects)| objects.is_empty());
        none.map(|(query, _)| query.clone()).collect::<Vec<_>>()
    };
    let in_vain: Vec<String> = answer.explanation.steps.iter().flat_map(asked_in_vain).collect();
    let rules = "destination-rules-matching(frontend.default.svc.cluster.local)";
    assert!(in_vain.iter().any(|query| query == rules), "there is no such rule, and that is an answer: {in_vain:#?}");
}

#[test]
fn which_service_made_the_inbound_chain() {
    let match_of_chain = "filter_chains[name=0.0.0.0_8080].filter_chain_match";
    let answer = ask("lds", "virtualInbound", Some(match_of_chain));
    let names = |objects: &[trysail_model::ObjectRef]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(answer.value.is_some_and(|value| value.contains("8080")));
    // The pod is looked at, but without it the service would select the labels that the sidecar itself sends.
    assert_eq!(names(&answer.explanation.objects), ["Pod default/frontend-v1", "Service default/frontend"]);
    assert_eq!(names(&answer.explanation.made_by), ["Service default/frontend"]);
}

#[test]
fn why_does_the_gateway_redirect() {
    let path = "virtual_hosts[name=hello.example:80].require_tls";
    let answer = ask_of("gateway", "ingress", "rds", "http.8080", Some(path));
    let objects: Vec<String> = answer.explanation.made_by.iter().map(ToString::to_string).collect();
    assert_eq!(answer.value.unwrap(), r#""ALL""#);
    assert!(objects.contains(&"Gateway edge/public".to_owned()), "{objects:?}");
}

#[test]
fn which_envoy_filter_made_a_field() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend");
    for file in std::fs::read_dir(example).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let filter = |name: &str, value: &str| {
        let of_backend = "cluster: {service: backend.default.svc.cluster.local}";
        let patch = format!("patch: {{operation: MERGE, value: {value}}}");
        format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{configPatches: [{{applyTo: CLUSTER, match: {{{of_backend}}}, {patch}}}]}}\n"
        )
    };
    std::fs::write(folder.path().join("slow.yaml"), filter("slow", "{connect_timeout: 77s}")).unwrap();
    std::fs::write(folder.path().join("other.yaml"), filter("other", "{ignore_health_on_host_removal: true}")).unwrap();
    let name = "outbound|80||backend.default.svc.cluster.local";
    let answer = ask_in(folder.path(), "frontend-v1", "cds", name, Some("connect_timeout"));
    let names = |objects: &[trysail_model::ObjectRef]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(answer.value.as_deref(), Some(r#""77s""#));
    assert_eq!(names(&answer.explanation.made_by), ["EnvoyFilter default/slow", "Service default/backend"]);
    assert!(names(&answer.explanation.objects).contains(&"EnvoyFilter default/other".to_owned()));
    // What no patch is about was made without looking at any.
    let answer = ask_in(folder.path(), "frontend-v1", "cds", "outbound|80||frontend.default.svc.cluster.local", None);
    let read = names(&answer.explanation.objects);
    assert!(!read.iter().any(|object| object.starts_with("EnvoyFilter")), "{read:?}");
}
