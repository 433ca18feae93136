//! The terms of a plugin, made of its document.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use trysail_sdk::hooks::fits;
use trysail_sdk::{Entry, Item, Message, Outcome, Part};
use trysail_stages::terms::{Ask, Effects};
use trysail_stages::{FaultKind, Limits, Place, Settled};

use crate::hooks::{self, Hook, Items};
use crate::rights::Rights;
use crate::{difference, edit, invariants, names};

/// Names the protobuf message of a kind's documents: `VirtualService` has `istio.networking.v1alpha3.VirtualService`.
pub type DocumentMessage = fn(kind: &str) -> Option<&'static str>;

/// For which proxies and services a plugin works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespaces of proxies; empty for all.
    pub namespaces: Vec<String>,
    /// Labels of proxies, `key=value`; empty for all.
    pub labels: Vec<String>,
    /// Keys of services, `namespace/host`, `*` at an end for anything; empty for all, and for what is about no service.
    pub services: Vec<String>,
}

/// The terms of one plugin.
pub struct Terms {
    /// The plugin's configuration as JSON.
    pub configuration: String,
    /// Where it works.
    pub scope: Scope,
    /// What it may do.
    pub rights: Rights,
    /// It is only watched.
    pub is_shadow: bool,
    /// Every call gets an instance of its own: for guests that remember, as those of script languages do.
    pub is_fresh: bool,
    /// Its own limits, where it has some.
    pub limits: OwnLimits,
    /// Messages of documents, for answers as JSON.
    pub documents: DocumentMessage,
}

/// What a plugin may return, bytes, unless its document says otherwise: far more than any fragment, and what the host makes of it
/// takes many times the memory.
pub const OUTPUT: usize = 4 << 20;
/// What a plugin may ask, unless its document says otherwise. The host remembers each question.
pub const QUERIES: usize = 10_000;

/// Limits of one plugin, in place of those of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// Linear memory, bytes.
    pub memory: Option<usize>,
    /// Time of a call.
    pub deadline: Option<Duration>,
    /// Output, bytes.
    pub output: Option<usize>,
    /// Questions of a call.
    pub queries: Option<usize>,
}

/// What the answer to a question is.
#[derive(Clone, Copy)]
enum Answered {
    /// A message of this name.
    Message(&'static str),
    /// A text.
    Text,
    /// A truth value.
    Truth,
}

/// Questions, and what answers them.
const QUESTIONS: [(&str, Answered); 26] = [
    ("mesh-config", Answered::Message("istio.mesh.v1alpha1.MeshConfig")),
    ("features", Answered::Message("trysail.facts.v1.Strings")),
    ("setting", Answered::Text),
    ("service", Answered::Message("trysail.facts.v1.Service")),
    ("services-of-host", Answered::Message("trysail.facts.v1.Strings")),
    ("services-in-namespace", Answered::Message("trysail.facts.v1.ServiceSummaries")),
    ("endpoints", Answered::Message("trysail.facts.v1.Endpoints")),
    ("has-ready-endpoints", Answered::Truth),
    ("service-accounts", Answered::Message("trysail.facts.v1.Strings")),
    ("targets-at", Answered::Message("trysail.facts.v1.ServiceTargets")),
    ("workload-at", Answered::Message("trysail.facts.v1.Workload")),
    ("namespace", Answered::Message("trysail.facts.v1.Namespace")),
    ("network-gateways", Answered::Message("trysail.facts.v1.NetworkGateways")),
    ("network-ranges", Answered::Message("trysail.facts.v1.Strings")),
    ("object", Answered::Message("trysail.facts.v1.Object")),
    ("selectors", Answered::Message("trysail.facts.v1.SelectorSummaries")),
    ("selector-namespaces", Answered::Message("trysail.facts.v1.Strings")),
    ("proxy", Answered::Text),
    ("proxy-in-namespaces", Answered::Text),
    ("proxy-labels-match", Answered::Truth),
    ("proxy-has-address", Answered::Truth),
    ("proxy-version-at-least", Answered::Truth),
    ("proxy-version-matches", Answered::Truth),
    ("proxy-metadata-match", Answered::Truth),
    ("proxy-targets", Answered::Message("trysail.facts.v1.ServiceTargets")),
    ("proxy-config", Answered::Message("istio.mesh.v1alpha1.ProxyConfig")),
];

/// Names of the questions that plugins can ask.
pub(crate) fn questions() -> impl Iterator<Item = &'static str> {
    QUESTIONS.iter().map(|(name, _)| *name).chain(OF_LINE_0_1)
}

