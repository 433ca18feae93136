//! Listeners of gateways: the plan, and one call per address, port and transport.
//!
//! ```text
//! gateway (plan) ── gateway-listener ─┬─ plain HTTP chain
//!                                     ├─ gateway-https-chain ── HTTPS and HTTP/3 of one server
//!                                     ├─ gateway-tcp-chain ── TCP, and TLS that ends here
//!                                     ├─ gateway-tls-chain ── one match of a VirtualService on TLS that is passed on
//!                                     └─ gateway-sni-chains ── sni-chains ── AUTO_PASSTHROUGH, one service
//! ```
//!
//! Which servers share a port, and which lose, `scope/merged-gateway` says. Here a port is left out that the proxy may not
//! listen on, and a match of TLS whose names an earlier one has; each with a diagnostic. A server without any route makes
//! no chain, and a listener without any chain is none.

use std::collections::BTreeMap;

use trysail_sdk::facts::{GatewayPort, GatewayServer, MergedGateway, Protocol};
use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::core::v3::{TrafficDirection, UdpSocketConfig, address, socket_address};
use trysail_sdk::proto::envoy::config::listener::v3::{Listener, QuicProtocolOptions, UdpListenerConfig};
use trysail_sdk::proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output, Severity};

use crate::chain::Chain;
use crate::gateway_chain::{self, TlsMatch};
use crate::outbound::exact_balance;
use crate::parts::{self, LISTENER_FILTER_CHAINS, own};
use crate::plan::{Class, class};
use crate::{Planned, access_log, connection, net, node};

/// What carries a listener's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// QUIC, over UDP.
    Quic,
}

impl Transport {
    /// As an argument.
    pub fn text(self) -> &'static str {
        if self == Transport::Quic { "quic" } else { "tcp" }
    }

    /// From an argument.
    pub fn parse(text: &str) -> Option<Self> {
        [Transport::Tcp, Transport::Quic].into_iter().find(|transport| transport.text() == text)
    }
}

/// Addresses of a listener.
struct Addresses {
    /// What it binds to; the first one names it.
    binds: Vec<String>,
    /// How servers write that: as it is, or not at all.
    written: Vec<String>,
}

/// What `listeners/gateway` is made of: one call per listener.
pub fn subjects(ctx: &Ctx<'_>, output: &mut Output) -> Result<Vec<Planned>, Failure> {
    let mut listeners = Vec::new();
    let merged: MergedGateway = ctx.derived("scope", "merged-gateway", &[])?.unwrap_or_default();
    let [dual_stack] = ctx.flags(["ISTIO_DUAL_STACK"])?;
    let mut wildcards = node::Families::of(ctx).wildcards();
    if !dual_stack {
        wildcards.truncate(1);
    }
    let mut unprivileged: Option<bool> = None;
    // By transport, address and port.
    let mut found: BTreeMap<(Transport, String, u32), Addresses> = BTreeMap::new();
    for port in &merged.ports {
        if node::privileged(port.number) && *unprivileged.get_or_insert_with(|| node::is_true(ctx, "UNPRIVILEGED_POD"))
        {
            for server in &port.servers {
                let why = format!("left out: port {} needs privileges that the proxy does not have", port.number);
                output.diagnose(Severity::Error, title(server), field(server, ".port.number"), why);
            }
            continue;
        }
        let binds = if port.bind.is_empty() { wildcards.clone() } else { vec![port.bind.clone()] };
        let first = binds.first().cloned().unwrap_or_default();
        let mut add = |transport| {
            let key = (transport, first.clone(), port.number);
            let addresses = found.entry(key).or_insert_with(|| Addresses { binds: binds.clone(), written: Vec::new() });
            if !addresses.written.contains(&port.bind) {
                addresses.written.push(port.bind.clone());
            }
        };
        add(Transport::Tcp);
        if !port.quic_servers.is_empty() {
            add(Transport::Quic);
        }
    }
    for ((transport, bind, port), Addresses { binds, written }) in found {
        let prefix = if transport == Transport::Quic { "udp_" } else { "" };
        let name = format!("{prefix}{bind}_{port}");
        let args = [name.as_str(), &binds.join(","), &port.to_string(), transport.text(), &written.join(",")];
        listeners.push(Planned { call: own("gateway-listener", args).hooked("listener"), name, port });
    }
    for gateway in &merged.gateways {
        output.include(CallRef::new("scope", "gateway-check", [gateway.as_str()]));
    }
    output.include(CallRef::new("scope", "unknown-gateways", [""; 0]));
    Ok(listeners)
}

/// The Gateway of a server, for people.
pub fn title(server: &GatewayServer) -> String {
    format!("Gateway {}", server.gateway)
}

