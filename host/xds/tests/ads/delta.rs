//! The delta protocol: istiod's rules, in the order of its recorded session, and content versions.

use std::collections::BTreeMap;

use trysail_model::Fingerprint;
use trysail_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use crate::client::*;
use crate::fake::Env;

async fn env() -> Env {
    Env::start(&[
        (CLUSTER, &[("a", "cluster a"), ("b", "cluster b")]),
        (ENDPOINT, &[("a", "endpoints a"), ("b", "endpoints b"), ("c", "endpoints c")]),
        (LISTENER, &[("l", "listener"), ("m", "listener")]),
        (ROUTE, &[("80", "route 80"), ("90", "route 90")]),
        (EXTENSION, &[("e", "extension")]),
    ])
    .await
}

#[tokio::test]
async fn wildcards() {
    let env = env().await;
    for star in [&[][..], &["*"]] {
        let mut proxy = Delta::open(&env, "a").await;
        proxy.subscribe(CLUSTER, star).await;
        let clusters = proxy.take().await;
        assert_eq!(clusters.names(), ["a", "b"]);
        assert_eq!(clusters.versions["a"], Fingerprint::of(b"cluster a").to_string());
        proxy.quiet().await;
        // A request that changes nothing is no request.
        proxy.subscribe(CLUSTER, &[]).await;
        proxy.quiet().await;
        env.push(CLUSTER, &[("new", Some("cluster"))]);
        assert_eq!(proxy.take().await.names(), ["new"]);
        env.push(CLUSTER, &[("new", None)]);
        let gone = proxy.take().await;
        assert_eq!((gone.names(), gone.removed.clone()), (vec![], vec!["new".to_owned()]));
    }
}

#[tokio::test]
async fn a_wildcard_can_be_given_up_for_names() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(LISTENER, &["*"]).await;
    assert_eq!(proxy.take().await.names(), ["l", "m"]);
    proxy.change(LISTENER, &["l"], &["*"]).await;
    assert_eq!(proxy.take().await.names(), ["l"]);
    env.push(LISTENER, &[("m", Some("changed"))]);
    proxy.quiet().await;
    env.push(LISTENER, &[("l", Some("changed"))]);
    assert_eq!(proxy.take().await.names(), ["l"]);
    // To nothing at all, from the start.
    let mut proxy = Delta::open(&env, "b").await;
    proxy.change(LISTENER, &["*"], &["*"]).await;
    proxy.quiet().await;
    // And back to everything.
    proxy.subscribe(LISTENER, &["*"]).await;
    assert_eq!(proxy.take().await.names(), ["l", "m"]);
}

#[tokio::test]
async fn names_come_and_go() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(ENDPOINT, &["a", "b"]).await;
    assert_eq!(proxy.take().await.names(), ["a", "b"]);
    proxy.subscribe(ENDPOINT, &["c"]).await;
    assert_eq!(proxy.take().await.names(), ["c"]);
    // Held, but the client may have forgotten it.
    proxy.subscribe(ENDPOINT, &["c"]).await;
    assert_eq!(proxy.take().await.names(), ["c"]);
    proxy.subscribe(ENDPOINT, &["none"]).await;
    let none = proxy.take().await;
    assert_eq!((none.names(), none.removed.clone()), (vec![], vec!["none".to_owned()]));
    proxy.change(ENDPOINT, &[], &["a", "never subscribed"]).await;
    proxy.quiet().await;
    env.push(ENDPOINT, &[("a", Some("changed")), ("b", None), ("none", Some("now"))]);
    let pushed = proxy.take().await;
    assert_eq!((pushed.names(), pushed.removed.clone()), (vec!["none"], vec!["b".to_owned()]));
    proxy.subscribe(ENDPOINT, &["a"]).await;
    assert_eq!(proxy.take().await.resources["a"], "changed");
}

#[tokio::test]
async fn nonces() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(ENDPOINT, &["a"]).await;
    proxy.take().await;
    let stale = |subscribe: &[&str]| DeltaDiscoveryRequest {
        type_url: ENDPOINT.into(),
        response_nonce: "stale".into(),
        resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    proxy.send(stale(&[])).await;
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_xds_expired_nonce", "eds"), 1.0);
    // A change of names counts all the same: it would never be said again.
    proxy.send(stale(&["b"])).await;
    assert_eq!(proxy.take().await.names(), ["b"]);
}

#[tokio::test]
async fn a_reconnect_with_everything_gets_nothing() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    let types = [(CLUSTER, &[][..]), (ENDPOINT, &["a", "b"]), (LISTENER, &[]), (ROUTE, &["80"])];
    let mut held = BTreeMap::new();
    for (type_url, names) in types {
        proxy.subscribe(type_url, names).await;
        held.insert(type_url, proxy.take().await.versions);
    }
    drop(proxy);

    let mut again = Delta::open(&env, "a").await;
    for (type_url, names) in types {
        again.resume(type_url, names, &held[type_url]).await;
    }
    again.quiet().await;
    // It is subscribed all the same.
    env.push(LISTENER, &[("l", Some("changed"))]);
    assert_eq!(again.take().await.names(), ["l"]);
    again.quiet().await;
    drop(again);

    // Another server with the same configuration, as after a restart or at another replica.
    let other = self::env().await;
    let mut elsewhere = Delta::open(&other, "a").await;
    for (type_url, names) in types {
        elsewhere.resume(type_url, names, &held[type_url]).await;
    }
    elsewhere.quiet().await;
}

