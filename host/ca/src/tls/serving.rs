//! Our own certificate: from our own authority or from files, renewed in time, without a connection noticing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{SpiffeVerifier, TlsOptions, TrustBundles};
use crate::authority::{IssueError, Lifetime, Order, PublicBundle};
use crate::key::{KeyError, SigningKey};
use crate::registration::Registration;
use crate::signer::Signer;
use crate::trust::{Trust, TrustRx};
use crate::x509::{Certificate, signing_request, time_to_renewal};

/// The last part of its life, in percent, in which the certificate is renewed; istiod's `defaultCertGracePeriodRatio`.
const GRACE_PERCENT: u32 = 50;
/// Time between two looks at files and clocks, and before another try after a failure.
const TICK: Duration = Duration::from_secs(1);

/// What to serve with.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    /// Versions and ciphers.
    pub options: TlsOptions,
    /// DNS names of the certificate.
    pub names: Vec<String>,
    /// Where it comes from.
    pub source: ServingSource,
    /// The trust domain, under all of its names, whose clients our own roots vouch for.
    pub trust: TrustRx,
    /// Roots of the mesh configuration vouch for them too: all with `ISTIO_MULTIROOT_MESH`, those of external signers where
    /// these sign for workloads.
    pub anchors: Anchors,
    /// Further roots that do, PEM.
    pub more_roots: Vec<String>,
}

/// Which roots of the mesh configuration count for clients of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchors {
    /// None.
    None,
    /// Those of external signers.
    OfSigners,
    /// All of our own trust domain.
    All,
}

/// Our own certificate in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingFiles {
    /// The chain, `--tlsCertFile`.
    pub certificate: PathBuf,
    /// The key, `--tlsKeyFile`.
    pub key: PathBuf,
    /// Roots that vouch for clients, too, `--caCertFile`.
    pub roots: Option<PathBuf>,
}

impl ServingFiles {
    /// The contents, that of the roots last. One that cannot be read is named.
    async fn read(&self) -> Result<[Vec<u8>; 3], ServingError> {
        let read = async |path: &PathBuf| {
            let failed = |error: std::io::Error| ServingError::File { path: path.clone(), reason: error.to_string() };
            tokio::fs::read(path).await.map_err(failed)
        };
        let roots = match &self.roots {
            Some(roots) => read(roots).await?,
            None => Vec::new(),
        };
        Ok([read(&self.certificate).await?, read(&self.key).await?, roots])
    }
}

/// Where our own certificate comes from.
#[derive(Clone)]
pub enum ServingSource {
    /// Our own authority.
    Own,
    /// Files.
    Files(ServingFiles),
    /// An external signer of that name.
    External(Arc<Registration>, String),
}

impl std::fmt::Debug for ServingSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServingSource::Own => f.write_str("our own authority"),
            ServingSource::Files(files) => write!(f, "{}", files.certificate.display()),
            ServingSource::External(_, name) => write!(f, "signer {name}"),
        }
    }
}

