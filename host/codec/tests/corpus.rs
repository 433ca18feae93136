//! Every resource that istiod was recorded to send: JSON to bytes and back must give the same JSON, the bytes must be
//! those of the generated types, and the gate must find nothing but the breaches that istiod is known to send.
//!
//! The recordings are not part of this repository. `TRYSAIL_CORPUS` says where they are; without them the tests pass
//! and say so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::{Message, Name};
use serde_json::Value;
use trysail_codec::gate;
use trysail_codec::json::{self, Options};
use trysail_proto::envoy;

/// The files of a proxy's answers, by the type of their resources.
const TYPES: &[(&str, &str)] = &[
    ("cds.json", "envoy.config.cluster.v3.Cluster"),
    ("eds.json", "envoy.config.endpoint.v3.ClusterLoadAssignment"),
    ("lds.json", "envoy.config.listener.v3.Listener"),
    ("rds.json", "envoy.config.route.v3.RouteConfiguration"),
    ("ecds.json", "envoy.config.core.v3.TypedExtensionConfig"),
    ("sds.json", "envoy.extensions.transport_sockets.tls.v3.Secret"),
    ("nds.json", "istio.networking.nds.v1.NameTable"),
    ("wds.json", "istio.workload.Address"),
    ("authorization.json", "istio.security.Authorization"),
];

/// One recorded resource.
struct Recorded {
    path: PathBuf,
    type_name: &'static str,
    json: Value,
}

/// Calls `check` with each resource; returns how many there were, or `None` without a corpus.
fn for_each(mut check: impl FnMut(Recorded)) -> Option<usize> {
    let root = match env::var_os("TRYSAIL_CORPUS") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
    };
    let xds = root.join("xds");
    if !xds.is_dir() {
        println!("no recordings in {}: skipped", xds.display());
        return None;
    }
    let mut count = 0;
    let mut todo = vec![xds];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir)
            .expect("the folder was just listed")
            .map(|entry| entry.expect("the folder is readable").path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some((_, type_name)) = TYPES.iter().find(|(name, _)| *name == file_name) else {
                continue;
            };
            let text = fs::read(&path).expect("the file was just listed");
            let resources: Vec<Value> = serde_json::from_slice(&text).expect("a recording is a list");
            for json in resources {
                count += 1;
                let path = path.clone();
                check(Recorded { path, type_name, json });
            }
        }
    }
    Some(count)
}

/// The document itself, without the `@type` that a resource carries as it came in an Any.
fn document(json: &Value) -> Value {
    let mut json = json.clone();
    if let Some(object) = json.as_object_mut() {
        object.shift_remove("@type");
    }
    json
}

fn bytes_of(resource: &Recorded) -> Vec<u8> {
    json::from_json(resource.type_name, &document(&resource.json), Options::default())
        .unwrap_or_else(|error| panic!("{}: {error}", resource.path.display()))
}

#[test]
fn json_round_trips() {
    let mut per_type: BTreeMap<&str, usize> = BTreeMap::new();
    let total = for_each(|resource| {
        let expected = document(&resource.json);
        let printed = json::to_json(resource.type_name, &bytes_of(&resource)).unwrap();
        // As text: order of keys and spelling of numbers count as well.
        assert_eq!(printed.to_string(), expected.to_string(), "{}", resource.path.display());
        *per_type.entry(resource.type_name).or_default() += 1;
    });
    println!("round trips: {total:?} {per_type:?}");
}

#[test]
fn bytes_are_those_of_generated_types() {
    fn reencode<M: Message + Name + Default>(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        (name == M::full_name()).then(|| M::decode(bytes).unwrap().encode_to_vec())
    }
    for_each(|resource| {
        let (name, bytes) = (resource.type_name, bytes_of(&resource));
        let typed = reencode::<envoy::config::cluster::v3::Cluster>(name, &bytes)
            .or_else(|| reencode::<envoy::config::endpoint::v3::ClusterLoadAssignment>(name, &bytes))
            .or_else(|| reencode::<envoy::config::listener::v3::Listener>(name, &bytes))
            .or_else(|| reencode::<envoy::config::route::v3::RouteConfiguration>(name, &bytes))
            .or_else(|| reencode::<envoy::extensions::transport_sockets::tls::v3::Secret>(name, &bytes))
            .or_else(|| reencode::<trysail_proto::istio::networking::nds::v1::NameTable>(name, &bytes))
            .or_else(|| reencode::<trysail_proto::istio::workload::Address>(name, &bytes))
            .or_else(|| reencode::<trysail_proto::istio::security::Authorization>(name, &bytes));
        if let Some(typed) = typed {
            assert_eq!(typed, bytes, "{}", resource.path.display());
        }
    });
}

/// Breaches that istiod itself sends, by rule and last step of the path. Anything else would be a false alarm of ours.
/// `http_filters[n]` stands for any of these filters.
const KNOWN_BREACHES: &[(&str, &str)] = &[
    ("chains", "filter_chains"),
    ("dynamic_forward_proxy", "typed_extension_protocol_options"),
    ("extension", "typed_config"),
    ("message.required", "validation_context_sds_secret_config"),
    ("original_dst", "lb_policy"),
    ("repeated.min_items", "clusters"),
    ("repeated.min_items", "domains"),
    ("string.min_len", "name"),
    ("string.min_len", "sha256"),
    ("string.min_len", "stat_prefix"),
    ("string.min_len", "verify_certificate_hash[0]"),
    ("string.min_len", "verify_certificate_spki[0]"),
    ("terminal", "http_filters[n]"),
    ("unique", "filter_chains[1]"),
    ("unique", "virtual_hosts[1]"),
];

#[test]
fn gate_passes_what_istiod_sends() {
    let mut breaches: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut alarms = Vec::new();
    let mut rejected = 0;
    let total = for_each(|resource| {
        let Err(violations) = gate::validate(resource.type_name, &bytes_of(&resource)) else {
            return;
        };
        rejected += 1;
        for violation in violations {
            let mut last_step = violation.path.rsplit('.').next().unwrap_or_default().to_owned();
            if last_step.starts_with("http_filters[") {
                last_step = "http_filters[n]".to_owned();
            }
            if !KNOWN_BREACHES.contains(&(violation.rule, last_step.as_str())) {
                alarms.push(format!("{}: {violation}", resource.path.display()));
            }
            *breaches.entry((violation.rule, last_step)).or_default() += 1;
        }
    });
    println!("judged: {total:?}, rejected: {rejected}, breaches: {breaches:?}");
    assert!(alarms.is_empty(), "{}", alarms.join("\n"));
}