/// Questions of the 0.1 line alone.
const OF_LINE_0_1: [&str; 10] = [
    "destination-rules-matching",
    "envoy-filter",
    "gateway-destinations",
    "gateway-virtual-service-namespaces",
    "gateway-virtual-services",
    "service-index",
    "service-index-namespaces",
    "virtual-service-gateways",
    "virtual-service-index",
    "virtual-service-index-namespaces",
];

impl Terms {
    fn hook(place: &Place) -> Result<&'static Hook, String> {
        hooks::find(&place.hook).ok_or_else(|| format!("there is no hook point {}", place.hook))
    }

    /// The items after a plugin's outcome; `None` when they are not for us to read: they refer to other calls.
    fn after(
        &self,
        place: &Place,
        message: &str,
        before: &Items,
        outcome: &Outcome,
    ) -> Result<Option<Items>, FaultKind> {
        let bytes = self.limits.output.unwrap_or(OUTPUT);
        let hook = Self::hook(place).map_err(FaultKind::Edit)?;
        match outcome {
            Outcome::Unchanged => Ok(Some(before.clone())),
            Outcome::Edited(edits) => {
                let parts = hook.parts(&place.point);
                let mut items = before.clone();
                if parts.is_empty() {
                    edit::apply(&mut items, message, &edits.edits, bytes).map_err(FaultKind::Edit)?;
                } else {
                    let mut shown = hooks::shown(before, &parts, hook.message_shown(&place.point));
                    let keys: Vec<String> = shown.iter().map(|(key, _)| key.clone()).collect();
                    edit::apply(&mut shown, hook.message_shown(&place.point), &edits.edits, bytes)
                        .map_err(FaultKind::Edit)?;
                    if let Some((new, _)) = shown.iter().find(|(key, _)| !keys.contains(key)) {
                        let why = format!("puts {new:?}, where only what is there can be changed");
                        return Err(FaultKind::Edit(why));
                    }
                    hooks::put_back(&mut items, &parts, &shown, hook.message_shown(&place.point));
                }
                Ok(Some(items))
            }
            Outcome::Replaced(output) => {
                let mut items = Items::new();
                for entry in &output.entries {
                    let Some((key, bytes)) = plain(entry) else { return Ok(None) };
                    let value = trysail_codec::json::to_json(message, &bytes);
                    items.push((key, value.map_err(|error| FaultKind::BadOutput(error.to_string()))?));
                }
                Ok(Some(items))
            }
        }
    }
}

/// An item that refers to no other call.
fn plain(entry: &Entry) -> Option<(String, Vec<u8>)> {
    let Entry::Item(item) = entry else { return None };
    let mut bytes = Vec::new();
    for part in &item.message.parts {
        let Part::Bytes(part) = part else { return None };
        bytes.extend_from_slice(part);
    }
    Some((item.key.clone(), bytes))
}

