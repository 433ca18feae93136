//! Real traffic by DestinationRules: how it is spread over endpoints and localities, and when endpoints are left out.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;

use trysail_tests::bootstrap::Variant;
use trysail_tests::objects::{App, bare_pod, pod};
use trysail_tests::workload::{DELAY, ONLY, STATUS};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{Setting, Traffic, app};

const CLIENT: App<'_> =
    app("client", "10.96.1.1", &[pod("client", "10.244.2.1", "version: v1, istio-locality: r1.z1.a")]);

/// Services with three pods each, one in each zone of r1 and one in another region. None has a sidecar.
const SERVICES: [&str; 12] = [
    "by-header",
    "by-cookie",
    "by-address",
    "by-query",
    "in-turn",
    "sick",
    "near",
    "apart",
    "alike",
    "narrow",
    "close",
    "random",
];

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-header, namespace: shop}
spec:
  host: by-header
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-cookie, namespace: shop}
spec:
  host: by-cookie
  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: session, ttl: 60s}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-address, namespace: shop}
spec:
  host: by-address
  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-query, namespace: shop}
spec:
  host: by-query
  trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user, maglev: {}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: in-turn, namespace: shop}
spec:
  host: in-turn
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: random, namespace: shop}
spec:
  host: random
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: sick, namespace: shop}
spec:
  host: sick
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}
    outlierDetection: {consecutive5xxErrors: 2, interval: 100s, baseEjectionTime: 300s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near, namespace: shop}
spec:
  host: near
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 100s, baseEjectionTime: 300s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: apart, namespace: shop}
spec:
  host: apart
  trafficPolicy:
    loadBalancer:
      localityLbSetting:
        enabled: true
        distribute: [{from: "r1/z1/*", to: {"r1/z1/*": 70, "r2/z1/*": 30}}]
    outlierDetection: {}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: alike, namespace: shop}
spec:
  host: alike
  trafficPolicy:
    loadBalancer: {localityLbSetting: {enabled: true, failoverPriority: [version]}}
    outlierDetection: {consecutive5xxErrors: 1, interval: 100s, baseEjectionTime: 300s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: narrow, namespace: shop}
spec:
  host: narrow
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: close, namespace: shop}
spec:
  host: close
  trafficPolicy: {outlierDetection: {}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: no-retries, namespace: shop}
spec:
  hosts: [sick, near, alike, narrow]
  http:
  - {match: [{authority: {exact: sick}}], retries: {attempts: 0}, route: [{destination: {host: sick}}]}
  - {match: [{authority: {exact: near}}], retries: {attempts: 0}, route: [{destination: {host: near}}]}
  - {match: [{authority: {exact: alike}}], retries: {attempts: 0}, route: [{destination: {host: alike}}]}
  - {match: [{authority: {exact: narrow}}], retries: {attempts: 0}, route: [{destination: {host: narrow}}]}
"#;

/// Where a service is.
fn at(service: &str) -> String {
    let i = SERVICES.iter().position(|name| *name == service).expect("it is in the list");
    format!("10.96.1.{}:80", i + 10)
}

fn objects() -> String {
    let mut yaml = CLIENT.to_string();
    for (i, service) in SERVICES.iter().enumerate() {
        let (ip, n) = (format!("10.96.1.{}", i + 10), i + 10);
        let pods: Vec<(String, String)> =
            (1..4).map(|k| (format!("{service}-{k}"), format!("10.244.{}.{n}", k + 10))).collect();
        let labels = [
            "version: v2, istio-locality: r1.z1.a",
            "version: v1, istio-locality: r1.z2.a",
            "version: v2, istio-locality: r2.z1.a",
        ];
        let pods: Vec<_> = pods.iter().zip(labels).map(|((name, ip), labels)| bare_pod(name, ip, labels)).collect();
        let app = app(service, &ip, &pods).to_string();
        // The field is of the Service only, which comes first.
        let field = if *service == "close" { "spec:\n  trafficDistribution: PreferClose" } else { "spec:" };
        yaml += &app.replacen("spec:", field, 1);
    }
    yaml + RULES
}

#[tokio::test(flavor = "multi_thread")]
async fn balancing() {
    let setting = Setting { variant: Variant::Sotw, ..Setting::default() };
    let Some(mut t) = Traffic::start("balancing", &objects(), setting).await else { return };
    hashes(&mut t).await;
    spreads(&mut t).await;
    localities(&mut t).await;
    limits(&mut t).await;
    t.finish(18).await;
}

async fn pods(t: &Traffic, n: usize, service: &str, headers: &[(&str, &str)]) -> BTreeMap<String, usize> {
    t.answers(n, "pod", "client", &at(service), service, headers).await
}

/// The same, asked again for a while until it is as expected: an ejection takes effect a moment later.
async fn pods_once(
    t: &Traffic,
    n: usize,
    service: &str,
    expected: impl Fn(&BTreeMap<String, usize>) -> bool,
) -> BTreeMap<String, usize> {
    let mut seen = pods(t, n, service, &[]).await;
    for _ in 0..50 {
        if expected(&seen) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        seen = pods(t, n, service, &[]).await;
    }
    seen
}

