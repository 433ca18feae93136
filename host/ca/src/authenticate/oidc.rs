//! Tokens of an OpenID Connect issuer (`JWT_RULE`), for control planes and machines outside of a cluster.

use std::time::SystemTime;

use serde::Deserialize;
use tonic::async_trait;
use trysail_model::identity::Proof;
use trysail_model::{Caller, Identity};

use super::jwks::Keys;
use super::jwt::Token;
use super::{Authenticator, Credentials, Failure, service_account};
use crate::trust::TrustRx;

/// The parts of Istio's `JWTRule` that count here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// The issuer that tokens must name.
    pub issuer: String,
    /// One of these a token must be for; without any, one of `TOKEN_AUDIENCES`.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Where the issuer's keys are; without it and `jwks` they are discovered.
    #[serde(default, alias = "jwks_uri")]
    pub jwks_uri: String,
    /// The keys themselves, JSON.
    #[serde(default)]
    pub jwks: String,
}

/// A rule cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// It is no JSON of that form.
    #[error("JWT_RULE is not a JWTRule in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A rule without an issuer would accept everybody's.
    #[error("JWT_RULE: issuer is missing")]
    Issuer,
    /// Keys that are none.
    #[error("JWT_RULE: jwks: {0}")]
    Keys(String),
}

/// Judges tokens by an issuer's keys.
pub struct Oidc {
    issuer: String,
    audiences: Vec<String>,
    trust: TrustRx,
    keys: Keys,
}

impl Oidc {
    /// Follows a rule, JSON.
    ///
    /// # Errors
    /// See [`RuleError`]. Keys that cannot be fetched now are no error: tokens are refused until they can.
    pub fn new(rule: &str, default_audiences: &[String], trust: TrustRx) -> Result<Oidc, RuleError> {
        let rule: JwtRule = serde_json::from_str(rule)?;
        if rule.issuer.is_empty() {
            return Err(RuleError::Issuer);
        }
        let keys = match (rule.jwks.is_empty(), rule.jwks_uri.is_empty()) {
            (false, _) => Keys::fixed(&rule.jwks).map_err(|error| RuleError::Keys(error.to_string()))?,
            (true, false) => Keys::at(rule.jwks_uri),
            (true, true) => Keys::of_issuer(&rule.issuer),
        };
        let audiences = if rule.audiences.is_empty() { default_audiences.to_vec() } else { rule.audiences };
        Ok(Oidc { issuer: rule.issuer, audiences, trust, keys })
    }

    async fn judge(&self, text: &str) -> Result<String, String> {
        let token = Token::parse(text).map_err(|error| error.to_string())?;
        let keys = self.keys.current(token.kid.as_deref()).await.map_err(|error| error.to_string())?;
        let subject = token.verify(&keys, &self.issuer, &self.audiences, SystemTime::now());
        subject.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Authenticator for Oidc {
    fn name(&self) -> &'static str {
        "OpenID Connect token"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let token = credentials.bearer().ok_or_else(|| Failure("no bearer token".into()))?;
        let subject = self.judge(token).await.map_err(Failure)?;
        let (namespace, name) =
            service_account(&subject).ok_or_else(|| Failure("its subject is no service account".into()))?;
        let identity = Identity::new(&self.trust.borrow().domain, namespace, name);
        Ok(Caller { proof: Proof::Token, identities: vec![identity.to_string()], pod: None })
    }
}
