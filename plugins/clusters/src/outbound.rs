//! Outbound clusters: one for each port of a service, and one for each subset of its rule.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use trysail_policy::traffic::simple;
use trysail_policy::{Policy, Ports, is_inference_pool, name};
use trysail_sdk::facts::{self, MtlsMode, Port, Protocol, Resolution, Service};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy, OriginalDstLbConfig,
};
use trysail_sdk::proto::envoy::config::core::v3::{HealthStatus, HealthStatusSet};
use trysail_sdk::proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use trysail_sdk::proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::load_balancer_settings::SimpleLb;
use trysail_sdk::proto::istio::networking::v1alpha3::{DestinationRule, Subset, TrafficPolicy};
use trysail_sdk::{CallRef, Ctx, Failure, Item, Output, Severity, patching};

use crate::draft::{self, Draft};
use crate::settings::{ProxyTraits, Settings};
use crate::tls::{self, Situation};
use crate::{balance, dynamic, inference, pool, wire};

/// Field of a cluster that holds its inline endpoints.
const LOAD_ASSIGNMENT: u32 = 33;
/// Annotation of a ServiceEntry: try all addresses of a name at once, take the first that answers.
const ANNOTATION_CONNECT: &str = "istio.io/connect-strategy";
const CONNECT_RACE: &str = "RACE_FIRST_TCP_CONNECT";

/// What `outbound` is made of: clusters of every service in the proxy's scope.
pub fn subjects(ctx: &Ctx<'_>) -> Result<Vec<(patching::Subject, String)>, Failure> {
    let scope: facts::ServiceSummaries = ctx.derived("scope", "services", &["all"])?.unwrap_or_default();
    // A Sidecar may import some ports of a service only.
    let trims =
        ctx.derived::<facts::EgressListeners>("scope", "egress", &[])?.is_some_and(|egress| egress.from_sidecar);
    let needed = needed_at_gateway(ctx)?;
    let mut found = Vec::with_capacity(scope.services.len());
    for summary in scope.services.iter().filter(|summary| summary.resolution() != Resolution::Alias) {
        let key = format!("{}/{}", summary.namespace, summary.host);
        if needed.as_ref().is_some_and(|hosts| !hosts.contains(&summary.host) && !hosts.contains(&key)) {
            continue;
        }
        let mut args = vec![key];
        if trims && ctx.service(&args[0])?.is_some_and(|service| service.ports.len() != summary.ports.len()) {
            args.push(summary.ports.iter().map(|port| port.port.to_string()).collect::<Vec<_>>().join(","));
        }
        let call = CallRef::new("clusters", "service", args).hooked("clusters");
        found.push((patching::Subject::new(call), summary.host.clone()));
    }
    Ok(found)
}

/// Hosts, or `namespace/host`, that a gateway needs clusters for, if it is to have no others.
fn needed_at_gateway(ctx: &Ctx<'_>) -> Result<Option<BTreeSet<String>>, Failure> {
    let [filters] = ctx.flags(["PILOT_FILTER_GATEWAY_CLUSTER_CONFIG"])?;
    if !filters || ctx.proxy("type").as_deref() != Some("router") {
        return Ok(None);
    }
    let hosts: facts::Strings = ctx.derived("scope", "gateway-hosts", &[])?.unwrap_or_default();
    Ok(Some(hosts.values.into_iter().collect()))
}

/// What `sni` is made of: clusters behind AUTO_PASSTHROUGH, of every service of the mesh in the proxy's scope.
pub fn sni_subjects(ctx: &Ctx<'_>) -> Result<Vec<(patching::Subject, String)>, Failure> {
    let mut found = Vec::new();
    let merged: facts::MergedGateway = ctx.derived("scope", "merged-gateway", &[])?.unwrap_or_default();
    if !merged.auto_passthrough {
        return Ok(found);
    }
    let scope: facts::ServiceSummaries = ctx.derived("scope", "services", &["all"])?.unwrap_or_default();
    for summary in scope.services.iter().filter(|summary| !summary.mesh_external) {
        let key = format!("{}/{}", summary.namespace, summary.host);
        let call = CallRef::new("clusters", "sni-service", [key]).hooked("clusters");
        found.push((patching::Subject::new(call), summary.host.clone()));
    }
    Ok(found)
}

