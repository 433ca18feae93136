//! Addresses for ServiceEntries that have none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use trysail_tests::cluster::Cluster;
use trysail_tests::eventually;

use crate::{PATIENCE, QUIET, replica, server, world};

const API: &str = "networking.istio.io/v1";

fn entry(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": API, "kind": "ServiceEntry", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// The addresses in its status, by host.
async fn given(client: &Cluster, namespace: &str, name: &str) -> Vec<(String, IpAddr)> {
    let found = client.get([API, "ServiceEntry", namespace, name]).await.unwrap().unwrap_or_default();
    let listed = found["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    listed.iter().map(|address| (text(&address["host"]), text(&address["value"]).parse().unwrap())).collect()
}

async fn until(client: &Cluster, namespace: &str, name: &str, n: usize) -> Vec<(String, IpAddr)> {
    let look = || async {
        let found = given(client, namespace, name).await;
        if found.len() == n { Ok(found) } else { anyhow::bail!("{name} has {found:?}") }
    };
    eventually("addresses", PATIENCE, look).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_gives_addresses_and_the_next_one_goes_on() {
    let client = server().await.client().await.unwrap();
    world(&client, "addresses", "").await;
    let space = "addresses-app";
    let spec = |hosts: Value| json!({"hosts": hosts, "resolution": "DNS", "location": "MESH_EXTERNAL", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
    client.apply(&[entry(space, "one", spec(json!(["a.example", "b.example"])))]).await.unwrap();
    let stated = json!({"hosts": ["c.example"], "addresses": ["240.240.0.1"], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
    client
        .apply(&[entry(space, "stated", stated), entry("addresses-out", "out", spec(json!(["d.example"])))])
        .await
        .unwrap();

    let mut first = replica("addresses", &[], &[("POD_NAME", "first")]).await;
    let one = until(&client, space, "one", 4).await;
    let hosts: Vec<&str> = one.iter().map(|(host, _)| host.as_str()).collect();
    assert_eq!(hosts, ["a.example", "a.example", "b.example", "b.example"]);
    assert!(one.iter().map(|(_, ip)| ip.is_ipv6()).eq([false, true, false, true]), "{one:?}");
    assert!(!one.iter().any(|(_, ip)| ip.to_string() == "240.240.0.1"), "what an author wrote is taken: {one:?}");
    assert_eq!(given(&client, space, "stated").await, []);
    assert_eq!(given(&client, "addresses-out", "out").await, [], "of no namespace of this mesh");

    // The lock is istiod's; another replica goes on where this one was.
    let lock = client.get(["v1", "ConfigMap", "addresses", "istio-ip-autoallocate"]).await.unwrap().unwrap();
    assert!(
        lock["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"].as_str().unwrap().contains("first")
    );
    let _second = replica("addresses", &[], &[("POD_NAME", "second")]).await;
    first.terminate().unwrap();
    first.ended(PATIENCE).unwrap();
    client.apply(&[entry(space, "two", spec(json!(["e.example"])))]).await.unwrap();
    let two = until(&client, space, "two", 2).await;
    let all: BTreeSet<IpAddr> = one.iter().chain(&two).map(|(_, ip)| *ip).collect();
    assert_eq!(all.len(), 6, "no address twice: {one:?} {two:?}");
    assert_eq!(given(&client, space, "one").await, one);

    // A host that comes gets its own; what is not due any more goes.
    client
        .merge([API, "ServiceEntry", space, "two"], &json!({"spec": {"hosts": ["e.example", "f.example"]}}))
        .await
        .unwrap();
    assert_eq!(until(&client, space, "two", 4).await[..2], two);
    client.merge([API, "ServiceEntry", space, "one"], &json!({"spec": {"resolution": "NONE"}})).await.unwrap();
    until(&client, space, "one", 0).await;
    tokio::time::sleep(QUIET).await;
    assert_eq!(until(&client, space, "two", 4).await[..2], two);
}
