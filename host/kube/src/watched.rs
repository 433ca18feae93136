//! Which kinds are watched, and how.

use kube::core::ApiResource;
use trysail_discovery::kinds::Kind;

/// A kind to watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    /// Which.
    pub(crate) kind: &'static Kind,
    /// Which of its objects, in the API server's words; unset for all.
    pub(crate) fields: Option<&'static str>,
    /// Are the metadata enough?
    pub(crate) metadata_only: bool,
}

impl Watched {
    pub(crate) fn new(kind: &'static Kind) -> Watched {
        let fields = match kind.name {
            // Pods that failed are never endpoints or proxies, and pile up.
            "Pod" => Some("status.phase!=Failed"),
            // Neither is ever a gateway's, and both are large.
            // Nor the authority's own key: it is the signer's, and never in the process that runs plugins.
            "Secret" => {
                Some("type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,type!=istio.io/ca-root")
            }
            _ => None,
        };
        let metadata_only = matches!(kind.name, "Namespace" | "MutatingWebhookConfiguration" | "ServiceAccount");
        Watched { kind, fields, metadata_only }
    }

    /// Name of its definition, for custom kinds.
    pub(crate) fn definition(&self) -> Option<String> {
        self.kind.is_custom().then(|| format!("{}.{}", self.kind.plural(), self.kind.group))
    }

    /// The kind in one of its versions, in the client's words.
    pub(crate) fn resource(&self, version: &str) -> ApiResource {
        let group = self.kind.group;
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
            kind: self.kind.document_kind.to_owned(),
            plural: self.kind.plural(),
        }
    }
}

/// Is a custom kind left out by `PILOT_IGNORE_RESOURCES`, unless `PILOT_INCLUDE_RESOURCES` takes it in again? Both are lists of
/// names such as `virtualservices.networking.istio.io`, with a `*` at one end.
pub(crate) fn is_ignored(definition: &str, ignored: &[String], included: &[String]) -> bool {
    let matches = |patterns: &[String]| {
        patterns.iter().any(|pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(end), _) => definition.ends_with(end),
            (_, Some(start)) => definition.starts_with(start),
            _ => definition == pattern,
        })
    };
    matches(ignored) && !matches(included)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_discovery::kinds;

    #[test]
    fn kinds_in_the_servers_words() {
        let watched = |name| Watched::new(kinds::named(name).unwrap());
        let resource = watched("VirtualService").resource("v1");
        assert_eq!((&*resource.api_version, &*resource.plural), ("networking.istio.io/v1", "virtualservices"));
        assert_eq!(watched("Pod").resource("v1").api_version, "v1");
        assert_eq!(watched("KubernetesGateway").definition().unwrap(), "gateways.gateway.networking.k8s.io");
        assert_eq!(watched("EndpointSlice").definition(), None);
    }

    #[test]
    fn ignored_and_taken_in_again() {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let ignored = list("*.istio.io,gateways*");
        let is = |name: &str, included: &str| is_ignored(name, &ignored, &list(included));
        assert!(is("virtualservices.networking.istio.io", ""));
        assert!(!is("virtualservices.networking.istio.io", "virtualservices.networking.istio.io"));
        assert!(is("gateways.gateway.networking.k8s.io", ""));
        assert!(!is("httproutes.gateway.networking.k8s.io", ""));
    }
}
