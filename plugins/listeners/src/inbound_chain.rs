//! Filter chains of one inbound port. Their filters are calls of their own, as the chains of a port differ in TLS only.
//!
//! Nothing here warns or rejects.

use trysail_sdk::facts::{self, MtlsMode, Protocol};
use trysail_sdk::patching::{Context, Patched, Patching, ROUTE_CONFIGURATIONS, Subject};
use trysail_sdk::proto::envoy::config::listener::v3::FilterChain;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};

use crate::http::{Kind, Manager, Routes};
use crate::inbound::{own_address, peer_policy, sidecar};
use crate::matrix::{self, Row, Security};
use crate::network::{self, Target};
use crate::node::{self, Families};
use crate::parts::{self, CHAIN_FILTERS, CHAIN_TRANSPORT_SOCKET, Port, own};
use crate::{naming, tls, unknown};

/// Where a port comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// A service.
    Service,
    /// A Sidecar's ingress listener.
    Ingress,
    /// Nowhere: what nothing else is for.
    Passthrough,
}

/// An inbound port: the arguments of calls about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// Where it comes from.
    pub kind: ChainKind,
    /// Key of the service, or empty.
    pub service: String,
    /// Port of the workload; 0 for all.
    pub target_port: u32,
    /// Port of the service.
    pub port: u32,
    /// Protocol, after TLS that the listener itself terminates.
    pub protocol: Protocol,
    /// Name of the port.
    pub port_name: String,
    /// Address that it is named after; empty for the workload's own.
    pub bind: String,
}

impl InboundPort {
    /// As arguments.
    pub fn encode(&self) -> [String; 7] {
        let kind = match self.kind {
            ChainKind::Service => "service",
            ChainKind::Ingress => "ingress",
            ChainKind::Passthrough => "passthrough",
        };
        [
            kind.into(),
            self.service.clone(),
            self.target_port.to_string(),
            self.port.to_string(),
            (self.protocol as i32).to_string(),
            self.port_name.clone(),
            self.bind.clone(),
        ]
    }

    fn decode(args: &[String]) -> Result<Self, Failure> {
        let parsed = || {
            let [kind, service, target_port, port, protocol, port_name, bind] = args else { return None };
            Some(InboundPort {
                kind: match kind.as_str() {
                    "service" => ChainKind::Service,
                    "ingress" => ChainKind::Ingress,
                    "passthrough" => ChainKind::Passthrough,
                    _ => return None,
                },
                service: service.clone(),
                target_port: target_port.parse().ok()?,
                port: port.parse().ok()?,
                protocol: Protocol::try_from(protocol.parse::<i32>().ok()?).ok()?,
                port_name: port_name.clone(),
                bind: bind.clone(),
            })
        };
        parsed().ok_or_else(|| Failure::BadArguments(format!("no inbound port: {args:?}")))
    }

    /// What no port is declared for.
    pub fn passthrough(target_port: u32) -> Self {
        InboundPort {
            kind: ChainKind::Passthrough,
            service: String::new(),
            target_port,
            port: 0,
            protocol: Protocol::Unsupported,
            port_name: "virtualInbound".into(),
            bind: String::new(),
        }
    }

    /// Addresses of a listener for the port.
    pub fn binds(&self, ctx: &Ctx<'_>) -> Vec<String> {
        if !self.bind.is_empty() {
            return vec![self.bind.clone()];
        }
        match own_address(ctx) {
            Some(address) => vec![address],
            None => Families::of(ctx).wildcards(),
        }
    }

    fn name(&self, ctx: &Ctx<'_>, http: bool) -> String {
        match (self.kind, http) {
            (ChainKind::Passthrough, true) => "virtualInbound-catchall-http".into(),
            (ChainKind::Passthrough, false) => "virtualInbound".into(),
            _ => format!("{}_{}", self.binds(ctx).first().map_or("", String::as_str), self.target_port),
        }
    }

    fn cluster(&self) -> String {
        if self.kind == ChainKind::Passthrough {
            parts::INBOUND_PASSTHROUGH.into()
        } else {
            naming::inbound_cluster(self.target_port)
        }
    }

    /// As plugins are told of it.
    fn for_plugins(&self) -> Port {
        Port::Inbound(self.port, self.target_port)
    }

