//! The assignment of one cluster.

use std::net::IpAddr;

use trysail_policy::traffic::subset_of;
use trysail_policy::{Balancing, ClusterName, MeshBalancing, Policy, is_inference_pool};
use trysail_sdk::facts::{self, Endpoint, Resolution, Service};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use trysail_sdk::proto::istio::networking::v1alpha3::DestinationRule;
use trysail_sdk::proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity};

use crate::assembly::{self, Canonical, Form, Group, Member, TLS_ISTIO, Target};
use crate::locality::{self, Circumstances};
use crate::networks::Gateways;
use crate::peers::PeerModes;
use crate::select::{self, Rules};
use crate::settings::Settings;

/// The cluster of a proxy's own service, which bootstrap configures for zone awareness (`ENABLE_SELF_DISCOVERY`).
const LOCAL_CLUSTER: &str = "local_cluster";

/// The function `cluster`.
pub fn cluster(ctx: &Ctx<'_>, name: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let found = if name == LOCAL_CLUSTER {
        local(ctx)?
    } else {
        match ClusterName::parse(name) {
            Some(parts) => outbound(ctx, name, &parts, &mut output)?,
            None => None,
        }
    };
    // Envoy waits for each name it asked for, so what is unknown is answered by nothing.
    let assignment =
        found.unwrap_or_else(|| ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() });
    output.item(Item::new(name, Message::of(&assignment)));
    Ok(output)
}

fn item(name: &str, assignment: &ClusterLoadAssignment) -> Output {
    let mut output = Output::empty();
    output.item(Item::new(name, Message::of(assignment)));
    output
}

fn outbound(
    ctx: &Ctx<'_>,
    name: &str,
    parts: &ClusterName<'_>,
    output: &mut Output,
) -> Result<Option<ClusterLoadAssignment>, Failure> {
    let Some(subject) = Subject::ask(ctx, parts)? else { return Ok(None) };
    // A DNS cluster has its endpoints inline: Envoy asks here only until it has heard that it became one.
    if subject.is_dns() {
        return Ok(None);
    }
    let endpoints = subject.endpoints(ctx, parts.port)?;
    let labels = subset_of(subject.rule(), parts.subset).map(|subset| &subset.labels);
    let mut usable = select::usable(ctx, &subject.service, &subject.rules(parts), &endpoints)?;
    usable.retain(|endpoint| addressable(endpoint) && labels.is_none_or(|labels| select::in_subset(endpoint, labels)));
    // TCP and UDP may share a number: the first of them counts, as in istiod.
    if let Some(port) = subject.service.ports.iter().find(|port| port.port == parts.port) {
        let pool = is_inference_pool(&subject.service);
        usable.retain(|endpoint| pool || endpoint.port_name == port.name);
    }
    let gateways = Gateways::ask(ctx, false)?;
    let mut groups = gateways.apply(ctx, subject.groups(ctx, parts, usable)?);
    if parts.sni {
        only_mutual_tls(&mut groups);
    }
    if groups.is_empty() {
        // Empty subsets are said with the routes that lead to them: a subset that nothing uses harms nobody.
        if parts.subset.is_empty() && !parts.sni {
            diagnose_empty(&subject.service, parts.port, output);
        }
        return Ok(None);
    }
    let policy = Policy::of_rule(subject.rule.as_ref(), parts.port, parts.subset);
    let balancing = Balancing::of(subject.mesh(), policy.load_balancer, &subject.service);
    let when = Circumstances { outlier_detection: policy.outlier_detection.is_some(), by_labels: true };
    let groups = locality::apply(ctx, balancing, when, groups);
    Ok(Some(assembly::assignment(name, &groups, &subject.form())))
}

/// istiod says nothing of it, and callers get a bare 503.
fn diagnose_empty(service: &Service, port: u32, output: &mut Output) {
    let source = service.source.clone().unwrap_or_default();
    let at = service.ports.iter().position(|p| p.port == port).unwrap_or_default();
    let message =
        format!("no endpoint of {} on port {port} is ready: requests will be answered with 503", service.host);
    let object = format!("{} {}/{}", source.kind, source.namespace, source.name);
    output.diagnose(Severity::Warning, object, format!("spec.ports[{at}]"), message);
}

