//! Real traffic with TLS that is not the mesh's own: origination by a sidecar, routes by server name, and TLS that passes through.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;

use trysail_tests::kube::{PodSpec, Speaks, WorkloadPort};
use trysail_tests::objects::{App, pod, port};
use trysail_tests::tls::Outside;
use trysail_tests::workload::{self, Call};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{Setting, Traffic, app};

const CLIENT: App<'_> = app("client", "10.96.4.1", &[pod("client", "10.244.5.1", "version: v1")]);

/// A workload of the mesh that speaks TLS itself.
const INNER: App<'_> = App {
    name: "inner",
    namespace: "shop",
    ip: "10.96.4.2",
    ports: &[port("https-own", 443, 8443)],
    pods: &[pod("inner", "10.244.5.2", "version: v1")],
};

/// Names of the servers.
const NAMES: [&str; 10] = [
    "secure.example",
    "mutual.example",
    "trusting.example",
    "one.example",
    "two.example",
    "moved.example",
    "any.wild.example",
    "any.dynamic.example",
    "late.example",
    "inner.shop.svc.cluster.local",
];

/// Plain HTTP that the sidecar makes TLS of: a ServiceEntry and its DestinationRule.
fn originated(name: &str, port: u16, tls: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{name}.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  endpoints: [{{address: 10.244.9.11}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: shop}}
spec:
  host: {name}.example
  trafficPolicy: {{tls: {{{tls}}}}}
"
    )
}

/// TLS that passes through by its server name.
fn passed(name: &str, resolution: &str, endpoint: &str) -> String {
    let endpoints =
        if endpoint.is_empty() { String::new() } else { format!("  endpoints: [{{address: {endpoint}}}]\n") };
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {}, namespace: shop}}
spec:
  hosts: [\"{name}\"]
  location: MESH_EXTERNAL
  resolution: {resolution}
  ports: [{{number: 443, name: tls, protocol: TLS}}]
{endpoints}",
        name.replace("*.", "any-").replace('.', "-")
    )
}

const RULES: &str = r#"---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: moved, namespace: shop}
spec:
  hosts: [moved.example]
  tls:
  - match: [{port: 443, sniHosts: [moved.example]}]
    route: [{destination: {host: two.example, port: {number: 443}}}]
"#;

fn outside(name: &str, d: u8) -> PodSpec {
    let port = |number, speaks| WorkloadPort { number, speaks };
    PodSpec {
        sidecar: false,
        ports: vec![port(443, Speaks::Tls), port(8443, Speaks::MutualTls)],
        ..PodSpec::outside(name, Ipv4Addr::new(10, 244, 9, d))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls() {
    let files = tempfile::tempdir().unwrap();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let world = Outside::new(files.path(), &NAMES).unwrap();
    let ca = format!("caCertificates: {}", world.file("ca.pem"));
    let certificate =
        format!("clientCertificate: {}, privateKey: {}", world.file("client.pem"), world.file("client-key.pem"));
    let mut yaml = format!("{CLIENT}{INNER}");
    for (name, port, tls) in [
        ("secure", 443, format!("mode: SIMPLE, sni: secure.example, subjectAltNames: [secure.example], {ca}")),
        ("late", 443, format!("mode: SIMPLE, {ca}")),
        ("mutual", 8443, format!("mode: MUTUAL, sni: mutual.example, {ca}, {certificate}")),
        ("bare", 8443, format!("mode: SIMPLE, sni: mutual.example, {ca}")),
        ("misnamed", 443, format!("mode: SIMPLE, sni: one.example, subjectAltNames: [other.example], {ca}")),
        ("mistrusted", 443, format!("mode: SIMPLE, sni: one.example, caCertificates: {}", world.file("client.pem"))),
        ("trusting", 443, "mode: SIMPLE, sni: trusting.example, insecureSkipVerify: true".to_owned()),
    ] {
        yaml += &originated(name, port, &tls);
    }
    for (name, resolution, endpoint) in [
        ("one.example", "STATIC", "10.244.9.11"),
        ("two.example", "STATIC", "10.244.9.12"),
        ("moved.example", "STATIC", "10.244.9.11"),
        ("*.wild.example", "NONE", ""),
        ("*.dynamic.example", "DYNAMIC_DNS", ""),
    ] {
        yaml += &passed(name, resolution, endpoint);
    }
    yaml += RULES;
    let setting = Setting {
        outside: vec![outside("world-1", 11), outside("world-2", 12)],
        names: BTreeMap::from([("any.dynamic.example".to_owned(), Ipv4Addr::new(10, 244, 9, 12))]),
        tls: Some(world.clone()),
        ..Setting::default()
    };
    let Some(mut t) = Traffic::start("tls", &yaml, setting).await else { return };
    origination(&mut t).await;
    server_names(&mut t, &world).await;
    t.finish(14).await;
}

async fn origination(t: &mut Traffic) {
    let anywhere = "10.99.7.7:80";
    let reply = t.get("client", anywhere, "secure.example", "/", &[]).await;
    t.equal("SIMPLE", (reply.status, reply.said("sni")), (200, "secure.example"));
    let reply = t.get("client", anywhere, "late.example", "/", &[]).await;
    t.equal("SIMPLE with the name from the request", (reply.status, reply.said("sni")), (200, "late.example"));
    let reply = t.get("client", anywhere, "mutual.example", "/", &[]).await;
    let shown = reply.who.get("client_certificate").and_then(serde_json::Value::as_bool);
    t.equal("MUTUAL", (reply.status, shown), (200, Some(true)));
    let reply = t.get("client", anywhere, "trusting.example", "/", &[]).await;
    t.equal("without verification", (reply.status, reply.said("sni")), (200, "trusting.example"));
    for (what, host) in [
        ("a server that wants a certificate", "bare.example"),
        ("a server of another name", "misnamed.example"),
        ("a server of another authority", "mistrusted.example"),
    ] {
        let reply = t.get("client", anywhere, host, "/", &[]).await;
        t.equal(what, reply.status, 503);
    }
}

async fn server_names(t: &mut Traffic, world: &Outside) {
    for (what, to, name, pod) in [
        ("by server name", "10.99.7.7:443", "one.example", "world-1"),
        ("by another server name", "10.99.7.7:443", "two.example", "world-2"),
        ("TLS route of a VirtualService", "10.99.7.7:443", "moved.example", "world-2"),
        ("wildcard goes on to where it was going", "10.244.9.12:443", "any.wild.example", "world-2"),
        ("wildcard that is resolved", "10.99.7.7:443", "any.dynamic.example", "world-2"),
        ("TLS of a workload within the mesh", "10.96.4.2:443", "inner.shop.svc.cluster.local", "inner"),
    ] {
        let call = Call { to: to.parse().unwrap(), host: name, method: "GET", path: "/", headers: &[] };
        let reply = workload::call_tls(t.mesh.pod("client").netns(), call, name, world).await;
        match reply {
            Ok(reply) => t.equal(what, (reply.said("pod"), reply.said("sni")), (pod, name)),
            Err(error) => t.check(what, false, &error),
        }
    }
    let stats = t.mesh.pod("inner").stats("ssl.handshake").await.unwrap();
    let n: u64 = stats.iter().filter(|(name, _)| name.starts_with("listener.")).map(|(_, n)| *n).sum();
    t.check("which goes through the mesh's mutual TLS", n > 0, &stats);
}
