//! What stands between a pod and the secure port: tokens of an issuer, connections over TLS, requests for certificates.
//!
//! A stand-in for Istio's agent and for the API server that signs tokens; keys die with the process.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use trysail_proto::prost_types::value::Kind;
use trysail_proto::prost_types::{Struct, Value as WireValue};

/// Name that the control plane's certificate must have.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
/// Audience of good tokens.
pub const AUDIENCE: &str = "istio-ca";
/// Who signs them.
pub const ISSUER: &str = "https://issuer.test";

/// Signs tokens.
pub struct Issuer {
    key: EcdsaKeyPair,
    jwks: String,
}

impl Issuer {
    /// With a new key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> Result<Issuer> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
        // An uncompressed point: a byte that says so, x, y.
        let point = pair.public_key_raw();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        let key = json!({"kty": "EC", "crv": "P-256", "kid": "test", "x": part(1..33), "y": part(33..65)});
        let jwks = json!({"keys": [key]}).to_string();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der());
        Ok(Issuer { key: signing.ok().context("the key is not taken")?, jwks })
    }

    /// `JWT_RULE` of a control plane that trusts it.
    pub fn rule(&self) -> String {
        json!({"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": self.jwks}).to_string()
    }

    /// A good token of a service account.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, namespace: &str, service_account: &str) -> Result<String> {
        self.sign(&claims(namespace, service_account))
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "test"})), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).ok().context("cannot sign a token")?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

/// Claims of a good token, valid for an hour.
pub fn claims(namespace: &str, service_account: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "iat": now.as_secs(),
        "exp": (now + Duration::from_secs(3600)).as_secs(),
    })
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certified {
    /// Leaf first, PEM.
    pub chain_pem: String,
    /// PEM.
    pub key_pem: String,
    /// The last of what came, PEM.
    pub root_pem: String,
}

#[derive(Clone)]
struct Connector {
    /// Connected already, by whoever knows from which network; one connection is all there is.
    stream: Arc<Mutex<Option<TcpStream>>>,
    tls: TlsConnector,
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let (stream, tls) = (self.stream.lock().ok().and_then(|mut stream| stream.take()), self.tls.clone());
        Box::pin(async move {
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            let stream = stream.ok_or_else(|| io::Error::other("the connection was lost"))?;
            Ok(TokioIo::new(tls.connect(name, stream).await?))
        })
    }
}

/// Connects to the secure port, with a client certificate or without.
///
/// # Errors
/// When the server is not there, or not who it should be, or does not accept the certificate at once.
pub async fn connect(address: SocketAddr, root_pem: &str, own: Option<&Certified>) -> Result<Channel> {
    connect_over(TcpStream::connect(address).await.context("cannot connect")?, root_pem, own).await
}

/// Goes on from a TCP connection.
///
/// # Errors
/// See [`connect`].
pub async fn connect_over(stream: TcpStream, root_pem: &str, own: Option<&Certified>) -> Result<Channel> {
    // As every gRPC client does: what is small is sent at once.
    stream.set_nodelay(true).context("cannot set up the connection")?;
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root_pem.as_bytes()) {
        roots.add(root.context("the root is no PEM")?).context("the root is not usable")?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let chain = CertificateDer::pem_slice_iter(own.chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Connector { stream: Arc::new(Mutex::new(Some(stream))), tls: TlsConnector::from(Arc::new(config)) };
    let endpoint = Endpoint::from_static("http://control-plane").connect_timeout(Duration::from_secs(10));
    endpoint.connect_with_connector(connector).await.context("cannot connect over TLS")
}

/// A request with a bearer token.
pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = MetadataValue::try_from(format!("Bearer {token}")) {
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Asks for certificates as it stands.
///
/// # Errors
/// The server's.
pub async fn create(channel: &Channel, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
    let answer = IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await?;
    Ok(answer.into_inner().cert_chain)
}

/// A request for a key of P-256, and the key. The request names nobody.
///
/// # Errors
/// When there is no randomness.
pub fn signing_request() -> Result<(String, String)> {
    signing_request_of(&[])
}

/// A request for a key of P-256 with these URIs, as agents make it, and the key.
///
/// # Errors
/// When there is no randomness, or a URI is none.
pub fn signing_request_of(uris: &[&str]) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate().context("cannot make a key")?;
    let mut params = rcgen::CertificateParams::default();
    if !uris.is_empty() {
        params.distinguished_name = rcgen::DistinguishedName::new();
    }
    for uri in uris {
        params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().context("no URI")?));
    }
    let csr = params.serialize_request(&key).context("cannot sign a request")?;
    Ok((csr.pem().context("cannot write a request")?, key.serialize_pem()))
}

/// The message with texts in its metadata (`CertSigner`, `ImpersonatedIdentity`).
pub fn asking(csr: &str, seconds: i64, metadata: &[(&str, &str)]) -> IstioCertificateRequest {
    let text = |text: &str| WireValue { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = metadata.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
    let metadata = (!metadata.is_empty()).then_some(Struct { fields });
    IstioCertificateRequest { csr: csr.to_owned(), validity_duration: seconds, metadata }
}

/// Gets a certificate for a token, as an agent does.
///
/// # Errors
/// When the server refuses.
pub async fn certify(channel: &Channel, token: &str) -> Result<Certified> {
    let (csr, key_pem) = signing_request()?;
    let message = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
    let mut chain = create(channel, with_token(message, token)).await?;
    let root_pem = chain.pop().context("an empty chain")?;
    Ok(Certified { chain_pem: chain.concat(), key_pem, root_pem })
}
