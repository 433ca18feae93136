//! Real traffic through gateways: what comes in by HTTP, HTTPS, TLS and TCP, and what goes out through an egress gateway.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use trysail_tests::eventually;
use trysail_tests::kube::{PodSpec, Speaks, WorkloadPort};
use trysail_tests::mesh::PATIENCE;
use trysail_tests::objects::{App, bare_pod, gateway_pod, pod, port};
use trysail_tests::tls::Outside;
use trysail_tests::workload::{self, Call, Reply, Session};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{HTTP_AND_LINES, Setting, Traffic, VERSIONS, app};

const INGRESS: App<'_> = App {
    name: "ingress",
    namespace: "edge",
    ip: "10.96.4.1",
    ports: &[port("http", 80, 8080), port("https", 443, 8443), port("tcp-lines", 9000, 9000)],
    pods: &[gateway_pod("ingress", "10.244.4.1", "")],
};

const EGRESS: App<'_> = App {
    name: "egress",
    namespace: "edge",
    ip: "10.96.4.2",
    ports: &[port("https", 443, 8443)],
    pods: &[gateway_pod("egress", "10.244.4.2", "")],
};

const WEB: App<'_> = App {
    ports: HTTP_AND_LINES,
    ..app(
        "web",
        "10.96.4.3",
        &[pod("web-v1", "10.244.4.11", "version: v1"), pod("web-v2", "10.244.4.12", "version: v2")],
    )
};

/// Speaks TLS itself.
const SECURE: App<'_> = App {
    name: "secure",
    namespace: "shop",
    ip: "10.96.4.4",
    ports: &[port("https", 443, 8443)],
    pods: &[bare_pod("secure", "10.244.4.21", "")],
};

const CLIENT: App<'_> = app("client", "10.96.4.5", &[pod("inside", "10.244.4.31", "")]);

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: edge}
spec:
  selector: {app: ingress}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [plain.example, "*.wild.example", "shop/shared.example", "other/hidden.example"]
  - port: {number: 80, name: http-moved, protocol: HTTP}
    hosts: [moved.example]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https-one, protocol: HTTPS}
    hosts: [one.example]
    tls: {mode: SIMPLE, serverCertificate: CERTS/one.pem, privateKey: CERTS/one-key.pem}
  - port: {number: 443, name: https-two, protocol: HTTPS}
    hosts: [two.example]
    tls: {mode: SIMPLE, serverCertificate: CERTS/two.pem, privateKey: CERTS/two-key.pem}
  - port: {number: 443, name: https-mutual, protocol: HTTPS}
    hosts: [mutual.example]
    tls:
      mode: MUTUAL
      serverCertificate: CERTS/mutual.pem
      privateKey: CERTS/mutual-key.pem
      caCertificates: CERTS/ca.pem
  - port: {number: 443, name: tls-pass, protocol: TLS}
    hosts: [pass.example]
    tls: {mode: PASSTHROUGH}
  - port: {number: 9000, name: tcp-lines, protocol: TCP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: second, namespace: edge}
spec:
  selector: {app: ingress}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [second.example]
  - port: {number: 443, name: https-second, protocol: HTTPS}
    hosts: [second.example]
    tls: {mode: SIMPLE, serverCertificate: CERTS/second.pem, privateKey: CERTS/second-key.pem}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain, namespace: shop}
