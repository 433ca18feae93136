//! Whether real Envoy takes resources: many of them as static resources of one `envoy --mode validate`, and where that refuses,
//! halves of them until those that it refuses stand alone.
//!
//! What many proxies are sent does not fit into one Envoy as it is, so resources are dressed first: clusters and listeners get
//! names of their own, listeners addresses of their own, route configurations a listener, and load assignments a cluster.
//! What is lost by that, conflicts between resources of one proxy, is for the caller to check ([`conflicts`]).

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::bootstrap::{self, Variant};
use crate::kube::PodSpec;
use crate::netns::Interception;

/// Resources that one Envoy is asked about at once.
const AT_ONCE: usize = 400;

/// A resource to ask about, in the form of the conformance corpus.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `cds`, `eds`, `lds` or `rds`.
    pub kind: String,
    /// The resource.
    pub resource: Value,
    /// Where it comes from, for people.
    pub origin: String,
}

/// A resource that Envoy refused.
#[derive(Debug)]
pub struct Refused {
    /// Which of those asked about.
    pub index: usize,
    /// Envoy's words.
    pub words: String,
}

/// Asks Envoy.
pub struct Validator {
    envoy: PathBuf,
    folder: tempfile::TempDir,
}

impl Validator {
    /// With an Envoy binary.
    ///
    /// # Errors
    /// When there is no room for files.
    pub fn new(envoy: &Path) -> Result<Validator> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        Ok(Validator { envoy: envoy.to_owned(), folder })
    }

    /// Which of these Envoy refuses.
    ///
    /// # Errors
    /// When Envoy cannot be run.
    pub fn refused(&self, asked: &[Asked]) -> Result<Vec<Refused>> {
        let mut refused = Vec::new();
        let numbered: Vec<(usize, &Asked)> = asked.iter().enumerate().collect();
        for some in numbered.chunks(AT_ONCE) {
            self.halve(some, &mut refused)?;
        }
        Ok(refused)
    }

    fn halve(&self, asked: &[(usize, &Asked)], refused: &mut Vec<Refused>) -> Result<()> {
        let Some(words) = self.ask(asked)? else { return Ok(()) };
        if let [(index, _)] = asked {
            refused.push(Refused { index: *index, words });
            return Ok(());
        }
        let (first, second) = asked.split_at(asked.len() / 2);
        self.halve(first, refused)?;
        self.halve(second, refused)
    }

    /// One Envoy; its words when it refuses.
    fn ask(&self, asked: &[(usize, &Asked)]) -> Result<Option<String>> {
        let file = self.folder.path().join("bootstrap.json");
        fs::write(&file, bootstrap(asked).to_string()).context("cannot write a bootstrap")?;
        let mut command = Command::new(&self.envoy);
        command.args(["--mode", "validate", "--log-level", "error", "-c"]).arg(&file);
        let output = command.output().with_context(|| format!("cannot run {}", self.envoy.display()))?;
        if output.status.success() {
            return Ok(None);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        // The error comes last, and may have several lines; a crash has none.
        let at = words.rfind("error initializing configuration").unwrap_or_default();
        Ok(Some(words[at..].chars().take(1000).collect()))
    }
}

/// A sidecar's bootstrap with all of these within.
fn bootstrap(asked: &[(usize, &Asked)]) -> Value {
    let pod = PodSpec::outside("validate", Ipv4Addr::LOCALHOST);
    let mut whole = bootstrap::bootstrap(&bootstrap::Config {
        pod: &pod,
        control_plane: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        secure: None,
        sds: Path::new("/nowhere"),
        variant: Variant::Delta,
        interception: Interception::Redirect,
    });
    let (mut clusters, mut listeners) = (Vec::new(), Vec::new());
    for (index, asked) in asked {
        let resource = untyped(&asked.resource);
        match asked.kind.as_str() {
            "cds" => clusters.push(cluster(resource, *index)),
            "eds" => clusters.push(json!({
                "name": format!("eds-{index}"),
                "type": "STATIC",
                "load_assignment": resource,
            })),
            "rds" => listeners.push(listener(routes(resource), *index)),
            _ => listeners.push(listener(resource, *index)),
        }
    }
    let add = |whole: &mut Value, kind: &str, more: Vec<Value>| {
        if let Some(Value::Array(there)) = whole.pointer_mut(&format!("/static_resources/{kind}")) {
            there.extend(more);
        }
    };
    add(&mut whole, "clusters", clusters);
    add(&mut whole, "listeners", listeners);
    whole
}

/// A resource without the type that it had as an `Any`.
fn untyped(resource: &Value) -> Value {
    let mut resource = resource.clone();
    if let Value::Object(fields) = &mut resource {
        fields.shift_remove("@type");
    }
    resource
}

