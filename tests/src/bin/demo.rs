//! The main job: a control plane on `examples/frontend-backend/`, real Envoy sidecars, small workloads, and a client that calls
//! `frontend` once a second and prints who answered.
//!
//! Edit the folder while it runs; the control plane's own lines say what was recomputed, what was pushed, and to whom.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use trysail_tests::bootstrap::Variant;
use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::{Config, Mesh};
use trysail_tests::netns::{self, Interception};
use trysail_tests::workload::Reply;
use trysail_tests::{aloud, workspace};

/// A control plane, real Envoys and small workloads on this machine, on a folder of Istio YAML.
#[derive(Parser)]
struct Cli {
    /// Folder of YAML.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Host that the client calls.
    #[arg(long, default_value = "frontend")]
    host: String,
    /// Ends after the first answer.
    #[arg(long)]
    once: bool,
    /// Ends after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Sidecars take the state of the world with each push, not changes only.
    #[arg(long)]
    sotw: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    // Before any thread: this may replace the process.
    let interception = netns::prepare(aloud)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for termination")?;
        // Whichever branch is dropped takes the mesh with it, and with the mesh all that it set up.
        tokio::select! {
            done = demo(cli, interception, start) => done,
            _ = interrupt.recv() => { aloud("Ctrl-C: stopping"); Ok(()) }
            _ = terminate.recv() => { aloud("stopping"); Ok(()) }
        }
    })
}

async fn demo(cli: &Cli, interception: Interception, start: Instant) -> Result<()> {
    let folder = cli.folder.clone().unwrap_or_else(|| workspace().join("examples/frontend-backend"));
    let config = Config {
        outside: vec![PodSpec::outside("client", Ipv4Addr::new(10, 244, 0, 10))],
        variant: if cli.sotw { Variant::Sotw } else { Variant::Delta },
        say: aloud,
        echo: Some(|line| println!("  trysail | {line}")),
        ..Config::new(folder.clone(), interception)
    };
    let mesh = Mesh::start(config).await?;
    aloud(&format!("everything is up after {:.1} s", start.elapsed().as_secs_f32()));
    if !cli.once {
        aloud(&format!(
            "edit {} (say, subset v1 to v2 in frontend-vs.yaml) and watch; Ctrl-C ends this",
            folder.display()
        ));
    }
    let end = cli.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        every_second.tick().await;
        let line = match mesh.get("client", &cli.host, "/", &[]).await {
            Ok(reply) => describe(&reply),
            Err(error) => format!("no answer: {error:#}"),
        };
        println!("client -> http://{}/   {line}", cli.host);
        *answers.entry(line).or_default() += 1;
        if cli.once || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
    }
    let rejections = mesh.rejections().await?;
    if !rejections.is_empty() {
        bail!("Envoy rejected configuration: {}", rejections.join("; "));
    }
    if !answers.keys().any(|line| line.starts_with("200 ")) {
        bail!("no request was answered");
    }
    Ok(())
}

fn describe(reply: &Reply) -> String {
    let Reply { status, body, .. } = reply;
    if reply.who.is_null() {
        return format!("{status} from the sidecar: {}", body.trim());
    }
    // Set by the server's sidecar from the client's certificate.
    let caller = reply.sent("x-forwarded-client-cert").rsplit_once("URI=").map_or("plaintext", |(_, uri)| uri);
    format!("{status} from {} {} ({}), called by {caller}", reply.said("app"), reply.said("version"), reply.said("pod"))
}
