//! A small mesh to ask, for tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{
    DestinationRuleSummaries, DestinationRuleSummary, Object, ObjectRef, Port, Protocol, SelectorSummaries,
    SelectorSummary, Service, ServiceSummaries, ServiceSummary, ServiceTarget, ServiceTargets, Strings,
    VirtualServiceSummaries, VirtualServiceSummary,
};
use trysail_sdk::prost::Message;
use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
use trysail_sdk::proto::istio::networking::v1alpha3::{DestinationRule, Gateway, IstioEgressListener, Server, Sidecar};
use trysail_sdk::{Ctx, Diagnostic, Entry, Host, Level, Output, Part, hosts};

/// Everything that is known, and the proxy that asks.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub services: Vec<Service>,
    pub virtual_services: Vec<VirtualServiceSummary>,
    pub destination_rules: Vec<(Object, DestinationRule)>,
    pub sidecars: Vec<(SelectorSummary, Sidecar)>,
    pub gateways: Vec<(SelectorSummary, Object, Gateway)>,
    pub targets: Vec<ServiceTarget>,
    pub mesh: MeshConfig,
    pub flags: BTreeMap<&'static str, &'static str>,
    pub namespace: String,
    pub proxy_type: String,
    pub labels: BTreeMap<String, String>,
    /// Questions about the proxy, as they came.
    pub asked: RefCell<Vec<String>>,
}

impl World {
    /// An empty mesh with root namespace `root` and a sidecar in namespace `namespace`.
    pub fn new(namespace: &str) -> World {
        let mesh = MeshConfig { root_namespace: "root".into(), ..Default::default() };
        let (namespace, proxy_type) = (namespace.to_owned(), "sidecar".to_owned());
        World { mesh, namespace, proxy_type, ..Default::default() }
    }

    /// The same mesh seen from another namespace.
    pub fn from(&self, namespace: &str) -> World {
        World { namespace: namespace.into(), asked: RefCell::default(), ..self.clone() }
    }

    /// Adds a Kubernetes service `name.namespace` with these ports.
    pub fn service(mut self, namespace: &str, name: &str, ports: &[u32], export_to: &str) -> World {
        let host = format!("{name}.{namespace}.svc.cluster.local");
        self.services.push(service(namespace, &host, name, "Kubernetes", ports, export_to, self.services.len()));
        self
    }

    /// Adds a ServiceEntry of one host.
    pub fn entry(mut self, namespace: &str, host: &str, ports: &[u32], export_to: &str) -> World {
        self.services.push(service(namespace, host, host, "External", ports, export_to, self.services.len()));
        self
    }

    /// Adds a Sidecar with egress listeners: port (0: none) and hosts.
    pub fn sidecar(
        mut self,
        namespace: &str,
        name: &str,
        selector: Option<(&str, &str)>,
        egress: &[(u32, &[&str])],
    ) -> World {
        let summary = SelectorSummary {
            namespace: namespace.into(),
            name: name.into(),
            has_selector: selector.is_some(),
            selector: selector.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect(),
            ..Default::default()
        };
        let listener = |(number, hosts): &(u32, &[&str])| IstioEgressListener {
            port: (*number != 0).then(|| trysail_sdk::proto::istio::networking::v1alpha3::SidecarPort {
                number: *number,
                protocol: "HTTP".into(),
                ..Default::default()
            }),
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
            ..Default::default()
        };
        let sidecar = Sidecar { egress: egress.iter().map(listener).collect(), ..Default::default() };
        self.sidecars.push((summary, sidecar));
        self
    }

