//! `istio.v1.auth.IstioCertificateService`: a request with a key in, a certificate of the caller out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prost_types::value::Kind;
use tonic::{Code, Request, Response, Status, async_trait};
use trysail_model::Caller;
use trysail_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use trysail_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use crate::authenticate::{Authenticated, Authenticators};
use crate::authority::{IssueError, Lifetime, Order};
use crate::metrics::Metrics;
use crate::node::NodeAuthorizer;
use crate::signer::Signer;
use crate::x509::{SigningRequest, to_pem};

/// Longest request in bytes.
const MAX_REQUEST: usize = 256 << 10;
/// What those hear who are not known.
const REFUSAL: &str = "request authenticate failure";
const IMPERSONATION_REFUSAL: &str = "request impersonation authentication failure";

/// How many certificates one caller may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// In the long run; 0 means without limit.
    pub per_second: f64,
    /// At once.
    pub burst: f64,
}

impl Default for Limits {
    /// A node's proxy asks for all identities of its node when it starts; a few hundred at once are honest.
    fn default() -> Self {
        Limits { per_second: 50.0, burst: 1000.0 }
    }
}

/// The service.
pub struct CertificateService {
    signer: Arc<dyn Signer>,
    /// Unset: nobody may ask for others.
    nodes: Option<NodeAuthorizer>,
    limits: Limits,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
    metrics: Metrics,
}

/// The service behind its authenticators.
pub type SecureCertificateService = Authenticated<IstioCertificateServiceServer<CertificateService>>;

impl CertificateService {
    /// The service for a router.
    pub fn secure(
        signer: Arc<dyn Signer>,
        nodes: Option<NodeAuthorizer>,
        limits: Limits,
        authenticators: Arc<Authenticators>,
        metrics: Metrics,
    ) -> SecureCertificateService {
        let service = CertificateService { signer, nodes, limits, buckets: Mutex::default(), metrics: metrics.clone() };
        let server = IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_REQUEST);
        Authenticated::new(server, authenticators, REFUSAL, Some(metrics))
    }

    /// A token bucket a caller, so that one who loops does not keep the others waiting.
    fn admit(&self, caller: &str) -> bool {
        if self.limits.per_second <= 0.0 {
            return true;
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        let level = |(level, at): (f64, Instant)| {
            (level + now.duration_since(at).as_secs_f64() * self.limits.per_second).min(self.limits.burst)
        };
        if buckets.len() > 10_000 {
            // Full ones say nothing that a new one would not.
            buckets.retain(|_, bucket| level(*bucket) < self.limits.burst);
        }
        let before = buckets.get(caller).map_or(self.limits.burst, |bucket| level(*bucket));
        let is_admitted = before >= 1.0;
        buckets.insert(caller.to_owned(), (if is_admitted { before - 1.0 } else { before }, now));
        is_admitted
    }

    async fn names(&self, caller: &Caller, cluster: Option<&str>, wanted: &str) -> Result<Vec<String>, Status> {
        if wanted.is_empty() {
            return Ok(caller.identities.clone());
        }
        let judged = match &self.nodes {
            Some(nodes) => nodes.judge(caller, cluster, wanted).await,
            None => Err("no node accounts are trusted (CA_TRUSTED_NODE_ACCOUNTS)".to_owned()),
        };
        match judged {
            Ok(identity) => Ok(vec![identity.to_string()]),
            Err(reason) => {
                self.metrics.unauthenticated();
                tracing::warn!(caller = ?caller.identities, reason, "impersonation refused");
                Err(Status::unauthenticated(IMPERSONATION_REFUSAL))
            }
        }
    }

    async fn issue(&self, request: &IstioCertificateRequest, names: Vec<String>) -> Result<Vec<u8>, IssueError> {
        let csr = SigningRequest::from_pem(request.csr.as_bytes()).map_err(|error| {
            self.metrics.unreadable();
            IssueError::Csr(error.to_string())
        })?;
        let lifetime = Lifetime::Workload(request.validity_duration);
        self.signer.issue(Order { spki: csr.spki, names, common_name: csr.has_common_name, lifetime }).await
    }
}

/// istiod's code of an error.
fn status(error: &IssueError) -> Status {
    let text = format!("CSR signing error ({error})");
    match error {
        IssueError::NotReady => Status::unavailable(text),
        IssueError::Csr(_) | IssueError::Ttl { .. } => Status::invalid_argument(text),
        IssueError::Generation(_) => Status::internal(text),
    }
}

#[async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let began = Instant::now();
        let answer = self.create(request).await;
        self.metrics.called(answer.as_ref().map_or_else(Status::code, |_| Code::Ok), began.elapsed());
        answer
    }
}

impl CertificateService {
    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated(REFUSAL))?;
        if !self.admit(&caller.identities.join(",")) {
            return Err(Status::resource_exhausted("too many certificate requests of this caller; try again later"));
        }
        let cluster = request.metadata().get("clusterid").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        let wanted = request.metadata.as_ref().and_then(|fields| fields.fields.get("ImpersonatedIdentity"));
        let wanted = match wanted.and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text.as_str(),
            _ => "",
        };
        let names = self.names(&caller, cluster.as_deref(), wanted).await?;
        let leaf = self.issue(&request, names).await.map_err(|error| {
            self.metrics.failed(error.label());
            tracing::warn!(caller = ?caller.identities, %error, "no certificate issued");
            status(&error)
        })?;
        // Chain and roots after the leaf, one certificate an element: ztunnel wants them so.
        let bundle = self.signer.bundle().borrow().clone();
        let mut cert_chain = vec![to_pem("CERTIFICATE", &leaf)];
        cert_chain.extend(bundle.chain.iter().chain(&bundle.roots).cloned());
        self.metrics.issued();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
