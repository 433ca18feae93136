//! The secure port: flags and environment to an authority, authenticators and a transport, and their start.
//!
//! Every variable of istiod that is followed here stands in [`Config::read`], and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use prometheus::Registry;
use tokio::sync::watch;
use trysail_ca::authenticate::{
    Authenticated, Authenticator, Authenticators, ClientCertificate, Forwarded, KubernetesToken, Oidc, TokenReview,
};
use trysail_ca::limits::Patience;
use trysail_ca::metrics::Metrics;
use trysail_ca::node::{NodeAuthorizer, Pods};
use trysail_ca::registration::{Registration, RequestSigner};
use trysail_ca::roots::{GENERATED, PLUGGED_NAME, Rotation, SECRET_NAME, SecretPlace, detect};
use trysail_ca::service::{CertificateService, Issuing, Limits, SecureCertificateService};
use trysail_ca::signer::{InProcess, Outside, Place, Source, Start};
use trysail_ca::tls::{
    Acceptor, Anchors, ServingConfig, ServingFiles, ServingSource, TlsOptions, serving_names, watch_serving,
};
use trysail_ca::trust::TrustRx;
use trysail_ca::{Lifetimes, PublicBundle, Signer, SignerProcess};
use trysail_xds::{AdsService, Server};

use crate::env::{Environment, duration_of, flag_of};

/// Services of the secure port beside the streams, as reflection tells them.
const NAMED: [&str; 1] = ["istio.v1.auth.IstioCertificateService"];

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
    /// Our certificate in files.
    pub files: Option<ServingFiles>,
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
    options: TlsOptions,
    /// DNS names of our own certificate.
    names: Vec<String>,
    provider: Provider,
    external: Option<External>,
    /// `ISTIO_MULTIROOT_MESH`.
    is_multi_root: bool,
    /// Who may ask for certificates of others, `CA_TRUSTED_NODE_ACCOUNTS`.
    node_accounts: BTreeSet<(String, String)>,
    /// `TRYSAIL_ACCEPT_FOREIGN_TRUST_DOMAINS`: what istiod does, which looks at the trust domain of client certificates alone.
    accepts_foreign_trust_domains: bool,
    xds_auth: bool,
    jwt_rule: Option<String>,
    audiences: Vec<String>,
    trusted_networks: Vec<ipnet::IpNet>,
    limits: Limits,
    signer: SignerAt,
    /// What could not be followed.
    warnings: Vec<String>,
}

/// Who signs our own certificate, `PILOT_CERT_PROVIDER`.
#[derive(Clone, Debug)]
enum Provider {
    /// Our own authority.
    Own,
    /// Files.
    Files(ServingFiles),
    /// A signer of the cluster; then we have no authority of our own.
    Cluster(String),
}

/// Workloads' certificates are signed outside, `EXTERNAL_CA`.
#[derive(Clone, Debug)]
struct External {
    default_signer: String,
    domain: String,
    root_pem: Option<String>,
}

