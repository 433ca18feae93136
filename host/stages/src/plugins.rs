//! Plugins from a folder: loaded, replaced and removed while everything runs.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;

use crate::component::Runtime;
use crate::engine::{Advance, Engine, HookTable, Hooked};
use crate::fault::FailurePolicy;
use crate::guest::Guest;

/// The hook points, and what plugins do there.
pub const POINTS: [&str; 7] =
    ["clusters", "endpoints", "routes", "virtual-host", "listener", "http-filters", "network-filters"];

/// Full name of the message that plugins insert at a hook point; `None` for points at which they transform.
pub fn inserted_message(point: &str) -> Option<&'static str> {
    match point {
        "http-filters" => Some("envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"),
        "network-filters" => Some("envoy.config.listener.v3.Filter"),
        _ => None,
    }
}

/// `NAME.json` beside `NAME.wasm`: settings of a plugin.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Settings {
    /// What a fault does: `skip` (the default) or `hold`.
    pub failure_policy: Policy,
    /// Plugins of lower numbers run first; equal ones by name.
    pub order: i32,
}

/// The failure policy as it is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The fragment goes out as it was before the plugin.
    #[default]
    Skip,
    /// What each subscriber was last served stays.
    Hold,
}

impl From<Policy> for FailurePolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Skip => FailurePolicy::Skip,
            Policy::Hold => FailurePolicy::Hold,
        }
    }
}

/// Size and time of a file: what tells that it changed.
type Stamp = (u64, Option<SystemTime>);

/// A plugin's code and its hook points.
type Code = (Arc<dyn Guest>, Vec<String>);

struct Loaded {
    stamps: (Stamp, Option<Stamp>),
    guest: Option<Code>,
    settings: Settings,
    error: Option<String>,
}

/// The plugins of a folder.
pub struct PluginFolder {
    folder: PathBuf,
    runtime: Arc<Runtime>,
    loaded: BTreeMap<String, Loaded>,
}

/// A plugin, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginStatus {
    /// Its name: the file's without `.wasm`.
    pub name: String,
    /// Digest of the code in force; none when no version ever loaded.
    pub digest: Option<String>,
    /// Its hook points.
    pub points: Vec<String>,
    /// Why the newest version of its file is not in force.
    pub error: Option<String>,
}

impl PluginFolder {
    /// A folder; nothing is read yet.
    pub fn new(folder: PathBuf, runtime: Arc<Runtime>) -> Self {
        PluginFolder { folder, runtime, loaded: BTreeMap::new() }
    }

    /// Reads what is new in the folder. True when the plugins in force may differ. A file that does not load is reported in the
    /// status and leaves the version before it in force.
    pub fn scan(&mut self) -> bool {
        let mut found = BTreeMap::new();
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "cannot read the plugins' folder; all stay in force");
                return false;
            }
        };
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            let name = name.trim_end_matches(".component").to_owned();
            if path.extension().is_some_and(|extension| extension == "wasm") && !name.starts_with('.') {
                found.extend(stamp(&path).map(|stamp| (name, (path, stamp))));
            }
        }
        let before = self.loaded.len();
        self.loaded.retain(|name, _| found.contains_key(name));
        let mut changed = self.loaded.len() != before;
        for (name, (path, file)) in found {
            let beside = self.folder.join(format!("{name}.json"));
            let stamps = (file, stamp(&beside));
            if self.loaded.get(&name).is_some_and(|loaded| loaded.stamps == stamps) {
                continue;
            }
            let old = self.loaded.remove(&name);
            let loaded = match self.load(&name, &path, &beside) {
                Ok((guest, settings)) => {
                    tracing::info!(plugin = name, points = guest.1.join(","), "plugin loaded");
                    Loaded { stamps, guest: Some(guest), settings, error: None }
                }
                Err(error) => {
                    tracing::error!(plugin = name, error, "plugin not loaded; a version before it stays in force");
                    let (guest, settings) = old.map(|old| (old.guest, old.settings)).unwrap_or_default();
                    Loaded { stamps, guest, settings, error: Some(error) }
                }
            };
            self.loaded.insert(name, loaded);
            changed = true;
        }
        changed
    }

    fn load(&self, name: &str, path: &Path, beside: &Path) -> Result<(Code, Settings), String> {
        let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let settings = match std::fs::read(beside) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", beside.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Settings::default(),
            Err(error) => return Err(format!("cannot read {}: {error}", beside.display())),
        };
        let (guest, points) = self.runtime.plugin(name, &bytes).map_err(|error| with_causes(&error))?;
        if let Some(unknown) = points.iter().find(|point| !POINTS.contains(&point.as_str())) {
            return Err(format!(
                "it asks for the hook point {unknown:?}, which there is not; there are {}",
                POINTS.join(", ")
            ));
        }
        Ok(((guest, points), settings))
    }

    /// The plugins in force, by hook point.
    pub fn table(&self) -> HookTable {
        let mut in_order: Vec<(&String, &Loaded)> = self.loaded.iter().collect();
        in_order.sort_by_key(|(name, loaded)| (loaded.settings.order, (*name).clone()));
        let mut table = HookTable::default();
        for (name, loaded) in in_order {
            let Some((guest, points)) = &loaded.guest else { continue };
            for point in points {
                table.entry(point.as_str().into()).or_default().push(Hooked {
                    id: format!("{name}@{}", guest.digest()).into(),
                    guest: guest.clone(),
                    policy: loaded.settings.failure_policy.into(),
                });
            }
        }
        table
    }

    /// Scans, and puts what changed in force.
    pub fn refresh(&mut self, engine: &Engine) -> Option<Advance> {
        self.scan().then(|| engine.set_hooks(self.table()))
    }

    /// What is in force and what is wrong.
    pub fn status(&self) -> Vec<PluginStatus> {
        let status = |(name, loaded): (&String, &Loaded)| PluginStatus {
            name: name.clone(),
            digest: loaded.guest.as_ref().map(|(guest, _)| guest.digest().to_owned()),
            points: loaded.guest.as_ref().map(|(_, points)| points.clone()).unwrap_or_default(),
            error: loaded.error.clone(),
        };
        self.loaded.iter().map(status).collect()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

/// An error with what caused it, since a status has one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
