//! Inbound listeners: the plan of ports, and the virtual inbound listener or listeners with ports of their own.
//!
//! Ports come from the services that have the workload as endpoint, or from the Sidecar's ingress listeners, which take
//! their place. Of two services on one workload port the older one counts; if their protocols differ that makes a
//! diagnostic. A port that the proxy uses itself, or may not listen on, is left out with a diagnostic.

use std::collections::BTreeMap;

use trysail_sdk::facts::{self, PeerPolicy, Protocol, ServiceTarget};
use trysail_sdk::patching::{Context, Subject};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::core::v3::TrafficDirection;
use trysail_sdk::proto::envoy::config::listener::v3::{
    Listener, ListenerFilter, ListenerFilterChainMatchPredicate as Predicate,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use trysail_sdk::proto::envoy::r#type::v3::Int32Range;
use trysail_sdk::proto::istio::networking::v1alpha3::{CaptureMode, Sidecar};
use trysail_sdk::proto::protocol;
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity};

use crate::inbound_chain::{ChainKind, InboundPort};
use crate::matrix::{self, Alpn, Row};
use crate::node::{self, Families, Interception, StaticPorts};
use crate::outbound::exact_balance;
use crate::parts::{self, LISTENER_FILTER_CHAINS, own};
use crate::{access_log, net};

/// The plan, and what it was made from.
struct Planned {
    ports: Vec<PlannedPort>,
    services: Vec<ServiceTarget>,
    sidecar: Option<(facts::Object, Sidecar)>,
}

/// A port of the plan, and whether it is a listener of its own.
struct PlannedPort {
    port: InboundPort,
    bind_to_port: bool,
    own_tls: bool,
}

impl PlannedPort {
    /// How its chains tell connections apart.
    fn rows(&self, policy: &PeerPolicy) -> &'static [Row] {
        let mode = matrix::mode(policy, self.port.target_port);
        if self.own_tls && mode == facts::MtlsMode::MtlsDisable {
            matrix::own_tls_rows(self.port.protocol)
        } else {
            matrix::rows(mode, self.port.protocol)
        }
    }
}

/// The Sidecar that applies to the proxy.
pub fn sidecar(ctx: &Ctx<'_>) -> Result<Option<(facts::Object, Sidecar)>, Failure> {
    let Some(object) = ctx.derived::<facts::Object>("scope", "sidecar", &[])? else { return Ok(None) };
    let spec =
        Sidecar::decode(object.spec.as_slice()).map_err(|e| Failure::BadAnswer(format!("scope/sidecar: {e}")))?;
    Ok(Some((object, spec)))
}

/// The proxy's own effective PeerAuthentication.
pub fn peer_policy(ctx: &Ctx<'_>) -> Result<PeerPolicy, Failure> {
    Ok(ctx.derived("security", "peer-authentication", &[])?.unwrap_or_default())
}

/// `listeners/inbound`: the virtual inbound listener, which redirected connections come to.
pub fn redirected(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let interception = node::interception(ctx);
    if interception == Interception::None {
        return Ok(output);
    }
    let Planned { sidecar, ports, services, .. } = planned(ctx, interception, &mut output)?;
    let policy = peer_policy(ctx)?;
    let mut inspected: Vec<(u32, &[Row])> = Vec::new();
    let mut chains = Message::default();
    for port in ports.into_iter().filter(|port| !port.bind_to_port) {
        inspected.push((port.port.target_port, port.rows(&policy)));
        chains = chains.hole(LISTENER_FILTER_CHAINS, own("inbound-chains", port.port.encode()));
    }

    // Ports with an mTLS mode of their own that nothing declares pass through in that mode.
    let declared = |port: &u32| match &sidecar {
        Some((_, spec)) if !spec.ingress.is_empty() => {
            spec.ingress.iter().any(|l| l.port.as_ref().is_some_and(|p| p.number == *port))
        }
        _ => services.iter().any(|t| t.target_port == *port),
    };
    let extra: Vec<u32> = policy.ports.keys().copied().filter(|port| !declared(port)).collect();
    let port = u32::try_from(ctx.mesh_config(&["proxy_inbound_listen_port"])?.proxy_inbound_listen_port).unwrap_or(0);
    inspected.push((port, &[]));
    inspected.push((0, matrix::rows(matrix::mode(&policy, 0), Protocol::Unsupported)));
    inspected.extend(extra.iter().map(|p| (*p, matrix::rows(matrix::mode(&policy, *p), Protocol::Unsupported))));

    let mut body =
        Message::default().hole(LISTENER_FILTER_CHAINS, own("inbound-passthrough", extra.iter().map(u32::to_string)));
    body.parts.extend(chains.parts);
    let wildcards = Families::of(ctx).wildcards();
    let filters = inspectors(&inspected);
    let listening = Listening::of(ctx)?;
    let message = listening.listener(ctx, "virtualInbound", &wildcards, port, Some(interception), filters, body)?;
    let mut item = Item::new("virtualInbound", message);
    item.claims = listening.claims(&wildcards, port);
    output.item(item);
    Ok(output)
}

