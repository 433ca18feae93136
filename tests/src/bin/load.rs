//! How long a large cluster takes to load, and what it takes to hold it: a real API server full of services and pods, and the
//! control plane with no proxy connected. For measuring, not for CI:
//!
//! ```sh
//! cargo run --release -p trysail-tests --bin load -- --services 10000 --endpoints 5
//! ```

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use trysail_tests::cluster::{ApiServer, Cluster, Config, Rights};
use trysail_tests::replica::Replica;
use trysail_tests::{aloud, control_plane};

#[derive(Parser)]
struct Options {
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Pods of each service.
    #[arg(long, default_value_t = 5)]
    endpoints: usize,
    /// Namespaces that they are in.
    #[arg(long, default_value_t = 100)]
    namespaces: usize,
    /// Requests to the API server at once while it is filled.
    #[arg(long, default_value_t = 48)]
    writers: usize,
    /// How often the control plane is started.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let binary = control_plane::binary(aloud)?;
    let config = Config { rights: Rights::All, ..Config::default() };
    let server = ApiServer::start(config, aloud).await?;
    let client = Arc::new(server.client().await?);
    fill(&options, &client).await?;
    for run in 1..=options.runs {
        let kubeconfig = server.kubeconfig().display().to_string();
        let began = Instant::now();
        let mut child = Command::new(&binary)
            .args(["discovery", "--kubeconfig", &kubeconfig, "--httpAddr", "127.0.0.1:18080"])
            .args(["--grpcAddr", "127.0.0.1:0", "--monitoringAddr", "127.0.0.1:0", "--secureGRPCAddr", "127.0.0.1:0"])
            // The watches alone, without the limit that keeps us polite.
            .args(["--kubernetesApiQPS", "1000", "--kubernetesApiBurst", "1000"])
            .env("TRYSAIL_CA_DIR", "memory")
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the control plane")?;
        let ready = loop {
            if began.elapsed() > Duration::from_secs(600) {
                bail!("not ready within ten minutes");
            }
            if let Some(status) = child.try_wait().context("cannot ask for the control plane")? {
                bail!("the control plane ended: {status}");
            }
            match Replica::page(([127, 0, 0, 1], 18080).into(), "/ready").await {
                Ok((200, _)) => break began.elapsed(),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (resident, peak) = (memory(child.id(), "VmRSS:")?, memory(child.id(), "VmHWM:")?);
        println!(
            "run {run}: {} services, {} endpoints: ready after {:.1} s, {resident} MiB resident, {peak} MiB at most",
            options.services,
            options.services * options.endpoints,
            ready.as_secs_f64()
        );
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(())
}

/// A line of the process's status, in MiB.
fn memory(pid: u32, line: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the control plane is gone")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kib: u64 = found.and_then(|text| text.split_whitespace().next()?.parse().ok()).context("no such line")?;
    Ok(kib / 1024)
}

async fn fill(options: &Options, client: &Arc<Cluster>) -> Result<()> {
    let names: Vec<Value> = (0..options.namespaces)
        .map(|n| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("load-{n}")}}))
        .collect();
    client.apply(&names).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let (n_services, n_endpoints, n_namespaces) = (options.services, options.endpoints, options.namespaces);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..options.writers {
        let (client, next) = (client.clone(), next.clone());
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= n_services {
                    return Ok::<_, anyhow::Error>(());
                }
                for object in objects(n, n_endpoints, n_namespaces) {
                    client.create(&object).await?;
                }
                if n % 1000 == 999 {
                    println!("· {} services after {:.0} s", n + 1, began.elapsed().as_secs_f64());
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.context("a writer panicked")??;
    }
    Ok(())
}

/// A service with its slice and its pods, the size that such objects have in clusters.
fn objects(n: usize, n_endpoints: usize, n_namespaces: usize) -> Vec<Value> {
    let (namespace, name) = (format!("load-{}", n % n_namespaces), format!("service-{n}"));
    let labels = json!({
        "app": name, "version": "v1", "security.istio.io/tlsMode": "istio", "pod-template-hash": "7d9f5c6b8",
        "service.istio.io/canonical-name": name, "service.istio.io/canonical-revision": "v1",
    });
    let ip = |i: usize| {
        let number = u32::try_from(n * n_endpoints + i).unwrap_or_default();
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number).to_string()
    };
    let pods = (0..n_endpoints).map(|i| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": format!("{name}-7d9f5c6b8-{i}"), "labels": labels, "generateName": format!("{name}-7d9f5c6b8-"),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-7d9f5c6b8"), "uid": "x", "controller": true}]},
            "spec": {"serviceAccountName": name, "nodeName": format!("node-{}", i % 50),
                "containers": [{"name": "app", "image": "example.org/app:v1", "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]},
            "status": {"phase": "Running", "podIP": ip(i), "podIPs": [{"ip": ip(i)}], "conditions": [{"type": "Ready", "status": "True"}]},
        })
    });
    let endpoints: Vec<Value> = (0..n_endpoints)
        .map(|i| {
            json!({"addresses": [ip(i)], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": format!("node-{}", i % 50),
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{name}-7d9f5c6b8-{i}")}})
        })
        .collect();
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}),
    ];
    all.extend(pods);
    all
}
