//! Pages that istiod has not: the state of the sources, and diagnostics.

use hyper::StatusCode;
use serde_json::{Value, json};
use trysail_stages::metrics::GuestReading;
use trysail_stages::plugins::PluginStatus;

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

/// A plugin: its code, and what it did since the start.
fn of_plugin(plugin: &PluginStatus, did: &GuestReading) -> Value {
    let state = match did {
        _ if plugin.digest.is_none() => "not loaded",
        GuestReading { runs: 0, .. } => "not called",
        GuestReading { effective: 0, ineffective: 0, .. } => "faulty",
        GuestReading { effective: 0, .. } => "no effect",
        _ => "effective",
    };
    json!({
        "name": plugin.name,
        "digest": plugin.digest,
        "points": plugin.points,
        "error": plugin.error,
        "state": state,
        "runs": did.runs,
        "seconds": did.seconds,
        "outputBytes": did.output_bytes,
        "faults": did.faults,
        "runsWithEffect": did.effective,
        "runsWithoutEffect": did.ineffective,
    })
}

/// Why a proxy gets nothing new.
const HELD: &str = "no stage translates what protects this proxy; it keeps what it has";

/// The state of the sources, plugins and the revision served.
pub fn status(asked: &Asked<'_>) -> Result<Page, Page> {
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
    let plugins: Vec<Value> = report
        .plugins
        .iter()
        .map(|plugin| {
            let mut shown = of_plugin(plugin, &counters.of_guest(&plugin.name));
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

    #[test]
    fn a_plugin_without_effect_is_a_state_of_its_own() {
        let plugin = PluginStatus {
            name: "limits".into(),
            digest: Some("abc".into()),
            points: vec!["routes".into()],
            error: None,
        };
        let state = |did: GuestReading| of_plugin(&plugin, &did)["state"].clone();
        let runs = GuestReading { runs: 3, ..GuestReading::default() };
        assert_eq!(state(GuestReading::default()), "not called");
        assert_eq!(state(GuestReading { faults: 3, ..runs }), "faulty");
        assert_eq!(state(GuestReading { ineffective: 3, ..runs }), "no effect");
        assert_eq!(state(GuestReading { effective: 1, ineffective: 2, ..runs }), "effective");
        let unloaded = PluginStatus { digest: None, error: Some("no component".into()), ..plugin.clone() };
        assert_eq!(of_plugin(&unloaded, &GuestReading::default())["state"], "not loaded");
    }
}
