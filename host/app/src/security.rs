//! The secure port: flags and environment to an authority, authenticators and a transport, and their start.
//!
//! Every variable of istiod that is followed here stands in [`Config::read`], and nowhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use prometheus::Registry;
use trysail_ca::authenticate::{
    Authenticated, Authenticator, Authenticators, ClientCertificate, Forwarded, KubernetesToken, Oidc, TokenReview,
};
use trysail_ca::metrics::Metrics;
use trysail_ca::roots::{Rotation, SECRET_NAME, SecretPlace, detect};
use trysail_ca::service::{CertificateService, Limits, SecureCertificateService};
use trysail_ca::signer::{InProcess, Place, Source, Start};
use trysail_ca::tls::{Acceptor, ServingConfig, TlsOptions, TrustBundles, serving_names, watch_serving};
use trysail_ca::{Lifetimes, Signer, SignerProcess};
use trysail_xds::{AdsService, Server};

use crate::env::{Environment, duration_of, flag_of};

/// What callers of the streams hear who are not known.
const REFUSAL: &str = "authentication failure";

/// Where the signing key lives.
#[derive(Clone, Debug)]
pub enum SignerAt {
    /// In a process of its own: this program, started as `trysail signer`.
    Process(PathBuf),
    /// Here. For tests: a plugin that broke out of its sandbox could read it.
    Here,
}

/// Flags of the secure port.
#[derive(Clone, Debug)]
pub struct Flags {
    /// Address; empty for none.
    pub addr: String,
    /// Certificate and key of ours in files.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Go's names of cipher suites.
    pub cipher_suites: Vec<String>,
    /// `1.2` or `1.3`.
    pub min_version: String,
    /// Where the signing key lives.
    pub signer: SignerAt,
}

/// Settings of the secure port.
#[derive(Clone, Debug)]
pub struct Config {
    start: Start,
    is_authority: bool,
    serving: ServingConfig,
    xds_auth: bool,
    jwt_rule: Option<String>,
    audiences: Vec<String>,
    trusted_networks: Vec<ipnet::IpNet>,
    limits: Limits,
    signer: SignerAt,
    trust_domain: String,
    /// What could not be followed.
    warnings: Vec<String>,
}

