//! A real Envoy that poses as the proxy of a scenario, and a control plane that serves the scenario: each in a network
//! namespace of its own, so that no port of the one is in the way of the other's.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::admin::Admin;
use crate::bootstrap::{self, Variant};
use crate::control_plane::{self, ControlPlane};
use crate::envoy::{self, write_readable};
use crate::kube::PodSpec;
use crate::netns::{Interception, Netns, Network};
use crate::pod::Process;
use crate::sds::{self, Authority};
use crate::{eventually, quiet};

/// How long Envoy may take to have what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where Envoy is.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

/// Nobody answers what Envoy asks for names, and it is to learn that at once, since it takes no listeners before.
const NO_NAMES: &str = "*filter
-A OUTPUT -p udp --dport 53 -j REJECT
-A OUTPUT -p tcp --dport 53 -j REJECT --reject-with tcp-reset
COMMIT";

/// What to run.
pub struct Config<'a> {
    /// Folder of YAML that is served.
    pub folder: &'a Path,
    /// Environment of the control plane.
    pub environment: &'a [(String, String)],
    /// Envoy's node.
    pub node: Value,
    /// Variant of xDS.
    pub variant: Variant,
    /// Who signs its certificate.
    pub authority: &'a Authority,
    /// What stands around Envoy besides the control plane; none for nothing.
    pub around: Option<Around<'a>>,
}

/// What stands around an Envoy.
pub struct Around<'a> {
    /// Rules of the firewall, as `iptables-restore` reads them.
    pub rules: &'a str,
    /// Clusters that routes lead to and the scenario does not have.
    pub clusters: &'a [String],
    /// Port of this machine that they lead to.
    pub stand_in: u16,
}

/// Both of them. Dropping it stops them.
pub struct Live {
    // Fields are dropped in order: processes before the namespaces that they are in.
    _envoy: Process,
    control_plane: ControlPlane,
    secrets: JoinHandle<()>,
    netns: Netns,
    _network: Network,
    _files: tempfile::TempDir,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.secrets.abort();
    }
}

impl Live {
    /// Starts both.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start(config: Config<'_>) -> Result<Live> {
        let Config { folder, environment, node, variant, authority, around } = config;
        let files = tempfile::tempdir().context("cannot make a folder")?;
        let network = Network::new(Interception::Redirect)?;
        let netns = network.pod("live", ADDRESS, false)?;
        netns.filter(NO_NAMES)?;
        if let Some(around) = &around {
            netns.filter(around.rules)?;
        }
        let binary = control_plane::binary(quiet)?;
        let config = control_plane::Config { binary: &binary, folder, environment, plugins: None, echo: None };
        let control_plane = ControlPlane::start(network.node(), &config).await?;

        let socket = files.path().join("sds.sock");
        let secrets = sds::serve(&socket, authority.identity("default", "default")?)?;
        let mut bootstrap = bootstrap::bootstrap(&bootstrap::Config {
            pod: &PodSpec::outside("live", ADDRESS),
            control_plane: ControlPlane::address(false),
            secure: None,
            sds: &socket,
            variant,
            interception: Interception::Redirect,
        });
        bootstrap["node"] = node;
        if let (Some(around), Some(Value::Array(clusters))) =
            (&around, bootstrap.pointer_mut("/static_resources/clusters"))
        {
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, around.stand_in));
            clusters.extend(around.clusters.iter().map(|name| bootstrap::cluster(name, at)));
        }
        let file = files.path().join("bootstrap.json");
        write_readable(&file, &bootstrap.to_string())?;
        let setup = move |command: &mut Command| {
            command.arg("-c").arg(file).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]);
            // Access logs are read as they are written.
            command.args(["--file-flush-interval-msec", "10"]).stdout(Stdio::null()).stderr(Stdio::null());
        };
        let envoy = Process::start(&netns, &envoy::find(quiet)?, setup, None, None)?;
        Ok(Live { _envoy: envoy, control_plane, secrets, netns, _network: network, _files: files })
    }

    /// Where Envoy is.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Envoy's admin interface.
    pub fn admin(&self) -> Admin<'_> {
        Admin { netns: &self.netns, name: "envoy" }
    }

    /// Waits until Envoy has what it asked for; answers what it rejected.
    ///
    /// # Errors
    /// When it does not get it; with what the control plane printed.
    pub async fn settled(&self) -> Result<Vec<String>> {
        let admin = self.admin();
        let settled = eventually("Envoy has what it asked for", PATIENCE, || answered(&admin)).await;
        settled.with_context(|| self.control_plane.lines().join("\n"))?;
        admin.rejections().await
    }
}

/// Clusters and listeners came, and each route configuration that listeners name.
async fn answered(admin: &Admin<'_>) -> Result<()> {
    let stats = admin.stats("update_").await?;
    let n = |name: &str| stats.get(name).copied().unwrap_or_default();
    for kind in ["cluster_manager.cds", "listener_manager.lds"] {
        let n_answers = n(&format!("{kind}.update_success")) + n(&format!("{kind}.update_rejected"));
        ensure!(n_answers > 0, "no answer for {kind}");
    }
    for (name, n_attempts) in
        stats.iter().filter(|(name, _)| name.contains(".rds.") && name.ends_with("update_attempt"))
    {
        let start = name.trim_end_matches("update_attempt");
        let n_answers = n(&format!("{start}update_success")) + n(&format!("{start}update_rejected"));
        ensure!(n_answers > 0 || *n_attempts == 0, "no answer for {start}");
    }
    Ok(())
}

/// The node of a scenario's proxy; of the first one without a name.
///
/// # Errors
/// When `proxies.yaml` has none of this name.
pub fn node(scenario: &Path, proxy: Option<&str>) -> Result<Value> {
    let file = scenario.join("proxies.yaml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let proxies: Vec<Value> = serde_yaml_ng::from_str(&text).context("proxies.yaml is no YAML")?;
    let named = |found: &Value| proxy.is_none_or(|proxy| found.get("name").and_then(Value::as_str) == Some(proxy));
    let mut node = proxies.into_iter().find(named).and_then(|mut proxy| proxy.get_mut("node").map(Value::take));
    let node = node.as_mut().context("proxies.yaml has no such proxy")?;
    // Envoy does not start without it, and the control plane does not look at it.
    if node.get("cluster").is_none() {
        node["cluster"] = "live".into();
    }
    Ok(node.take())
}
