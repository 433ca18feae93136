//! The schema files, compiled in.

/// A file of `schemas/`.
pub(super) struct SchemaFile {
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    pub(super) text: &'static str,
}

macro_rules! files {
    ($($group:literal, $kind:literal, $name:literal;)*) => {
        &[$(SchemaFile {
            group: $group,
            kind: $kind,
            text: include_str!(concat!("../../schemas/", $name)),
        }),*]
    };
}

/// All of them.
pub(super) const FILES: &[SchemaFile] = files! {
    "security.istio.io", "AuthorizationPolicy", "authorizationpolicies.security.istio.io.json";
    "gateway.networking.k8s.io", "BackendTLSPolicy", "backendtlspolicies.gateway.networking.k8s.io.json";
    "", "ConfigMap", "configmaps.json";
    "apps", "DaemonSet", "daemonsets.apps.json";
    "apps", "Deployment", "deployments.apps.json";
    "networking.istio.io", "DestinationRule", "destinationrules.networking.istio.io.json";
    "", "Endpoints", "endpoints.json";
    "discovery.k8s.io", "EndpointSlice", "endpointslices.discovery.k8s.io.json";
    "networking.istio.io", "EnvoyFilter", "envoyfilters.networking.istio.io.json";
    "gateway.networking.k8s.io", "GatewayClass", "gatewayclasses.gateway.networking.k8s.io.json";
    "gateway.networking.k8s.io", "Gateway", "gateways.gateway.networking.k8s.io.json";
    "networking.istio.io", "Gateway", "gateways.networking.istio.io.json";
    "gateway.networking.k8s.io", "GRPCRoute", "grpcroutes.gateway.networking.k8s.io.json";
    "gateway.networking.k8s.io", "HTTPRoute", "httproutes.gateway.networking.k8s.io.json";
    "networking.k8s.io", "IngressClass", "ingressclasses.networking.k8s.io.json";
    "networking.k8s.io", "Ingress", "ingresses.networking.k8s.io.json";
    "gateway.networking.k8s.io", "ListenerSet", "listenersets.gateway.networking.k8s.io.json";
    "", "Namespace", "namespaces.json";
    "", "Node", "nodes.json";
    "security.istio.io", "PeerAuthentication", "peerauthentications.security.istio.io.json";
    "trysail.io", "Plugin", "plugins.trysail.io.json";
    "", "Pod", "pods.json";
    "networking.istio.io", "ProxyConfig", "proxyconfigs.networking.istio.io.json";
    "gateway.networking.k8s.io", "ReferenceGrant", "referencegrants.gateway.networking.k8s.io.json";
    "security.istio.io", "RequestAuthentication", "requestauthentications.security.istio.io.json";
    "", "Secret", "secrets.json";
    "", "ServiceAccount", "serviceaccounts.json";
    "networking.istio.io", "ServiceEntry", "serviceentries.networking.istio.io.json";
    "", "Service", "services.json";
    "networking.istio.io", "Sidecar", "sidecars.networking.istio.io.json";
    "apps", "StatefulSet", "statefulsets.apps.json";
    "gateway.networking.k8s.io", "TCPRoute", "tcproutes.gateway.networking.k8s.io.json";
    "telemetry.istio.io", "Telemetry", "telemetries.telemetry.istio.io.json";
    "gateway.networking.k8s.io", "TLSRoute", "tlsroutes.gateway.networking.k8s.io.json";
    "extensions.istio.io", "TrafficExtension", "trafficextensions.extensions.istio.io.json";
    "gateway.networking.k8s.io", "UDPRoute", "udproutes.gateway.networking.k8s.io.json";
    "networking.istio.io", "VirtualService", "virtualservices.networking.istio.io.json";
    "extensions.istio.io", "WasmPlugin", "wasmplugins.extensions.istio.io.json";
    "networking.istio.io", "WorkloadEntry", "workloadentries.networking.istio.io.json";
    "networking.istio.io", "WorkloadGroup", "workloadgroups.networking.istio.io.json";
    "gateway.networking.x-k8s.io", "XBackendTrafficPolicy", "xbackendtrafficpolicies.gateway.networking.x-k8s.io.json";
    "gateway.networking.x-k8s.io", "XMesh", "xmeshes.gateway.networking.x-k8s.io.json";
};