/// There is nothing to serve with.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A file cannot be read or holds something else.
    #[error("cannot use {path} as serving certificate or key: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No key.
    #[error("cannot make a key")]
    Key(#[from] KeyError),
    /// No certificate.
    #[error("the authority issues no serving certificate: {0}")]
    Issue(#[from] IssueError),
    /// Key and certificate are not accepted.
    #[error("the TLS library refuses the serving certificate")]
    Tls(#[from] rustls::Error),
}

/// istiod's names: of the services in front of it, by revision, and what the operator adds (the host of the discovery
/// address, `ISTIOD_CUSTOM_HOST`).
pub fn serving_names(namespace: &str, revision: &str, extra: &[String]) -> Vec<String> {
    let mut names = vec![
        format!("istio-pilot.{namespace}.svc"),
        format!("istiod-remote.{namespace}.svc"),
        format!("istiod.{namespace}.svc"),
    ];
    if !revision.is_empty() && revision != "default" {
        names.push(format!("istiod-{revision}.{namespace}.svc"));
    }
    names.extend(extra.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    names.sort();
    names.dedup();
    names
}

/// What a made configuration came from, to see when it is old.
struct Made {
    bundle: Arc<PublicBundle>,
    trust: Arc<Trust>,
    /// The files' contents; empty without.
    files: [Vec<u8>; 3],
    leaf: Option<Certificate>,
}

/// Makes the first configuration, then keeps it fresh as long as anybody holds it.
///
/// # Errors
/// When the first cannot be made; later failures are logged, and what was good stays.
pub async fn watch_serving(
    config: ServingConfig,
    signer: Arc<dyn Signer>,
) -> Result<Arc<ArcSwap<ServerConfig>>, ServingError> {
    let (first, mut made) = make(&config, &*signer).await?;
    let current = Arc::new(ArcSwap::from_pointee(first));
    let weak = Arc::downgrade(&current);
    let mut bundles = signer.bundle();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = bundles.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            let Some(current) = weak.upgrade() else { return };
            let bundle = bundles.borrow_and_update().clone();
            if !is_old(&config, &made, &bundle).await {
                continue;
            }
            match make(&config, &*signer).await {
                Ok((fresh, what)) => {
                    current.store(Arc::new(fresh));
                    made = what;
                    tracing::info!("the serving certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "the serving certificate could not be renewed");
                    drop(current);
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    });
    Ok(current)
}

async fn is_old(config: &ServingConfig, made: &Made, bundle: &Arc<PublicBundle>) -> bool {
    if made.bundle != *bundle || made.trust != *config.trust.borrow() {
        return true;
    }
    match &config.source {
        // Unreadable files are not newer ones.
        ServingSource::Files(files) => files.read().await.is_ok_and(|fresh| fresh != made.files),
        ServingSource::Own | ServingSource::External(..) => {
            made.leaf.as_ref().is_some_and(|leaf| time_to_renewal(leaf, GRACE_PERCENT, SystemTime::now()).is_zero())
        }
    }
}

async fn make(config: &ServingConfig, signer: &dyn Signer) -> Result<(ServerConfig, Made), ServingError> {
    let mut bundle = { signer.bundle().borrow().clone() };
    let trust = { config.trust.borrow().clone() };
    let mut made = Made { bundle: bundle.clone(), trust: trust.clone(), files: Default::default(), leaf: None };
    let own_key = |key: &SigningKey| {
        let key = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes());
        key.map_err(|error| KeyError::Unusable(error.to_string()))
    };
    let (chain, key) = match &config.source {
        ServingSource::Files(files) => {
            made.files = files.read().await?;
            let failed = |path: &PathBuf, reason: String| ServingError::File { path: path.clone(), reason };
            let chain = CertificateDer::pem_slice_iter(&made.files[0]).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| failed(&files.certificate, error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(&made.files[1]);
            (chain, key.map_err(|error| failed(&files.key, error.to_string()))?)
        }
        ServingSource::External(registration, name) => {
            let key = SigningKey::generate_p256()?;
            let request = signing_request(&config.names, &key)?;
            let chain = registration.serving(&request, key.spki(), &config.names, name).await?;
            let chain = chain.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()));
            let chain: Vec<CertificateDer<'static>> = chain.filter_map(Result::ok).collect();
            made.leaf = chain.first().and_then(|leaf| Certificate::from_der(leaf).ok());
            (chain, own_key(&key)?)
        }
        ServingSource::Own => {
            let key = SigningKey::generate_p256()?;
            let order = Order {
                spki: key.spki().to_vec(),
                names: config.names.clone(),
                common_name: false,
                lifetime: Lifetime::Serving,
            };
            let issued = signer.issue(order).await?;
            made.leaf = Certificate::from_der(&issued.der).ok();
            bundle = issued.bundle;
            made.bundle = bundle.clone();
            let mut chain = vec![CertificateDer::from(issued.der)];
            for pem in &bundle.chain {
                chain.extend(CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok));
            }
            (chain, own_key(&key)?)
        }
    };
    let anchors = trust.own_anchors().filter(|anchor| match config.anchors {
        Anchors::None => false,
        Anchors::OfSigners => !anchor.signers.is_empty(),
        Anchors::All => true,
    });
    let anchors = anchors.map(|anchor| &anchor.pem);
    let from_file = String::from_utf8_lossy(&made.files[2]).into_owned();
    let from_file = Some(&from_file).filter(|text| !text.is_empty());
    let roots = bundle.roots.iter().chain(anchors).chain(&config.more_roots).chain(from_file);
    let roots: Vec<String> = roots.cloned().collect();
    let roots = trust.names().map(|domain| (domain.to_owned(), roots.clone())).collect();
    let trusted = TrustBundles { roots, crl_pem: bundle.crl_pem.clone() };
    let provider = Arc::new(config.options.provider.clone());
    let verifier = SpiffeVerifier::new(&trusted, provider.clone());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&config.options.versions)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry a verdict about a client certificate past a change of roots.
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((server, made))
}

#[cfg(test)]
mod tests {
    use super::serving_names;

    #[test]
    fn names_are_istiods() {
        let default = serving_names("istio-system", "default", &[]);
        assert_eq!(
            default,
            ["istio-pilot.istio-system.svc", "istiod-remote.istio-system.svc", "istiod.istio-system.svc"]
        );
        let more = serving_names("mesh", "canary", &["istiod.example.com".into(), " ".into()]);
        assert!(more.contains(&"istiod-canary.mesh.svc".into()) && more.contains(&"istiod.example.com".into()));
        assert_eq!(more.len(), 5);
    }
}
