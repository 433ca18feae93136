//! Destinations of a VirtualService: which cluster one means, and what its service and DestinationRule add to the route.
//!
//! A destination that leads nowhere still has its cluster's name in the route, so that requests to it fail instead of going
//! elsewhere. Missing hosts, ports and subsets are diagnostics; nothing rejects.

use std::collections::BTreeMap;
use std::rc::Rc;

use trysail_sdk::destinations::{self, Meant};
use trysail_sdk::facts::{Object, Service, Strings};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::route::v3::route_action::HashPolicy;
use trysail_sdk::proto::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use trysail_sdk::proto::istio::networking::v1alpha3::{Destination, DestinationRule};
use trysail_sdk::{Ctx, Diagnostic, Failure, Severity, hosts};

use crate::{hash, session};

/// What is known of one destination host, as this proxy sees it.
#[derive(Default)]
pub struct Target {
    /// Key of the service.
    key: String,
    /// None if the proxy sees no service of that host.
    service: Option<Service>,
    rule: Option<DestinationRule>,
    session: Option<StatefulSession>,
}

/// The destination hosts of one call, each asked for once.
pub struct Targets<'c, 'h> {
    ctx: &'c Ctx<'h>,
    /// Port of the listener, 0 for one that serves all.
    port: u32,
    /// At a gateway: namespace of the VirtualService, whose services come before others of the same host.
    gateway_rules: Option<&'c str>,
    /// Services may have sticky sessions; asked with the first destination.
    sessions: Option<bool>,
    known: BTreeMap<String, Rc<Target>>,
}

impl<'c, 'h> Targets<'c, 'h> {
    /// For routes of a listener port (0: all ports).
    pub fn new(ctx: &'c Ctx<'h>, port: u32) -> Self {
        Targets { ctx, port, gateway_rules: None, sessions: None, known: BTreeMap::new() }
    }

    /// For routes of a gateway's port, by a VirtualService of a namespace.
    pub fn of_gateway(ctx: &'c Ctx<'h>, port: u32, namespace: &'c str) -> Self {
        Targets { gateway_rules: Some(namespace), ..Targets::new(ctx, port) }
    }

    /// What is known of a host.
    pub fn get(&mut self, host: &str) -> Result<Rc<Target>, Failure> {
        if let Some(target) = self.known.get(host) {
            return Ok(target.clone());
        }
        let target = Rc::new(self.ask(host)?);
        self.known.insert(host.to_owned(), target.clone());
        Ok(target)
    }

    fn ask(&mut self, host: &str) -> Result<Target, Failure> {
        let keys: Strings = self.ctx.derived("scope", "service-key", &[host])?.unwrap_or_default();
        let Some(key) = keys.values.first() else { return Ok(Target::default()) };
        let rule = destination_rule(self.ctx, key)?;
        let service = match self.gateway_rules {
            Some(namespace) => seen_from(self.ctx, host, namespace, key)?,
            None => self.ctx.service(key)?,
        };
        let sessions = match self.sessions {
            Some(sessions) => sessions,
            None => *self.sessions.insert(session::enabled(self.ctx)?),
        };
        let session = match service.as_ref().filter(|s| sessions && self.serves(s)) {
            Some(service) => session::of_service(self.ctx, service)?,
            None => None,
        };
        Ok(Target { key: key.clone(), service, rule, session })
    }

    /// Name of the cluster that a destination means on this port.
    pub fn cluster(&mut self, destination: &Destination) -> Result<String, Failure> {
        if destination.host.is_empty() {
            // Left by a reference that could not be resolved.
            return Ok("UnknownService".to_owned());
        }
        let target = self.get(&destination.host)?;
        let service = target.service.as_ref().filter(|s| self.serves(s));
        // An alias has no cluster; what it stands for has.
        let host =
            service.map(|s| s.external_name.as_str()).filter(|name| !name.is_empty()).unwrap_or(&destination.host);
        let port = match (&destination.port, service) {
            (Some(port), _) => port.number,
            // Of a listener that serves one port of the mesh only services with that port are known here.
            (None, Some(service)) if self.alone() && service.ports.len() == 1 => service.ports[0].port,
            (None, _) => self.port,
        };
        Ok(format!("outbound|{port}|{}|{host}", destination.subset))
    }

