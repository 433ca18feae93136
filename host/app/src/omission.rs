//! Never open by omission: objects that protect something and that no stage translates yet.
//!
//! Whoever wrote an AuthorizationPolicy counts on it. A proxy that is configured as if it were not there would let in whom it
//! keeps out, without a word. So a proxy that such an object selects is held back: it keeps what it has, gets nothing new,
//! and that is said in the log, in `/ready`, on the status page and by metrics. `--accept-untranslated=KIND` takes the
//! responsibility.
//!
//! What only reports (Telemetry, a policy that audits or is a dry run) is not protective. A kind leaves the list by itself
//! when a stage reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use serde_json::Value;
use trysail_facts::FactsSnapshot;
use trysail_model::view::Provenance;
use trysail_model::{Object, ObjectRef, Proxy, Snapshot as _, Translator, TypeUrl, View, Views, Watched};

use crate::pipeline;

/// Kinds that protect something.
pub const PROTECTIVE: [&str; 6] = [
    "AuthorizationPolicy",
    "BackendTLSPolicy",
    "EnvoyFilter",
    "RequestAuthentication",
    "TrafficExtension",
    "WasmPlugin",
];

/// A gateway's label: the Gateway that it was made for.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const DRY_RUN: &str = "istio.io/dry-run";

/// Objects that protect something and are not translated.
#[derive(Clone, Debug, Default)]
pub struct Omissions {
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    /// Kinds that may be left out.
    accepted: BTreeSet<String>,
    root_namespace: String,
}

impl Omissions {
    /// None so far; these kinds may be left out.
    pub fn accepting(accepted: BTreeSet<String>) -> Omissions {
        Omissions { accepted, root_namespace: "istio-system".to_owned(), ..Omissions::default() }
    }

    /// Is this object one?
    fn concerns(&self, object: &Object) -> bool {
        let kind = &*object.reference.kind;
        let is_protective = PROTECTIVE.contains(&kind) && !self.accepted.contains(kind);
        let only_reports = kind == "AuthorizationPolicy"
            && (object.spec().get("action").is_some_and(|action| action == "AUDIT")
                || object.annotations.get(DRY_RUN).is_some_and(|value| value == "true"));
        is_protective && !pipeline::READ_KINDS.contains(&kind) && !only_reports
    }

    /// Takes a change in. True when something moved.
    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = (&'a ObjectRef, Option<&'a Arc<Object>>)>) -> bool {
        let mut moved = false;
        for (reference, object) in changes {
            moved |= match object.filter(|object| self.concerns(object)) {
                Some(object) => {
                    self.objects.insert(reference.clone(), object.clone()).is_none_or(|before| before != *object)
                }
                None => self.objects.remove(reference).is_some(),
            };
        }
        moved
    }

    /// Takes the mesh configuration in. True when it moves who is held back.
    pub fn configure(&mut self, mesh: &Value, system_namespace: &str) -> bool {
        let root = mesh.get("rootNamespace").and_then(Value::as_str).filter(|name| !name.is_empty());
        let root = root.unwrap_or(system_namespace).to_owned();
        let moved = self.root_namespace != root;
        self.root_namespace = root;
        moved && !self.objects.is_empty()
    }

    /// The objects, sorted.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        self.objects.keys()
    }

    /// Why a proxy is held back: the first object that selects it.
    pub fn reason(&self, proxy: &Proxy) -> Option<&ObjectRef> {
        let mut all = self.objects.values().filter(|object| self.selects(object, proxy));
        all.next().map(|object| &object.reference)
    }

    fn selects(&self, object: &Object, proxy: &Proxy) -> bool {
        let spec = object.spec();
        let namespace = &*object.reference.namespace;
        let is_gateway = &*proxy.proxy_type == "router";
        if &*object.reference.kind == "BackendTLSPolicy" {
            // It is about those who call, wherever they are, and only gateways follow it.
            return is_gateway;
        }
        if namespace != self.root_namespace && namespace != &*proxy.namespace {
            return false;
        }
        let list = |name: &str| spec.get(name).and_then(Value::as_array).into_iter().flatten();
        let targets: Vec<&Value> = list("targetRefs").chain(spec.get("targetRef")).collect();
        if !targets.is_empty() {
            return targets.iter().any(|target| self.is_target(target, namespace, proxy));
        }
        if &*object.reference.kind == "EnvoyFilter" && !patches(&spec, is_gateway) {
            return false;
        }
        let selector = spec.pointer("/selector/matchLabels").or_else(|| spec.pointer("/workloadSelector/labels"));
        let mut wanted = selector.and_then(Value::as_object).into_iter().flatten();
        wanted.all(|(key, value)| proxy.labels.get(key).map(String::as_str) == value.as_str())
    }

    /// Policies with targets are about gateways and waypoints, never about sidecars.
    fn is_target(&self, target: &Value, namespace: &str, proxy: &Proxy) -> bool {
        let text = |field: &str| target.get(field).and_then(Value::as_str).unwrap_or_default();
        match text("kind") {
            "Gateway" => {
                let named = proxy.labels.get(GATEWAY_NAME).is_some_and(|name| name == text("name"));
                named && namespace == &*proxy.namespace
            }
            "GatewayClass" => &*proxy.proxy_type != "sidecar" && namespace == self.root_namespace,
            _ => &*proxy.proxy_type == "waypoint",
        }
    }
}