/// Where it is written.
pub fn field(server: &GatewayServer, part: &str) -> String {
    format!("spec.servers[{}]{part}", server.index)
}

/// Settings that all listeners of a gateway share.
struct Common {
    exact_balance: bool,
    connections_per_event: Option<u32>,
    connect_timeout: Option<Duration>,
    proxy_protocol: bool,
    buffer_limit: Option<u32>,
}

impl Common {
    fn of(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        let features = ctx.features(&["MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP"])?;
        let topology = ctx.proxy_config(&["gateway_topology"])?.gateway_topology.unwrap_or_default();
        Ok(Common {
            exact_balance: node::is_true(ctx, "OUTBOUND_LISTENER_EXACT_BALANCE"),
            connections_per_event: node::connections_per_event(&features[0]),
            connect_timeout: connect_timeout(ctx)?,
            proxy_protocol: topology.proxy_protocol.is_some(),
            buffer_limit: connection::buffer_limit(connection::edge_settings(ctx)?.as_ref()),
        })
    }
}

/// Time that a client has for its TLS handshake; none for as long as it takes.
pub fn connect_timeout(ctx: &Ctx<'_>) -> Result<Option<Duration>, Failure> {
    let features = ctx.features(&["PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT"])?;
    Ok(net::go_duration(&features[0]).filter(|timeout| *timeout != Duration::default()))
}

/// `listeners/gateway-listener` NAME, ADDRESSES, PORT, `tcp` or `quic`, ADDRESSES AS WRITTEN: one listener, or none
/// without a chain.
pub fn listener(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let bad = || Failure::BadArguments(format!("gateway-listener({})", args.join(", ")));
    let [name, binds, port, transport, written] = args else { return Err(bad()) };
    let number: u32 = port.parse().map_err(|_| bad())?;
    let transport = Transport::parse(transport).ok_or_else(bad)?;
    let binds: Vec<String> = binds.split(',').map(str::to_owned).collect();
    let written: Vec<&str> = written.split(',').collect();

    let merged: MergedGateway = ctx.derived("scope", "merged-gateway", &[])?.unwrap_or_default();
    let common = Common::of(ctx)?;
    let mut chains = Chains { ctx, name, transport, common: &common, names: BTreeMap::new(), refs: Vec::new() };
    let mut made = Made::default();
    for port in merged.ports.iter().filter(|p| p.number == number && written.contains(&p.bind.as_str())) {
        chains.port(port, &mut made, &mut output)?;
    }
    if made.chains.is_empty() {
        return Ok(output);
    }
    let base = base(ctx, &common, &binds, number, transport, made.reads_tls)?;
    let mut message = Message::of(&Listener { name: name.clone(), ..base });
    for chain in made.chains {
        message = match chain {
            Part::Inline(chain) => message.field(LISTENER_FILTER_CHAINS, chain),
            Part::Call(call) => message.hole(LISTENER_FILTER_CHAINS, call),
        };
    }
    let mut item = Item::new(name, message);
    let scheme = if transport == Transport::Quic { "udp-address" } else { "address" };
    item.claims = binds.iter().map(|bind| format!("{scheme}:{bind}:{number}")).collect();
    item.refs = chains.refs;
    output.item(item);
    Ok(output)
}

/// The listener without its name and chains.
fn base(
    ctx: &Ctx<'_>,
    common: &Common,
    binds: &[String],
    port: u32,
    transport: Transport,
    reads_tls: bool,
) -> Result<Listener, Failure> {
    let bind = binds.first().map_or("", String::as_str);
    let mut listener = Listener {
        address: Some(parts::address(bind, port)),
        additional_addresses: parts::additional_addresses(binds.get(1..).unwrap_or_default(), port),
        traffic_direction: TrafficDirection::Outbound as i32,
        max_connections_to_accept_per_socket_event: common.connections_per_event,
        per_connection_buffer_limit_bytes: common.buffer_limit,
        access_log: access_log::of_listener(ctx)?,
        ..Default::default()
    };
    if transport == Transport::Quic {
        let further = listener.additional_addresses.iter_mut().filter_map(|further| further.address.as_mut());
        for address in listener.address.iter_mut().chain(further) {
            if let Some(address::Address::SocketAddress(socket)) = &mut address.address {
                socket.set_protocol(socket_address::Protocol::Udp);
            }
        }
        listener.udp_listener_config = Some(UdpListenerConfig {
            quic_options: Some(QuicProtocolOptions::default()),
            downstream_socket_config: Some(UdpSocketConfig::default()),
            ..Default::default()
        });
        return Ok(listener);
    }
    listener.connection_balance_config = common.exact_balance.then(exact_balance);
    if common.proxy_protocol {
        // First of all: what follows reads what the PROXY header is in front of.
        let filter = parts::listener_filter("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default());
        listener.listener_filters.push(filter);
    }
    if reads_tls {
        listener.listener_filters.push(parts::tls_inspector());
    }
    Ok(listener)
}

/// A filter chain of a listener.
enum Part {
    /// As it is.
    Inline(Message),
    /// What a call makes: one or several.
    Call(CallRef),
}

/// Chains made so far.
#[derive(Default)]
struct Made {
    chains: Vec<Part>,
    /// One of them needs what a ClientHello says.
    reads_tls: bool,
}

/// Works out the chains of one listener.
struct Chains<'a> {
    ctx: &'a Ctx<'a>,
    name: &'a str,
    transport: Transport,
    common: &'a Common,
    /// Names in a ClientHello that are taken by TLS that is passed on, and by whom.
    names: BTreeMap<String, String>,
    /// Route configurations.
    refs: Vec<String>,
}

