//! The entry points that `tests/fuzz` fuzzes, over some thousand mutations of good inputs: the same ones in each run.
//!
//! What is looked for is a panic or an endless loop; what comes of an input is no matter.

use prost::Message as _;
use serde_json::{Map, Value};
use trysail_discovery::parse::parse_documents;
use trysail_model::Proxy;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use trysail_xds::{Request, first_message};

#[path = "../../ca/tests/support/dice.rs"]
mod dice;

use dice::Dice;

const MUTATIONS: usize = 3000;

const NODE: &str = "sidecar~10.0.0.1~a.n~n.svc.cluster.local";
const METADATA: &str = r#"{"NAMESPACE": "n", "LABELS": {"app": "a"}, "INSTANCE_IPS": "10.0.0.1,fd00::1", "PROXY_CONFIG":
    {"concurrency": 2, "proxyMetadata": {"A": "b"}}, "CLUSTER_ID": "Kubernetes", "INTERCEPTION_MODE": "REDIRECT"}"#;
const YAML: &str = "# a\n---\nkind: &k Service\nmetadata: {name: a, labels: {x: 'y', z: \"\\u0041\"}}\nspec:\n  ports:\n  - port: 0x50\n    \
    other: *k\n  text: |\n    one\n    two\n  <<: {a: 1}\n---\n{\"kind\": \"Pod\", \"spec\": [1, 2.5, null, true]}\n--- !!str tagged\n";

/// The seed with one to four things done to it: a byte changed, taken out or put in, a part doubled, the end cut off.
fn mutated(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    const TOKENS: [&[u8]; 10] =
        [b"~", b"\0", b"---\n", b"&a", b"*a", b"{", b"[", b"\xff", b"\xf0\x9f\x98\x80", b"99999999999999999999"];
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 if !bytes.is_empty() => bytes[at] = u8::try_from(dice.below(256)).expect("it is below 256"),
            1 if !bytes.is_empty() => {
                bytes.remove(at);
            }
            2 => drop(bytes.splice(at..at, TOKENS[dice.below(TOKENS.len())].iter().copied())),
            3 => {
                let end = at + dice.below((bytes.len() - at).min(64));
                let part = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, part));
            }
            4 => bytes.truncate(at.max(bytes.len() / 2)),
            _ if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            _ => {}
        }
    }
    bytes
}

/// Runs the code over mutations of the seed and counts those of which something came.
fn fuzz(seed: &[u8], run: impl Fn(&[u8]) -> bool) {
    let mut dice = Dice(1);
    assert!(run(seed), "the seed is good");
    let good = (0..MUTATIONS).filter(|_| run(&mutated(seed, &mut dice))).count();
    assert!(
        good > 0 && good < MUTATIONS,
        "{good} of {MUTATIONS} were good: mutations are neither harmless nor hopeless"
    );
}

fn metadata(bytes: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(bytes).ok()
}

fn first_request() -> DiscoveryRequest {
    use trysail_proto::envoy::config::core::v3::{Locality, Node};
    let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let fields = [("NAMESPACE", "n"), ("INSTANCE_IPS", "10.0.0.1,fd00::1"), ("CLUSTER_ID", "Kubernetes")];
    let node = Node {
        id: NODE.into(),
        metadata: Some(prost_types::Struct { fields: fields.map(|(k, v)| (k.into(), value(v))).into() }),
        locality: Some(Locality { region: "r".into(), ..Locality::default() }),
        ..Node::default()
    };
    let type_url = trysail_model::ids::type_urls::CLUSTER.into();
    DiscoveryRequest { node: Some(node), type_url, resource_names: vec!["a".into()], ..DiscoveryRequest::default() }
}

#[test]
fn any_first_message_is_survived() {
    fuzz(&first_request().encode_to_vec(), |bytes| {
        DiscoveryRequest::decode(bytes).is_ok_and(|request| first_message(&Request::from(request)).is_ok())
    });
    let delta = DeltaDiscoveryRequest {
        node: first_request().node,
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    fuzz(&delta.encode_to_vec(), |bytes| {
        DeltaDiscoveryRequest::decode(bytes).is_ok_and(|request| first_message(&Request::from(request)).is_ok())
    });
}

#[test]
fn any_node_is_survived() {
    let good = || metadata(METADATA.as_bytes()).unwrap();
    fuzz(NODE.as_bytes(), |id| Proxy::from_node(&String::from_utf8_lossy(id), good(), Default::default()).is_ok());
    fuzz(METADATA.as_bytes(), |bytes| {
        metadata(bytes).is_some_and(|metadata| Proxy::from_node(NODE, metadata, Default::default()).is_ok())
    });
}

#[test]
fn any_yaml_is_survived() {
    fuzz(YAML.as_bytes(), |bytes| parse_documents(&String::from_utf8_lossy(bytes)).iter().all(Result::is_ok));
}
