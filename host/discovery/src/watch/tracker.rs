//! Which of the differences in a folder are finished, and what they say.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHasher};

use crate::folder::report_unreadable;
use crate::scan::{self, Found, Scan, Stamp};
use crate::{Changes, Config, FileInput, Ledger, Settings, Status};

/// What a look at the folder led to.
pub(super) enum Look {
    /// The finished differences were taken; the others are worth a look at that time.
    Taken { changes: Changes, pending: Option<Instant> },
    /// Nothing was taken yet, so that what belongs together is taken together.
    Hold { until: Instant },
}

/// The files as they were taken last, and those that differ but may not be finished.
pub(super) struct Tracker {
    config: Config,
    ledger: Ledger,
    taken: BTreeMap<Arc<str>, Taken>,
    /// Files that differ from what was taken.
    candidates: FxHashMap<Arc<str>, Candidate>,
    /// Since when anything differs.
    since: Option<Instant>,
    last_scan: Scan,
}

#[derive(Clone, Copy)]
struct Taken {
    stamp: Option<Stamp>,
    content: u64,
    is_whole: bool,
}

struct Candidate {
    /// Unset for a file that vanished.
    stamp: Option<Stamp>,
    /// When this very state of the file was seen first.
    seen: Instant,
    /// Unset for a file that vanished.
    read: Option<Read>,
}

struct Read {
    input: FileInput,
    content: u64,
    /// False when the file is empty or a document cannot be read: it may be half of a file.
    is_whole: bool,
}

impl Tracker {
    pub(super) fn new(config: Config) -> Self {
        Tracker {
            ledger: Ledger::new(config.mode),
            config,
            taken: BTreeMap::new(),
            candidates: FxHashMap::default(),
            since: None,
            last_scan: Scan::default(),
        }
    }

    /// Takes what differs and is finished. `open_until` tells until when a file counts as being written.
    pub(super) fn look(&mut self, scan: Scan, now: Instant, open_until: impl Fn(&Path) -> Option<Instant>) -> Look {
        let mut finished = Vec::new();
        let mut pending: Option<Instant> = None;
        for (path, ready) in self.differences(&scan, now, open_until) {
            if ready <= now {
                finished.push(path);
            } else {
                pending = Some(pending.map_or(ready, |pending| pending.min(ready)));
            }
        }
        self.last_scan = scan;
        let max_wait = self.config.timing.max_wait;
        match (pending, self.since) {
            (None, _) => self.since = None,
            (Some(ready), None) => {
                self.since = Some(now);
                return Look::Hold { until: ready.min(now + max_wait) };
            }
            (Some(ready), Some(since)) if now < since + max_wait => {
                return Look::Hold { until: ready.min(since + max_wait) };
            }
            // Waited long enough for what is not finished: the rest goes on without it.
            (Some(_), Some(_)) => {}
        }
        let edits: Vec<_> = finished.into_iter().map(|path| self.take(path)).collect();
        Look::Taken { changes: self.ledger.apply(edits), pending }
    }

    pub(super) fn status(&self) -> Status {
        let mut status = self.ledger.status(|kind| self.config.reads(kind));
        report_unreadable(&self.last_scan, &mut status, |dir| self.taken.keys().any(|path| is_within(path, dir)));
        status
    }

    pub(super) fn settings(&self) -> Settings {
        self.ledger.settings()
    }

    /// Files that differ from what was taken, and when they count as finished.
    fn differences(
        &mut self,
        scan: &Scan,
        now: Instant,
        open_until: impl Fn(&Path) -> Option<Instant>,
    ) -> Vec<(Arc<str>, Instant)> {
        let mut differences = Vec::new();
        for (path, found) in &scan.files {
            let taken = self.taken.get(path).copied();
            if taken.is_some_and(|taken| found.stamp.is_some() && taken.stamp == found.stamp) {
                self.candidates.remove(path);
                continue;
            }
            if !self.is_candidate(path, found) && !self.read(path, found, taken, now) {
                continue;
            }
            let candidate = &self.candidates[path];
            differences.push((path.clone(), self.ready(candidate, taken, open_until(&found.path), now)));
        }
        let is_unknown = |path: &str| scan.unreadable.keys().any(|dir| is_within(path, dir));
        let vanished: Vec<_> =
            self.taken.keys().filter(|path| !scan.files.contains_key(*path) && !is_unknown(path)).cloned().collect();
        for path in vanished {
            let candidate =
                self.candidates.entry(path.clone()).or_insert(Candidate { stamp: None, seen: now, read: None });
            if candidate.read.is_some() {
                *candidate = Candidate { stamp: None, seen: now, read: None };
            }
            differences.push((path, candidate.seen + self.config.timing.vanish_grace));
        }
        // A file that came and went in between was never taken.
        self.candidates.retain(|path, _| scan.files.contains_key(path) || self.taken.contains_key(path));
        differences
    }

    fn is_candidate(&self, path: &str, found: &Found) -> bool {
        let known = self.candidates.get(path);
        known.is_some_and(|candidate| {
            candidate.read.is_some() && found.stamp.is_some() && candidate.stamp == found.stamp
        })
    }

    /// Reads a file; false when it says what was taken already.
    fn read(&mut self, path: &Arc<str>, found: &Found, taken: Option<Taken>, now: Instant) -> bool {
        let text = scan::read(found, &self.config);
        let (stamp, content) = match &text {
            Ok((stamp, text)) => (Some(*stamp), hash(text)),
            Err(reason) => (found.stamp, hash(reason)),
        };
        if let Some(taken) = taken.filter(|taken| taken.content == content) {
            self.taken.insert(path.clone(), Taken { stamp, ..taken });
            self.candidates.remove(path);
            return false;
        }
        let is_empty = text.as_ref().is_ok_and(|(_, text)| text.trim().is_empty());
        let text = text.as_ref().map(|(_, text)| text.as_str()).map_err(String::as_str);
        let input = scan::interpret(path, text, &self.config);
        let is_whole = !is_empty && !input.is_broken();
        let read = Read { input, content, is_whole };
        self.candidates.insert(path.clone(), Candidate { stamp, seen: now, read: Some(read) });
        true
    }

    /// When a file that is there counts as finished.
    fn ready(&self, candidate: &Candidate, taken: Option<Taken>, open_until: Option<Instant>, now: Instant) -> Instant {
        if let Some(until) = open_until {
            return until;
        }
        let timing = &self.config.timing;
        // A file last written long ago is not in the middle of a save. An age is unset for times to come.
        let age = candidate.stamp.and_then(|stamp| stamp.age());
        let was_whole = taken.is_none_or(|taken| taken.is_whole);
        let is_cut = was_whole && candidate.read.as_ref().is_some_and(|read| !read.is_whole);
        if is_cut && age.is_none_or(|age| age < timing.cut_grace.max(Duration::from_secs(1))) {
            return candidate.seen + timing.cut_grace;
        }
        match age {
            Some(age) if age < timing.quiet => now + (timing.quiet - age),
            _ => now,
        }
    }

    fn take(&mut self, path: Arc<str>) -> (Arc<str>, Option<FileInput>) {
        let candidate = self.candidates.remove(&path);
        match candidate.and_then(|candidate| Some((candidate.stamp, candidate.read?))) {
            Some((stamp, Read { input, content, is_whole })) => {
                self.taken.insert(path.clone(), Taken { stamp, content, is_whole });
                (path, Some(input))
            }
            None => {
                self.taken.remove(&path);
                (path, None)
            }
        }
    }
}

fn is_within(path: &str, dir: &str) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn hash(text: &str) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish()
}