/// Does an EnvoyFilter have a patch for sidecars, or for gateways?
fn patches(spec: &Value, is_gateway: bool) -> bool {
    let all = spec.get("configPatches").and_then(Value::as_array);
    let mut all = all.into_iter().flatten();
    all.any(|patch| {
        // The agent applies these by itself.
        let is_bootstrap = patch.get("applyTo").is_some_and(|to| to == "BOOTSTRAP");
        let context = patch.pointer("/match/context").and_then(Value::as_str).unwrap_or("ANY");
        let is_ours = match context {
            "GATEWAY" => is_gateway,
            "SIDECAR_INBOUND" | "SIDECAR_OUTBOUND" => !is_gateway,
            _ => true,
        };
        is_ours && !is_bootstrap
    })
}

/// The translation with proxies held back.
pub struct Guard<T> {
    inner: T,
    omissions: ArcSwap<Omissions>,
    /// What says which labels a proxy has.
    facts: Arc<ArcSwap<FactsSnapshot>>,
    held: Mutex<BTreeMap<Arc<str>, ObjectRef>>,
    metrics: Metrics,
}

struct Metrics {
    proxies: IntGauge,
    objects: IntGaugeVec,
}

impl<T: Translator> Guard<T> {
    /// Guards a translation.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn new(
        inner: T,
        omissions: Omissions,
        facts: Arc<ArcSwap<FactsSnapshot>>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let proxies = IntGauge::new(
            "trysail_held_back_proxies",
            "Connected proxies that get nothing new, for something that protects them is not translated",
        )?;
        let objects = IntGaugeVec::new(
            Opts::new("trysail_untranslated_objects", "Objects that protect something and that no stage translates"),
            &["kind"],
        )?;
        registry.register(Box::new(proxies.clone()))?;
        registry.register(Box::new(objects.clone()))?;
        let guard = Guard {
            inner,
            omissions: ArcSwap::from_pointee(Omissions::default()),
            facts,
            held: Mutex::default(),
            metrics: Metrics { proxies, objects },
        };
        guard.update(omissions);
        Ok(guard)
    }

    /// Goes on with these.
    pub fn update(&self, omissions: Omissions) {
        let mut by_kind: BTreeMap<&str, i64> = PROTECTIVE.iter().map(|kind| (*kind, 0)).collect();
        for reference in omissions.objects() {
            *by_kind.entry(&reference.kind).or_default() += 1;
        }
        for (kind, n) in by_kind {
            self.metrics.objects.with_label_values(&[kind]).set(n);
        }
        self.omissions.store(Arc::new(omissions));
    }

    /// The proxies that are held back, and the object that each waits for.
    pub fn held(&self) -> BTreeMap<Arc<str>, ObjectRef> {
        self.held.lock().clone()
    }

    /// Decides, and says so when that is news.
    fn hold(&self, proxy: &Proxy) -> bool {
        let omissions = self.omissions.load();
        let reason = if omissions.objects.is_empty() {
            None
        } else {
            let known = self.facts.load().refresh(proxy);
            omissions.reason(known.as_ref().unwrap_or(proxy)).cloned()
        };
        let mut held = self.held.lock();
        let before = match &reason {
            Some(object) => held.insert(proxy.id.clone(), object.clone()),
            None => held.remove(&proxy.id),
        };
        self.metrics.proxies.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop(held);
        match (&reason, before) {
            (Some(object), before) if before.as_ref() != Some(object) => tracing::error!(
                proxy = &*proxy.id,
                %object,
                "held back: nothing translates what protects this proxy; it keeps what it has (--accept-untranslated={} sends without)",
                object.kind
            ),
            (None, Some(object)) => tracing::info!(proxy = &*proxy.id, %object, "no longer held back"),
            _ => {}
        }
        reason.is_some()
    }
}

impl<T: Translator> Translator for Guard<T> {
    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    fn views(&self, proxy: &Proxy, wanted: &[(TypeUrl, Watched)], held: &[Option<Arc<View>>]) -> Views {
        if self.hold(proxy) {
            let (revision, proxy) = (self.inner.revision(), Arc::new(proxy.clone()));
            return Views { revision, proxy, views: Vec::new(), is_withheld: true };
        }
        self.inner.views(proxy, wanted, held)
    }

