//! What the control plane has to say of objects, written into their status.
//!
//! Only the leader writes. Levels decide, not events: what is wanted is compared with what was written last, after it moved, after
//! leadership came, and every minute. A condition is put into the list of conditions beside those of others; fields are merged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use trysail_discovery::kinds;
use trysail_model::ObjectRef;

use crate::election::Leadership;
use crate::watched::Watched;

/// Between two looks without a reason.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);

/// What is to stand in an object's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Fields.
    pub fields: Map<String, Value>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// A condition of an object, as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type, `trysail.io/Translated`. Nobody else writes those of the type.
    pub kind: &'static str,
    /// Does it hold?
    pub holds: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in words.
    pub message: String,
}

/// All that is to be written.
pub type Wanted = Arc<BTreeMap<ObjectRef, Status>>;

/// Writes statuses.
pub struct Writer {
    /// The API server.
    pub client: Client,
    /// Are we the one who may write?
    pub leadership: Leadership,
    /// What is to be written. Objects that leave it lose the condition.
    pub wanted_rx: watch::Receiver<Wanted>,
}

impl Writer {
    /// Runs until its task is aborted.
    pub async fn run(mut self) {
        let mut written: BTreeMap<ObjectRef, Status> = BTreeMap::new();
        let mut has_led = false;
        loop {
            let mut pause = RESYNC;
            if self.leadership.holds() {
                if !has_led {
                    // Another may have written since.
                    written.clear();
                    has_led = true;
                }
                let wanted = self.wanted_rx.borrow_and_update().clone();
                if !self.reconcile(&wanted, &mut written).await {
                    pause = RETRY;
                }
            } else {
                has_led = false;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.leadership.changed() => if changed.is_err() { return },
                changed = self.wanted_rx.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Writes what differs from what was written. False when something could not be.
    async fn reconcile(&self, wanted: &BTreeMap<ObjectRef, Status>, written: &mut BTreeMap<ObjectRef, Status>) -> bool {
        let mut all_written = true;
        let gone: Vec<ObjectRef> = written.keys().filter(|object| !wanted.contains_key(*object)).cloned().collect();
        for object in gone {
            let old = written.get(&object).map(|status| status.conditions.as_slice()).unwrap_or_default();
            let removed: Vec<&str> = old.iter().map(|condition| condition.kind).collect();
            let is_written = removed.is_empty() || self.write(&object, &Status::default(), &removed).await;
            if is_written {
                written.remove(&object);
            }
            all_written &= is_written;
        }
        for (object, status) in wanted {
            if !self.leadership.holds() {
                return true;
            }
            if written.get(object) == Some(status) {
                continue;
            }
            if self.write(object, status, &[]).await {
                written.insert(object.clone(), status.clone());
            } else {
                all_written = false;
            }
        }
        all_written
    }

    /// Writes one status; `removed` are types of conditions that go. False when it could not be.
    async fn write(&self, object: &ObjectRef, status: &Status, removed: &[&str]) -> bool {
        let Some(kind) = kinds::named(&object.kind) else { return true };
        let Some(version) = kind.versions.first() else { return true };
        let resource = Watched::new(kind).resource(version);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        let there = match api.get_status(&object.name).await {
            Ok(there) => there,
            // Gone since, or a kind whose status is no part of its own.
            Err(kube::Error::Api(status)) if status.code == 404 => return true,
            Err(error) => return failed(object, &error),
        };
        let before = there.data.get("status").cloned().unwrap_or_default();
        let generation = there.metadata.generation;
        let now = merged(&before, status, removed, generation, &timestamp());
        if now == before {
            return true;
        }
        // With the version that it was decided by: whoever wrote since is heard first.
        let patch = json!({"metadata": {"resourceVersion": there.metadata.resource_version}, "status": now});
        match api.patch_status(&object.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 404 => true,
            Err(error) => failed(object, &error),
        }
    }
}

fn failed(object: &ObjectRef, error: &kube::Error) -> bool {
    tracing::warn!(%object, %error, "a status could not be written");
    false
}

fn timestamp() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A status with ours in it. The time of a condition moves when it comes to hold or ceases to, and then alone.
fn merged(before: &Value, status: &Status, removed: &[&str], generation: Option<i64>, now: &str) -> Value {
    let mut fields = before.as_object().cloned().unwrap_or_default();
    fields.extend(status.fields.clone());
    let mut conditions = fields.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let is = |condition: &Value, kind: &str| condition.get("type").is_some_and(|is| is == kind);
    conditions.retain(|condition| !removed.iter().any(|kind| is(condition, kind)));
    for Condition { kind, holds, reason, message } in &status.conditions {
        let holds = if *holds { "True" } else { "False" };
        let old = conditions.iter().position(|condition| is(condition, kind));
        let since = old.map(|at| &conditions[at]).filter(|old| old["status"] == holds);
        let since = since.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now).to_owned();
        let mut new =
            json!({"type": kind, "status": holds, "reason": reason, "message": message, "lastTransitionTime": since});
        if let Some(generation) = generation {
            new["observedGeneration"] = generation.into();
        }
        match old {
            Some(at) => conditions[at] = new,
            None => conditions.push(new),
        }
    }
    if !conditions.is_empty() || before.get("conditions").is_some() {
        fields.insert("conditions".into(), Value::Array(conditions));
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(holds: bool) -> Status {
        let condition = Condition { kind: "trysail.io/Translated", holds, reason: "R", message: "m".into() };
        Status { fields: Map::new(), conditions: vec![condition] }
    }

    #[test]
    fn a_condition_stands_beside_those_of_others() {
        let theirs = json!({"type": "Ready", "status": "True"});
        let before = json!({"conditions": [theirs], "addresses": ["1.1.1.1"]});
        let now = merged(&before, &status(false), &[], Some(3), "t1");
        assert_eq!((&now["addresses"], &now["conditions"][0]), (&before["addresses"], &theirs));
        let ours = &now["conditions"][1];
        assert_eq!((&ours["type"], &ours["status"]), (&json!("trysail.io/Translated"), &json!("False")));
        assert_eq!(ours["lastTransitionTime"], "t1");
        assert_eq!(merged(&now, &status(false), &[], Some(3), "t2"), now, "nothing moved, nor does the time");
        assert_eq!(merged(&now, &status(true), &[], Some(3), "t2")["conditions"][1]["lastTransitionTime"], "t2");
        let without = merged(&now, &Status::default(), &["trysail.io/Translated"], Some(3), "t2");
        assert_eq!(without["conditions"], json!([theirs]));
    }

    #[test]
    fn fields_are_ours_alone() {
        let fields = json!({"state": "effective"}).as_object().unwrap().clone();
        let status = Status { fields, conditions: Vec::new() };
        assert_eq!(merged(&Value::Null, &status, &[], None, "t"), json!({"state": "effective"}));
        assert_eq!(
            merged(&json!({"state": "x", "y": 1}), &status, &[], None, "t"),
            json!({"state": "effective", "y": 1})
        );
    }
}