    /// Hash policy of a destination, and whether its requests are pinned by a hash (even one that names nothing).
    pub fn hash(&mut self, destination: &Destination) -> Result<(Option<HashPolicy>, bool), Failure> {
        let target = self.get(&destination.host)?;
        let found = target.rule.as_ref().and_then(|rule| hash::for_destination(rule, destination));
        Ok((found.and_then(hash::policy), found.is_some()))
    }

    /// Sticky sessions of a destination's service.
    pub fn session(&mut self, host: &str) -> Result<Option<StatefulSession>, Failure> {
        Ok(self.get(host)?.session.clone())
    }

    /// Does the listener's port concern the service? Of others nothing is known to routes, except at a gateway.
    fn serves(&self, service: &Service) -> bool {
        self.alone() || service.ports.iter().any(|p| p.port == self.port)
    }

    /// Do routes lead to whatever port, not to those of the listener's number?
    fn alone(&self) -> bool {
        self.port == 0 || self.gateway_rules.is_some()
    }

    /// What is wrong with a destination. `own_hosts` are those of the VirtualService: on a port that these do not have the
    /// routes are never used, so a destination may lack it, too.
    pub fn diagnose(
        &mut self,
        destination: &Destination,
        object: &str,
        field: &str,
        own_hosts: &[String],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Result<(), Failure> {
        let mut report = |severity, part: &str, message: String| {
            let field = if part.is_empty() { field.to_owned() } else { format!("{field}.{part}") };
            diagnostics.push(Diagnostic { severity, object: object.to_owned(), field, message, code: String::new() });
        };
        let target = self.get(&destination.host)?;
        let only_port = match &target.service {
            Some(service) if self.alone() => {
                if let [only] = service.ports.as_slice() {
                    Some(only.port)
                } else {
                    None
                }
            }
            _ => None,
        };
        let port = only_port.or((self.port != 0).then_some(self.port));
        let meant = Meant { key: &target.key, service: target.service.as_ref(), rule: target.rule.as_ref() };
        for problem in destinations::problems(self.ctx, destination, meant, port) {
            report(problem.severity, problem.part, problem.message);
        }
        if let Some(service) = &target.service
            && destination.port.is_none()
            && self.port != 0
            && only_port.is_none()
            && !service.ports.iter().any(|p| p.port == self.port)
            && !own_hosts.iter().any(|host| hosts::overlap(host, &destination.host))
        {
            let message = format!("names no port, and service {} has no port {}", destination.host, self.port);
            report(Severity::Warning, "", message);
        }
        Ok(())
    }
}

/// The service that a host means to a VirtualService at a gateway: the one of its own namespace if the proxy sees that, else
/// the one that the host means to the proxy (`key`).
pub fn seen_from(ctx: &Ctx<'_>, host: &str, namespace: &str, key: &str) -> Result<Option<Service>, Failure> {
    let own = format!("{namespace}/{host}");
    if own != key
        && let Some(service) = ctx.service(&own)?
    {
        let named = || service.export_to.iter().map(|to| if to == "." { namespace } else { to.as_str() });
        let viewers: Vec<&str> = named().filter(|to| *to != "~").collect();
        if viewers.contains(&"*") || ctx.proxy_in_namespaces(&viewers).is_some() {
            return Ok(Some(service));
        }
    }
    ctx.service(key)
}

/// The effective DestinationRule of a service for this proxy.
pub fn destination_rule(ctx: &Ctx<'_>, service_key: &str) -> Result<Option<DestinationRule>, Failure> {
    let Some(object) = ctx.derived::<Object>("scope", "destination-rule", &[service_key])? else { return Ok(None) };
    let rule = DestinationRule::decode(object.spec.as_slice());
    rule.map(Some).map_err(|e| Failure::BadAnswer(format!("DestinationRule of {service_key}: {e}")))
}