/// The function `assignment`.
pub fn assignment(ctx: &Ctx<'_>, name: &str) -> Result<Output, Failure> {
    let Some(parts) = ClusterName::parse(name) else {
        return Err(Failure::BadArguments(format!("{name:?} is no outbound cluster")));
    };
    let Some(subject) = Subject::ask(ctx, &parts)? else { return Ok(Output::empty()) };
    let endpoints = subject.endpoints(ctx, parts.port)?;
    let labels = subset_of(subject.rule(), parts.subset).map(|subset| &subset.labels);
    let mut usable = select::usable(ctx, &subject.service, &subject.rules(&parts), &endpoints)?;
    usable.retain(|endpoint| labels.is_none_or(|labels| select::in_subset(endpoint, labels)));
    let gateways = Gateways::ask(ctx, true)?;
    let mut groups = gateways.apply(ctx, subject.groups(ctx, &parts, usable)?);
    if parts.sni {
        only_mutual_tls(&mut groups);
    }
    if groups.is_empty() {
        return Ok(Output::empty());
    }
    let policy = Policy::of_rule(subject.rule.as_ref(), parts.port, parts.subset);
    let policy = policy.over_mesh_default(subject.settings.default_policy.as_ref());
    let balancing = Balancing::of(subject.mesh(), policy.load_balancer, &subject.service);
    // As istiod, which knows the labels behind the inline endpoints of whole services only.
    let when =
        Circumstances { outlier_detection: policy.outlier_detection.is_some(), by_labels: parts.subset.is_empty() };
    let groups = locality::apply(ctx, balancing, when, groups);
    Ok(item(name, &assembly::assignment(name, &groups, &subject.form())))
}

/// Pods of the proxy's own workload in its region.
fn local(ctx: &Ctx<'_>) -> Result<Option<ClusterLoadAssignment>, Failure> {
    let target = ctx.proxy_targets()?.into_iter().next();
    let Some((key, port)) = target.and_then(|t| Some((t.service, t.port?.port))) else { return Ok(None) };
    let Some(service) = ctx.service(&key)? else { return Ok(None) };
    let endpoints = ctx.endpoints(&key, port)?;
    let subject = Subject::with(ctx, key, service, None)?;
    let name = ClusterName { direction: "outbound", port, subset: "", host: &subject.service.host, sni: false };
    let mut usable = select::usable(ctx, &subject.service, &subject.rules(&name), &endpoints)?;
    let workload = ctx.proxy_metadata("WORKLOAD_NAME").unwrap_or_default();
    let region = ctx.proxy("locality").unwrap_or_default().split('/').next().unwrap_or_default().to_owned();
    usable.retain(|e| addressable(e) && e.workload_name == workload);
    // Pods of one ReplicaSet get even shares of traffic, those of a Deployment may not.
    for label in ["pod-template-hash", "rollouts-pod-template-hash"] {
        let own = ctx.proxy(&format!("label:{label}")).unwrap_or_default();
        usable.retain(|e| e.labels.get(label).map_or("", String::as_str) == own);
    }
    usable.retain(|e| e.locality.as_ref().map_or("", |l| l.region.as_str()) == region);
    let gateways = Gateways::ask(ctx, false)?;
    let groups = gateways.apply(ctx, subject.groups(ctx, &name, usable)?);
    Ok((!groups.is_empty()).then(|| assembly::assignment(LOCAL_CLUSTER, &groups, &subject.form())))
}

/// EDS takes addresses only. A path of a socket has no port; an unknown address is that of a gateway to be.
fn addressable(endpoint: &Endpoint) -> bool {
    let address = endpoint.addresses.first().map_or("", String::as_str);
    address.is_empty() || endpoint.port == 0 || address.parse::<IpAddr>().is_ok()
}

