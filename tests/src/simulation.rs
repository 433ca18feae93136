//! What a proxy would do with a connection by the resources that it was sent: which listener takes it, which filter chain,
//! virtual host and route, and which cluster it comes to. Envoy's own order of decisions, without an Envoy.
//!
//! ```text
//! call ── listener (address, port) ── chain (port, address, SNI, transport, ALPN) ── TLS ──┬─ TCP proxy ─────────── cluster
//!                                                                                          └─ domain ── route ───── cluster
//! ```
//!
//! Resources are read as `trysail render` and the conformance corpus write them. Not modelled: what sees more of a request than
//! its host and path (headers that a call does not have count as absent), weights, and chains that ask for the source.

mod chains;
mod json;
pub mod real;
mod routes;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use json::{field, items, number, text, type_of};

/// Listener that redirected inbound connections come to.
const INBOUND: &str = "virtualInbound";

/// Listener that redirected outbound connections come to where no other has their address.
const OUTBOUND: &str = "virtualOutbound";

/// Stands for any address: the call does not care.
const SOME_ADDRESS: &str = "1.3.3.7";

/// What is spoken on a connection, within TLS if there is any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Bytes, or what the call does not say.
    #[default]
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Not at all.
    #[default]
    Plaintext,
    /// TLS as an ordinary client speaks it.
    Tls,
    /// The mesh's mutual TLS, as a sidecar speaks it.
    Mtls,
}

/// How a connection comes to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From the proxy's own workload; for a gateway simply by calling it.
    #[default]
    Outbound,
    /// To the proxy's workload.
    Inbound,
}

/// One connection with one request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Call {
    /// Destination address; empty when it does not matter.
    pub address: String,
    /// Destination port.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// How it is secured.
    pub tls: Tls,
    /// ALPN; empty for what a client of this protocol offers.
    pub alpn: String,
    /// SNI; empty for the host header, with ordinary TLS.
    pub sni: String,
    /// Host header.
    pub host_header: String,
    /// Path; empty is `/`.
    pub path: String,
    /// How it comes to the proxy.
    pub call_mode: Mode,
    /// Secret by which a chain is known to speak the mesh's mutual TLS; empty is `default`.
    pub mtls_secret_config_name: String,
}

/// Where a call came to. As an expectation, only fields that are there count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Outcome {
    /// Why it went no further.
    pub error: Option<String>,
    /// Listener.
    pub listener: Option<String>,
    /// Filter chain.
    pub filter_chain: Option<String>,
    /// Route configuration, where it is not part of the listener.
    pub route_config: Option<String>,
    /// Virtual host.
    pub virtual_host: Option<String>,
    /// Route.
    pub route: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
    /// As an expectation: fields that are not there must be empty.
    pub strict: bool,
}

impl Outcome {
    /// What contradicts an expectation, a line for each field.
    pub fn contradicts(&self, expected: &Outcome) -> Vec<String> {
        let Outcome { error, listener, filter_chain, route_config, virtual_host, route, cluster, strict } = expected;
        let mut wrong = Vec::new();
        let mut check = |name: &str, want: &Option<String>, got: &Option<String>, always: bool| {
            let nothing = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
            if (want.is_some() || always) && nothing(want) != nothing(got) {
                wrong.push(format!("{name}: want {want:?}, got {got:?}"));
            }
        };
        // An error that nobody stated is one too many.
        check("error", error, &self.error, true);
        check("listener", listener, &self.listener, *strict);
        check("filterChain", filter_chain, &self.filter_chain, *strict);
        check("routeConfig", route_config, &self.route_config, *strict);
        check("virtualHost", virtual_host, &self.virtual_host, *strict);
        check("route", route, &self.route, *strict);
        check("cluster", cluster, &self.cluster, *strict);
        wrong
    }
}

/// What a call must come to.
#[derive(Clone, Debug, Deserialize)]
pub struct Stated {
    /// Its name.
    pub name: String,
    /// The proxy that it comes to.
    pub proxy: String,
    /// The call.
    pub call: Call,
    /// What the test that states it expects.
    expect: Outcome,
    /// What the recorded resources make of it, where that differs.
    wire: Option<Outcome>,
    /// All that came of it in that test.
    got: Option<Outcome>,
}

impl Stated {
    /// Reads `calls.yaml`.
    ///
    /// # Errors
    /// When it is no list of calls.
    pub fn read(file: &Path) -> Result<Vec<Stated>> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_yaml_ng::from_str(&text).with_context(|| format!("{} is no list of calls", file.display()))
    }

    /// The expectation that holds for resources as they are sent.
    pub fn expected(&self) -> &Outcome {
        self.wire.as_ref().unwrap_or(&self.expect)
    }

    /// The whole outcome, of which the expectation may state a part only.
    pub fn in_full(&self) -> &Outcome {
        self.wire.as_ref().or(self.got.as_ref()).unwrap_or(&self.expect)
    }
}

/// What a proxy was sent.
#[derive(Debug, Default)]
pub struct Sent {
    listeners: Vec<Value>,
    routes: Vec<Value>,
}

/// Ends a call early.
type Stop = &'static str;

