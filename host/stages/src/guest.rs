//! Guests: what runs a call, sandboxed or natively.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trysail_sdk::{Diagnostic, Edit, Level, Outcome, Output};

use crate::fault::{Fault, FaultKind};
use crate::terms::{Place, Terms};

/// What a guest is to do.
#[derive(Clone, Debug)]
pub enum Job {
    /// A stage's function.
    Translate {
        /// The function.
        function: Arc<str>,
        /// Its arguments.
        args: Arc<[String]>,
    },
    /// A plugin at a hook point.
    Apply {
        /// The hook point.
        point: Arc<str>,
        /// Its arguments.
        args: Arc<[String]>,
        /// The fragment's items: key and encoded message.
        items: Arc<[(String, Bytes)]>,
        /// The place, and the terms on which the plugin works there; none for one that just works.
        terms: Option<(Place, Arc<dyn Terms>)>,
    },
}

impl std::fmt::Debug for dyn Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Terms")
    }
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A stage's output.
    Output(Output),
    /// A plugin's outcome.
    Outcome(Outcome),
}

/// Why a question was not answered; the run ends with it.
#[derive(Clone, Debug)]
pub enum Unanswered {
    /// The asker's own fault: it asked too much.
    Own(FaultKind),
    /// A call that was asked for has no output.
    Below(Fault),
}

/// Answers a guest's questions while it runs, and records them.
pub trait Asker: Send {
    /// Answers a query, named as in WIT.
    ///
    /// # Errors
    /// When the run must end.
    fn ask(&mut self, kind: &'static str, args: Vec<String>) -> Result<Option<Bytes>, Unanswered>;

    /// Takes a line.
    fn report(&mut self, level: Level, message: &str);

    /// Is told, at the end of a run, how much linear memory the guest had, bytes.
    fn had_memory(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// For whoever handed the asker to a guest and gets it back.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any>;
}

/// Limits of one call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Linear memory, bytes.
    pub memory: usize,
    /// Wall-clock time, without the time spent in calls asked for.
    pub deadline: Duration,
    /// Output, bytes of parts and names.
    pub output: usize,
    /// Queries.
    pub queries: usize,
    /// Nesting of calls.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory: 64 << 20, deadline: Duration::from_millis(200), output: 32 << 20, queries: 100_000, depth: 24 }
    }
}

/// A component, or native code that stands for one.
pub trait Guest: Send + Sync {
    /// Name of the stage or plugin.
    fn name(&self) -> &str;

    /// Digest of the code: calls of different code share nothing.
    fn digest(&self) -> &str;

    /// Runs a job. `fresh` asks for an instance that has run nothing before.
    ///
    /// # Errors
    /// A fault of the guest or of a call that it asked for.
    fn run(
        &self,
        job: &Job,
        asker: Box<dyn Asker>,
        limits: &Limits,
        fresh: bool,
    ) -> (Result<Done, Unanswered>, Box<dyn Asker>);
}

/// Size of an output for its limit.
pub fn output_size(done: &Done) -> usize {
    let output = match done {
        Done::Output(output) | Done::Outcome(Outcome::Replaced(output)) => output,
        Done::Outcome(Outcome::Unchanged) => return 0,
        Done::Outcome(Outcome::Edited(edits)) => return edits_size(edits),
    };
    let part = |part: &trysail_sdk::Part| match part {
        trysail_sdk::Part::Bytes(bytes) => bytes.len(),
        trysail_sdk::Part::Call(call) => call_size(call),
        _ => 8,
    };
    let entry = |entry: &trysail_sdk::Entry| match entry {
        trysail_sdk::Entry::Include(call) => call_size(call) + ENTRY,
        trysail_sdk::Entry::Item(item) => item.key.len() + item.message.parts.iter().map(part).sum::<usize>() + ENTRY,
    };
    output.entries.iter().map(entry).sum::<usize>() + diagnostics_size(&output.diagnostics)
}

fn edits_size(edits: &trysail_sdk::Edits) -> usize {
    let edit = |edit: &Edit| match edit {
        Edit::Set { item, path, value }
        | Edit::Merge { item, path, value }
        | Edit::Insert { item, path, value, .. } => item.len() + path.len() + value.len(),
        Edit::Remove { item, path } => item.len() + path.len(),
        Edit::Patch { item, operations } => item.len() + operations.len(),
        Edit::Put { key, message } => key.len() + message.len(),
        Edit::PutJson { key, message } => key.len() + message.len(),
        Edit::Drop(key) => key.len(),
    };
    // Each costs the host something, however small it is.
    edits.edits.iter().map(|one| edit(one) + EDIT).sum::<usize>() + diagnostics_size(&edits.diagnostics)
}

fn diagnostics_size(diagnostics: &[Diagnostic]) -> usize {
    let size = |said: &Diagnostic| said.object.len() + said.field.len() + said.message.len() + said.code.len() + ENTRY;
    diagnostics.iter().map(size).sum()
}

/// What an edit counts for beside its texts, bytes.
const EDIT: usize = 64;
/// What an entry counts for beside its texts, bytes: millions of empty ones are no small output.
const ENTRY: usize = 64;

