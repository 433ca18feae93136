//! Inbound clusters: from the proxy to its own workload, one for each port.
//!
//! A Sidecar's ingress listeners replace the ports that services have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use trysail_policy::{Policy, name};
use trysail_sdk::facts::{self, Port, Protocol, Service};
use trysail_sdk::patching::Subject;
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{DiscoveryType, LbPolicy};
use trysail_sdk::proto::envoy::config::core::v3::{BindConfig, ExtraSourceAddress};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    ConnectionPoolSettings, DestinationRule, IstioIngressListener, Sidecar,
};
use trysail_sdk::{CallRef, Ctx, Failure, Item, Output, Severity};

use crate::draft::Draft;
use crate::outbound::{rule_path, service_metadata, stat_name};
use crate::settings::{ProxyTraits, Settings};
use crate::{pool, wire};

const LOCALHOST: &str = "127.0.0.1";
const LOCALHOST_V6: &str = "::1";
/// Source addresses that the proxy's redirection lets pass, so that its own connections do not come back to it.
pub const SOURCE: &str = "127.0.0.6";
/// The same for IPv6.
pub const SOURCE_V6: &str = "::6";
/// The longest duration that Go knows: hosts of ORIGINAL_DST clusters inbound are never forgotten.
const FOREVER: i64 = 9_223_372_035;

/// What `inbound` is made of: the clusters of the ports of services, and those of the Sidecar's ingress listeners.
pub fn subjects(ctx: &Ctx<'_>) -> Result<Vec<(Subject, String)>, Failure> {
    let mut found = Vec::new();
    let mut add = |call: CallRef, hosts| found.push((Subject { call, hosts }, String::new()));
    let sidecar = sidecar(ctx)?;
    let ingress = sidecar.as_ref().map(|(_, spec)| spec.ingress.as_slice()).unwrap_or_default();
    if ingress.is_empty() {
        // Without redirection a listener on a service's port would take it from the workload itself.
        if ctx.proxy_metadata("INTERCEPTION_MODE").as_deref() == Some("NONE") {
            return Ok(found);
        }
    }
    let targets = ctx.proxy_targets()?;
    let host = |target: &facts::ServiceTarget| Some(target.service.split_once('/')?.1.to_owned());
    if ingress.is_empty() || Settings::ask(ctx)?.merge_ingress {
        let mut ports: BTreeMap<u32, Vec<&facts::ServiceTarget>> = BTreeMap::new();
        for target in &targets {
            ports.entry(target.target_port).or_default().push(target);
        }
        ports.retain(|port, _| ingress.iter().all(|listener| number(listener) != *port));
        for (port, targets) in ports {
            let mut args = vec![port.to_string()];
            args.extend(
                targets.iter().filter_map(|t| Some((t, t.port.as_ref()?))).map(|(t, port)| target_arg(t, port)),
            );
            let hosts = targets.into_iter().filter_map(host).collect();
            add(CallRef::new("clusters", "inbound-port", args).hooked("inbound-clusters"), hosts);
        }
    }
    for (i, listener) in ingress.iter().enumerate() {
        let first = ingress[..i].iter().all(|before| number(before) != number(listener));
        if first {
            let service = targets.iter().find(|target| target.target_port == number(listener)).and_then(host);
            let named = || sidecar.as_ref().map(|(object, _)| format!("{}.{}", object.name, object.namespace));
            let hosts = service.or_else(named).into_iter().collect();
            add(CallRef::new("clusters", "inbound-ingress", [i.to_string()]), hosts);
        }
    }
    Ok(found)
}

/// The function `inbound-ingress`.
pub fn ingress(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let index: usize = args
        .first()
        .and_then(|index| index.parse().ok())
        .ok_or_else(|| Failure::BadArguments("clusters/inbound-ingress needs an index".into()))?;
    let mut output = Output::empty();
    if let Some((object, spec)) = sidecar(ctx)?
        && let Some(listener) = spec.ingress.get(index)
    {
        from_ingress(ctx, &object, &spec, listener, index, &ctx.proxy_targets()?, &mut output)?;
    }
    Ok(output)
}

