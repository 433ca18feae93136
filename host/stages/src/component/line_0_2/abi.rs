//! The types of `wit/stage-0.2.0` as they cross the border.

use trysail_sdk as sdk;
use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(ComponentType, Lower)]
#[component(record)]
pub struct Target {
    pub direction: String,
    pub service: String,
    pub port: u32,
    pub name: String,
    pub attributes: Vec<(String, String)>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Position {
    #[component(name = "first")]
    First,
    #[component(name = "last")]
    Last,
    #[component(name = "before")]
    Before(String),
    #[component(name = "after")]
    After(String),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct FieldValue {
    pub item: String,
    pub path: String,
    pub value: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct Insertion {
    pub item: String,
    pub path: String,
    pub at: Position,
    pub value: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct FieldPath {
    pub item: String,
    pub path: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct JsonPatch {
    pub item: String,
    pub operations: String,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
pub struct Item {
    pub key: String,
    pub message: Vec<u8>,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
pub struct JsonItem {
    pub key: String,
    pub message: String,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Edit {
    #[component(name = "set")]
    Set(FieldValue),
    #[component(name = "merge")]
    Merge(FieldValue),
    #[component(name = "insert")]
    Insert(Insertion),
    #[component(name = "remove")]
    Remove(FieldPath),
    #[component(name = "patch")]
    Patch(JsonPatch),
    #[component(name = "put")]
    Put(Item),
    #[component(name = "put-json")]
    PutJson(JsonItem),
    #[component(name = "drop")]
    Drop(String),
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub enum Severity {
    #[component(name = "info")]
    Info,
    #[component(name = "warning")]
    Warning,
    #[component(name = "error")]
    Error,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct Diagnostic {
    pub severity: Severity,
    pub object: String,
    pub field: String,
    pub message: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct Outcome {
    pub edits: Vec<Edit>,
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Failure {
    #[component(name = "bad-configuration")]
    BadConfiguration(String),
    #[component(name = "bad-answer")]
    BadAnswer(String),
    #[component(name = "other")]
    Other(String),
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<sdk::Target> for Target {
    fn from(target: sdk::Target) -> Self {
        let sdk::Target { direction, service, port, name, attributes } = target;
        Target { direction, service, port, name, attributes }
    }
}

impl From<Edit> for sdk::Edit {
    fn from(edit: Edit) -> Self {
        match edit {
            Edit::Set(FieldValue { item, path, value }) => sdk::Edit::Set { item, path, value },
            Edit::Merge(FieldValue { item, path, value }) => sdk::Edit::Merge { item, path, value },
            Edit::Insert(Insertion { item, path, at, value }) => {
                let at = match at {
                    Position::First => sdk::Position::First,
                    Position::Last => sdk::Position::Last,
                    Position::Before(name) => sdk::Position::Before(name),
                    Position::After(name) => sdk::Position::After(name),
                };
                sdk::Edit::Insert { item, path, at, value }
            }
            Edit::Remove(FieldPath { item, path }) => sdk::Edit::Remove { item, path },
            Edit::Patch(JsonPatch { item, operations }) => sdk::Edit::Patch { item, operations },
            Edit::Put(Item { key, message }) => sdk::Edit::Put { key, message },
            Edit::PutJson(JsonItem { key, message }) => sdk::Edit::PutJson { key, message },
            Edit::Drop(key) => sdk::Edit::Drop(key),
        }
    }
}

impl From<Outcome> for sdk::Edits {
    fn from(outcome: Outcome) -> Self {
        let diagnostic = |diagnostic: Diagnostic| {
            let severity = match diagnostic.severity {
                Severity::Info => sdk::Severity::Info,
                Severity::Warning => sdk::Severity::Warning,
                Severity::Error => sdk::Severity::Error,
            };
            let Diagnostic { object, field, message, .. } = diagnostic;
            sdk::Diagnostic { severity, object, field, message, code: String::new() }
        };
        sdk::Edits {
            edits: outcome.edits.into_iter().map(Into::into).collect(),
            diagnostics: outcome.diagnostics.into_iter().map(diagnostic).collect(),
        }
    }
}

impl From<Failure> for sdk::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::BadConfiguration(text) => sdk::Failure::BadConfiguration(text),
            Failure::BadAnswer(text) => sdk::Failure::BadAnswer(text),
            Failure::Other(text) => sdk::Failure::Other(text),
        }
    }
}

impl From<Level> for sdk::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => sdk::Level::Debug,
            Level::Info => sdk::Level::Info,
            Level::Warn => sdk::Level::Warn,
            Level::Error => sdk::Level::Error,
        }
    }
}
