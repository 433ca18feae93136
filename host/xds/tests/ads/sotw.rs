//! State of the world: istiod's rules, in the order of its recorded session.

use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;

use crate::client::*;
use crate::fake::Env;

async fn env() -> Env {
    Env::start(&[
        (CLUSTER, &[("a", "cluster a"), ("b", "cluster b")]),
        (ENDPOINT, &[("a", "endpoints a"), ("b", "endpoints b"), ("c", "endpoints c")]),
        (LISTENER, &[("l", "listener")]),
        (ROUTE, &[("80", "route 80"), ("90", "route 90")]),
        (NAME_TABLE, &[("", "names")]),
    ])
    .await
}

#[tokio::test]
async fn types_are_answered_as_they_are_asked_for() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(CLUSTER, &[], "").await;
    let clusters = proxy.take().await;
    assert_eq!((clusters.kind.as_str(), clusters.names()), ("cds", vec!["cluster a", "cluster b"]));
    assert!(clusters.nonce.starts_with(&clusters.version) && clusters.version.ends_with("/1"), "{clusters:?}");
    proxy.ask(ENDPOINT, &["a", "b"], "").await;
    assert_eq!(proxy.take().await.names(), ["endpoints a", "endpoints b"]);
    proxy.ask(LISTENER, &[], "").await;
    assert_eq!(proxy.take().await.names(), ["listener"]);
    proxy.ask(ROUTE, &["80"], "").await;
    let routes = proxy.take().await;
    assert_eq!(routes.names(), ["route 80"]);
    assert_ne!(routes.nonce, clusters.nonce);
    proxy.quiet().await;
    assert_eq!(env.fake.sets.lock().len(), 2);
}

#[tokio::test]
async fn names_come_and_go() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(ENDPOINT, &["a", "b"], "").await;
    let first = proxy.take().await;
    // Fewer names: no answer. More: the new ones only.
    proxy.ask(ENDPOINT, &["a"], &first.nonce).await;
    proxy.quiet().await;
    proxy.ask(ENDPOINT, &["a", "b", "c"], &first.nonce).await;
    let more = proxy.take().await;
    assert_eq!(more.names(), ["endpoints b", "endpoints c"]);
    // Another name instead, which does not exist: a response without it.
    proxy.ask(ENDPOINT, &["none"], &more.nonce).await;
    let none = proxy.take().await;
    assert!(none.names().is_empty());
    // None: unsubscribed, without an answer, and deaf to pushes.
    proxy.ask(ENDPOINT, &[], &none.nonce).await;
    proxy.quiet().await;
    env.push(ENDPOINT, &[("a", Some("endpoints a2")), ("none", Some("now"))]);
    proxy.quiet().await;
    // Asked for again, with the old nonce: everything is answered.
    proxy.ask(ENDPOINT, &["a"], &none.nonce).await;
    assert_eq!(proxy.take().await.names(), ["endpoints a2"]);
}

#[tokio::test]
async fn nonces() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(CLUSTER, &[], "").await;
    let first = proxy.take().await;
    // Without a nonce: all again. Stale: nothing.
    proxy.ask(CLUSTER, &[], "").await;
    let second = proxy.take().await;
    assert_eq!(second.resources, first.resources);
    assert_ne!(second.nonce, first.nonce);
    proxy.ask(CLUSTER, &[], &first.nonce).await;
    proxy.ask(CLUSTER, &[], "made up").await;
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_xds_expired_nonce", "cds"), 2.0);
}

#[tokio::test]
async fn a_nack_is_counted_and_waits_for_a_change() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(LISTENER, &[], "").await;
    let bad = proxy.next().await;
    proxy.nack(LISTENER, &bad.nonce, "Error adding/updating listener(s) l: no").await;
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_total_xds_rejects", "lds"), 1.0);
    // An unrelated push does not repeat it.
    env.push(CLUSTER, &[("z", Some("cluster z"))]);
    proxy.quiet().await;
    env.push(LISTENER, &[("l", Some("better listener"))]);
    let good = proxy.take().await;
    assert_eq!(good.names(), ["better listener"]);
    proxy.quiet().await;
    let status = env.server.status().remove(0);
    let lds = status.types.iter().find(|(url, _)| url.as_str() == LISTENER).unwrap().1.clone();
    assert_eq!((lds.acked_nonce, lds.n_rejected, lds.last_error), (good.nonce, 1, None));
}

