//! What is written into the status of objects: of what protects and is not translated that it is not, of plugins how they are.
//!
//! The leader writes, and knows of its own proxies alone: what it counts is the part of the mesh that is connected to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use trysail_kube::statuses::{Condition, Status, Wanted};
use trysail_model::ObjectRef;
use trysail_plugins::catalogue::PluginStatus;
use trysail_stages::effects::PluginEffects;
use trysail_stages::metrics::GuestReading;
use trysail_stages::{Engine, Standing};

use crate::pages::own::{conflicts, state};
use crate::server::Report;

/// Type of the condition of what protects and is not translated.
pub const TRANSLATED: &str = "trysail.io/Translated";
/// Type of the condition of plugins that says whether what the document says is in force.
pub const IN_FORCE: &str = "InForce";
/// Type of the condition of plugins that says whether that does anything.
pub const EFFECTIVE: &str = "Effective";
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// What there is to look at.
pub struct Looking {
    /// Objects and plugins.
    pub report: Arc<Mutex<Report>>,
    /// What plugins do.
    pub engine: Arc<Engine>,
    /// What proxies rejected.
    pub streams: trysail_xds::Metrics,
}

/// Conflicts that a status names.
const NAMED: usize = 5;

/// What is to be written at present.
fn wanted(Looking { report, engine, streams }: &Looking) -> BTreeMap<ObjectRef, Status> {
    // Held for a moment: walking what is remembered takes longer.
    let (untranslated, plugins) = {
        let report = report.lock();
        (report.untranslated.clone(), report.plugins.clone())
    };
    let mut wanted: BTreeMap<ObjectRef, Status> =
        untranslated.into_iter().map(|object| (object.clone(), held_back(&object))).collect();
    if plugins.iter().all(|plugin| plugin.object.is_none()) {
        return wanted;
    }
    let (effects, standings) = (engine.plugin_effects(), engine.standings());
    for plugin in &plugins {
        let Some(object) = &plugin.object else { continue };
        let did = engine.counters().of_guest(&plugin.name);
        let now = effects.get(&plugin.name).cloned().unwrap_or_default();
        let standing = standings.get(&plugin.name).cloned().unwrap_or_default();
        let rejections = streams.plugin_rejects(&plugin.name);
        wanted.insert(object.clone(), of_plugin(plugin, &did, &now, &standing, rejections));
    }
    wanted
}

/// A plugin's status: what is in force of it, and what comes of that.
fn of_plugin(
    plugin: &PluginStatus,
    did: &GuestReading,
    now: &PluginEffects,
    standing: &Standing,
    rejections: u64,
) -> Status {
    let state = state(plugin, did, now, standing);
    let fields = json!({
        "state": state,
        "mode": if plugin.is_shadow { "shadow" } else { "enforce" },
        "hooks": plugin.points,
        "digest": plugin.digest,
        "image": plugin.image,
        "lastResort": plugin.is_last_resort,
        "fragments": now.fragments,
        "changed": now.changed,
        "faults": did.faults,
        "circuit": standing.conduct.name(),
        "why": standing.why,
        "rejections": rejections,
        "conflicts": now.conflicts.len(),
        "conflictsWith": conflicts(now).into_iter().take(NAMED).collect::<Vec<_>>(),
        "error": plugin.error,
    });
    let Value::Object(fields) = fields else { unreachable!("written as an object above") };
    let before = match plugin {
        _ if plugin.digest.is_some() => "; the version before it stays in force",
        _ if plugin.is_held => "; until then proxies keep what they have where it would work (failurePolicy: hold)",
        _ => "",
    };
    let in_force = Condition {
        kind: IN_FORCE,
        holds: plugin.error.is_none() && !plugin.is_pending && plugin.digest.is_some() && !plugin.is_shadow,
        reason: match plugin {
            _ if plugin.error.is_some() => "NotLoaded",
            _ if plugin.is_pending => "OnItsWay",
            _ if plugin.is_shadow => "Shadow",
            _ => "Loaded",
        },
        message: match plugin {
            PluginStatus { error: Some(error), .. } => format!("{error}{before}"),
            PluginStatus { is_pending: true, .. } => format!("the component is on its way{before}"),
            PluginStatus { is_shadow: true, .. } => "it is called and watched, and nothing of it is sent".to_owned(),
            _ => String::new(),
        },
    };
    Status { fields, conditions: vec![in_force, effective(plugin, state, did, now, standing, rejections)] }
}