impl Config {
    /// Reads flags, environment and mesh configuration.
    ///
    /// # Errors
    /// For what must not be misunderstood: TLS settings, trusted networks, a signing key of which only a part is there,
    /// external authorities.
    pub fn read(
        flags: &Flags,
        environment: &dyn Environment,
        mesh: &serde_json::Value,
        namespace: &str,
        revision: &str,
        cluster: Option<&trysail_kube::Connection>,
    ) -> Result<Config> {
        let mut warnings = Vec::new();
        let text = |name: &str| environment.get(name);
        let is = |name: &str, default: bool| flag_of(environment, name, default);
        let list = |name: &str| -> Vec<String> {
            let value = text(name).unwrap_or_default();
            value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let lasting = |name: &str, default: Duration| duration_of(environment, name, default);
        let hours = |n: u64| Duration::from_secs(n * 3600);

        let trust_domain = mesh.get("trustDomain").and_then(serde_json::Value::as_str).unwrap_or_default();
        let trust_domain = if trust_domain.is_empty() { "cluster.local" } else { trust_domain }.to_owned();
        if let Some(external) = text("EXTERNAL_CA") {
            bail!(
                "EXTERNAL_CA={external}: certificates from outside need a Kubernetes cluster, which cannot be read yet"
            );
        }
        let provider = text("PILOT_CERT_PROVIDER").unwrap_or_else(|| "istiod".into());
        let files = flags.files.clone();
        if !matches!(&*provider, "istiod" | "custom") {
            bail!("PILOT_CERT_PROVIDER={provider}: istiod and custom are known without a cluster");
        }
        if provider == "custom" && files.is_none() {
            bail!("PILOT_CERT_PROVIDER=custom needs --tlsCertFile and --tlsKeyFile");
        }

        let max = lasting("MAX_WORKLOAD_CERT_TTL", hours(90 * 24));
        let lifetimes = Lifetimes { default: lasting("DEFAULT_WORKLOAD_CERT_TTL", hours(24)), max };
        let dir = PathBuf::from(text("ROOT_CA_DIR").unwrap_or_else(|| "./etc/cacerts".into()));
        let is_plugged = detect(&dir).context("the plugged-in signing key")?;
        let source = if is_plugged {
            Source::Plugged { dir, accepts_new_roots: is("ISTIO_MULTIROOT_MESH", false) }
        } else {
            let number = |name: &str, default: u32| text(name).and_then(|value| value.parse().ok()).unwrap_or(default);
            Source::SelfSigned {
                place: own_place(environment, namespace, cluster),
                organization: trust_domain.clone(),
                lifetime: lasting("CITADEL_SELF_SIGNED_CA_CERT_TTL", hours(3650 * 24)),
                rsa_bits: number("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE", 2048),
                rotation: Rotation {
                    interval: lasting("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", hours(1)),
                    grace_percent: number("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", 20),
                    jitter: is("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", true),
                },
            }
        };

        let policy = text("COMPLIANCE_POLICY").unwrap_or_default();
        let options = TlsOptions::new(&flags.min_version, &flags.cipher_suites, &policy)?;
        let discovery = mesh.pointer("/defaultConfig/discoveryAddress").and_then(serde_json::Value::as_str);
        let discovery = discovery.and_then(|address| address.rsplit_once(':')).map(|(host, _)| host.to_owned());
        let extra: Vec<String> = list("ISTIOD_CUSTOM_HOST").into_iter().chain(discovery).collect();

        let networks = list("TRUSTED_GATEWAY_CIDR").into_iter().map(|network| {
            network
                .parse()
                .with_context(|| format!("TRUSTED_GATEWAY_CIDR: {network:?} is not a network such as 10.0.0.0/8"))
        });
        if !list("CA_TRUSTED_NODE_ACCOUNTS").is_empty() {
            warnings.push(
                "CA_TRUSTED_NODE_ACCOUNTS: nodes are known in a Kubernetes cluster only; nobody may ask for others"
                    .into(),
            );
        }
        let mut audiences = list("TOKEN_AUDIENCES");
        if audiences.is_empty() {
            audiences.push("istio-ca".into());
        }
        let per_second = text("TRYSAIL_CA_REQUESTS_PER_SECOND").and_then(|value| value.parse().ok());
        let limits = Limits { per_second: per_second.unwrap_or(Limits::default().per_second), ..Limits::default() };
        Ok(Config {
            start: Start { source, lifetimes },
            is_authority: is("ENABLE_CA_SERVER", true),
            serving: ServingConfig {
                options,
                names: serving_names(namespace, revision, &extra),
                files,
                trust_domain: trust_domain.clone(),
                other_roots: TrustBundles::default(),
            },
            xds_auth: is("XDS_AUTH", true),
            jwt_rule: text("JWT_RULE"),
            audiences,
            trusted_networks: networks.collect::<Result<_>>()?,
            limits,
            signer: flags.signer.clone(),
            trust_domain,
            warnings,
        })
    }
}

/// Where our own key is kept: in `TRYSAIL_CA_DIR` if that is set (`memory` for nowhere), else in a cluster's secret as istiod
/// does, and without a cluster in the user's folder for such state.
fn own_place(environment: &dyn Environment, namespace: &str, cluster: Option<&trysail_kube::Connection>) -> Place {
    match (environment.get("TRYSAIL_CA_DIR").filter(|dir| !dir.is_empty()), cluster) {
        (Some(dir), _) if dir == "memory" => Place::Memory,
        (Some(dir), _) => Place::Folder(dir.into()),
        (None, Some(connection)) => Place::Secret(SecretPlace {
            kubeconfig: connection.kubeconfig.clone(),
            namespace: namespace.to_owned(),
            name: SECRET_NAME.to_owned(),
        }),
        (None, None) => {
            let state = environment.get("XDG_STATE_HOME").map(PathBuf::from);
            let state = state.or_else(|| environment.get("HOME").map(|home| Path::new(&home).join(".local/state")));
            state.map_or(Place::Memory, |state| Place::Folder(state.join("trysail/ca")))
        }
    }
}

/// Does a proxy get the configuration of its namespace without saying which account it runs as?
/// (`TRYSAIL_ACCEPT_UNNAMED_ACCOUNTS`; istiod does that.)
pub fn accepts_unnamed_accounts(environment: &dyn Environment) -> bool {
    environment.get("TRYSAIL_ACCEPT_UNNAMED_ACCOUNTS").is_some_and(|value| value == "true")
}

/// The secure port, ready to serve.
pub struct Secure {
    /// For those who want to know the roots.
    pub signer: Arc<dyn Signer>,
    /// Where the key is kept, for people.
    pub place: String,
    tls: Arc<arc_swap::ArcSwap<rustls::ServerConfig>>,
    /// Who calls; HTTP pages ask them too.
    pub authenticators: Arc<Authenticators>,
    certificates: Option<SecureCertificateService>,
    xds_auth: bool,
    metrics: Metrics,
}

/// Tokens of service accounts, where there is a cluster that judges them.
pub struct ClusterTokens {
    /// Who is asked.
    pub reviewer: Arc<dyn TokenReview>,
    /// Our own cluster.
    pub cluster: String,
    /// Other names of clusters.
    pub aliases: BTreeMap<String, String>,
}

/// Starts the signer and gets us a certificate.
///
/// # Errors
/// When there is no usable signing key, or no certificate for ourselves.
pub async fn start(config: Config, tokens: Option<ClusterTokens>, registry: &Registry) -> Result<Secure> {
    let Config {
        mut start,
        is_authority,
        serving,
        xds_auth,
        jwt_rule,
        audiences,
        trusted_networks,
        limits,
        signer,
        trust_domain,
        warnings,
    } = config;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let signer = match open(&signer, &start).await {
        Ok(signer) => signer,
        // A home that is not writable is common in containers; without a cluster the key then lives as long as we do.
        Err(error) if matches!(&start.source, Source::SelfSigned { place: Place::Folder(_), .. }) => {
            tracing::warn!("{error:#}; the key is kept in memory");
            if let Source::SelfSigned { place, .. } = &mut start.source {
                *place = Place::Memory;
            }
            open(&signer, &start).await?
        }
        Err(error) => return Err(error),
    };
    let place = match &start.source {
        Source::Plugged { dir, .. } => format!("plugged in at {}", dir.display()),
        Source::SelfSigned { place: Place::Folder(dir), .. } => format!("self-signed, kept in {}", dir.display()),
        Source::SelfSigned { place: Place::Memory, .. } => "self-signed, in memory".to_owned(),
        Source::SelfSigned { place: Place::Secret(SecretPlace { namespace, name, .. }), .. } => {
            format!("self-signed, kept in secret {namespace}/{name}")
        }
    };
    let mut list: Vec<Arc<dyn Authenticator>> = vec![Arc::new(ClientCertificate)];
    if let Some(rule) = jwt_rule {
        list.push(Arc::new(Oidc::new(&rule, &audiences, &trust_domain)?));
    }
    if let Some(ClusterTokens { reviewer, cluster, aliases }) = tokens {
        let trust_domain = trust_domain.clone();
        list.push(Arc::new(KubernetesToken { reviewer, cluster, aliases, audiences, trust_domain }));
    }
    if !trusted_networks.is_empty() {
        list.push(Arc::new(Forwarded { trusted: trusted_networks }));
    }
    let authenticators = Arc::new(Authenticators(list));
    let metrics = Metrics::register(registry).context("metrics")?;
    let tls = watch_serving(serving, signer.clone()).await?;
    let certificates = is_authority
        .then(|| CertificateService::secure(signer.clone(), None, limits, authenticators.clone(), metrics.clone()));
    Ok(Secure { signer, place, tls, authenticators, certificates, xds_auth, metrics })
}

async fn open(at: &SignerAt, start: &Start) -> Result<Arc<dyn Signer>> {
    Ok(match at {
        SignerAt::Process(program) => {
            Arc::new(SignerProcess::start(program.clone(), vec!["signer".into()], start.clone()).await?)
        }
        SignerAt::Here => Arc::new(InProcess::start(start, &crate::ca_secret::open).context("the signing key")?),
    })
}

impl Secure {
    /// Serves until `shutdown` is done.
    ///
    /// # Errors
    /// When the transport fails as a whole.
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        xds: &Server,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let incoming = Acceptor::accept(listener, self.tls.clone());
        let services = |builder: &mut tonic::transport::Server| {
            let authenticators =
                if self.xds_auth { self.authenticators.clone() } else { Arc::new(Authenticators(Vec::new())) };
            let streams: Authenticated<AdsService> = Authenticated::new(xds.service(), authenticators, REFUSAL, None);
            let router = if self.xds_auth { builder.add_service(streams) } else { builder.add_service(xds.service()) };
            router.add_optional_service(self.certificates.clone())
        };
        let expiry = async {
            loop {
                self.metrics.expiry(&self.signer.bundle().borrow().clone(), SystemTime::now());
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        };
        tokio::select! {
            served = xds.serve_with(incoming, services, shutdown) => served.context("the secure xDS server failed"),
            () = expiry => Ok(()),
        }
    }
}