#[tokio::test]
async fn names_that_a_nack_adds_are_answered() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(ROUTE, &["80"], "").await;
    let bad = proxy.next().await;
    let request = DiscoveryRequest {
        type_url: ROUTE.into(),
        resource_names: vec!["80".into(), "90".into()],
        response_nonce: bad.nonce,
        error_detail: Some(Default::default()),
        ..Default::default()
    };
    proxy.send(request).await;
    assert_eq!(proxy.next().await.names(), ["route 90"]);
}

#[tokio::test]
async fn endpoints_are_answered_while_clusters_warm() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(ENDPOINT, &["a"], "").await;
    let endpoints = proxy.take().await;
    proxy.ask(CLUSTER, &[], "").await;
    proxy.take().await;
    // It looks like an ACK, but clusters were asked for in between: Envoy waits.
    proxy.ask(ENDPOINT, &["a"], &endpoints.nonce).await;
    let again = proxy.take().await;
    assert_eq!((again.kind.as_str(), again.names()), ("eds", vec!["endpoints a"]));
    proxy.quiet().await;
}

#[tokio::test]
async fn a_push_sends_full_clusters_their_endpoints_and_changed_routes() {
    let mut env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    for (type_url, names) in [(CLUSTER, &[][..]), (ENDPOINT, &["a", "b"]), (LISTENER, &[]), (ROUTE, &["80", "90"])] {
        proxy.ask(type_url, names, "").await;
        proxy.take().await;
    }
    env.reports();
    env.fake.set(ROUTE, &[("90", Some("route 90 new"))]);
    env.push(CLUSTER, &[("b", Some("cluster b new"))]);
    let got = [proxy.take().await, proxy.take().await, proxy.take().await];
    let kinds: Vec<&str> = got.iter().map(|got| got.kind.as_str()).collect();
    assert_eq!(kinds, ["cds", "eds", "rds"]);
    assert_eq!(got[0].names(), ["cluster a", "cluster b new"]);
    assert_eq!(got[1].names(), ["endpoints b"], "the endpoints of the cluster that warms");
    assert_eq!(got[2].names(), ["route 90 new"]);
    assert!(got.iter().all(|g| g.version == got[0].version && g.version.ends_with("/2")), "one push, one version");
    proxy.quiet().await;
    let reports = env.reports();
    let cds = reports.iter().find(|report| report.kind == "cds").unwrap();
    assert_eq!((cds.changed.clone(), cds.n_resources, cds.revision), (vec!["b".to_owned()], 2, 2));
    // A removal: the full state without it; nothing of routes.
    env.fake.set(ROUTE, &[("90", None)]);
    env.push(CLUSTER, &[("b", None)]);
    assert_eq!(proxy.take().await.names(), ["cluster a"]);
    proxy.quiet().await;
    let cds = env.reports().into_iter().find(|report| report.kind == "cds").unwrap();
    assert_eq!((cds.changed, cds.removed), (vec![], vec!["b".to_owned()]));
}

#[tokio::test]
async fn an_empty_state_is_answered() {
    let env = Env::start(&[]).await;
    let mut proxy = Sotw::open(&env, "a").await;
    for type_url in [CLUSTER, LISTENER, NAME_TABLE] {
        proxy.ask(type_url, &[], "").await;
        assert!(proxy.take().await.names().is_empty());
    }
    proxy.ask(EXTENSION, &["nothing"], "").await;
    assert!(proxy.take().await.names().is_empty());
    proxy.quiet().await;
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answer() {
    let env = env().await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(CLUSTER, &[], "").await;
    proxy.close();
    assert_eq!(proxy.next().await.kind, "cds");
    assert!(proxy.end_or_next().await.unwrap_err().is_none(), "ended with OK");
    env.connected(0).await;
}

#[tokio::test]
async fn secrets_are_not_answered_without_an_identity() {
    let env = Env::start(&[(SECRET, &[("kubernetes://cert", "private")])]).await;
    let mut proxy = Sotw::open(&env, "a").await;
    proxy.ask(SECRET, &["kubernetes://cert"], "").await;
    proxy.quiet().await;
    env.push(SECRET, &[("kubernetes://cert", Some("rotated"))]);
    proxy.quiet().await;
}
