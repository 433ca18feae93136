//! Real traffic between workloads: mutual TLS in every mode, by mesh, namespace, workload and port.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use trysail_tests::bootstrap::Variant;
use trysail_tests::objects::{App, AppPod, bare_pod, pod};
use trysail_tests::sds::spiffe;

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{HTTP_AND_LINES, Setting, Traffic, app};

const CLIENT: App<'_> = app(
    "client",
    "10.96.3.1",
    &[pod("client", "10.244.4.1", "version: v1"), bare_pod("plain", "10.244.4.2", "version: v1")],
);

/// An app with a sidecar, HTTP on 80 and lines on 9000.
const fn server<'a>(name: &'a str, namespace: &'a str, ip: &'a str, pods: &'a [AppPod<'a>]) -> App<'a> {
    App { name, namespace, ip, ports: HTTP_AND_LINES, pods }
}

const SERVERS: [App<'_>; 5] = [
    server("strict", "vault", "10.96.3.2", &[pod("strict", "10.244.4.11", "")]),
    server("ported", "vault", "10.96.3.3", &[pod("ported", "10.244.4.12", "")]),
    server("permissive", "shop", "10.96.3.4", &[pod("permissive", "10.244.4.13", "")]),
    server("disabled", "shop", "10.96.3.5", &[pod("disabled", "10.244.4.14", "")]),
    server("insisted", "shop", "10.96.3.6", &[pod("insisted", "10.244.4.15", "")]),
];

const RULES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: vault}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ported, namespace: vault}
spec:
  selector: {matchLabels: {app: ported}}
  mtls: {mode: STRICT}
  portLevelMtls: {9000: {mode: DISABLE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: disabled, namespace: shop}
spec:
  selector: {matchLabels: {app: disabled}}
  mtls: {mode: DISABLE}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: insisted, namespace: shop}
spec:
  host: insisted
  trafficPolicy:
    tls: {mode: ISTIO_MUTUAL}
    portLevelSettings:
    - {port: {number: 9000}, tls: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plaintext, namespace: vault}
spec:
  host: strict.vault.svc.cluster.local
  subsets:
  - {name: plaintext, labels: {app: strict}, trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: strict, namespace: vault}
spec:
  hosts: [strict.vault.svc.cluster.local]
  http:
  - match: [{uri: {prefix: /plaintext}}]
    retries: {attempts: 0}
    route: [{destination: {host: strict.vault.svc.cluster.local, subset: plaintext}}]
  - route: [{destination: {host: strict.vault.svc.cluster.local}}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls() {
    let servers: String = SERVERS.iter().map(ToString::to_string).collect();
    let yaml = format!("{CLIENT}{servers}{RULES}");
    let setting = Setting { variant: Variant::Sotw, ..Setting::default() };
    let Some(mut t) = Traffic::start("mutual_tls", &yaml, setting).await else { return };

    // HTTP: who has a sidecar shows a certificate wherever the other side asks for it.
    for (host, to, pod, shown) in [
        ("strict.vault", "10.96.3.2:80", "10.244.4.11:8080", true),
        ("ported.vault", "10.96.3.3:80", "10.244.4.12:8080", true),
        ("permissive.shop", "10.96.3.4:80", "10.244.4.13:8080", true),
        ("disabled.shop", "10.96.3.5:80", "10.244.4.14:8080", false),
        ("insisted.shop", "10.96.3.6:80", "10.244.4.15:8080", true),
    ] {
        let (app, namespace) = host.split_once('.').unwrap();
        let reply = t.get("client", to, host, "/", &[]).await;
        let certificates = reply.sent("x-forwarded-client-cert").to_owned();
        let names = [spiffe("shop", "client"), spiffe(namespace, app)];
        let is_shown = names.iter().all(|name| certificates.contains(name.as_str()));
        t.equal(&format!("{app}: the sidecar shows a certificate"), (reply.status, is_shown), (200, shown));

        let reply = t.get("plain", pod, host, "/", &[]).await;
        let lets_in = namespace == "shop";
        t.equal(&format!("{app}: a caller without a sidecar"), reply.status, if lets_in { 200 } else { 0 });
        if lets_in {
            t.equal(&format!("{app}: who has no certificate"), reply.sent("x-forwarded-client-cert"), "");
        }
    }

    // TCP: by who gets through, and by what the server's sidecar terminated.
    for (app, to, pod, lets_in, tls) in [
        ("strict", "10.96.3.2:9000", "10.244.4.11:9000", false, true),
        ("ported", "10.96.3.3:9000", "10.244.4.12:9000", true, false),
        ("permissive", "10.96.3.4:9000", "10.244.4.13:9000", true, true),
        ("disabled", "10.96.3.5:9000", "10.244.4.14:9000", true, false),
        ("insisted", "10.96.3.6:9000", "10.244.4.15:9000", true, false),
    ] {
        let handshakes = || async {
            let stats = t.mesh.pod(app).stats("ssl.handshake").await.unwrap();
            stats.iter().filter(|(name, _)| name.starts_with("listener.")).map(|(_, n)| *n).sum::<u64>()
        };
        let before = handshakes().await;
        let line = t.send("client", to, "hello\n").await;
        let after = handshakes().await;
        t.check(&format!("{app}: TCP from a sidecar"), line.contains("hello"), &line);
        t.equal(&format!("{app}: TCP from a sidecar is mutual TLS"), after > before, tls);
        let line = t.send("plain", pod, "hello\n").await;
        t.equal(&format!("{app}: TCP from a caller without a sidecar"), line.contains("hello"), lets_in);
    }

    let reply = t.get("client", "10.96.3.2:80", "strict.vault", "/plaintext", &[]).await;
    t.equal("a DestinationRule that disables TLS meets STRICT", reply.status, 503);
    t.finish(25).await;
}