fn cluster(mut cluster: Value, index: usize) -> Value {
    cluster["name"] = format!("cds-{index}").into();
    for socket in ["transport_socket", "transport_socket_matches"] {
        cluster.get_mut(socket).into_iter().for_each(secrets_by_sds);
    }
    cluster
}

/// Secrets that come over ADS: Envoy crashes over them in static clusters, which are made before ADS is there.
fn secrets_by_sds(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(source) = fields.get_mut("sds_config")
                && source.get("ads").is_some()
            {
                *source = json!({"resource_api_version": "V3", "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                }});
            }
            fields.values_mut().for_each(secrets_by_sds);
        }
        Value::Array(items) => items.iter_mut().for_each(secrets_by_sds),
        _ => {}
    }
}

fn listener(mut listener: Value, index: usize) -> Value {
    listener["name"] = format!("lds-{index}").into();
    let is_internal = listener.get("internal_listener").is_some();
    if !is_internal {
        let [high, low] = u16::try_from(index).unwrap_or_default().to_be_bytes();
        let own = |n: u8| json!({"socket_address": {"address": format!("127.{n}.{high}.{low}"), "port_value": 80}});
        listener["address"] = own(1);
        let others = listener.get_mut("additional_addresses").and_then(Value::as_array_mut);
        for (n, other) in (2..).zip(others.into_iter().flatten()) {
            other["address"] = own(n);
        }
    }
    listener
}

/// A listener around a route configuration. Clusters are checked by nobody, as with routes that are discovered.
fn routes(mut routes: Value) -> Value {
    if let Value::Object(fields) = &mut routes {
        fields.entry("validate_clusters").or_insert(false.into());
    }
    json!({"filter_chains": [{"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "routes",
            "route_config": routes,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    }]}]})
}

/// What one proxy could not hold together: two resources of a name, two listeners at an address.
pub fn conflicts(kind: &str, resources: &[Value]) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for resource in resources {
        let mut claims =
            vec![resource.get("name").or_else(|| resource.get("cluster_name")).cloned().unwrap_or_default()];
        if kind == "lds" {
            claims.extend(resource.get("address").cloned());
            let others = resource.get("additional_addresses").and_then(Value::as_array).into_iter().flatten();
            claims.extend(others.filter_map(|other| other.get("address").cloned()));
        }
        for claim in claims {
            *seen.entry(claim.to_string()).or_default() += 1;
        }
    }
    seen.into_iter().filter(|(_, n)| *n > 1).map(|(claim, n)| format!("{kind}: {n} resources claim {claim}")).collect()
}

/// What a proxy was sent, by kind: the JSON files of its folder.
///
/// # Errors
/// When a file is no JSON list.
pub fn sent(folder: &Path) -> Result<Map<String, Value>> {
    let mut found = Map::new();
    for kind in ["cds", "eds", "lds", "rds"] {
        let file = folder.join(format!("{kind}.json"));
        if file.is_file() {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let list: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
            found.insert(kind.to_owned(), list);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listener_has_its_own_place() {
        let asked = |kind: &str, resource: Value| Asked { kind: kind.into(), resource, origin: String::new() };
        let listener =
            json!({"@type": "x", "name": "l", "address": {"a": 1}, "additional_addresses": [{"address": 1}]});
        let all = [asked("lds", listener), asked("rds", json!({"name": "80"})), asked("cds", json!({"name": "c"}))];
        let numbered: Vec<(usize, &Asked)> = all.iter().enumerate().collect();
        let whole = bootstrap(&numbered);
        let listeners = whole.pointer("/static_resources/listeners").unwrap().as_array().unwrap();
        let at = |i: usize, path: &str| listeners[i].pointer(path).unwrap().as_str().unwrap().to_owned();
        assert_eq!(at(0, "/address/socket_address/address"), "127.1.0.0");
        assert_eq!(at(0, "/additional_addresses/0/address/socket_address/address"), "127.2.0.0");
        assert_eq!(at(1, "/address/socket_address/address"), "127.1.0.1");
        assert!(whole.to_string().contains("\"cds-2\"") && !whole.to_string().contains("\"@type\":\"x\""));
    }

    #[test]
    fn names_and_addresses_are_claimed_once() {
        let listener = |name: &str, port: u16| json!({"name": name, "address": {"port": port}});
        assert!(conflicts("lds", &[listener("a", 1), listener("b", 2)]).is_empty());
        assert_eq!(conflicts("lds", &[listener("a", 1), listener("b", 1), listener("a", 2)]).len(), 2);
    }
}