/// `listeners/inbound-bound`: the inbound listeners that have ports of their own.
pub fn bound(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let interception = node::interception(ctx);
    let sidecar = sidecar(ctx)?;
    // Only a Sidecar's. Without interception the application itself listens on the ports of services.
    if sidecar.is_none_or(|(_, spec)| spec.ingress.is_empty()) {
        return Ok(output);
    }
    let Planned { ports, .. } = planned(ctx, interception, &mut output)?;
    if interception != Interception::None {
        // The virtual listener's call has said it all.
        output.diagnostics.clear();
    }
    let policy = peer_policy(ctx)?;
    let listening = Listening::of(ctx)?;
    for port in ports.into_iter().filter(|port| port.bind_to_port) {
        let number = port.port.target_port;
        let binds = port.port.binds(ctx);
        let name = format!("{}_{number}", binds.first().map_or("", String::as_str));
        let body = Message::default().hole(LISTENER_FILTER_CHAINS, own("inbound-chains", port.port.encode()));
        let filters = inspectors(&[(number, port.rows(&policy))]);
        let mut item = Item::new(&name, listening.listener(ctx, &name, &binds, number, None, filters, body)?);
        item.claims = binds.iter().map(|b| format!("address:{b}:{number}")).collect();
        output.item(item);
    }
    Ok(output)
}

/// What both calls start from.
fn planned(ctx: &Ctx<'_>, interception: Interception, output: &mut Output) -> Result<Planned, Failure> {
    let sidecar = sidecar(ctx)?;
    let ingress = sidecar.as_ref().filter(|(_, spec)| !spec.ingress.is_empty());
    let services = ctx.proxy_targets()?;
    let ports = plan(ctx, interception, ingress, &services, output)?;
    Ok(Planned { ports, services, sidecar })
}

/// `listeners/inbound-routes`: the calls for the routes of inbound ports, which patches can touch, for reports.
pub fn routes(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let interception = node::interception(ctx);
    let Planned { ports, sidecar, .. } = planned(ctx, interception, &mut Output::empty())?;
    let has_ingress = sidecar.is_some_and(|(_, spec)| !spec.ingress.is_empty());
    let policy = peer_policy(ctx)?;
    let mut subjects = Vec::new();
    if has_ingress || interception != Interception::None {
        for port in ports.iter().filter(|port| port.rows(&policy).iter().any(|row| row.http)) {
            subjects.push(Subject::new(port.port.routes(ctx)?));
        }
    }
    if interception != Interception::None {
        subjects.push(Subject::new(InboundPort::passthrough(0).routes(ctx)?));
    }
    Ok(Subject::list(Context::Inbound, subjects))
}

