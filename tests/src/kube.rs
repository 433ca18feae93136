//! What the harness reads from a folder of YAML: the pods that it has to run, and the services that a client may call.
//!
//! This is no validating reader. The folder belongs to the control plane; documents that are not understood are passed over.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Label that keeps a pod without a sidecar, as with Istio's injector.
const INJECT: &str = "sidecar.istio.io/inject";

/// What a workload speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.
    #[default]
    Http,
    /// Lines: one is read, one is answered.
    Tcp,
    /// HTTP/1 within TLS.
    Tls,
    /// HTTP/1 within TLS, for clients with a certificate.
    MutualTls,
}

/// A port that a workload listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Number.
    pub number: u16,
    /// What is spoken there, as the port's name begins with it.
    pub speaks: Speaks,
}

/// A pod to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account; its identity is in the pod's certificate.
    pub service_account: String,
    /// Address.
    pub ip: Ipv4Addr,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that the workload listens on; the first is its main one.
    pub ports: Vec<WorkloadPort>,
    /// Whether a sidecar stands in it.
    pub sidecar: bool,
    /// Whether it is a gateway: a proxy that nothing is redirected to, and no workload.
    pub gateway: bool,
}

impl PodSpec {
    /// Number of the main port.
    pub fn port(&self) -> u16 {
        self.ports.first().map_or(0, |port| port.number)
    }

    /// A pod that is in no folder, such as the client.
    pub fn outside(name: &str, ip: Ipv4Addr) -> PodSpec {
        PodSpec {
            name: name.into(),
            namespace: "default".into(),
            service_account: name.into(),
            ip,
            labels: BTreeMap::from([("app".into(), name.into())]),
            ports: vec![WorkloadPort { number: 8080, speaks: Speaks::Http }],
            sidecar: true,
            gateway: false,
        }
    }
}

/// A service that can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Cluster address.
    pub ip: IpAddr,
    /// First port.
    pub port: u16,
    /// A ready endpoint of the first port, for callers without a sidecar: there is no kube-proxy here.
    pub endpoint: Option<SocketAddr>,
}

/// All objects below a folder that are YAML or JSON; files that are broken just now have none.
///
/// # Errors
/// When a file cannot be read.
pub fn objects(folder: &Path) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
            // Editors keep unfinished files under such names.
            if entry_is_hidden(&path) {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
            {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                found.extend(documents(&text));
            }
        }
    }
    Ok(found)
}

fn entry_is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'))
}

/// The documents of a YAML text, up to one that is broken.
fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(<Value as serde::Deserialize>::deserialize);
    documents.map_while(std::result::Result::ok).collect()
}

fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| text(object, "/kind") == Some(kind))
}

/// The pods with an address.
pub fn pods(objects: &[Value]) -> Vec<PodSpec> {
    of_kind(objects, "Pod").filter_map(pod).collect()
}

fn pod(object: &Value) -> Option<PodSpec> {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let labels: BTreeMap<String, String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let ports = object.pointer("/spec/containers/0/ports").and_then(Value::as_array).into_iter().flatten();
    let mut ports: Vec<WorkloadPort> = ports.filter_map(workload_port).collect();
    if ports.is_empty() {
        ports.push(WorkloadPort { number: 8080, speaks: Speaks::Http });
    }
    Some(PodSpec {
        name: text(object, "/metadata/name")?.to_owned(),
        namespace: text(object, "/metadata/namespace").unwrap_or("default").to_owned(),
        service_account: text(object, "/spec/serviceAccountName").unwrap_or("default").to_owned(),
        ip: text(object, "/status/podIP")?.parse().ok()?,
        sidecar: labels.get(INJECT).is_none_or(|value| value != "false"),
        gateway: text(object, "/metadata/annotations/inject.istio.io~1templates") == Some("gateway"),
        labels,
        ports,
    })
}

fn workload_port(port: &Value) -> Option<WorkloadPort> {
    let number = port.get("containerPort").and_then(Value::as_u64)?;
    let name = text(port, "/name").unwrap_or_default();
    let speaks = match name.split('-').next().unwrap_or_default() {
        "tcp" => Speaks::Tcp,
        "tls" | "https" => Speaks::Tls,
        _ => Speaks::Http,
    };
    Some(WorkloadPort { number: u16::try_from(number).ok()?, speaks })
}

/// The services with a cluster address, by `name.namespace`.
pub fn services(objects: &[Value]) -> BTreeMap<String, Service> {
    let service = |object: &Value| {
        let name = text(object, "/metadata/name")?;
        let namespace = text(object, "/metadata/namespace").unwrap_or("default");
        let port = object.pointer("/spec/ports/0/port").and_then(Value::as_u64)?;
        let ip = text(object, "/spec/clusterIP")?.parse().ok()?;
        let of_service = |slice: &&Value| {
            text(slice, "/metadata/labels/kubernetes.io~1service-name") == Some(name)
                && text(slice, "/metadata/namespace").unwrap_or("default") == namespace
        };
        let endpoint = of_kind(objects, "EndpointSlice").filter(of_service).find_map(first_endpoint);
        Some((format!("{name}.{namespace}"), Service { ip, port: u16::try_from(port).ok()?, endpoint }))
    };
    of_kind(objects, "Service").filter_map(service).collect()
}

fn first_endpoint(slice: &Value) -> Option<SocketAddr> {
    let port = slice.pointer("/ports/0/port").and_then(Value::as_u64)?;
    let is_ready = |endpoint: &&Value| endpoint.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false);
    let endpoint = slice.pointer("/endpoints")?.as_array()?.iter().find(is_ready)?;
    let ip: IpAddr = text(endpoint, "/addresses/0")?.parse().ok()?;
    Some((ip, u16::try_from(port).ok()?).into())
}
