//! The secret service of Istio's agent: a Unix socket in each pod from which Envoy takes the workload's certificate
//! (`default`) and the mesh's root (`ROOTCA`).
//!
//! The authority is made at start-up and dies with the process: these certificates prove nothing outside of a test.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use trysail_proto::any::pack;
use trysail_proto::envoy::config::core::v3::{DataSource, data_source};
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use trysail_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use trysail_proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};

/// The mesh's certificate authority.
pub struct Authority {
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What one workload proves its identity with.
#[derive(Clone)]
pub struct Identity {
    chain_pem: String,
    key_pem: String,
    root_pem: String,
}

/// The name of a service account in a certificate.
pub fn spiffe(namespace: &str, service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
}

impl Identity {
    /// One that was issued by somebody else.
    pub fn new(chain_pem: String, key_pem: String, root_pem: String) -> Identity {
        Identity { chain_pem, key_pem, root_pem }
    }

    /// Certificate and what leads to the root, PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// Its key, PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The root that vouches for it, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local (test)");
        let key = KeyPair::generate().context("cannot make a key")?;
        let root = params.self_signed(&key).context("cannot sign the root certificate")?;
        Ok(Authority { root_pem: root.pem(), issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Its own key, PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Certificate and key for a service account.
    ///
    /// # Errors
    /// When the names do not fit into a URI.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Result<Identity> {
        let name = Ia5String::try_from(spiffe(namespace, service_account)).context("service account is no URI")?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Identity { chain_pem: certificate.pem(), key_pem: key.serialize_pem(), root_pem: self.root_pem.clone() })
    }
}

/// Serves an identity on a Unix socket until the task is aborted.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(socket: &Path, identity: Identity) -> Result<JoinHandle<()>> {
    use std::os::unix::fs::PermissionsExt as _;
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(socket, everybody).with_context(|| format!("cannot open up {}", socket.display()))?;
    let service = SecretDiscoveryServiceServer::new(Secrets { identity: Arc::new(identity) });
    let server =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    Ok(tokio::spawn(async move {
        let _ = server.await;
    }))
}

/// How often files are looked at.
const LOOKS: std::time::Duration = std::time::Duration::from_millis(50);

struct Secrets {
    identity: Arc<Identity>,
}

fn inline(pem: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(pem.as_bytes().to_vec())),
        ..Default::default()
    })
}

fn secret(identity: &Identity, name: &str) -> Option<Secret> {
    let body = match name {
        "default" => secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&identity.chain_pem),
            private_key: inline(&identity.key_pem),
            ..Default::default()
        }),
        "ROOTCA" => secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(&identity.root_pem),
            ..Default::default()
        }),
        // Files that a rule names, as the agent serves them.
        _ => file_secret(name)?,
    };
    Some(Secret { name: name.to_owned(), r#type: Some(body) })
}

/// `file-root:CA` and `file-cert:CERTIFICATE~KEY`.
fn file_secret(name: &str) -> Option<secret::Type> {
    let file = |path: &str| inline(&String::from_utf8_lossy(&fs::read(path).ok()?));
    if let Some(root) = name.strip_prefix("file-root:") {
        let context = CertificateValidationContext { trusted_ca: file(root), ..Default::default() };
        return Some(secret::Type::ValidationContext(context));
    }
    let (certificate, key) = name.strip_prefix("file-cert:")?.split_once('~')?;
    Some(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: file(certificate),
        private_key: file(key),
        ..Default::default()
    }))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut requests = request.into_inner();
        let identity = self.identity.clone();
        let (answers, stream) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut names = Vec::new();
            let mut type_url = String::new();
            let mut sent = (Vec::new(), Vec::new());
            let mut version = 0;
            loop {
                // Requests for the same names are acknowledgements. Of all secrets only files change, now and then.
                match tokio::time::timeout(LOOKS, requests.next()).await {
                    Ok(Some(Ok(request))) => (names, type_url) = (request.resource_names, request.type_url),
                    Ok(_) => return,
                    Err(_) => {}
                }
                let found = names.iter().filter_map(|name| secret(&identity, name));
                let resources: Vec<_> = found.map(|secret| pack(&secret)).collect();
                let now = (names.clone(), resources);
                if names.is_empty() || now == sent {
                    continue;
                }
                sent = now;
                version += 1;
                let answer = DiscoveryResponse {
                    version_info: version.to_string(),
                    nonce: version.to_string(),
                    type_url: type_url.clone(),
                    resources: sent.1.clone(),
                    ..Default::default()
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("Istio's secret configuration asks for the state of the world"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("Istio's secret configuration asks for a stream"))
    }
}