#[tokio::test]
async fn a_reconnect_gets_what_differs() {
    let env = env().await;
    let version = |body: &str| Fingerprint::of(body.as_bytes()).to_string();
    let mut proxy = Delta::open(&env, "a").await;
    // As istiod's clients bring them: empty versions.
    let held = [("a".into(), version("cluster a")), ("b".into(), String::new()), ("gone".into(), version("x"))];
    proxy.resume(CLUSTER, &[], &held.into()).await;
    let clusters = proxy.take().await;
    assert_eq!((clusters.names(), clusters.removed.clone()), (vec!["b"], vec!["gone".to_owned()]));
    // A version of a route that is gone, and one that was never there.
    let held = [("80".into(), version("route 80")), ("gone".into(), "1".into())];
    proxy.resume(ROUTE, &["80", "gone", "90", "none"], &held.into()).await;
    let routes = proxy.take().await;
    assert_eq!((routes.names(), routes.removed.clone()), (vec!["90"], vec!["gone".to_owned(), "none".to_owned()]));
    // Names that it has count as subscribed to, even if it does not say so.
    proxy.resume(ENDPOINT, &[], &[("c".into(), "old".into())].into()).await;
    assert_eq!(proxy.take().await.names(), ["c"]);
    proxy.quiet().await;
    env.push(ENDPOINT, &[("c", Some("new"))]);
    assert_eq!(proxy.take().await.names(), ["c"]);
}

#[tokio::test]
async fn endpoints_go_with_changed_clusters() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    proxy.subscribe(ENDPOINT, &["a", "b"]).await;
    let endpoints = proxy.take().await;
    env.push(CLUSTER, &[("b", Some("cluster b new"))]);
    assert_eq!(proxy.take().await.names(), ["b"]);
    let warming = proxy.take().await;
    assert_eq!((warming.kind.as_str(), warming.names()), ("eds", vec!["b"]));
    assert_eq!(warming.resources["b"], endpoints.resources["b"]);
    assert_ne!(warming.versions["b"], endpoints.versions["b"], "they are new to the new cluster");
    proxy.quiet().await;
}

#[tokio::test]
async fn endpoints_that_a_broken_stream_lost_come_after_the_reconnect() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    let mut clusters = proxy.take().await.versions;
    proxy.subscribe(ENDPOINT, &["a", "b"]).await;
    let endpoints = proxy.take().await.versions;
    env.push(CLUSTER, &[("b", Some("cluster b new"))]);
    // The new cluster arrives, its endpoints do not: Envoy warms it, and waits.
    clusters.extend(proxy.next().await.versions);
    drop(proxy);
    let mut again = Delta::open(&env, "a").await;
    again.resume(CLUSTER, &[], &clusters).await;
    again.resume(ENDPOINT, &["a", "b"], &endpoints).await;
    let waited_for = again.take().await;
    assert_eq!((waited_for.kind.as_str(), waited_for.names()), ("eds", vec!["b"]));
    again.quiet().await;
}

#[tokio::test]
async fn clusters_asked_for_after_endpoints_bring_them_again() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(ENDPOINT, &["a"]).await;
    proxy.take().await;
    proxy.subscribe(CLUSTER, &[]).await;
    assert_eq!(proxy.take().await.kind, "cds");
    assert_eq!(proxy.take().await.names(), ["a"]);
    proxy.quiet().await;
}

#[tokio::test]
async fn a_nack_waits_for_a_change_and_then_gets_all_it_lost() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    // Behind it the ACK has arrived: without it, a NACK would mean that the client may have nothing.
    proxy.quiet().await;
    env.push(CLUSTER, &[("bad", Some("bad")), ("good", Some("good"))]);
    let rejected = proxy.next().await;
    proxy.nack(CLUSTER, &rejected.nonce, "Error adding/updating cluster(s) bad: no").await;
    env.push(LISTENER, &[("l", Some("unrelated"))]);
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_total_xds_rejects", "cds"), 1.0);
    env.push(CLUSTER, &[("bad", None)]);
    let mended = proxy.take().await;
    assert_eq!((mended.names(), mended.removed.clone()), (vec!["good"], vec!["bad".to_owned()]));
    proxy.quiet().await;
}

#[tokio::test]
async fn extensions_are_never_removed() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(EXTENSION, &["e"]).await;
    assert_eq!(proxy.take().await.names(), ["e"]);
    env.push(EXTENSION, &[("e", None)]);
    proxy.quiet().await;
}

#[tokio::test]
async fn an_empty_wildcard_is_answered_and_empty_names_are_not() {
    let env = Env::start(&[]).await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    assert_eq!(proxy.take().await.kind, "cds");
    proxy.subscribe(ENDPOINT, &[]).await;
    proxy.quiet().await;
}