impl Chains<'_> {
    fn port(&mut self, port: &GatewayPort, made: &mut Made, output: &mut Output) -> Result<(), Failure> {
        if self.transport == Transport::Quic {
            port.quic_servers.iter().for_each(|server| self.https(server, made));
            return Ok(());
        }
        if class(port.protocol()) == Class::Http {
            // One chain for all servers: routes tell them apart.
            self.refs.push(format!("rds:{}", port.route_name));
            made.chains.push(Part::Inline(self.plain_http(port)));
            return Ok(());
        }
        for server in &port.servers {
            self.server(server, made, output)?;
        }
        Ok(())
    }

    fn plain_http(&self, port: &GatewayPort) -> Message {
        let manager = gateway_chain::manager(self.name, &port.route_name, port.protocol(), port.number, false);
        Chain { filters: gateway_chain::http_filters(self.ctx, manager, port.number), ..Default::default() }
            .message(self.common.connect_timeout)
    }

    fn server(&mut self, server: &GatewayServer, made: &mut Made, output: &mut Output) -> Result<(), Failure> {
        let mode = TlSmode::try_from(server.tls_mode).ok().filter(|_| server.has_tls);
        match mode {
            Some(TlSmode::AutoPassthrough) => {
                let call = own("gateway-sni-chains", gateway_chain::names_of(&server.hosts));
                if self.exists(&call) {
                    made.reads_tls = true;
                    made.chains.push(Part::Call(call));
                }
            }
            Some(TlSmode::Passthrough) => self.passed_on(server, made, output)?,
            Some(_) if server.protocol() == Protocol::Https => self.https(server, made),
            terminated => {
                let call = own("gateway-tcp-chain", [server.gateway.clone(), server.index.to_string()]);
                if self.exists(&call) {
                    made.reads_tls |= terminated.is_some();
                    made.chains.push(Part::Call(call));
                } else {
                    let why = "serves nothing: no VirtualService that is bound to the Gateway has TCP routes for it";
                    output.diagnose(Severity::Warning, title(server), field(server, ""), why);
                }
            }
        }
        Ok(())
    }

    fn https(&mut self, server: &GatewayServer, made: &mut Made) {
        self.refs.push(format!("rds:{}", server.route_name));
        made.reads_tls = true;
        let index = server.index.to_string();
        let args = [server.gateway.as_str(), &index, self.name, self.transport.text(), &server.route_name];
        made.chains.push(Part::Call(own("gateway-https-chain", args)));
    }

    /// TLS that is passed on by the names that VirtualServices match.
    fn passed_on(&mut self, server: &GatewayServer, made: &mut Made, output: &mut Output) -> Result<(), Failure> {
        for found in gateway_chain::tls_matches(self.ctx, server)? {
            let TlsMatch { rule, tls, at, names } = &found;
            // Envoy refuses two chains of one match.
            if let Some(taken) = names.iter().find(|name| self.names.contains_key(*name)) {
                let why = format!("left out: {} has TLS for {taken} on this port already", self.names[taken]);
                let field = format!("spec.tls[{tls}].match[{at}].sniHosts");
                output.diagnose(Severity::Warning, format!("VirtualService {rule}"), field, why);
                continue;
            }
            let owner = format!("VirtualService {rule}");
            self.names.extend(names.iter().map(|name| (name.clone(), owner.clone())));
            made.reads_tls |= !names.is_empty();
            made.chains.push(Part::Call(own("gateway-tls-chain", found.args(server))));
        }
        Ok(())
    }

    fn exists(&self, call: &CallRef) -> bool {
        let args: Vec<&str> = call.args.iter().map(String::as_str).collect();
        self.ctx.derived_exists(&call.stage, &call.function, &args)
    }
}

#[cfg(test)]
mod tests;
