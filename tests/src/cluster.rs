//! A real Kubernetes API server: kube-apiserver with etcd, on loopback, for the suites that need a cluster.
//!
//! ```text
//! tests/apiserver (a Go module) ──go build──> .cache/kube-apiserver-…     etcd: $PATH, else Debian's package unpacked in .cache
//!                                                    └────────── ApiServer: both running, CRDs applied, a kubeconfig ──────────┘
//! ```
//!
//! Nothing else of a cluster runs: no controllers, no scheduler, no kubelet. So tests write EndpointSlices and the status of
//! pods themselves, and a deleted namespace never goes away.
//!
//! **Invariant:** both processes die with this one, in whatever way it ends.

mod client;
mod helm;
mod install;
mod process;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use client::{Cluster, crd};
pub use helm::Helm;
pub use install::{HELM_VERSION, Programs, VERSION};
use process::Process;

use crate::{Say, eventually};

/// Token of the user who may do everything.
const ADMIN: &str = "tests-admin";

/// How rights are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everybody may do everything.
    All,
    /// Roles and bindings decide; the kubeconfig's user is in `system:masters`.
    Roles,
}

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// How rights are judged.
    pub rights: Rights,
    /// Further flags.
    pub flags: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { rights: Rights::Roles, flags: Vec::new() }
    }
}

/// A running API server. Dropping it stops it and forgets everything in it.
pub struct ApiServer {
    programs: Programs,
    config: Config,
    port: u16,
    etcd_port: u16,
    certificate: String,
    // Dropped in this order: the server before its store before their files.
    server: Mutex<Option<Process>>,
    _etcd: Process,
    folder: TempDir,
}

impl ApiServer {
    /// Starts one and waits until it is ready. The first start on a machine compiles it, which takes some minutes.
    ///
    /// # Errors
    /// When Go or etcd cannot be had, with what to do about it; when one of the two does not start.
    pub async fn start(config: Config, say: Say) -> Result<ApiServer> {
        let programs =
            tokio::task::spawn_blocking(move || install::programs(say)).await.context("installing panicked")??;
        let mut last = None;
        // Somebody else may take a port between our look and the start.
        for _ in 0..3 {
            match ApiServer::try_start(programs.clone(), config.clone()).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    async fn try_start(programs: Programs, config: Config) -> Result<ApiServer> {
        let folder = tempfile::tempdir().context("no folder for the API server")?;
        let [port, etcd_port, peer_port] = free_ports()?;
        let certificate = keys(folder.path())?;
        let path = |name: &str| folder.path().join(name);
        let etcd = Process::start(
            &programs.etcd,
            vec![
                format!("--data-dir={}", path("etcd").display()),
                "--unsafe-no-fsync".into(),
                format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
                format!("--quota-backend-bytes={}", 4u64 << 30),
            ],
            path("etcd.log"),
        )?;
        let server =
            ApiServer { programs, config, port, etcd_port, certificate, server: Mutex::default(), _etcd: etcd, folder };
        std::fs::write(server.kubeconfig(), server.kubeconfig_of(ADMIN).to_string())
            .context("cannot write the kubeconfig")?;
        server.resume().await?;
        Ok(server)
    }

    /// A kubeconfig file of a user who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A kubeconfig of whoever has the token.
    pub fn kubeconfig_of(&self, token: &str) -> Value {
        use base64::Engine as _;
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "clusters": [{"name": "tests", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority-data": authority}}],
            "users": [{"name": "tests", "user": {"token": token}}],
        })
    }

    /// A kubeconfig file of whoever has the token, in the server's own folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_file(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("kubeconfig-{name}"));
        std::fs::write(&path, self.kubeconfig_of(token).to_string()).context("cannot write a kubeconfig")?;
        Ok(path)
    }

    /// A client of it.
    ///
    /// # Errors
    /// When there is no such thing as TLS here.
    pub async fn client(&self) -> Result<Cluster> {
        Cluster::connect(&self.kubeconfig()).await
    }

    /// Kills the API server, as when its machine dies; the store stays.
    pub fn cut(&self) {
        drop(self.server.lock().map(|mut server| server.take()));
    }

    /// Starts it (again) on the same store and address, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; with the end of its log.
    pub async fn resume(&self) -> Result<()> {
        // On a machine that is busy with other things it may give up on its store too early.
        match self.run().await {
            Err(_) => self.run().await,
            Ok(()) => Ok(()),
        }
    }

    async fn run(&self) -> Result<()> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut flags: Vec<String> = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", path("server.pem")),
            format!("--tls-private-key-file={}", path("server-key.pem")),
            format!("--cert-dir={}", path("certs")),
            "--endpoint-reconciler-type=none".into(),
            // No controller makes the account that pods would have to have.
            "--disable-admission-plugins=ServiceAccount".into(),
            "--service-cluster-ip-range=10.96.0.0/12".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", path("accounts-public.pem")),
            format!("--service-account-signing-key-file={}", path("accounts.pem")),
            "--api-audiences=https://kubernetes.default.svc,istio-ca".into(),
            format!("--token-auth-file={}", path("tokens.csv")),
            "--enable-priority-and-fairness=false".into(),
            "--max-requests-inflight=0".into(),
            "--max-mutating-requests-inflight=0".into(),
            match self.config.rights {
                Rights::All => "--authorization-mode=AlwaysAllow".into(),
                Rights::Roles => "--authorization-mode=RBAC".into(),
            },
        ];
        flags.extend(self.config.flags.iter().cloned());
        let log = self.folder.path().join("apiserver.log");
        let started = Process::start(&self.programs.apiserver, flags, log.clone())?;
        if let Ok(mut server) = self.server.lock() {
            *server = Some(started);
        }
        let ended =
            || self.server.lock().ok().and_then(|mut server| server.as_mut().map(Process::has_ended)).unwrap_or(true);
        let client = Cluster::connect(&self.kubeconfig()).await?;
        let ready = eventually("the API server", Duration::from_secs(90), || async {
            // No use in waiting on; the outer error says why.
            if ended() {
                return Ok(false);
            }
            client.is_ready().await.map(|()| true)
        });
        match ready.await {
            Ok(true) => Ok(()),
            Ok(false) => bail!("kube-apiserver ended at once:\n{}", process::tail(&log)),
            Err(error) => Err(error).with_context(|| process::tail(&log)),
        }
    }
}

/// Ports of loopback that nobody has just now, all different.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners = std::array::from_fn::<_, N, _>(|_| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener.and_then(|listener| listener.local_addr()).context("no free port")?.port();
    }
    Ok(ports)
}

/// Writes the server's certificate, the key that signs tokens of service accounts, and the administrator's token; returns the
/// certificate, which signs itself.
fn keys(folder: &Path) -> Result<String> {
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]);
    let made = made.context("cannot make a certificate")?;
    write("server.pem", &made.cert.pem())?;
    write("server-key.pem", &made.signing_key.serialize_pem())?;
    let accounts = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    write("accounts.pem", &accounts.serialize_pem())?;
    write("accounts-public.pem", &accounts.public_key_pem())?;
    write("tokens.csv", &format!("{ADMIN},admin,admin,system:masters\n"))?;
    Ok(made.cert.pem())
}
