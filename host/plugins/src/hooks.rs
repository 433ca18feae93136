//! Hook points: what each is called, at which points of the output it stands, and which messages it shows there.

use serde_json::Value;
use trysail_codec::json::{self, from_json, to_json};

use crate::path::Path;

/// A hook point as plugins know it.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its name in `wit/`.
    pub name: &'static str,
    /// Full name of the message that it shows.
    pub message: &'static str,
    /// Plugins insert there, and see nothing.
    pub inserts: bool,
    /// Where it stands.
    pub stands: &'static [Stand],
}

/// A point at which stages hand out fragments, and the parts of these that the hook shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Stand {
    /// The point.
    pub point: &'static str,
    /// Paths of the parts; none for the items as they are.
    pub parts: &'static [&'static str],
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTE: &str = "envoy.config.route.v3.Route";
const VIRTUAL_HOST: &str = "envoy.config.route.v3.VirtualHost";
const ROUTE_CONFIGURATION: &str = "envoy.config.route.v3.RouteConfiguration";
const FILTER: &str = "envoy.config.listener.v3.Filter";
const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";

const fn whole(point: &'static str) -> Stand {
    Stand { point, parts: &[] }
}

const fn hook(name: &'static str, message: &'static str, stands: &'static [Stand]) -> Hook {
    Hook { name, message, inserts: false, stands }
}

const fn insertion(name: &'static str, message: &'static str, stands: &'static [Stand]) -> Hook {
    Hook { name, message, inserts: true, stands }
}

/// All hook points. Those of the 0.1 line come last, under their own names.
pub const HOOKS: &[Hook] = &[
    hook("clusters", CLUSTER, &[whole("clusters"), whole("inbound-clusters")]),
    hook("endpoints", ENDPOINTS, &[whole("endpoints")]),
    hook("routes", ROUTE, &[whole("routes")]),
    hook("virtual-hosts", VIRTUAL_HOST, &[whole("virtual-host")]),
    hook("route-configurations", ROUTE_CONFIGURATION, &[whole("route-configuration")]),
    hook("listeners", LISTENER, &[whole("listener")]),
    hook(
        "filter-chains",
        "envoy.config.listener.v3.FilterChain",
        &[Stand { point: "listener", parts: &["filter_chains/*", "default_filter_chain"] }],
    ),
    hook(
        "connection-managers",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &[Stand {
            point: "listener",
            // Told by their type, since names are generated.
            parts: &["filter_chains/*/filters/*/typed_config", "default_filter_chain/filters/*/typed_config"],
        }],
    ),
    hook(
        "access-logs",
        "envoy.config.accesslog.v3.AccessLog",
        &[Stand {
            point: "listener",
            parts: &[
                "access_log/*",
                "filter_chains/*/filters/*/typed_config/access_log/*",
                "default_filter_chain/filters/*/typed_config/access_log/*",
            ],
        }],
    ),
    hook(
        "transport-sockets",
        "envoy.config.core.v3.TransportSocket",
        &[
            Stand { point: "clusters", parts: &["transport_socket", "transport_socket_matches/*/transport_socket"] },
            Stand { point: "inbound-clusters", parts: &["transport_socket"] },
            Stand {
                point: "listener",
                parts: &["filter_chains/*/transport_socket", "default_filter_chain/transport_socket"],
            },
        ],
    ),
    insertion("authn-filters", HTTP_FILTER, &[whole("authn-filters")]),
    insertion("authz-filters", HTTP_FILTER, &[whole("authz-filters")]),
    insertion("rate-limit-filters", HTTP_FILTER, &[whole("rate-limit-filters")]),
    insertion("observability-filters", HTTP_FILTER, &[whole("observability-filters")]),
    insertion("http-filters", HTTP_FILTER, &[whole("http-filters")]),
    insertion("network-filters", FILTER, &[whole("network-filters")]),
    insertion("new-clusters", CLUSTER, &[whole("new-clusters")]),
    insertion("new-listeners", LISTENER, &[whole("new-listeners")]),
    hook(
        "patch",
        "",
        &[
            whole("clusters"),
            whole("inbound-clusters"),
            whole("endpoints"),
            whole("listener"),
            whole("route-configuration"),
            whole("virtual-host"),
        ],
    ),
    hook("virtual-host", VIRTUAL_HOST, &[whole("virtual-host")]),
    hook("listener", LISTENER, &[whole("listener")]),
];

