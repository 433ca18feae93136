//! Canaries: a signing key, a gateway's key and a bearer token are planted, and looked for where they must not be: in the linear
//! memories of the stages, in the log at its finest, in dumps and pages, in what other proxies are sent; the signing key in all
//! of the memory of the process that runs plugins.
//!
//! Memories are read from outside, as a debugger does. What stages and host do hold is looked for too, so that a search that
//! would find nothing anywhere fails.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/secure.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem::Finder;
use serde_json::json;
use support::{CLUSTER, PATIENCE, Server, Stream, ask, node};
use trysail_proto::prost::Message as _;
use trysail_tests::agent::{self, Issuer};
use trysail_tests::replica::Replica;
use trysail_tests::{agent::Certified, eventually};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// A text that stages read, of an object that they may see.
const SEEN: &str = "canary-that-stages-do-see";

/// A stretch of a process's memory.
struct Stretch {
    from: u64,
    to: u64,
    /// A guest's linear memory: behind it address space is reserved for it to grow into, which nobody may touch.
    is_guest: bool,
}

fn stretches(pid: u32) -> Vec<Stretch> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let parsed: Vec<(u64, u64, String)> = maps
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (from, to) = words.next().unwrap().split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            (hex(from), hex(to), words.next().unwrap().to_owned())
        })
        .collect();
    let is_reserve = |at: u64| {
        let next = parsed.iter().find(|(from, _, rights)| *from == at && rights.starts_with("---"));
        next.is_some_and(|(from, to, _)| to - from > 1 << 30)
    };
    let readable = parsed.iter().filter(|(_, _, rights)| rights.starts_with("rw"));
    readable.map(|(from, to, _)| Stretch { from: *from, to: *to, is_guest: is_reserve(*to) }).collect()
}

/// How often each of some texts stands in the guests' memories, and in all of the process's.
fn search(pid: u32, needles: &BTreeMap<&str, Vec<u8>>) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("one may look into the memory of one's own child");
    let finders: Vec<(&str, Finder<'_>)> = needles.iter().map(|(name, needle)| (*name, Finder::new(needle))).collect();
    let (mut in_guests, mut in_all) = (BTreeMap::new(), BTreeMap::new());
    for stretch in stretches(pid) {
        // A part at a time; they overlap, so that nothing is missed in between.
        let (mut at, step, overlap) = (stretch.from, 8 << 20, 4096);
        while at < stretch.to {
            let length = usize::try_from((stretch.to - at).min(step + overlap)).unwrap();
            let mut part = vec![0; length];
            // What is unmapped meanwhile holds nothing any more.
            let n = memory.read_at(&mut part, at).unwrap_or_default();
            for (name, finder) in &finders {
                let found = finder.find_iter(&part[..n]).count();
                *in_all.entry((*name).to_owned()).or_insert(0) += found;
                if stretch.is_guest {
                    *in_guests.entry((*name).to_owned()).or_insert(0) += found;
                }
            }
            at += step;
        }
    }
    (in_guests, in_all)
}

/// Something that looks like the inside of a PEM key, and stands nowhere else.
fn canary(name: &str) -> String {
    let random: Vec<u8> = (0..24).map(|_| rcgen::KeyPair::generate().unwrap().serialize_der()[50]).collect();
    format!("{name}{}", STANDARD.encode(random).replace(['+', '/', '='], "x"))
}

