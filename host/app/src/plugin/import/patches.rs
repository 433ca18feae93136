//! What a patch of an EnvoyFilter is as a patch of the built-in plugin.
//!
//! ```text
//! applyTo, operation, match ─▶ hook and selector      none that means the same: the patch stays an EnvoyFilter, with the reason
//! value                     ─▶ merge | insert | put   lists are appended, as a merge of protobuf does
//! ```

use serde_json::{Map, Value, json};
use trysail_codec::json::{self as codec, Options};

/// How a connection manager is called, now and long ago.
const MANAGERS: [&str; 2] = ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];
const ROUTER: [&str; 2] = ["envoy.filters.http.router", "envoy.router"];

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const FILTER: &str = "envoy.config.listener.v3.Filter";
const LISTENER_FILTER: &str = "envoy.config.listener.v3.ListenerFilter";
const FILTER_CHAIN: &str = "envoy.config.listener.v3.FilterChain";
const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
const ROUTE_CONFIGURATION: &str = "envoy.config.route.v3.RouteConfiguration";
const VIRTUAL_HOST: &str = "envoy.config.route.v3.VirtualHost";
const ROUTE: &str = "envoy.config.route.v3.Route";

/// What became of a patch.
#[derive(Debug, Default)]
pub struct Translated {
    /// The patches of the plugin.
    pub patches: Vec<Value>,
    /// It reaches what is another namespace's, so the plugin has to stand with the control plane.
    pub reaches_far: bool,
    /// What differs, for people.
    pub notes: Vec<String>,
}

/// A patch of an EnvoyFilter.
struct Patch<'a> {
    operation: &'a str,
    context: &'a str,
    r#match: &'a Value,
    value: &'a Value,
}

/// Where a patch of the plugin works.
#[derive(Default)]
struct Selector(Map<String, Value>);

impl Selector {
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// The patch at a hook, with what becomes of the fragment.
    fn at(&self, hook: &str, action: &str, what: Value) -> Value {
        let mut patch = Map::from_iter([("hook".to_owned(), Value::from(hook))]);
        patch.extend(self.0.clone());
        patch.insert(action.to_owned(), what);
        Value::Object(patch)
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Translates one element of `configPatches`.
///
/// # Errors
/// Why it stays an EnvoyFilter.
pub fn translate(patch: &Value) -> Result<Translated, String> {
    let empty = Value::Null;
    let r#match = patch.get("match").unwrap_or(&empty);
    if r#match.get("proxy").is_some_and(|proxy| *proxy != json!({})) {
        return Err("match.proxy: a plugin is not chosen by a proxy's version or metadata".to_owned());
    }
    let of = Patch {
        operation: match text(patch, "/patch/operation") {
            "" => return Err("patch.operation: it says nothing".to_owned()),
            operation => operation,
        },
        context: match text(r#match, "/context") {
            "" => "ANY",
            context => context,
        },
        r#match,
        value: patch.pointer("/patch/value").unwrap_or(&empty),
    };
    match text(patch, "/applyTo") {
        "HTTP_FILTER" => of.http_filter(),
        "NETWORK_FILTER" => of.network_filter(),
        "LISTENER" => of.listener(),
        "FILTER_CHAIN" => of.filter_chain(),
        "LISTENER_FILTER" => of.listener_filter(),
        "CLUSTER" => of.cluster(),
        "ROUTE_CONFIGURATION" => of.route_configuration(),
        "VIRTUAL_HOST" => of.virtual_host(),
        "HTTP_ROUTE" => of.route(),
        other => Err(format!("applyTo: no hook of a plugin is a {other}")),
    }
}

impl Patch<'_> {
    fn merges(&self) -> bool {
        matches!(self.operation, "MERGE" | "MERGE_AND_REPLACE_LIST")
    }

    fn inserts(&self) -> bool {
        matches!(self.operation, "ADD" | "INSERT_BEFORE" | "INSERT_AFTER" | "INSERT_FIRST")
    }

    fn no_hook(&self, what: &str) -> String {
        format!("patch.operation: {} of a {what} has no hook", self.operation)
    }

    /// The value with the names of the .proto files, as the message that it is.
    fn value(&self, message: &str) -> Result<Value, String> {
        let bytes = codec::from_json(message, self.value, Options::default());
        let bytes = bytes.map_err(|error| format!("patch.value: {error}"))?;
        codec::to_json(message, &bytes).map_err(|error| format!("patch.value: {error}"))
    }