/// The ports by number.
fn plan(
    ctx: &Ctx<'_>,
    interception: Interception,
    sidecar: Option<&(facts::Object, Sidecar)>,
    services: &[ServiceTarget],
    output: &mut Output,
) -> Result<Vec<PlannedPort>, Failure> {
    let [merge, ingress_tls] =
        ctx.flags(["PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE", "ENABLE_TLS_ON_SIDECAR_INGRESS"])?;
    let taken = StaticPorts::of(ctx);
    let mesh = ctx.mesh_config(&["proxy_listen_port", "proxy_inbound_listen_port"])?;
    let mesh_ports = [mesh.proxy_listen_port, mesh.proxy_inbound_listen_port].map(|p| u32::try_from(p).unwrap_or(0));
    let wildcard = Families::of(ctx).wildcard();
    let unintercepted = interception == Interception::None;
    let mut ports: BTreeMap<u32, PlannedPort> = BTreeMap::new();

    let own_ports: Vec<u32> = sidecar
        .map(|(_, s)| s.ingress.iter().filter_map(|l| l.port.as_ref()).map(|p| p.number).collect())
        .unwrap_or_default();
    if sidecar.is_none() || merge {
        for target in services {
            let port = target.target_port;
            let declared = target.port.clone().unwrap_or_default();
            let title = format!("Service {}", target.service);
            if own_ports.contains(&port) {
                continue;
            }
            if unintercepted && node::privileged(port) && node::is_true(ctx, "UNPRIVILEGED_POD") {
                output.diagnose(
                    Severity::Warning,
                    title,
                    "",
                    format!("left out: the proxy may not listen on port {port}"),
                );
                continue;
            }
            if taken.has(port) || mesh_ports.contains(&port) {
                output.diagnose(Severity::Warning, title, "", format!("left out: port {port} is the proxy's own"));
                continue;
            }
            if let Some(old) = ports.get(&port) {
                if old.port.protocol != declared.protocol() && old.port.service != target.service {
                    let message =
                        format!("another protocol on workload port {port} than the older {}", old.port.service);
                    output.diagnose(Severity::Warning, title, "", message);
                    output.count_as("inbound-listener-conflict");
                }
                continue;
            }
            let inbound = InboundPort {
                kind: ChainKind::Service,
                service: target.service.clone(),
                target_port: port,
                port: declared.port,
                protocol: declared.protocol(),
                port_name: declared.name,
                bind: wildcard.into(),
            };
            ports.insert(port, PlannedPort { port: inbound, bind_to_port: unintercepted, own_tls: false });
        }
    }
    for (i, listener) in sidecar.iter().flat_map(|(_, s)| s.ingress.iter()).enumerate() {
        let declared = listener.port.clone().unwrap_or_default();
        let bind_to_port = match CaptureMode::try_from(listener.capture_mode) {
            Ok(CaptureMode::None) => true,
            Ok(CaptureMode::Iptables) => false,
            Ok(CaptureMode::Default) | Err(_) => unintercepted,
        };
        let protocol = protocol::parse(&declared.protocol);
        let reference = sidecar.and_then(|(o, _)| o.r#ref.clone()).unwrap_or_default();
        let title = format!("Sidecar {}/{}", reference.namespace, reference.name);
        let field = format!("spec.ingress[{i}].port");
        let on_all = if listener.bind.is_empty() {
            crate::plan::class(protocol) == crate::plan::Class::Http
        } else {
            listener.bind == wildcard
        };
        if bind_to_port && node::privileged(declared.number) && node::is_true(ctx, "UNPRIVILEGED_POD") {
            output.diagnose(
                Severity::Warning,
                title,
                field,
                format!("left out: the proxy may not listen on port {}", declared.number),
            );
            continue;
        }
        if on_all && taken.has(declared.number) {
            output.diagnose(
                Severity::Warning,
                title,
                field,
                format!("left out: port {} is the proxy's own", declared.number),
            );
            continue;
        }
        if ports.contains_key(&declared.number) {
            output.diagnose(
                Severity::Warning,
                title,
                field,
                format!("port {} has a listener already", declared.number),
            );
            continue;
        }
        let own_tls = listener.tls.is_some() && ingress_tls;
        let inbound = InboundPort {
            kind: ChainKind::Ingress,
            service: String::new(),
            target_port: declared.number,
            port: declared.number,
            protocol: if own_tls { matrix::after_tls(protocol) } else { protocol },
            port_name: declared.name,
            bind: listener.bind.clone(),
        };
        ports.insert(declared.number, PlannedPort { port: inbound, bind_to_port, own_tls });
    }
    Ok(ports.into_values().collect())
}

/// What all inbound listeners of a proxy have in common.
struct Listening {
    exact_balance: bool,
    connections_per_event: Option<u32>,
    dual_stack: bool,
    detection_timeout: Option<trysail_sdk::prost_types::Duration>,
}

impl Listening {
    fn of(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        let features = ctx.features(&["MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP", "ISTIO_DUAL_STACK"])?;
        Ok(Listening {
            exact_balance: node::is_true(ctx, "INBOUND_LISTENER_EXACT_BALANCE"),
            connections_per_event: node::connections_per_event(&features[0]),
            dual_stack: features[1] == "true",
            detection_timeout: ctx.mesh_config(&["protocol_detection_timeout"])?.protocol_detection_timeout,
        })
    }

    /// What a listener at these addresses claims.
    fn claims(&self, binds: &[String], port: u32) -> Vec<String> {
        let n = if self.dual_stack { binds.len() } else { 1 };
        binds.iter().take(n).map(|bind| format!("address:{bind}:{port}")).collect()
    }

    /// A listener around its chains; `redirected` says how connections come to it if it is the virtual one.
    #[allow(clippy::too_many_arguments)] // One use each for two kinds of listeners; a struct would only repeat the names.
    fn listener(
        &self,
        ctx: &Ctx<'_>,
        name: &str,
        binds: &[String],
        port: u32,
        redirected: Option<Interception>,
        inspectors: Vec<ListenerFilter>,
        chains: Message,
    ) -> Result<Message, Failure> {
        let bind = binds.first().map_or("", String::as_str);
        let transparent = redirected == Some(Interception::Tproxy);
        let mut filters = Vec::with_capacity(4);
        if redirected.is_some() {
            filters.push(parts::original_destination());
        }
        if transparent {
            filters.push(parts::original_source());
        }
        filters.extend(inspectors);
        let more = if self.dual_stack { binds.get(1..).unwrap_or_default() } else { &[] };
        let base = Listener {
            name: name.into(),
            address: Some(parts::address(bind, port)),
            additional_addresses: parts::additional_addresses(more, port),
            traffic_direction: TrafficDirection::Inbound as i32,
            continue_on_listener_filters_timeout: true,
            max_connections_to_accept_per_socket_event: self.connections_per_event,
            connection_balance_config: self.exact_balance.then(exact_balance),
            transparent: transparent.then_some(true),
            listener_filters: filters,
            listener_filters_timeout: self.detection_timeout,
            access_log: access_log::of_listener(ctx)?,
            ..Default::default()
        };
        let mut message = Message::of(&base);
        message.parts.extend(chains.parts);
        Ok(message)
    }
}

/// The inspectors that chains need, switched off for the ports that do not: waiting for a client's first bytes would
/// break protocols in which the server speaks first.
fn inspectors(chains: &[(u32, &[Row])]) -> Vec<ListenerFilter> {
    let mut needs: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
    for (port, rows) in chains {
        let (tls, http) = needs.entry(*port).or_default();
        *tls |= rows.iter().any(|r| r.transport == "tls");
        *http |= rows.iter().any(|r| r.alpn == Alpn::Plaintext);
    }
    let ports = |wanted: &dyn Fn(u32, bool, bool) -> bool| -> Vec<u32> {
        needs.iter().filter(|(port, (tls, http))| wanted(**port, *tls, *http)).map(|(port, _)| *port).collect()
    };
    let mut filters = Vec::with_capacity(2);
    if needs.values().any(|(tls, _)| *tls) {
        let mut filter = parts::tls_inspector();
        // Port 0 stands for all that is not declared: it decides whether ports are listed that do or that do not.
        filter.filter_disabled = if needs.get(&0).is_some_and(|(tls, _)| *tls) {
            one_of(&ports(&|port, tls, _| port != 0 && !tls))
        } else {
            one_of(&ports(&|port, tls, _| port != 0 && tls))
                .map(|p| Predicate { rule: Some(Rule::NotMatch(Box::new(p))) })
        };
        filters.push(filter);
    }
    if needs.values().any(|(_, http)| *http) {
        let mut filter = parts::http_inspector();
        filter.filter_disabled = one_of(&ports(&|_, _, http| !http));
        filters.push(filter);
    }
    filters
}

/// Matches connections to any of the ports.
fn one_of(ports: &[u32]) -> Option<Predicate> {
    let one = |port: &u32| {
        let start = i32::try_from(*port).unwrap_or(0);
        Predicate { rule: Some(Rule::DestinationPortRange(Int32Range { start, end: start + 1 })) }
    };
    match ports {
        [] => None,
        [port] => Some(one(port)),
        _ => Some(Predicate { rule: Some(Rule::OrMatch(MatchSet { rules: ports.iter().map(one).collect() })) }),
    }
}

/// The proxy's first address that other hosts can reach.
pub fn own_address(ctx: &Ctx<'_>) -> Option<String> {
    let all = ctx.proxy("addresses")?;
    all.split(',').map(str::trim).find(|a| net::is_global_unicast(a)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, items};
    use trysail_sdk::facts::{MtlsMode, Port, ServiceTargets};
    use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;

    fn host(targets: Vec<ServiceTarget>) -> Answers {
        let mesh = MeshConfig { proxy_listen_port: 15001, proxy_inbound_listen_port: 15006, ..Default::default() };
        Answers::default()
            .text("proxy", &["addresses"], "10.0.0.9")
            .text("proxy", &["ip-families"], "ipv4")
            .message("mesh-config", &[], &mesh)
            .message("proxy-targets", &[], &ServiceTargets { targets })
            .message(
                "derived",
                &["security", "peer-authentication"],
                &PeerPolicy { mode: MtlsMode::MtlsPermissive as i32, ..Default::default() },
            )
    }

    fn target(service: &str, port: u32, target_port: u32, protocol: Protocol) -> ServiceTarget {
        let port = Port { port, protocol: protocol as i32, name: "p".into(), ..Default::default() };
        ServiceTarget { service: service.into(), port: Some(port), target_port, endpoint: None }
    }

    fn listeners(host: &Answers) -> Vec<Listener> {
        let ctx = Ctx::new(host);
        let mut output = redirected(&ctx).expect("the virtual listener");
        output.entries.extend(bound(&ctx).expect("listeners").entries);
        items(&ctx, &output).iter().map(|(_, bytes)| Listener::decode(bytes.as_slice()).expect("a listener")).collect()
    }

    #[test]
    fn a_service_port_gets_chains_after_the_passthrough_ones() {
        let got = listeners(&host(vec![target("shop/a", 80, 8080, Protocol::Http)]));
        assert_eq!(got.len(), 1);
        let names: Vec<&str> = got[0].filter_chains.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "virtualInbound-blackhole",
                "virtualInbound-catchall-http",
                "virtualInbound-catchall-http",
                "virtualInbound",
                "virtualInbound",
                "virtualInbound",
                "0.0.0.0_8080",
                "0.0.0.0_8080"
            ]
        );
        // TLS is looked for everywhere but on the listener's own port, HTTP only on undeclared ports.
        assert_eq!(got[0].listener_filters.len(), 3);
    }

    #[test]
    fn the_older_service_counts_and_the_other_is_told() {
        let host = host(vec![target("shop/a", 80, 8080, Protocol::Http), target("shop/b", 90, 8080, Protocol::Tcp)]);
        let output = redirected(&Ctx::new(&host)).expect("listeners");
        assert_eq!(output.diagnostics.len(), 1);
        assert_eq!(output.diagnostics[0].object, "Service shop/b");
    }

    #[test]
    fn nothing_listens_without_interception_and_sidecar() {
        let host = host(vec![target("shop/a", 80, 8080, Protocol::Http)]).text(
            "proxy",
            &["metadata:INTERCEPTION_MODE"],
            "NONE",
        );
        assert!(listeners(&host).is_empty());
    }

    #[test]
    fn inspectors_of_a_listener_of_one_port() {
        let filters = inspectors(&[(8080, matrix::rows(MtlsMode::MtlsPermissive, Protocol::Unsupported))]);
        assert!(matches!(filters[0].filter_disabled.as_ref().and_then(|p| p.rule.as_ref()), Some(Rule::NotMatch(_))));
        assert_eq!(filters[1].filter_disabled, None);
    }
}