fn call_size(call: &trysail_sdk::CallRef) -> usize {
    call.stage.len() + call.function.len() + call.args.iter().map(String::len).sum::<usize>()
}

/// Native code as a guest: tests, `replay --native`, and the measure of what the sandbox costs.
pub struct Native {
    name: String,
    code: NativeCode,
}

/// The functions of native code.
#[derive(Clone, Copy)]
pub enum NativeCode {
    /// A stage.
    Stage(trysail_sdk::StageFn),
    /// A plugin of the 0.1 line.
    Hook(trysail_sdk::HookFn),
    /// A plugin, at whatever hook points it is put.
    Edit(trysail_sdk::EditFn),
}

impl Native {
    /// Native code under a name.
    pub fn new(name: &str, code: NativeCode) -> Self {
        Native { name: name.to_owned(), code }
    }
}

/// The SDK's view of an asker. Native code cannot be stopped in the middle, so after a question that must not be answered it
/// gets "none" until it returns.
struct NativeHost {
    asker: std::cell::RefCell<Box<dyn Asker>>,
    unanswered: std::cell::RefCell<Option<Unanswered>>,
    terms: Option<(Place, Arc<dyn Terms>)>,
}

/// A fragment as native code sees it.
struct NativeFragment {
    items: Arc<[(String, Bytes)]>,
    terms: Option<(Place, Arc<dyn Terms>)>,
}

impl trysail_sdk::Fragment for NativeFragment {
    fn items(&self) -> Vec<(String, Vec<u8>)> {
        self.items.iter().map(|(key, bytes)| (key.clone(), bytes.to_vec())).collect()
    }

    fn items_json(&self) -> Vec<(String, String)> {
        let Some((place, terms)) = &self.terms else { return Vec::new() };
        let json = |bytes: &Bytes| terms.item_json(place, bytes).unwrap_or_else(|why| panic!("{why}"));
        self.items.iter().map(|(key, bytes)| (key.clone(), json(bytes))).collect()
    }
}

impl trysail_sdk::Host for NativeHost {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        if self.unanswered.borrow().is_some() {
            return None;
        }
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        match self.asker.borrow_mut().ask(query, args) {
            Ok(answer) => answer.map(Vec::from),
            Err(why) => {
                *self.unanswered.borrow_mut() = Some(why);
                None
            }
        }
    }

    fn report(&self, level: Level, message: &str) {
        self.asker.borrow_mut().report(level, message);
    }

    fn configuration(&self) -> String {
        self.terms.as_ref().map_or_else(|| "{}".to_owned(), |(_, terms)| terms.configuration().to_owned())
    }

    fn ask_json(&self, query: &str, args: &[&str]) -> Option<String> {
        let (_, terms) = self.terms.as_ref()?;
        let kind = terms.query(query)?;
        let answer = self.ask(kind, args);
        if self.unanswered.borrow().is_some() {
            return None;
        }
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        terms.answer_json(kind, &args, answer.as_deref()).unwrap_or_else(|why| panic!("{why}"))
    }
}

impl Guest for Native {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> &str {
        "native"
    }

    fn run(
        &self,
        job: &Job,
        asker: Box<dyn Asker>,
        limits: &Limits,
        _fresh: bool,
    ) -> (Result<Done, Unanswered>, Box<dyn Asker>) {
        let terms = if let Job::Apply { terms, .. } = job { terms.clone() } else { None };
        let (asker, unanswered) = (std::cell::RefCell::new(asker), std::cell::RefCell::new(None));
        let host = NativeHost { asker, unanswered, terms };
        let run = || {
            let ctx = trysail_sdk::Ctx::new(&host);
            match (self.code, job) {
                (NativeCode::Stage(translate), Job::Translate { function, args }) => {
                    translate(&ctx, function, args).map(Done::Output)
                }
                (NativeCode::Hook(apply), Job::Apply { point, args, items, .. }) => {
                    let items: Vec<_> = items.iter().map(|(key, bytes)| (key.clone(), bytes.to_vec())).collect();
                    apply(&ctx, point, args, &items).map(Done::Outcome)
                }
                (NativeCode::Edit(apply), Job::Apply { items, terms, .. }) => {
                    let target = terms.as_ref().map(|(place, _)| place.target.clone()).unwrap_or_default();
                    let fragment = NativeFragment { items: items.clone(), terms: terms.clone() };
                    apply(&ctx, &target, &fragment).map(|edits| Done::Outcome(Outcome::Edited(edits)))
                }
                _ => Err(trysail_sdk::Failure::UnknownFunction("a stage is no plugin, nor the reverse".into())),
            }
        };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let result = match (host.unanswered.into_inner(), caught) {
            (Some(why), _) => Err(why),
            (None, Ok(Ok(done))) => match output_size(&done) {
                size if size > limits.output => Err(Unanswered::Own(FaultKind::OutputSize(size, limits.output))),
                _ => Ok(done),
            },
            (None, Ok(Err(failure))) => Err(Unanswered::Own(FaultKind::Failed(failure.to_string()))),
            (None, Err(panic)) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Err(Unanswered::Own(FaultKind::Trap(text.unwrap_or_else(|| "panic".into()))))
            }
        };
        (result, host.asker.into_inner())
    }
}