    /// The direction that the context means, for hooks that know gateways apart.
    fn direction(&self) -> Selector {
        let selector = Selector::default();
        match self.context {
            "SIDECAR_INBOUND" => selector.with("direction", "inbound"),
            "SIDECAR_OUTBOUND" => selector.with("direction", "outbound"),
            "GATEWAY" => selector.with("direction", "gateway"),
            _ => selector,
        }
    }

    /// The kind of proxy that the context means, for hooks that stand at both.
    fn proxy_type(&self) -> Selector {
        let selector = Selector::default();
        match self.context {
            "SIDECAR_INBOUND" | "SIDECAR_OUTBOUND" => selector.with("proxyType", "sidecar"),
            "GATEWAY" => selector.with("proxyType", "router"),
            _ => selector,
        }
    }

    /// It is about services that are others' too.
    fn is_about_others(&self) -> bool {
        !matches!(self.context, "SIDECAR_INBOUND" | "GATEWAY")
    }

    /// The merge of a message, at a place below what the hook shows.
    fn merged(&self, selector: &Selector, hook: &str, path: &str, value: Value) -> Vec<Value> {
        if self.operation == "MERGE_AND_REPLACE_LIST" {
            return vec![selector.at(hook, "merge", field(path, value))];
        }
        let (mut rest, mut lists) = (value, Vec::new());
        take_lists(&mut rest, path, &mut lists);
        let mut patches = Vec::new();
        if rest.as_object().is_none_or(|fields| !fields.is_empty()) {
            patches.push(selector.at(hook, "merge", field(path, rest)));
        }
        for (path, element) in lists {
            patches.push(selector.at(hook, "insert", json!({"path": path, "at": "last", "value": element})));
        }
        patches
    }

    fn done(patches: Vec<Value>) -> Translated {
        Translated { patches, ..Translated::default() }
    }

    /// The listener that a patch names, as a selector of what stands at listeners.
    fn at_listener(&self) -> Result<Selector, String> {
        let mut selector = self.direction();
        let listener = &self.r#match["listener"];
        let name = text(listener, "/name");
        if !name.is_empty() {
            selector = selector.with("name", name);
        }
        if let Some(port) = listener.get("portNumber").and_then(Value::as_u64).filter(|port| *port != 0) {
            if self.context != "SIDECAR_OUTBOUND" && self.context != "GATEWAY" {
                return Err("match.listener.portNumber: of an inbound listener it is a part of its chains".to_owned());
            }
            selector = selector.with("port", port);
        }
        Ok(selector)
    }

    /// Refuses matches of chains but for their filter.
    fn any_chain(&self) -> Result<(), String> {
        let chain = self.r#match.pointer("/listener/filterChain").and_then(Value::as_object);
        let odd = chain
            .into_iter()
            .flatten()
            .find(|(name, value)| *name != "filter" && !value.is_null() && **value != json!("") && **value != json!(0));
        match odd {
            Some((name, _)) => Err(format!("match.listener.filterChain.{name}: hooks are not chosen by chains")),
            None => Ok(()),
        }
    }