    /// The call for the routes of HTTP. Spans through a Sidecar's ports are named after the Sidecar.
    pub fn routes(&self, ctx: &Ctx<'_>) -> Result<CallRef, Failure> {
        let named = match self.kind {
            ChainKind::Ingress => sidecar_name(ctx)?,
            _ => self.service.clone(),
        };
        let numbers = [self.target_port.to_string(), self.port.to_string()];
        let mut args = vec![named.as_str(), &numbers[0], &numbers[1]];
        if self.kind != ChainKind::Passthrough {
            args.push(self.protocol.as_str_name());
        }
        Ok(CallRef::new("routes", "inbound", args).hooked(ROUTE_CONFIGURATIONS))
    }

    /// The call for the filters: they do not depend on which of the passthrough ports it is.
    fn filters(&self, function: &str) -> CallRef {
        let general = InboundPort {
            target_port: if self.kind == ChainKind::Passthrough { 0 } else { self.target_port },
            ..self.clone()
        };
        own(function, general.encode())
    }
}

/// `listeners/inbound-chains` PORT...: the filter chains of a port.
pub fn chains(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let port = InboundPort::decode(args)?;
    let mut output = Output::empty();
    append(ctx, &port, &mut output)?;
    Ok(output)
}

/// `listeners/inbound-passthrough` PORTS...: the chains for what no port is declared for. The ports have an mTLS mode of
/// their own.
pub fn passthrough(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let port = u32::try_from(ctx.mesh_config(&["proxy_inbound_listen_port"])?.proxy_inbound_listen_port).unwrap_or(0);
    let exchange = Message::default()
        .hole(CHAIN_FILTERS, own("metadata-exchange", [""; 0]))
        .hole(CHAIN_FILTERS, parts::stats("inbound"));
    let mut item =
        Item::new("virtualInbound-blackhole", unknown::black_hole("virtualInbound-blackhole", port, exchange));
    item.claims = vec![format!("match:{port};;;;")];
    output.item(item);
    append(ctx, &InboundPort::passthrough(0), &mut output)?;
    for port in args {
        let port = port.parse().map_err(|_| Failure::BadArguments(format!("no port: {port}")))?;
        append(ctx, &InboundPort::passthrough(port), &mut output)?;
    }
    Ok(output)
}

