//! Plugins by documents over the built-in stages, in the sandbox: what they change, may not change, and what is said of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use trysail::pipeline::{self, Loaded, Mode, Options};
use trysail::render::{self, Scripted};
use trysail_facts::FactsSnapshot;
use trysail_facts::inputs::Inputs;
use trysail_model::{Object, ObjectRef, Proxy};
use trysail_plugins::catalogue::{Catalogue, PluginStatus};
use trysail_stages::Engine;

static LOADED: LazyLock<(Options, Loaded)> = LazyLock::new(|| {
    let options = Options { mode: Mode::Sandboxed, audit_share: 1.0, ..Options::default() };
    let loaded = pipeline::load(&options).unwrap();
    (options, loaded)
});

/// The mesh of the example, with plugins.
struct Mesh {
    engine: Arc<Engine>,
    catalogue: Catalogue,
    inputs: Inputs,
}

fn plugin(namespace: &str, name: &str, spec: Value) -> Arc<Object> {
    Arc::new(Object {
        reference: ObjectRef::new("Plugin", namespace, name),
        api_version: "trysail.io/v1alpha1".into(),
        creation_nanos: 0,
        labels: Default::default(),
        annotations: Default::default(),
        body: json!({ "spec": spec }).into(),
        origin: "test".into(),
    })
}

/// A document of the mesh: the built-in plugin `patch`, and more of its spec.
fn patch(name: &str, patches: Value, more: Value) -> Arc<Object> {
    in_namespace("istio-system", name, patches, more)
}

