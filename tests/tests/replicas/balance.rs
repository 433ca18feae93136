//! Streams that go from a replica with too many to others.

use std::time::Duration;

use serde_json::json;
use trysail_tests::ads::Proxy;
use trysail_tests::replica::Replica;
use trysail_tests::{aloud, eventually};

use crate::{PATIENCE, app, replica, server, sidecar, world};

/// An address of this machine that other machines could reach; the API server takes no loopback address for an endpoint.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: it only finds the way there.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_far_more_than_its_share_lets_streams_go() {
    let Some(ip) = own_address() else {
        return aloud("skipped: this machine has no address but loopback");
    };
    let client = server().await.client().await.unwrap();
    world(&client, "balance", "").await;
    client.apply(&app("balance-app", "app", [7, 0])).await.unwrap();
    let start = async |pod: &str| {
        let environment = [("POD_NAME", pod), ("TRYSAIL_BALANCE_INTERVAL", "300ms")];
        let mut started = replica("balance", &["--monitoringAddr", "0.0.0.0:0"], &environment).await;
        started.ready().await.unwrap();
        started
    };
    let mut old = start("old").await;
    let address = old.xds().unwrap();
    let mut proxies: Vec<Proxy> = (0..40).map(|n| sidecar("balance-app", &format!("app-{n}"), [7, n])).collect();
    for proxy in &mut proxies {
        proxy.connect(address).await.unwrap();
    }
    // Alone it keeps them all; a new replica has none, and gets some room.
    let new = start("new").await;
    let slice = |pod: &str, port: u16| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "balance", "name": format!("istiod-{pod}"), "labels": {"kubernetes.io/service-name": "istiod"}},
            "ports": [{"name": "http-monitoring", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "balance", "name": pod}}]})
    };
    client.apply(&[slice("old", old.monitoring.port()), slice("new", new.monitoring.port())]).await.unwrap();
    old.line("far more streams than other replicas have").unwrap();
    let connected = async |replica: &Replica| -> anyhow::Result<usize> {
        let (_, text) = Replica::page(replica.monitoring, "/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with("pilot_xds{"));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum())
    };
    let has_room = || async {
        let left = connected(&old).await?;
        anyhow::ensure!(left < 40, "it still has {left}");
        Ok(left)
    };
    eventually("some are let go", PATIENCE, has_room).await.unwrap();
    // It stops where a reconnect is not worth it: nobody here comes back, so the share shrinks as well.
    let comes_to_rest = || async {
        let before = connected(&old).await?;
        tokio::time::sleep(Duration::from_millis(900)).await;
        let after = connected(&old).await?;
        anyhow::ensure!(before == after, "{before}, then {after}");
        Ok(after)
    };
    let rest = eventually("it comes to rest", PATIENCE, comes_to_rest).await.unwrap();
    assert!((10..40).contains(&rest), "{rest}");
}
