//! A running pod: its network namespace, its workload, its sidecar with the secret service beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinHandle;

use crate::admin::Admin;
use crate::agent::Certified;
use crate::bootstrap::{self, Variant};
use crate::envoy::write_readable;
use crate::eventually;
use crate::kube::PodSpec;
use crate::netns::{Interception, Netns, Network, SIDECAR_UID};
use crate::sds::{self, Authority};
use crate::tls::Outside;
use crate::workload::Workload;

/// What all pods of a mesh share.
pub struct Surroundings {
    /// Their network.
    pub network: Network,
    /// Certificates of workloads that speak TLS themselves.
    pub outside: Option<Outside>,
    /// Resolver configuration of their sidecars, if not the machine's.
    pub resolver: Option<PathBuf>,
    /// Folder for their files, open to the sidecars' user.
    pub folder: PathBuf,
    /// Envoy, within reach of that user.
    pub envoy: PathBuf,
    /// Plaintext xDS.
    pub control_plane: SocketAddr,
    /// Variant of xDS.
    pub variant: Variant,
    /// Who signs their certificates.
    pub authority: Authority,
    /// What the control plane issued, by namespace and service account; empty when sidecars come by plaintext.
    pub issued: BTreeMap<(String, String), Issued>,
}

/// What the control plane gave a service account.
pub struct Issued {
    /// For a token.
    pub token: String,
    /// A certificate.
    pub certified: Certified,
}

/// A running pod. Dropping it stops everything in it.
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    // Fields are dropped in order: processes before the namespace that they are in.
    sidecar: Option<Process>,
    tasks: Tasks,
    workload: Workload,
    netns: Netns,
    log: PathBuf,
}

/// A child process that ends with its owner.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who runs a process, if not the one who starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// A sidecar.
    Sidecar,
    /// A sidecar that may take addresses that are not the machine's.
    TransparentSidecar,
}

impl Process {
    /// Starts a program in a network namespace. The kernel kills it when this process dies in whatever way.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(
        netns: &Netns,
        program: &Path,
        setup: impl FnOnce(&mut Command) + Send + 'static,
        user: Option<User>,
        resolver: Option<&Path>,
    ) -> Result<Process> {
        // setpriv sets what Rust's standard library cannot. The signal comes when the starting thread ends, so that must be
        // the namespace's own thread.
        let mut command;
        if let Some(resolver) = resolver {
            // Nobody else sees this mount.
            const SCRIPT: &str = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", SCRIPT]).arg(resolver).arg("setpriv");
        } else {
            command = Command::new("setpriv");
        }
        command.args(["--pdeathsig", "KILL"]);
        if user.is_some() {
            let id = SIDECAR_UID.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        }
        if user == Some(User::TransparentSidecar) {
            command.args(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]);
        }
        command.arg("--").arg(program);
        setup(&mut command);
        // Ctrl-C at the terminal is for us: we stop the children in order.
        command.process_group(0).stdin(Stdio::null());
        let started = netns.enter(move || command.spawn());
        started.map(Process).with_context(|| format!("cannot start {} (through setpriv)", program.display()))
    }

    /// The streams, to be taken once.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

