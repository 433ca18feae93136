//! Plugins of the 0.2 line that mean ill, as real components over the built-in stages: each is contained, named, and nobody else's concern.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::{Value, json};
use trysail::pipeline::{self, Loaded, Options};
use trysail::render::{self, Scripted};
use trysail_facts::inputs::Inputs;
use trysail_facts::{Change, FactsSnapshot};
use trysail_model::{Object, ObjectRef, Proxy};
use trysail_plugins::catalogue::Catalogue;
use trysail_stages::{Budget, Conduct, Engine};

/// The built-in stages, and a folder with the hostile plugin.
static LOADED: LazyLock<(Options, Loaded, tempfile::TempDir)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("hostile.wasm"), hostile()).unwrap();
    // All runs are audited, so that who remembers is found out.
    let options = Options { audit_share: 1.0, plugins: Some(folder.path().to_owned()), ..Options::default() };
    let loaded = pipeline::load(&options).unwrap();
    (options, loaded, folder)
});

fn hostile() -> Vec<u8> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let modules = trysail_guests::compile(&workspace, &trysail_guests::folder(target), &["hostile-plugin"]).unwrap();
    trysail_guests::encode(&trysail_guests::module(&modules, "hostile-plugin")).unwrap()
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

/// The hostile plugin as a tenant's: it does `way` at the backend's clusters, and what it should at all others of its namespace.
fn hostile_at(at: &str, way: &str, more: Value) -> Arc<Object> {
    let mut spec = json!({
        "component": {"file": "hostile.wasm"},
        "configuration": {"way": way, "at": at, "amount": 50_000_000},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plugin("default", "hostile", spec)
}

/// Somebody else's, which comes after it.
fn other() -> Arc<Object> {
    let patches = json!([{"hook": "clusters", "merge": {"value": {"connect_timeout": "25s"}}}]);
    plugin(
        "istio-system",
        "other",
        json!({"component": {"builtin": "patch"}, "order": 10, "configuration": {"patches": patches}}),
    )
}

struct Mesh {
    engine: Arc<Engine>,
    catalogue: Catalogue,
    inputs: Inputs,
    proxy: Proxy,
}

impl Mesh {
    fn new(plugins: &[Arc<Object>], budget: Budget) -> Mesh {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend");
        let folder = trysail_discovery::load_folder(&example, &trysail_discovery::Config::scenario()).unwrap();
        let inputs = render::inputs(&folder);
        let (options, loaded, _) = &*LOADED;
        let options = Options { budget, ..options.clone() };
        let engine = pipeline::engine(&options, loaded.stages.clone(), Arc::new(FactsSnapshot::new(inputs.clone())));
        let catalogue = pipeline::catalogue(loaded, &options, "istio-system").unwrap();
        let pods = inputs.objects.iter().filter(|object| &*object.reference.kind == "Pod");
        let pod = pods.into_iter().find(|pod| pod.reference.name.starts_with("frontend")).unwrap();
        let proxy = trysail::explain::proxy_of(pod).unwrap();
        let mut mesh = Mesh { engine, catalogue, inputs, proxy };
        plugins.iter().for_each(|plugin| mesh.put(plugin));
        mesh
    }

    fn put(&mut self, object: &Arc<Object>) {
        self.catalogue.apply([(&object.reference, Some(object))]);
        self.catalogue.refresh(&self.engine);
    }

    /// What the proxy gets, once nothing is under way any more, by type and name.
    fn served(&self) -> Vec<(String, Vec<u8>)> {
        self.serve();
        self.engine.settle();
        let views = self.serve();
        let resources = |(kind, view): &(&'static str, Arc<trysail_model::View>)| {
            let named = |resource: &Arc<trysail_model::Resource>| {
                (format!("{kind} {}", resource.name), resource.body.to_bytes().to_vec())
            };
            view.resources.iter().map(named).collect::<Vec<_>>()
        };
        views.views.iter().flat_map(resources).collect()
    }

    fn serve(&self) -> render::Views {
        render::views(&self.engine, &Scripted::plain(self.proxy.clone()), &self.proxy)
    }

    fn said(&self) -> Vec<String> {
        render::diagnostics(&self.engine, &self.proxy, &self.serve()).iter().map(render::line).collect()
    }
}

/// The resources but those about the backend's clusters, where the hostile plugin is at work.
fn elsewhere(served: &[(String, Vec<u8>)]) -> Vec<&(String, Vec<u8>)> {
    served.iter().filter(|(name, _)| !name.starts_with("cds") || !name.contains("backend")).collect()
}

/// Those.
fn of_backend(served: &[(String, Vec<u8>)]) -> Vec<&(String, Vec<u8>)> {
    served.iter().filter(|(name, _)| name.starts_with("cds") && name.contains("backend")).collect()
}

fn names(served: &[(String, Vec<u8>)]) -> Vec<&String> {
    served.iter().map(|(name, _)| name).collect()
}

/// Calls nest, each on its guest's stack.
fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(test).unwrap().join().unwrap();
}

/// The most memory that the process has had, MiB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() / 1024
}