async fn hashes(t: &mut Traffic) {
    let mut per_user = BTreeMap::new();
    for user in ["ann", "bob", "carl", "dora", "emil", "fritz", "gerd", "hans"] {
        let seen = pods(t, 5, "by-header", &[("x-user", user)]).await;
        t.equal(&format!("one endpoint for the header of {user}"), seen.len(), 1);
        per_user.extend(seen);
    }
    t.check("endpoints differ by header", per_user.len() > 1, &per_user);

    let first = t.get("client", &at("by-cookie"), "by-cookie", "/", &[]).await;
    let cookie = first.headers.get("set-cookie").cloned().unwrap_or_default();
    t.check("a cookie is given", cookie.starts_with("session=") && cookie.contains("Max-Age=60"), &cookie);
    let session = cookie.split(';').next().unwrap_or_default().to_owned();
    let seen = pods(t, 8, "by-cookie", &[("cookie", &session)]).await;
    t.equal("who has the cookie comes back to the endpoint", seen, BTreeMap::from([(first.said("pod").to_owned(), 8)]));

    let seen = pods(t, 8, "by-address", &[]).await;
    t.equal("one endpoint for an address", seen.len(), 1);

    let mut seen = BTreeMap::new();
    for (user, _) in [("ann", 1), ("ann", 2), ("ann", 3)] {
        let reply = t.get("client", &at("by-query"), "by-query", &format!("/?user={user}"), &[]).await;
        *seen.entry(reply.said("pod").to_owned()).or_insert(0) += 1;
    }
    t.equal("one endpoint for a query parameter", seen.len(), 1);
}

async fn spreads(t: &mut Traffic) {
    let seen = pods(t, 30, "in-turn", &[]).await;
    t.equal("in turn", seen.values().copied().collect::<Vec<_>>(), vec![10, 10, 10]);
    let seen = pods(t, 60, "random", &[]).await;
    t.equal("at random", seen.len(), 3);

    // One endpoint fails twice and is out; the others are not.
    let failing = [(STATUS, "500"), (ONLY, "sick-2")];
    let seen = pods(t, 6, "sick", &failing).await;
    t.equal("the sick one answers at first", seen.get("sick-2").copied(), Some(2));
    let wanted = vec!["sick-1", "sick-3"];
    let seen = pods_once(t, 20, "sick", |seen| seen.keys().eq(&wanted)).await;
    t.equal("then it is ejected", seen.keys().map(String::as_str).collect::<Vec<_>>(), wanted);
    let stats = t.mesh.pod("client").stats("outlier_detection.ejections_active").await.unwrap();
    let stats: BTreeMap<_, _> = stats.into_iter().filter(|(name, _)| name.contains("sick.shop")).collect();
    t.equal("ejections", stats.values().copied().collect::<Vec<_>>(), vec![1]);
}

async fn localities(t: &mut Traffic) {
    for (what, expected) in
        [("the own zone first", "near-1"), ("then the own region", "near-2"), ("then another region", "near-3")]
    {
        let seen = pods_once(t, 6, "near", |seen| seen.len() == 1 && seen.contains_key(expected)).await;
        t.equal(what, seen, BTreeMap::from([(expected.to_owned(), 6)]));
        // Out with it.
        pods(t, 1, "near", &[(STATUS, "500")]).await;
    }

    let seen = pods(t, 100, "apart", &[]).await;
    let count = |pod: &str| seen.get(pod).copied().unwrap_or_default();
    t.check("localities by weight", count("apart-2") == 0 && (50..=90).contains(&count("apart-1")), &seen);

    let seen = pods(t, 6, "alike", &[]).await;
    t.equal("endpoints with the caller's label first", seen, BTreeMap::from([("alike-2".to_owned(), 6)]));
    pods(t, 1, "alike", &[(STATUS, "500")]).await;
    let wanted = vec!["alike-1", "alike-3"];
    let seen = pods_once(t, 20, "alike", |seen| seen.keys().eq(&wanted)).await;
    t.equal("then the others", seen.keys().map(String::as_str).collect::<Vec<_>>(), wanted);

    let seen = pods(t, 6, "close", &[]).await;
    t.equal("traffic distribution PreferClose", seen, BTreeMap::from([("close-1".to_owned(), 6)]));
}

async fn limits(t: &mut Traffic) {
    let slow = [(DELAY, "700")];
    let to = at("narrow");
    let call = || t.get("client", &to, "narrow", "/", &slow);
    let replies = tokio::join!(call(), call(), call(), call(), call(), call());
    let replies = [replies.0, replies.1, replies.2, replies.3, replies.4, replies.5];
    let n_overflowed = replies.iter().filter(|reply| reply.status == 503).count();
    let n_served = replies.iter().filter(|reply| reply.status == 200).count();
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    t.check("what goes beyond the connection pool is refused", n_overflowed >= 1 && n_served >= 1, &statuses);
    let told = replies.iter().any(|reply| reply.headers.contains_key("x-envoy-overloaded"));
    t.check("and says so", told, &statuses);
}
