//! Questions that only the API server can answer: whose token, and who may do what.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use trysail_model::identity::Review;

/// The API server did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer")]
pub struct Unanswered(#[from] Box<kube::Error>);

/// Asks an API server.
#[derive(Clone)]
pub struct Reviews(pub Client);

impl Reviews {
    /// Whose token is it, and is it for one of these audiences?
    ///
    /// # Errors
    /// Without an answer.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<Review, Unanswered> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(audiences.to_vec()) };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::all(self.0.clone()).create(&PostParams::default(), &asked).await.map_err(Box::new)?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        Ok(Review {
            authenticated: status.authenticated.unwrap_or_default(),
            username: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            extra: user.extra.unwrap_or_default().into_iter().collect(),
            error: status.error.unwrap_or_default(),
        })
    }

    /// May this service account list the secrets of its own namespace?
    ///
    /// # Errors
    /// Without an answer.
    pub async fn may_list_secrets(&self, namespace: &str, account: &str) -> Result<bool, Unanswered> {
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            verb: Some("list".to_owned()),
            resource: Some("secrets".to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            user: Some(format!("system:serviceaccount:{namespace}:{account}")),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ]),
            ..SubjectAccessReviewSpec::default()
        };
        let asked = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = Api::all(self.0.clone()).create(&PostParams::default(), &asked).await.map_err(Box::new)?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}