/// What is done, the kinds of fault of which it is one, and a word of what is said of it.
const WAYS: [(&str, &[&str], &str); 36] = [
    ("forged", &["edit"], "edit 0 (put)"),
    ("other-message", &["edit"], "edit 0 (put)"),
    ("unknown-any", &["edit"], "transport_socket"),
    ("any-in-any", &["edit"], "typed_filter_metadata"),
    ("struct-in-struct", &["edit"], "edit 0 (put)"),
    ("wide", &["edit"], "bring more than"),
    ("edits", &["output_size"], "more than the allowed"),
    ("items", &["output_size", "edit"], "allowed"),
    ("same-text", &["output_size"], "more than the allowed"),
    ("deep-json", &["edit"], "no JSON"),
    ("deep-value", &["edit"], "no JSON"),
    ("deep-patch", &["edit"], "recursion limit"),
    ("deep-path", &["edit"], "a path of"),
    ("deepening", &["edit"], "levels deep"),
    ("doubling", &["edit"], "bring more than"),
    ("stars", &["edit"], "look at more places"),
    ("long-name", &["edit"], "a name of"),
    ("fronts", &["edit"], "edit"),
    ("rename", &["edit"], "calls itself"),
    ("no-field", &["edit"], "no_such_field"),
    ("non-utf8", &["trap"], "utf-8"),
    ("loop", &["deadline"], "ran longer"),
    ("memory", &["memory"], "memory"),
    ("stack", &["trap"], "stack"),
    ("questions", &["queries"], "asked more than"),
    ("expressions", &["deadline", "queries"], "hostile"),
    ("long-expression", &["none"], ""),
    ("lines", &["deadline"], "ran longer"),
    ("giant-chatter", &["output_size"], "more than the allowed"),
    ("trap", &["trap"], "asked to, about outbound|80"),
    ("counter", &["impure"], "not pure"),
    ("fail", &["failed"], "asked to"),
    ("chatter", &["none"], "more diagnostics of this call"),
    ("nothing", &["none"], ""),
    ("clash", &["none"], "is taken"),
    ("clash-beside", &["edit"], "calls itself"),
];

fn faults(mesh: &Mesh, kinds: &[&str]) -> u64 {
    kinds.iter().map(|kind| mesh.engine.counters().faults("default/hostile", kind)).sum()
}