fn objects(key: &str, generic: &str) -> String {
    let rbac = "rbac.authorization.k8s.io/v1";
    let all = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "edge", "name": "shop-cert"},
            "data": {"tls.crt": STANDARD.encode("a certificate"), "tls.key": STANDARD.encode(key)}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "edge", "name": "generic"},
            "stringData": {"cert": "a certificate", "key": generic, "cacert": "roots"}}),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"namespace": "edge", "name": "sds"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"namespace": "edge", "name": "sds"},
            "roleRef": {"kind": "Role", "name": "sds"}, "subjects": [{"kind": "ServiceAccount", "name": "gateway"}]}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"namespace": "edge", "name": "shop"},
            "spec": {"selector": {"istio": "ingress"}, "servers": [
                {"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": "SIMPLE", "credentialName": "shop-cert"}},
                {"port": {"number": 8443, "name": "https-2", "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": "MUTUAL", "credentialName": "generic"}}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "edge", "name": "web"},
            "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "edge", "name": "web"},
            "spec": {"hosts": ["web"], "http": [{"match": [{"uri": {"prefix": format!("/{SEEN}")}}], "route": [{"destination": {"host": "web"}}]}]}}),
        // It has to be there for the gateway's listeners.
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "edge", "name": "pod-1", "labels": {"istio": "ingress"}},
            "spec": {"serviceAccountName": "gateway", "containers": [{"name": "a"}]}, "status": {"podIP": "10.0.0.9", "phase": "Running"}}),
    ];
    all.map(|object| object.to_string()).join("\n---\n")
}

