//! Running guests: recording what they ask, limits, the purity audit, and the one longer retry of a slow call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trysail_model::{Fingerprint, Query, Resource, ResourceName};
use trysail_sdk::{CallRef, Diagnostic, Entry, Level, Outcome, Output, Part, Severity};

use crate::calls::Call;
use crate::engine::Engine;
use crate::eval::{Cx, Made};
use crate::fault::{Fault, FaultKind};
use crate::guest::{Asker, Done, Guest, Job, Limits, Unanswered, output_size};
use crate::memo::{CallMemo, Faulted};
use crate::metrics::add;
use crate::queries::{QueryId, Question};
use crate::terms::{Effect, Effects, Place, Settled, Terms};
use crate::trace::Read;

/// Why a run led to no output.
pub(crate) enum Stopped {
    /// The guest's own fault.
    Own(FaultKind),
    /// A fault in a call that it asked for.
    Asked(Fault),
    /// A fault in the fragment that a plugin was to work on.
    Fragment(Fault),
}

/// The end of a run.
pub(crate) struct Ran {
    pub result: Result<Output, Stopped>,
    pub reads: Vec<Read>,
    /// Questions and answers as the guest saw them; empty unless they were to be kept.
    pub log: Vec<Asked>,
    /// The items that it worked on, one by one.
    pub seen: Vec<Arc<Resource>>,
    /// What a plugin changed.
    pub effects: Effects,
    /// How long it took, with what the host did with what it returned; without what it was to work on.
    pub took: Duration,
}

impl Ran {
    /// A run that did not come to anything.
    fn stopped(why: Stopped) -> Self {
        Ran {
            result: Err(why),
            reads: Vec::new(),
            log: Vec::new(),
            seen: Vec::new(),
            effects: Effects::default(),
            took: Duration::ZERO,
        }
    }
}

/// A question and its answer as a guest saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Name of the query.
    pub kind: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The answer.
    pub answer: Option<Bytes>,
}

/// Runs one call of a guest.
pub(crate) struct Runner<'a> {
    pub engine: &'a Arc<Engine>,
    pub memo: &'a Arc<CallMemo>,
    /// It is the second try of a slow call, or one that nobody waits for.
    pub is_second: bool,
    /// Have [`Ran::log`] kept.
    pub keeps_log: bool,
}

