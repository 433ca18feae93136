//! Faults: what a guest did that is neither an output nor a rejected input.

use std::sync::Arc;
use std::time::Duration;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The guest trapped; with its panic message, if it reported one.
    #[error("trapped: {0}")]
    Trap(String),
    /// It ran longer than the deadline, and longer than the retry's as well.
    #[error("ran longer than {0:?}")]
    Deadline(Duration),
    /// It ran longer than the first deadline; a retry with a longer one is under way.
    #[error("ran longer than {0:?}; a retry is under way")]
    Slow(Duration),
    /// It wanted more memory than it may have.
    #[error("wanted more than {0} bytes of memory")]
    Memory(usize),
    /// It returned more than it may.
    #[error("returned {0} bytes, more than the allowed {1}")]
    OutputSize(usize, usize),
    /// It asked more than it may.
    #[error("asked more than {0} queries")]
    Queries(usize),
    /// Calls are nested too deep.
    #[error("calls are nested deeper than {0}")]
    Recursion(usize),
    /// Calls ask for each other in a circle.
    #[error("calls ask for each other in a circle through {0}")]
    Circle(String),
    /// The same answers led to something else.
    #[error("is not pure: {0}")]
    Impure(String),
    /// The output does not form messages.
    #[error("returned a malformed output: {0}")]
    BadOutput(String),
    /// The guest said that it cannot: unknown function, arguments or answers that do not fit.
    #[error("failed: {0}")]
    Failed(String),
    /// A plugin did, or asked, what it may not.
    #[error("went beyond its rights: {0}")]
    Rights(String),
    /// What a plugin wanted changed cannot be changed so.
    #[error("returned an edit that cannot be made: {0}")]
    Edit(String),
    /// A plugin is not called at present.
    #[error("is not called now: {0}")]
    PutOff(String),
    /// There is no such stage.
    #[error("is not loaded")]
    Missing,
}

impl FaultKind {
    /// Value of the metric label `kind`.
    pub fn label(&self) -> &'static str {
        match self {
            FaultKind::Trap(_) => "trap",
            FaultKind::Deadline(_) => "deadline",
            FaultKind::Slow(_) => "slow",
            FaultKind::Memory(_) => "memory",
            FaultKind::OutputSize(..) => "output_size",
            FaultKind::Queries(_) => "queries",
            FaultKind::Recursion(_) => "recursion",
            FaultKind::Circle(_) => "circle",
            FaultKind::Impure(_) => "impure",
            FaultKind::BadOutput(_) => "bad_output",
            FaultKind::Failed(_) => "failed",
            FaultKind::Rights(_) => "rights",
            FaultKind::Edit(_) => "edit",
            FaultKind::PutOff(_) => "put_off",
            FaultKind::Missing => "missing",
        }
    }
}

/// A fault, with the guest and the call it happened in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.line())]
pub struct Fault {
    /// Stage or plugin.
    pub guest: Arc<str>,
    /// The call.
    pub call: Arc<str>,
    /// What happened.
    pub kind: FaultKind,
}

impl Fault {
    /// Whose fault, where, and what: one line, also of a panic's message that has several.
    fn line(&self) -> String {
        let Fault { guest, call, kind } = self;
        let what = kind.to_string().replace('\n', " ");
        // The call of a plugin names it.
        if call.starts_with("plugin ") { format!("{call}: {what}") } else { format!("{guest} {what} (in {call})") }
    }
}

/// What becomes of a fragment when a plugin at its hook point faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The fragment goes out as it was before the plugin.
    #[default]
    Skip,
    /// What each subscriber was last served stays; with nothing to hold the resource is withheld.
    Hold,
}
