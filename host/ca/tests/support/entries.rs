//! Where bytes of others come in: one function each, for the fuzz targets (`tests/fuzz`) and for the suite that goes over fixed
//! mutations of good inputs (`hostile_bytes.rs`). Each says whether something came of the input, and asserts what must hold of it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use prost::Message as _;
use serde_json::Value;
use tokio::sync::watch;
use tonic::async_trait;
use trysail_ca::authenticate::{Authenticator as _, Credentials, Forwarded, JwkSet, JwtRule, Token};
use trysail_ca::key::SigningKey;
use trysail_ca::metrics::Metrics;
use trysail_ca::registration::{NotSigned, Registration, RequestSigner, SignRequest};
use trysail_ca::roots::{CaStore as _, MemoryStore, Roots, Rotation, SelfSigned};
use trysail_ca::sds::{Everybody, SecretName, SecretStore};
use trysail_ca::service::{CertificateService, Issuing, Limits};
use trysail_ca::trust::{Trust, bundle_roots};
use trysail_ca::x509::{Certificate, SigningRequest, chain_to_root, leaf_to_root};
use trysail_ca::{Authority, IssueError, Issued, Lifetimes, Order, PublicBundle, Signer};
use trysail_model::identity::Proof;
use trysail_model::{Caller, Identity, Object, ObjectRef, Proxy, ResourceName, Secrets as _};
use trysail_proto::envoy::config::core::v3::data_source;
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService as _;

/// The caller of requests.
pub const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A certificate signing request, PEM or DER.
pub fn signing_request(bytes: &[u8]) -> bool {
    let read = SigningRequest::from_der(bytes).or_else(|_| SigningRequest::from_pem(bytes));
    let Ok(request) = read else { return false };
    let _ = request.check_names(&[CALLER.to_owned()]);
    true
}

/// A bearer token, and keys to check it with.
pub fn token(text: &str) -> bool {
    let (token, keys) = text.split_once('\n').unwrap_or((text, "{}"));
    let _ = serde_json::from_str::<JwtRule>(keys);
    let keys: JwkSet = serde_json::from_str(keys).unwrap_or_default();
    let Ok(token) = Token::parse(token) else { return false };
    let _ = token.verify(&keys, "issuer", &["istio-ca".to_owned()], SystemTime::now());
    true
}

/// Certificates: one in DER, or a text with any number of PEM blocks, which are then chained in all ways.
pub fn certificates(bytes: &[u8]) -> bool {
    let all = match Certificate::from_der(bytes) {
        Ok(one) => vec![one],
        Err(_) => Certificate::all_from_pem(bytes).unwrap_or_default(),
    };
    let now = SystemTime::now();
    for one in all.iter().take(4) {
        let _ = (one.is_ca(), one.uris(), one.dns_names(), one.subject_key_id(), one.spki(), one.is_self_issued());
        let _ = (chain_to_root(one, &all, &all, now), leaf_to_root(one, &all, &all, now));
        let _ = trysail_ca::x509::time_to_renewal(one, 20, now);
        assert_eq!(Certificate::all_from_pem(one.to_pem().as_bytes()).expect("what we wrote").first(), Some(one));
    }
    !all.is_empty()
}

/// The parts of the secret in which the authority's key is kept: `ca-cert.pem`, a line of `=`, `ca-key.pem`.
pub fn keyring(bytes: &[u8]) -> bool {
    let _ = SigningKey::from_pem(bytes);
    let text = String::from_utf8_lossy(bytes);
    let (certificate, key) = text.split_once("=====\n").unwrap_or((&text, ""));
    let store = MemoryStore::default();
    let parts = [("ca-cert.pem", certificate), ("ca-key.pem", key)];
    let secret = parts.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
    store.create(&secret).expect("memory takes all");
    let year = Duration::from_secs(365 * 24 * 3600);
    let roots = SelfSigned::new(Box::new(store), "td".into(), year, 2048, Rotation::default());
    Authority::open(Roots::SelfSigned(roots), Lifetimes::default(), SystemTime::now()).is_ok()
}

/// What the mesh configuration or a SPIFFE bundle says of trust.
pub fn trust(bytes: &[u8]) -> bool {
    let Ok(mesh) = serde_json::from_slice::<Value>(bytes) else { return false };
    let (trust, _) = Trust::read(&mesh);
    let fetched = bundle_roots(bytes).unwrap_or_default();
    let _ = (trust.combined(&PublicBundle::default(), &fetched), trust.own_anchors().count(), trust.root_of("a/b"));
    true
}