#[derive(Default)]
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Pod {
    /// Starts a pod; its sidecar may not be ready yet.
    ///
    /// # Errors
    /// When anything of it cannot be started.
    pub fn start(around: &Surroundings, spec: PodSpec) -> Result<Pod> {
        let interception = around.network.interception();
        let netns = around.network.pod(&spec.name, spec.ip, spec.sidecar)?;
        let folder = around.folder.join(&spec.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let log = folder.join("envoy.log");
        let workload = Workload::new(&spec, around.outside.clone());
        let mut pod = Pod { spec, sidecar: None, tasks: Tasks::default(), workload, netns, log };
        // Without redirection the pod's address belongs to the sidecar; see `bootstrap`.
        let hidden = pod.spec.sidecar && interception == Interception::None;
        let ip = if hidden { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        for port in pod.spec.ports.iter().filter(|_| !pod.spec.gateway) {
            let listener = pod.netns.listen(ip, port.number)?;
            pod.tasks.0.push(pod.workload.serve(listener, port.speaks));
        }
        if pod.spec.sidecar || pod.spec.gateway {
            pod.start_sidecar(around, &folder)?;
        }
        Ok(pod)
    }

    fn start_sidecar(&mut self, around: &Surroundings, folder: &Path) -> Result<()> {
        let interception = around.network.interception();
        let socket = folder.join("sds.sock");
        let _ = fs::remove_file(&socket);
        let account = (self.spec.namespace.clone(), self.spec.service_account.clone());
        let issued = around.issued.get(&account);
        let identity = match issued.map(|issued| issued.certified.clone()) {
            Some(Certified { chain_pem, key_pem, root_pem }) => sds::Identity::new(chain_pem, key_pem, root_pem),
            None => around.authority.identity(&account.0, &account.1)?,
        };
        self.tasks.0.push(sds::serve(&socket, identity)?);
        let config = bootstrap::bootstrap(&bootstrap::Config {
            pod: &self.spec,
            control_plane: around.control_plane,
            secure: issued.map(|issued| (&*issued.certified.root_pem, &*issued.token)),
            sds: &socket,
            variant: around.variant,
            interception,
        });
        let file = folder.join("bootstrap.json");
        write_readable(&file, &format!("{config:#}"))?;
        let log = File::create(&self.log).context("cannot make the sidecar's log")?;
        // Access logs open /dev/stdout by its name, as the sidecar's user.
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&self.log, fs::Permissions::from_mode(0o666))
            .context("cannot open up the sidecar's log")?;
        let errors = log.try_clone().context("cannot share the sidecar's log")?;
        let setup = move |command: &mut Command| {
            command.arg("-c").arg(file).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
            command.args(["--drain-time-s", "1"]).stdout(log).stderr(errors);
        };
        // Only redirection needs another user; and without it listeners lie on low ports.
        let user = match interception {
            Interception::Redirect => Some(User::Sidecar),
            Interception::Tproxy => Some(User::TransparentSidecar),
            Interception::None => None,
        };
        self.sidecar = Some(Process::start(&self.netns, &around.envoy, setup, user, around.resolver.as_deref())?);
        Ok(())
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What runs in it beside the sidecar.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The end of the sidecar's log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The sidecar's admin interface.
    pub fn admin(&self) -> Admin<'_> {
        Admin { netns: &self.netns, name: &self.spec.name }
    }

    /// Stats of the sidecar; see [`Admin::stats`].
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn stats(&self, contains: &str) -> Result<BTreeMap<String, u64>> {
        self.admin().stats(contains).await
    }

    /// Waits until Envoy has clusters and listeners and takes traffic.
    ///
    /// # Errors
    /// When Envoy ended, or does not come up in time; with its log.
    pub async fn ready(&mut self, patience: Duration) -> Result<()> {
        let Some(sidecar) = &mut self.sidecar else { return Ok(()) };
        if let Some(status) = sidecar.0.try_wait().context("cannot ask for the sidecar")? {
            bail!("the sidecar of {} ended ({status}):\n{}", self.spec.name, self.log());
        }
        let pod = &*self;
        let ask = || async {
            let reply = pod.admin().get("/ready").await?;
            if reply.status != 200 {
                bail!("Envoy is not ready: {}", reply.body.trim());
            }
            Ok(())
        };
        eventually(&format!("sidecar of {}", self.spec.name), patience, ask)
            .await
            .with_context(|| format!("its log:\n{}", pod.log()))
    }

    /// What Envoy did not accept: rejected updates by stat, and resources with an error in the dump.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn rejections(&self) -> Result<Vec<String>> {
        if !self.spec.sidecar {
            return Ok(Vec::new());
        }
        self.admin().rejections().await
    }
}