/// The functions `service`, and `sni-service` of clusters that pass TLS of clients on as it comes.
pub fn service(ctx: &Ctx<'_>, args: &[String], passes_on: bool) -> Result<Output, Failure> {
    let Some(key) = args.first() else { return Err(Failure::BadArguments("clusters/service needs a service".into())) };
    let only: Option<Vec<u32>> =
        args.get(1).map(|ports| ports.split(',').filter_map(|port| port.parse().ok()).collect());
    let mut output = Output::empty();
    let Some(service) = ctx.service(key)?.filter(|service| service.resolution() != Resolution::Alias) else {
        return Ok(output);
    };
    let rule = Rule::ask(ctx, key)?;
    let subject = Subject {
        ctx,
        key,
        passes_on,
        settings: Settings::ask(ctx)?,
        proxy: ProxyTraits::ask(ctx)?,
        service: &service,
        rule: rule.as_ref(),
        kind: OnceCell::new(),
        accounts: OnceCell::new(),
        mutual: OnceCell::new(),
        services: OnceCell::new(),
    };
    let tunnels = if passes_on { Vec::new() } else { subject.tunnels()? };
    let n_ports = if is_inference_pool(&service) { 1 } else { service.ports.len() };
    for (i, port) in service.ports.iter().take(n_ports).enumerate() {
        let chosen = only.as_ref().is_none_or(|only| only.contains(&port.port));
        // A number that comes twice would make two clusters of one name, which Envoy refuses with all others.
        let first =
            service.ports[..i].iter().all(|before| before.port != port.port || before.protocol() == Protocol::Udp);
        if !chosen || port.protocol() == Protocol::Udp {
            continue;
        }
        if first {
            subject.port(port, tunnels.contains(&port.port), &mut output)?;
        } else {
            let message = format!("port {} stands twice, and {:?} is not the first", port.port, port.name);
            output.diagnose(Severity::Warning, key, "", message);
            output.count_as("duplicate-cluster");
        }
    }
    Ok(output)
}

/// The DestinationRule that holds for a service.
struct Rule {
    spec: DestinationRule,
    /// `DestinationRule ns/name`, for diagnostics.
    object: String,
    /// Its path in the Kubernetes API, for metadata.
    path: String,
}

impl Rule {
    fn ask(ctx: &Ctx<'_>, key: &str) -> Result<Option<Self>, Failure> {
        let Some(object) = ctx.derived::<facts::Object>("scope", "destination-rule", &[key])? else { return Ok(None) };
        let spec = DestinationRule::decode(object.spec.as_slice())
            .map_err(|e| Failure::BadAnswer(format!("destination rule of {key}: {e}")))?;
        let named = object.r#ref.unwrap_or_default();
        Ok(Some(Rule {
            spec,
            object: format!("DestinationRule {}/{}", named.namespace, named.name),
            path: rule_path(&object.api_version, &named),
        }))
    }
}

/// Path of a DestinationRule in the Kubernetes API.
pub fn rule_path(api_version: &str, named: &facts::ObjectRef) -> String {
    format!("/apis/{api_version}/namespaces/{}/destination-rule/{}", named.namespace, named.name)
}

/// Name in statistics by the mesh's pattern.
pub fn stat_name(pattern: &str, service: &Service, port: &Port, subset: &str, target_port: u32) -> String {
    let (short, bare) = if service.registry == "Kubernetes" {
        (format!("{}.{}", service.name, service.namespace), service.name.as_str())
    } else {
        (service.host.clone(), service.host.as_str())
    };
    let name = pattern
        .replace("%SERVICE%", &short)
        .replace("%SERVICE_NAME%", bare)
        .replace("%SERVICE_FQDN%", &service.host)
        .replace("%SUBSET_NAME%", subset)
        .replace("%TARGET_PORT%", &target_port.to_string())
        .replace("%SERVICE_PORT%", &port.port.to_string())
        .replace("%SERVICE_PORT_NAME%", &port.name);
    format!("{name};")
}

/// A service in metadata, where metrics filters read it: an encoded value.
pub fn service_metadata(service: &Service) -> Vec<u8> {
    wire::value::texts([("host", &service.host), ("name", &service.name), ("namespace", &service.namespace)])
}

/// How names are resolved by what the proxy can connect to.
pub fn lookup_family(settings: &Settings, families: Option<&str>) -> DnsLookupFamily {
    match families {
        Some("ipv6") if settings.ipv4_for_ipv6 => DnsLookupFamily::All,
        Some("ipv6") => DnsLookupFamily::V6Only,
        Some("dual") if settings.dual_stack => DnsLookupFamily::All,
        _ => DnsLookupFamily::V4Only,
    }
}

