//! Patches on given messages: what Istio's own tests state of matching, order and merging.
//!
//! The cases are not part of this repository. `TRYSAIL_CORPUS` says where they are; without them the test passes and says so.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use serde_json::{Value, json};
use trysail::pipeline;
use trysail_codec::json::{self, Options};
use trysail_facts::{FactsSnapshot, Inputs};
use trysail_model::ids::type_urls;
use trysail_model::{Object, ObjectRef, Proxy, TypeUrl, Watched};
use trysail_sdk::{CallRef, Item, Message, Output, Part};
use trysail_stages::guest::{Asker, Done, Guest, Job, Limits, Unanswered};
use trysail_stages::{Config, Engine, Native, NativeCode, Root};

/// A stage that makes what a case gives, and leads it through the patches.
struct Given {
    items: Output,
    all: Output,
}

impl Guest for Given {
    fn name(&self) -> &str {
        "given"
    }

    fn digest(&self) -> &str {
        "given"
    }

    fn run(&self, job: &Job, asker: Box<dyn Asker>, _: &Limits, _: bool) -> (Result<Done, Unanswered>, Box<dyn Asker>) {
        let Job::Translate { function, .. } = job else { panic!("it is a stage") };
        let output = if &**function == "items" { &self.items } else { &self.all };
        (Ok(Done::Output(output.clone())), asker)
    }
}

/// What an `object` of a case is: its type, its message, the function that patches it and the one that adds whole ones.
fn kind(object: &str) -> (&'static str, &'static str, &'static str, &'static str) {
    match object {
        "cluster" => (type_urls::CLUSTER, "envoy.config.cluster.v3.Cluster", "clusters", "added-clusters"),
        "listener" => (type_urls::LISTENER, "envoy.config.listener.v3.Listener", "listeners", "added-listeners"),
        "route" => (type_urls::ROUTE, "envoy.config.route.v3.RouteConfiguration", "routes", ""),
        "extension-config" => (type_urls::EXTENSION, "envoy.config.core.v3.TypedExtensionConfig", "", ""),
        other => panic!("no such object: {other}"),
    }
}

fn yaml(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|document| serde::Deserialize::deserialize(document).expect("it is YAML")).collect()
}

fn messages(file: &Path) -> Vec<Value> {
    yaml(file).into_iter().next().and_then(|list| list.as_array().cloned()).unwrap_or_default()
}

fn object(document: &Value) -> Arc<Object> {
    let text = |key: &str| document["metadata"][key].as_str().unwrap_or_default();
    // All are of one day.
    let at = text("creationTimestamp").rsplit(['T', 'Z']).nth(1).unwrap_or_default();
    let parts: Vec<i128> = at.split(':').filter_map(|part| part.parse().ok()).collect();
    let seconds = parts.iter().fold(0, |sum, part| sum * 60 + part);
    Arc::new(Object {
        reference: ObjectRef::new("EnvoyFilter", text("namespace"), text("name")),
        api_version: "networking.istio.io/v1alpha3".into(),
        creation_nanos: seconds * 1_000_000_000,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: document.clone().into(),
        origin: "case".into(),
    })
}

fn proxy(case: &Value) -> Proxy {
    let given = &case["proxy"];
    let text = |key: &str| given[key].as_str().unwrap_or_default();
    let mut metadata = given["metadata"].as_object().cloned().unwrap_or_default();
    metadata.insert("NAMESPACE".into(), json!(text("namespace")));
    if !text("istioVersion").is_empty() {
        metadata.insert("ISTIO_VERSION".into(), json!(text("istioVersion")));
    }
    let id = format!("{}~10.0.0.1~a.{ns}~{ns}.svc.cluster.local", text("type"), ns = text("namespace"));
    Proxy::from_node(&id, metadata, Default::default()).expect("a node")
}

