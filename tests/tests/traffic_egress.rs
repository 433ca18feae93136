//! Real traffic that leaves the mesh or its services' usual ways: ServiceEntries, unknown destinations, TCP routes, headless
//! services, and what a Sidecar changes.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use trysail_tests::kube::{PodSpec, Speaks, WorkloadPort};
use trysail_tests::objects::{App, bare_pod, pod, port};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{Setting, Traffic, VERSIONS, app};

const CLIENTS: App<'_> = app(
    "client",
    "10.96.2.1",
    &[
        pod("open", "10.244.3.1", "who: open"),
        pod("closed", "10.244.3.2", "who: closed"),
        pod("dynamic", "10.244.3.3", "who: dynamic"),
        pod("proxied", "10.244.3.4", "who: proxied"),
    ],
);

const WEB: App<'_> = App {
    name: "web",
    namespace: "shop",
    ip: "10.96.2.2",
    ports: &[port("http", 80, 8080), port("tcp-lines", 9000, 9000), port("http-other", 7777, 8081)],
    pods: &[pod("web-v1", "10.244.3.11", "version: v1"), bare_pod("web-v2", "10.244.3.12", "version: v2")],
};

const HEADLESS: App<'_> = App {
    name: "headless",
    namespace: "shop",
    ip: "",
    ports: &[port("http", 8080, 8080), port("tcp-lines", 9000, 9000)],
    pods: &[bare_pod("headless-1", "10.244.3.21", ""), bare_pod("headless-2", "10.244.3.22", "")],
};

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lines, namespace: shop}
spec:
  hosts: [web]
  tcp:
  - match: [{port: 9000, sourceLabels: {who: closed}}]
    route: [{destination: {host: web, subset: v2, port: {number: 9000}}}]
  - match: [{port: 9000}]
    route: [{destination: {host: web, subset: v1, port: {number: 9000}}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: closed, namespace: shop}
spec:
  workloadSelector: {labels: {who: closed}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress:
  - port: {number: 7777, protocol: HTTP, name: http}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ["./web.shop.svc.cluster.local"]
  - hosts: ["./web.shop.svc.cluster.local", "./static.example"]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: shop}
spec:
  workloadSelector: {labels: {version: v1}}
  ingress:
  - port: {number: 8080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9000, protocol: TCP, name: tcp-lines}
    defaultEndpoint: 127.0.0.1:9000
  - port: {number: 6060, protocol: HTTP, name: http-other}
    defaultEndpoint: 127.0.0.1:8080
  egress: [{hosts: ["*/*"]}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: open, namespace: shop}
spec:
  workloadSelector: {labels: {who: open}}
  outboundTrafficPolicy: {mode: ALLOW_ANY}
  egress: [{hosts: ["*/*"]}]
---
kind: MeshConfig
outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: proxied, namespace: shop}
spec:
  workloadSelector: {labels: {who: proxied}}
  outboundTrafficPolicy:
    mode: ALLOW_ANY
    egressProxy: {host: web.shop.svc.cluster.local, port: {number: 80}}
  egress: [{hosts: ["./*"]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: shop}
spec:
  hosts: [static.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.244.9.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: shop}
spec:
  hosts: [dns.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 8080, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns-endpoints, namespace: shop}
spec:
  hosts: [alias.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: backend.example}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ["*.wild.example"]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 8080, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: lines, namespace: shop}
spec:
  hosts: [lines.example]
  addresses: [10.99.0.1]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.244.9.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: range, namespace: shop}
spec:
  hosts: [range.example]
  addresses: [10.244.9.0/24]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 9001, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: machines, namespace: shop}