impl Runner<'_> {
    /// Runs the call, and, for a share of calls, once more on a fresh instance to see that it is pure.
    pub fn run(&self, cx: &mut Cx) -> Ran {
        let Prepared { guest, job, reads: first, claims, seen, before } = match self.job(cx) {
            Ok(prepared) => prepared,
            Err(stopped) => return Ran::stopped(stopped),
        };
        let terms = if let Job::Apply { terms, .. } = &job { terms.clone() } else { None };
        let of_all = self.engine.config.limits;
        let limits = terms.as_ref().map_or(of_all, |(_, terms)| terms.limits(of_all));
        let limits = if self.is_second { limits.longer() } else { limits };
        add(&self.engine.counters.runs);
        if let Some(tell) = &self.engine.config.on_run {
            tell(&self.memo.call);
        }
        let is_audited = self.is_sampled();
        let recorder = Recorder {
            engine: self.engine.clone(),
            cx: cx.clone(),
            reads: first,
            log: (is_audited || self.keeps_log).then(Vec::new),
            seen,
            limit: limits.queries,
            asked: 0,
            limit_asked: limits.output,
            terms: terms.as_ref().map(|(_, terms)| terms.clone()),
            guest: guest.name().to_owned(),
            last_line: None,
            lines: 0,
            memory: 0,
        };
        let _span = tracing::debug_span!("stage", call = %self.memo.call).entered();
        let began = Instant::now();
        let is_fresh = terms.as_ref().is_some_and(|(_, terms)| terms.is_fresh());
        let (result, asker) = guest.run(&job, Box::new(recorder), &limits, is_fresh);
        self.count(guest.name(), began, &result);
        // What a guest was handed comes back; anything else would be a bug in the runner, not in the guest.
        let any: Box<dyn std::any::Any> = asker.into_any();
        let recorder = any.downcast::<Recorder>().expect("a guest returns the asker that it was given");
        let Recorder { reads, log, seen, last_line, lines, memory, .. } = *recorder;
        if let Call::Plugin { .. } = &self.memo.call {
            self.engine.counters.memory(guest.name(), memory);
            if lines > MAX_LINES {
                let unsaid = lines - MAX_LINES;
                tracing::warn!(stage = guest.name(), "and {unsaid} more lines in one call, which are not logged");
                self.engine.counters.unsaid(guest.name(), unsaid);
            }
        }
        let log = log.unwrap_or_default();
        let audited = match &result {
            Ok(done) if is_audited => self.audit(&*guest, &job, done, &log, &limits),
            _ => Ok(()),
        };
        let mut effects = Effects::default();
        let result = match result {
            Ok(done) => audited.and_then(|()| {
                let (output, changed) = self.output(done, &claims, &before, terms.as_ref())?;
                effects = changed;
                Ok(output)
            }),
            Err(Unanswered::Own(FaultKind::Trap(trap))) => {
                Err(FaultKind::Trap(last_line.map_or(trap.clone(), |panic| format!("{panic} ({trap})"))))
            }
            Err(Unanswered::Own(kind)) => Err(kind),
            Err(Unanswered::Below(fault)) => {
                let took = began.elapsed();
                return Ran { result: Err(Stopped::Asked(fault)), reads, log, seen, effects, took };
            }
        };
        if let Call::Plugin { .. } = &self.memo.call
            && result.is_ok()
        {
            self.engine.counters.effect(guest.name(), !effects.list.is_empty());
        }
        Ran { result: result.map_err(Stopped::Own), reads, log, seen, effects, took: began.elapsed() }
    }

    /// Counts a run. Its time holds that of the calls that it asked for and that had to run.
    fn count(&self, guest: &str, began: Instant, result: &Result<Done, Unanswered>) {
        let counters = &self.engine.counters;
        let length = |output: &Output| -> usize {
            let items = output.entries.iter().filter_map(|entry| match entry {
                Entry::Item(item) => Some(&item.message.parts),
                Entry::Include(_) => None,
            });
            items.flatten().map(|part| if let Part::Bytes(bytes) = part { bytes.len() } else { 0 }).sum()
        };
        let bytes = match result {
            Ok(Done::Output(output) | Done::Outcome(Outcome::Replaced(output))) => length(output),
            Ok(edited @ Done::Outcome(Outcome::Edited(_))) => output_size(edited),
            Ok(Done::Outcome(Outcome::Unchanged)) | Err(_) => 0,
        };
        counters.ran(guest, began.elapsed(), bytes);
    }

    /// The guest, and the job of the call.
    fn job(&self, cx: &mut Cx) -> Result<Prepared, Stopped> {
        match &self.memo.call {
            Call::Plugin { plugin, point, args, inner } => {
                let hooked = self.engine.hooked(plugin, point).ok_or(Stopped::Own(FaultKind::Missing))?;
                let mut items = Vec::new();
                let (mut first, mut claims, mut seen) = (Vec::new(), Vec::new(), Vec::new());
                if let Some(inner) = inner {
                    let memo = self.engine.memos.get(*inner);
                    let node = self.engine.eval(cx, &memo).map_err(Stopped::Fragment)?;
                    first.push((self.engine.queries.intern(&Question::Derived(*inner)), node.entries.fingerprint));
                    node.entries.for_each(&mut |item| {
                        seen.push(item.resource.clone());
                        items.push((item.resource.name.as_str().to_owned(), item.resource.body.to_bytes()));
                        if !item.claims.is_empty() {
                            claims.push((item.resource.name.clone(), item.claims.clone()));
                        }
                    });
                }
                let place = self.engine.place(&hooked, point, args, *inner);
                let before: Arc<[(String, Bytes)]> = items.into();
                let (terms, items) = match hooked.terms {
                    None => (None, before.clone()),
                    Some(terms) => {
                        let shown = terms.shows(&place, &before);
                        let shown = shown.map_err(|why| Stopped::Own(FaultKind::BadOutput(why)))?;
                        (Some((place, terms)), shown.into())
                    }
                };
                let job = Job::Apply { point: hooked.hook, args: args.clone(), items, terms };
                Ok(Prepared { guest: hooked.guest, job, reads: first, claims, seen, before })
            }
            Call::Stage { stage, function, args } => {
                let guest = self.engine.guests.read().get(stage).cloned();
                let guest = guest.ok_or(Stopped::Own(FaultKind::Missing))?;
                let job = Job::Translate { function: function.clone(), args: args.clone() };
                Ok(Prepared { guest, job, reads: Vec::new(), claims: Vec::new(), seen: Vec::new(), before: [].into() })
            }
            Call::Hook { .. } | Call::Names { .. } => unreachable!("the host makes these itself"),
        }
    }

    /// A guest's end as an output: what a plugin left unchanged is the fragment before it. An item that takes the place of
    /// another takes over its claims unless it states its own.
    fn output(
        &self,
        done: Done,
        claims: &[(ResourceName, Arc<[String]>)],
        before: &[(String, Bytes)],
        terms: Option<&(Place, Arc<dyn Terms>)>,
    ) -> Result<(Output, Effects), FaultKind> {
        let outcome = match done {
            Done::Output(output) => return Ok((output, Effects::default())),
            Done::Outcome(outcome) => outcome,
        };
        let settled = match (terms, outcome) {
            (Some((place, terms)), outcome) => {
                // Nothing that a plugin returns should get this far; if it does, it is its own fault that comes of it.
                catch_unwind(AssertUnwindSafe(|| terms.settle(place, before, outcome))).unwrap_or_else(|_| {
                    Err(FaultKind::Edit("the host panicked over it, which is its own mistake".into()))
                })?
            }
            (None, Outcome::Unchanged) => Settled::default(),
            (None, Outcome::Replaced(output)) => {
                let whole = Effect { item: String::new(), path: String::new(), before: None, after: None };
                let Output { entries, diagnostics } = output;
                Settled {
                    entries: Some(entries),
                    diagnostics,
                    effects: Effects { list: vec![whole], is_shadow: false },
                }
            }
            (None, Outcome::Edited(_)) => {
                return Err(FaultKind::Edit("nobody is there who knows the messages".to_owned()));
            }
        };
        let mut entries = settled.entries.unwrap_or_else(|| match &self.memo.call {
            Call::Plugin { inner: Some(inner), .. } => vec![Entry::Include(crate::eval::by_number(*inner))],
            _ => Vec::new(),
        });
        for entry in &mut entries {
            if let Entry::Item(item) = entry
                && item.claims.is_empty()
                && let Some((_, before)) = claims.iter().find(|(name, _)| name.as_str() == item.key)
            {
                item.claims = before.to_vec();
            }
        }
        let plugin = self.memo.call.guest().unwrap_or_default();
        let diagnostics = heard(plugin.split('@').next().unwrap_or(plugin), settled.diagnostics);
        Ok((Output { entries, diagnostics }, settled.effects))
    }

    /// Is this one of the runs that are audited?
    fn is_sampled(&self) -> bool {
        let share = self.engine.config.audit_share;
        // Every n-th run: a share that is the same everywhere, without randomness.
        let n = self.engine.sampler.fetch_add(1, Ordering::Relaxed);
        share > 0.0 && (n as f64 * share).fract() < share
    }

    /// Runs the job again on a fresh instance with the recorded answers: the same must come out.
    fn audit(
        &self,
        guest: &dyn Guest,
        job: &Job,
        done: &Done,
        log: &[Asked],
        limits: &Limits,
    ) -> Result<(), FaultKind> {
        add(&self.engine.counters.audited);
        let player = Player { log: log.to_vec(), at: 0, surprise: None };
        let (again, asker) = guest.run(job, Box::new(player), &limits.longer(), true);
        let player = asker.into_any().downcast::<Player>().expect("a guest returns the asker that it was given");
        if let Some(surprise) = player.surprise {
            return Err(FaultKind::Impure(surprise));
        }
        match again {
            Ok(again) if again == *done && player.at == player.log.len() => Ok(()),
            Ok(again) if again == *done => Err(FaultKind::Impure("a second run asked less".into())),
            Ok(_) => Err(FaultKind::Impure("a second run with the same answers returned something else".into())),
            Err(Unanswered::Own(kind)) => Err(FaultKind::Impure(format!("a second run with the same answers {kind}"))),
            Err(Unanswered::Below(fault)) => Err(FaultKind::Impure(fault.to_string())),
        }
    }
}

