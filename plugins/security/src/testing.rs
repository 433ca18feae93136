//! A few policies and services to ask for, in tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{
    Endpoint, Endpoints, MtlsMode, Object, ObjectRef, PeerPolicy, Resolution, SelectorSummaries, SelectorSummary,
    Service, Strings,
};
use trysail_sdk::prost::Message;
use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
use trysail_sdk::proto::istio::security::v1beta1::PeerAuthentication;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::MutualTls;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::mutual_tls::Mode;
use trysail_sdk::{Ctx, Diagnostic, Entry, Host, Level, Part};

/// Policies oldest first, services, and the proxy that asks. The root namespace is `root`.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub policies: Vec<(SelectorSummary, PeerAuthentication)>,
    pub services: Vec<(Service, Vec<Endpoint>)>,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// Questions about the proxy.
    pub asked: RefCell<Vec<String>>,
}

impl World {
    pub fn new(namespace: &str) -> World {
        World { namespace: namespace.into(), ..Default::default() }
    }

    pub fn from(&self, namespace: &str) -> World {
        World { namespace: namespace.into(), asked: RefCell::default(), ..self.clone() }
    }

    pub fn labelled(&self, app: &str) -> World {
        World { labels: [("app".to_owned(), app.to_owned())].into(), ..self.clone() }
    }

    /// Adds a policy, for the app if one is given.
    pub fn policy(
        mut self,
        namespace: &str,
        name: &str,
        app: Option<&str>,
        mode: Option<Mode>,
        ports: &[(u32, Mode)],
    ) -> World {
        let mtls = |mode: Mode| MutualTls { mode: mode as i32 };
        let summary = SelectorSummary {
            namespace: namespace.into(),
            name: name.into(),
            has_selector: app.is_some(),
            selector: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
            ..Default::default()
        };
        let port_level_mtls = ports.iter().map(|(port, mode)| (*port, mtls(*mode))).collect();
        let policy = PeerAuthentication { mtls: mode.map(mtls), port_level_mtls, ..Default::default() };
        self.policies.push((summary, policy));
        self
    }

    /// Adds a service of host `host` whose endpoints have these TLS modes.
    pub fn service(
        mut self,
        namespace: &str,
        resolution: Resolution,
        mesh_external: bool,
        tls_modes: &[&str],
    ) -> World {
        let service = Service {
            host: "host".into(),
            namespace: namespace.into(),
            resolution: resolution as i32,
            mesh_external,
            ..Default::default()
        };
        let endpoints = tls_modes.iter().map(|mode| Endpoint { tls_mode: mode.to_string(), ..Default::default() });
        self.services.push((service, endpoints.collect()));
        self
    }

    pub fn call(&self, function: &str, args: &[&str]) -> (PeerPolicy, Vec<Diagnostic>) {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let output = crate::translate(&Ctx::new(self), function, &args).unwrap();
        let [Entry::Item(item)] = output.entries.as_slice() else { panic!("one item") };
        let bytes = item.message.parts.iter().flat_map(|part| match part {
            Part::Bytes(bytes) => bytes.clone(),
            _ => panic!("no holes"),
        });
        (PeerPolicy::decode(bytes.collect::<Vec<u8>>().as_slice()).unwrap(), output.diagnostics)
    }

    /// Mode of the proxy's own workload.
    pub fn own(&self) -> MtlsMode {
        self.call("peer-authentication", &[]).0.mode()
    }
}

impl Host for World {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        if query.starts_with("proxy") {
            self.asked.borrow_mut().push(format!("{query} {}", args.join(",")));
        }
        let summaries = || self.policies.iter().map(|(summary, _)| summary);
        let of_key = |key: &str| {
            self.services.iter().find(|(service, _)| format!("{}/{}", service.namespace, service.host) == key)
        };
        Some(match query {
            "mesh-config" => MeshConfig { root_namespace: "root".into(), ..Default::default() }.encode_to_vec(),
            "selector-namespaces" => {
                let namespaces: BTreeSet<_> = summaries().map(|policy| policy.namespace.clone()).collect();
                Strings { values: namespaces.into_iter().collect() }.encode_to_vec()
            }
            "selectors" => {
                let entries = summaries().filter(|policy| policy.namespace == args[1]).cloned().collect();
                SelectorSummaries { entries }.encode_to_vec()
            }
            "object" => {
                let (summary, policy) =
                    self.policies.iter().find(|(s, _)| format!("{}/{}", s.namespace, s.name) == args[1])?;
                let (kind, namespace, name) = (args[0].to_owned(), summary.namespace.clone(), summary.name.clone());
                let reference = ObjectRef { kind, namespace, name };
                Object { r#ref: Some(reference), spec: policy.encode_to_vec(), ..Default::default() }.encode_to_vec()
            }
            "service" => of_key(args[0])?.0.encode_to_vec(),
            "endpoints" => Endpoints { endpoints: of_key(args[0])?.1.clone() }.encode_to_vec(),
            "proxy-in-namespaces" => args.iter().find(|namespace| **namespace == self.namespace)?.as_bytes().to_vec(),
            "proxy-labels-match" => {
                let has = |pair: &&str| {
                    pair.split_once('=').is_some_and(|(k, v)| self.labels.get(k).is_some_and(|held| held == v))
                };
                args.iter().all(has).then(Vec::new)?
            }
            other => panic!("no answer to {other}"),
        })
    }

    fn report(&self, _: Level, _: &str) {}
}