/// A secret of a gateway: the name that is asked for on the first line, then the object's body.
pub fn gateway_secret(text: &str) -> bool {
    let (name, body) = text.split_once('\n').unwrap_or((text, "{}"));
    let Ok(body) = serde_json::from_str::<Value>(body) else { return false };
    let _ = SecretName::parse(name, "edge");
    let store = SecretStore::new(Some(Arc::new(Everybody)));
    let names = ["shop", "shop-cacert"];
    let kinds =
        ["Secret", "ConfigMap", "Role", "RoleBinding", "Gateway", "KubernetesGateway", "ListenerSet", "ReferenceGrant"];
    let all = kinds.iter().flat_map(|kind| names.iter().map(|name| object(kind, name, &body)));
    let all: Vec<Arc<Object>> = all.collect();
    store.apply(all.iter().map(|object| (&object.reference, Some(object))));
    store.configure(&body);
    let metadata = body.as_object().cloned().unwrap_or_default();
    let id = "router~10.0.0.1~gw.edge~edge.svc.cluster.local";
    let Ok(proxy) = Proxy::from_node(id, metadata, <[String; 3]>::default()) else { return false };
    let identity = Identity::new("cluster.local", "edge", "gateway");
    let wanted = ResourceName::from(name);
    let visible = store.visible(&identity, &proxy, &[wanted.clone()].into());
    for (name, version) in &visible {
        store.body(&identity, &proxy, name, *version).expect("what is visible is there");
        let dumped = store.redacted(&identity, &proxy, name).expect("what is visible can be dumped");
        let dumped = Secret::decode(dumped).expect("what we wrote");
        if let Some(secret::Type::TlsCertificate(certificate)) = dumped.r#type {
            let key = certificate.private_key.and_then(|key| key.specifier);
            assert_eq!(key, Some(data_source::Specifier::InlineBytes(b"[redacted]".to_vec())));
            assert!(certificate.private_key_provider.is_none() && certificate.ocsp_staple.is_none());
        }
    }
    !visible.is_empty()
}

fn object(kind: &str, name: &str, body: &Value) -> Arc<Object> {
    Arc::new(Object {
        reference: ObjectRef::new(kind, "edge", name),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: body.clone().into(),
        origin: "hostile".into(),
    })
}

/// `x-forwarded-client-cert` of a trusted gateway.
pub fn forwarded(text: &str) -> bool {
    let Ok(value) = text.parse() else { return false };
    let mut credentials = Credentials { address: Some(SocketAddr::from(([10, 0, 0, 1], 1))), ..Credentials::default() };
    credentials.headers.insert("x-forwarded-client-cert", value);
    let authenticator = Forwarded { trusted: vec!["10.0.0.0/8".parse().expect("a network")] };
    let Ok(caller) = runtime().block_on(authenticator.authenticate(&credentials)) else { return false };
    for identity in &caller.identities {
        identity.parse::<Identity>().expect("only identities count");
    }
    true
}

/// Signs whatever it is asked, and asserts that it is the caller's.
struct Checking(watch::Sender<Arc<PublicBundle>>);

#[async_trait]
impl Signer for Checking {
    async fn issue(&self, order: Order) -> Result<Issued, IssueError> {
        assert_eq!(order.names, [CALLER]);
        Ok(Issued { der: order.spki, bundle: self.0.borrow().clone() })
    }

    fn bundle(&self) -> watch::Receiver<Arc<PublicBundle>> {
        self.0.subscribe()
    }
}

/// Answers with what it was asked, which is no certificate.
struct Echo;

#[async_trait]
impl RequestSigner for Echo {
    async fn sign(&self, request: SignRequest) -> Result<String, NotSigned> {
        Ok(request.csr_pem)
    }
}

/// A message of `CreateCertificate`, by our own authority and by an external signer.
pub fn create_certificate(bytes: &[u8]) -> bool {
    static METRICS: LazyLock<Metrics> =
        LazyLock::new(|| Metrics::register(&prometheus::Registry::new()).expect("an empty registry"));
    let Ok(message) = IstioCertificateRequest::decode(bytes) else { return false };
    let registration = Registration {
        signer: Arc::new(Echo),
        default_signer: "example.com/mesh".into(),
        domain: "example.com".into(),
        lifetimes: Lifetimes::default(),
        trust: Trust::of("cluster.local").fixed(),
        root_pem: None,
    };
    let mut is_issued = false;
    for registration in [None, Some(Arc::new(registration))] {
        let is_outside = registration.is_some();
        let issuing = Issuing { signer: Arc::new(Checking(watch::Sender::default())), registration, nodes: None };
        let service = CertificateService::new(issuing, Limits::default(), Arc::default(), METRICS.clone());
        let mut request = tonic::Request::new(message.clone());
        let caller = Caller { proof: Proof::Token, identities: vec![CALLER.to_owned()], pod: None };
        request.extensions_mut().insert(Arc::new(caller));
        let answer = runtime().block_on(service.create_certificate(request));
        assert!(!is_outside || answer.is_err(), "an answer that is no certificate was passed on");
        is_issued |= answer.is_ok();
    }
    is_issued
}