/// What a guest is asked to do.
struct Prepared {
    guest: Arc<dyn Guest>,
    job: Job,
    /// Of a plugin the first read: the fragment before it.
    reads: Vec<Read>,
    /// What the items of that fragment claim.
    claims: Vec<(ResourceName, Arc<[String]>)>,
    /// These items.
    seen: Vec<Arc<Resource>>,
    /// The same as bytes, as they were before the plugin was shown its part of them.
    before: Arc<[(String, Bytes)]>,
}

impl Limits {
    /// Ten times the time: for the one retry, and for runs whose duration says nothing.
    pub fn longer(&self) -> Limits {
        Limits { deadline: self.deadline * 10, ..*self }
    }
}

/// Answers from the snapshot, the proxy and other calls, and records.
struct Recorder {
    engine: Arc<Engine>,
    cx: Cx,
    reads: Vec<Read>,
    /// Unset when nobody wants it.
    log: Option<Vec<Asked>>,
    seen: Vec<Arc<Resource>>,
    limit: usize,
    /// Bytes of questions so far, and how many there may be.
    asked: usize,
    limit_asked: usize,
    guest: String,
    /// Of a plugin.
    terms: Option<Arc<dyn Terms>>,
    /// The last line reported as an error: a panic's message comes right before its trap.
    last_line: Option<String>,
    /// Lines so far.
    lines: u64,
    /// Linear memory that the guest had.
    memory: usize,
}

