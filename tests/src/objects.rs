//! YAML of Kubernetes objects for meshes that tests bring up: a Service with its Pods and their EndpointSlice, in a few words.

use std::fmt::{self, Display, Formatter};

/// A port of a service.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort<'a> {
    /// Name; what it begins with is the protocol, for Istio and for the workload.
    pub name: &'a str,
    /// The service's number.
    pub port: u16,
    /// The workload's number.
    pub target: u16,
}

/// A pod of an app.
#[derive(Clone, Copy, Debug)]
pub struct AppPod<'a> {
    /// Name.
    pub name: &'a str,
    /// Address.
    pub ip: &'a str,
    /// Labels besides `app`, as the inside of a YAML flow mapping: `version: v1, x: y`.
    pub labels: &'a str,
    /// Whether a sidecar stands in it.
    pub sidecar: bool,
    /// Whether it is a gateway.
    pub gateway: bool,
}

/// An app: its service and pods. Prints as YAML documents.
#[derive(Clone, Copy, Debug)]
pub struct App<'a> {
    /// Name of the service, service account and label `app`.
    pub name: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Cluster address; empty for a headless service.
    pub ip: &'a str,
    /// Ports.
    pub ports: &'a [ServicePort<'a>],
    /// Pods.
    pub pods: &'a [AppPod<'a>],
}

/// A pod with a sidecar.
pub const fn pod<'a>(name: &'a str, ip: &'a str, labels: &'a str) -> AppPod<'a> {
    AppPod { name, ip, labels, sidecar: true, gateway: false }
}

/// A gateway.
pub const fn gateway_pod<'a>(name: &'a str, ip: &'a str, labels: &'a str) -> AppPod<'a> {
    AppPod { name, ip, labels, sidecar: false, gateway: true }
}

/// A pod without a sidecar.
pub const fn bare_pod<'a>(name: &'a str, ip: &'a str, labels: &'a str) -> AppPod<'a> {
    AppPod { name, ip, labels, sidecar: false, gateway: false }
}

/// A port.
pub const fn port(name: &str, port: u16, target: u16) -> ServicePort<'_> {
    ServicePort { name, port, target }
}

impl Display for App<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let App { name, namespace, ip, ports, pods } = *self;
        let ip = if ip.is_empty() { "None" } else { ip };
        writeln!(f, "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:")?;
        writeln!(f, "  clusterIP: {ip}\n  clusterIPs: [{ip}]\n  selector: {{app: {name}}}\n  ports:")?;
        for ServicePort { name, port, target } in ports {
            writeln!(f, "  - {{name: {name}, port: {port}, targetPort: {target}}}")?;
        }
        for pod in pods {
            self.pod(f, pod)?;
        }
        writeln!(f, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1")?;
        writeln!(f, "  namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}")?;
        writeln!(f, "addressType: IPv4\nports:")?;
        for ServicePort { name, target, .. } in ports {
            writeln!(f, "- {{name: {name}, port: {target}, protocol: TCP}}")?;
        }
        writeln!(f, "endpoints:{}", if pods.is_empty() { " []" } else { "" })?;
        for AppPod { name, ip, .. } in pods {
            writeln!(f, "- addresses: [{ip}]\n  conditions: {{ready: true, serving: true, terminating: false}}")?;
            writeln!(f, "  targetRef: {{kind: Pod, name: {name}, namespace: {namespace}}}")?;
        }
        writeln!(f, "---")
    }
}

impl App<'_> {
    fn pod(&self, f: &mut Formatter<'_>, pod: &AppPod<'_>) -> fmt::Result {
        let App { name: app, namespace, ports, .. } = *self;
        let AppPod { name, ip, labels, sidecar, gateway } = *pod;
        let injected = if sidecar { "security.istio.io/tlsMode: istio" } else { "sidecar.istio.io/inject: \"false\"" };
        let comma = if labels.is_empty() { "" } else { ", " };
        writeln!(f, "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}")?;
        writeln!(f, "  labels: {{app: {app}, {injected}{comma}{labels}}}")?;
        if gateway {
            writeln!(f, "  annotations: {{inject.istio.io/templates: gateway}}")?;
        }
        writeln!(f, "spec:\n  serviceAccountName: {app}\n  containers:")?;
        writeln!(f, "  - name: app\n    image: example.org/app:1\n    ports:")?;
        for ServicePort { name, target, .. } in ports {
            writeln!(f, "    - {{name: {name}, containerPort: {target}}}")?;
        }
        writeln!(f, "status:\n  phase: Running\n  podIP: {ip}\n  podIPs: [{{ip: {ip}}}]")?;
        writeln!(f, "  conditions:\n  - {{type: Ready, status: \"True\"}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::{self, Speaks};

    #[test]
    fn is_read_back() {
        let app = App {
            name: "web",
            namespace: "shop",
            ip: "10.96.0.1",
            ports: &[port("http", 80, 8080), port("tcp-echo", 90, 9090)],
            pods: &[pod("web-1", "10.244.1.1", "version: v1"), bare_pod("web-2", "10.244.1.2", "")],
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web.yaml"), app.to_string()).unwrap();
        let objects = kube::objects(folder.path()).unwrap();
        let pods = kube::pods(&objects);
        assert_eq!(pods.iter().map(|pod| pod.sidecar).collect::<Vec<_>>(), [true, false]);
        let ports: Vec<_> = pods[0].ports.iter().map(|port| (port.number, port.speaks)).collect();
        assert_eq!(ports, [(8080, Speaks::Http), (9090, Speaks::Tcp)]);
        assert_eq!(pods[0].labels["version"], "v1");
        let service = &kube::services(&objects)["web.shop"];
        assert_eq!((service.port, service.endpoint.unwrap().to_string().as_str()), (80, "10.244.1.1:8080"));
    }
}