spec:
  hosts: [machines.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  workloadSelector: {labels: {kind: machine}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine, namespace: shop}
spec:
  address: 10.244.9.2
  labels: {kind: machine}
"#;

fn outside(name: &str, d: u8, ports: &[(u16, Speaks)]) -> PodSpec {
    PodSpec {
        sidecar: false,
        ports: ports.iter().map(|(number, speaks)| WorkloadPort { number: *number, speaks: *speaks }).collect(),
        ..PodSpec::outside(name, Ipv4Addr::new(10, 244, 9, d))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn egress() {
    let lines = [(8080, Speaks::Http), (9000, Speaks::Tcp), (9001, Speaks::Tcp), (5000, Speaks::Tcp)];
    let name = |name: &str, d: u8| (name.to_owned(), Ipv4Addr::new(10, 244, 9, d));
    let setting = Setting {
        outside: vec![outside("world", 1, &lines), outside("machine", 2, &[(8080, Speaks::Http)])],
        names: BTreeMap::from([name("dns.example", 1), name("backend.example", 2), name("unheard.example", 2)]),
        ..Setting::default()
    };
    let yaml = format!("{CLIENTS}{WEB}{HEADLESS}{VERSIONS}{RULES}");
    let Some(mut t) = Traffic::start("egress", &yaml, setting).await else { return };
    entries(&mut t).await;
    unknown(&mut t).await;
    tcp(&mut t).await;
    sidecars(&mut t).await;
    t.finish(24).await;
}

async fn entries(t: &mut Traffic) {
    // The address does not matter: the host header decides.
    let anywhere = "10.99.7.7:80";
    for (what, to, host, pod) in [
        ("ServiceEntry with a fixed endpoint", anywhere, "static.example", "world"),
        ("ServiceEntry that is resolved", "10.99.7.7:8080", "dns.example", "world"),
        ("ServiceEntry with a resolved endpoint", anywhere, "alias.example", "machine"),
        ("ServiceEntry with a WorkloadEntry", anywhere, "machines.example", "machine"),
        ("wildcard ServiceEntry passes on to where it was going", "10.244.9.2:8080", "any.wild.example", "machine"),
    ] {
        let reply = t.get("open", to, host, "/", &[]).await;
        t.equal(what, reply.said("pod"), pod);
    }
    let clusters = t.mesh.pod("open").stats("cluster.outbound|8080||*.wild.example").await.unwrap();
    let n_requests = clusters.iter().find(|(name, _)| name.ends_with("upstream_rq_total")).map(|(_, n)| *n);
    t.equal("the wildcard's own cluster took it", n_requests, Some(1));
}

async fn unknown(t: &mut Traffic) {
    let reply = t.get("open", "10.244.9.1:8080", "nobody.example", "/", &[]).await;
    t.equal("ALLOW_ANY: an unknown host on a known port", reply.said("pod"), "world");
    let line = t.send("open", "10.244.9.1:5000", "hello\n").await;
    t.check("ALLOW_ANY: an unknown port", line.contains("\"pod\":\"world\""), &line);
    let reply = t.get("closed", "10.244.9.1:80", "nobody.example", "/", &[]).await;
    t.equal("REGISTRY_ONLY: an unknown host", reply.status, 502);
    let line = t.send("closed", "10.244.9.1:5000", "hello\n").await;
    t.equal("REGISTRY_ONLY: an unknown port", line, String::new());
    let reply = t.get("closed", "10.99.7.7:80", "static.example", "/", &[]).await;
    t.equal("REGISTRY_ONLY: a known host", reply.said("pod"), "world");
    let reply = t.get("closed", "10.99.7.7:80", "machines.example", "/", &[]).await;
    t.equal("REGISTRY_ONLY: a host that the Sidecar does not import", reply.status, 502);
    let reply = t.get("dynamic", "10.99.7.7:8080", "unheard.example:8080", "/", &[]).await;
    t.equal("ALLOW_ANY_DYNAMIC_DNS: the host is resolved", reply.said("pod"), "machine");
    let reply = t.get("proxied", "10.244.9.1:8080", "nobody.example", "/", &[]).await;
    t.check("egress proxy: unknown hosts go there", reply.said("app") == "web", &reply);
}

async fn tcp(t: &mut Traffic) {
    let said = |line: &str, pod: &str| line.contains(&format!("\"pod\":\"{pod}\""));
    let line = t.send("open", "10.99.0.1:9000", "hello\n").await;
    t.check("TCP to a ServiceEntry's address", said(&line, "world") && line.contains("hello"), &line);
    let line = t.send("open", "10.244.9.1:9001", "hello\n").await;
    t.check("TCP to a range of addresses", said(&line, "world"), &line);
    let stats = t.mesh.pod("open").stats("cluster.outbound|9001||range.example").await.unwrap();
    let n = stats.iter().find(|(name, _)| name.ends_with("upstream_cx_total")).map(|(_, n)| *n);
    t.equal("by the range's own cluster", n, Some(1));
    let line = t.send("open", "10.96.2.2:9000", "hello\n").await;
    t.check("TCP route", said(&line, "web-v1"), &line);
    let line = t.send("closed", "10.96.2.2:9000", "hello\n").await;
    t.check("TCP route by labels of the source", said(&line, "web-v2"), &line);
    for pod in ["headless-1", "headless-2"] {
        let to = if pod == "headless-1" { "10.244.3.21" } else { "10.244.3.22" };
        let line = t.send("open", &format!("{to}:9000"), "hello\n").await;
        t.check(&format!("TCP to {pod}"), said(&line, pod), &line);
        let reply = t.get("open", &format!("{to}:8080"), "headless.shop", "/", &[]).await;
        t.equal(&format!("HTTP to {pod}"), reply.said("pod"), pod);
    }
}

async fn sidecars(t: &mut Traffic) {
    let reply = t.get("closed", "127.0.0.1:7777", "web", "/", &[]).await;
    t.equal("Sidecar egress listener with an address of its own", reply.said("app"), "web");
    let reply = t.get("closed", "127.0.0.1:7777", "static.example", "/", &[]).await;
    t.equal("which has its own hosts only", reply.status, 502);
    let reply = t.get("open", "10.244.3.11:6060", "anything", "/", &[]).await;
    t.equal("Sidecar ingress listener with a default endpoint", reply.said("pod"), "web-v1");
    let stats = t.mesh.pod("web-v1").stats("cluster.inbound|6060||").await.unwrap();
    let n = stats.iter().find(|(name, _)| name.ends_with("upstream_cx_total")).map(|(_, n)| *n);
    t.equal("by its own cluster", n, Some(1));
    let reply = t.get("closed", "10.96.2.2:80", "web", "/", &[]).await;
    t.equal("Sidecar egress host", reply.said("app"), "web");
}
