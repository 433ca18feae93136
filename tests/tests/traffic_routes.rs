//! Real traffic by VirtualServices: every match, action and header operation of HTTP routes, timeouts, retries, faults, mirrors.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::time::{Duration, Instant};

use trysail_tests::eventually;
use trysail_tests::objects::{App, pod};
use trysail_tests::workload::{DELAY, STATUS, TIMES};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{Setting, Traffic, VERSIONS, app};

const CLIENT: App<'_> = app(
    "client",
    "10.96.0.1",
    &[
        pod("client-a", "10.244.1.1", "tier: front, version: v1"),
        pod("client-b", "10.244.1.2", "tier: back, version: v1"),
    ],
);

const WEB: App<'_> = app(
    "web",
    "10.96.0.2",
    &[pod("web-v1", "10.244.1.11", "version: v1"), pod("web-v2", "10.244.1.12", "version: v2")],
);

const SHADOW: App<'_> = app("shadow", "10.96.0.3", &[pod("shadow", "10.244.1.21", "version: v1")]);

/// The VirtualService under test: a path for each feature.
const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders, namespace: shop}
spec:
  http:
  - name: orders-old
    match: [{uri: {prefix: /orders/old}}]
    route: [{destination: {host: web, subset: v1}}]
  - name: orders-new
    route: [{destination: {host: web, subset: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {exact: /match/exact}}, {uri: {prefix: /match/prefix}}, {uri: {regex: "/match/[0-9]+"}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {exact: /match/Case}, ignoreUriCase: true}]
    route: [{destination: {host: web, subset: v2}}]
  - match:
    - {uri: {exact: /match/header}, headers: {x-user: {exact: jason}, x-extra: {}}}
    - {uri: {exact: /match/without}, withoutHeaders: {x-user: {prefix: ja}}}
    - {uri: {exact: /match/query}, queryParams: {v: {exact: "2"}}}
    - {uri: {exact: /match/method}, method: {exact: DELETE}}
    - {uri: {exact: /match/authority}, authority: {prefix: "web."}}
    - {uri: {exact: /match/source}, sourceLabels: {tier: back}}
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {prefix: /match}}]
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /rewrite/prefix}}]
    rewrite: {uri: /rewritten}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /rewrite/regex}}]
    rewrite: {uriRegexRewrite: {match: "/rewrite/regex/([^/]+)/(.*)", rewrite: "/\\2/\\1"}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /rewrite/authority}}]
    rewrite: {authority: other.example}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /redirect/all}}]
    redirect: {uri: /target, authority: else.example, scheme: https, port: 8443, redirectCode: 307}
  - match: [{uri: {prefix: /redirect/plain}}]
    redirect: {uri: /target}
  - match: [{uri: {prefix: /direct}}]
    directResponse: {status: 418, body: {string: teapot}}
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: "new"}, add: {x-add: "two"}, remove: [x-gone]}
      response: {set: {x-answer: "set"}, add: {x-more: "added"}, remove: [server]}
    route:
    - destination: {host: web, subset: v1}
      headers: {request: {set: {x-of-destination: "yes"}}, response: {set: {x-from: "destination"}}}
  - match: [{uri: {prefix: /cors}}]
    corsPolicy:
      allowOrigins: [{exact: "https://a.example"}, {regex: "https://.*[.]b[.]example"}]
      allowMethods: [GET, PUT]
      allowHeaders: [x-one]
      exposeHeaders: [x-two]
      allowCredentials: true
      maxAge: 60s
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /fault/abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /fault/grpc}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /fault/never}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 0}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /fault/delay}}]
    fault: {delay: {fixedDelay: 500ms, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /mirror}}]
    mirrors: [{destination: {host: shadow}, percentage: {value: 100}}]
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /timeout}}]
    timeout: 300ms
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /retries}}]
    retries: {attempts: 3, retryOn: "5xx", backoff: 25ms}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /no-retries}}]
    retries: {attempts: 0}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /try-timeout}}]
    retries: {attempts: 1, perTryTimeout: 200ms, retryOn: "gateway-error"}
    timeout: 5s
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {exact: /}}]
    route:
    - {destination: {host: web, subset: v1}, weight: 75}
    - {destination: {host: web, subset: v2}, weight: 25}
  - match: [{uri: {prefix: /orders}}]
    delegate: {name: orders, namespace: shop}
  - match: [{uri: {prefix: /missing-subset}}]
    route: [{destination: {host: web, subset: v9}}]
"#;

const TO: &str = "10.96.0.2:80";

