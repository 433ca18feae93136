//! TCP and TLS filter chains of a service on an outbound port, by VirtualServices or by default.
//!
//! A route without destinations is skipped (admission refuses it); a match for another port, gateway, namespace or
//! workload is passed over. A second TLS match with equal names and networks can never be reached and makes an
//! information. Routes to a host that is not known are kept, since their cluster may come from the bootstrap.

use trysail_sdk::facts::{self, Protocol, VirtualServiceSummaries, VirtualServiceSummary};
use trysail_sdk::hosts;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    L4MatchAttributes, RouteDestination, TlsMatchAttributes, VirtualService,
};
use trysail_sdk::{Ctx, Failure, Message, Output, Severity};

use crate::chain::Chain;
use crate::network::{self, Target};
use crate::routed::{self, Router};
use crate::{naming, parts};

/// What a listener takes up of a service: part of a listener's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpPart {
    /// Index of the egress listener through which the service is seen.
    pub egress: u32,
    /// The service.
    pub service: String,
    /// Protocol of the listener's port.
    pub protocol: Protocol,
    /// Name of the listener's port.
    pub port_name: String,
    /// Port of the service that is called by default.
    pub default_port: u32,
    /// By default the service is told from others by the name in the ClientHello.
    pub by_name: bool,
    /// The service is a wildcard host whose names are resolved by the proxy.
    pub dynamic: bool,
    /// The address is an endpoint's: nothing for the proxy that has it itself.
    pub endpoint: bool,
    /// Destination networks of the service, if it has no single address.
    pub cidrs: Vec<String>,
}

impl TcpPart {
    /// As an argument.
    pub fn encode(&self) -> String {
        let flag = |set: bool, letter: &'static str| if set { letter } else { "" };
        format!(
            "tcp|{}|{}|{}|{}|{}|{}{}{}|{}",
            self.egress,
            self.service,
            self.protocol as i32,
            self.port_name,
            self.default_port,
            flag(self.by_name, "n"),
            flag(self.dynamic, "d"),
            flag(self.endpoint, "e"),
            self.cidrs.join(",")
        )
    }

    /// From an argument.
    pub fn decode(text: &str) -> Option<Self> {
        let mut fields = text.splitn(8, '|');
        if fields.next()? != "tcp" {
            return None;
        }
        let egress = fields.next()?.parse().ok()?;
        let service = fields.next()?.to_owned();
        let protocol = Protocol::try_from(fields.next()?.parse::<i32>().ok()?).ok()?;
        let port_name = fields.next()?.to_owned();
        let default_port = fields.next()?.parse().ok()?;
        let flags = fields.next()?;
        let cidrs = fields.next()?;
        Some(TcpPart {
            egress,
            service,
            protocol,
            port_name,
            default_port,
            by_name: flags.contains('n'),
            dynamic: flags.contains('d'),
            endpoint: flags.contains('e'),
            cidrs: cidrs.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
        })
    }

    /// Its host.
    pub fn host(&self) -> &str {
        self.service.split_once('/').map_or(self.service.as_str(), |(_, host)| host)
    }
}

/// `listeners/l4-rules` EGRESS, `tls` or `tcp`: VirtualServices seen through an egress listener that have such routes,
/// in istiod's order. Few have, so listeners ask this and not for all VirtualServices, and do not notice when those
/// for HTTP change.
pub fn l4_rules(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let [egress, kind] = args else {
        return Err(Failure::BadArguments("l4-rules takes an egress listener and a kind of routes".into()));
    };
    let visible: Option<VirtualServiceSummaries> = ctx.derived("scope", "virtual-services", &[egress])?;
    let has = |s: &VirtualServiceSummary| if kind == "tls" { s.has_tls } else { s.has_tcp };
    let found: Vec<VirtualServiceSummary> = visible
        .unwrap_or_default()
        .virtual_services
        .into_iter()
        .filter(has)
        .map(|s| VirtualServiceSummary { namespace: s.namespace, name: s.name, hosts: s.hosts, ..Default::default() })
        .collect();
    Ok(if found.is_empty() {
        Output::empty()
    } else {
        Output::value(&VirtualServiceSummaries { virtual_services: found })
    })
}

/// Works out the chains of one part.
pub struct Builder<'a> {
    /// The context.
    pub ctx: &'a Ctx<'a>,
    /// Port of the listener; 0 for a pipe.
    pub port: u32,
    /// The part.
    pub part: &'a TcpPart,
    /// Pattern of statistics of outbound clusters, or empty.
    pub stat_pattern: &'a str,
}

/// A VirtualService with its metadata.
struct Rules {
    object: facts::Object,
    spec: VirtualService,
}

