//! Pages that istiod has not: the state of the sources, and diagnostics.

use hyper::StatusCode;
use serde_json::{Value, json};
use trysail_plugins::catalogue::PluginStatus;
use trysail_stages::effects::{Conflict, PluginEffects};
use trysail_stages::metrics::GuestReading;
use trysail_stages::{Conduct, Standing};

use super::debug::Asked;
use super::page::Page;
use crate::render;

/// What stages, plugins and the gate have to say about what a proxy is sent.
pub fn diagnostics(asked: &Asked<'_>) -> Result<Page, Page> {
    let connected = asked.proxy()?;
    let engine = &asked.pages.engine;
    let scripted = render::Scripted::plain((*connected.proxy).clone());
    let views = render::views(engine, &scripted, &connected.proxy);
    let said = render::diagnostics(engine, &connected.proxy, &views);
    let lines: String = said.iter().map(|diagnostic| format!("{}\n", render::line(diagnostic))).collect();
    Ok(Page::text(StatusCode::OK, lines))
}

/// Objects that nothing takes up, whoever connects.
pub fn unused(asked: &Asked<'_>) -> Result<Page, Page> {
    let found = asked.pages.facts.load().unused();
    let lines: String = found.iter().map(|unused| format!("{unused}\n")).collect();
    Ok(Page::text(StatusCode::OK, lines))
}

/// What a plugin comes to, in a word. "Had no effect" is a state of its own: nothing is as silent as a patch that matches nothing.
pub(crate) fn state(
    plugin: &PluginStatus,
    did: &GuestReading,
    now: &PluginEffects,
    standing: &Standing,
) -> &'static str {
    match did {
        _ if plugin.digest.is_none() && plugin.is_pending => "on its way",
        _ if plugin.digest.is_none() => "not loaded",
        _ if standing.conduct == Conduct::Open => "circuit open",
        GuestReading { runs: 0, .. } => "not called",
        GuestReading { effective: 0, ineffective: 0, .. } => "faulty",
        _ if now.changed < plugin.post_conditions.changes_at_least => "post-condition failed",
        _ if plugin.is_shadow => "shadow",
        GuestReading { effective: 0, .. } => "no effect",
        _ if now.changed == 0 => "no effect at present",
        _ => "effective",
    }
}

/// Some of what a plugin changes, or would change.
fn examples(now: &PluginEffects) -> Vec<Value> {
    let field = |effect: &trysail_stages::Effect| json!({"item": effect.item, "path": effect.path, "before": effect.before, "after": effect.after});
    let example = |(call, effects): &(String, Vec<trysail_stages::Effect>)| json!({"call": call, "changes": effects.iter().map(field).collect::<Vec<_>>()});
    now.examples.iter().map(example).collect()
}

/// Fields that another plugin wrote as well: which, and who wins.
pub(crate) fn conflicts(now: &PluginEffects) -> Vec<Value> {
    let conflict = |conflict: &Conflict| {
        let Conflict { with, item, path, wins } = conflict;
        json!({"with": with, "item": item, "path": path, "wins": wins})
    };
    now.conflicts.iter().map(conflict).collect()
}

/// A plugin: its code, what it did since the start, and what it does at present.
fn of_plugin(plugin: &PluginStatus, did: &GuestReading, now: &PluginEffects, standing: &Standing) -> Value {
    json!({
        "name": plugin.name,
        "document": plugin.object.as_ref().map(ToString::to_string),
        "digest": plugin.digest,
        "image": plugin.image,
        "points": plugin.points,
        "mode": if plugin.is_shadow { "shadow" } else { "enforce" },
        "lastResort": plugin.is_last_resort,
        "error": plugin.error,
        "state": state(plugin, did, now, standing),
        "fragments": now.fragments,
        "changed": now.changed,
        "changesAtLeast": plugin.post_conditions.changes_at_least,
        "examples": examples(now),
        "conflicts": conflicts(now),
        "runs": did.runs,
        "seconds": did.seconds,
        "outputBytes": did.output_bytes,
        "faults": did.faults,
        "runsWithEffect": did.effective,
        "runsWithoutEffect": did.ineffective,
        "remembered": did.remembered,
        "peakMemoryBytes": did.memory,
        "linesDropped": did.unsaid,
        "putOff": did.put_off,
        "circuit": {
            "state": standing.conduct.name(),
            "why": standing.why,
            "triedAgainInSeconds": standing.again_in.map(|wait| wait.as_secs()),
            "waiting": standing.waiting,
            "keptBytes": standing.kept,
            "opened": standing.trips,
        },
    })
}

