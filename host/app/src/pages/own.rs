//! Pages that istiod has not: the state of the sources, and diagnostics.

use hyper::StatusCode;
use serde_json::{Value, json};

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
    let plugins: Vec<Value> = report
        .plugins
        .iter()
        .map(|plugin| json!({"name": plugin.name, "digest": plugin.digest, "points": plugin.points, "error": plugin.error}))
        .collect();
    let status = json!({
        "revision": report.revision,
        "kinds": folder.kinds,
        "unreadKinds": folder.unread_kinds,
        "unknownKinds": folder.unknown_kinds,
        "rejections": rejections,
        "warnings": folder.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "plugins": plugins,
    });
    Ok(Page::json(&status, true))
}
