//! Tokens of Kubernetes service accounts, judged by the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::async_trait;
use trysail_model::identity::{PodBinding, Proof, Review};
use trysail_model::{Caller, Identity};

use super::{Authenticator, Credentials, Failure, service_account};
use crate::trust::TrustRx;

/// The API server could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// There is no such cluster.
    #[error("cluster {0:?} is not known")]
    Cluster(String),
    /// No answer.
    #[error("the API server did not answer: {0}")]
    Failed(String),
}

/// Asks an API server about tokens.
#[async_trait]
pub trait TokenReview: Send + Sync {
    /// Asks the API server of a cluster.
    ///
    /// # Errors
    /// When there is no such cluster, or no answer.
    async fn review(&self, cluster: &str, token: &str, audiences: &[String]) -> Result<Review, ReviewError>;
}

/// Judges tokens by review.
pub struct KubernetesToken {
    /// Who is asked.
    pub reviewer: Arc<dyn TokenReview>,
    /// Our own cluster, for callers who name none.
    pub cluster: String,
    /// Other names of clusters (`--clusterAliases`).
    pub aliases: BTreeMap<String, String>,
    /// One of these a token must be for (`TOKEN_AUDIENCES`).
    pub audiences: Vec<String>,
    /// Says the trust domain of the identities.
    pub trust: TrustRx,
}

#[async_trait]
impl Authenticator for KubernetesToken {
    fn name(&self) -> &'static str {
        "Kubernetes token"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let fail = |text: String| Err(Failure(text));
        let Some(token) = credentials.bearer() else { return fail("no bearer token".into()) };
        let named = credentials.header("clusterid").filter(|name| !name.is_empty()).unwrap_or(&self.cluster);
        let cluster = self.aliases.get(named).map_or(named, String::as_str);
        let review = self.reviewer.review(cluster, token, &self.audiences).await;
        let review = review.map_err(|error| Failure(error.to_string()))?;
        if !review.authenticated || !review.error.is_empty() {
            return fail(format!("the token is not good: {}", review.error));
        }
        // A server that knows of no audiences leaves them out; what such a token is for nobody can say.
        if !review.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return fail(format!("the token is for {:?}", review.audiences));
        }
        if !review.groups.iter().any(|group| group == "system:serviceaccounts") {
            return fail("the token is not a service account's".into());
        }
        let Some((namespace, name)) = service_account(&review.username) else {
            return fail(format!("{:?} is no service account", review.username));
        };
        let extra = |key: &str| review.extra.get(key).and_then(|values| values.first()).cloned().unwrap_or_default();
        let pod = PodBinding {
            name: extra("authentication.kubernetes.io/pod-name"),
            namespace: namespace.to_owned(),
            uid: extra("authentication.kubernetes.io/pod-uid"),
            service_account: name.to_owned(),
        };
        Ok(Caller {
            proof: Proof::Token,
            identities: vec![Identity::new(&self.trust.borrow().domain, namespace, name).to_string()],
            pod: Some(pod),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Trust;

    struct Fixed(Result<Review, ReviewError>);

    #[async_trait]
    impl TokenReview for Fixed {
        async fn review(&self, cluster: &str, _: &str, _: &[String]) -> Result<Review, ReviewError> {
            if cluster == "Kubernetes" { self.0.clone() } else { Err(ReviewError::Cluster(cluster.to_owned())) }
        }
    }

    fn good() -> Review {
        Review {
            authenticated: true,
            username: "system:serviceaccount:shop:reviews".into(),
            groups: vec!["system:serviceaccounts".into()],
            audiences: vec!["istio-ca".into()],
            extra: [("authentication.kubernetes.io/pod-name".to_owned(), vec!["reviews-1".to_owned()])].into(),
            error: String::new(),
        }
    }

    async fn ask(review: Result<Review, ReviewError>, headers: &[(&'static str, &str)]) -> Result<Caller, Failure> {
        let mut credentials = Credentials::default();
        for (name, value) in headers {
            credentials.headers.insert(*name, value.parse().unwrap());
        }
        let token = KubernetesToken {
            reviewer: Arc::new(Fixed(review)),
            cluster: "Kubernetes".into(),
            aliases: [("alias".to_owned(), "Kubernetes".to_owned())].into(),
            audiences: vec!["istio-ca".into()],
            trust: Trust::of("cluster.local").fixed(),
        };
        token.authenticate(&credentials).await
    }

    #[tokio::test]
    async fn the_review_decides() {
        let bearer = ("authorization", "Bearer x");
        let caller = ask(Ok(good()), &[bearer]).await.unwrap();
        assert_eq!(caller.identities, ["spiffe://cluster.local/ns/shop/sa/reviews"]);
        assert_eq!(caller.pod.unwrap().name, "reviews-1");
        for cluster in ["Kubernetes", "alias", ""] {
            assert!(ask(Ok(good()), &[bearer, ("clusterid", cluster)]).await.is_ok());
        }
        assert!(ask(Ok(good()), &[bearer, ("clusterid", "other")]).await.is_err());
        assert!(ask(Ok(good()), &[]).await.is_err());
        assert!(ask(Ok(good()), &[("authorization", "Basic x")]).await.is_err());
        let bad = [
            Review { authenticated: false, ..good() },
            Review { error: "expired".into(), ..good() },
            Review { audiences: vec![], ..good() },
            Review { audiences: vec!["kubernetes".into()], ..good() },
            Review { groups: vec![], ..good() },
            Review { username: "system:serviceaccount:shop".into(), ..good() },
            Review { username: "system:serviceaccount:shop:a:b".into(), ..good() },
            Review { username: "admin".into(), ..good() },
            Review::default(),
        ];
        for review in bad {
            assert!(ask(Ok(review.clone()), &[bearer]).await.is_err(), "{review:?}");
        }
        // CVE-2026-31837 in general: an outside party that fails opens nothing.
        assert!(ask(Err(ReviewError::Failed("timeout".into())), &[bearer]).await.is_err());
    }
}