/// The Sidecar that applies to the proxy.
fn sidecar(ctx: &Ctx<'_>) -> Result<Option<(facts::ObjectRef, Sidecar)>, Failure> {
    let Some(object) = ctx.derived::<facts::Object>("scope", "sidecar", &[])? else { return Ok(None) };
    let spec = Sidecar::decode(object.spec.as_slice()).map_err(|e| Failure::BadAnswer(format!("sidecar: {e}")))?;
    Ok(Some((object.r#ref.unwrap_or_default(), spec)))
}

fn number(listener: &IstioIngressListener) -> u32 {
    listener.port.as_ref().map_or(0, |port| port.number)
}

/// A service port as an argument.
fn target_arg(target: &facts::ServiceTarget, port: &Port) -> String {
    format!("{}|{}|{}", target.service, port.port, port.name)
}

/// The function `inbound-port`.
pub fn port(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let bad = || Failure::BadArguments("clusters/inbound-port needs a port and targets".into());
    let (port, targets) = args.split_first().ok_or_else(bad)?;
    let port: u32 = port.parse().map_err(|_| bad())?;
    let mut services = Vec::with_capacity(targets.len());
    for target in targets {
        let [key, number, name] = target.split('|').collect::<Vec<_>>()[..] else { return Err(bad()) };
        let number: u32 = number.parse().map_err(|_| bad())?;
        if let Some(service) = ctx.service(key)? {
            // TCP and UDP may share a number, never a name.
            let declared = service.ports.iter().find(|p| p.port == number && p.name == name).cloned();
            services.extend(declared.map(|declared| (key, service, declared)));
        }
    }
    let mut output = Output::empty();
    let Some((key, first, declared)) = services.first() else { return Ok(output) };
    let settings = Settings::ask(ctx)?;
    let bind = match settings.inbound_localhost {
        true if ctx.proxy("ip-families").as_deref() == Some("ipv6") => LOCALHOST_V6,
        true => LOCALHOST,
        false => "",
    };
    let listed: Vec<(&Service, u32)> = services.iter().map(|(_, service, port)| (service, port.port)).collect();
    let sidecar = sidecar(ctx)?;
    let inbound = Inbound {
        ctx,
        settings: &settings,
        key: Some(key),
        service: first,
        listed: &listed,
        declared,
        port,
        bind,
        bind_port: port,
        pool: sidecar.as_ref().and_then(|(_, spec)| own_pool(spec, port)),
    };
    inbound.emit(&mut output)?;
    Ok(output)
}

/// The pool that a Sidecar states for a port. Goes before those of rules, which are about services and not workloads.
fn own_pool(spec: &Sidecar, port: u32) -> Option<&ConnectionPoolSettings> {
    let own = spec.ingress.iter().filter(|listener| number(listener) == port).find_map(|l| l.connection_pool.as_ref());
    own.or(spec.inbound_connection_pool.as_ref())
}

/// The cluster of a Sidecar's ingress listener.
fn from_ingress(
    ctx: &Ctx<'_>,
    object: &facts::ObjectRef,
    spec: &Sidecar,
    listener: &IstioIngressListener,
    index: usize,
    targets: &[facts::ServiceTarget],
    output: &mut Output,
) -> Result<(), Failure> {
    let Some((bind, bind_port)) = default_endpoint(ctx, &listener.default_endpoint) else {
        output.diagnose(
            Severity::Error,
            format!("Sidecar {}/{}", object.namespace, object.name),
            format!("spec.ingress[{index}].defaultEndpoint"),
            "is no address with a port",
        );
        return Ok(());
    };
    let port = number(listener);
    let declared = Port {
        name: listener.port.as_ref().map_or_else(String::new, |port| port.name.clone()),
        port,
        protocol: protocol(listener.port.as_ref().map_or("", |port| &port.protocol)).into(),
        ..Default::default()
    };
    let target = targets.iter().find(|target| target.target_port == port);
    let mut known = None;
    if let Some(target) = target {
        known = ctx.service(&target.service)?;
    }
    // A name for statistics where no service has the port. It is external so that it appears in no metadata.
    let stand_in = || Service {
        host: format!("{}.{}", object.name, object.namespace),
        name: object.name.clone(),
        namespace: object.namespace.clone(),
        mesh_external: true,
        ..Default::default()
    };
    let service = known.unwrap_or_else(stand_in);
    let settings = Settings::ask(ctx)?;
    let inbound = Inbound {
        ctx,
        settings: &settings,
        key: target.map(|target| target.service.as_str()),
        service: &service,
        listed: &[(&service, port)],
        declared: &declared,
        port,
        bind: &bind,
        bind_port,
        pool: own_pool(spec, port),
    };
    inbound.emit(output)
}

/// Where an ingress listener sends: empty for the original destination, a socket's path, or an address with a port. The
/// wildcard addresses stand for the workload's own, the loopback ones for what the workload has of them. None if it is none.
fn default_endpoint(ctx: &Ctx<'_>, text: &str) -> Option<(String, u32)> {
    if text.is_empty() || text.starts_with("unix://") {
        return Some((text.to_owned(), 0));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u32 = port.parse().ok()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let own = |is_wanted: fn(&IpAddr) -> bool, fallback: &str| {
        let addresses = ctx.proxy("addresses").unwrap_or_default();
        let mut matching = addresses.split(',').filter(|address| address.parse().is_ok_and(|ip| is_wanted(&ip)));
        matching.next().unwrap_or(fallback).to_owned()
    };
    let loopback = |wanted: &str, families: [&str; 2], other: &str| {
        let own = ctx.proxy("ip-families").unwrap_or_default();
        if families.contains(&own.as_str()) { wanted.to_owned() } else { other.to_owned() }
    };
    let address = match host {
        "0.0.0.0" => own(IpAddr::is_ipv4, LOCALHOST),
        "::" => own(IpAddr::is_ipv6, LOCALHOST_V6),
        LOCALHOST => loopback(LOCALHOST, ["ipv4", "dual"], LOCALHOST_V6),
        LOCALHOST_V6 => loopback(LOCALHOST_V6, ["ipv6", "dual"], LOCALHOST),
        // Another address is not taken: traffic goes where it came to.
        _ => String::new(),
    };
    Some((address, port))
}

/// A protocol as a Sidecar's port names it.
fn protocol(name: &str) -> Protocol {
    match name.to_ascii_lowercase().as_str() {
        "hbone" => Protocol::Hbone,
        "double-hbone" => Protocol::DoubleHbone,
        _ => trysail_sdk::proto::protocol::parse(name),
    }
}

/// What one inbound cluster is made from.
struct Inbound<'i> {
    ctx: &'i Ctx<'i>,
    settings: &'i Settings,
    /// Key of the service whose rule gives limits; none if no service has the port.
    key: Option<&'i str>,
    /// The service that names the cluster in statistics.
    service: &'i Service,
    /// All services of the port, with the number it has there.
    listed: &'i [(&'i Service, u32)],
    /// The port as the service, or the Sidecar, declares it.
    declared: &'i Port,
    /// Port of the workload.
    port: u32,
    /// Where it sends; empty: where it came to.
    bind: &'i str,
    bind_port: u32,
    /// Limits of the Sidecar.
    pool: Option<&'i ConnectionPoolSettings>,
}

impl Inbound<'_> {
    fn emit(&self, output: &mut Output) -> Result<(), Failure> {
        let settings = self.settings;
        let kind = if self.bind.is_empty() { DiscoveryType::OriginalDst } else { DiscoveryType::Static };
        let mut draft = Draft::new(name::inbound(self.port), kind);
        if !settings.inbound_stat_name.is_empty() {
            let pattern = &settings.inbound_stat_name;
            draft.cluster.alt_stat_name = stat_name(pattern, self.service, self.declared, "", self.port);
        }
        let preserve_case = ProxyTraits::ask(self.ctx)?.preserve_case;
        draft.protocol(self.declared, preserve_case, || true);
        if settings.telemetry && !self.service.mesh_external {
            self.services(&mut draft);
        }
        if kind == DiscoveryType::OriginalDst {
            draft.cluster.cleanup_interval = Some(wire::seconds(FOREVER));
            draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
        } else {
            let address = wire::socket(self.bind, self.bind_port);
            draft.cluster.load_assignment = Some(wire::single(&draft.cluster.name, address));
        }
        self.limits(&mut draft)?;
        if self.bind != LOCALHOST && self.bind != LOCALHOST_V6 {
            draft.cluster.upstream_bind_config = Some(source(self.ctx, settings.dual_stack));
        }
        let name = draft.cluster.name.clone();
        output.item(Item::new(name, draft.build()));
        Ok(())
    }

    /// Services whose port it is, each host once.
    fn services(&self, draft: &mut Draft) {
        let mut hosts: Vec<&str> = Vec::with_capacity(self.listed.len());
        let mut list = Vec::with_capacity(self.listed.len());
        for (service, port) in self.listed {
            if *port == self.declared.port && !hosts.contains(&service.host.as_str()) {
                hosts.push(&service.host);
                list.push(service_metadata(service));
            }
        }
        draft.metadata.insert("services", wire::value::list(list.iter().map(Vec::as_slice)));
    }

    /// Limits hold on both sides, so that the server takes what clients may send.
    fn limits(&self, draft: &mut Draft) -> Result<(), Failure> {
        let found = match self.key {
            Some(key) => self.ctx.derived::<facts::Object>("scope", "destination-rule", &[key, "inbound"])?,
            None => None,
        };
        let mut rule = DestinationRule::default();
        if let Some(object) = found {
            rule = DestinationRule::decode(object.spec.as_slice())
                .map_err(|e| Failure::BadAnswer(format!("destination rule of {}: {e}", self.service.host)))?;
            if rule.traffic_policy.is_some() && !draft.metadata.is_empty() {
                let path = rule_path(&object.api_version, &object.r#ref.unwrap_or_default());
                draft.metadata.insert("config", wire::value::text(&path));
            }
        }
        let (policy, _) = Policy::for_port(rule.traffic_policy.as_ref(), self.declared.port);
        let policy = policy.over_mesh_default(self.settings.default_policy.as_ref());
        let limits = self.pool.or(policy.connection_pool);
        pool::apply(self.settings, &mut draft.cluster, &mut draft.http, limits, policy.retry_budget);
        Ok(())
    }
}

/// Source addresses of connections to the workload.
fn source(ctx: &Ctx<'_>, dual_stack: bool) -> BindConfig {
    let families = ctx.proxy("ip-families").unwrap_or_default();
    let first = if matches!(families.as_str(), "ipv4" | "dual") { SOURCE } else { SOURCE_V6 };
    let mut config = BindConfig { source_address: Some(wire::source(first, 0)), ..Default::default() };
    if families == "dual" && dual_stack {
        config.extra_source_addresses.push(extra_source());
    }
    config
}

/// The other family's source address.
pub fn extra_source() -> ExtraSourceAddress {
    ExtraSourceAddress { address: Some(wire::source(SOURCE_V6, 0)), ..Default::default() }
}
