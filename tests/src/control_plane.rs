//! The control plane as a user starts it: the `trysail` binary, serving a folder.

use std::io::{BufRead as _, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpSocket;

use crate::netns::{NODE_IP, Netns};
use crate::pod::Process;
use crate::{Say, eventually, workspace};

/// Plaintext xDS, as in istiod.
pub const GRPC: u16 = 15010;

/// xDS over TLS.
pub const SECURE: u16 = 15012;

/// Debug pages and health.
pub const HTTP: u16 = 8080;

/// Metrics.
pub const MONITORING: u16 = 15014;

/// Stock Envoy has none of the filters that are Istio's own; istiod leaves them out by the same variables.
pub const FOR_STOCK_ENVOY: [(&str, &str); 2] =
    [("PILOT_ENABLE_METADATA_EXCHANGE", "false"), ("PILOT_ENABLE_ALPN_FILTER", "false")];

/// The binary: `$TRYSAIL`, else built by cargo in the profile that this code was built in.
///
/// # Errors
/// When it does not compile.
pub fn binary(say: Say) -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("TRYSAIL") {
        return Ok(path.into());
    }
    let built = BUILT.get_or_init(|| build(say).map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build(say: Say) -> Result<PathBuf> {
    say("building the control plane (package trysail)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(["build", "--package", "trysail", "--bin", "trysail"]);
    command.arg("--message-format=json-render-diagnostics");
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the control plane does not compile");
    }
    // Cargo says where the binary is, wherever the target folder may be.
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = messages.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from)).next_back();
    executable.context("cargo built no binary")
}

/// What to serve.
pub struct Config<'a> {
    /// The binary.
    pub binary: &'a Path,
    /// Folder of YAML.
    pub folder: &'a Path,
    /// Environment variables besides [`FOR_STOCK_ENVOY`].
    pub environment: &'a [(String, String)],
    /// Folder of plugins.
    pub plugins: Option<&'a Path>,
    /// Gets each line that it prints.
    pub echo: Option<fn(&str)>,
}

/// A running control plane. Dropping it stops it.
pub struct ControlPlane {
    process: Process,
    lines: Arc<Mutex<Vec<String>>>,
}

impl ControlPlane {
    /// Where its xDS is, over TLS or not.
    pub fn address(secure: bool) -> SocketAddr {
        (NODE_IP, if secure { SECURE } else { GRPC }).into()
    }

    /// Starts it in a network namespace and waits until it takes connections.
    ///
    /// # Errors
    /// When it ends or does not listen in time; with what it printed.
    pub async fn start(node: &Netns, config: &Config<'_>) -> Result<ControlPlane> {
        let Config { binary, folder, environment, plugins, echo } = *config;
        let (folder, environment, plugins) = (folder.to_owned(), environment.to_vec(), plugins.map(Path::to_owned));
        let setup = move |command: &mut Command| {
            command.arg("discovery").arg("--configDir").arg(folder).arg("--registries=");
            for (flag, port) in [
                ("--grpcAddr", GRPC),
                ("--secureGRPCAddr", SECURE),
                ("--httpAddr", HTTP),
                ("--monitoringAddr", MONITORING),
            ] {
                command.args([flag.to_owned(), format!(":{port}")]);
            }
            if let Some(plugins) = plugins {
                command.arg("--plugins").arg(plugins);
            }
            // Its key shall not outlive it.
            command.env("TRYSAIL_CA_DIR", "memory").envs(FOR_STOCK_ENVOY).envs(environment);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        };
        let mut process = Process::start(node, binary, setup, None, None)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(stdout) = process.child().stdout.take() {
            follow(stdout, lines.clone(), echo);
        }
        if let Some(stderr) = process.child().stderr.take() {
            follow(stderr, lines.clone(), echo);
        }
        let mut started = ControlPlane { process, lines };
        let attempt = || async {
            let socket = node.enter(TcpSocket::new_v4).context("cannot make a socket")?;
            socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, GRPC))).await.context("nobody listens")?;
            Ok(())
        };
        for _ in 0..120 {
            if attempt().await.is_ok() {
                return Ok(started);
            }
            if let Some(status) = started.process.child().try_wait().context("cannot ask for the control plane")? {
                bail!("the control plane ended ({status}):\n{}", started.lines().join("\n"));
            }
            let _ = eventually("control plane", Duration::from_millis(500), attempt).await;
        }
        bail!("the control plane does not listen on {GRPC}:\n{}", started.lines().join("\n"))
    }

    /// What it printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().map(|lines| lines.clone()).unwrap_or_default()
    }
}

fn follow(stream: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>, echo: Option<fn(&str)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
            if let Some(echo) = echo {
                echo(&line);
            }
            if let Ok(mut lines) = lines.lock() {
                lines.push(line);
            }
        }
    });
}
