//! Patches of clusters.

use trysail_sdk::facts::PatchScope;

use crate::edit;
use crate::patch::{Notes, Patch};
use crate::wire::{self, Fields};

/// Cluster.transport_socket.
const TRANSPORT_SOCKET: u32 = 24;
/// Cluster.transport_socket_matches, and the socket within one.
const SOCKET_MATCHES: u32 = 43;
const MATCHED_SOCKET: u32 = 3;

/// What a cluster's name says: `outbound|80|v1|host`, or with `_.` for those behind SNI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Inbound; else outbound, or none of ours.
    pub inbound: bool,
    /// The port.
    pub port: u32,
    /// The subset, or empty.
    pub subset: String,
    /// The service's host; empty for inbound clusters.
    pub host: String,
}

impl Named {
    /// Reads a name. What is not of the form has what could be read of it.
    pub fn parse(name: &str) -> Self {
        let separator = if name.starts_with("outbound_.") || name.starts_with("inbound_.") { "_." } else { "|" };
        let mut parts = name.splitn(4, separator);
        let (direction, port, subset, host) = (parts.next(), parts.next(), parts.next(), parts.next());
        let mut named = Named::default();
        let (Some(direction), Some(port)) = (direction, port) else { return named };
        named.inbound = direction == "inbound";
        let (Some(subset), Some(host)) = (subset, host) else { return named };
        named.port = port.parse().unwrap_or_default();
        named.subset = subset.to_owned();
        if !host.contains(separator) {
            named.host = host.to_owned();
        }
        named
    }

    /// Hosts that a patch may mean: inbound clusters have those of the services of their port.
    pub fn hosts<'h>(&'h self, services: &'h [String]) -> Vec<&'h str> {
        if self.inbound && !services.is_empty() {
            services.iter().map(String::as_str).collect()
        } else {
            vec![&self.host]
        }
    }
}