impl trysail_stages::Terms for Terms {
    fn admits(&self, place: &Place, ask: &mut Ask<'_>) -> bool {
        let Scope { namespaces, labels, services } = &self.scope;
        let target = &place.target;
        // What can be told without a question comes first.
        if !services.is_empty() && !services.iter().any(|pattern| fits(pattern, &target.service)) {
            return false;
        }
        if let Some(tenant) = &self.rights.tenant {
            let elsewhere = |key: &str| key.split_once('/').is_some_and(|(namespace, _)| namespace != tenant);
            if elsewhere(&target.service) || &*place.point == "routes" && elsewhere(&target.name) {
                return false;
            }
            if ask("proxy-in-namespaces", vec![tenant.clone()]).is_none() {
                return false;
            }
            if &*place.point == "endpoints" {
                let host = target.name.rsplit('|').next().unwrap_or_default();
                let keys = ask("services-of-host", vec![host.to_owned()]).unwrap_or_default();
                let keys = trysail_codec::json::to_json("trysail.facts.v1.Strings", &keys).unwrap_or_default();
                let keys = keys["values"].as_array().cloned().unwrap_or_default();
                if keys.is_empty() || keys.iter().any(|key| elsewhere(key.as_str().unwrap_or_default())) {
                    return false;
                }
            }
        }
        (namespaces.is_empty() || ask("proxy-in-namespaces", namespaces.clone()).is_some())
            && (labels.is_empty() || ask("proxy-labels-match", labels.clone()).is_some())
    }

    fn shows(&self, place: &Place, items: &[(String, Bytes)]) -> Result<Vec<(String, Bytes)>, String> {
        let hook = Self::hook(place)?;
        let parts = hook.parts(&place.point);
        if parts.is_empty() {
            return Ok(items.to_vec());
        }
        let message = hooks::message_at(&place.point).unwrap_or_default();
        let items = hooks::decode(message, items)?;
        let message = hook.message_shown(&place.point);
        let shown = hooks::shown(&items, &parts, message);
        shown.iter().map(|(key, value)| Ok((key.clone(), hooks::encode(message, key, value)?.into()))).collect()
    }

    fn item_json(&self, place: &Place, bytes: &[u8]) -> Result<String, String> {
        let message = Self::hook(place)?.message_shown(&place.point);
        Ok(trysail_codec::json::to_json(message, bytes).map_err(|error| error.to_string())?.to_string())
    }