/// Everything that clusters of one service are made from.
struct Subject<'s> {
    ctx: &'s Ctx<'s>,
    key: &'s str,
    /// TLS of clients is passed on, so the clusters have none.
    passes_on: bool,
    settings: Settings,
    proxy: ProxyTraits,
    service: &'s Service,
    rule: Option<&'s Rule>,
    kind: OnceCell<String>,
    accounts: OnceCell<Vec<String>>,
    mutual: OnceCell<bool>,
    /// The service in metadata of its clusters.
    services: OnceCell<Vec<u8>>,
}

impl Subject<'_> {
    /// The clusters of one port.
    fn port(&self, port: &Port, tunnels: bool, output: &mut Output) -> Result<(), Failure> {
        let spec = self.rule.map(|rule| &rule.spec);
        let top = spec.and_then(|spec| spec.traffic_policy.as_ref());
        let policy = Policy::for_port(top, port.port).0.over_mesh_default(self.settings.default_policy.as_ref());
        let host = &self.service.host;
        let is_dynamic = self.service.resolution() == Resolution::DynamicDns && trysail_sdk::hosts::is_wildcard(host);
        let mut draft = if is_dynamic {
            if !dynamic::supports(port.protocol()) {
                return Ok(());
            }
            let family = lookup_family(&self.settings, self.ctx.proxy("ip-families").as_deref());
            let mut draft = dynamic::cluster(name::outbound(port.port, "", host), host, family);
            self.protocol(&mut draft, port);
            draft
        } else {
            let Some(draft) = self.base(self.name(port, ""), self.discovery(), port, "")? else {
                return Ok(());
            };
            draft
        };
        if !is_dynamic && !self.passes_on && self.has_session() {
            override_draining(draft.cluster.common_lb_config.get_or_insert_with(CommonLbConfig::default));
        }
        // Hosts of a dynamic cluster have their own names in SNI.
        let sni = if is_dynamic { String::new() } else { name::outbound_sni(port.port, "", host) };
        self.apply(&mut draft, port, &policy, &sni, top, output)?;
        let kind = draft.kind();
        if self.service.mesh_external || tunnels {
            draft.metadata.insert(if tunnels { "disable_mx" } else { "external" }, wire::value::truth(true));
        }
        self.mark(&mut draft, None, &policy);
        if is_inference_pool(self.service) && !self.passes_on && self.kind() == "router" {
            inference::choose_by_picker(&mut draft.cluster);
        }
        self.emit(draft, output);
        if is_dynamic {
            return Ok(());
        }
        for subset in spec.map(|spec| spec.subsets.as_slice()).unwrap_or_default() {
            self.subset(port, subset, policy, kind.unwrap_or(DiscoveryType::Eds), output)?;
        }
        Ok(())
    }

    /// The cluster of a subset. Its kind is that of the whole service's, which the rule may have made ORIGINAL_DST.
    fn subset(
        &self,
        port: &Port,
        subset: &Subset,
        policy: Policy<'_>,
        kind: DiscoveryType,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let own = subset.traffic_policy.as_ref();
        let passthrough = simple(own.and_then(|own| own.load_balancer.as_ref())) == SimpleLb::Passthrough;
        let kind = if passthrough { DiscoveryType::OriginalDst } else { kind };
        let host = &self.service.host;
        let Some(mut draft) = self.base(self.name(port, &subset.name), kind, port, &subset.name)? else {
            return Ok(());
        };
        let policy = policy.with_subset(own, port.port);
        self.apply(&mut draft, port, &policy, &name::outbound_sni(port.port, &subset.name, host), own, output)?;
        self.mark(&mut draft, Some(&subset.name), &policy);
        self.emit(draft, output);
        Ok(())
    }

    /// Name of the cluster of a port and subset.
    fn name(&self, port: &Port, subset: &str) -> String {
        let name = if self.passes_on { name::outbound_sni } else { name::outbound };
        name(port.port, subset, &self.service.host)
    }

    /// How hosts are found.
    fn discovery(&self) -> DiscoveryType {
        match self.service.resolution() {
            Resolution::DnsLb if self.races() => DiscoveryType::LogicalDns,
            Resolution::DnsLb => DiscoveryType::StrictDns,
            Resolution::DnsRoundRobinLb => DiscoveryType::LogicalDns,
            // Gateways have no original destination.
            Resolution::Passthrough
                if self.kind() != "router"
                    && !(self.settings.headless_eds && self.service.registry == "Kubernetes") =>
            {
                DiscoveryType::OriginalDst
            }
            _ => DiscoveryType::Eds,
        }
    }

    fn races(&self) -> bool {
        self.service.annotations.get(ANNOTATION_CONNECT).is_some_and(|how| how.eq_ignore_ascii_case(CONNECT_RACE))
    }

    /// A cluster before any policy; none when it would have no hosts, which Envoy refuses of DNS clusters.
    fn base(&self, name: String, kind: DiscoveryType, port: &Port, subset: &str) -> Result<Option<Draft>, Failure> {
        let mut draft = Draft::new(name, kind);
        match kind {
            DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
                if !self.ctx.derived_exists("endpoints", "assignment", &[&draft.cluster.name]) {
                    return Ok(None);
                }
                self.dns(&mut draft);
            }
            DiscoveryType::OriginalDst => {
                // A ServiceEntry without resolution may send to another port of the original address.
                if self.service.registry == "External" && port.target_port != 0 {
                    draft.cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                        upstream_port_override: Some(port.target_port),
                        ..Default::default()
                    }));
                }
            }
            DiscoveryType::Static | DiscoveryType::Eds => {}
        }
        self.protocol(&mut draft, port);
        if self.settings.telemetry {
            let services = || wire::value::list([service_metadata(self.service).as_slice()]);
            draft.metadata.insert("services", self.services.get_or_init(services).clone());
        }
        let pattern = &self.settings.outbound_stat_name;
        if !pattern.is_empty() {
            draft.cluster.alt_stat_name = stat_name(pattern, self.service, port, subset, 0);
        }
        Ok(Some(draft))
    }

    #[allow(deprecated, reason = "istiod sends these fields; their successors are not known to older proxies")]
    fn dns(&self, draft: &mut Draft) {
        let cluster = &mut draft.cluster;
        let family = if self.races() {
            DnsLookupFamily::All
        } else {
            lookup_family(&self.settings, self.ctx.proxy("ip-families").as_deref())
        };
        cluster.dns_lookup_family = family.into();
        let queries = Some(self.settings.dns_max_queries);
        let resolver = CaresDnsResolverConfig { udp_max_queries: queries, ..Default::default() };
        cluster.typed_dns_resolver_config = Some(wire::extension("envoy.network.dns_resolver.cares", pack(&resolver)));
        cluster.dns_jitter = self.settings.dns_jitter;
        cluster.dns_refresh_rate = self.settings.dns_refresh_rate;
        cluster.respect_dns_ttl = true;
    }

    fn protocol(&self, draft: &mut Draft, port: &Port) {
        draft.protocol(port, self.proxy.preserve_case, || matches!(self.kind(), "sidecar" | "waypoint"));
    }

    /// Applies a policy. `stated`: the level of the rule that decides whether the cluster passes through.
    fn apply(
        &self,
        draft: &mut Draft,
        port: &Port,
        policy: &Policy<'_>,
        sni: &str,
        stated: Option<&TrafficPolicy>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let settings = &self.settings;
        if pool::upgrades_to_h2(settings, draft::is_http(port.protocol()), policy.connection_pool) {
            draft.http.use_h2();
        }
        pool::apply(settings, &mut draft.cluster, &mut draft.http, policy.connection_pool, policy.retry_budget);
        balance::outlier_detection(settings, draft, self.service, policy.outlier_detection);
        balance::apply(settings, draft, self.service, port, policy.load_balancer, || self.kind() == "waypoint");
        self.report_localities(draft, policy, output);

        if !self.passes_on {
            self.tls(draft, port, policy, sni, stated, output)?;
        }
        if draft.kind() == Some(DiscoveryType::OriginalDst) {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
        }
        draft.eds();
        if settings.metadata_exchange {
            draft.cluster.filters.push(wire::metadata_exchange(settings));
        }
        Ok(())
    }

    /// Once for each rule: what is said of one port holds for most.
    fn report_localities(&self, draft: &Draft, policy: &Policy<'_>, output: &mut Output) {
        let Some((rule, asked)) = self.rule.zip(policy.load_balancer) else { return };
        let knows = || self.ctx.proxy_metadata("ENABLE_SELF_DISCOVERY").is_some_and(|value| value == "true");
        let Some((field, why)) = balance::without_effect(draft, asked, knows) else { return };
        let field = format!("spec.trafficPolicy.loadBalancer.{field}");
        if !output.diagnostics.iter().any(|said| said.object == rule.object && said.field == field) {
            output.diagnose(Severity::Warning, rule.object.clone(), field, why);
        }
    }

    /// TLS towards the hosts, and the PROXY protocol around it.
    fn tls(
        &self,
        draft: &mut Draft,
        port: &Port,
        policy: &Policy<'_>,
        sni: &str,
        stated: Option<&TrafficPolicy>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let settings = &self.settings;
        let selective = self.rule.is_some_and(|rule| rule.spec.workload_selector.is_some());
        let at = Situation {
            settings,
            proxy: &self.proxy,
            external: self.service.mesh_external,
            entry: self.service.registry == "External",
            selective,
            sni,
        };
        // As istiod: dynamic clusters verify what the rule says, nothing else.
        let dynamic = draft.dynamic;
        let accounts = || if dynamic { Ok(Vec::new()) } else { self.accounts() };
        let choice = tls::choose(&at, policy.tls, accounts, || self.mutual(port, stated))?;
        if let Err(why) = tls::apply(&at, draft, choice.as_ref(), accounts, || self.kind() == "sidecar")? {
            let object = self.rule.map_or_else(String::new, |rule| rule.object.clone());
            output.diagnose(Severity::Error, object, "spec.trafficPolicy.tls", why);
        }
        tls::proxy_protocol(draft, policy.proxy_protocol);
        Ok(())
    }

    /// Metadata about the rule and its subset.
    fn mark(&self, draft: &mut Draft, subset: Option<&str>, policy: &Policy<'_>) {
        let Some(rule) = self.rule else { return };
        draft.metadata.insert("config", wire::value::text(&rule.path));
        if let Some(subset) = subset {
            draft.metadata.insert("subset", wire::value::text(subset));
        }
        // TLS that is not the mesh's must not carry the mesh's ALPN.
        if policy.tls.is_some_and(|tls| matches!(tls.mode(), TlSmode::Simple | TlSmode::Mutual)) {
            draft.metadata.insert("alpn_override", wire::value::text("false"));
        }
    }

    fn emit(&self, draft: Draft, output: &mut Output) {
        let kind = draft.kind();
        let name = draft.cluster.name.clone();
        let mut message = draft.build();
        if matches!(kind, Some(DiscoveryType::StrictDns | DiscoveryType::LogicalDns)) {
            message = message.hole(LOAD_ASSIGNMENT, CallRef::new("endpoints", "assignment", [name.as_str()]));
        }
        let mut item = Item::new(name, message);
        if kind == Some(DiscoveryType::Eds) {
            item.refs.push(format!("eds:{}", item.key));
        }
        output.item(item);
    }

    /// The kind of the proxy. Asked only when it matters.
    fn kind(&self) -> &str {
        self.kind.get_or_init(|| self.ctx.proxy("type").unwrap_or_default())
    }

    /// Ports whose endpoints all take HBONE. Nothing sends it unless ambient mode is on.
    fn tunnels(&self) -> Result<Vec<u32>, Failure> {
        if !self.settings.ambient {
            return Ok(Vec::new());
        }
        Ok(self.ctx.derived::<Ports>("endpoints", "tunnels", &[self.key])?.unwrap_or_default().ports)
    }

    fn has_session(&self) -> bool {
        let labels = &self.settings.session_labels;
        labels.iter().any(|label| self.service.labels.get(label).is_some_and(|value| !value.is_empty()))
    }

    /// Identities that may serve this service.
    fn accounts(&self) -> Result<Vec<String>, Failure> {
        if let Some(known) = self.accounts.get() {
            return Ok(known.clone());
        }
        let accounts = self.ctx.service_accounts(self.key)?;
        Ok(self.accounts.get_or_init(|| accounts).clone())
    }

    /// Do the service's workloads take mutual TLS? A cluster that passes through cannot choose host by host, so all of its
    /// workloads must.
    fn mutual(&self, port: &Port, stated: Option<&TrafficPolicy>) -> Result<bool, Failure> {
        let forced = simple(stated.and_then(|stated| stated.load_balancer.as_ref())) == SimpleLb::Passthrough;
        let by_port = forced || self.service.resolution() == Resolution::Passthrough;
        if let Some(known) = self.mutual.get().filter(|_| !by_port) {
            return Ok(*known);
        }
        let number = port.port.to_string();
        let mut args = vec![self.key, number.as_str()];
        if forced {
            args.push("passthrough");
        }
        let policy = self.ctx.derived::<facts::PeerPolicy>("security", "service-mtls-mode", &args)?.unwrap_or_default();
        let mutual = matches!(policy.mode(), MtlsMode::MtlsPermissive | MtlsMode::MtlsStrict);
        Ok(if by_port { mutual } else { *self.mutual.get_or_init(|| mutual) })
    }
}

/// Hosts that drain are kept for requests whose session is theirs.
fn override_draining(common: &mut CommonLbConfig) {
    let statuses = [HealthStatus::Healthy, HealthStatus::Draining, HealthStatus::Unknown, HealthStatus::Degraded];
    common.override_host_status = Some(HealthStatusSet { statuses: statuses.map(Into::into).to_vec() });
}