fn in_namespace(namespace: &str, name: &str, patches: Value, more: Value) -> Arc<Object> {
    let mut spec = json!({"component": {"builtin": "patch"}, "configuration": {"patches": patches}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plugin(namespace, name, spec)
}

fn mesh(plugins: &[Arc<Object>]) -> Mesh {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend");
    let folder = trysail_discovery::load_folder(&example, &trysail_discovery::Config::scenario()).unwrap();
    let inputs = render::inputs(&folder);
    let (options, loaded) = &*LOADED;
    let engine = pipeline::engine(options, loaded.stages.clone(), Arc::new(FactsSnapshot::new(inputs.clone())));
    let mut catalogue = pipeline::catalogue(loaded, options, "istio-system").unwrap();
    catalogue.apply(plugins.iter().map(|object| (&object.reference, Some(object))));
    catalogue.refresh(&engine);
    Mesh { engine, catalogue, inputs }
}

impl Mesh {
    fn put(&mut self, object: &Arc<Object>) {
        self.catalogue.apply([(&object.reference, Some(object))]);
        self.catalogue.refresh(&self.engine);
    }

    fn proxy(&self) -> Proxy {
        let pod = self
            .inputs
            .objects
            .iter()
            .find(|o| &*o.reference.kind == "Pod" && o.reference.name.starts_with("frontend"));
        trysail::explain::proxy_of(pod.unwrap()).unwrap()
    }

    fn views(&self) -> render::Views {
        let proxy = self.proxy();
        render::views(&self.engine, &Scripted::plain(proxy.clone()), &proxy)
    }

    fn resources(&self, short: &str, type_url: &str) -> Vec<Value> {
        let views = self.views();
        let (_, view) = views.views.iter().find(|(kind, _)| *kind == short).unwrap();
        view.resources.iter().map(|r| trysail_codec::json::to_json(type_url, &r.body.to_bytes()).unwrap()).collect()
    }

    fn clusters(&self) -> Vec<Value> {
        self.resources("cds", "envoy.config.cluster.v3.Cluster")
    }

    fn listeners(&self) -> Vec<Value> {
        self.resources("lds", "envoy.config.listener.v3.Listener")
    }

    fn backend(&self) -> Value {
        let is = |cluster: &Value| cluster["name"] == "outbound|80||backend.default.svc.cluster.local";
        self.clusters().into_iter().find(is).unwrap()
    }

    fn said(&self) -> Vec<String> {
        let proxy = self.proxy();
        render::diagnostics(&self.engine, &proxy, &self.views()).iter().map(render::line).collect()
    }

    fn status(&self) -> PluginStatus {
        let [status] = &self.catalogue.status()[..] else { panic!("one plugin") };
        status.clone()
    }
}

/// Calls nest, each on its guest's stack.
fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(test).unwrap().join().unwrap();
}

fn timeout(seconds: &str) -> Value {
    json!([{"hook": "clusters", "service": "*/backend.default.svc.cluster.local", "merge": {"value": {"connect_timeout": seconds}}}])
}

#[test]
fn a_document_changes_what_it_selects_and_nothing_else() {
    on_a_big_stack(|| {
        let plain = mesh(&[]);
        let patched = mesh(&[patch("slow", timeout("25s"), json!({}))]);
        assert_eq!(patched.status().error, None);
        assert_eq!(patched.backend()["connect_timeout"], "25s");
        let others = |mesh: &Mesh| -> Vec<Value> {
            mesh.clusters().into_iter().filter(|c| !c["name"].as_str().unwrap().contains("backend")).collect()
        };
        assert_eq!(others(&plain), others(&patched));
        assert_eq!(plain.listeners(), patched.listeners());
        let effects = patched.engine.plugin_effects();
        let of = &effects["istio-system/slow"];
        assert_eq!(of.changed, 1, "{of:?}");
        let (_, changes) = &of.examples[0];
        assert!(changes.iter().all(|change| change.path == "connect_timeout"), "{changes:?}");
        assert_eq!(changes[0].after.as_deref(), Some(r#""25s""#));
    });
}

#[test]
fn a_shadow_is_watched_and_not_sent() {
    on_a_big_stack(|| {
        let mut mesh = mesh(&[patch("slow", timeout("25s"), json!({"mode": "shadow"}))]);
        assert_ne!(mesh.backend()["connect_timeout"], "25s");
        assert_eq!(mesh.engine.plugin_effects()["istio-system/slow"].changed, 1);
        mesh.put(&patch("slow", timeout("25s"), json!({"mode": "enforce"})));
        assert_eq!(mesh.backend()["connect_timeout"], "25s", "the same plugin, now in force");
    });
}

#[test]
fn rights_bound_what_may_be_changed() {
    on_a_big_stack(|| {
        let rights = |field: &str| json!({"rights": {"writes": [{"hook": "clusters", "fields": [field]}]}});
        let within = mesh(&[patch("slow", timeout("25s"), rights("connect_timeout"))]);
        assert_eq!(within.backend()["connect_timeout"], "25s");
        let beyond = mesh(&[patch("slow", timeout("25s"), rights("circuit_breakers/**"))]);
        assert_ne!(beyond.backend()["connect_timeout"], "25s", "the fragment goes out as it was");
        assert!(
            beyond.said().iter().any(|line| line.contains("went beyond its rights: changed connect_timeout")),
            "{:?}",
            beyond.said()
        );
    });
}

#[test]
fn security_is_not_weakened() {
    on_a_big_stack(|| {
        let open = json!([{"hook": "listeners", "name": "virtualInbound", "set": {"path": "filter_chains/*/transport_socket", "value": {"name": "raw"}}}]);
        let plain = mesh(&[]);
        let inbound = |mesh: &Mesh| mesh.listeners().into_iter().find(|l| l["name"] == "virtualInbound").unwrap();
        let refused = mesh(&[patch("open", open.clone(), json!({}))]);
        assert_eq!(inbound(&refused), inbound(&plain));
        assert!(refused.said().iter().any(|line| line.contains("takes away TLS")), "{:?}", refused.said());
        let port = json!([{"hook": "new-listeners", "put": {"message": {"name": "door", "address": {"socket_address":
            {"address": "0.0.0.0", "port_value": 7000}}, "filter_chains": [{"filters": [{"name": "echo"}]}]}}}]);
        let refused = mesh(&[patch("door", port, json!({}))]);
        assert!(refused.listeners().iter().all(|listener| listener["name"] != "door"));
        assert!(refused.said().iter().any(|line| line.contains("without TLS")), "{:?}", refused.said());
    });
}

#[test]
fn another_spelling_is_judged_as_what_is_sent() {
    on_a_big_stack(|| {
        let plain = mesh(&[]);
        let off = json!({"envoy.filters.http.rbac": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}});
        for spelling in ["typed_per_filter_config", "typedPerFilterConfig"] {
            let value = json!({spelling: off});
            let patches = json!([{"hook": "virtual-hosts", "merge": {"value": value}}]);
            let mesh = mesh(&[patch("off", patches, json!({}))]);
            let rds = |mesh: &Mesh| mesh.resources("rds", "envoy.config.route.v3.RouteConfiguration");
            assert_eq!(rds(&mesh), rds(&plain), "{spelling}");
            assert!(mesh.said().iter().any(|line| line.contains("authenticates or authorizes")), "{spelling}");
            let rights = json!({"rights": {"mayWeakenSecurity": true, "writes": [
                {"hook": "virtual-hosts", "fields": ["include_request_attempt_count"]}]}});
            let patches = json!([{"hook": "virtual-hosts", "merge": {"value": {spelling: off}}}]);
            let bounded = self::mesh(&[patch("off", patches, rights)]);
            assert_eq!(rds(&bounded), rds(&plain), "{spelling}");
        }
    });
}

#[test]
fn what_is_set_of_a_oneof_takes_the_place_of_the_rest() {
    on_a_big_stack(|| {
        let value = json!({"connect_timeout": "9s", "cluster_type": {"name": "envoy.cluster.static"}});
        let patches =
            json!([{"hook": "clusters", "service": "*/backend.default.svc.cluster.local", "merge": {"value": value}}]);
        let mesh = mesh(&[patch("other", patches, json!({}))]);
        let backend = mesh.backend();
        assert_eq!(backend["cluster_type"]["name"], "envoy.cluster.static", "{:?}", mesh.said());
        assert_eq!(backend.get("type"), None);
        let effects = mesh.engine.plugin_effects();
        let (_, changes) = &effects["istio-system/other"].examples[0];
        assert!(changes.iter().any(|change| change.path == "type" && change.after.is_none()), "{changes:?}");
    });
}

#[test]
fn a_tenant_reaches_its_namespace_only() {
    on_a_big_stack(|| {
        let own = mesh(&[in_namespace("default", "slow", timeout("25s"), json!({}))]);
        assert_eq!(own.backend()["connect_timeout"], "25s");
        let other = mesh(&[in_namespace("elsewhere", "slow", timeout("25s"), json!({}))]);
        assert_ne!(other.backend()["connect_timeout"], "25s");
    });
}

#[test]
fn of_two_that_write_one_field_the_later_wins_and_it_is_said() {
    on_a_big_stack(|| {
        let first = patch("z-first", timeout("25s"), json!({"order": 1}));
        let second = patch("a-second", timeout("26s"), json!({"order": 2}));
        let mesh = mesh(&[second, first]);
        assert_eq!(mesh.backend()["connect_timeout"], "26s");
        let said = mesh.said();
        let conflict = said.iter().find(|line| line.contains("wins because it comes after it"));
        let conflict = conflict.unwrap_or_else(|| panic!("{said:?}"));
        assert!(
            conflict.contains("Plugin istio-system/z-first") && conflict.contains("istio-system/a-second"),
            "{conflict}"
        );
        assert!(conflict.contains("connect_timeout"), "{conflict}");
    });
}

#[test]
fn slots_and_parts_are_where_they_should_be() {
    on_a_big_stack(|| {
        let filter = |slot: &str| {
            let config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes": 1});
            json!({"hook": slot, "direction": "inbound", "put": {"message": {"name": slot, "typed_config": config}}})
        };
        let slots = ["http-filters", "rate-limit-filters", "authz-filters", "authn-filters", "observability-filters"];
        let log = json!({"hook": "connection-managers", "insert": {"path": "access_log", "at": "last", "value": {
            "name": "extra", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stderr"}}}});
        let mut patches: Vec<Value> = slots.iter().map(|slot| filter(slot)).collect();
        patches.push(log);
        let mesh = mesh(&[patch("filters", Value::Array(patches), json!({}))]);
        assert_eq!(
            mesh.said().iter().filter(|line| line.contains("plugin")).collect::<Vec<_>>(),
            Vec::<&String>::new()
        );
        let listeners = mesh.listeners();
        let inbound = listeners.iter().find(|listener| listener["name"] == "virtualInbound").unwrap();
        let managers: Vec<&Value> = inbound["filter_chains"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|chain| chain["filters"].as_array().unwrap())
            .filter(|filter| filter["name"] == "envoy.filters.network.http_connection_manager")
            .map(|filter| &filter["typed_config"])
            .collect();
        assert!(!managers.is_empty());
        for manager in managers {
            let names: Vec<&str> =
                manager["http_filters"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
            let at = |name: &str| {
                names.iter().position(|other| *other == name).unwrap_or_else(|| panic!("{name} in {names:?}"))
            };
            let order = [
                "authn-filters",
                "authz-filters",
                "rate-limit-filters",
                "observability-filters",
                "envoy.filters.http.fault",
                "http-filters",
                "envoy.filters.http.router",
            ];
            let places: Vec<usize> = order.iter().map(|name| at(name)).collect();
            assert!(places.is_sorted(), "{names:?}");
            let logs = manager["access_log"].as_array().unwrap();
            assert_eq!(logs.last().unwrap()["name"], "extra");
        }
    });
}

#[test]
fn route_configurations_are_changed_wherever_they_stand() {
    on_a_big_stack(|| {
        let header = json!({"path": "response_headers_to_remove", "at": "last", "value": "server"});
        let own = json!({"name": "own", "domains": ["own.test"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 418}}]});
        let patches = json!([
            {"hook": "route-configurations", "insert": header},
            {"hook": "route-configurations", "direction": "outbound", "name": "80", "insert":
                {"path": "virtual_hosts", "at": "before allow_any", "value": own}},
        ]);
        let last_resort = json!({"hook": "patch", "attributes": {"kind": "route-configuration"}, "name": "80", "set":
            {"path": "internal_only_headers", "value": ["x-own"]}});
        let mesh = mesh(&[patch("routes", patches, json!({})), patch("routes-too", json!([last_resort]), json!({}))]);
        let said: Vec<String> = mesh.said().into_iter().filter(|line| line.contains("plugin")).collect();
        assert_eq!(said, Vec::<String>::new());
        let configurations = mesh.resources("rds", "envoy.config.route.v3.RouteConfiguration");
        assert!(configurations.iter().all(|routes| routes["response_headers_to_remove"] == json!(["server"])));
        let at_80 = configurations.iter().find(|routes| routes["name"] == "80").unwrap();
        assert_eq!(at_80["internal_only_headers"], json!(["x-own"]));
        let hosts: Vec<&str> =
            at_80["virtual_hosts"].as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap()).collect();
        assert_eq!(hosts[hosts.len() - 2..], ["own", "allow_any"]);
        let mut n_inbound = 0;
        for listener in mesh.listeners() {
            for filter in listener["filter_chains"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|c| c["filters"].as_array().unwrap())
            {
                let Some(routes) = filter["typed_config"].get("route_config") else { continue };
                if routes["name"].as_str().unwrap().starts_with("inbound|") {
                    assert_eq!(routes["response_headers_to_remove"], json!(["server"]), "{routes}");
                    n_inbound += 1;
                }
            }
        }
        assert!(n_inbound > 0);
    });
}

#[test]
fn what_cannot_be_done_is_named_and_changes_nothing() {
    on_a_big_stack(|| {
        let plain = mesh(&[]);
        let typo = json!([{"hook": "clusters", "merge": {"value": {"connect_timeoot": "1s"}}}]);
        let refused = mesh(&[patch("typo", typo, json!({}))]);
        assert_eq!(refused.clusters(), plain.clusters());
        assert!(refused.said().iter().any(|line| line.contains("connect_timeoot")), "{:?}", refused.said());
        let mut mesh = mesh(&[patch("a", timeout("25s"), json!({}))]);
        mesh.put(&patch("a", timeout("26s"), json!({"hooks": ["clusters", "no-such"]})));
        assert!(mesh.status().error.is_some_and(|error| error.contains("no-such")));
        assert_eq!(mesh.backend()["connect_timeout"], "25s", "the version before stays");
    });
}