/// Everything that somebody is sent of some types, as bytes.
async fn sent(server: &Server, token: &str, who: (&str, &str, &str), wanted: &[(&str, &[&str])]) -> Vec<u8> {
    let (kind, namespace, account) = who;
    let channel = server.channel().await;
    let mut node = node(kind, namespace, Some(account));
    if let Some(metadata) = &mut node.metadata {
        use trysail_proto::prost_types::{Struct, Value, value::Kind};
        let text = Value { kind: Some(Kind::StringValue("ingress".into())) };
        let labels = Struct { fields: [("istio".to_owned(), text)].into() };
        metadata.fields.insert("LABELS".into(), Value { kind: Some(Kind::StructValue(labels)) });
    }
    let mut all = Vec::new();
    for (type_url, names) in wanted {
        let mut stream = Stream::open(&channel, Some(token), ask(node.clone(), type_url, names)).await.unwrap();
        let mut awaited = vec![*type_url];
        if *type_url == SECRET {
            // Secrets that one may not have are not answered; answers to later questions are, and may come before them.
            stream.requests.send(ask(node.clone(), CLUSTER, &[])).await.unwrap();
            stream.requests.send(ask(node.clone(), LISTENER, &[])).await.unwrap();
            awaited = if kind == "router" { vec![SECRET, CLUSTER, LISTENER] } else { vec![CLUSTER, LISTENER] };
        }
        while !awaited.is_empty() {
            let response = stream.next().await.unwrap();
            awaited.retain(|awaited| *awaited != response.type_url);
            all.extend(response.encode_to_vec());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_nowhere_but_with_those_who_may_have_them() {
    let issuer = Issuer::new().unwrap();
    let (key, generic) = (canary("KEY"), canary("GENERIC"));
    let server = support::launch(&issuer, &[], &["--log_output_level=all:debug"], &objects(&key, &generic));
    let gateway = issuer.token("edge", "gateway").unwrap();
    let sidecar = issuer.token("shop", "reviews").unwrap();
    let secrets = ["kubernetes://shop-cert", "kubernetes://generic", "kubernetes://generic-cacert"];
    let own = [(LISTENER, &[][..]), (CLUSTER, &[]), (ROUTE, &["80"]), (SECRET, &secrets[..])];
    let of_gateway = sent(&server, &gateway, ("router", "edge", "gateway"), &own).await;
    let elsewhere = ["kubernetes://edge/shop-cert", "kubernetes-gateway://edge/shop-cert", "kubernetes://generic"];
    let others = [(LISTENER, &[][..]), (CLUSTER, &[]), (ROUTE, &["80"]), (SECRET, &elsewhere[..])];
    let of_sidecar = sent(&server, &sidecar, ("sidecar", "shop", "reviews"), &others).await;
    let certified: Certified = agent::certify(&server.channel().await, &sidecar).await.unwrap();

    // The key as it stands in its file: its text and its bytes where they are its own. The first 300 bytes are public.
    let signing = std::fs::read_to_string(server.folder.path().join("state/ca/ca-key.pem")).unwrap();
    let signing_der = pem::parse(&signing).unwrap().into_contents();
    let line = signing.lines().nth(12).unwrap();
    let mut needles: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    needles.insert("signing key, text", line.into());
    needles.insert("signing key, bytes", signing_der[600..640].to_vec());
    needles.insert("gateway key", key.clone().into());
    needles.insert("gateway key, base64", STANDARD.encode(&key)[..40].into());
    needles.insert("generic key", generic.clone().into());
    needles.insert("token", gateway[gateway.len() - 60..].into());
    needles.insert("token of the sidecar", sidecar[sidecar.len() - 60..].into());
    needles.insert("a workload's key", certified.key_pem.lines().nth(2).unwrap()[..40].into());
    let has = |text: &[u8]| -> Vec<&str> {
        let found = needles.iter().filter(|(_, needle)| Finder::new(needle).find(text).is_some());
        found.map(|(name, _)| *name).collect()
    };

    // Sent: the gateway has its keys, and nobody else has anything.
    assert_eq!(has(&of_gateway), ["gateway key", "generic key"]);
    assert!(of_sidecar.len() > 1000, "{} bytes", of_sidecar.len());
    assert_eq!(has(&of_sidecar), [] as [&str; 0]);

    // Memories.
    let mut controlled = needles.clone();
    controlled.insert("control", SEEN.into());
    let pid = server.child.id();
    let look = || async {
        let (in_guests, in_all) = search(pid, &controlled);
        anyhow::ensure!(in_guests.get("control").is_some_and(|n| *n > 0), "the control is in no guest: {in_guests:?}");
        Ok((in_guests, in_all))
    };
    let (in_guests, in_all) = eventually("the stages' memories", PATIENCE, look).await.unwrap();
    let held: Vec<&String> = in_guests.iter().filter(|(_, n)| **n > 0).map(|(name, _)| name).collect();
    assert_eq!(held, ["control"], "in linear memories");
    assert!(in_all["generic key"] > 0, "the search finds what the host holds: {in_all:?}");
    for name in ["signing key, text", "signing key, bytes", "a workload's key"] {
        assert_eq!(in_all[name], 0, "{name} is in the process that runs plugins");
    }

    // Pages, and the log at its finest.
    let proxy = "pod-1.edge";
    let mut n_pages = 0;
    for (address, path) in [
        (server.http, format!("/debug/config_dump?proxyID={proxy}")),
        (server.http, format!("/debug/config_dump?proxyID={proxy}&include_eds")),
        (server.http, "/debug/syncz".into()),
        (server.http, "/debug/status".into()),
        (server.http, "/debug/registryz".into()),
        (server.http, "/debug/configz".into()),
        (server.http, "/debug/adsz".into()),
        (server.http, "/debug/unused".into()),
        (server.http, format!("/debug/diagnostics?proxyID={proxy}")),
        (server.http, "/debug/list".into()),
        (server.http, "/debug/mesh".into()),
        (server.http, "/debug/resourcesz".into()),
        (server.http, "/debug/instancesz".into()),
        (server.http, "/debug/push_status".into()),
        (server.monitoring, "/metrics".into()),
        (server.monitoring, "/debug/configz".into()),
    ] {
        let (status, text) = Replica::page(address, &path).await.unwrap();
        n_pages += usize::from(status == 200 && text.len() > 2);
        assert_eq!(has(text.as_bytes()), [] as [&str; 0], "{path}");
    }
    assert!(n_pages >= 8, "{n_pages} pages say something");
    let log = server.log.lock().unwrap().clone();
    assert!(log.contains("shop-cert") && log.len() > 2000, "the log says something: {} bytes", log.len());
    assert_eq!(has(log.as_bytes()), [] as [&str; 0]);
}
