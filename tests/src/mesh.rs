//! A whole mesh: the control plane on a folder, a pod with a sidecar for each Pod in it, and pods outside of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;

use crate::agent::{self, Issuer};
use crate::bootstrap::Variant;
use crate::control_plane::{self, ControlPlane};
use crate::kube::{self, PodSpec};
use crate::netns::{Interception, NODE_IP, Network};
use crate::pod::{Issued, Pod, Surroundings};
use crate::sds::Authority;
use crate::tls::Outside;
use crate::workload::{self, Call, Reply};
use crate::{Say, dns, envoy, eventually};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Answers that count as a settled state.
const STREAK: usize = 10;

/// What to bring up.
pub struct Config {
    /// The folder, served as it is.
    pub folder: PathBuf,
    /// Pods that are not in the folder.
    pub outside: Vec<PodSpec>,
    /// How traffic comes to sidecars.
    pub interception: Interception,
    /// Variant of xDS.
    pub variant: Variant,
    /// Sidecars come over TLS with tokens, and have certificates that the control plane issued.
    pub secure: bool,
    /// Environment of the control plane.
    pub environment: Vec<(String, String)>,
    /// Names that the sidecars' resolver knows; without any, they ask the machine's.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// Certificates of workloads that speak TLS themselves.
    pub tls: Option<Outside>,
    /// The control plane's folder of plugins.
    pub plugins: Option<PathBuf>,
    /// What is being done.
    pub say: Say,
    /// Gets what the control plane prints.
    pub echo: Option<fn(&str)>,
}

impl Config {
    /// A folder as it is: no pods but its own, plaintext, delta, in silence.
    pub fn new(folder: PathBuf, interception: Interception) -> Config {
        Config {
            folder,
            outside: Vec::new(),
            interception,
            variant: Variant::Delta,
            secure: false,
            environment: Vec::new(),
            names: BTreeMap::new(),
            tls: None,
            plugins: None,
            say: crate::quiet,
            echo: None,
        }
    }
}

/// A running mesh. Dropping it stops everything and cleans up.
pub struct Mesh {
    // Fields are dropped in order: pods before the network, files last.
    pods: BTreeMap<String, Pod>,
    control_plane: ControlPlane,
    around: Surroundings,
    folder: PathBuf,
    _name_server: Option<Task>,
    _files: tempfile::TempDir,
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Mesh {
    /// Brings it up; on return every sidecar takes traffic.
    ///
    /// # Errors
    /// When a part does not come up; with its log.
    pub async fn start(config: Config) -> Result<Mesh> {
        let Config { folder, outside, interception, variant, secure, mut environment, names, tls, plugins, say, echo } =
            config;
        let envoy = envoy::find(say)?;
        let binary = control_plane::binary(say)?;
        let network = Network::new(interception)?;
        let files = tempfile::Builder::new()
            .prefix(&format!("{}-", network.prefix()))
            .tempdir()
            .context("cannot make a folder")?;
        // Sidecars run as another user.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(files.path(), open).context("cannot open up the folder of the mesh")?;
        let envoy = envoy::within_reach(&envoy, files.path())?;
        let issuer = Issuer::new()?;
        let ca = files.path().join("ca");
        if secure {
            environment.push(("JWT_RULE".into(), issuer.rule()));
            environment.push(("TRYSAIL_CA_DIR".into(), ca.display().to_string()));
        }
        say(&format!("control plane: trysail discovery --configDir {} --registries=", folder.display()));
        let serve = control_plane::Config {
            binary: &binary,
            folder: &folder,
            environment: &environment,
            plugins: plugins.as_deref(),
            echo,
        };
        let control_plane = ControlPlane::start(network.node(), &serve).await?;
        let mut resolver = None;
        if !names.is_empty() {
            let file = files.path().join("resolv.conf");
            envoy::write_readable(&file, &format!("nameserver {NODE_IP}\n"))?;
            resolver = Some((file, Task(dns::serve(network.node(), names)?)));
        }
        let (resolver, name_server) = resolver.unzip();
        let around = Surroundings {
            outside: tls,
            resolver,
            network,
            folder: files.path().to_owned(),
            envoy,
            control_plane: ControlPlane::address(secure),
            variant,
            authority: Authority::new()?,
            issued: BTreeMap::new(),
        };
        let mut mesh =
            Mesh { pods: BTreeMap::new(), control_plane, around, folder, _name_server: name_server, _files: files };
        let mut specs = outside;
        specs.extend(kube::pods(&kube::objects(&mesh.folder)?));
        if secure {
            let read =
                || async { std::fs::read_to_string(ca.join("ca-cert.pem")).context("the authority has no root") };
            let root = eventually("the root of the authority", PATIENCE, read).await?;
            for spec in &specs {
                let issued = issue(&mesh.around, &issuer, &root, spec).await?;
                mesh.around.issued.insert((spec.namespace.clone(), spec.service_account.clone()), issued);
            }
        }
        specs.sort_by_key(|spec| spec.ip);
        for spec in specs {
            let sidecar = if spec.sidecar { "with a sidecar" } else { "without a sidecar" };
            say(&format!("pod {} at {}, {sidecar}", spec.name, spec.ip));
            mesh.add(spec)?;
        }
        for pod in mesh.pods.values_mut() {
            pod.ready(PATIENCE).await?;
        }
        Ok(mesh)
    }

    /// Starts another pod, without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add(&mut self, spec: PodSpec) -> Result<&mut Pod> {
        let pod = Pod::start(&self.around, spec)?;
        let name = pod.spec.name.clone();
        self.pods.remove(&name);
        Ok(self.pods.entry(name).or_insert(pod))
    }