/// The one external authority that istiod knows.
const EXTERNAL_CA: &str = "ISTIOD_RA_KUBERNETES_API";
/// Where the root of the default signer is mounted.
const EXTERNAL_ROOT: &str = "./etc/external-ca-cert/root-cert.pem";
/// The cluster's own root, for signers of Kubernetes itself.
const CLUSTER_ROOT: &str = "./var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Begins the names of signers in `PILOT_CERT_PROVIDER`.
const CLUSTER_SIGNER: &str = "k8s.io/";

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
        trust: &TrustRx,
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

        let domain = text("CERT_SIGNER_DOMAIN").unwrap_or_default();
        let external = match text("EXTERNAL_CA") {
            None => None,
            Some(external) if external != EXTERNAL_CA => bail!("EXTERNAL_CA={external}: {EXTERNAL_CA} is all there is"),
            Some(_) if cluster.is_none() => bail!("EXTERNAL_CA={EXTERNAL_CA}: needs a Kubernetes cluster"),
            Some(_) => {
                let read = |file: &str| std::fs::read_to_string(file).ok();
                // As with istiod: signers of a domain have their roots in the mesh configuration.
                let root_pem = read(EXTERNAL_ROOT).or_else(|| read(CLUSTER_ROOT).filter(|_| domain.is_empty()));
                let default_signer = text("K8S_SIGNER").unwrap_or_default();
                if default_signer.is_empty() && domain.is_empty() {
                    bail!("EXTERNAL_CA={EXTERNAL_CA}: which signer? K8S_SIGNER or CERT_SIGNER_DOMAIN says it");
                }
                Some(External { default_signer, domain, root_pem })
            }
        };
        let provider = text("PILOT_CERT_PROVIDER").unwrap_or_else(|| "istiod".into());
        let provider = match (&*provider, flags.files.clone().or_else(mounted), provider.strip_prefix(CLUSTER_SIGNER)) {
            (_, _, Some(signer)) if external.is_some() && !signer.is_empty() => Provider::Cluster(signer.to_owned()),
            (other, _, Some(_)) => bail!("PILOT_CERT_PROVIDER={other}: needs EXTERNAL_CA={EXTERNAL_CA} and a signer"),
            ("istiod" | "custom", Some(files), _) => Provider::Files(files),
            ("istiod", None, _) => Provider::Own,
            ("custom", None, _) => bail!("PILOT_CERT_PROVIDER=custom needs --tlsCertFile and --tlsKeyFile"),
            (other, ..) => bail!("PILOT_CERT_PROVIDER={other}: istiod, custom and {CLUSTER_SIGNER}SIGNER are known"),
        };

        let max = lasting("MAX_WORKLOAD_CERT_TTL", hours(90 * 24));
        let lifetimes = Lifetimes { default: lasting("DEFAULT_WORKLOAD_CERT_TTL", hours(24)), max };
        let dir = PathBuf::from(text("ROOT_CA_DIR").unwrap_or_else(|| "./etc/cacerts".into()));
        // A mounted secret that a control plane made is no plugged-in key: it is renewed by us.
        let uses_cacerts = is("USE_CACERTS_FOR_SELF_SIGNED_CA", false);
        let is_own = uses_cacerts && dir.join(GENERATED).exists();
        let is_plugged = !is_own && detect(&dir).context("the plugged-in signing key")?;
        let is_multi_root = is("ISTIO_MULTIROOT_MESH", false);
        let source = if is_plugged {
            Source::Plugged { dir, accepts_new_roots: is_multi_root }
        } else {
            let number = |name: &str, default: u32| text(name).and_then(|value| value.parse().ok()).unwrap_or(default);
            Source::SelfSigned {
                place: own_place(environment, namespace, cluster, uses_cacerts),
                organization: trust.borrow().domain.clone(),
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
        let node_accounts = NodeAuthorizer::accounts(&text("CA_TRUSTED_NODE_ACCOUNTS").unwrap_or_default());
        if !node_accounts.is_empty() && cluster.is_none() {
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
        let limits = per_second.map_or_else(Limits::default, Limits::per_second);
        Ok(Config {
            start: Start { source, lifetimes },
            is_authority: is("ENABLE_CA_SERVER", true),
            options,
            names: serving_names(namespace, revision, &extra),
            provider,
            external,
            is_multi_root,
            node_accounts,
            accepts_foreign_trust_domains: is("TRYSAIL_ACCEPT_FOREIGN_TRUST_DOMAINS", false),
            xds_auth: is("XDS_AUTH", true),
            jwt_rule: text("JWT_RULE"),
            audiences,
            trusted_networks: networks.collect::<Result<_>>()?,
            limits,
            signer: flags.signer.clone(),
            warnings,
        })
    }

    /// Are proxies told which roots to trust?
    pub fn is_multi_root(&self) -> bool {
        self.is_multi_root
    }
}

/// Where our own key is kept: in `TRYSAIL_CA_DIR` if that is set (`memory` for nowhere), else in a cluster's secret as istiod
/// does, and without a cluster in the user's folder for such state.
fn own_place(
    environment: &dyn Environment,
    namespace: &str,
    cluster: Option<&trysail_kube::Connection>,
    uses_cacerts: bool,
) -> Place {
    match (environment.get("TRYSAIL_CA_DIR").filter(|dir| !dir.is_empty()), cluster) {
        (Some(dir), _) if dir == "memory" => Place::Memory,
        (Some(dir), _) => Place::Folder(dir.into()),
        (None, Some(connection)) => Place::Secret(SecretPlace {
            kubeconfig: connection.kubeconfig.clone(),
            namespace: namespace.to_owned(),
            name: if uses_cacerts { PLUGGED_NAME } else { SECRET_NAME }.to_owned(),
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
    /// What is published: the roots that vouch for us.
    pub bundle_rx: watch::Receiver<Arc<PublicBundle>>,
    /// Where the key is kept, for people.
    pub place: String,
    tls: Arc<arc_swap::ArcSwap<rustls::ServerConfig>>,
    /// Who calls; HTTP pages ask them too.
    pub authenticators: Arc<Authenticators>,
    patience: Arc<Patience>,
    certificates: Option<SecureCertificateService>,
    xds_auth: bool,
    metrics: Metrics,
}

/// What a cluster decides and does, where there is one.
pub struct InCluster {
    /// Who judges tokens of service accounts.
    pub reviewer: Arc<dyn TokenReview>,
    /// Our own cluster.
    pub cluster: String,
    /// Other names of clusters.
    pub aliases: BTreeMap<String, String>,
    /// Who knows which pods run on which node.
    pub pods: Box<dyn Pods>,
    /// Who signs requests.
    pub signer: Arc<dyn RequestSigner>,
}

/// Starts the signer and gets us a certificate.
///
/// # Errors
/// When there is no usable signing key, or no certificate for ourselves.
pub async fn start(config: Config, trust: TrustRx, cluster: Option<InCluster>, registry: &Registry) -> Result<Secure> {
    let Config {
        start,
        is_authority,
        options,
        names,
        provider,
        external,
        is_multi_root,
        node_accounts,
        accepts_foreign_trust_domains,
        xds_auth,
        jwt_rule,
        audiences,
        trusted_networks,
        limits,
        signer,
        warnings,
    } = config;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let mut list: Vec<Arc<dyn Authenticator>> = vec![Arc::new(ClientCertificate)];
    if let Some(rule) = jwt_rule {
        list.push(Arc::new(Oidc::new(&rule, &audiences, trust.clone())?));
    }
    let (mut nodes, mut request_signer) = (None, None);
    if let Some(InCluster { reviewer, cluster, aliases, pods, signer }) = cluster {
        list.push(Arc::new(KubernetesToken { reviewer, cluster, aliases, audiences, trust: trust.clone() }));
        let trust = trust.clone();
        let authorizer = NodeAuthorizer { trusted: node_accounts, pods, trust, accepts_foreign_trust_domains };
        nodes = (!authorizer.trusted.is_empty()).then_some(authorizer);
        request_signer = Some(signer);
    }
    if !trusted_networks.is_empty() {
        list.push(Arc::new(Forwarded { trusted: trusted_networks }));
    }
    let authenticators = Authenticators { list, trust: (!accepts_foreign_trust_domains).then(|| trust.clone()) };
    let authenticators = Arc::new(authenticators);
    let registration = external.zip(request_signer).map(|(external, signer)| {
        let External { default_signer, domain, root_pem } = external;
        let (lifetimes, trust) = (start.lifetimes, trust.clone());
        Arc::new(Registration { signer, default_signer, domain, lifetimes, trust, root_pem })
    });
    let (signer, place): (Arc<dyn Signer>, String) = match &provider {
        Provider::Cluster(name) => (Arc::new(Outside::new(name.clone(), trust.clone())), format!("signer {name}")),
        Provider::Own | Provider::Files(_) => opened(&signer, start).await?,
    };
    let bundle_rx = match &provider {
        Provider::Files(ServingFiles { roots: Some(roots), .. }) => published(signer.bundle(), roots.clone()).await,
        _ => signer.bundle(),
    };
    let source = match (provider, &registration) {
        (Provider::Cluster(name), Some(registration)) => ServingSource::External(registration.clone(), name),
        (Provider::Files(files), _) => ServingSource::Files(files),
        _ => ServingSource::Own,
    };
    let place = match &registration {
        Some(registration) => {
            let Registration { default_signer, domain, .. } = &**registration;
            let signers = match (&**default_signer, &**domain) {
                (signer, "") => signer.to_owned(),
                ("", domain) => format!("signers of {domain}"),
                (signer, domain) => format!("{signer}, or signers of {domain}"),
            };
            format!("workloads by the cluster's {signers}; our own: {place}")
        }
        None => place,
    };
    let metrics = Metrics::register(registry).context("metrics")?;
    let anchors = match (is_multi_root, &registration) {
        (true, _) => Anchors::All,
        (false, Some(_)) => Anchors::OfSigners,
        (false, None) => Anchors::None,
    };
    let more_roots = registration.iter().filter_map(|registration| registration.root_pem.clone()).collect();
    let serving = ServingConfig { options, names, source, trust, anchors, more_roots };
    let tls = watch_serving(serving, signer.clone()).await?;
    let patience = Arc::new(Patience::default());
    let certificates = is_authority.then(|| {
        let issuing = Issuing { signer: signer.clone(), registration, nodes };
        CertificateService::secure(issuing, limits, authenticators.clone(), patience.clone(), metrics.clone())
    });
    Ok(Secure { signer, bundle_rx, place, tls, authenticators, patience, certificates, xds_auth, metrics })
}

/// Our own authority, and where its key is, for people.
async fn opened(at: &SignerAt, mut start: Start) -> Result<(Arc<dyn Signer>, String)> {
    let signer = match open(at, &start).await {
        Ok(signer) => signer,
        // A home that is not writable is common in containers; without a cluster the key then lives as long as we do.
        Err(error) if matches!(&start.source, Source::SelfSigned { place: Place::Folder(_), .. }) => {
            tracing::warn!("{error:#}; the key is kept in memory");
            if let Source::SelfSigned { place, .. } = &mut start.source {
                *place = Place::Memory;
            }
            open(at, &start).await?
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
    Ok((signer, place))
}

/// Where a certificate of ours is mounted, when no flag says it.
fn mounted() -> Option<ServingFiles> {
    let at = |name: &str| Some(Path::new("./var/run/secrets/istiod").join(name)).filter(|path| path.exists());
    let (certificate, key) = (at("tls/tls.crt")?, at("tls/tls.key")?);
    Some(ServingFiles { certificate, key, roots: at("ca/root-cert.pem").or_else(|| at("tls/ca.crt")) })
}

/// Time between two looks at a file.
const LOOK: Duration = Duration::from_secs(1);

/// The authority's bundle with the roots of a file in place of its own, as agents have to know them; followed as long as
/// somebody wants to know.
async fn published(
    mut bundle_rx: watch::Receiver<Arc<PublicBundle>>,
    roots: PathBuf,
) -> watch::Receiver<Arc<PublicBundle>> {
    let first = bundle_rx.borrow_and_update().clone();
    // Until the file can be read nothing is published: our own root vouches for something else than what we show.
    let root_pem = tokio::fs::read_to_string(&roots).await.unwrap_or_default();
    let (published_tx, published_rx) = watch::channel(Arc::new(PublicBundle { root_pem, ..(*first).clone() }));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = bundle_rx.changed() => if changed.is_err() { return },
            }
            let bundle = bundle_rx.borrow_and_update().clone();
            let Ok(root_pem) = tokio::fs::read_to_string(&roots).await else { continue };
            let fresh = Arc::new(PublicBundle { root_pem, ..(*bundle).clone() });
            published_tx.send_if_modified(|before| {
                let is_other = *before != fresh;
                *before = fresh;
                is_other
            });
            if published_tx.is_closed() {
                return;
            }
        }
    });
    published_rx
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
            let authenticators = if self.xds_auth { self.authenticators.clone() } else { Arc::default() };
            let streams: Authenticated<AdsService> =
                Authenticated::new(xds.service(), authenticators, self.patience.clone(), REFUSAL, None);
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
            served = xds.serve_with(incoming, services, &NAMED, shutdown) => served.context("the secure xDS server failed"),
            () = expiry => Ok(()),
        }
    }
}
