//! Whatever comes first is survived.

use tonic::Code;
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::client::*;
use crate::fake::Env;

async fn env() -> Env {
    Env::start(&[(CLUSTER, &[("a", "cluster a")])]).await
}

/// The server still serves.
async fn alive(env: &Env) {
    let mut proxy = Delta::open(env, "alive").await;
    proxy.subscribe(CLUSTER, &[]).await;
    assert_eq!(proxy.take().await.names(), ["a"]);
}

#[tokio::test]
async fn bad_nodes_are_refused_as_istiod_does() {
    let env = env().await;
    let id = |id: &str| Some(Node { id: id.into(), ..Node::default() });
    let cases = [
        (None, "missing node information"),
        (id(""), "missing node information"),
        (id("sidecar~10.0.0.1~a.shop"), "missing parts in the service node"),
        (id("foo~10.0.0.1~a.shop~shop.svc"), "invalid node type"),
        (id("sidecar~banana~a.shop~shop.svc"), "no valid IP address"),
        (id("~~~"), "invalid node type"),
        (id(&"~".repeat(100_000)), "missing parts"),
    ];
    for (node, words) in cases {
        let mut sotw = Sotw::open(&env, "x").await;
        sotw.raw(DiscoveryRequest { node: node.clone(), type_url: CLUSTER.into(), ..Default::default() }).await;
        let status = sotw.end_or_next().await.unwrap_err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(words), "{} should say {words}", status.message());
        let mut delta = Delta::open(&env, "x").await;
        delta.raw(DeltaDiscoveryRequest { node, type_url: CLUSTER.into(), ..Default::default() }).await;
        assert_eq!(delta.end_or_next().await.unwrap_err().unwrap().code(), Code::InvalidArgument);
    }
    assert!(env.server.status().is_empty());
    alive(&env).await;
}

#[tokio::test]
async fn a_nack_comes_first() {
    let env = env().await;
    // With a nonce of another stream: counted, and nothing else. What follows is served.
    let mut delta = Delta::open(&env, "a").await;
    delta.nack(CLUSTER, "nonce of a former stream", "bad").await;
    delta.quiet().await;
    delta.subscribe(CLUSTER, &[]).await;
    assert_eq!(delta.take().await.names(), ["a"]);
    let mut sotw = Sotw::open(&env, "b").await;
    sotw.nack(CLUSTER, "nonce of a former stream", "bad").await;
    sotw.quiet().await;
    sotw.ask(CLUSTER, &[], "").await;
    sotw.take().await;
    assert_eq!(env.metric("pilot_total_xds_rejects", "cds"), 2.0);
    // Without a nonce it asks for the type, too: Envoy had no stream to say it on.
    let mut delta = Delta::open(&env, "c").await;
    delta.nack(CLUSTER, "", "bad").await;
    assert_eq!(delta.take().await.names(), ["a"]);
    let mut sotw = Sotw::open(&env, "d").await;
    sotw.nack(CLUSTER, "", "bad").await;
    assert_eq!(sotw.next().await.names(), ["cluster a"]);
    // Of a type that nobody knows.
    sotw.nack("type.googleapis.com/x.Unknown", "", "bad").await;
    sotw.quiet().await;
}

#[tokio::test]
async fn unknown_types_are_not_answered_and_harm_nothing() {
    let env = env().await;
    for type_url in ["", "type.googleapis.com/does.not.Exist", "networking/v1/Thing", "\u{1f600}"] {
        let mut sotw = Sotw::open(&env, "a").await;
        sotw.ask(type_url, &["x"], "").await;
        sotw.quiet().await;
        let mut delta = Delta::open(&env, "b").await;
        delta.subscribe(type_url, &["x"]).await;
        delta.quiet().await;
    }
}

#[tokio::test]
async fn debug_types_need_an_identity() {
    let env = env().await;
    for type_url in ["istio.io/debug", "istio.io/debug/syncz", "istio.io/connect"] {
        let mut sotw = Sotw::open(&env, "a").await;
        sotw.ask(type_url, &["syncz"], "").await;
        let status = sotw.end_or_next().await.unwrap_err().unwrap();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication required"));
        let mut delta = Delta::open(&env, "b").await;
        delta.subscribe(CLUSTER, &[]).await;
        delta.take().await;
        delta.subscribe(type_url, &[]).await;
        assert_eq!(delta.end_or_next().await.unwrap_err().unwrap().code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn health_reports_are_no_requests() {
    let env = env().await;
    let mut sotw = Sotw::open(&env, "a").await;
    // Before the first request, without a node, and later.
    sotw.raw(DiscoveryRequest {
        type_url: "type.googleapis.com/istio.v1.HealthInformation".into(),
        ..Default::default()
    })
    .await;
    sotw.ask(CLUSTER, &[], "").await;
    sotw.take().await;
    sotw.nack("type.googleapis.com/istio.v1.HealthInformation", "", "connection refused").await;
    sotw.quiet().await;
    assert_eq!(env.metric("pilot_total_xds_rejects", "unknown"), 0.0);
}

#[tokio::test]
async fn a_request_that_is_too_long_ends_its_stream_only() {
    let env = env().await;
    let mut sotw = Sotw::open(&env, "a").await;
    sotw.ask(CLUSTER, &[], "").await;
    sotw.take().await;
    let long = "x".repeat(5 << 20);
    sotw.ask(ENDPOINT, &[&long], "").await;
    let status = sotw.end_or_next().await.unwrap_err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    alive(&env).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_and_leaves() {
    let env = env().await;
    let mut silent = Delta::open(&env, "a").await;
    silent.close();
    assert!(silent.end_or_next().await.unwrap_err().is_none());
    drop(Sotw::open(&env, "b").await);
    alive(&env).await;
    env.connected(0).await;
}

#[tokio::test]
async fn odd_names() {
    let env = env().await;
    let mut delta = Delta::open(&env, "a").await;
    let long = "y".repeat(100_000);
    delta.subscribe(ROUTE, &["", "*", &long, "a\nb", "\u{0}"]).await;
    assert_eq!(delta.take().await.kind, "rds");
    delta.quiet().await;
    let mut sotw = Sotw::open(&env, "a").await;
    sotw.ask(ROUTE, &["", "*", &long], "").await;
    assert!(sotw.take().await.names().is_empty());
    sotw.quiet().await;
}