impl Sent {
    /// Reads `lds.json` and `rds.json` of a folder; one that is absent holds nothing.
    ///
    /// # Errors
    /// When a file is no JSON list.
    pub fn read(folder: &Path) -> Result<Sent> {
        let read = |name: &str| -> Result<Vec<Value>> {
            let file = folder.join(name);
            if !file.is_file() {
                return Ok(Vec::new());
            }
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is no JSON list", file.display()))
        };
        Ok(Sent { listeners: read("lds.json")?, routes: read("rds.json")? })
    }

    /// Follows a call as far as it comes.
    ///
    /// # Errors
    /// When a resource asks for something that is not modelled.
    pub fn call(&self, call: &Call) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if let Some(stop) = self.follow(call.clone(), &mut outcome)? {
            outcome.error = Some(stop.to_owned());
        }
        Ok(outcome)
    }

    fn follow(&self, mut call: Call, outcome: &mut Outcome) -> Result<Option<Stop>> {
        call.fill_defaults();
        let Some(listener) = self.listener(&call) else { return Ok(Some("no listener matched")) };
        outcome.listener = text(listener, "name");

        let seen = chains::Seen::by(listener, &call);
        let chain = match chains::choose(listener, &seen)? {
            Ok(chain) => chain,
            Err(stop) => return Ok(Some(stop)),
        };
        outcome.filter_chain = text(chain, "name");
        let terminates = chain.get("transport_socket").is_some();
        if terminates && call.tls == Tls::Plaintext {
            return Ok(Some("invalid TLS"));
        }
        if terminates && chains::asks_for_mutual_tls(chain, &call) != (call.tls == Tls::Mtls) {
            return Ok(Some("invalid mTLS"));
        }

        let filters = items(chain, "filters").filter_map(|filter| filter.get("typed_config"));
        for filter in filters {
            if type_of(filter).ends_with(".HttpConnectionManager") {
                if (call.tls != Tls::Plaintext && !terminates) || call.protocol == Protocol::Tcp {
                    return Ok(Some("protocol error"));
                }
                return self.request(filter, &call, outcome);
            }
            if type_of(filter).ends_with(".TcpProxy") {
                outcome.cluster = text(filter, "cluster");
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn request(&self, manager: &Value, call: &Call, outcome: &mut Outcome) -> Result<Option<Stop>> {
        let inline = manager.get("route_config");
        let configuration = match inline {
            Some(configuration) => configuration,
            None => {
                let name = field(manager, "/rds/route_config_name").unwrap_or_default();
                outcome.route_config = Some(name.clone());
                let of_name = |routes: &&Value| text(routes, "name").as_ref() == Some(&name);
                self.routes.iter().find(of_name).with_context(|| format!("route configuration {name} was not sent"))?
            }
        };
        let Some(host) = routes::virtual_host(configuration, &call.host_header) else {
            return Ok(Some("no virtual host matched"));
        };
        outcome.virtual_host = text(host, "name");
        if text(host, "require_tls").as_deref() == Some("ALL") && call.tls == Tls::Plaintext {
            return Ok(Some("tls required, sending 301"));
        }
        let Some(route) = routes::route(host, call)? else { return Ok(Some("no route matched")) };
        outcome.route = text(route, "name");
        outcome.cluster = field(route, "/route/cluster");
        Ok(None)
    }

    fn listener(&self, call: &Call) -> Option<&Value> {
        let named = |name: &str| self.listeners.iter().find(|listener| text(listener, "name").as_deref() == Some(name));
        if call.call_mode == Mode::Inbound {
            return named(INBOUND);
        }
        let at = |address: &str| {
            let is_at = |socket: &Value| {
                text(socket, "address").as_deref() == Some(address)
                    && number(socket, "port_value") == Some(call.port.into())
            };
            let has = |listener: &&Value| {
                let first = listener.pointer("/address/socket_address").into_iter();
                let others =
                    items(listener, "additional_addresses").filter_map(|a| a.pointer("/address/socket_address"));
                first.chain(others).any(is_at)
            };
            self.listeners.iter().find(has)
        };
        at(&call.address).or_else(|| at("0.0.0.0")).or_else(|| named(OUTBOUND))
    }
}

impl Call {
    /// What a real client would send where the call does not say.
    fn fill_defaults(&mut self) {
        let or = |field: &mut String, default: &str| {
            if field.is_empty() {
                default.clone_into(field);
            }
        };
        or(&mut self.path, "/");
        or(&mut self.address, SOME_ADDRESS);
        or(&mut self.mtls_secret_config_name, "default");
        // Only TLS carries a server name.
        if !self.sni.is_empty() && self.tls == Tls::Plaintext {
            self.tls = Tls::Tls;
        }
        if self.tls == Tls::Tls {
            let host = self.host_header.clone();
            or(&mut self.sni, &host);
        }
        let alpn = match (self.tls, self.protocol) {
            (Tls::Plaintext, _) | (Tls::Tls, Protocol::Tcp) => "",
            (Tls::Tls, Protocol::Http) => "http/1.1",
            (Tls::Tls, Protocol::Http2) => "h2",
            (Tls::Mtls, Protocol::Tcp) => "istio",
            (Tls::Mtls, Protocol::Http) => "istio-http/1.1",
            (Tls::Mtls, Protocol::Http2) => "istio-h2",
        };
        or(&mut self.alpn, alpn);
    }
}
