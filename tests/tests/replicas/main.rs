//! Several replicas on one real API server: equal bytes and versions, proxies that move between them, replicas that are killed
//! while the cluster changes, who leads, and how one stops.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use trysail_tests::ads::{self, CLUSTER, ENDPOINT, Proxy, differences};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::{agent, aloud, control_plane, eventually, quiet};

mod addresses;
mod balance;
#[path = "../support/definitions.rs"]
mod definitions;
mod election;
mod omission;

const PATIENCE: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(700);

async fn server() -> &'static ApiServer {
    static SERVER: OnceCell<ApiServer> = OnceCell::const_new();
    let start = || async {
        let config = cluster::Config { rights: cluster::Rights::All, ..Default::default() };
        let server = ApiServer::start(config, aloud).await?;
        server.client().await?.define(&definitions::all()).await?;
        Ok::<_, anyhow::Error>(server)
    };
    SERVER.get_or_try_init(start).await.unwrap()
}

fn binary() -> PathBuf {
    control_plane::binary(quiet).unwrap()
}

/// A replica on the shared cluster that takes what belongs to namespaces with the label `world: NAME` and sees no other test.
async fn replica(world: &str, more: &[&str], environment: &[(&str, &str)]) -> Replica {
    let kubeconfig = server().await.kubeconfig().display().to_string();
    let mut args = vec!["--kubeconfig", &kubeconfig, "--namespace", world];
    args.extend(more);
    let mut all = vec![("POD_NAME", "replica"), ("PILOT_DEBOUNCE_AFTER", "20ms")];
    all.extend(environment);
    Replica::start(&binary(), &args, &all).unwrap()
}

/// A world of its own: the control plane's namespace with a mesh configuration that discovers only what is labelled.
async fn world(client: &Cluster, name: &str, more: &str) {
    let mesh = format!("discoverySelectors:\n- matchLabels:\n    world: {name}\n{more}");
    let namespace = |namespace: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"world": name}}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": name, "name": "istio"}, "data": {"mesh": mesh}});
    client
        .apply(&[namespace(name), namespace(&format!("{name}-app")), namespace(&format!("{name}-other")), map])
        .await
        .unwrap();
}

/// A service with one pod, whose last two address parts are given.
fn app(namespace: &str, name: &str, place: [u8; 2]) -> Vec<Value> {
    let ip = format!("10.200.{}.{}", place[0], place[1]);
    let labels = json!({"app": name, "security.istio.io/tlsMode": "istio"});
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": format!("{name}-1"), "labels": labels},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "x"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{name}-1")}}]}),
    ]
}

fn sidecar(namespace: &str, name: &str, place: [u8; 2]) -> Proxy {
    Proxy::sidecar(&format!("{name}-1"), namespace, &format!("10.200.{}.{}", place[0], place[1]), &json!({"app": name}))
}