/// The case's messages after the patches, as JSON.
fn patched(case: &Value, folder: &Path) -> Vec<Value> {
    let (type_url, message, function, added) = kind(case["object"].as_str().expect("an object"));
    let options = Options::strict();
    let mut items = Output::empty();
    for (i, given) in messages(&folder.join("input.yaml")).iter().enumerate() {
        let bytes = json::from_json(message, given, options).expect("a message of Envoy");
        items.item(Item::new(format!("{i}"), Message { parts: vec![Part::Bytes(bytes)] }));
    }
    let context = case["context"].as_str().expect("a context");
    let host = case["serviceHost"].as_str().unwrap_or_default();
    let mut all = Output::empty();
    if function.is_empty() {
        let names = case["requested"].as_array().cloned().unwrap_or_default();
        for name in names.iter().filter_map(Value::as_str) {
            all.include(CallRef::new("envoyfilter", "extension-config", [name]));
        }
    } else {
        all.include(CallRef::new("envoyfilter", function, [context, host, "", "given", "items"]));
    }
    if !added.is_empty() && case["skipAdds"] != json!(true) {
        all.include(CallRef::new("envoyfilter", added, [context]));
    }
    let objects = yaml(&folder.join("envoyfilters.yaml")).iter().map(object).collect();
    let snapshot = FactsSnapshot::new(Inputs { objects, ..Inputs::default() });
    let native = pipeline::NATIVE
        .into_iter()
        .map(|(name, code)| Arc::new(Native::new(name, NativeCode::Stage(code))) as Arc<dyn Guest>);
    let guests: Vec<Arc<dyn Guest>> = native.chain([Arc::new(Given { items, all }) as Arc<dyn Guest>]).collect();
    let root = Root { type_url, stage: "given", function: "all", named: false, hook: "", reference: "" };
    let config = Config {
        queries: pipeline::queries(),
        roots: vec![root],
        outputs: Vec::new(),
        inserted: Vec::new(),
        reports: Vec::new(),
        gate: None,
        hold_back: false,
        limits: Limits::default(),
        budget: Default::default(),
        audit_share: 0.0,
        on_run: None,
        on_settled: None,
    };
    let engine = Engine::new(config, guests, Arc::new(snapshot));
    let served = engine.resources(&proxy(case), &TypeUrl::from(type_url), &Watched::Wildcard);
    assert!(served.faults.is_empty(), "{:?}", served.faults);
    let mut found = Vec::new();
    served.node.expect("a node").entries.for_each(&mut |item| {
        found.push(json::to_json(message, &item.resource.body.to_bytes()).expect("a message of Envoy"));
    });
    found
}

fn cases() -> Option<Vec<PathBuf>> {
    let root = env::var_os("TRYSAIL_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"), PathBuf::from);
    let entries = fs::read_dir(root.join("envoyfilter-patch")).ok()?;
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder is readable").path()).collect();
    cases.sort();
    Some(cases)
}

#[test]
fn given_messages_are_patched_as_istio_does() {
    let Some(cases) = cases() else {
        println!("no cases of patches: skipped");
        return;
    };
    let mut wrong = Vec::new();
    for folder in &cases {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let case = yaml(&folder.join("case.yaml")).remove(0);
        let (_, message, ..) = kind(case["object"].as_str().expect("an object"));
        let expected: Vec<Value> = messages(&folder.join("expected.yaml"))
            .iter()
            .map(|given| {
                let bytes = json::from_json(message, given, Options::strict()).expect("a message");
                json::to_json(message, &bytes).expect("a message of Envoy")
            })
            .collect();
        let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        let found = std::thread::scope(|scope| {
            let run = thread.spawn_scoped(scope, || patched(&case, folder)).expect("a thread starts");
            run.join().unwrap_or_else(|panic: Box<dyn Any + Send>| std::panic::resume_unwind(panic))
        });
        if found != expected {
            wrong.push(format!("{name}:\n{:#}\ninstead of\n{:#}", Value::Array(found), Value::Array(expected)));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}