/// The slots of HTTP filters beside the one right before the router: a stage asks once whether any is taken.
pub const SLOTS: [&str; 4] = ["authn-filters", "authz-filters", "rate-limit-filters", "observability-filters"];

/// The point in the table at which all plugins of the slots stand, so that one question tells whether there are any.
pub const ANY_SLOT: &str = "filter-slots";

/// The hook of a name.
pub fn find(name: &str) -> Option<&'static Hook> {
    HOOKS.iter().find(|hook| hook.name == name)
}

/// Full name of the message that stages hand out at a point.
pub fn message_at(point: &str) -> Option<&'static str> {
    Some(match point {
        "clusters" | "inbound-clusters" | "new-clusters" => CLUSTER,
        "endpoints" => ENDPOINTS,
        "routes" => ROUTE,
        "virtual-host" => VIRTUAL_HOST,
        "route-configuration" => ROUTE_CONFIGURATION,
        "listener" | "new-listeners" => LISTENER,
        "network-filters" => FILTER,
        "http-filters" | "authn-filters" | "authz-filters" | "rate-limit-filters" | "observability-filters" => {
            HTTP_FILTER
        }
        _ => return None,
    })
}

/// The points at which plugins insert, and the messages that they insert.
pub fn inserted() -> impl Iterator<Item = (&'static str, &'static str)> {
    HOOKS.iter().filter(|hook| hook.inserts).map(|hook| (hook.name, hook.message))
}

/// An item as JSON.
pub type Items = Vec<(String, Value)>;

impl Hook {
    /// The parts that it shows at a point; empty for the items as they are.
    pub fn parts(&self, point: &str) -> Vec<Path> {
        let stand = self.stands.iter().find(|stand| stand.point == point);
        stand.map(|stand| stand.parts.iter().map(|part| Path::parse(part)).collect()).unwrap_or_default()
    }

    /// Full name of the message that it shows at a point.
    pub fn message_shown(&self, point: &str) -> &'static str {
        if self.message.is_empty() { message_at(point).unwrap_or_default() } else { self.message }
    }
}

/// Items from protobuf.
///
/// # Errors
/// When one is not the message of the point.
pub fn decode(message: &str, items: &[(String, bytes::Bytes)]) -> Result<Items, String> {
    let decode = |(key, bytes): &(String, bytes::Bytes)| match to_json(message, bytes) {
        Ok(value) => Ok((key.clone(), value)),
        Err(error) => Err(format!("item {key:?}: {error}")),
    };
    items.iter().map(decode).collect()
}

/// An item that was edited to protobuf.
///
/// # Errors
/// When a field is unknown or has another type; with its path.
pub fn encode(message: &str, key: &str, value: &Value) -> Result<Vec<u8>, String> {
    from_json(message, value, json::Options::edited()).map_err(|error| format!("item {key:?}: {error}"))
}

/// Is a part the message that the hook shows? What is packed says what it is; all else is by its place.
fn is_shown(place: &Value, message: &str) -> bool {
    let kind = place.get(TYPE).and_then(Value::as_str);
    kind.is_none_or(|kind| kind.rsplit('/').next() == Some(message))
}

/// The parts of items that paths lead to and that are of a message, each under the item's key and its path. What packs a message in an
/// `Any` shows that message.
pub fn shown(items: &Items, parts: &[Path], message: &str) -> Items {
    let mut found = Vec::new();
    for (key, value) in items {
        let mut value = value.clone();
        for part in parts {
            let visited = part.visit(&mut value, false, &mut |at, place| {
                if !is_shown(place, message) {
                    return Ok(());
                }
                let mut place = place.clone();
                if let Some(fields) = place.as_object_mut() {
                    fields.shift_remove(TYPE);
                }
                found.push((format!("{key} {at}"), place));
                Ok::<(), std::convert::Infallible>(())
            });
            visited.unwrap_or_else(|never| match never {});
        }
    }
    found
}