async fn suite(test: &str, setting: Setting) {
    let yaml = format!("{CLIENT}{WEB}{SHADOW}{VERSIONS}{RULES}");
    let Some(mut t) = Traffic::start(test, &yaml, setting).await else { return };
    matches(&mut t).await;
    actions(&mut t).await;
    headers(&mut t).await;
    failures(&mut t).await;
    splits(&mut t).await;
    t.finish(40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_routes() {
    suite("http_routes", Setting { environment: &[("PILOT_HTTP10", "1")], ..Setting::default() }).await;
}

async fn matches(t: &mut Traffic) {
    for (name, path, version) in [
        ("exact path", "/match/exact", "v2"),
        ("exact path and no more", "/match/exact/more", "v1"),
        ("path prefix", "/match/prefix/more", "v2"),
        ("path regex", "/match/123", "v2"),
        ("path regex is of the whole path", "/match/123/more", "v1"),
        ("path without regard to case", "/match/cASE", "v2"),
        ("header that is missing", "/match/header", "v1"),
        ("header that must be missing", "/match/without", "v2"),
        ("query parameter of another value", "/match/query?v=1", "v1"),
        ("query parameter", "/match/query?v=2&w=3", "v2"),
        ("another method", "/match/method", "v1"),
    ] {
        let reply = t.get("client-a", TO, "web", path, &[]).await;
        t.equal(name, reply.said("version"), version);
    }
    let reply = t.get("client-a", TO, "web", "/match/header", &[("x-user", "jason"), ("x-extra", "1")]).await;
    t.equal("header and presence of another", reply.said("version"), "v2");
    let reply = t.get("client-a", TO, "web", "/match/without", &[("x-user", "jane")]).await;
    t.equal("withoutHeaders where it is there", reply.said("version"), "v1");
    let reply = t.request("DELETE", "client-a", TO, "web", "/match/method", &[]).await;
    t.equal("method", reply.said("version"), "v2");
    let reply = t.get("client-a", TO, "web.shop", "/match/authority", &[]).await;
    t.equal("authority", reply.said("version"), "v2");
    let reply = t.get("client-a", TO, "web", "/match/source", &[]).await;
    t.equal("labels of another source", reply.said("version"), "v1");
    let reply = t.get("client-b", TO, "web", "/match/source", &[]).await;
    t.equal("labels of the source", reply.said("version"), "v2");
    for host in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web:80", "10.96.0.2"] {
        let reply = t.get("client-a", TO, host, "/match/prefix", &[]).await;
        t.equal(&format!("the service as {host}"), reply.said("version"), "v2");
    }
    let answer = t.send("client-a", TO, "GET /match/prefix HTTP/1.0\r\nHost: web\r\n\r\n").await;
    t.check("HTTP/1.0", answer.contains("200 OK") && answer.contains("\"version\":\"v2\""), &answer);
}

async fn actions(t: &mut Traffic) {
    let reply = t.get("client-a", TO, "web", "/rewrite/prefix/more?x=y", &[]).await;
    t.equal("rewrite of a prefix", (reply.said("path"), reply.said("query")), ("/rewritten/more", "x=y"));
    let reply = t.get("client-a", TO, "web", "/rewrite/regex/one/two", &[]).await;
    t.equal("rewrite by regex", reply.said("path"), "/two/one");
    let reply = t.get("client-a", TO, "web", "/rewrite/authority", &[]).await;
    t.equal("rewrite of the authority", reply.sent("host"), "other.example");
    let location = |reply: &trysail_tests::workload::Reply| reply.headers.get("location").cloned().unwrap_or_default();
    let reply = t.get("client-a", TO, "web", "/redirect/all", &[]).await;
    let target = "https://else.example:8443/target".to_owned();
    t.equal("redirect with everything", (reply.status, location(&reply)), (307, target));
    let reply = t.get("client-a", TO, "web", "/redirect/plain", &[]).await;
    t.equal("redirect of the path", (reply.status, location(&reply)), (301, "http://web/target".to_owned()));
    let reply = t.get("client-a", TO, "web", "/direct", &[]).await;
    t.equal("direct response", (reply.status, reply.body.as_str()), (418, "teapot"));
    for (path, version) in [("/orders/old", "v1"), ("/orders/any", "v2")] {
        let reply = t.get("client-a", TO, "web", path, &[]).await;
        t.equal(&format!("delegate for {path}"), reply.said("version"), version);
    }
    let reply = t.get("client-a", TO, "web", "/missing-subset", &[]).await;
    t.equal("a subset that is not there", reply.status, 503);
    let reply = t.get("client-a", TO, "web", "/nothing-matches", &[]).await;
    t.equal("no route matches", reply.status, 404);
    let reply = t.get("client-a", TO, "web", "/mirror", &[]).await;
    t.equal("a mirrored request is answered by its destination", reply.said("app"), "web");
    let seen = || async {
        let n_seen = t.mesh.pod("shadow").workload().n_seen("/mirror");
        anyhow::ensure!(n_seen == 1, "{n_seen} requests came");
        Ok(())
    };
    let mirrored = eventually("the mirrored request", Duration::from_secs(10), seen).await;
    t.check("the mirror gets it, too", mirrored.is_ok(), &mirrored);
}

async fn headers(t: &mut Traffic) {
    let sent = [("x-set", "old"), ("x-add", "one"), ("x-gone", "here")];
    let reply = t.get("client-a", TO, "web", "/headers", &sent).await;
    t.equal("request header set", reply.sent("x-set"), "new");
    t.check("request header added", reply.body.contains("two"), &reply);
    t.equal("request header removed", reply.sent("x-gone"), "");
    t.equal("request header of a destination", reply.sent("x-of-destination"), "yes");
    let of = |name: &str| reply.headers.get(name).cloned().unwrap_or_default();
    t.equal("response headers set and added", (of("x-answer"), of("x-more")), ("set".to_owned(), "added".to_owned()));
    t.equal("response header of a destination", of("x-from"), "destination".to_owned());

    let preflight = |origin: &'static str| {
        [("origin", origin), ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-one")]
    };
    let of = |reply: &trysail_tests::workload::Reply, name: &str| {
        reply.headers.get(&format!("access-control-{name}")).cloned().unwrap_or_default()
    };
    let reply = t.request("OPTIONS", "client-a", TO, "web", "/cors", &preflight("https://a.example")).await;
    let got = (reply.status, of(&reply, "allow-origin"), of(&reply, "allow-methods"), of(&reply, "max-age"));
    let wanted = (200, "https://a.example".to_owned(), "GET,PUT".to_owned(), "60".to_owned());
    t.equal("CORS preflight", got, wanted);
    let reply = t.request("OPTIONS", "client-a", TO, "web", "/cors", &preflight("https://x.b.example")).await;
    t.equal("CORS preflight by regex", of(&reply, "allow-origin"), "https://x.b.example".to_owned());
    let reply = t.get("client-a", TO, "web", "/cors", &[("origin", "https://a.example")]).await;
    let got = (of(&reply, "expose-headers"), of(&reply, "allow-credentials"));
    t.equal("CORS answer", got, ("x-two".to_owned(), "true".to_owned()));
    let reply = t.get("client-a", TO, "web", "/cors", &[("origin", "https://evil.example")]).await;
    t.equal("CORS of another origin", of(&reply, "allow-origin"), String::new());
}

async fn failures(t: &mut Traffic) {
    let reply = t.get("client-a", TO, "web", "/fault/abort", &[]).await;
    t.equal("abort", reply.status, 555);
    let grpc = [("content-type", "application/grpc")];
    let reply = t.request("POST", "client-a", TO, "web", "/fault/grpc", &grpc).await;
    t.equal("abort with a gRPC status", reply.headers.get("grpc-status").map(String::as_str), Some("14"));
    let reply = t.get("client-a", TO, "web", "/fault/never", &[]).await;
    t.equal("abort of no request", reply.status, 200);
    let began = Instant::now();
    let reply = t.get("client-a", TO, "web", "/fault/delay", &[]).await;
    let waited = began.elapsed();
    // Envoy's timers are coarse.
    t.check("delay", reply.status == 200 && waited >= Duration::from_millis(450), &waited);
    let reply = t.get("client-a", TO, "web", "/timeout", &[(DELAY, "3000")]).await;
    t.equal("timeout", reply.status, 504);
    let reply = t.get("client-a", TO, "web", "/timeout", &[(DELAY, "10")]).await;
    t.equal("no timeout", reply.status, 200);
    let fail_twice = [(STATUS, "500"), (TIMES, "2")];
    let reply = t.get("client-a", TO, "web", "/retries", &fail_twice).await;
    t.equal("retries until it succeeds", reply.status, 200);
    t.equal("number of tries", t.mesh.pod("web-v1").workload().n_seen("/retries"), 3);
    let reply = t.get("client-a", TO, "web", "/no-retries", &[(STATUS, "503"), (TIMES, "1")]).await;
    t.equal("no retries", (reply.status, t.mesh.pod("web-v1").workload().n_seen("/no-retries")), (503, 1));
    let reply = t.get("client-a", TO, "web", "/try-timeout", &[(DELAY, "3000")]).await;
    let n_tries = t.mesh.pod("web-v1").workload().n_seen("/try-timeout");
    t.equal("timeout of each try", (reply.status, n_tries), (504, 2));
    // istiod's own default: retries of what never reached the workload or is retriable by status.
    let reply = t.get("client-a", TO, "web", "/match/default-retries", &[(STATUS, "503"), (TIMES, "2")]).await;
    let n_tries = t.mesh.pod("web-v1").workload().n_seen("/match/default-retries");
    t.equal("default retries do not repeat what the workload answered 503", (reply.status, n_tries), (503, 1));
}

async fn splits(t: &mut Traffic) {
    let seen = t.answers(200, "version", "client-a", TO, "web", &[]).await;
    let n_v2 = seen.get("v2").copied().unwrap_or_default();
    // Five standard deviations.
    t.check("weights of 75 to 25", seen.len() == 2 && (20..=80).contains(&n_v2), &seen);
}
