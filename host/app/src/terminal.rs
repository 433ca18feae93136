//! What the server says on the terminal: what changed, what was recomputed, what was pushed and to whom.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use parking_lot::Mutex;
use trysail_discovery::Status;
use trysail_stages::Advance;
use trysail_stages::calls::Call;
use trysail_xds::PushReport;

/// The terminal.
pub struct Terminal {
    began: Instant,
    colours: bool,
    /// Calls that ran since the last push was reported.
    ran: Mutex<Vec<String>>,
}

/// At most so many calls are named; the rest is a number.
const NAMED: usize = 8;

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// The process's standard output; colours only when a person looks at it.
    pub fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Terminal { began: Instant::now(), colours, ran: Mutex::default() }
    }

    /// A line.
    pub fn say(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        // A closed terminal is no reason to stop serving.
        let _ = writeln!(out, "{:>9.3} {line}", self.began.elapsed().as_secs_f64());
    }

    /// A line about something that is wrong.
    pub fn problem(&self, line: &str) {
        let (on, off) = if self.colours { ("\u{1b}[31m", "\u{1b}[0m") } else { ("", "") };
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "{:>9.3} {on}{line}{off}", self.began.elapsed().as_secs_f64());
    }

    /// What a source held at the start.
    pub fn loaded(&self, place: &impl std::fmt::Display, status: &Status) {
        let kinds: Vec<String> = status.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        self.say(&format!("loaded {place}: {}", if kinds.is_empty() { "nothing".into() } else { kinds.join(", ") }));
        for (kind, n) in &status.unread_kinds {
            self.say(&format!("not read by any stage yet: {n} {kind}"));
        }
        for kind in &status.unknown_kinds {
            self.say(&format!("skipped: unknown kind {kind}"));
        }
        for warning in &status.warnings {
            self.say(&format!("warning: {warning}"));
        }
    }

    /// What a change moved.
    pub fn advanced(&self, advance: &Advance) {
        let Advance { revision, reanswered, moved, dirty } = advance;
        let mut line =
            format!("revision {revision}: {} of {reanswered} answers moved, {dirty} calls concerned", moved.len());
        for query in moved.iter().take(NAMED) {
            line.push_str(&format!("\n            {query}"));
        }
        self.say(&line);
    }

    /// A call ran.
    pub fn ran(&self, call: &Call) {
        let mut ran = self.ran.lock();
        if ran.len() < 10_000 {
            ran.push(call.to_string());
        }
    }

    /// A response went out.
    pub fn pushed(&self, report: &PushReport) {
        let ran = std::mem::take(&mut *self.ran.lock());
        if !ran.is_empty() {
            let mut by_stage: BTreeMap<&str, usize> = BTreeMap::new();
            for call in &ran {
                *by_stage.entry(call.split('/').next().unwrap_or(call)).or_default() += 1;
            }
            let what = if ran.len() <= NAMED {
                ran.join(", ")
            } else {
                by_stage.iter().map(|(stage, n)| format!("{n} of {stage}")).collect::<Vec<_>>().join(", ")
            };
            self.say(&format!("recomputed {} calls: {what}", ran.len()));
        }
        let PushReport { proxy, kind, changed, removed, n_resources, bytes, .. } = report;
        // A few are named; many, as at the start, are a number.
        let names = |names: &[String], sign: &str, what: &str| match names.len() {
            0 => None,
            1..=NAMED => Some(names.iter().map(|name| format!("{sign}{name}")).collect::<Vec<_>>().join(", ")),
            more => Some(format!("{more} {what}")),
        };
        let what = [names(changed, "", "new or changed"), names(removed, "-", "removed")];
        let what = what.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let what = if what.is_empty() { "nothing new".to_owned() } else { what };
        self.say(&format!("pushed {kind} to {}: {n_resources} resources, {bytes} bytes ({what})", proxy.id));
    }
}