spec:
  hosts: [plain.example, one.example, moved.example, mutual.example]
  gateways: [edge/front]
  http:
  - match: [{uri: {prefix: /two}}]
    route: [{destination: {host: web, subset: v2, port: {number: 80}}}]
  - route: [{destination: {host: web, subset: v1, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: shop}
spec:
  hosts: ["*.wild.example", two.example]
  gateways: [edge/front]
  http: [{route: [{destination: {host: web, subset: v2, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: exact, namespace: shop}
spec:
  hosts: [exact.wild.example]
  gateways: [edge/front]
  http: [{route: [{destination: {host: web, subset: v1, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shared, namespace: shop}
spec:
  hosts: [shared.example]
  gateways: [edge/front]
  http: [{route: [{destination: {host: web, subset: v1, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shared-paths, namespace: shop}
spec:
  hosts: [shared.example]
  gateways: [edge/front]
  http:
  - match: [{uri: {prefix: /two}}]
    route: [{destination: {host: web, subset: v2, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hidden, namespace: shop}
spec:
  hosts: [hidden.example]
  gateways: [edge/front]
  http: [{route: [{destination: {host: web, subset: v1, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second, namespace: shop}
spec:
  hosts: [second.example]
  gateways: [edge/second]
  http: [{route: [{destination: {host: web, subset: v2, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass, namespace: shop}
spec:
  hosts: [pass.example]
  gateways: [edge/front]
  tls:
  - match: [{port: 443, sniHosts: [pass.example]}]
    route: [{destination: {host: secure.shop.svc.cluster.local, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lines, namespace: shop}
spec:
  hosts: [lines.example]
  gateways: [edge/front]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: web, subset: v2, port: {number: 9000}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: world, namespace: shop}
spec:
  hosts: [world.example]
  addresses: [10.99.4.1]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: https, protocol: HTTPS, targetPort: 8443}
  endpoints: [{address: 10.244.9.4}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: edge}
spec:
  selector: {app: egress}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [world.example]
    tls: {mode: ISTIO_MUTUAL}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egress, namespace: edge}
spec:
  host: egress.edge.svc.cluster.local
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls: {mode: ISTIO_MUTUAL, sni: world.example}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: world, namespace: shop}
spec:
  host: world.example
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls: {mode: SIMPLE, sni: world.example, caCertificates: CERTS/ca.pem}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: world, namespace: shop}
spec:
  hosts: [world.example]
  gateways: [mesh, edge/egress]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route: [{destination: {host: egress.edge.svc.cluster.local, port: {number: 443}}}]
  - match: [{gateways: [edge/egress], port: 443}]
    route: [{destination: {host: world.example, port: {number: 443}}}]
"#;

const HTTP: &str = "10.244.4.1:8080";
const HTTPS: &str = "10.244.4.1:8443";
const LINES: &str = "10.244.4.1:9000";

/// The mesh, certificates in a folder that its gateways read, and a client that knows nothing of the mesh.
async fn start(test: &str) -> Option<(Traffic, Outside, tempfile::TempDir)> {
    let certificates = tempfile::tempdir().unwrap();
    let outside = Outside::new(certificates.path(), &["pass.example", "world.example"]).unwrap();
    for name in ["one", "two", "mutual", "second"] {
        outside.issue(name, &[&format!("{name}.example")]).unwrap();
    }
    let bare = |name: &str, d: u8, ports: &[(u16, Speaks)]| PodSpec {
        sidecar: false,
        ports: ports.iter().map(|(number, speaks)| WorkloadPort { number: *number, speaks: *speaks }).collect(),
        ..PodSpec::outside(name, Ipv4Addr::new(10, 244, 9, d))
    };
    let setting = Setting {
        outside: vec![bare("stranger", 3, &[]), bare("world", 4, &[(8443, Speaks::Tls)])],
        tls: Some(outside.clone()),
        ..Setting::default()
    };
    let rules = RULES.replace("CERTS", &certificates.path().display().to_string());
    let yaml = format!("{INGRESS}{EGRESS}{WEB}{SECURE}{CLIENT}{VERSIONS}{rules}");
    Some((Traffic::start(test, &yaml, setting).await?, outside, certificates))
}

fn failed(error: &anyhow::Error) -> Reply {
    let body = format!("{error:#}");
    Reply { status: 0, headers: Default::default(), body, who: Default::default() }
}

/// A GET of a stranger over TLS, with or without a certificate. A handshake that fails is an answer with status 0.
async fn secure(t: &Traffic, outside: &Outside, host: &str, path: &str, shown: bool) -> Reply {
    let call = Call { to: HTTPS.parse().unwrap(), host, method: "GET", path, headers: &[] };
    let config = if shown { outside.client_with_certificate() } else { outside.client() };
    let from = t.mesh.pod("stranger").netns();
    workload::call_tls_as(from, call, host, config).await.unwrap_or_else(|error| failed(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways() {
    let Some((mut t, outside, _certificates)) = start("gateways").await else { return };
    http(&mut t).await;
    https(&mut t, &outside).await;
    others(&mut t, &outside).await;
    out(&mut t).await;
    t.finish(24).await;
}

async fn http(t: &mut Traffic) {
    let settled = || async {
        let reply = t.get("stranger", HTTP, "plain.example", "/", &[]).await;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        Ok(())
    };
    eventually("the gateway serves", PATIENCE, settled).await.unwrap();
    for (what, host, path, version) in [
        ("HTTP by its host", "plain.example", "/", "v1"),
        ("HTTP by its path", "plain.example", "/two", "v2"),
        ("wildcard host", "any.wild.example", "/", "v2"),
        ("exact host before the wildcard", "exact.wild.example", "/", "v1"),
        ("host for one namespace", "shared.example", "/", "v1"),
        ("VirtualServices of one host are merged, catch-all last", "shared.example", "/two", "v2"),
        ("second Gateway on the port", "second.example", "/", "v2"),
    ] {
        let reply = t.get("stranger", HTTP, host, path, &[]).await;
        t.equal(what, (reply.status, reply.said("version").to_owned()), (200, version.to_owned()));
    }
    let reply = t.get("stranger", HTTP, "nobody.example", "/", &[]).await;
    t.equal("unknown host", reply.status, 404);
    let reply = t.get("stranger", HTTP, "hidden.example", "/", &[]).await;
    t.equal("host for another namespace", reply.status, 404);
    let reply = t.get("stranger", HTTP, "moved.example", "/a", &[]).await;
    let to = reply.headers.get("location").map(String::as_str).unwrap_or_default().to_owned();
    t.equal("redirect to HTTPS", (reply.status, to), (301, "https://moved.example/a".to_owned()));
    let reply = t.get("stranger", HTTP, "plain.example", "/", &[]).await;
    let certificate = reply.sent("x-forwarded-client-cert").to_owned();
    t.check("mutual TLS from the gateway into the mesh", certificate.contains("/ns/edge/sa/ingress"), &certificate);
    t.equal("the client's address is told", reply.sent("x-forwarded-for").to_owned(), "10.244.9.3".to_owned());
}

async fn https(t: &mut Traffic, outside: &Outside) {
    for (what, host, version) in [
        ("HTTPS with its own certificate", "one.example", "v1"),
        ("HTTPS with another certificate, by name", "two.example", "v2"),
        ("HTTPS of the second Gateway", "second.example", "v2"),
    ] {
        // The client takes no certificate of another name.
        let reply = secure(t, outside, host, "/", false).await;
        t.equal(what, (reply.status, reply.said("version").to_owned()), (200, version.to_owned()));
    }
    let reply = secure(t, outside, "one.example", "/two", false).await;
    t.equal("paths within TLS", reply.said("version").to_owned(), "v2".to_owned());
    let reply = secure(t, outside, "nobody.example", "/", false).await;
    t.equal("no certificate for an unknown name", reply.status, 0);
    let call = Call { to: HTTPS.parse().unwrap(), host: "two.example", method: "GET", path: "/", headers: &[] };
    let from = t.mesh.pod("stranger").netns();
    let reply = workload::call_tls_as(from, call, "one.example", outside.client()).await.unwrap();
    t.equal("a host of another certificate's server", reply.status, 404);
    let reply = secure(t, outside, "mutual.example", "/", false).await;
    t.equal("mutual TLS without a certificate", reply.status, 0);
    let reply = secure(t, outside, "mutual.example", "/", true).await;
    t.equal("mutual TLS with one", (reply.status, reply.said("version").to_owned()), (200, "v1".to_owned()));
    let certificate = reply.sent("x-forwarded-client-cert").to_owned();
    t.check("which the workload is told of", certificate.contains("DNS=client.example"), &certificate);
}

async fn others(t: &mut Traffic, outside: &Outside) {
    let reply = secure(t, outside, "pass.example", "/", false).await;
    t.equal("TLS is passed on", (reply.status, reply.said("app").to_owned()), (200, "secure".to_owned()));
    t.equal("with its name", reply.said("sni").to_owned(), "pass.example".to_owned());
    let line = t.send("stranger", LINES, "hello\n").await;
    t.check("TCP", line.contains("\"pod\":\"web-v2\"") && line.contains("hello"), &line);
}

async fn out(t: &mut Traffic) {
    let reply = t.get("inside", "10.99.4.1:80", "world.example", "/", &[]).await;
    t.equal("out through the egress gateway", (reply.status, reply.said("pod").to_owned()), (200, "world".to_owned()));
    t.equal("which speaks TLS", reply.said("sni").to_owned(), "world.example".to_owned());
    let stats = t.mesh.pod("egress").stats("outbound|443||world.example").await.unwrap();
    let n = stats.iter().find(|(name, _)| name.ends_with("upstream_rq_total")).map(|(_, n)| *n);
    t.equal("by its own cluster", n, Some(1));
}

/// Requests and edits of the test under load.
const REQUESTS: usize = 10_000;
const EDITS: usize = 100;
/// Requests on one connection.
const KEPT: usize = 50;

/// What clients do while routes and certificates are edited.
struct Load<'t> {
    t: &'t Traffic,
    outside: &'t Outside,
    edited: AtomicBool,
    n_requests: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Load<'_> {
    /// One client, until all is edited and enough was asked.
    async fn client(&self, tls: bool) {
        while !self.edited.load(Ordering::Relaxed) || self.n_requests.load(Ordering::Relaxed) < REQUESTS {
            if let Err(error) = self.connection(tls).await {
                self.wrong.lock().unwrap().push(format!("{error:#}"));
            }
        }
    }

    async fn connection(&self, tls: bool) -> anyhow::Result<()> {
        let (to, host) = if tls { (HTTPS, "one.example") } else { (HTTP, "plain.example") };
        let call = Call { to: to.parse().unwrap(), host, method: "GET", path: "/", headers: &[] };
        let secure = tls.then(|| (host, self.outside.client()));
        let mut session = Session::open(self.t.mesh.pod("stranger").netns(), call.to, secure).await?;
        for _ in 0..KEPT {
            let reply = session.send(&call).await?;
            anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
            self.n_requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Routes to the one and the other version, and certificates, by turns. Returns the last certificate.
    async fn edits(&self) -> Vec<u8> {
        let mut last = Vec::new();
        for i in 0..EDITS {
            if i % 2 == 0 {
                let (old, new) = if i % 4 == 0 { ("v1", "v2") } else { ("v2", "v1") };
                let route = |version: &str| {
                    format!("- route: [{{destination: {{host: web, subset: {version}, port: {{number: 80}}}}}}]")
                };
                self.t.edit("metadata: {name: plain,", &route(old), &route(new));
            } else {
                last = self.outside.issue("one", &["one.example"]).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.edited.store(true, Ordering::Relaxed);
        last
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_under_load() {
    let Some((mut t, outside, _certificates)) = start("edits_under_load").await else { return };
    let ready = || async {
        let reply = secure(&t, &outside, "one.example", "/", false).await;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        Ok(())
    };
    eventually("the gateway serves", PATIENCE, ready).await.unwrap();

    let (edited, n_requests, wrong) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
    let load = Load { t: &t, outside: &outside, edited, n_requests, wrong };
    let clients =
        || async { tokio::join!(load.client(false), load.client(true), load.client(false), load.client(true)) };
    let (last, _) = tokio::join!(load.edits(), clients());
    let (n, wrong) = (load.n_requests.into_inner(), load.wrong.into_inner().unwrap());
    let to = HTTPS.parse().unwrap();
    let shown = || async {
        let from = t.mesh.pod("stranger").netns();
        let session = Session::open(from, to, Some(("one.example", outside.client()))).await?;
        anyhow::ensure!(session.certificate() == Some(last.as_slice()), "an older certificate");
        Ok(())
    };
    let newest = eventually("the last certificate is shown", PATIENCE, shown).await;
    t.check("so many requests", n >= REQUESTS, &n);
    t.check("none failed", wrong.is_empty(), &wrong);
    t.check("the last certificate is shown", newest.is_ok(), &newest);
    t.finish(3).await;
}