    fn http_filter(&self) -> Result<Translated, String> {
        self.any_chain()?;
        let network = text(self.r#match, "/listener/filterChain/filter/name");
        if !network.is_empty() && !MANAGERS.contains(&network) {
            return Err(format!("match.listener.filterChain.filter.name: {network} has no HTTP filters"));
        }
        let anchor = text(self.r#match, "/listener/filterChain/filter/subFilter/name");
        if self.inserts() {
            return self.inserted_http_filter(anchor);
        }
        if anchor.is_empty() {
            return Err("match.listener.filterChain.filter.subFilter.name: which filter is not said".to_owned());
        }
        let selector = self.at_listener()?;
        let anchor = if ROUTER.contains(&anchor) { ROUTER[0] } else { anchor };
        let path = format!("http_filters/name={anchor}");
        match self.operation {
            "REMOVE" => Ok(Self::done(vec![selector.at("connection-managers", "remove", path.into())])),
            "REPLACE" => {
                let what = json!({"path": path, "value": self.value(HTTP_FILTER)?});
                Ok(Self::done(vec![selector.at("connection-managers", "set", what)]))
            }
            _ if self.merges() => {
                let value = self.value(HTTP_FILTER)?;
                Ok(Self::done(self.merged(&selector, "connection-managers", &path, value)))
            }
            _ => Err(self.no_hook("HTTP_FILTER")),
        }
    }

    fn inserted_http_filter(&self, anchor: &str) -> Result<Translated, String> {
        let (slot, note) = match (self.operation, anchor) {
            ("INSERT_BEFORE", name) if ROUTER.contains(&name) => ("http-filters", None),
            ("INSERT_FIRST" | "INSERT_BEFORE", "") => {
                ("authn-filters", Some("it stands before what authenticates, not before Istio's metadata filters"))
            }
            ("ADD" | "INSERT_AFTER", "") => {
                ("http-filters", Some("it stands before the router: behind it, where it was added, Envoy refuses it"))
            }
            ("ADD", _) => ("http-filters", None),
            ("INSERT_BEFORE", "envoy.filters.http.jwt_authn" | "istio_authn") => ("authn-filters", None),
            ("INSERT_AFTER", "envoy.filters.http.jwt_authn" | "istio_authn")
            | ("INSERT_BEFORE", "envoy.filters.http.rbac" | "envoy.filters.http.ext_authz") => ("authz-filters", None),
            ("INSERT_AFTER", "envoy.filters.http.rbac" | "envoy.filters.http.ext_authz") => {
                ("rate-limit-filters", None)
            }
            ("INSERT_BEFORE", "istio.stats" | "envoy.filters.http.grpc_stats") => ("observability-filters", None),
            (_, name) => {
                return Err(format!("match: no slot is next to the filter {name:?}"));
            }
        };
        let mut selector = self.direction();
        let listener = &self.r#match["listener"];
        if let Some(port) = listener.get("portNumber").and_then(Value::as_u64).filter(|port| *port != 0) {
            selector = if self.context == "SIDECAR_INBOUND" {
                selector.with("attributes", json!({"workload-port": port.to_string()}))
            } else if self.context == "ANY" {
                return Err("match.listener.portNumber: without a context it means two kinds of ports".to_owned());
            } else {
                selector.with("port", port)
            };
        }
        selector = match text(listener, "/name") {
            "" => selector,
            "virtualInbound" => selector.with("direction", "inbound"),
            name => {
                match name.rsplit_once('_').and_then(|(address, port)| Some((address, port.parse::<u32>().ok()?))) {
                    Some(("0.0.0.0" | "[::]", port)) => selector.with("port", port),
                    _ => return Err(format!("match.listener.name: {name} is a name that no slot knows")),
                }
            }
        };
        let put = json!({"message": self.value(HTTP_FILTER)?});
        Ok(Translated {
            patches: vec![selector.at(slot, "put", put)],
            reaches_far: self.is_about_others(),
            notes: note.into_iter().map(str::to_owned).collect(),
        })
    }

    fn network_filter(&self) -> Result<Translated, String> {
        self.any_chain()?;
        let named = text(self.r#match, "/listener/filterChain/filter/name");
        let is_manager = MANAGERS.contains(&named);
        let selector = self.at_listener()?;
        match self.operation {
            "INSERT_FIRST" | "INSERT_BEFORE" if named.is_empty() => {
                let what = json!({"path": "filters", "at": "first", "value": self.value(FILTER)?});
                Ok(Self::done(vec![selector.at("filter-chains", "insert", what)]))
            }
            "ADD" | "INSERT_AFTER" if named.is_empty() => {
                Err("patch.operation: behind the last of the filters Envoy refuses another".to_owned())
            }
            _ if self.inserts() => Err(format!("match: not every chain has the filter {named:?}")),
            _ if self.merges() && is_manager => {
                let mut value = self.value(FILTER)?;
                let mut config = value.get_mut("typed_config").map(Value::take).unwrap_or_else(|| json!({}));
                if let Some(fields) = config.as_object_mut() {
                    fields.shift_remove("@type");
                }
                Ok(Self::done(self.merged(&selector, "connection-managers", "", config)))
            }
            _ if named.is_empty() => Err("match.listener.filterChain.filter.name: which filter is not said".to_owned()),
            _ if self.merges() => {
                let path = format!("filters/name={named}");
                Ok(Self::done(self.merged(&selector, "filter-chains", &path, self.value(FILTER)?)))
            }
            "REMOVE" => {
                Ok(Self::done(vec![selector.at("filter-chains", "remove", format!("filters/name={named}").into())]))
            }
            _ => Err(self.no_hook("NETWORK_FILTER")),
        }
    }

    fn listener(&self) -> Result<Translated, String> {
        self.any_chain()?;
        if self.operation == "ADD" {
            let put = json!({"message": self.value(LISTENER)?});
            return Ok(Self::done(vec![self.proxy_type().at("new-listeners", "put", put)]));
        }
        if !self.merges() {
            return Err(self.no_hook("LISTENER"));
        }
        Ok(Self::done(self.merged(&self.at_listener()?, "listeners", "", self.value(LISTENER)?)))
    }

    fn listener_filter(&self) -> Result<Translated, String> {
        let selector = self.at_listener()?;
        let named = text(self.r#match, "/listener/listenerFilter");
        let path = format!("listener_filters/name={named}");
        let value = || self.value(LISTENER_FILTER);
        let inserted = |at: &str| -> Result<Translated, String> {
            let what = json!({"path": "listener_filters", "at": at, "value": value()?});
            Ok(Self::done(vec![selector.at("listeners", "insert", what)]))
        };
        match (self.operation, named) {
            ("INSERT_FIRST", _) | ("INSERT_BEFORE", "") => inserted("first"),
            ("ADD", _) | ("INSERT_AFTER", "") => inserted("last"),
            (_, "") => Err("match.listener.listenerFilter: which filter is not said".to_owned()),
            ("REMOVE", _) => Ok(Self::done(vec![selector.at("listeners", "remove", path.into())])),
            ("REPLACE", _) => {
                Ok(Self::done(vec![selector.at("listeners", "set", json!({"path": path, "value": value()?}))]))
            }
            _ if self.merges() => Ok(Self::done(self.merged(&selector, "listeners", &path, value()?))),
            _ => Err(format!("match: not every listener has the filter {named:?}")),
        }
    }

    fn filter_chain(&self) -> Result<Translated, String> {
        self.any_chain()?;
        if !text(self.r#match, "/listener/filterChain/filter/name").is_empty() {
            return Err("match.listener.filterChain.filter: chains are not chosen by their filters".to_owned());
        }
        if !self.merges() {
            return Err(self.no_hook("FILTER_CHAIN"));
        }
        Ok(Self::done(self.merged(&self.at_listener()?, "filter-chains", "", self.value(FILTER_CHAIN)?)))
    }

    fn cluster(&self) -> Result<Translated, String> {
        if self.operation == "ADD" {
            let put = json!({"message": self.value(CLUSTER)?});
            return Ok(Self::done(vec![self.proxy_type().at("new-clusters", "put", put)]));
        }
        if !self.merges() {
            return Err(self.no_hook("CLUSTER"));
        }
        let of = &self.r#match["cluster"];
        let (name, service, subset) = (text(of, "/name"), text(of, "/service"), text(of, "/subset"));
        let port = of.get("portNumber").and_then(Value::as_u64).filter(|port| *port != 0);
        let mut notes = Vec::new();
        let selector = if self.context == "SIDECAR_INBOUND" {
            if !name.is_empty() || !service.is_empty() || !subset.is_empty() {
                return Err("match.cluster: of inbound clusters only the port is known to hooks".to_owned());
            }
            let selector = self.direction();
            port.into_iter().fold(selector, |selector, port| selector.with("port", port))
        } else if !name.is_empty() {
            let parts: Vec<&str> = name.split('|').collect();
            let ["outbound", _, _, host] = parts[..] else {
                return Err(format!("match.cluster.name: {name} is no cluster of a service"));
            };
            self.proxy_type().with("direction", "outbound").with("service", format!("*/{host}")).with("item", name)
        } else if port.is_some() || !subset.is_empty() {
            return Err("match.cluster: a port or subset alone chooses no clusters of a hook; give the name".to_owned());
        } else if !service.is_empty() {
            self.proxy_type().with("direction", "outbound").with("service", format!("*/{service}"))
        } else {
            notes.push("the clusters that pass traffic through are not among those of the hook".to_owned());
            match self.context {
                "SIDECAR_OUTBOUND" => self.proxy_type().with("direction", "outbound"),
                _ => self.proxy_type(),
            }
        };
        let patches = self.merged(&selector, "clusters", "", self.value(CLUSTER)?);
        Ok(Translated { patches, reaches_far: self.context != "SIDECAR_INBOUND", notes })
    }

    /// The route configuration that a patch names, as a selector of what stands at these.
    fn at_routes(&self) -> Result<Selector, String> {
        let of = &self.r#match["routeConfiguration"];
        if let Some(odd) = ["gateway", "portName"].into_iter().find(|field| !text(of, &format!("/{field}")).is_empty())
        {
            return Err(format!("match.routeConfiguration.{odd}: no hook is chosen by it"));
        }
        let mut selector = self.direction();
        let name = text(of, "/name");
        if !name.is_empty() {
            selector = selector.with("name", name);
        }
        match of.get("portNumber").and_then(Value::as_u64).filter(|port| *port != 0) {
            Some(port) if self.context == "SIDECAR_INBOUND" => {
                Ok(selector.with("attributes", json!({"workload-port": port.to_string()})))
            }
            Some(_) if self.context == "ANY" => {
                Err("match.routeConfiguration.portNumber: without a context it means two kinds of ports".to_owned())
            }
            Some(port) => Ok(selector.with("port", port)),
            None => Ok(selector),
        }
    }

    fn route_configuration(&self) -> Result<Translated, String> {
        if !self.merges() {
            return Err(self.no_hook("ROUTE_CONFIGURATION"));
        }
        let selector = self.at_routes()?;
        Ok(Self::done(self.merged(&selector, "route-configurations", "", self.value(ROUTE_CONFIGURATION)?)))
    }

    fn virtual_host(&self) -> Result<Translated, String> {
        let selector = self.at_routes()?;
        if !text(self.r#match, "/routeConfiguration/vhost/domainName").is_empty() {
            return Err("match.routeConfiguration.vhost.domainName: no hook is chosen by it".to_owned());
        }
        let name = text(self.r#match, "/routeConfiguration/vhost/name");
        let path = if name.is_empty() { "virtual_hosts/*".to_owned() } else { format!("virtual_hosts/name={name}") };
        let value = || self.value(VIRTUAL_HOST);
        match self.operation {
            "ADD" => {
                let what = json!({"path": "virtual_hosts", "at": "last", "value": value()?});
                Ok(Self::done(vec![selector.at("route-configurations", "insert", what)]))
            }
            "REMOVE" => Ok(Self::done(vec![selector.at("route-configurations", "remove", path.into())])),
            "REPLACE" => {
                let what = json!({"path": path, "value": value()?});
                Ok(Self::done(vec![selector.at("route-configurations", "set", what)]))
            }
            _ if self.merges() => Ok(Self::done(self.merged(&selector, "route-configurations", &path, value()?))),
            _ => Err(self.no_hook("VIRTUAL_HOST")),
        }
    }

    fn route(&self) -> Result<Translated, String> {
        let selector = self.at_routes()?;
        let host = &self.r#match["routeConfiguration"]["vhost"];
        if !text(host, "/domainName").is_empty() {
            return Err("match.routeConfiguration.vhost.domainName: no hook is chosen by it".to_owned());
        }
        if !matches!(text(host, "/route/action"), "" | "ANY") {
            return Err("match.routeConfiguration.vhost.route.action: no hook is chosen by it".to_owned());
        }
        let of_host = match text(host, "/name") {
            "" => "virtual_hosts/*/routes".to_owned(),
            name => format!("virtual_hosts/name={name}/routes"),
        };
        let name = text(host, "/route/name");
        let path = if name.is_empty() { format!("{of_host}/*") } else { format!("{of_host}/name={name}") };
        let hook = "route-configurations";
        let inserted = |at: &str| -> Result<Translated, String> {
            let what = json!({"path": of_host, "at": at, "value": self.value(ROUTE)?});
            Ok(Self::done(vec![selector.at(hook, "insert", what)]))
        };
        match (self.operation, name) {
            ("INSERT_FIRST", _) | ("INSERT_BEFORE", "") => inserted("first"),
            ("ADD", _) | ("INSERT_AFTER", "") => inserted("last"),
            ("INSERT_BEFORE" | "INSERT_AFTER", _) => {
                Err("match.routeConfiguration.vhost.route.name: not every list of routes has it".to_owned())
            }
            ("REMOVE", _) => Ok(Self::done(vec![selector.at(hook, "remove", path.into())])),
            _ if self.merges() => Ok(Self::done(self.merged(&selector, hook, &path, self.value(ROUTE)?))),
            _ => Err(self.no_hook("HTTP_ROUTE")),
        }
    }
}

/// A field for a merge; no path for the message itself.
fn field(path: &str, value: Value) -> Value {
    if path.is_empty() { json!({"value": value}) } else { json!({"path": path, "value": value}) }
}

/// Takes lists out of a value: their paths, and their elements one by one.
fn take_lists(value: &mut Value, path: &str, lists: &mut Vec<(String, Value)>) {
    let Value::Object(fields) = value else { return };
    let mut gone = Vec::new();
    for (name, inner) in fields.iter_mut() {
        let step = name.replace('~', "~0").replace('/', "~1");
        let below = if path.is_empty() { step } else { format!("{path}/{step}") };
        match inner {
            Value::Array(elements) => {
                lists.extend(elements.drain(..).map(|element| (below.clone(), element)));
                gone.push(name.clone());
            }
            Value::Object(_) => {
                let had = inner.as_object().is_some_and(|fields| !fields.is_empty());
                take_lists(inner, &below, lists);
                // What held nothing but lists is made by their insertion.
                if had && inner.as_object().is_some_and(Map::is_empty) {
                    gone.push(name.clone());
                }
            }
            _ => {}
        }
    }
    for name in gone {
        fields.shift_remove(&name);
    }
}

#[cfg(test)]
mod tests;