fn append(ctx: &Ctx<'_>, port: &InboundPort, output: &mut Output) -> Result<(), Failure> {
    let mode = matrix::mode(&peer_policy(ctx)?, port.target_port);
    let ingress = if port.kind == ChainKind::Ingress { sidecar(ctx)? } else { None };
    let listener = ingress.as_ref().and_then(|(_, spec)| {
        spec.ingress.iter().find(|l| l.port.as_ref().is_some_and(|p| p.number == port.target_port))
    });
    // TLS settings of the listener would contend with mTLS, so they count only where that is off.
    let mut own_tls = None;
    if let Some(settings) = listener.and_then(|l| l.tls.as_ref())
        && mode == MtlsMode::MtlsDisable
    {
        let [enabled] = ctx.flags(["ENABLE_TLS_ON_SIDECAR_INGRESS"])?;
        own_tls = enabled.then_some(settings);
    }
    let rows = if own_tls.is_some() { matrix::own_tls_rows(port.protocol) } else { matrix::rows(mode, port.protocol) };
    let metadata = ingress
        .as_ref()
        .and_then(|(object, _)| object.r#ref.as_ref())
        .map(|r| parts::config_metadata("networking.istio.io/v1", &r.namespace, "sidecar", &r.name));
    let plaintext = node::plaintext_alpn(ctx)?;
    for row in rows {
        let name = port.name(ctx, row.http);
        let found = matrix::chain_match(row, port.target_port, &plaintext);
        let claim = parts::match_text(&found);
        let mut chain =
            filters(port, row, Message::of(&FilterChain { filter_chain_match: Some(found), ..Default::default() }));
        chain = chain.fields(&FilterChain { metadata: metadata.clone(), ..Default::default() });
        chain = match (row.security, own_tls) {
            (Security::None, _) => chain,
            (Security::OwnTls, Some(settings)) => {
                let socket = parts::tls_socket(&tls::server(ctx, settings, tls::Inside::Http)?);
                chain.field(CHAIN_TRANSPORT_SOCKET, Message::of(&socket))
            }
            _ => chain.hole(CHAIN_TRANSPORT_SOCKET, own("mtls-socket", [if row.http { "http" } else { "tcp" }])),
        };
        let mut item = Item::new(format!("{name} {claim}"), chain.fields(&FilterChain { name, ..Default::default() }));
        item.claims = vec![claim];
        output.item(item);
    }
    Ok(())
}

/// Filters of a chain, all of them shared with the port's other chains.
fn filters(port: &InboundPort, row: &Row, chain: Message) -> Message {
    let chain = chain.hole(CHAIN_FILTERS, own("metadata-exchange", [""; 0]));
    let chain = if row.http { chain } else { chain.hole(CHAIN_FILTERS, parts::stats("inbound")) };
    chain
        .hole(CHAIN_FILTERS, parts::network_filter_hook("inbound", &port.service, port.for_plugins()))
        .hole(CHAIN_FILTERS, port.filters(if row.http { "inbound-http" } else { "inbound-tcp" }))
}

/// `listeners/inbound-http` PORT...: the HTTP connection manager of a port.
pub fn http(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let port = InboundPort::decode(args)?;
    let stat_prefix = if port.kind == ChainKind::Passthrough {
        format!("{};", parts::INBOUND_PASSTHROUGH)
    } else {
        format!("inbound_{};", port.name(ctx, true))
    };
    let mut routes = port.routes(ctx)?;
    if let Some(patching) = Patching::ask(ctx, Patched::Routes, Context::Inbound)?
        && patching.covers(&port.cluster(), port.target_port)
    {
        routes = patching.through(Subject::new(routes));
    }
    let manager = Manager {
        kind: Kind::Inbound,
        stat_prefix,
        routes: Routes::Inline(routes),
        protocol: port.protocol,
        dynamic_host: "",
        service: &port.service,
        port: port.for_plugins(),
        http3: false,
    };
    let mut output = Output::empty();
    output.item(Item::new("http", manager.filter(ctx)));
    Ok(output)
}

/// What stands for a host where ports are a Sidecar's.
fn sidecar_name(ctx: &Ctx<'_>) -> Result<String, Failure> {
    let reference = sidecar(ctx)?.and_then(|(object, _)| object.r#ref).unwrap_or_default();
    Ok(format!("{}.{}", reference.name, reference.namespace))
}

/// `listeners/inbound-tcp` PORT...: the terminal filters of a port.
pub fn tcp(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let port = InboundPort::decode(args)?;
    let cluster = port.cluster();
    let pattern = ctx.mesh_config(&["inbound_cluster_stat_name"])?.inbound_cluster_stat_name;
    let stat_prefix = if pattern.is_empty() { cluster.clone() } else { stat_prefix(ctx, &port, &pattern)? };
    let proxy = network::proxy_to(ctx, &stat_prefix, &Target::Cluster(cluster.clone()))?;
    let mut output = Output::empty();
    for (i, filter) in network::terminal(ctx, port.protocol, &proxy, &cluster)?.into_iter().enumerate() {
        output.item(Item::new(format!("tcp{i}"), filter));
    }
    Ok(output)
}

/// A statistics name from the mesh's pattern for inbound clusters. A Sidecar's ports are named after the Sidecar.
fn stat_prefix(ctx: &Ctx<'_>, port: &InboundPort, pattern: &str) -> Result<String, Failure> {
    let (mut short, mut name, mut host) = (String::new(), String::new(), String::new());
    match port.kind {
        ChainKind::Passthrough => {}
        ChainKind::Ingress => {
            host = sidecar_name(ctx)?;
            (short, name) = (host.clone(), host.clone());
        }
        ChainKind::Service => {
            let service: facts::Service = ctx.service(&port.service)?.unwrap_or_default();
            host = service.host.clone();
            (short, name) = if service.registry == "Kubernetes" {
                (format!("{}.{}", service.name, service.namespace), service.name)
            } else {
                (host.clone(), host.clone())
            };
        }
    }
    Ok(pattern
        .replace("%SERVICE%", &short)
        .replace("%SERVICE_NAME%", &name)
        .replace("%SERVICE_FQDN%", &host)
        .replace("%SUBSET_NAME%", "")
        .replace("%SERVICE_PORT%", &port.port.to_string())
        .replace("%SERVICE_PORT_NAME%", &port.port_name))
}