impl Recorder {
    /// The question that a query kind and its arguments are, and its number.
    fn question(&self, kind: &'static str, args: &[String]) -> (QueryId, Question) {
        let question = match kind {
            "derived" | "derived-exists" | "derived-items" | "derived-item" => {
                let text = |at: usize| args.get(at).map_or("", String::as_str);
                // Where the call's name stands, and its arguments, among those of the query.
                let (hook, name, first) = match kind {
                    "derived-items" => (text(0), 1, 3),
                    "derived-item" => ("", 0, 3),
                    _ => ("", 0, 2),
                };
                let call = CallRef::new(text(name), text(name + 1), args.iter().skip(first).cloned());
                let memo = self.engine.resolve(&call.hooked(hook));
                match kind {
                    "derived-exists" => Question::DerivedExists(memo.id),
                    "derived-item" => Question::DerivedItem(memo.id, text(2).into()),
                    _ => Question::Derived(memo.id),
                }
            }
            "hooked" => Question::Hooked(args.first().map_or("", String::as_str).into()),
            _ => {
                let query = Query { kind, args: args.to_vec() };
                match self.engine.decl(kind) {
                    Some(decl) if decl.about_proxy => Question::Proxy(query),
                    _ => Question::Mesh(query),
                }
            }
        };
        (self.engine.queries.intern(&question), question)
    }
}

