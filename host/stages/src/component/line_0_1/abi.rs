//! The types of `wit/stage-0.1.0/types.wit` as wasmtime lifts them: matched by shape, and turned into the SDK's at once.

use trysail_sdk as sdk;
use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct CallRef {
    pub stage: String,
    pub function: String,
    pub args: Vec<String>,
    pub field: u32,
    pub hook: String,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Part {
    #[component(name = "bytes")]
    Bytes(Vec<u8>),
    #[component(name = "open")]
    Open(u32),
    #[component(name = "close")]
    Close,
    #[component(name = "call")]
    Call(CallRef),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct Item {
    pub key: String,
    pub parts: Vec<Part>,
    pub claims: Vec<String>,
    pub refs: Vec<String>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Entry {
    #[component(name = "item")]
    Item(Item),
    #[component(name = "include")]
    Include(CallRef),
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
    pub code: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct Output {
    pub entries: Vec<Entry>,
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Outcome {
    #[component(name = "unchanged")]
    Unchanged,
    #[component(name = "replaced")]
    Replaced(Output),
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum Failure {
    #[component(name = "unknown-function")]
    UnknownFunction(String),
    #[component(name = "bad-arguments")]
    BadArguments(String),
    #[component(name = "bad-answer")]
    BadAnswer(String),
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

#[derive(ComponentType, Lower)]
#[component(record)]
pub struct FragmentItem {
    pub key: String,
    pub message: Vec<u8>,
}

impl From<CallRef> for sdk::CallRef {
    fn from(call: CallRef) -> Self {
        let CallRef { stage, function, args, field, hook } = call;
        sdk::CallRef { stage, function, args, field, hook }
    }
}

impl From<Part> for sdk::Part {
    fn from(part: Part) -> Self {
        match part {
            Part::Bytes(bytes) => sdk::Part::Bytes(bytes),
            Part::Open(number) => sdk::Part::Open(number),
            Part::Close => sdk::Part::Close,
            Part::Call(call) => sdk::Part::Call(call.into()),
        }
    }
}

impl From<Entry> for sdk::Entry {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Include(call) => sdk::Entry::Include(call.into()),
            Entry::Item(Item { key, parts, claims, refs }) => sdk::Entry::Item(sdk::Item {
                key,
                message: sdk::Message { parts: parts.into_iter().map(Into::into).collect() },
                claims,
                refs,
            }),
        }
    }
}

impl From<Diagnostic> for sdk::Diagnostic {
    fn from(diagnostic: Diagnostic) -> Self {
        let Diagnostic { severity, object, field, message, code } = diagnostic;
        let severity = match severity {
            Severity::Info => sdk::Severity::Info,
            Severity::Warning => sdk::Severity::Warning,
            Severity::Error => sdk::Severity::Error,
        };
        sdk::Diagnostic { severity, object, field, message, code }
    }
}

impl From<Output> for sdk::Output {
    fn from(output: Output) -> Self {
        sdk::Output {
            entries: output.entries.into_iter().map(Into::into).collect(),
            diagnostics: output.diagnostics.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Outcome> for sdk::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Unchanged => sdk::Outcome::Unchanged,
            Outcome::Replaced(output) => sdk::Outcome::Replaced(output.into()),
        }
    }
}

impl From<Failure> for sdk::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::UnknownFunction(text) => sdk::Failure::UnknownFunction(text),
            Failure::BadArguments(text) => sdk::Failure::BadArguments(text),
            Failure::BadAnswer(text) => sdk::Failure::BadAnswer(text),
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