/// Gateways with AUTO_PASSTHROUGH cannot tell whether a connection is mutual TLS, so they offer only what takes it.
fn only_mutual_tls(groups: &mut [Group<'_>]) {
    for group in groups {
        group.members.retain(|member| match member.target {
            Target::Workload(endpoint) => member.mtls && endpoint.tls_mode == TLS_ISTIO,
            Target::Gateway(_) => true,
        });
        group.weight = (!group.members.is_empty()).then(|| group.member_weight());
    }
}

/// Everything asked about a service port but its endpoints.
struct Subject {
    key: String,
    service: Service,
    rule: Option<DestinationRule>,
    settings: Settings,
}

/// Says nothing.
static DEFAULT_RULE: DestinationRule = DestinationRule {
    host: String::new(),
    traffic_policy: None,
    subsets: Vec::new(),
    export_to: Vec::new(),
    workload_selector: None,
};

impl Subject {
    fn ask(ctx: &Ctx<'_>, name: &ClusterName<'_>) -> Result<Option<Self>, Failure> {
        let keys = ctx.derived::<facts::Strings>("scope", "service-key", &[name.host])?.unwrap_or_default().values;
        let Some(key) = keys.into_iter().next() else { return Ok(None) };
        let Some(service) = ctx.service(&key)? else { return Ok(None) };
        if !service.ports.iter().any(|port| port.port == name.port) {
            return Ok(None);
        }
        let rule = ctx.derived::<facts::Object>("scope", "destination-rule", &[&key])?;
        let rule = match rule {
            None => None,
            Some(object) => Some(
                DestinationRule::decode(object.spec.as_slice())
                    .map_err(|e| Failure::BadAnswer(format!("destination rule of {key}: {e}")))?,
            ),
        };
        Self::with(ctx, key, service, rule).map(Some)
    }

    fn with(ctx: &Ctx<'_>, key: String, service: Service, rule: Option<DestinationRule>) -> Result<Self, Failure> {
        Ok(Subject { key, service, rule, settings: Settings::ask(ctx)? })
    }

    /// Endpoints of a port; of all ports where the service stands for an inference pool, whose picker chooses among them.
    fn endpoints(&self, ctx: &Ctx<'_>, port: u32) -> Result<Vec<Endpoint>, Failure> {
        if !is_inference_pool(&self.service) {
            return ctx.endpoints(&self.key, port);
        }
        let mut all = Vec::new();
        for port in &self.service.ports {
            all.extend(ctx.endpoints(&self.key, port.port)?);
        }
        Ok(all)
    }

    fn rule(&self) -> &DestinationRule {
        self.rule.as_ref().unwrap_or(&DEFAULT_RULE)
    }

    fn mesh(&self) -> MeshBalancing<'_> {
        MeshBalancing { locality: self.settings.locality.as_ref(), zone_aware: self.settings.zone_aware.as_ref() }
    }

    fn is_dns(&self) -> bool {
        matches!(self.service.resolution(), Resolution::DnsLb | Resolution::DnsRoundRobinLb)
    }

    /// Endpoints that are not ready are sent unless Envoy might use them when few are ready (its panic mode, which
    /// `minHealthPercent` turns on). A traffic distribution needs them always.
    fn rules(&self, name: &ClusterName<'_>) -> Rules {
        let settings = &self.settings;
        let forced = settings.unhealthy_always || !self.service.traffic_distribution.is_empty();
        let panics = || {
            let policy = Policy::of_rule(self.rule.as_ref(), name.port, name.subset);
            policy.outlier_detection.is_some_and(|outlier| outlier.min_health_percent > 0)
        };
        let session = &settings.session_label;
        Rules {
            unhealthy: forced || (settings.unhealthy_by_default && !panics()),
            sessions: !session.is_empty() && self.service.labels.get(session).is_some_and(|value| !value.is_empty()),
            draining_label: settings.draining_label.clone(),
        }
    }

    fn form(&self) -> Form<'_> {
        let settings = &self.settings;
        let label = |key: &str| self.service.labels.get(key).map(String::as_str);
        Form {
            dual_stack: settings.dual_stack,
            telemetry: settings.telemetry,
            canonical: (settings.canonical_external && self.service.mesh_external).then(|| Canonical {
                labels: label("service.istio.io/canonical-name")
                    .map(|name| (name, label("service.istio.io/canonical-revision").unwrap_or_default())),
                namespace: &self.service.namespace,
            }),
            prefer_tunnel: settings.prefer_tunnel,
        }
    }

    /// Groups endpoints by locality, and knows of each whether it takes mutual TLS: the rule decides if it says something,
    /// else the workload's sidecar and its PeerAuthentication.
    fn groups<'e>(
        &self,
        ctx: &Ctx<'_>,
        name: &ClusterName<'_>,
        usable: Vec<&'e Endpoint>,
    ) -> Result<Vec<Group<'e>>, Failure> {
        let rules = self.rules(name);
        let by_rule = tls_mode(self.rule(), name).map(|mode| mode == TlSmode::IstioMutual);
        let mut modes: Vec<(&'e str, PeerModes)> = Vec::new();
        let mut members = Vec::with_capacity(usable.len());
        for endpoint in usable {
            let mtls = match by_rule {
                Some(mtls) => mtls,
                None if endpoint.tls_mode != TLS_ISTIO => false,
                None => {
                    let known = match modes.iter().position(|(namespace, _)| *namespace == endpoint.namespace) {
                        Some(known) => known,
                        None => {
                            let found = ctx.derived("endpoints", "peer-modes", &[&endpoint.namespace])?;
                            modes.push((&endpoint.namespace, found.unwrap_or_default()));
                            modes.len() - 1
                        }
                    };
                    !modes[known].1.off_at(&endpoint.labels, endpoint.port)
                }
            };
            let health = rules.told(endpoint);
            let target = Target::Workload(endpoint);
            members.push((endpoint, Member { target, weight: endpoint.weight.max(1), health, mtls }));
        }
        Ok(assembly::by_locality(members))
    }
}

/// The TLS mode that a rule states for a port and subset, if any. A port's settings without TLS do not hide the others' here,
/// unlike in the cluster.
fn tls_mode(rule: &DestinationRule, name: &ClusterName<'_>) -> Option<TlSmode> {
    let of = |policy: &trysail_sdk::proto::istio::networking::v1alpha3::TrafficPolicy| {
        let for_port = policy.port_level_settings.iter().find_map(|own| {
            let matches = own.port.as_ref().is_some_and(|port| port.number == name.port);
            own.tls.as_ref().filter(|_| matches)
        });
        for_port.or(policy.tls.as_ref()).map(|tls| tls.mode())
    };
    let base = || rule.traffic_policy.as_ref().and_then(of);
    if name.subset.is_empty() {
        return base();
    }
    let subset = subset_of(rule, name.subset)?;
    subset.traffic_policy.as_ref().and_then(of).or_else(base)
}