/// Whether a plugin does what it is for, as far as that can be seen.
fn effective(
    plugin: &PluginStatus,
    state: &str,
    did: &GuestReading,
    now: &PluginEffects,
    standing: &Standing,
    rejections: u64,
) -> Condition {
    let PluginEffects { fragments, changed, .. } = now;
    let would = if plugin.is_shadow { "would change" } else { "changes" };
    let mut said = vec![match state {
        "on its way" | "not loaded" => "there is no version of it".to_owned(),
        "not called" => "no proxy has anything at its hook points in its scope".to_owned(),
        "post-condition failed" => format!(
            "it {would} {changed} fragments in use, and spec.postConditions.changesAtLeast is {}",
            plugin.post_conditions.changes_at_least
        ),
        _ => format!("it {would} {changed} of the {fragments} fragments in use that it is asked about"),
    }];
    said.extend(standing.why.as_ref().map(ToString::to_string));
    if did.faults > 0 {
        said.push(format!("{} faults since the start", did.faults));
    }
    if rejections > 0 {
        said.push(format!("proxies rejected {rejections} responses for what it wrote since the start"));
    }
    let lost: BTreeSet<&str> = now.conflicts.iter().filter(|c| !c.wins).map(|c| c.with.as_str()).collect();
    if !lost.is_empty() {
        let others = lost.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
        said.push(format!("of fields that it writes, {others} has the last word"));
    }
    let (holds, reason) = match state {
        "effective" if rejections > 0 => (false, "Rejected"),
        "effective" => (true, "Changes"),
        "on its way" => (false, "OnItsWay"),
        "not loaded" => (false, "NotLoaded"),
        "not called" => (false, "NotCalled"),
        "faulty" => (false, "Faulty"),
        "circuit open" => (false, "CircuitOpen"),
        "post-condition failed" => (false, "PostConditionFailed"),
        "shadow" => (false, "Shadow"),
        _ => (false, "NoEffect"),
    };
    Condition { kind: EFFECTIVE, holds, reason, message: said.join("; ") }
}

fn held_back(object: &ObjectRef) -> Status {
    let message = format!(
        "no stage translates this kind: the proxies that it selects keep what they have and get nothing new, unless \
         --accept-untranslated={} says otherwise",
        object.kind
    );
    let condition = Condition { kind: TRANSLATED, holds: false, reason: "NoStage", message };
    Status { fields: Map::new(), conditions: vec![condition] }
}

/// Tells what is to be written, as it moves. Runs until its task is aborted.
pub async fn watch(looking: Looking, wanted_tx: watch::Sender<Wanted>) {
    let looking = Arc::new(looking);
    loop {
        let looking = looking.clone();
        // It walks what is remembered, which belongs on no thread of the streams.
        let now = tokio::task::spawn_blocking(move || wanted(&looking)).await;
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

#[cfg(test)]
mod tests {
    use trysail_stages::effects::Conflict;

    use super::*;

    fn condition<'a>(status: &'a Status, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.kind == kind).unwrap()
    }

    #[test]
    fn a_status_says_all_that_is_wrong() {
        let plugin = PluginStatus { name: "shop/a".into(), digest: Some("d".into()), ..PluginStatus::default() };
        let did = GuestReading { runs: 3, effective: 3, faults: 2, ..GuestReading::default() };
        let lost = Conflict { with: "shop/b".into(), item: "i".into(), path: "p".into(), wins: false };
        let now = PluginEffects { fragments: 4, changed: 3, conflicts: [lost].into(), ..PluginEffects::default() };
        let status = of_plugin(&plugin, &did, &now, &Standing::default(), 0);
        let effective = condition(&status, EFFECTIVE);
        assert_eq!((effective.holds, effective.reason), (true, "Changes"));
        for words in ["3 of the 4 fragments", "2 faults", "shop/b has the last word"] {
            assert!(effective.message.contains(words), "{}", effective.message);
        }
        assert_eq!(
            (&status.fields["conflicts"], &status.fields["conflictsWith"][0]["wins"]),
            (&json!(1), &json!(false))
        );
        assert!(condition(&status, IN_FORCE).holds);

        let rejected = of_plugin(&plugin, &did, &now, &Standing::default(), 7);
        assert_eq!(rejected.fields["rejections"], 7);
        let effective = condition(&rejected, EFFECTIVE);
        assert_eq!((effective.holds, effective.reason), (false, "Rejected"));
        assert!(effective.message.contains("rejected 7 responses"), "{}", effective.message);
    }

    #[test]
    fn what_is_in_force_is_told_from_what_should_be() {
        let in_force = |plugin: &PluginStatus| {
            let status =
                of_plugin(plugin, &GuestReading::default(), &PluginEffects::default(), &Standing::default(), 0);
            let Condition { holds, reason, message, .. } = condition(&status, IN_FORCE).clone();
            (holds, reason, message)
        };
        let old = PluginStatus { digest: Some("d".into()), ..PluginStatus::default() };
        assert_eq!(in_force(&old), (true, "Loaded", String::new()));
        let (holds, reason, message) = in_force(&PluginStatus { is_pending: true, ..old.clone() });
        assert_eq!((holds, reason), (false, "OnItsWay"));
        assert!(message.contains("the version before it stays in force"), "{message}");
        let (holds, reason, message) = in_force(&PluginStatus { error: Some("no such image".into()), ..old.clone() });
        assert_eq!((holds, reason), (false, "NotLoaded"));
        assert!(message.starts_with("no such image; the version before"), "{message}");
        let (.., message) = in_force(&PluginStatus { error: Some("no such image".into()), ..PluginStatus::default() });
        assert_eq!(message, "no such image");
        assert_eq!(in_force(&PluginStatus { is_shadow: true, ..old }).1, "Shadow");
    }
}