impl Asker for Recorder {
    fn ask(&mut self, kind: &'static str, args: Vec<String>) -> Result<Option<Bytes>, Unanswered> {
        if self.reads.len() >= self.limit {
            return Err(Unanswered::Own(FaultKind::Queries(self.limit)));
        }
        if let Some(terms) = &self.terms {
            terms.may_ask(kind, &args).map_err(|why| Unanswered::Own(FaultKind::Rights(why)))?;
        }
        // Questions are remembered by the host, and asking costs the guest no time: their length counts as output does.
        self.asked += args.iter().map(String::len).sum::<usize>();
        if self.asked > self.limit_asked {
            return Err(Unanswered::Own(FaultKind::OutputSize(self.asked, self.limit_asked)));
        }
        let (id, question) = self.question(kind, &args);
        let (fingerprint, answer) = match &question {
            Question::Mesh(query) => {
                let answer = self.engine.mesh_answer(&self.cx.epoch, &self.engine.queries.cell(id), query);
                (answer.fingerprint, answer.value.clone())
            }
            Question::Proxy(query) => {
                let answer = self.cx.proxy.answer(&*self.cx.epoch.snapshot, id, query);
                (answer.fingerprint, answer.value.clone())
            }
            Question::Derived(call) | Question::DerivedExists(call) | Question::DerivedItem(call, _) => {
                let node = self.engine.eval(&mut self.cx, &self.engine.memos.get(*call)).map_err(Unanswered::Below)?;
                let entries = &node.entries;
                let answer = match &question {
                    Question::DerivedExists(_) => (entries.n_items > 0).then(Bytes::new),
                    Question::DerivedItem(_, key) => entries.by_name(key).map(|item| item.body.to_bytes()),
                    _ if kind == "derived-items" => {
                        entries.for_each(&mut |item| self.seen.push(item.resource.clone()));
                        entries.each()
                    }
                    _ => entries.concatenated(),
                };
                (question.fingerprint_in(entries), answer)
            }
            Question::Hooked(point) => {
                let hooked = self.engine.hooked_fingerprint(point);
                (hooked, (hooked != Fingerprint::NONE).then(Bytes::new))
            }
            Question::Plugins(_) => unreachable!("guests have no such query"),
        };
        self.reads.push((id, fingerprint));
        if let Some(log) = &mut self.log {
            log.push(Asked { kind: kind.to_owned(), args, answer: answer.clone() });
        }
        Ok(answer)
    }

    fn report(&mut self, level: Level, message: &str) {
        let line = legible(message, MAX_LINE);
        self.lines += 1;
        if self.lines > MAX_LINES {
            // A panic's message is the last one.
            if level == Level::Error {
                self.last_line = Some(line);
            }
            return;
        }
        match level {
            Level::Debug => tracing::debug!(stage = self.guest, "{line}"),
            Level::Info => tracing::info!(stage = self.guest, "{line}"),
            Level::Warn => tracing::warn!(stage = self.guest, "{line}"),
            Level::Error => {
                tracing::error!(stage = self.guest, "{line}");
                self.last_line = Some(line);
            }
        }
    }

