//! `istio.v1.auth.IstioCertificateService`: a request with a key in, a certificate of the caller out.

use std::sync::Arc;
use std::time::Instant;

use prost_types::value::Kind;
use tonic::{Code, Request, Response, Status, async_trait};
use trysail_model::Caller;
use trysail_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use trysail_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use crate::authenticate::{Authenticated, Authenticators};
use crate::authority::{IssueError, Issued, Lifetime, Order};
use crate::limits::{Buckets, Patience};
use crate::metrics::Metrics;
use crate::node::NodeAuthorizer;
use crate::registration::Registration;
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

impl Limits {
    /// So many in the long run, and what comes together in 20 seconds at once: a node's proxy asks for all identities of its
    /// node when it starts.
    pub fn per_second(per_second: f64) -> Limits {
        Limits { per_second, burst: per_second * 20.0 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::per_second(50.0)
    }
}

/// By whom certificates are issued, and for whom.
pub struct Issuing {
    /// Our own authority.
    pub signer: Arc<dyn Signer>,
    /// An external signer, which then signs for everybody. Unset: our own authority does.
    pub registration: Option<Arc<Registration>>,
    /// Unset: nobody may ask for others.
    pub nodes: Option<NodeAuthorizer>,
}

/// The service.
pub struct CertificateService {
    issuing: Issuing,
    /// By caller, so that one who loops does not keep the others waiting.
    buckets: Buckets<String>,
    patience: Arc<Patience>,
    metrics: Metrics,
}

/// The service behind its authenticators.
pub type SecureCertificateService = Authenticated<IstioCertificateServiceServer<CertificateService>>;

impl CertificateService {
    /// The service for callers who stand in the extensions of their requests.
    pub fn new(issuing: Issuing, limits: Limits, patience: Arc<Patience>, metrics: Metrics) -> CertificateService {
        CertificateService { issuing, buckets: Buckets::new(limits.per_second, limits.burst), patience, metrics }
    }

    /// The service for a router.
    pub fn secure(
        issuing: Issuing,
        limits: Limits,
        authenticators: Arc<Authenticators>,
        patience: Arc<Patience>,
        metrics: Metrics,
    ) -> SecureCertificateService {
        let service = CertificateService::new(issuing, limits, patience.clone(), metrics.clone());
        let server = IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_REQUEST);
        Authenticated::new(server, authenticators, patience, REFUSAL, Some(metrics))
    }

    async fn names(&self, caller: &Caller, cluster: Option<&str>, wanted: &str) -> Result<Vec<String>, Status> {
        if wanted.is_empty() {
            return Ok(caller.identities.clone());
        }
        let judged = match &self.issuing.nodes {
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

    /// Leaf, chain and roots, one certificate an element: ztunnel wants them so.
    async fn issue(
        &self,
        request: &IstioCertificateRequest,
        names: Vec<String>,
        wanted_signer: &str,
    ) -> Result<Vec<String>, IssueError> {
        let csr = SigningRequest::from_pem(request.csr.as_bytes()).map_err(|error| {
            self.metrics.unreadable();
            IssueError::Csr(error.to_string())
        })?;
        let seconds = request.validity_duration;
        let Issuing { signer, registration, nodes: _ } = &self.issuing;
        if let Some(registration) = registration {
            return registration.issue(&csr, &request.csr, &names, wanted_signer, seconds).await;
        }
        let lifetime = Lifetime::Workload(seconds);
        let order = Order { spki: csr.spki, names, common_name: csr.has_common_name, lifetime };
        let Issued { der, bundle } = signer.issue(order).await?;
        let mut chain = vec![to_pem("CERTIFICATE", &der)];
        chain.extend(bundle.chain.iter().chain(&bundle.roots).cloned());
        Ok(chain)
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
        if !self.buckets.take(caller.identities.join(",")) {
            self.patience.wait().await;
            return Err(Status::resource_exhausted("too many certificate requests of this caller; try again later"));
        }
        let cluster = request.metadata().get("clusterid").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        let text = |name: &str| {
            let value = request.metadata.as_ref().and_then(|fields| fields.fields.get(name));
            match value.and_then(|value| value.kind.as_ref()) {
                Some(Kind::StringValue(text)) => text.as_str(),
                _ => "",
            }
        };
        let names = self.names(&caller, cluster.as_deref(), text("ImpersonatedIdentity")).await?;
        let cert_chain = self.issue(&request, names, text("CertSigner")).await.map_err(|error| {
            self.metrics.failed(error.label());
            tracing::warn!(caller = ?caller.identities, %error, "no certificate issued");
            status(&error)
        })?;
        self.metrics.issued();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
