//! The kinds that are known: Istio's, Gateway API's, and those of Kubernetes that istiod reads.
//!
//! Which of them a stage reads is said by the caller ([`Config::read_kinds`](crate::Config::read_kinds)).

/// A kind, and the versions of it that are accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Kind as [`ObjectRef`](trysail_model::ObjectRef) has it; differs from `document_kind` for Gateway
    /// API's Gateway alone.
    pub name: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Kind as documents say it.
    pub document_kind: &'static str,
    /// Accepted versions.
    pub versions: &'static [&'static str],
    /// False for cluster-scoped kinds.
    pub namespaced: bool,
}

impl Kind {
    /// Name of the resource in an API server's paths: `virtualservices`.
    pub fn plural(&self) -> String {
        let word = self.document_kind.to_ascii_lowercase();
        let is_vowel = |c: char| "aeiou".contains(c);
        match (word.strip_suffix('y'), &*word) {
            // The one kind whose name is a plural already.
            (_, "endpoints") => word,
            (Some(stem), _) if !stem.ends_with(is_vowel) => format!("{stem}ies"),
            _ if word.ends_with(['s', 'x']) || word.ends_with("sh") || word.ends_with("ch") => format!("{word}es"),
            _ => format!("{word}s"),
        }
    }

    /// Is it defined by a custom resource definition, so that a server may not know it?
    pub fn is_custom(&self) -> bool {
        [NETWORKING, SECURITY, TELEMETRY, EXTENSIONS, GATEWAY_API, GATEWAY_API_X, INFERENCE, MULTI_CLUSTER, TRYSAIL]
            .contains(&self.group)
    }
}

