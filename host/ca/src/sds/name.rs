//! Names of secrets in Envoy's configuration.

/// Ends the names that stand for the roots alone.
pub const CA_SUFFIX: &str = "-cacert";

/// Where a secret is, and whose rules hold for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `kubernetes://[namespace/]name`, of an Istio Gateway or a DestinationRule.
    Kubernetes,
    /// `kubernetes-gateway://namespace/name`, of the Gateway API.
    Gateway,
    /// `configmap://namespace/name`.
    ConfigMap,
}

/// A name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    /// By which scheme.
    pub source: Source,
    /// Namespace of the object.
    pub namespace: String,
    /// Its name, with the suffix for roots if it was there.
    pub name: String,
}

/// A name that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No known scheme.
    #[error("unknown resource type: {0:?}")]
    Scheme(String),
    /// Not the parts that it should have.
    #[error("invalid resource name {0:?}: expected namespace and name")]
    Parts(String),
}

impl SecretName {
    /// Reads a name as a proxy of a namespace means it; `None` for `invalid://`, which stands for a secret that never is.
    /// Stricter than istiod, which passes over further parts.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(name: &str, proxy_namespace: &str) -> Result<Option<SecretName>, NameError> {
        let cut = || name.chars().take(300).collect::<String>();
        let (source, rest) = if let Some(rest) = name.strip_prefix("kubernetes://") {
            (Source::Kubernetes, rest)
        } else if let Some(rest) = name.strip_prefix("kubernetes-gateway://") {
            (Source::Gateway, rest)
        } else if let Some(rest) = name.strip_prefix("configmap://") {
            (Source::ConfigMap, rest)
        } else if name.starts_with("invalid://") {
            return Ok(None);
        } else {
            return Err(NameError::Scheme(cut()));
        };
        let (namespace, object) = match rest.split_once('/') {
            Some((namespace, object)) => (namespace, object),
            None if source == Source::Kubernetes => (proxy_namespace, rest),
            None => return Err(NameError::Parts(cut())),
        };
        if namespace.is_empty() || object.is_empty() || object.contains('/') {
            return Err(NameError::Parts(cut()));
        }
        Ok(Some(SecretName { source, namespace: namespace.to_owned(), name: object.to_owned() }))
    }

    /// Does it stand for roots alone, which are no secret?
    pub fn is_ca_only(&self) -> bool {
        self.source == Source::ConfigMap || self.name.ends_with(CA_SUFFIX)
    }

    /// The name without the suffix for roots.
    pub fn base(&self) -> &str {
        self.name.strip_suffix(CA_SUFFIX).unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parse = |name| SecretName::parse(name, "own").map(|name| name.map(|n| (n.source, n.namespace, n.name)));
        let is = |source, namespace: &str, name: &str| Ok(Some((source, namespace.to_owned(), name.to_owned())));
        assert_eq!(parse("kubernetes://a"), is(Source::Kubernetes, "own", "a"));
        assert_eq!(parse("kubernetes://b/a-cacert"), is(Source::Kubernetes, "b", "a-cacert"));
        assert_eq!(parse("kubernetes-gateway://b/a"), is(Source::Gateway, "b", "a"));
        assert_eq!(parse("configmap://b/a"), is(Source::ConfigMap, "b", "a"));
        assert_eq!(parse("invalid://x"), Ok(None));
        for bad in [
            "a",
            "default",
            "",
            "kubernetes://",
            "kubernetes:///a",
            "kubernetes://a/",
            "kubernetes://a/b/c",
            "kubernetes-gateway://a",
            "configmap:///a",
            "file:///etc/passwd",
            "kubernetes-gateway://a/b/../c",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