/// The cluster after the patches; none if one removes it.
pub fn apply(patches: &[Patch<'_>], hosts: &[String], cluster: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let matches = |patch: &Patch<'_>, cluster: &[u8]| matches(patch, &wire::name_of(cluster), hosts);
    edit::edited(patches.iter(), cluster, matches, merge, notes)
}

fn matches(patch: &Patch<'_>, name: &str, hosts: &[String]) -> bool {
    let Some(wanted) = patch.cluster() else { return true };
    if !wanted.name.is_empty() {
        return wanted.name == name;
    }
    let named = Named::parse(name);
    (wanted.subset.is_empty() || wanted.subset == named.subset)
        && (wanted.service.is_empty() || named.hosts(hosts).contains(&wanted.service.as_str()))
        && (wanted.port_number == 0 || wanted.port_number == named.port)
}

/// A patch with a transport socket concerns that alone: where the cluster has one of the same name its configuration is
/// merged, else it is replaced. A cluster that chooses among several must have one of that name.
fn merge(patch: &Patch<'_>, cluster: &[u8], notes: &mut Notes) -> Vec<u8> {
    let value = Fields::parse(patch.value());
    let Some(socket) = value.message(TRANSPORT_SOCKET) else { return patch.merged(cluster) };
    let name = wire::name_of(&socket);
    let mut fields = Fields::parse(cluster);
    let mut choices = fields.list(SOCKET_MATCHES);
    if choices.is_empty() {
        match fields.message(TRANSPORT_SOCKET).map(|own| own.into_owned()) {
            Some(own) if wire::name_of(&own) == name => {
                let Some(merged) = edit::merge_socket(patch, &own, &socket, notes) else { return cluster.to_vec() };
                fields.set(TRANSPORT_SOCKET, merged);
            }
            _ => fields.set(TRANSPORT_SOCKET, socket.into_owned()),
        }
        return fields.encode();
    }
    let socket_of = |choice: &[u8]| Fields::parse(choice).message(MATCHED_SOCKET).map(|own| own.into_owned());
    let found = choices.iter_mut().find_map(|choice| {
        let own = socket_of(choice).filter(|own| wire::name_of(own) == name)?;
        Some((choice, own))
    });
    let Some((choice, own)) = found else {
        let why = format!("the cluster chooses among transport sockets, and none of them is named {name:?}");
        notes.refused(patch, why);
        return cluster.to_vec();
    };
    let Some(merged) = edit::merge_socket(patch, &own, &socket, notes) else { return cluster.to_vec() };
    let before = std::mem::take(choice);
    let mut of_choice = Fields::parse(&before);
    of_choice.set(MATCHED_SOCKET, merged);
    *choice = of_choice.encode();
    fields.set_list(SOCKET_MATCHES, choices);
    fields.encode()
}

/// Notes the clusters that a patch matches; false if that can be any.
pub fn cover(patch: &Patch<'_>, scope: &mut PatchScope) -> bool {
    let Some(wanted) = patch.cluster() else { return false };
    if !wanted.name.is_empty() {
        let host = Named::parse(&wanted.name).host;
        scope.names.push(wanted.name.clone());
        scope.hosts.extend(Some(host).filter(|host| !host.is_empty()));
    } else if !wanted.service.is_empty() {
        scope.hosts.push(wanted.service.clone());
    } else {
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::patch::Operation;

    use super::*;
    use crate::testing::{configured, matching, patch, service};
    use trysail_sdk::facts::EnvoyFilterPatch;
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::any::{pack, unpack};
    use trysail_sdk::proto::envoy::config::cluster::v3::{Cluster, cluster::TransportSocketMatch};
    use trysail_sdk::proto::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
    use trysail_sdk::proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
    use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::ApplyTo;

    const NAME: &str = "outbound|80|v1|api.example.com";

    fn cluster() -> Cluster {
        Cluster { name: NAME.into(), ..Default::default() }
    }

    fn merge(value: &Cluster) -> EnvoyFilterPatch {
        patch(ApplyTo::Cluster, Operation::Merge, value)
    }

    fn run(patches: &[EnvoyFilterPatch], hosts: &[&str], cluster: &Cluster) -> (Option<Cluster>, Notes) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let patches = Patch::all(patches).expect("patches");
        let mut notes = Notes::default();
        let made = apply(&patches, &hosts, &cluster.encode_to_vec(), &mut notes);
        (made.map(|bytes| Cluster::decode(bytes.as_slice()).expect("a cluster")), notes)
    }

    fn socket(name: &str, sni: &str) -> TransportSocket {
        let context = UpstreamTlsContext { sni: sni.into(), ..Default::default() };
        TransportSocket { name: name.into(), config_type: Some(ConfigType::TypedConfig(pack(&context))) }
    }

    fn sni(socket: &TransportSocket) -> String {
        let Some(ConfigType::TypedConfig(config)) = &socket.config_type else { panic!("no configuration") };
        unpack::<UpstreamTlsContext>(config).expect("a context").expect("it decodes").sni
    }

    #[test]
    fn names_say_what_they_are_of() {
        let named = Named::parse(NAME);
        assert_eq!((named.port, named.subset.as_str(), named.host.as_str()), (80, "v1", "api.example.com"));
        assert_eq!(Named::parse("outbound_.80_._.a.b").host, "a.b");
        assert!(Named::parse("inbound|8080||").inbound);
        assert_eq!(Named::parse("BlackHoleCluster"), Named::default());
    }

    #[test]
    fn inbound_clusters_have_the_hosts_of_their_services() {
        let inbound = Cluster { name: "inbound|8080||".into(), ..Default::default() };
        let limit = Cluster { per_connection_buffer_limit_bytes: Some(7), ..Default::default() };
        let patches = [matching(service("api.example.com"), merge(&limit))];
        let set = |hosts: &[&str]| run(&patches, hosts, &inbound).0.expect("kept").per_connection_buffer_limit_bytes;
        assert_eq!((set(&["x", "api.example.com"]), set(&["x"]), set(&[])), (Some(7), None, None));
    }

    #[test]
    fn removal_ends_it() {
        let patches = [patch(ApplyTo::Cluster, Operation::Remove, &()), merge(&cluster())];
        let (made, notes) = run(&patches, &[], &cluster());
        assert!(made.is_none() && !notes.0.contains_key(&1));
        assert!(run(&[matching(service("other"), patches[0].clone())], &[], &cluster()).0.is_some());
    }

    #[test]
    fn a_transport_socket_merges_by_name() {
        let value = Cluster { transport_socket: Some(socket("tls", "new")), ..Default::default() };
        let Some(ConfigType::TypedConfig(config)) = socket("tls", "new").config_type else { panic!("set") };
        let patches = [configured(&config, merge(&value))];
        let with = |own: TransportSocket| Cluster { transport_socket: Some(own), ..cluster() };
        let made = run(&patches, &[], &with(socket("tls", "old"))).0.expect("kept");
        assert_eq!(sni(&made.transport_socket.expect("set")), "new");
        let made = run(&patches, &[], &with(socket("raw", "old"))).0.expect("kept").transport_socket.expect("set");
        assert_eq!((made.name.as_str(), sni(&made).as_str()), ("tls", "new"), "another one is replaced");

        let choice = |name: &str| TransportSocketMatch {
            name: "c".into(),
            transport_socket: Some(socket(name, "old")),
            ..Default::default()
        };
        let choices = Cluster { transport_socket_matches: vec![choice("raw"), choice("tls")], ..cluster() };
        let made = run(&patches, &[], &choices).0.expect("kept");
        let of = |i: usize| sni(made.transport_socket_matches[i].transport_socket.as_ref().expect("set"));
        assert_eq!((of(0).as_str(), of(1).as_str()), ("old", "new"));
        let choices = Cluster { transport_socket_matches: vec![choice("raw")], ..cluster() };
        let (made, notes) = run(&patches, &[], &choices);
        assert_eq!(made.expect("kept"), choices);
        assert!(!notes.0[&0].changed && notes.0[&0].reasons.len() == 1);
    }
}
