//! What is written into the status of objects: of what protects and is not translated that it is not, of plugins how they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use trysail_kube::statuses::{Condition, Status, Wanted};
use trysail_model::ObjectRef;
use trysail_stages::Engine;

use crate::pages::own::state;
use crate::server::Report;

/// Type of the condition of what protects and is not translated.
pub const TRANSLATED: &str = "trysail.io/Translated";
/// Type of the condition of plugins.
pub const IN_FORCE: &str = "InForce";
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// What is to be written at present.
fn wanted(report: &Mutex<Report>, engine: &Engine) -> BTreeMap<ObjectRef, Status> {
    // Not held while everything that is remembered is walked: commits write it.
    let (untranslated, plugins) = {
        let report = report.lock();
        (report.untranslated.clone(), report.plugins.clone())
    };
    let mut wanted: BTreeMap<ObjectRef, Status> =
        untranslated.iter().map(|object| (object.clone(), held_back(object))).collect();
    if plugins.iter().all(|plugin| plugin.object.is_none()) {
        return wanted;
    }
    let (effects, standings) = (engine.plugin_effects(), engine.standings());
    for plugin in &plugins {
        let Some(object) = &plugin.object else { continue };
        let did = engine.counters().of_guest(&plugin.name);
        let now = effects.get(&plugin.name).cloned().unwrap_or_default();
        let standing = standings.get(&plugin.name).cloned().unwrap_or_default();
        let fields = json!({
            "state": state(plugin, &did, &now, &standing),
            "hooks": plugin.points,
            "digest": plugin.digest,
            "fragments": now.fragments,
            "changed": now.changed,
            "faults": did.faults,
            "circuit": standing.conduct.name(),
            "why": standing.why,
            "error": plugin.error,
        });
        let Value::Object(fields) = fields else { unreachable!("written as an object above") };
        let condition = Condition {
            kind: IN_FORCE,
            holds: plugin.error.is_none() && plugin.digest.is_some() && !plugin.is_shadow,
            reason: match plugin {
                _ if plugin.error.is_some() => "NotLoaded",
                _ if plugin.is_pending => "OnItsWay",
                _ if plugin.is_shadow => "Shadow",
                _ => "Loaded",
            },
            message: plugin.error.clone().unwrap_or_default(),
        };
        wanted.insert(object.clone(), Status { fields, condition: Some(condition) });
    }
    wanted
}

fn held_back(object: &ObjectRef) -> Status {
    let message = format!(
        "no stage translates this kind: the proxies that it selects keep what they have and get nothing new, unless \
         --accept-untranslated={} says otherwise",
        object.kind
    );
    let condition = Condition { kind: TRANSLATED, holds: false, reason: "NoStage", message };
    Status { fields: Map::new(), condition: Some(condition) }
}

/// Tells what is to be written, as it moves. Runs until its task is aborted.
pub async fn watch(report: Arc<Mutex<Report>>, engine: Arc<Engine>, wanted_tx: watch::Sender<Wanted>) {
    loop {
        let (report, engine) = (report.clone(), engine.clone());
        // It walks what is remembered, which belongs on no thread of the streams.
        let now = tokio::task::spawn_blocking(move || wanted(&report, &engine)).await;
        if let Ok(now) = now {
            wanted_tx.send_if_modified(|old| {
                let is_other = **old != now;
                if is_other {
                    *old = Arc::new(now);
                }
                is_other
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