    /// Adds a Gateway of selector `app=NAME`, younger than those before.
    pub fn gateway(mut self, namespace: &str, name: &str, app: &str, servers: Vec<Server>) -> World {
        let summary = SelectorSummary {
            namespace: namespace.into(),
            name: name.into(),
            creation_seconds: self.gateways.len() as i64,
            has_selector: true,
            selector: [("app".to_owned(), app.to_owned())].into(),
            ..Default::default()
        };
        let reference = ObjectRef { kind: "Gateway".into(), namespace: namespace.into(), name: name.into() };
        let gateway = Gateway { servers, selector: summary.selector.clone() };
        let object = Object { r#ref: Some(reference), spec: gateway.encode_to_vec(), ..Default::default() };
        self.gateways.push((summary, object, gateway));
        self
    }

    /// Adds a VirtualService of a gateway.
    pub fn bound(mut self, namespace: &str, name: &str, hosts: &[&str], gateway: &str, export_to: &str) -> World {
        self.virtual_services.push(VirtualServiceSummary {
            namespace: namespace.into(),
            name: name.into(),
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
            gateways: vec![gateway.into()],
            export_to: words(export_to),
            has_http: true,
            ..Default::default()
        });
        self
    }

    /// Makes the proxy an endpoint of a service's port.
    pub fn target(mut self, service: &str, port: u32, target_port: u32, protocol: Protocol) -> World {
        self.targets.push(ServiceTarget {
            service: service.into(),
            port: Some(Port { port, protocol: protocol.into(), ..Default::default() }),
            target_port,
            ..Default::default()
        });
        self
    }

    /// Adds a VirtualService of the mesh with destinations (host, port).
    pub fn routes(
        mut self,
        namespace: &str,
        name: &str,
        hosts: &[&str],
        export_to: &str,
        destinations: &[(&str, u32)],
    ) -> World {
        let destination = |(host, port): &(&str, u32)| trysail_sdk::facts::virtual_service_summary::Destination {
            host: host.to_string(),
            port: *port,
            ..Default::default()
        };
        self.virtual_services.push(VirtualServiceSummary {
            namespace: namespace.into(),
            name: name.into(),
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
            gateways: vec!["mesh".into()],
            export_to: words(export_to),
            destinations: destinations.iter().map(destination).collect(),
            ..Default::default()
        });
        self
    }

    /// Adds a DestinationRule.
    pub fn rule(mut self, namespace: &str, name: &str, rule: DestinationRule) -> World {
        let reference = ObjectRef { kind: "DestinationRule".into(), namespace: namespace.into(), name: name.into() };
        let object = Object { r#ref: Some(reference), spec: rule.encode_to_vec(), ..Default::default() };
        self.destination_rules.push((object, rule));
        self
    }

    /// The message that a call gives, and its diagnostics; none when it has no item.
    pub fn call<M: Message + Default>(&self, function: &str, args: &[&str]) -> (Option<M>, Vec<Diagnostic>) {
        let output = self.output(function, args);
        (bytes(&output).map(|bytes| M::decode(bytes.as_slice()).unwrap()), output.diagnostics)
    }

    /// `namespace/host:ports` of each service that a call gives.
    pub fn services_of(&self, listener: &str) -> Vec<String> {
        let (found, _) = self.call::<ServiceSummaries>("services", &[listener]);
        let ports = |service: &ServiceSummary| {
            service.ports.iter().map(|port| port.port.to_string()).collect::<Vec<_>>().join(",")
        };
        found.unwrap().services.iter().map(|s| format!("{}/{}:{}", s.namespace, s.host, ports(s))).collect()
    }

    pub fn output(&self, function: &str, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        crate::translate(&Ctx::new(self), function, &args).unwrap()
    }

    fn visible(&self, export_to: &[String], home: &str, visibility: &str) -> bool {
        let public = export_to.iter().any(|to| to == "*");
        match visibility {
            "*" => public,
            named => !public && export_to.iter().any(|to| to == named || to == "." && home == named),
        }
    }

    fn namespaces<'a>(&self, objects: impl Iterator<Item = (&'a Vec<String>, &'a String)>) -> Strings {
        let mut namespaces = BTreeSet::new();
        for (export_to, home) in objects.filter(|(export_to, _)| !export_to.iter().any(|to| to == "*")) {
            namespaces
                .extend(export_to.iter().filter(|to| *to != "~").map(|to| if to == "." { home } else { to }.clone()));
        }
        Strings { values: namespaces.into_iter().collect() }
    }

    fn flag(&self, name: &str) -> String {
        self.flags.get(name).unwrap_or(&"true").to_string()
    }
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        let arg = args.first().copied().unwrap_or_default();
        if query.starts_with("proxy") {
            self.asked.borrow_mut().push(format!("{query} {}", args.join(",")));
        }
        let summaries = |services: Vec<&Service>| {
            Some(ServiceSummaries { services: services.into_iter().cloned().map(summary).collect() }.encode_to_vec())
        };
        match query {
            "mesh-config" => Some(self.mesh.encode_to_vec()),
            "features" => Some(Strings { values: args.iter().map(|name| self.flag(name)).collect() }.encode_to_vec()),
            "service" => {
                let mut of_key: Vec<_> =
                    self.services.iter().filter(|s| format!("{}/{}", s.namespace, s.host) == arg).collect();
                of_key.sort_by_key(|service| service.registry != "Kubernetes");
                of_key.first().map(|service| service.encode_to_vec())
            }
            "services-of-host" => {
                let keys =
                    self.services.iter().filter(|s| s.host == arg).map(|s| format!("{}/{}", s.namespace, s.host));
                Some(Strings { values: keys.collect() }.encode_to_vec())
            }
            "service-index" => {
                summaries(self.services.iter().filter(|s| self.visible(&s.export_to, &s.namespace, arg)).collect())
            }
            "services-in-namespace" => summaries(self.services.iter().filter(|s| s.namespace == arg).collect()),
            "service-index-namespaces" => {
                Some(self.namespaces(self.services.iter().map(|s| (&s.export_to, &s.namespace))).encode_to_vec())
            }
            "virtual-service-index" => {
                let found = self.virtual_services.iter().filter(|v| self.visible(&v.export_to, &v.namespace, arg));
                Some(VirtualServiceSummaries { virtual_services: found.cloned().collect() }.encode_to_vec())
            }
            "virtual-service-index-namespaces" => Some(
                self.namespaces(self.virtual_services.iter().map(|v| (&v.export_to, &v.namespace))).encode_to_vec(),
            ),
            "destination-rules-matching" => {
                let covering = self.destination_rules.iter().filter(|(_, rule)| hosts::subset_of(arg, &rule.host));
                let destination_rules = covering.map(|(object, rule)| rule_summary(object, rule)).collect();
                Some(DestinationRuleSummaries { destination_rules }.encode_to_vec())
            }
            "object" => match arg {
                "Sidecar" => self.sidecars.iter().find(|(s, _)| format!("{}/{}", s.namespace, s.name) == args[1]).map(
                    |(s, body)| {
                        let reference =
                            ObjectRef { kind: arg.into(), namespace: s.namespace.clone(), name: s.name.clone() };
                        Object { r#ref: Some(reference), spec: body.encode_to_vec(), ..Default::default() }
                            .encode_to_vec()
                    },
                ),
                "Gateway" => {
                    let found = self.gateways.iter().find(|(_, object, _)| key(object) == args[1]);
                    found.map(|(_, object, _)| object.encode_to_vec())
                }
                _ => self
                    .destination_rules
                    .iter()
                    .map(|(object, _)| object)
                    .find(|o| key(o) == args[1])
                    .map(Message::encode_to_vec),
            },
            "selectors" if arg == "Gateway" => {
                let of = self.gateways.iter().map(|(summary, ..)| summary).filter(|s| s.namespace == args[1]);
                Some(SelectorSummaries { entries: of.cloned().collect() }.encode_to_vec())
            }
            "selector-namespaces" if arg == "Gateway" => {
                let namespaces: BTreeSet<_> = self.gateways.iter().map(|(s, ..)| s.namespace.clone()).collect();
                Some(Strings { values: namespaces.into_iter().collect() }.encode_to_vec())
            }
            "gateway-virtual-services" => {
                let of = self.virtual_services.iter().filter(|v| v.gateways.iter().any(|gateway| gateway == arg));
                let found = of.filter(|v| self.visible(&v.export_to, &v.namespace, args[1]));
                Some(VirtualServiceSummaries { virtual_services: found.cloned().collect() }.encode_to_vec())
            }
            "gateway-virtual-service-namespaces" => {
                let of = self.virtual_services.iter().filter(|v| v.gateways.iter().any(|gateway| gateway == arg));
                Some(self.namespaces(of.map(|v| (&v.export_to, &v.namespace))).encode_to_vec())
            }
            "virtual-service-gateways" => {
                let all = self.virtual_services.iter().flat_map(|v| &v.gateways).filter(|gateway| *gateway != "mesh");
                let all: BTreeSet<_> = all.cloned().collect();
                Some(Strings { values: all.into_iter().collect() }.encode_to_vec())
            }
            "proxy-targets" => Some(ServiceTargets { targets: self.targets.clone() }.encode_to_vec()),
            "selectors" => {
                let of = self.sidecars.iter().map(|(summary, _)| summary).filter(|s| s.namespace == args[1]);
                Some(SelectorSummaries { entries: of.cloned().collect() }.encode_to_vec())
            }
            "selector-namespaces" => {
                let namespaces: BTreeSet<_> = self.sidecars.iter().map(|(s, _)| s.namespace.clone()).collect();
                Some(Strings { values: namespaces.into_iter().collect() }.encode_to_vec())
            }
            "proxy" => match arg {
                "namespace" => Some(self.namespace.clone().into_bytes()),
                "type" => Some(self.proxy_type.clone().into_bytes()),
                other => panic!("proxy {other}"),
            },
            "proxy-in-namespaces" => {
                args.contains(&self.namespace.as_str()).then(|| self.namespace.clone().into_bytes())
            }
            "proxy-labels-match" => {
                let has = |pair: &&str| {
                    pair.split_once('=').is_some_and(|(k, v)| self.labels.get(k).is_some_and(|held| held == v))
                };
                args.iter().all(has).then(Vec::new)
            }
            "derived" => bytes(&self.output(args[1], &args[2..])),
            other => panic!("no answer to {other}"),
        }
    }

    fn report(&self, _: Level, _: &str) {}
}

fn bytes(output: &Output) -> Option<Vec<u8>> {
    let parts = output.entries.iter().map(|entry| match entry {
        Entry::Item(item) => item.message.parts.iter().flat_map(|part| match part {
            Part::Bytes(bytes) => bytes.clone(),
            _ => panic!("a value without holes"),
        }),
        Entry::Include(_) => panic!("a value"),
    });
    (!output.entries.is_empty()).then(|| parts.flatten().collect())
}

fn service(
    namespace: &str,
    host: &str,
    name: &str,
    registry: &str,
    ports: &[u32],
    export_to: &str,
    age: usize,
) -> Service {
    Service {
        host: host.into(),
        namespace: namespace.into(),
        name: name.into(),
        registry: registry.into(),
        creation_seconds: age as i64,
        ports: ports.iter().map(|port| Port { port: *port, name: format!("p{port}"), ..Default::default() }).collect(),
        export_to: words(export_to),
        ..Default::default()
    }
}

fn summary(service: Service) -> ServiceSummary {
    ServiceSummary {
        host: service.host,
        namespace: service.namespace,
        name: service.name,
        registry: service.registry,
        creation_seconds: service.creation_seconds,
        ports: service.ports,
        export_to: service.export_to,
        aliases: service.aliases,
        ..Default::default()
    }
}

fn rule_summary(object: &Object, rule: &DestinationRule) -> DestinationRuleSummary {
    let reference = object.r#ref.clone().unwrap_or_default();
    let export_to = if rule.export_to.is_empty() { words("*") } else { rule.export_to.clone() };
    DestinationRuleSummary {
        namespace: reference.namespace,
        name: reference.name,
        host: rule.host.clone(),
        export_to,
        has_selector: rule.workload_selector.is_some(),
        selector: rule.workload_selector.clone().unwrap_or_default().match_labels.into_iter().collect(),
        ..Default::default()
    }
}

fn key(object: &Object) -> String {
    object.r#ref.as_ref().map(|r| format!("{}/{}", r.namespace, r.name)).unwrap_or_default()
}

pub fn words(text: &str) -> Vec<String> {
    text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}
