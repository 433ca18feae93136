//! Where a VirtualService's routes lead TCP connections: the same for sidecars and gateways.
//!
//! Routes to a host that is not known are kept, since their cluster may come from the bootstrap. Destinations that cannot be reached are diagnosed; nothing rejects.

use trysail_sdk::destinations::{self, Meant};
use trysail_sdk::facts::{self, Protocol};
use trysail_sdk::hosts;
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use trysail_sdk::proto::istio::networking::v1alpha3::{DestinationRule, RouteDestination};
use trysail_sdk::{Ctx, Failure, Message, Output};

use crate::naming;
use crate::network::{self, Target, Terminal};

/// What routes of a chain depend on.
pub struct Router<'a> {
    /// The context.
    pub ctx: &'a Ctx<'a>,
    /// `outbound` or `gateway`, for plugins and metrics.
    pub direction: &'static str,
    /// Port that a destination without one means, of a service with several.
    pub port: u32,
    /// Its name.
    pub port_name: &'a str,
    /// Its protocol.
    pub protocol: Protocol,
    /// Key of the service that the listener is about, or empty.
    pub service: &'a str,
    /// Pattern of statistics of outbound clusters, or empty.
    pub stat_pattern: &'a str,
}

impl Router<'_> {
    /// Appends the filters of a chain to it. `owner`: namespace and name of the VirtualService.
    pub fn filters(
        &self,
        chain: Message,
        routes: &[RouteDestination],
        owner: (&str, &str),
    ) -> Result<Message, Failure> {
        let (proxy, first_cluster) = self.proxy(routes, owner)?;
        self.terminal("").append(self.ctx, chain, &proxy, &first_cluster)
    }

    /// What ends a chain. `dynamic_host`: wildcard host that is resolved from the ClientHello, or empty.
    pub fn terminal<'t>(&'t self, dynamic_host: &'t str) -> Terminal<'t> {
        Terminal {
            direction: self.direction,
            service: self.service,
            protocol: self.protocol,
            port: self.port,
            dynamic_host,
        }
    }

    /// Says which destinations cannot be reached; their fields are below `field`, that of the routes' rule.
    pub fn diagnose(
        &self,
        routes: &[RouteDestination],
        owner: (&str, &str),
        field: &str,
        output: &mut Output,
    ) -> Result<(), Failure> {
        for (i, route) in routes.iter().enumerate().filter(|(_, route)| routes.len() == 1 || route.weight > 0) {
            let mut destination = route.destination.clone().unwrap_or_default();
            destination.host = self.qualified(&destination.host, owner.0);
            let found = self.service_of(&destination.host)?;
            let (service, key) = found.as_ref().map_or((None, ""), |(service, key)| (Some(service), key.as_str()));
            let rule = if key.is_empty() { None } else { rule(self.ctx, key)? };
            // Without a port of its own, a destination means the only one of its service, or that of the listener.
            let port = match service.map(|service| service.ports.as_slice()) {
                Some([only]) => only.port,
                _ => self.port,
            };
            let meant = Meant { key, service, rule: rule.as_ref() };
            for problem in destinations::problems(self.ctx, &destination, meant, Some(port)) {
                let field = format!("{field}.route[{i}].destination.{}", problem.part);
                output.diagnose(
                    problem.severity,
                    format!("VirtualService {}/{}", owner.0, owner.1),
                    field,
                    problem.message,
                );
            }
        }
        Ok(())
    }

    /// The proxy to the routes' destinations, and the first of their clusters.
    fn proxy(&self, routes: &[RouteDestination], owner: (&str, &str)) -> Result<(TcpProxy, String), Failure> {
        let mut clusters = Vec::new();
        let mut first: Option<(facts::Service, String)> = None;
        for (i, route) in routes.iter().enumerate() {
            let destination = route.destination.clone().unwrap_or_default();
            let host = self.qualified(&destination.host, owner.0);
            let service = self.service_of(&host)?;
            if i == 0 {
                first = service.clone();
            }
            let named = destination.port.as_ref().map(|p| p.number);
            let service = service.as_ref().map(|s| &s.0);
            let name = naming::destination_cluster(&host, &destination.subset, named, service, self.port);
            clusters.push((name, u32::try_from(route.weight).unwrap_or(0), host, destination.subset));
        }
        let rule = match &first {
            Some((_, key)) => rule(self.ctx, key)?,
            None => None,
        };
        if let [(name, _, host, subset)] = clusters.as_slice() {
            let mut stat_prefix = name.clone();
            if !self.stat_pattern.is_empty()
                && let Some((service, _)) = &first
            {
                stat_prefix = naming::stat_prefix(self.stat_pattern, service, host, subset, self.port, self.port_name);
            }
            let mut proxy = network::proxy_to(self.ctx, &stat_prefix, &Target::Cluster(name.clone()))?;
            network::apply_rule(&mut proxy, rule.as_ref(), subset);
            return Ok((proxy, name.clone()));
        }
        let weighted: Vec<(String, u32)> =
            clusters.into_iter().filter(|c| c.1 > 0).map(|(name, weight, ..)| (name, weight)).collect();
        let stat_prefix = format!("{}.{}", owner.1, owner.0);
        let first_cluster = weighted.first().map(|c| c.0.clone()).unwrap_or_default();
        let mut proxy = network::proxy_to(self.ctx, &stat_prefix, &Target::Weighted(weighted))?;
        // Settings of the listener cannot differ by cluster, so those of subsets do not count.
        network::apply_rule(&mut proxy, rule.as_ref(), "");
        Ok((proxy, first_cluster))
    }

    fn qualified(&self, host: &str, namespace: &str) -> String {
        if host.contains('.') || hosts::is_wildcard(host) || host.is_empty() {
            return host.to_owned();
        }
        hosts::qualify(host, namespace, &self.ctx.setting("domain"))
    }

    /// The service that a host means to the proxy, with its key.
    fn service_of(&self, host: &str) -> Result<Option<(facts::Service, String)>, Failure> {
        let own_host = self.service.split_once('/').map_or(self.service, |(_, host)| host);
        let key = if !host.is_empty() && host == own_host {
            self.service.to_owned()
        } else {
            let keys: Option<facts::Strings> = self.ctx.derived("scope", "service-key", &[host])?;
            match keys.and_then(|k| k.values.into_iter().next()) {
                Some(key) => key,
                None => return Ok(None),
            }
        };
        Ok(self.ctx.service(&key)?.map(|service| (service, key)))
    }
}

/// The effective DestinationRule of a service.
pub fn rule(ctx: &Ctx<'_>, key: &str) -> Result<Option<DestinationRule>, Failure> {
    let Some(object) = ctx.derived::<facts::Object>("scope", "destination-rule", &[key])? else { return Ok(None) };
    DestinationRule::decode(object.spec.as_slice())
        .map(Some)
        .map_err(|e| Failure::BadAnswer(format!("scope/destination-rule({key}): {e}")))
}
