//! Faults, status, metrics, reflection, the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use trysail_model::Watched;
use trysail_xds::Config;

use crate::client::*;
use crate::fake::{Env, until};

async fn env() -> Env {
    Env::start(&[(CLUSTER, &[("a", "cluster a")]), (LISTENER, &[("l", "listener")])]).await
}

#[tokio::test]
async fn a_panic_of_the_translation_is_survived() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    env.fake.panics.store(true, Ordering::Relaxed);
    proxy.subscribe(LISTENER, &[]).await;
    until(|| env.metric("pilot_total_xds_internal_errors", "") == 1.0).await;
    // It is not tried in a loop, but with the next push, and nothing was forgotten.
    env.fake.panics.store(false, Ordering::Relaxed);
    env.notify();
    assert_eq!(proxy.take().await.names(), ["l"]);
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_total_xds_internal_errors", ""), 1.0);
}

#[tokio::test]
async fn an_old_stream_is_sent_away_and_comes_again() {
    let config = Config { max_connection_age: Some(Duration::from_millis(400)), ..Config::default() };
    let env = Env::start_with(&[(CLUSTER, &[("a", "cluster a")])], config).await;
    for _ in 0..2 {
        let mut proxy = Delta::open(&env, "a").await;
        proxy.subscribe(CLUSTER, &[]).await;
        assert_eq!(proxy.take().await.names(), ["a"]);
        let status = proxy.end_or_next().await.unwrap_err().unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "disconnected: the connection is old enough")
        );
    }
}

#[tokio::test]
async fn status_and_metrics() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    let first = proxy.take().await;
    proxy.subscribe(ENDPOINT, &["a"]).await;
    let endpoints = proxy.next().await;
    proxy.quiet().await;
    let status = env.server.status().remove(0);
    assert!(status.connection.starts_with("a.shop-"), "{}", status.connection);
    assert_eq!((&*status.proxy.namespace, status.revision), ("shop", Some(1)));
    assert!(status.address.is_some());
    let of = |type_url: &str| status.types.iter().find(|(url, _)| url.as_str() == type_url).unwrap().1;
    let cds = of(CLUSTER);
    assert_eq!(cds.watched, Some(Watched::Wildcard));
    assert_eq!((&cds.sent_nonce, &cds.acked_nonce), (&first.nonce, &first.nonce));
    assert_eq!((&cds.sent_version, cds.n_sent, &cds.last_error), (&first.version, 1, &None));
    let eds = of(ENDPOINT);
    assert_eq!((&eds.sent_nonce, eds.acked_nonce.as_str()), (&endpoints.nonce, ""));
    assert!(matches!(&eds.watched, Some(Watched::Names(names)) if names.len() == 1));
    assert_eq!(env.metric("pilot_xds_pushes", "cds"), 1.0);
    assert_eq!(env.metric("pilot_xds_push_time", "cds"), 1.0);
    assert_eq!(env.metric("pilot_xds_config_size_bytes", CLUSTER), 1.0);
    assert_eq!(env.metric("pilot_xds", "1.31.0"), 1.0);
    assert!(env.metric("pilot_xds_recv_max", "") > 50.0);
    drop(proxy);
    env.connected(0).await;
    until(|| *env.fake.forgotten.lock() == ["a.shop"]).await;
}

async fn reflect(env: &Env, ask: MessageRequest) -> ServerReflectionResponse {
    let mut client = ServerReflectionClient::new(channel(env).await).max_decoding_message_size(64 << 20);
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    tx.send(request).await.expect("there is room");
    let call = client.server_reflection_info(ReceiverStream::new(rx)).await;
    let mut stream = call.expect("reflection is served").into_inner();
    stream.message().await.expect("no error").expect("an answer")
}

#[tokio::test]
async fn reflection_shows_the_service() {
    let env = env().await;
    let listed = reflect(&env, MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed.message_response else { panic!("no list") };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    let ads = "envoy.service.discovery.v3.AggregatedDiscoveryService";
    assert!(names.contains(&ads), "{names:?}");
    let symbol = reflect(&env, MessageRequest::FileContainingSymbol(ads.into())).await;
    assert!(matches!(symbol.message_response, Some(MessageResponse::FileDescriptorResponse(_))));
}

#[tokio::test]
async fn stopping_ends_the_streams() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    let mut silent = Sotw::open(&env, "b").await;
    let stopping = tokio::spawn(env.stop());
    for ended in [proxy.end_or_next().await, silent.end_or_next().await] {
        assert_eq!(ended.unwrap_err().unwrap().code(), Code::Unavailable);
    }
    drop((proxy, silent));
    stopping.await.unwrap();
}