fn cluster_of(name: &str, namespace: &str) -> String {
    format!("outbound|80||{name}.{namespace}.svc.cluster.local")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_moves_is_sent_nothing_it_has() {
    let client = server().await.client().await.unwrap();
    world(&client, "moving", "").await;
    for n in 0..5 {
        client.apply(&app("moving-app", &format!("app-{n}"), [1, n])).await.unwrap();
    }
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "moving-app", "name": "route"},
        "spec": {"hosts": ["app-0"], "http": [{"route": [{"destination": {"host": "app-1"}}], "timeout": "2s"}]}});
    client.apply(&[rule]).await.unwrap();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(replica("moving", &[], &[]).await);
    }
    let mut addresses = Vec::new();
    for replica in &mut replicas {
        replica.ready().await.unwrap();
        addresses.push(replica.xds().unwrap());
    }
    // Each replica made its own; all are equal, versions too.
    let mut configs = Vec::new();
    for address in &addresses {
        let mut proxy = sidecar("moving-app", "app-0", [1, 0]);
        proxy.connect(*address).await.unwrap();
        proxy.settle(QUIET).await.unwrap();
        assert!(
            proxy.config[CLUSTER].contains_key(&cluster_of("app-3", "moving-app")),
            "{:?}",
            proxy.config[CLUSTER].keys()
        );
        assert!(proxy.config[ENDPOINT].len() >= 5);
        configs.push(proxy.config.clone());
    }
    assert_eq!(differences(&configs[0], &configs[1]), [""; 0]);
    assert_eq!(differences(&configs[0], &configs[2]), [""; 0]);
    // From one to the next, with what it has.
    let mut proxies: Vec<Proxy> = (0..5).map(|n| sidecar("moving-app", &format!("app-{n}"), [1, n])).collect();
    for round in 0..4 {
        for (n, proxy) in proxies.iter_mut().enumerate() {
            proxy.disconnect();
            proxy.connect(addresses[(n + round) % 3]).await.unwrap();
            let received = proxy.settle(QUIET).await.unwrap();
            assert!(round == 0 || received.is_empty(), "round {round}, proxy {n}: {received:?}");
        }
    }
    // What changed meanwhile is all that it is sent.
    proxies[0].disconnect();
    client
        .merge(
            ["networking.istio.io/v1", "VirtualService", "moving-app", "route"],
            &json!({"spec": {"http": [{"route": [{"destination": {"host": "app-2"}}]}]}}),
        )
        .await
        .unwrap();
    proxies[1]
        .until("the change is there", PATIENCE, |config| {
            Proxy::mentions(config, ads::ROUTE, "80", "app-2.moving-app.svc.cluster.local;")
                || Proxy::mentions(config, ads::ROUTE, "80", "|80||app-2")
        })
        .await
        .unwrap();
    proxies[0].connect(addresses[1]).await.unwrap();
    let received = proxies[0].settle(QUIET).await.unwrap();
    assert!(received.changed.iter().all(|(kind, name)| kind == ads::ROUTE && name == "80"), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_churn_ends_as_a_cold_start() {
    let n_kills: usize = std::env::var("TRYSAIL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let client = Arc::new(server().await.client().await.unwrap());
    world(&client, "killed", "").await;
    for n in 0..6 {
        client.apply(&app("killed-app", &format!("app-{n}"), [2, n])).await.unwrap();
    }
    // The cluster changes all the time: endpoints move, services come and go, routes differ.
    let (stop, n_changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let churn = tokio::spawn({
        let (client, stop, n_changes) = (client.clone(), stop.clone(), n_changes.clone());
        async move {
            for n in 0usize.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let ready = json!({"endpoints": [{"addresses": [format!("10.200.2.{}", n % 6)], "conditions": {"ready": n % 4 < 2},
                    "targetRef": {"kind": "Pod", "namespace": "killed-app", "name": format!("app-{}-1", n % 6)}}]});
                let slice = format!("app-{}-1", n % 6);
                client.merge(["discovery.k8s.io/v1", "EndpointSlice", "killed-app", &slice], &ready).await.unwrap();
                let route = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "killed-app", "name": "route"},
                    "spec": {"hosts": ["app-0"], "http": [{"route": [{"destination": {"host": format!("app-{}", n % 5 + 1)}}]}]}});
                client.apply(&[route]).await.unwrap();
                if n % 3 == 0 {
                    client.apply(&app("killed-app", "fleeting", [2, 100])).await.unwrap();
                } else if n % 3 == 1 {
                    client.delete(["v1", "Service", "killed-app", "fleeting"]).await.unwrap();
                }
                n_changes.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
    });
    let mut proxies: Vec<Proxy> = (0..3).map(|n| sidecar("killed-app", &format!("app-{n}"), [2, n])).collect();
    for kill in 0..n_kills {
        let mut running = replica("killed", &[], &[]).await;
        // Nobody listens before the state is whole.
        running.ready().await.unwrap();
        let address = running.xds().unwrap();
        for proxy in &mut proxies {
            proxy.disconnect();
            proxy.connect(address).await.unwrap();
            // Whatever comes in this while; the churn never lets it be quiet.
            let _ = tokio::time::timeout(Duration::from_millis(300 + 100 * (kill as u64 % 5)), proxy.settle(PATIENCE))
                .await;
        }
        running.kill();
    }
    stop.store(true, Ordering::Relaxed);
    churn.await.unwrap();
    assert!(n_changes.load(Ordering::Relaxed) > n_kills, "there was churn");
    let mut last = replica("killed", &[], &[]).await;
    last.ready().await.unwrap();
    let address = last.xds().unwrap();
    for (n, proxy) in proxies.iter_mut().enumerate() {
        proxy.disconnect();
        proxy.connect(address).await.unwrap();
        proxy.settle(QUIET).await.unwrap();
        let mut cold = sidecar("killed-app", &format!("app-{n}"), [2, u8::try_from(n).unwrap()]);
        cold.connect(address).await.unwrap();
        cold.settle(QUIET).await.unwrap();
        assert_eq!(differences(&cold.config, &proxy.config), [""; 0], "proxy {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_sends_proxies_away_one_by_one_and_in_time() {
    let client = server().await.client().await.unwrap();
    world(&client, "stopping", "").await;
    client.apply(&app("stopping-app", "app", [3, 1])).await.unwrap();
    let mut leaving = replica("stopping", &["--shutdownDuration", "4s"], &[]).await;
    leaving.ready().await.unwrap();
    let address = leaving.xds().unwrap();
    let mut proxies: Vec<Proxy> = (0..30).map(|n| sidecar("stopping-app", &format!("app-{n}"), [3, n])).collect();
    for proxy in &mut proxies {
        proxy.connect(address).await.unwrap();
        proxy.settle(Duration::from_millis(50)).await.unwrap();
    }
    let began = Instant::now();
    leaving.terminate().unwrap();
    let waits = proxies.into_iter().map(|mut proxy| {
        tokio::spawn(async move {
            let ended = proxy.settle(PATIENCE).await;
            (ended.is_err(), began.elapsed())
        })
    });
    let waits: Vec<_> = waits.collect();
    // Not ready first, and still alive.
    let said = eventually("not ready", Duration::from_secs(3), || async {
        let (status, text) = Replica::page(leaving.http, "/healthz/ready").await?;
        anyhow::ensure!(status == 503, "{status}");
        Ok(text)
    })
    .await
    .unwrap();
    assert!(said.contains("stopping"), "{said}");
    let mut ends = Vec::new();
    for wait in waits {
        let (ended, after) = wait.await.unwrap();
        assert!(ended);
        ends.push(after);
    }
    ends.sort();
    assert!(ends[29] - ends[0] > Duration::from_millis(700), "all at once: {ends:?}");
    leaving.ended(Duration::from_secs(8)).unwrap();
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_it_is_alive_and_not_ready_and_serves_what_it_had() {
    // It cuts its server, so it has one of its own.
    let server =
        ApiServer::start(cluster::Config { rights: cluster::Rights::All, ..Default::default() }, aloud).await.unwrap();
    let client = server.client().await.unwrap();
    client.define(&definitions::all()).await.unwrap();
    client.apply(&app("default", "app", [4, 1])).await.unwrap();
    let kubeconfig = server.kubeconfig().display().to_string();
    server.cut();
    let mut late = Replica::start(&binary(), &["--kubeconfig", &kubeconfig], &[]).unwrap();
    eventually("it says what it waits for", PATIENCE, || async {
        let (status, text) = Replica::page(late.http, "/ready").await?;
        anyhow::ensure!(status == 503 && text.contains("Pod: ") && text.contains("VirtualService"), "{status} {text}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(Replica::page(late.http, "/healthz/live").await.unwrap().0, 200);
    assert!(!late.lines().iter().any(|line| line.contains("xDS on")), "nobody is served half a mesh");
    server.resume().await.unwrap();
    late.ready().await.unwrap();
    let address = late.xds().unwrap();
    let mut proxy = sidecar("default", "app", [4, 1]);
    proxy.connect(address).await.unwrap();
    proxy.settle(QUIET).await.unwrap();
    let before = proxy.config.clone();
    server.cut();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(proxy.settle(QUIET).await.unwrap().is_empty(), "what is served stays");
    let mut other = sidecar("default", "app", [4, 1]);
    other.connect(address).await.unwrap();
    other.settle(QUIET).await.unwrap();
    assert_eq!(differences(&before, &other.config), [""; 0], "newcomers are served, too");
    let (ready, live) =
        (Replica::page(late.http, "/ready").await.unwrap(), Replica::page(late.http, "/healthz/live").await.unwrap());
    assert_eq!((ready.0, live.0), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_only_those_who_see_it() {
    let client = server().await.client().await.unwrap();
    world(&client, "scoped", "").await;
    client.apply(&app("scoped-app", "app", [5, 1])).await.unwrap();
    client.apply(&app("scoped-other", "other", [5, 2])).await.unwrap();
    let only_own = json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"namespace": "scoped-app", "name": "default"},
        "spec": {"egress": [{"hosts": ["./*"]}]}});
    client.apply(&[only_own]).await.unwrap();
    let mut replica = replica("scoped", &[], &[]).await;
    replica.ready().await.unwrap();
    let address = replica.xds().unwrap();
    let (mut app_proxy, mut other_proxy) =
        (sidecar("scoped-app", "app", [5, 1]), sidecar("scoped-other", "other", [5, 2]));
    for proxy in [&mut app_proxy, &mut other_proxy] {
        proxy.connect(address).await.unwrap();
        proxy.settle(QUIET).await.unwrap();
    }
    assert!(!app_proxy.config[CLUSTER].contains_key(&cluster_of("other", "scoped-other")));
    let rule = |timeout: &str| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "scoped-other", "name": "r"},
        "spec": {"hosts": ["other"], "http": [{"timeout": timeout, "route": [{"destination": {"host": "other"}}]}]}})
    };
    let hidden = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"namespace": "scoped-other", "name": "r"},
        "spec": {"host": "other", "exportTo": ["."], "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}});
    let mut n_pushes = 0;
    for change in [rule("1s"), rule("2s"), hidden].into_iter().chain(app("scoped-other", "third", [5, 3])) {
        client.apply(&[change]).await.unwrap();
        n_pushes += usize::from(!other_proxy.settle(QUIET).await.unwrap().is_empty());
    }
    assert!(n_pushes >= 4, "the neighbours of the change heard of it {n_pushes} times");
    let heard = app_proxy.settle(QUIET).await.unwrap();
    assert_eq!(heard.n_responses, 0, "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_judges_tokens() {
    let client = server().await.client().await.unwrap();
    world(&client, "tokens", "").await;
    client.apply(&app("tokens-app", "app", [7, 1])).await.unwrap();
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "tokens-app", "name": name}});
    client.apply(&[account("default"), account("other")]).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let authority = state.path().join("ca").display().to_string();
    let mut replica =
        replica("tokens", &[], &[("TRYSAIL_CA_DIR", &authority), ("ISTIOD_CUSTOM_HOST", agent::SERVER_NAME)]).await;
    replica.ready().await.unwrap();
    let address = replica.secure().unwrap();
    let root = std::fs::read_to_string(state.path().join("ca/ca-cert.pem")).unwrap();
    let channel = agent::connect(address, &root, None).await.unwrap();
    let mut proxy = sidecar("tokens-app", "app", [7, 1]);
    let good = client.token("tokens-app", "default", "istio-ca").await.unwrap();
    proxy.connect_over(channel.clone(), Some(&good)).await.unwrap();
    proxy.settle(QUIET).await.unwrap();
    assert!(proxy.config[CLUSTER].contains_key(&cluster_of("app", "tokens-app")));
    let bad = [
        client.token("tokens-app", "default", "https://kubernetes.default.svc").await.unwrap(),
        client.token("tokens-app", "other", "istio-ca").await.unwrap(),
        format!("{good}x"),
        "nonsense".to_owned(),
    ];
    for token in bad {
        let mut proxy = sidecar("tokens-app", "app", [7, 1]);
        let opened = proxy.connect_over(channel.clone(), Some(&token)).await;
        assert!(opened.is_err() || proxy.settle(QUIET).await.is_err(), "{token}");
    }
}
