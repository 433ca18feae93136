//! What protects a proxy and is not translated.

use serde_json::{Value, json};
use trysail::omission::PROTECTIVE;
use trysail::pipeline::READ_KINDS;
use trysail::statuses::TRANSLATED;
use trysail_tests::ads::{CLUSTER, differences};
use trysail_tests::eventually;
use trysail_tests::replica::Replica;

use crate::{PATIENCE, QUIET, app, cluster_of, replica, server, sidecar, world};

/// An object of a kind that protects something and that nothing translates yet; none when all are translated.
fn untranslated(namespace: &str, selector: Value) -> Option<Value> {
    let kind = PROTECTIVE.into_iter().find(|kind| !READ_KINDS.contains(kind) && *kind != "BackendTLSPolicy")?;
    let known = trysail_discovery::kinds::named(kind)?;
    let (field, selector) = match kind {
        "EnvoyFilter" => ("workloadSelector", json!({"labels": selector})),
        _ => ("selector", json!({"matchLabels": selector})),
    };
    let mut spec = match kind {
        "EnvoyFilter" => {
            json!({"configPatches": [{"applyTo": "CLUSTER", "match": {"context": "ANY"}, "patch": {"operation": "MERGE", "value": {}}}]})
        }
        "WasmPlugin" => json!({"url": "oci://example.org/plugin"}),
        "TrafficExtension" => json!({"wasm": {"url": "oci://example.org/plugin"}}),
        _ => json!({}),
    };
    spec[field] = selector;
    Some(
        json!({"apiVersion": format!("{}/{}", known.group, known.versions[0]), "kind": kind, "metadata": {"namespace": namespace, "name": "guard"}, "spec": spec}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_protects_a_proxy_and_is_not_translated_holds_it_back() {
    let Some(guard) = untranslated("held-app", json!({"app": "guarded"})) else {
        println!("every protective kind is translated: nothing to hold back for");
        return;
    };
    let kind = guard["kind"].as_str().unwrap().to_owned();
    let client = server().await.client().await.unwrap();
    world(&client, "held", "").await;
    client.apply(&app("held-app", "guarded", [6, 1])).await.unwrap();
    client.apply(&app("held-app", "free", [6, 2])).await.unwrap();
    let mut replica = replica("held", &[], &[]).await;
    replica.ready().await.unwrap();
    let address = replica.xds().unwrap();
    let (mut guarded, mut free) = (sidecar("held-app", "guarded", [6, 1]), sidecar("held-app", "free", [6, 2]));
    for proxy in [&mut guarded, &mut free] {
        proxy.connect(address).await.unwrap();
        proxy.settle(QUIET).await.unwrap();
    }
    let before = guarded.config.clone();
    client.apply(std::slice::from_ref(&guard)).await.unwrap();
    replica.line("untranslated: ").unwrap();
    // Whoever wrote it finds the reason where he looks: in its status.
    let conditions = || async {
        let api = [guard["apiVersion"].as_str().unwrap(), &kind, "held-app", "guard"];
        let found = client.get(api).await?.unwrap_or_default();
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ours = conditions.into_iter().find(|condition| condition["type"] == TRANSLATED);
        ours.ok_or_else(|| anyhow::anyhow!("no condition in {}", found["status"]))
    };
    let condition = eventually("a condition", PATIENCE, conditions).await.unwrap();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("NoStage")));
    assert!(condition["message"].as_str().is_some_and(|text| text.contains("--accept-untranslated")), "{condition}");
    client.apply(&app("held-app", "new", [6, 3])).await.unwrap();
    free.until("others go on", PATIENCE, |config| config[CLUSTER].contains_key(&cluster_of("new", "held-app")))
        .await
        .unwrap();
    assert_eq!(guarded.settle(QUIET).await.unwrap().n_responses, 0);
    assert_eq!(differences(&before, &guarded.config), [""; 0]);
    // A newcomer that it selects gets nothing at all, not even an empty answer.
    let mut newcomer = sidecar("held-app", "guarded", [6, 1]);
    newcomer.connect(address).await.unwrap();
    assert_eq!(newcomer.settle(QUIET).await.unwrap().n_responses, 0);
    let (status, ready) = Replica::page(replica.http, "/ready").await.unwrap();
    assert!(status == 200 && ready.contains(&format!("{kind} held-app/guard")), "{ready}");
    let (_, page) = Replica::page(replica.http, "/debug/status").await.unwrap();
    assert!(page.contains("guarded-1.held-app") && page.contains(&format!("{kind} held-app/guard")), "{page}");
    let (_, metrics) = Replica::page(replica.monitoring, "/metrics").await.unwrap();
    assert!(metrics.contains(&format!("trysail_untranslated_objects{{kind=\"{kind}\"}} 1")), "{metrics}");
    assert!(metrics.contains("trysail_held_back_proxies 1"), "two streams of one proxy: {metrics}");
    // Once it is gone they get what they missed.
    client.delete([guard["apiVersion"].as_str().unwrap(), &kind, "held-app", "guard"]).await.unwrap();
    for proxy in [&mut guarded, &mut newcomer] {
        proxy
            .until("what it missed", PATIENCE, |config| {
                config.get(CLUSTER).is_some_and(|all| all.contains_key(&cluster_of("new", "held-app")))
            })
            .await
            .unwrap();
    }
    // Who takes the responsibility is served as if it were not there.
    client.apply(&[guard]).await.unwrap();
    let mut accepting = self::replica("held", &["--accept-untranslated", &kind], &[]).await;
    accepting.ready().await.unwrap();
    let mut proxy = sidecar("held-app", "guarded", [6, 1]);
    proxy.connect(accepting.xds().unwrap()).await.unwrap();
    assert!(!proxy.settle(QUIET).await.unwrap().is_empty());
}