    fn provenance(&self, proxy: &Proxy, type_url: &TypeUrl, name: &str) -> Provenance {
        self.inner.provenance(proxy, type_url, name)
    }

    fn forget(&self, proxy: &Proxy) {
        let mut held = self.held.lock();
        held.remove(&proxy.id);
        self.metrics.proxies.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop(held);
        self.inner.forget(proxy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(kind: &str, namespace: &str, spec: Value) -> Arc<Object> {
        Arc::new(Object {
            reference: ObjectRef::new(kind, namespace, "a"),
            api_version: "v1".into(),
            creation_nanos: 0,
            labels: Arc::default(),
            annotations: Arc::default(),
            body: json!({"spec": spec}).into(),
            origin: "test".into(),
        })
    }

    fn proxy(kind: &str, namespace: &str, labels: Value) -> Proxy {
        let metadata = json!({"LABELS": labels, "NAMESPACE": namespace}).as_object().cloned().unwrap();
        Proxy::from_node(&format!("{kind}~10.0.0.1~p.{namespace}~x"), metadata, Default::default()).unwrap()
    }

    /// A kind that no stage reads yet, whichever that is.
    fn unread() -> &'static str {
        PROTECTIVE
            .into_iter()
            .find(|kind| !pipeline::READ_KINDS.contains(kind) && *kind != "BackendTLSPolicy")
            .unwrap_or("EnvoyFilter")
    }

    fn holds(object: &Arc<Object>, proxy: &Proxy) -> bool {
        let mut omissions = Omissions::default();
        omissions.configure(&json!({}), "root");
        // Whether a stage reads the kind by now is not the question here.
        omissions.objects.insert(object.reference.clone(), object.clone());
        omissions.reason(proxy).is_some()
    }

    #[test]
    fn selection_is_that_of_the_kind() {
        let sidecar = proxy("sidecar", "n", json!({"app": "a"}));
        let gateway = proxy("router", "n", json!({GATEWAY_NAME: "g"}));
        let policy = |namespace: &str, spec: Value| object("AuthorizationPolicy", namespace, spec);
        assert!(holds(&policy("n", json!({})), &sidecar) && holds(&policy("root", json!({})), &sidecar));
        assert!(!holds(&policy("other", json!({})), &sidecar));
        assert!(holds(&policy("n", json!({"selector": {"matchLabels": {"app": "a"}}})), &sidecar));
        assert!(!holds(&policy("n", json!({"selector": {"matchLabels": {"app": "b"}}})), &sidecar));
        let targeted = policy("n", json!({"targetRefs": [{"kind": "Gateway", "name": "g"}]}));
        assert!(holds(&targeted, &gateway) && !holds(&targeted, &sidecar));
        let filter = |context: &str| {
            let patches = json!([{"applyTo": "CLUSTER", "match": {"context": context}}, {"applyTo": "BOOTSTRAP"}]);
            object("EnvoyFilter", "n", json!({"workloadSelector": {"labels": {}}, "configPatches": patches}))
        };
        assert!(holds(&filter("SIDECAR_INBOUND"), &sidecar) && !holds(&filter("SIDECAR_INBOUND"), &gateway));
        assert!(holds(&filter("GATEWAY"), &gateway) && !holds(&filter("GATEWAY"), &sidecar));
        assert!(holds(&filter("ANY"), &gateway) && holds(&filter("ANY"), &sidecar));
        assert!(!holds(&object("EnvoyFilter", "n", json!({"configPatches": [{"applyTo": "BOOTSTRAP"}]})), &sidecar));
    }

    #[test]
    fn what_is_read_accepted_or_only_reports_holds_nobody() {
        let take =
            |omissions: &mut Omissions, object: &Arc<Object>| omissions.apply([(&object.reference, Some(object))]);
        let mut omissions = Omissions::default();
        assert!(!take(&mut omissions, &object("VirtualService", "n", json!({}))));
        assert!(!take(&mut omissions, &object("Telemetry", "n", json!({}))));
        assert!(!take(&mut omissions, &object("AuthorizationPolicy", "n", json!({"action": "AUDIT"}))));
        assert!(!take(&mut omissions, &object("PeerAuthentication", "n", json!({}))), "a stage reads it");
        let kind = unread();
        if !pipeline::READ_KINDS.contains(&kind) {
            let one = object(kind, "n", json!({}));
            assert!(take(&mut omissions, &one) && !take(&mut omissions, &one));
            assert!(omissions.apply([(&one.reference, None)]));
            let mut accepting = Omissions::accepting([kind.to_owned()].into());
            assert!(!take(&mut accepting, &one));
        }
    }
}