impl Rules {
    fn namespace(&self) -> &str {
        self.object.r#ref.as_ref().map_or("", |r| &r.namespace)
    }

    fn name(&self) -> &str {
        self.object.r#ref.as_ref().map_or("", |r| &r.name)
    }

    fn metadata(&self) -> trysail_sdk::proto::envoy::config::core::v3::Metadata {
        parts::config_metadata(&self.object.api_version, self.namespace(), "virtual-service", self.name())
    }

    fn title(&self) -> String {
        format!("VirtualService {}/{}", self.namespace(), self.name())
    }
}

impl Builder<'_> {
    /// The chains in order. `output` takes diagnostics.
    pub fn chains(&self, output: &mut Output) -> Result<Vec<Chain>, Failure> {
        let tls = matches!(self.part.protocol, Protocol::Https | Protocol::Tls);
        let rules = self.rules(tls)?;
        if tls { self.tls_chains(&rules, output) } else { self.tcp_chains(&rules, output) }
    }

    /// VirtualServices for the host that have routes of this kind, in istiod's order.
    fn rules(&self, tls: bool) -> Result<Vec<Rules>, Failure> {
        let kind = if tls { "tls" } else { "tcp" };
        let visible: Option<VirtualServiceSummaries> =
            self.ctx.derived("listeners", "l4-rules", &[&self.part.egress.to_string(), kind])?;
        let mut found = Vec::new();
        for summary in visible.unwrap_or_default().virtual_services {
            if !summary.hosts.iter().any(|h| hosts::overlap(h, self.part.host())) {
                continue;
            }
            let key = format!("{}/{}", summary.namespace, summary.name);
            if let Some((object, spec)) = self.ctx.object::<VirtualService>("VirtualService", &key)? {
                found.push(Rules { object, spec });
            }
        }
        Ok(found)
    }

    fn tls_chains(&self, all: &[Rules], output: &mut Output) -> Result<Vec<Chain>, Failure> {
        let mut chains = Vec::new();
        let mut cidrs = self.part.cidrs.clone();
        let mut handled: Vec<(&[String], &[String])> = Vec::new();
        for rules in all {
            for (i, tls) in rules.spec.tls.iter().enumerate() {
                if tls.route.is_empty() {
                    continue;
                }
                for (j, m) in tls.r#match.iter().enumerate() {
                    if !self.tls_applies(m) {
                        continue;
                    }
                    // A rule's own networks take the place of the service's, for this and the following matches. A
                    // listener on a pipe knows no destination address.
                    if !m.destination_subnets.is_empty() && self.port > 0 {
                        cidrs = m.destination_subnets.clone();
                    }
                    let key = (m.sni_hosts.as_slice(), m.destination_subnets.as_slice());
                    if handled.contains(&key) {
                        let field = format!("spec.tls[{i}].match[{j}]");
                        output.diagnose(
                            Severity::Info,
                            rules.title(),
                            field,
                            "never reached: an earlier match has the same names",
                        );
                        continue;
                    }
                    handled.push(key);
                    chains.push(Chain {
                        sni: m.sni_hosts.clone(),
                        cidrs: cidrs.clone(),
                        metadata: Some(rules.metadata()),
                        filters: self.routed(&tls.route, rules, &format!("spec.tls[{i}]"), output)?,
                        ..Default::default()
                    });
                }
            }
        }
        if !handled.is_empty() {
            return Ok(chains);
        }
        let sni = if self.part.by_name { self.names()? } else { Vec::new() };
        chains.push(Chain {
            sni,
            cidrs: self.part.cidrs.clone(),
            filters: self.default_filters()?,
            reads_sni: self.part.dynamic,
            ..Default::default()
        });
        Ok(chains)
    }

    fn tcp_chains(&self, all: &[Rules], output: &mut Output) -> Result<Vec<Chain>, Failure> {
        let mut chains = Vec::new();
        let mut default = true;
        'rules: for rules in all {
            for (i, tcp) in rules.spec.tcp.iter().enumerate().filter(|(_, tcp)| !tcp.route.is_empty()) {
                let mut subnets: Vec<String> = Vec::new();
                let mut terminal = tcp.r#match.is_empty();
                for m in tcp.r#match.iter() {
                    if !self.tcp_applies(m) {
                        continue;
                    }
                    if m.destination_subnets.is_empty() || self.port == 0 {
                        terminal = true;
                        break;
                    }
                    subnets.extend(m.destination_subnets.iter().cloned());
                }
                if terminal {
                    // It takes everything, so what follows is never reached.
                    chains.push(Chain {
                        cidrs: self.part.cidrs.clone(),
                        metadata: Some(rules.metadata()),
                        filters: self.routed(&tcp.route, rules, &format!("spec.tcp[{i}]"), output)?,
                        ..Default::default()
                    });
                    default = false;
                    break 'rules;
                }
                if !subnets.is_empty() {
                    subnets.sort();
                    let mut own = self.part.cidrs.clone();
                    own.sort();
                    // Envoy refuses two chains of one match.
                    default &= subnets != own;
                    chains.push(Chain {
                        cidrs: subnets,
                        filters: self.routed(&tcp.route, rules, &format!("spec.tcp[{i}]"), output)?,
                        ..Default::default()
                    });
                }
            }
        }
        if default {
            chains.push(Chain {
                cidrs: self.part.cidrs.clone(),
                filters: self.default_filters()?,
                reads_sni: self.part.dynamic,
                ..Default::default()
            });
        }
        Ok(chains)
    }

    fn tls_applies(&self, m: &TlsMatchAttributes) -> bool {
        self.applies(&m.gateways, m.port, &m.source_namespace) && self.ctx.proxy_labels_match(&m.source_labels)
    }

    fn tcp_applies(&self, m: &L4MatchAttributes) -> bool {
        self.applies(&m.gateways, m.port, &m.source_namespace) && self.ctx.proxy_labels_match(&m.source_labels)
    }

    fn applies(&self, gateways: &[String], port: u32, namespace: &str) -> bool {
        (gateways.is_empty() || gateways.iter().any(|g| g == "mesh"))
            && (port == 0 || port == self.port)
            && (namespace.is_empty() || self.ctx.proxy_in_namespaces(&[namespace]).is_some())
    }

    /// Names of the service in a ClientHello: its host, and what it is called otherwise.
    fn names(&self) -> Result<Vec<String>, Failure> {
        let mut names = vec![self.part.host().to_owned()];
        let aliases = self.ctx.service(&self.part.service)?.map(|s| s.aliases).unwrap_or_default();
        if aliases.is_empty() {
            return Ok(names);
        }
        let domain = self.ctx.proxy("dns-domain").unwrap_or_default();
        let [absolute] = self.ctx.flags(["PILOT_ENABLE_ABSOLUTE_FQDN_VHOST_DOMAIN"])?;
        for alias in aliases {
            let host = alias.split_once('/').map_or(alias.as_str(), |(_, host)| host);
            names.push(host.to_owned());
            names.extend(naming::short_names(host, &domain, absolute));
        }
        Ok(names)
    }

    /// Filters of the chain that no VirtualService made.
    fn default_filters(&self) -> Result<Message, Failure> {
        let cluster = naming::outbound_cluster(self.part.default_port, "", self.part.host());
        let mut stat_prefix = cluster.clone();
        if !self.stat_pattern.is_empty()
            && let Some(service) = self.ctx.service(&self.part.service)?
        {
            stat_prefix =
                naming::stat_prefix(self.stat_pattern, &service, self.part.host(), "", self.part.default_port, "");
        }
        let rule = routed::rule(self.ctx, &self.part.service)?;
        let mut proxy = network::proxy_to(self.ctx, &stat_prefix, &Target::Cluster(cluster.clone()))?;
        network::apply_rule(&mut proxy, rule.as_ref(), "");
        let dynamic_host = if self.part.dynamic { self.part.host() } else { "" };
        self.router().terminal(dynamic_host).append(self.ctx, Message::default(), &proxy, &cluster)
    }

    /// Filters of a chain that a VirtualService made.
    /// Destinations that cannot be reached are diagnosed below `field`.
    fn routed(
        &self,
        routes: &[RouteDestination],
        rules: &Rules,
        field: &str,
        output: &mut Output,
    ) -> Result<Message, Failure> {
        let owner = (rules.namespace(), rules.name());
        self.router().diagnose(routes, owner, field, output)?;
        self.router().filters(Message::default(), routes, owner)
    }

    fn router(&self) -> Router<'_> {
        Router {
            ctx: self.ctx,
            direction: "outbound",
            port: self.port,
            port_name: &self.part.port_name,
            protocol: self.part.protocol,
            service: &self.part.service,
            stat_pattern: self.stat_pattern,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_being_arguments() {
        let part = TcpPart {
            egress: 2,
            service: "shop/*.example.com".into(),
            protocol: Protocol::Tls,
            port_name: "tls".into(),
            default_port: 443,
            by_name: true,
            dynamic: false,
            endpoint: true,
            cidrs: vec!["10.0.0.0/8".into(), "2001:db8::/32".into()],
        };
        assert_eq!(TcpPart::decode(&part.encode()), Some(part));
        assert_eq!(TcpPart::decode("http|x"), None);
    }
}
