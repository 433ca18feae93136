//! Several replicas on one real API server: equal bytes and versions, proxies that move between them, replicas that are killed
//! while the cluster changes, who leads, and how one stops.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use trysail::omission::PROTECTIVE;
use trysail::pipeline::READ_KINDS;
use trysail_kube::election::{Config, Election, Form, Leadership, Timing};
use trysail_tests::ads::{self, CLUSTER, ENDPOINT, Proxy, differences};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::{agent, aloud, control_plane, eventually, quiet};

#[path = "support/definitions.rs"]
mod definitions;

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

struct Candidate {
    leadership: Leadership,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Candidate {
    async fn start(name: &str, form: Form, identity: &str, revision: &str, is_default: bool) -> Candidate {
        let connection =
            trysail_kube::Connection { kubeconfig: Some(server().await.kubeconfig()), ..Default::default() };
        let client = trysail_kube::connect(&connection).await.unwrap();
        let timing = Timing {
            lease: Duration::from_secs(6),
            renew_within: Duration::from_secs(3),
            retry: Duration::from_millis(200),
        };
        let config = Config {
            name: name.into(),
            namespace: "default".into(),
            form,
            identity: identity.into(),
            revision: revision.into(),
            is_default,
            timing,
        };
        let (election, leadership) = Election::new(client, config);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(election.run(async move { drop(stopped.await) }));
        Candidate { leadership, stop, task }
    }

    async fn leads(&self) -> Duration {
        let began = Instant::now();
        while !self.leadership.holds() {
            assert!(began.elapsed() < PATIENCE, "it never leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_one_leads_and_another_takes_over() {
    for (name, form) in [("lock-map", Form::ConfigMap), ("lock-lease", Form::Lease)] {
        let mut candidates = BTreeMap::new();
        for identity in ["a", "b", "c"] {
            candidates.insert(identity, Candidate::start(name, form, identity, "default", true).await);
        }
        let leaders = |candidates: &BTreeMap<&'static str, Candidate>| -> Vec<&'static str> {
            candidates.iter().filter(|(_, candidate)| candidate.leadership.holds()).map(|(name, _)| *name).collect()
        };
        let watch = |candidates: &BTreeMap<&'static str, Candidate>| {
            let now = leaders(candidates);
            assert!(now.len() <= 1, "{now:?}");
            now.first().copied()
        };
        let began = Instant::now();
        let first = loop {
            if let Some(leader) = watch(&candidates) {
                break leader;
            }
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        for _ in 0..100 {
            watch(&candidates);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let first = leaders(&candidates).first().copied().unwrap_or(first);
        // Killed: the lock runs out, and somebody else has it within the lease and a look.
        candidates.remove(first).unwrap().task.abort();
        let killed = Instant::now();
        let second = loop {
            if let Some(leader) = watch(&candidates) {
                break leader;
            }
            assert!(killed.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // Stopped: it is given back, and nobody waits for the lease.
        let stopping = candidates.remove(second).unwrap();
        stopping.stop.send(()).unwrap();
        stopping.task.await.unwrap();
        let (_, left) = candidates.pop_first().unwrap();
        left.leads().await;
        // What people and istiod see.
        let client = server().await.client().await.unwrap();
        if form == Form::ConfigMap {
            let map = client.get(["v1", "ConfigMap", "default", name]).await.unwrap().unwrap();
            let record = map["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"].as_str().unwrap();
            let record: Value = serde_json::from_str(record).unwrap();
            assert_eq!((&record["holderKey"], &record["leaseDurationSeconds"]), (&json!("default"), &json!(6)));
            assert!(record["leaderTransitions"].as_u64() >= Some(2), "{record}");
        } else {
            let lease = client.get(["coordination.k8s.io/v1", "Lease", "default", name]).await.unwrap().unwrap();
            assert_eq!(lease["metadata"]["annotations"]["leader.istio.io/holder-key"], "default");
            assert_eq!(lease["spec"]["leaseDurationSeconds"], 6);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_revision_takes_the_lock() {
    let canary = Candidate::start("lock-revisions", Form::ConfigMap, "canary-1", "canary", false).await;
    canary.leads().await;
    let default = Candidate::start("lock-revisions", Form::ConfigMap, "default-1", "default", true).await;
    default.leads().await;
    for _ in 0..200 {
        assert!(!(default.leadership.holds() && canary.leadership.holds()), "both");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    default.leads().await;
    assert!(!canary.leadership.holds());
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
