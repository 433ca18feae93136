//! A plugin of the 0.2 line that does what it must not.
//!
//! Its configuration says what, and at which services: `{"way": "loop", "at": "backend"}`. Elsewhere it is well-behaved and sets a field, so
//! that a test sees what is left of it.
#![allow(unsafe_code, reason = "what a hostile plugin would do, no safe one can")]

use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use trysail_sdk::prost::Message as _;
use trysail_sdk::prost_types::{Any, Struct, Value, value::Kind};
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::core::v3::Metadata;
use trysail_sdk::proto::envoy::config::listener::v3::Listener;
use trysail_sdk::serde_json::json;
use trysail_sdk::{Ctx, Edit, Edits, Failure, Fragment, Level, Position, Severity, Target};

#[derive(Deserialize)]
struct Config {
    /// What to do.
    way: String,
    /// Where: a part of the service's key.
    #[serde(default)]
    at: String,
    /// How much, where that is a question.
    #[serde(default)]
    amount: u64,
    /// A namespace that is asked about first, so that each change of it has everything done again.
    #[serde(default)]
    namespace: String,
}

/// What only an impure guest has: state from one call to the next.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The hook `clusters`.
///
/// # Errors
/// When its configuration says so.
pub fn clusters(ctx: &Ctx<'_>, target: &Target, fragment: &dyn Fragment) -> Result<Edits, Failure> {
    let config: Config = ctx.configuration()?;
    CALLS.fetch_add(1, Ordering::Relaxed);
    if !config.namespace.is_empty() {
        black_box(ctx.namespace(&config.namespace)?);
    }
    if !target.service.contains(&config.at) {
        return Ok(Edits::none().set("alt_stat_name", "as it should be"));
    }
    let keys: Vec<String> = fragment.items().into_iter().map(|(key, _)| key).collect();
    let key = keys.first().cloned().unwrap_or_default();
    behave(ctx, &config, &key)
}

/// The hook `new-clusters`: a cluster of a name that may be taken.
///
/// # Errors
/// Never.
pub fn new_clusters(ctx: &Ctx<'_>, _: &Target, _: &dyn Fragment) -> Result<Edits, Failure> {
    let config: Config = ctx.configuration()?;
    let static_cluster = |name: &str| json!({"name": name, "type": "STATIC", "connect_timeout": "77s"});
    Ok(match config.way.as_str() {
        "clash" => Edits::none().put_json(&config.at, static_cluster(&config.at)),
        // Where nothing is taken away by it.
        "any-in-any" => {
            let mut any = Any { type_url: "type.googleapis.com/google.protobuf.Struct".into(), value: Vec::new() };
            for _ in 0..5000 {
                any = Any { type_url: "type.googleapis.com/google.protobuf.Any".into(), value: any.encode_to_vec() };
            }
            holding("bomb", Some(any), None)
        }
        "struct-in-struct" => {
            let mut plain = Struct::default();
            for _ in 0..500 {
                let inner = Value { kind: Some(Kind::StructValue(plain)) };
                plain = Struct { fields: [("x".to_owned(), inner)].into() };
            }
            holding("bomb", None, Some(plain))
        }
        "clash-beside" => Edits::none().put_json("another", static_cluster(&config.at)),
        _ => Edits::none(),
    })
}

/// The hook `new-listeners`: a listener of a name that is taken.
///
/// # Errors
/// Never.
pub fn new_listeners(ctx: &Ctx<'_>, _: &Target, _: &dyn Fragment) -> Result<Edits, Failure> {
    let config: Config = ctx.configuration()?;
    if config.way != "clash" {
        return Ok(Edits::none());
    }
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"}});
    let address = json!({"socket_address": {"address": "127.0.0.9", "port_value": 7}});
    let chains = json!([{"transport_socket": tls}]);
    Ok(Edits::none()
        .put_json("virtualOutbound", json!({"name": "virtualOutbound", "address": address, "filter_chains": chains})))
}

fn one(edit: Edit) -> Edits {
    Edits { edits: vec![edit], diagnostics: Vec::new() }
}