    fn had_memory(&mut self, bytes: usize) {
        self.memory = bytes;
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

/// Lines that a guest may log in one call.
const MAX_LINES: u64 = 20;
/// Characters of a line.
const MAX_LINE: usize = 1000;
/// Diagnostics of a plugin that are kept of one call.
const MAX_DIAGNOSTICS: usize = 50;

/// The beginning of a guest's words, on one line and without what a terminal takes for orders.
fn legible(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a plugin has to say, as much of it as anybody would read: it is kept as long as what it is about.
fn heard(plugin: &str, mut said: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let more = said.len().saturating_sub(MAX_DIAGNOSTICS);
    said.truncate(MAX_DIAGNOSTICS);
    for one in &mut said {
        for text in [&mut one.object, &mut one.field, &mut one.message] {
            *text = legible(text, MAX_LINE);
        }
        // What it is about is what the plugin says; that it says so is sure.
        one.message.push_str(&format!(" (says plugin {plugin})"));
    }
    if more > 0 {
        let message = format!("and {more} more diagnostics of this call, which are not kept");
        let (severity, code) = (Severity::Warning, String::new());
        said.push(Diagnostic { severity, object: format!("plugin {plugin}"), field: String::new(), message, code });
    }
    said
}

/// Answers from a record.
pub(crate) struct Player {
    pub log: Vec<Asked>,
    pub at: usize,
    /// The first question that is not the recorded one.
    pub surprise: Option<String>,
}

impl Asker for Player {
    fn ask(&mut self, kind: &'static str, args: Vec<String>) -> Result<Option<Bytes>, Unanswered> {
        match self.log.get(self.at) {
            Some(asked) if asked.kind == kind && asked.args == args => {
                self.at += 1;
                Ok(asked.answer.clone())
            }
            other => {
                let expected =
                    other.map_or("nothing more".to_owned(), |a| format!("{}({})", a.kind, a.args.join(", ")));
                let why = format!("a second run asked {kind}({}) where the first asked {expected}", args.join(", "));
                self.surprise.get_or_insert(why.clone());
                Err(Unanswered::Own(FaultKind::Impure(why)))
            }
        }
    }

    fn report(&mut self, _level: Level, _message: &str) {}

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

/// A retry under way, until it is dropped.
struct Retrying {
    engine: Arc<Engine>,
    key: (u32, Fingerprint),
}

impl Drop for Retrying {
    fn drop(&mut self) {
        self.engine.retrying.lock().remove(&self.key);
    }
}

/// Runs a slow call once more with ten times the time, where nobody waits for it.
pub(crate) fn retry(engine: &Arc<Engine>, cx: &Cx, memo: &Arc<CallMemo>, reads: &[Read]) {
    if engine.again_aside(cx, memo) {
        return;
    }
    let parts = reads.iter().flat_map(|(id, fingerprint)| [u128::from(*id).to_le_bytes(), fingerprint.to_bytes()]);
    let parts: Vec<[u8; 16]> = parts.collect();
    let key = (memo.id, Fingerprint::of_parts(parts.iter().map(<[u8; 16]>::as_slice)));
    if !engine.retrying.lock().insert(key) {
        return;
    }
    // Dropped also when no thread can be had, or it panics: nobody waits for a retry that is not there.
    let done = Retrying { engine: engine.clone(), key };
    let (engine, memo, mut cx) = (engine.clone(), memo.clone(), cx.clone());
    cx.stack.clear();
    let run = move || {
        let _in_use = engine.in_use.read_recursive();
        let ran = Runner { engine: &engine, memo: &memo, is_second: true, keeps_log: false }.run(&mut cx);
        take_in(&engine, &cx, &memo, ran);
        engine.touch([memo.id]);
        drop(done);
        if let Some(notify) = &engine.config.on_settled {
            notify();
        }
    };
    let spawned = std::thread::Builder::new().name("slow-call".into()).stack_size(crate::STACK).spawn(run);
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread for the retry of a slow call");
    }
}

/// Remembers what came of a run for which nobody waited. True when it is an output.
pub(crate) fn take_in(engine: &Arc<Engine>, cx: &Cx, memo: &Arc<CallMemo>, ran: Ran) -> bool {
    match ran.result {
        Ok(output) => {
            let was_slow = |known: &Faulted| matches!(known.fault.kind, FaultKind::Slow(_));
            let mut is_retry = false;
            memo.faults.write().retain(|known| {
                is_retry |= was_slow(known);
                !was_slow(known)
            });
            if is_retry {
                tracing::warn!(call = %memo.call, "a slow call finished at its second try");
            }
            let reads: Arc<[Read]> = ran.reads.into();
            let made = Made { output, seen: &ran.seen, effects: ran.effects };
            match engine.remember(cx, memo, made, reads.clone()) {
                Ok(_) => return true,
                Err(kind) => {
                    let fault = engine.fault(memo, kind);
                    engine.remember_fault(memo, &reads, &fault);
                }
            }
        }
        Err(Stopped::Own(kind)) => {
            let kind = match kind {
                FaultKind::Slow(limit) => FaultKind::Deadline(limit),
                other => other,
            };
            let fault = engine.fault(memo, kind);
            // What it read beyond the first run's reads ends the fault as well when it moves.
            engine.remember_fault(memo, &ran.reads.into(), &fault);
        }
        Err(Stopped::Asked(_) | Stopped::Fragment(_)) => {}
    }
    false
}