#[test]
fn what_a_hostile_plugin_does_stays_with_it() {
    on_a_big_stack(|| {
        let budget = Budget { trip: Duration::from_secs(600), calm: Duration::from_secs(600), ..Budget::default() };
        let with_other = Mesh::new(&[other()], budget).served();
        let well = Mesh::new(&[other(), hostile_at("backend", "nothing", json!({}))], budget).served();
        assert_ne!(well, with_other, "it is at work elsewhere");
        let mut mesh = Mesh::new(&[other()], budget);
        let mut wrong = Vec::new();
        for (way, kinds, words) in WAYS {
            let at =
                if way.starts_with("clash") { "outbound|80||backend.default.svc.cluster.local" } else { "backend" };
            for policy in ["skip", "hold"] {
                let before = mesh.served();
                mesh.put(&hostile_at(at, way, json!({"failurePolicy": policy})));
                let seen = faults(&mesh, kinds);
                let served = mesh.served();
                let said = mesh.said();
                let mut check = |holds: bool, what: &str| {
                    if !holds {
                        wrong.push(format!("{way}, {policy}: {what}: {said:#?}"));
                    }
                };
                let about = |line: &&String| line.contains("default/hostile");
                check(names(&served) == names(&well), "the same resources are there");
                if kinds[0] == "none" {
                    let is_said = said.iter().filter(about).any(|line| line.contains(words));
                    check(words.is_empty() || is_said, "it is said");
                    continue;
                }
                check(elsewhere(&served) == elsewhere(&well), "all else is as it should be");
                check(faults(&mesh, kinds) > seen, &format!("it is one of {kinds:?}"));
                if policy == "skip" {
                    let is_said = |line: &String| line.contains("skipped") && line.contains(words);
                    check(said.iter().filter(about).any(is_said), "it is said");
                    let is_without = way.starts_with("clash") || of_backend(&served) == of_backend(&with_other);
                    check(is_without, "as if it were not there");
                } else {
                    check(served == before, "what was served last is held");
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let memory = peak();
        assert!(memory < 2048, "{memory} MiB at most");
        let did = mesh.engine.counters().of_guest("default/hostile");
        assert!(did.unsaid > 0 && did.memory > 1 << 20, "{did:?}");
    });
}

#[test]
fn a_plugin_that_loses_time_is_left_alone_until_it_is_mended() {
    on_a_big_stack(|| {
        let budget = Budget {
            calm: Duration::from_millis(100),
            trip: Duration::from_millis(300),
            pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(1),
            ..Budget::default()
        };
        let with_other = Mesh::new(&[other()], budget).served();
        let well = Mesh::new(&[other(), hostile_at("", "nothing", json!({}))], budget).served();
        // At all services, for as long as the namespace has no label.
        let quick = json!({"limits": {"milliseconds": 50}});
        let mut mesh = Mesh::new(&[other(), hostile_at("", "loop-unless", quick.clone())], budget);
        assert_eq!(mesh.served(), with_other, "others go on as if it were not there");
        let standing = mesh.engine.standings()["default/hostile"].clone();
        assert_eq!(standing.conduct, Conduct::Open, "{standing:?}");
        assert!(standing.trips > 0 && standing.waiting > 0, "{standing:?}");
        assert!(standing.why.as_ref().is_some_and(|why| why.contains("ran longer than")), "{standing:?}");
        let said = mesh.said();
        assert!(
            said.iter().any(|line| line.contains("default/hostile") && line.contains("its circuit is open")),
            "{said:#?}"
        );
        assert!(mesh.engine.counters().of_guest("default/hostile").put_off > 0);
        assert_eq!(mesh.engine.standings()["istio-system/other"].conduct, Conduct::Closed);

        // Mended, it closes by itself, and what went out without it is made anew.
        let namespace = mesh.inputs.objects.iter().find(|object| &*object.reference.kind == "Namespace");
        let mut mended = namespace.map_or_else(
            || Object {
                reference: ObjectRef::new("Namespace", "", "default"),
                api_version: "v1".into(),
                creation_nanos: 0,
                labels: Default::default(),
                annotations: Default::default(),
                body: json!({"metadata": {"labels": {"mended": "yes"}}}).into(),
                origin: "test".into(),
            },
            |object| (**object).clone(),
        );
        mended.labels = Arc::new([("mended".to_owned(), "yes".to_owned())].into());
        let (next, affected) = FactsSnapshot::new(mesh.inputs.clone())
            .apply(&Change { upserted: vec![Arc::new(mended)], ..Change::default() });
        mesh.engine.advance(Arc::new(next), &affected);
        let closes = || {
            mesh.serve();
            mesh.engine.standings()["default/hostile"].conduct != Conduct::Open
        };
        let soon = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            closes()
        });
        assert!(soon, "{:?}", mesh.engine.standings());
        assert_eq!(mesh.served(), well);

        // And a new version starts with a clean slate.
        mesh.put(&hostile_at("", "loop", quick));
        mesh.served();
        assert_eq!(mesh.engine.standings()["default/hostile"].conduct, Conduct::Open);
        mesh.put(&hostile_at("", "nothing", json!({})));
        assert_eq!(mesh.engine.standings()["default/hostile"].conduct, Conduct::Closed);
        assert_eq!(mesh.served(), well);
    });
}

#[test]
fn a_tenant_that_has_used_up_its_share_waits_alone_and_gets_all_in_the_end() {
    on_a_big_stack(|| {
        let well = Mesh::new(&[other(), hostile_at("", "work", json!({}))], Budget::default()).served();
        let share = Budget { share: Some(0.5), burst: Duration::ZERO, ..Budget::default() };
        let mesh = Mesh::new(&[other(), hostile_at("", "work", json!({}))], share);
        let first = mesh.serve();
        assert!(mesh.engine.counters().of_guest("default/hostile").put_off > 0, "not all at once");
        drop(first);
        assert_eq!(mesh.served(), well, "nothing of it is left out for good");
        let standing = mesh.engine.standings()["default/hostile"].clone();
        assert_eq!((standing.waiting, standing.trips), (0, 0), "{standing:?}");
    });
}

/// Components that are hostile before they are asked anything.
#[test]
fn what_is_hostile_at_its_start_is_not_loaded_and_named() {
    let (_, loaded, _) = &*LOADED;
    let runtime = loaded.runtime.clone().unwrap();
    let why = |text: &str| {
        let error = runtime.plugin("odd", &wat::parse_str(text).unwrap()).map(drop).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let at_start = |body: &str| {
        format!(r#"(component (core module $m (func $start {body}) (start $start)) (core instance (instantiate $m)))"#)
    };
    let endless = why(&at_start("(loop (br 0))"));
    assert!(endless.contains("odd failed at its start: it ran longer than"), "{endless}");
    let traps = why(&at_start("unreachable"));
    assert!(traps.contains("odd failed at its start: it trapped"), "{traps}");
    let large = why("(component (core module $m (memory 20000)) (core instance (instantiate $m)))");
    assert!(large.contains("odd") && large.contains("memory"), "{large}");
    let many = "(core instance (instantiate $m))".repeat(300);
    let many = why(&format!("(component (core module $m (memory 1)) {many})"));
    assert!(many.contains("odd"), "{many}");
    let tables = why("(component (core module $m (table 10000000 funcref)) (core instance (instantiate $m)))");
    assert!(tables.contains("odd"), "{tables}");
    let later = why(r#"(component (import "trysail:stage/facts@0.3.0" (instance)))"#);
    assert!(later.contains("version 0.3.0: build it for one of these lines"), "{later}");
    let foreign = why(r#"(component (import "acme:things/a@1.0.0" (instance)))"#);
    assert!(foreign.contains("none of our interfaces"), "{foreign}");
    // A stage is still to be had: plugins take no instance from stages.
    assert!(loaded.stages.iter().any(|stage| stage.name() == "clusters"));
    let again = Mesh::new(&[other()], Budget::default()).served();
    assert!(!again.is_empty());
}