/// Why a proxy gets nothing new.
const HELD: &str = "no stage translates what protects this proxy; it keeps what it has";

/// The state of the sources, plugins and the revision served.
pub fn status(asked: &Asked<'_>) -> Result<Page, Page> {
    // Before the report is held: it walks everything that is remembered, and commits write the report.
    let effects = asked.pages.engine.plugin_effects();
    let report = asked.pages.report.lock();
    let folder = &report.folder;
    let rejections: Vec<Value> = folder
        .rejections
        .iter()
        .map(|rejection| {
            json!({
                "file": rejection.origin,
                "document": rejection.document,
                "object": rejection.object.as_ref().map(ToString::to_string),
                "field": rejection.field,
                "reason": rejection.reason,
                "lastGoodInForce": rejection.kept_last_good,
            })
        })
        .collect();
    let counters = asked.pages.engine.counters();
    let standings = asked.pages.engine.standings();
    let plugins: Vec<Value> = report
        .plugins
        .iter()
        .map(|plugin| {
            let now = effects.get(&plugin.name).cloned().unwrap_or_default();
            let standing = standings.get(&plugin.name).cloned().unwrap_or_default();
            let mut shown = of_plugin(plugin, &counters.of_guest(&plugin.name), &now, &standing);
            shown["rejections"] = asked.xds.metrics().plugin_rejects(&plugin.name).into();
            shown
        })
        .collect();
    let held = asked.pages.guard.held();
    let held =
        held.iter().map(|(proxy, object)| json!({"proxy": &**proxy, "object": object.to_string(), "reason": HELD}));
    let status = json!({
        "revision": report.revision,
        "untranslated": report.untranslated.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "heldBack": held.collect::<Vec<_>>(),
        "unreadable": folder.unreadable,
        "kinds": folder.kinds,
        "unreadKinds": folder.unread_kinds,
        "unknownKinds": folder.unknown_kinds,
        "rejections": rejections,
        "warnings": folder.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "plugins": plugins,
    });
    Ok(Page::json(&status, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_plugins::document::PostConditions;

    #[test]
    fn a_plugin_without_effect_is_a_state_of_its_own() {
        let plugin = PluginStatus {
            name: "limits".into(),
            digest: Some("abc".into()),
            points: vec!["routes".into()],
            ..PluginStatus::default()
        };
        let now = |changed| PluginEffects { fragments: 3, changed, ..PluginEffects::default() };
        let said = |plugin: &PluginStatus, did, changed| state(plugin, &did, &now(changed), &Standing::default());
        let runs = GuestReading { runs: 3, ..GuestReading::default() };
        let worked = GuestReading { effective: 1, ineffective: 2, ..runs };
        assert_eq!(said(&plugin, GuestReading::default(), 0), "not called");
        assert_eq!(said(&plugin, GuestReading { faults: 3, ..runs }, 0), "faulty");
        assert_eq!(said(&plugin, GuestReading { ineffective: 3, ..runs }, 0), "no effect");
        assert_eq!(said(&plugin, worked, 1), "effective");
        assert_eq!(said(&plugin, worked, 0), "no effect at present");
        let open = Standing { conduct: Conduct::Open, ..Standing::default() };
        assert_eq!(state(&plugin, &worked, &now(1), &open), "circuit open");
        let unloaded = PluginStatus { digest: None, error: Some("no component".into()), ..plugin.clone() };
        assert_eq!(said(&unloaded, GuestReading::default(), 0), "not loaded");
        let pending = PluginStatus { digest: None, is_pending: true, ..plugin.clone() };
        assert_eq!(said(&pending, GuestReading::default(), 0), "on its way");
        assert_eq!(said(&PluginStatus { is_shadow: true, ..plugin.clone() }, worked, 1), "shadow");
        let strict = PluginStatus { post_conditions: PostConditions { changes_at_least: 2 }, ..plugin };
        assert_eq!(said(&strict, worked, 1), "post-condition failed");
    }
}
