//! Certificates by a cluster's signers: a CertificateSigningRequest is made, approved, waited for, and taken away again.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{self, await_condition};
use kube::{Api, Client};

/// Begins the names of requests, as istiod's.
const PREFIX: &str = "csr-workload-";
/// Where cert-manager looks for the lifetime; Kubernetes' own field is set too.
const LIFETIME: &str = "experimental.cert-manager.io/request-duration";
/// Kubernetes takes no shorter wish.
const SHORTEST: Duration = Duration::from_secs(600);
/// What the certificate is for.
const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];

/// There is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The API server did not do its part.
    #[error("the API server does not {action}: {error}")]
    Refused {
        /// What was asked of it.
        action: &'static str,
        /// What it says.
        error: Box<kube::Error>,
    },
    /// The signer or somebody before it said no.
    #[error("signer {signer} refuses the request: {reason}")]
    Denied {
        /// Who.
        signer: String,
        /// What it says.
        reason: String,
    },
    /// Nobody signed in time.
    #[error("signer {signer} did not sign in {patience:?}")]
    Late {
        /// Who.
        signer: String,
        /// How long was waited.
        patience: Duration,
    },
}

/// Has requests signed.
#[derive(Clone)]
pub struct Signing {
    /// The API server.
    pub client: Client,
    /// How long a signer may take.
    pub patience: Duration,
}

impl Signing {
    /// The chain that a signer made of a request (PEM), as it stands in the request's status.
    ///
    /// # Errors
    /// See [`SigningError`].
    pub async fn sign(&self, csr_pem: &str, signer: &str, lifetime: Duration) -> Result<String, SigningError> {
        let refused = |action| move |error| SigningError::Refused { action, error: Box::new(error) };
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let made = api.create(&PostParams::default(), &request(csr_pem, signer, lifetime)).await;
        let made = made.map_err(refused("take a CertificateSigningRequest"))?;
        let name = made.metadata.name.clone().unwrap_or_default();
        // On a task of its own: also a caller that leaves leaves no request behind.
        let (signing, signer) = (self.clone(), signer.to_owned());
        let signed = tokio::spawn(async move {
            let signed = signing.follow(&api, made, &signer).await;
            if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
                tracing::warn!(name, %error, "a CertificateSigningRequest stays behind");
            }
            signed
        });
        let late = SigningError::Late { signer: String::new(), patience: self.patience };
        signed.await.unwrap_or(Err(late))
    }

    async fn follow(
        &self,
        api: &Api<CertificateSigningRequest>,
        mut made: CertificateSigningRequest,
        signer: &str,
    ) -> Result<String, SigningError> {
        let name = made.metadata.name.clone().unwrap_or_default();
        let message = format!("CSR ({name}) is approved");
        let approved = CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("IstiodApproved".into()),
            message: Some(message),
            ..CertificateSigningRequestCondition::default()
        };
        made.status.get_or_insert_default().conditions.get_or_insert_default().push(approved);
        let refused = |error| SigningError::Refused { action: "let us approve the request", error: Box::new(error) };
        api.replace_subresource("approval", &name, &PostParams::default(), &made).await.map_err(refused)?;
        let is_over =
            |request: Option<&CertificateSigningRequest>| request.is_none_or(|request| outcome(request).is_some());
        let waited = tokio::time::timeout(self.patience, await_condition(api.clone(), &name, is_over)).await;
        let late = || SigningError::Late { signer: signer.to_owned(), patience: self.patience };
        let denied = |reason: String| SigningError::Denied { signer: signer.to_owned(), reason };
        match waited {
            Ok(Ok(request)) => match request.as_ref().and_then(outcome) {
                Some(outcome) => outcome.map_err(denied),
                None => Err(denied("somebody deleted it".into())),
            },
            Ok(Err(wait::Error::ProbeFailed(error))) => Err(denied(error.to_string())),
            Err(_) => Err(late()),
        }
    }
}

fn request(csr_pem: &str, signer: &str, lifetime: Duration) -> CertificateSigningRequest {
    let seconds = i32::try_from(lifetime.as_secs()).unwrap_or(i32::MAX);
    CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(PREFIX.to_owned()),
            annotations: Some(BTreeMap::from([(LIFETIME.to_owned(), format!("{seconds}s"))])),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr_pem.as_bytes().to_vec()),
            signer_name: signer.to_owned(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: (lifetime >= SHORTEST).then_some(seconds),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    }
}

/// What became of it: a chain, or why there is none. Nothing while it is open.
fn outcome(request: &CertificateSigningRequest) -> Option<Result<String, String>> {
    let status = request.status.as_ref()?;
    if let Some(ByteString(bytes)) = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty()) {
        return Some(String::from_utf8(bytes.clone()).map_err(|error| error.to_string()));
    }
    let conditions = status.conditions.iter().flatten();
    let no = conditions.into_iter().find(|condition| matches!(&*condition.type_, "Denied" | "Failed"))?;
    let why = no.message.clone().or_else(|| no.reason.clone()).unwrap_or_else(|| no.type_.clone());
    Some(Err(why))
}