/// The kind with this name, as [`ObjectRef`](trysail_model::ObjectRef) has it.
pub fn named(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// What is known of an `apiVersion` and `kind`.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A known kind in an accepted version.
    Known(&'static Kind),
    /// A known kind, in a version that nobody serves.
    UnservedVersion(&'static Kind),
    /// Not a kind of ours.
    Unknown,
}

/// Finds the kind of a document.
pub fn find(api_version: &str, kind: &str) -> Lookup {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match KINDS.iter().find(|known| known.group == group && known.document_kind == kind) {
        Some(known) if known.versions.contains(&version) => Lookup::Known(known),
        Some(known) => Lookup::UnservedVersion(known),
        None => Lookup::Unknown,
    }
}

/// All known kinds.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter()
}

const fn namespaced(group: &'static str, kind: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { name: kind, group, document_kind: kind, versions, namespaced: true }
}

const fn cluster(group: &'static str, kind: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { name: kind, group, document_kind: kind, versions, namespaced: false }
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const TELEMETRY: &str = "telemetry.istio.io";
const EXTENSIONS: &str = "extensions.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const GATEWAY_API_X: &str = "gateway.networking.x-k8s.io";
const INFERENCE: &str = "inference.networking.k8s.io";
const MULTI_CLUSTER: &str = "multicluster.x-k8s.io";
pub(crate) const TRYSAIL: &str = "trysail.io";

const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const V1: &[&str] = &["v1"];

static KINDS: &[Kind] = &[
    // Istio.
    namespaced(NETWORKING, "VirtualService", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "Gateway", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "ServiceEntry", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "WorkloadEntry", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "WorkloadGroup", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "DestinationRule", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "Sidecar", NETWORKING_VERSIONS),
    namespaced(NETWORKING, "EnvoyFilter", &["v1alpha3"]),
    namespaced(NETWORKING, "ProxyConfig", &["v1beta1"]),
    namespaced(SECURITY, "AuthorizationPolicy", &["v1", "v1beta1"]),
    namespaced(SECURITY, "RequestAuthentication", &["v1", "v1beta1"]),
    namespaced(SECURITY, "PeerAuthentication", &["v1", "v1beta1"]),
    namespaced(TELEMETRY, "Telemetry", &["v1", "v1alpha1"]),
    namespaced(EXTENSIONS, "WasmPlugin", &["v1alpha1"]),
    namespaced(EXTENSIONS, "TrafficExtension", &["v1alpha1"]),
    // Gateway API.
    cluster(GATEWAY_API, "GatewayClass", &["v1", "v1beta1"]),
    Kind {
        name: "KubernetesGateway",
        group: GATEWAY_API,
        document_kind: "Gateway",
        versions: &["v1", "v1beta1"],
        namespaced: true,
    },
    namespaced(GATEWAY_API, "HTTPRoute", &["v1", "v1beta1"]),
    namespaced(GATEWAY_API, "GRPCRoute", V1),
    namespaced(GATEWAY_API, "TCPRoute", &["v1", "v1alpha2"]),
    namespaced(GATEWAY_API, "TLSRoute", &["v1", "v1alpha2", "v1alpha3"]),
    namespaced(GATEWAY_API, "UDPRoute", &["v1", "v1alpha2"]),
    namespaced(GATEWAY_API, "ReferenceGrant", &["v1", "v1beta1"]),
    namespaced(GATEWAY_API, "BackendTLSPolicy", &["v1", "v1alpha3"]),
    namespaced(GATEWAY_API, "ListenerSet", V1),
    namespaced(GATEWAY_API_X, "XBackendTrafficPolicy", &["v1alpha1"]),
    cluster(GATEWAY_API_X, "XMesh", &["v1alpha1"]),
    namespaced(INFERENCE, "InferencePool", V1),
    namespaced(MULTI_CLUSTER, "ServiceExport", &["v1alpha1", "v1beta1"]),
    namespaced(MULTI_CLUSTER, "ServiceImport", &["v1alpha1", "v1beta1"]),
    // Our own.
    namespaced(TRYSAIL, "Plugin", &["v1alpha1"]),
    // Kubernetes.
    cluster("", "Namespace", V1),
    cluster("", "Node", V1),
    namespaced("", "Service", V1),
    namespaced("", "Pod", V1),
    namespaced("", "Endpoints", V1),
    namespaced("", "ConfigMap", V1),
    namespaced("", "Secret", V1),
    namespaced("", "ServiceAccount", V1),
    namespaced("discovery.k8s.io", "EndpointSlice", V1),
    namespaced("networking.k8s.io", "Ingress", V1),
    cluster("networking.k8s.io", "IngressClass", V1),
    namespaced("apps", "Deployment", V1),
    namespaced("apps", "DaemonSet", V1),
    namespaced("apps", "StatefulSet", V1),
    namespaced("apps", "ReplicaSet", V1),
    namespaced("autoscaling", "HorizontalPodAutoscaler", &["v1", "v2"]),
    namespaced("policy", "PodDisruptionBudget", V1),
    namespaced("coordination.k8s.io", "Lease", V1),
    namespaced("batch", "Job", V1),
    namespaced("batch", "CronJob", V1),
    namespaced("rbac.authorization.k8s.io", "Role", V1),
    namespaced("rbac.authorization.k8s.io", "RoleBinding", V1),
    cluster("rbac.authorization.k8s.io", "ClusterRole", V1),
    cluster("rbac.authorization.k8s.io", "ClusterRoleBinding", V1),
    cluster("apiextensions.k8s.io", "CustomResourceDefinition", V1),
    cluster("admissionregistration.k8s.io", "MutatingWebhookConfiguration", V1),
    cluster("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", V1),
    cluster("certificates.k8s.io", "CertificateSigningRequest", V1),
    cluster("certificates.k8s.io", "ClusterTrustBundle", &["v1alpha1", "v1beta1"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_gateways_are_told_apart() {
        let name = |api_version| match find(api_version, "Gateway") {
            Lookup::Known(kind) => kind.name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name("networking.istio.io/v1beta1"), "Gateway");
        assert_eq!(name("gateway.networking.k8s.io/v1"), "KubernetesGateway");
    }

    #[test]
    fn versions_and_groups_count() {
        assert!(matches!(find("networking.istio.io/v7", "VirtualService"), Lookup::UnservedVersion(_)));
        assert_eq!(find("serving.knative.dev/v1", "Service"), Lookup::Unknown);
        assert!(matches!(find("v1", "Namespace"), Lookup::Known(Kind { namespaced: false, .. })));
    }

    #[test]
    fn plurals() {
        let plural = |name| named(name).map(Kind::plural).unwrap_or_default();
        for (name, want) in [
            ("VirtualService", "virtualservices"),
            ("AuthorizationPolicy", "authorizationpolicies"),
            ("ServiceEntry", "serviceentries"),
            ("Telemetry", "telemetries"),
            ("KubernetesGateway", "gateways"),
            ("Endpoints", "endpoints"),
            ("Ingress", "ingresses"),
            ("IngressClass", "ingressclasses"),
            ("XMesh", "xmeshes"),
            ("EndpointSlice", "endpointslices"),
            ("Plugin", "plugins"),
        ] {
            assert_eq!(plural(name), want);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|kind| kind.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
