//! The folder of plugins: `NAME.wasm`, and `NAME.json` with settings for who has no document.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use crate::document::{Component, Policy, Spec};

/// `NAME.json` beside `NAME.wasm`: settings of a plugin.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Settings {
    /// What a fault does: `skip` (the default) or `hold`.
    failure_policy: Policy,
    /// Plugins of lower numbers run first; equal ones by name.
    order: i32,
    /// What the plugin is told.
    configuration: Option<serde_json::Value>,
}

impl Settings {
    /// The spec that says the same.
    pub(super) fn spec(self, file: String) -> Spec {
        let Settings { failure_policy, order, configuration } = self;
        Spec {
            component: Component { file: Some(file), ..Component::default() },
            sha256: None,
            configuration,
            hooks: Vec::new(),
            scope: Default::default(),
            order,
            limits: Default::default(),
            rights: Default::default(),
            failure_policy,
            mode: Default::default(),
            post_conditions: Default::default(),
        }
    }
}

/// Size and time of a file: what tells that it changed.
type Stamp = (u64, Option<SystemTime>);

/// The folder as it was at the last look.
pub(super) struct Folder {
    path: PathBuf,
    /// Name of a plugin to its file, and the stamps of the file and of its settings.
    files: BTreeMap<String, (String, Stamp, Option<Stamp>)>,
}

impl Folder {
    /// A folder; nothing is read yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Folder { path, files: BTreeMap::new() }
    }

    /// Looks again. True when something is otherwise than before.
    pub(super) fn scan(&mut self) -> bool {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(folder = %self.path.display(), %error, "cannot read the plugins' folder; all stay in force");
                return false;
            }
        };
        let mut found = BTreeMap::new();
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(file) = path.file_name().and_then(|file| file.to_str()).map(str::to_owned) else { continue };
            let Some(stem) = file.strip_suffix(".wasm").filter(|stem| !stem.starts_with('.')) else { continue };
            let name = stem.trim_end_matches(".component").to_owned();
            let Some(wasm) = stamp(&path) else { continue };
            let settings = stamp(&self.path.join(format!("{name}.json")));
            found.insert(name, (file, wasm, settings));
        }
        let moved = found != self.files;
        self.files = found;
        moved
    }

    /// The plugins: name, file, and settings.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, String, Result<Settings, String>)> {
        self.files.iter().map(|(name, (file, ..))| (name.clone(), file.clone(), self.settings(name)))
    }

    /// Are there settings of a plugin?
    pub(super) fn has_settings(&self, name: &str) -> bool {
        self.files.get(name).is_some_and(|(.., settings)| settings.is_some())
    }

    fn settings(&self, name: &str) -> Result<Settings, String> {
        let beside = self.path.join(format!("{name}.json"));
        match std::fs::read(&beside) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", beside.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(format!("cannot read {}: {error}", beside.display())),
        }
    }

    /// The bytes of a file.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>, String> {
        let path = self.path.join(file);
        std::fs::read(&path).map_err(|error| {
            let files: Vec<&str> = self.files.values().map(|(file, ..)| file.as_str()).collect();
            let there_are = if files.is_empty() { "no component".to_owned() } else { files.join(", ") };
            format!("spec.component.file: cannot read {}: {error}; in the folder there are {there_are}", path.display())
        })
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}