/// Puts parts back in their places. A part that is not among `parts` any more is taken out of the item.
pub fn put_back(items: &mut Items, paths: &[Path], parts: &Items, message: &str) {
    for (key, value) in items {
        for path in paths {
            let mut gone = Vec::new();
            let visited = path.visit(value, false, &mut |at, place| {
                if !is_shown(place, message) {
                    return Ok(());
                }
                let named = format!("{key} {at}");
                match parts.iter().find(|(part, _)| *part == named) {
                    Some((_, now)) => {
                        let kind = place.get(TYPE).cloned();
                        *place = now.clone();
                        if let (Some(kind), Some(fields)) = (kind, place.as_object_mut()) {
                            fields.shift_insert(0, TYPE.to_owned(), kind);
                        }
                    }
                    None => gone.push(at.to_owned()),
                }
                Ok::<(), std::convert::Infallible>(())
            });
            visited.unwrap_or_else(|never| match never {});
            // From the end, since numbers of elements move.
            for at in gone.iter().rev() {
                crate::edit::remove(value, &Path::parse(at));
            }
        }
    }
}

/// Where the type of what an `Any` holds stands.
const TYPE: &str = "@type";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_hook_of_the_interfaces_is_here() {
        for name in trysail_stages::component::HOOKS {
            assert!(find(name).is_some(), "{name}");
        }
        for hook in HOOKS {
            for stand in hook.stands {
                assert!(message_at(stand.point).is_some(), "{} stands at {}", hook.name, stand.point);
            }
        }
    }

    #[test]
    fn parts_are_shown_and_put_back() {
        let hook = find("transport-sockets").expect("it is one");
        let socket = json!({"name": "tls", "typed_config": {"@type": "t"}});
        let mut items: Items = vec![
            ("a".into(), json!({"name": "a", "transport_socket": socket})),
            ("b".into(), json!({"name": "b"})),
            ("c".into(), json!({"transport_socket_matches": [{"name": "x", "transport_socket": socket}]})),
        ];
        let parts = hook.parts("clusters");
        let mut shown = shown(&items, &parts, hook.message);
        let keys: Vec<&str> = shown.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["a transport_socket", "c transport_socket_matches/name=x/transport_socket"]);
        shown[1].1["name"] = json!("quic");
        shown.remove(0);
        put_back(&mut items, &parts, &shown, hook.message);
        assert_eq!(items[0].1, json!({"name": "a"}), "what is dropped is gone");
        assert_eq!(items[1].1, json!({"name": "b"}));
        assert_eq!(items[2].1["transport_socket_matches"][0]["transport_socket"]["name"], "quic");
    }

    #[test]
    fn what_is_packed_is_shown_without_its_type_and_keeps_it() {
        const KIND: &str =
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let hook = find("connection-managers").expect("it is one");
        let config = json!({"@type": KIND, "stat_prefix": "s"});
        let other = json!({"@type": "type.googleapis.com/envoy.TcpProxy", "stat_prefix": "o"});
        let filters = json!([{"name": "http", "typed_config": config}, {"name": "tcp", "typed_config": other}]);
        let mut items: Items = vec![("l".into(), json!({"filter_chains": [{"filters": filters}]}))];
        let parts = hook.parts("listener");
        let mut shown = shown(&items, &parts, hook.message);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].1, json!({"stat_prefix": "s"}));
        shown[0].1["stat_prefix"] = json!("t");
        put_back(&mut items, &parts, &shown, hook.message);
        let filters = &items[0].1["filter_chains"][0]["filters"];
        assert_eq!(filters[1]["typed_config"], other, "what is not shown stays");
        let now = &filters[0]["typed_config"];
        assert_eq!(*now, json!({"@type": KIND, "stat_prefix": "t"}));
    }
}