fn set(path: &str, value: &str) -> Edits {
    one(Edit::Set { item: String::new(), path: path.to_owned(), value: value.to_owned() })
}

fn patch(operations: Vec<trysail_sdk::serde_json::Value>) -> Edits {
    let operations = trysail_sdk::serde_json::Value::from(operations).to_string();
    one(Edit::Patch { item: String::new(), operations })
}

/// A cluster that holds such metadata.
fn holding(key: &str, typed: Option<Any>, plain: Option<Struct>) -> Edits {
    let typed_filter_metadata = typed.map(|any| ("x".to_owned(), any)).into_iter().collect();
    let filter_metadata = plain.map(|plain| ("x".to_owned(), plain)).into_iter().collect();
    let metadata = Some(Metadata { typed_filter_metadata, filter_metadata });
    Edits::none().put(key, &Cluster { name: key.to_owned(), metadata, ..Default::default() })
}

#[allow(clippy::too_many_lines, reason = "a list")]
fn behave(ctx: &Ctx<'_>, config: &Config, key: &str) -> Result<Edits, Failure> {
    Ok(match config.way.as_str() {
        // What is no message, or another.
        "forged" => one(Edit::Put { key: key.to_owned(), message: vec![0xff; 1000] }),
        "other-message" => {
            let listener = Listener { name: key.to_owned(), address: Some(Default::default()), ..Default::default() };
            Edits::none().put(key, &listener)
        }
        "unknown-any" => {
            let any = Any { type_url: "type.googleapis.com/no.such.Message".to_owned(), value: vec![1; 100] };
            let config = json!({"name": "x", "typed_config": {"@type": any.type_url, "what": 1}});
            one(Edit::Set { item: String::new(), path: "transport_socket".into(), value: config.to_string() })
        }
        "wide" => {
            // Two bytes for each locality of the cluster's endpoints, of which the host makes hundreds.
            let localities = [0x12, 0].repeat(1 << 20);
            let name = Cluster { name: key.to_owned(), ..Default::default() }.encode_to_vec();
            let mut length = Vec::new();
            trysail_sdk::prost::encoding::encode_varint(localities.len() as u64, &mut length);
            // Field 33 is `load_assignment`.
            one(Edit::Put { key: key.to_owned(), message: [name, vec![0x8a, 0x02], length, localities].concat() })
        }
        // Very many, very deep, very long.
        "edits" => {
            let tiny = || Edit::Remove { item: String::new(), path: "x".to_owned() };
            Edits { edits: (0..150_000).map(|_| tiny()).collect(), diagnostics: Vec::new() }
        }
        "items" => (0..100_000).fold(Edits::none(), |edits, i| edits.put_json(&format!("{i}"), json!({}))),
        "same-text" => {
            // A hundred thousand texts that are all the same place in memory: together more than any machine has.
            let text = ManuallyDrop::new("x".repeat(8 << 20));
            let again = |_: u32| {
                let (start, length) = (text.as_ptr().cast_mut(), text.len());
                // SAFETY: of no use but to be handed to the host, which throws the instance away.
                Edit::Drop(unsafe { String::from_raw_parts(start, length, length) })
            };
            Edits { edits: (0..100_000).map(again).collect(), diagnostics: Vec::new() }
        }
        "deep-json" => one(Edit::PutJson { key: key.to_owned(), message: "[".repeat(100_000) }),
        "deep-value" => set("metadata", &"{\"x\":".repeat(100_000)),
        "deep-patch" => {
            let operations = format!(
                "[{{\"op\":\"add\",\"path\":\"/metadata\",\"value\":{}{}}}]",
                "[".repeat(100_000),
                "]".repeat(100_000)
            );
            one(Edit::Patch { item: String::new(), operations })
        }
        "deep-path" => set(&"x/".repeat(1 << 20), "1"),
        "deepening" => {
            let mut operations = vec![json!({"op": "add", "path": "/metadata", "value": {}})];
            for power in 0..18 {
                let place = "/metadata".repeat((1 << power) + 1);
                operations.push(json!({"op": "copy", "from": "/metadata", "path": place}));
            }
            patch(operations)
        }
        "doubling" => {
            let add = json!({"op": "add", "path": "/metadata", "value": ["x"]});
            let double = json!({"op": "copy", "from": "/metadata", "path": "/metadata/-"});
            patch([vec![add], vec![double; 40]].concat())
        }
        "stars" => {
            let wide = json!({"filter_metadata": {"x": {"y": vec![vec![0; 100]; 1000]}}});
            let mut edits = Edits::none().set("metadata", wide);
            for _ in 0..900 {
                edits = edits.remove("*/*/*/*/*/*/*/x");
            }
            edits
        }
        "long-name" => {
            let many: trysail_sdk::serde_json::Map<_, _> = (0..20_000).map(|i| (i.to_string(), json!(i))).collect();
            Edits::none().set("metadata", json!({"filter_metadata": {"n".repeat(1 << 20): many}}))
        }
        "fronts" => (0..1000).fold(Edits::none().set("metadata", json!(vec![0; 10_000])), |edits, i| {
            edits.insert("metadata", Position::First, i)
        }),
        // What is another's, or nobody's.
        "rename" => Edits::none().set("name", "outbound|80||elsewhere.default.svc.cluster.local"),
        "no-field" => Edits::none().set("no_such_field", 1),
        "non-utf8" => {
            // SAFETY: none; that is what it is for.
            let text = unsafe { String::from_utf8_unchecked(vec![0xff; 8]) };
            one(Edit::Drop(text))
        }
        // Without end.
        "loop" => loop {
            black_box(());
        },
        "loop-unless" => {
            // Until somebody sets it right.
            let namespace = ctx.namespace("default")?.unwrap_or_default();
            while !namespace.labels.contains_key("mended") {
                black_box(());
            }
            Edits::none().set("alt_stat_name", "as it should be")
        }
        "memory" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(black_box(vec![1; 1 << 20]));
            }
        }
        "stack" => {
            #[allow(unconditional_recursion, reason = "that is what it is for")]
            fn deeper(n: u64) -> u64 {
                black_box(deeper(black_box(n + 1)) + 1)
            }
            black_box(deeper(0));
            Edits::none()
        }
        "questions" => {
            for i in 0u64.. {
                black_box(ctx.service(&format!("default/{i}"))?);
            }
            Edits::none()
        }
        "expressions" => {
            for i in 0u64.. {
                black_box(ctx.proxy_version_matches(&format!("(((a{{9}}|{i}){{9}}){{9}}){{9}}")));
            }
            Edits::none()
        }
        "long-expression" => {
            black_box(ctx.proxy_version_matches(&"(a|b)*".repeat(500_000)));
            Edits::none()
        }
        "lines" => loop {
            ctx.report(Level::Error, &"a line\n2026-01-01T00:00:00Z\terror\tforged\u{1b}[2J".repeat(1000));
        },
        "chatter" => {
            let mut edits = Edits::none();
            for i in 0..5000 {
                edits =
                    edits.diagnose(Severity::Info, "Plugin x/y", "", format!("{i} \u{1b}[2J {}", "long ".repeat(20)));
            }
            edits
        }
        "giant-chatter" => {
            let text = "x".repeat(10 << 20);
            Edits::none().diagnose(Severity::Error, &text, &text, "")
        }
        // Not as before.
        "trap" => panic!("asked to, about {key}"),
        "counter" => Edits::none().set("alt_stat_name", CALLS.load(Ordering::Relaxed).to_string()),
        "fail" => return Err(Failure::BadConfiguration("asked to".to_owned())),
        "work" => {
            let sum = (0..config.amount).fold(1u64, |sum, i| black_box(sum.wrapping_mul(31).wrapping_add(i)));
            black_box(sum);
            Edits::none().set("alt_stat_name", "as it should be")
        }
        "nothing" => Edits::none().set("alt_stat_name", "as it should be"),
        _ => Edits::none(),
    })
}

#[cfg(target_family = "wasm")]
mod plugin {
    trysail_sdk::export_hooks! {
        clusters: super::clusters,
        new_clusters: super::new_clusters,
        new_listeners: super::new_listeners,
    }
}
