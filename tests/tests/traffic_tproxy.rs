//! Real traffic with `INTERCEPTION_MODE: TPROXY`: workloads see who really calls.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use trysail_tests::objects::{App, bare_pod, pod};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{HTTP_AND_LINES, Setting, Traffic, VERSIONS, app};

const CLIENT: App<'_> = app(
    "client",
    "10.96.6.1",
    &[pod("client", "10.244.6.1", "version: v1"), bare_pod("stranger", "10.244.6.2", "version: v1")],
);

const WEB: App<'_> = App {
    ports: HTTP_AND_LINES,
    ..app(
        "web",
        "10.96.6.2",
        &[pod("web-v1", "10.244.6.11", "version: v1"), pod("web-v2", "10.244.6.12", "version: v2")],
    )
};

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /two}}]
    route: [{destination: {host: web, subset: v2}}]
  - route: [{destination: {host: web, subset: v1}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: PERMISSIVE}
";

#[tokio::test(flavor = "multi_thread")]
async fn traffic_with_tproxy() {
    let yaml = format!("{CLIENT}{WEB}{VERSIONS}{RULES}");
    let setting = Setting { transparent: true, ..Setting::default() };
    let Some(mut traffic) = Traffic::start("traffic_with_tproxy", &yaml, setting).await else { return };
    let t = &mut traffic;

    let reply = t.get("client", "10.96.6.2:80", "web", "/", &[]).await;
    t.equal("a route", (reply.status, reply.said("pod")), (200, "web-v1"));
    t.equal("the workload sees the client's address", reply.said("peer"), "10.244.6.1");
    let by = reply.sent("x-forwarded-client-cert").to_owned();
    t.check("through mutual TLS", by.contains("/ns/shop/sa/client"), &by);
    let reply = t.get("client", "10.96.6.2:80", "web", "/two", &[]).await;
    t.equal("another route", (reply.status, reply.said("pod")), (200, "web-v2"));

    let reply = t.get("stranger", "10.244.6.11:8080", "web", "/", &[]).await;
    t.equal("plain text from outside", (reply.status, reply.said("peer")), (200, "10.244.6.2"));
    let inbound = t.mesh.pod("web-v1").stats("inbound|8080||").await.unwrap();
    t.check(
        "through the sidecar",
        inbound.iter().any(|(name, n)| name.ends_with("upstream_rq_total") && *n > 0),
        &inbound,
    );

    let lines = t.send("client", "10.96.6.2:9000", "hello\n").await;
    t.check("TCP", lines.contains("\"peer\":\"10.244.6.1\""), &lines);
    let lines = t.send("client", "10.244.6.12:9000", "hello\n").await;
    t.check("TCP to a pod's address", lines.contains("\"pod\":\"web-v2\""), &lines);
    let reply = t.get("web-v1", "10.244.6.11:8080", "web", "/", &[]).await;
    t.equal("a workload that calls itself", (reply.status, reply.said("pod")), (200, "web-v1"));
    traffic.finish(8).await;
}