    /// Stops a pod.
    pub fn remove(&mut self, name: &str) {
        self.pods.remove(name);
    }

    /// A running pod.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// The folder that is served.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the control plane printed.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// Makes an HTTP call from a pod to an address, which its sidecar takes if it has one.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(&self, from: &str, call: Call<'_>) -> Result<Reply> {
        workload::call(self.pod(from).netns(), call).await
    }

    /// Sends bytes from a pod to an address; see [`workload::send`].
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn send(&self, from: &str, to: SocketAddr, bytes: &[u8]) -> Result<String> {
        workload::send(self.pod(from).netns(), to, bytes).await
    }

    /// Calls a service by its host name, as the workload of a pod would: through its sidecar.
    ///
    /// # Errors
    /// When there is no such service in the folder, or no answer.
    pub async fn get(&self, from: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let pod = self.pod(from);
        // What the cluster's DNS would say.
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next().unwrap_or_default(), labels.next().unwrap_or(&pod.spec.namespace));
        let services = kube::services(&kube::objects(&self.folder)?);
        let service = services
            .get(&format!("{name}.{namespace}"))
            .with_context(|| format!("the folder has no service {host}"))?;
        let to = if !pod.spec.sidecar {
            service.endpoint.with_context(|| format!("service {host} has no endpoint"))?
        } else if self.around.network.interception() == Interception::None {
            // Without redirection the sidecar's listeners for services are on the loopback address.
            SocketAddr::from((Ipv4Addr::LOCALHOST, service.port))
        } else {
            SocketAddr::from((service.ip, service.port))
        };
        workload::call(pod.netns(), Call { to, host, method: "GET", path, headers }).await
    }

    /// Waits until answers satisfy the condition, [`STREAK`] of them in a row: one may do so by chance, before the change that
    /// is waited for has come.
    ///
    /// # Errors
    /// When that does not happen in time; with an answer that does not satisfy it.
    pub async fn until(&self, from: &str, host: &str, what: &str, is: impl Fn(&Reply) -> bool) -> Result<Reply> {
        let ask = || async {
            for _ in 1..STREAK {
                self.ask(from, host, &is).await?;
            }
            self.ask(from, host, &is).await
        };
        eventually(&format!("{from} calls {host}: {what}"), PATIENCE, ask).await
    }

    /// Waits for one answer that satisfies the condition.
    ///
    /// # Errors
    /// When none does in time; with the last one.
    pub async fn once(&self, from: &str, host: &str, what: &str, is: impl Fn(&Reply) -> bool) -> Result<Reply> {
        eventually(&format!("{from} calls {host}: {what}"), PATIENCE, || self.ask(from, host, &is)).await
    }

    async fn ask(&self, from: &str, host: &str, is: &impl Fn(&Reply) -> bool) -> Result<Reply> {
        let reply = self.get(from, host, "/", &[]).await?;
        anyhow::ensure!(is(&reply), "the last answer was {} {}", reply.status, reply.body);
        Ok(reply)
    }

    /// What any sidecar did not accept.
    ///
    /// # Errors
    /// When a sidecar does not answer.
    pub async fn rejections(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for pod in self.pods.values() {
            found.extend(pod.rejections().await?);
        }
        Ok(found)
    }
}

/// Does what an agent does before its Envoy starts.
async fn issue(around: &Surroundings, issuer: &Issuer, root: &str, spec: &PodSpec) -> Result<Issued> {
    let token = issuer.token(&spec.namespace, &spec.service_account)?;
    let socket = around.network.node().enter(tokio::net::TcpSocket::new_v4).context("cannot make a socket")?;
    let stream = socket.connect((Ipv4Addr::LOCALHOST, control_plane::SECURE).into()).await;
    let channel = agent::connect_over(stream.context("nobody listens for TLS")?, root, None).await?;
    let certified =
        agent::certify(&channel, &token).await.with_context(|| format!("no certificate for {}", spec.name))?;
    Ok(Issued { token, certified })
}