    fn query(&self, name: &str) -> Option<&'static str> {
        QUESTIONS.iter().map(|(query, _)| *query).find(|query| *query == name)
    }

    fn answer_json(&self, query: &str, args: &[String], answer: Option<&[u8]>) -> Result<Option<String>, String> {
        let found = QUESTIONS.iter().find(|(name, _)| *name == query);
        let (_, answered) = found.ok_or_else(|| format!("asked {query:?}, which is no question"))?;
        let (message, answer) = match (answered, answer) {
            (Answered::Truth, answer) => return Ok(Some(answer.is_some().to_string())),
            (_, None) => return Ok(None),
            (Answered::Text, Some(text)) => return Ok(Some(Value::from(String::from_utf8_lossy(text)).to_string())),
            (Answered::Message(message), Some(answer)) => (message, answer),
        };
        let mut value = trysail_codec::json::to_json(message, answer).map_err(|error| error.to_string())?;
        if query == "object"
            && let Some(message) = args.first().and_then(|kind| (self.documents)(kind))
        {
            // The document travels as bytes within the answer.
            let object = trysail_codec::json::decode("trysail.facts.v1.Object", answer);
            let object = object.map_err(|error| error.to_string())?;
            let spec = object.get_field_by_name("spec").and_then(|spec| spec.as_bytes().cloned()).unwrap_or_default();
            value["spec"] = trysail_codec::json::to_json(message, &spec).map_err(|error| error.to_string())?;
        }
        Ok(Some(value.to_string()))
    }

    fn configuration(&self) -> &str {
        &self.configuration
    }

    fn may_ask(&self, query: &str, args: &[String]) -> Result<(), String> {
        self.rights.may_ask(query, args)
    }

    fn settle(&self, place: &Place, before: &[(String, Bytes)], outcome: Outcome) -> Result<Settled, FaultKind> {
        let message = hooks::message_at(&place.point).unwrap_or_default();
        let diagnostics = match &outcome {
            Outcome::Unchanged => Vec::new(),
            Outcome::Replaced(output) => output.diagnostics.clone(),
            Outcome::Edited(edits) => edits.diagnostics.clone(),
        };
        let changes = match &outcome {
            Outcome::Unchanged => false,
            Outcome::Replaced(_) => true,
            Outcome::Edited(edits) => !edits.edits.is_empty(),
        };
        if !changes {
            return Ok(Settled { diagnostics, ..Settled::default() });
        }
        let old = hooks::decode(message, before).map_err(FaultKind::BadOutput)?;
        let Some(new) = self.after(place, message, &old, &outcome)? else {
            return self.unread(outcome, diagnostics);
        };
        // What is judged is what will be sent: a field has two spellings, and of a oneof there is one member.
        let numbers: BTreeMap<&String, usize> = old.iter().map(|(key, _)| key).zip(0..).collect();
        let mut entries = Vec::with_capacity(new.len());
        let mut sent = Vec::with_capacity(new.len());
        for (key, value) in new {
            // What is as it was keeps its very bytes.
            let same = numbers.get(&key).copied().filter(|number| old[*number].1 == value);
            let (bytes, value) = match same {
                Some(number) => (before[number].1.to_vec(), value),
                None => {
                    let bytes = hooks::encode(message, &key, &value).map_err(FaultKind::Edit)?;
                    let value = trysail_codec::json::to_json(message, &bytes);
                    (bytes, value.map_err(|error| FaultKind::Edit(format!("item {key:?}: {error}")))?)
                }
            };
            entries.push(Entry::Item(Item::new(key.clone(), Message::encoded(bytes))));
            sent.push((key, value));
        }
        let new = sent;
        let mut judge = |item: &str, path: &str| self.rights.may_change(&place.hook, item, path);
        let changed = difference::judged(&old, &new, &mut judge).map_err(FaultKind::Rights)?;
        if changed.is_empty() {
            return Ok(Settled { diagnostics, ..Settled::default() });
        }
        if let Some(why) = names::mistaken(message, &old, &new) {
            return Err(FaultKind::Edit(why));
        }
        if !self.rights.may_weaken_security
            && let Some(why) = invariants::weakened(message, &old, &new)
        {
            return Err(FaultKind::Rights(why));
        }
        let effects = Effects { list: changed, is_shadow: self.is_shadow };
        Ok(Settled { entries: (!self.is_shadow).then_some(entries), diagnostics, effects })
    }

    fn limits(&self, of_all: Limits) -> Limits {
        let own = &self.limits;
        Limits {
            memory: own.memory.unwrap_or(of_all.memory),
            deadline: own.deadline.unwrap_or(of_all.deadline),
            output: own.output.unwrap_or(of_all.output.min(OUTPUT)),
            queries: own.queries.unwrap_or(of_all.queries.min(QUERIES)),
            ..of_all
        }
    }

    fn tenant(&self) -> Option<&str> {
        self.rights.tenant.as_deref()
    }

    fn is_fresh(&self) -> bool {
        self.is_fresh
    }
}

impl Terms {
    /// What refers to other calls cannot be judged here, so whoever has bounds may not.
    fn unread(&self, outcome: Outcome, diagnostics: Vec<trysail_sdk::Diagnostic>) -> Result<Settled, FaultKind> {
        let Outcome::Replaced(output) = outcome else { return Ok(Settled { diagnostics, ..Settled::default() }) };
        let why = "returned references to other calls, which nobody can judge (rights.mayWeakenSecurity allows it)";
        if self.rights.writes.is_some() || self.rights.tenant.is_some() || !self.rights.may_weaken_security {
            return Err(FaultKind::Rights(why.to_owned()));
        }
        let whole = trysail_stages::Effect { item: String::new(), path: String::new(), before: None, after: None };
        let effects = Effects { list: vec![whole], is_shadow: self.is_shadow };
        Ok(Settled { entries: (!self.is_shadow).then_some(output.entries), diagnostics, effects })
    }
}
