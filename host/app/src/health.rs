//! Are we ready, are we alive: what kubelet asks on 8080.
//!
//! Ready means that every source has said all it has and a translation has passed; a stop begins with not being ready.
//! Alive means that no core task has hung for so long that only a restart helps. Neither has anything to do with the API
//! server's health: without it we go on serving what we have.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::server::Running;

/// How long a core task may work on one thing. A commit of a huge mesh takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is in the way of being ready, and what is at work.
#[derive(Default)]
pub struct Health {
    /// What is not there yet, and why, as far as that is known.
    missing: Mutex<BTreeMap<&'static str, String>>,
    /// Lines about what is served with reservations.
    notes: Mutex<Vec<String>>,
    working: Mutex<BTreeMap<u64, (&'static str, Instant)>>,
    running: OnceLock<Arc<Running>>,
}

/// A core task at work, until this is dropped.
pub struct Working<'a> {
    health: &'a Health,
    number: u64,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.health.working.lock().remove(&self.number);
    }
}

impl Health {
    /// Not ready, for want of these things.
    pub fn starting(missing: &[&'static str]) -> Health {
        let missing = missing.iter().map(|what| (*what, String::new())).collect();
        Health { missing: Mutex::new(missing), ..Health::default() }
    }

    /// Something is missing, or why it still is.
    pub fn lacks(&self, what: &'static str, why: impl Into<String>) {
        self.missing.lock().insert(what, why.into());
    }

    /// Something is there.
    pub fn has(&self, what: &'static str) {
        self.missing.lock().remove(what);
    }

    /// What is served with reservations, for whoever looks at the answer.
    pub fn note(&self, notes: Vec<String>) {
        *self.notes.lock() = notes;
    }

    /// Pages other than those of health are answered from here on.
    pub fn serves(&self, running: Arc<Running>) {
        // Set once, at the start.
        let _ = self.running.set(running);
    }

    /// A core task begins to work; if it does not come to an end, we are not alive.
    pub fn works(&self, what: &'static str) -> Working<'_> {
        let mut working = self.working.lock();
        let number = working.last_key_value().map_or(0, |(number, _)| number + 1);
        working.insert(number, (what, Instant::now()));
        Working { health: self, number }
    }

    /// Ready or not, and the lines that say why.
    pub fn readiness(&self) -> (bool, String) {
        let missing = self.missing.lock();
        let lines = missing.iter().map(|(what, why)| match why.as_str() {
            "" => format!("waiting for {what}\n"),
            why => format!("waiting for {what}: {why}\n"),
        });
        let is_ready = missing.is_empty();
        let notes = self.notes.lock();
        (is_ready, lines.chain(notes.iter().map(|note| format!("{note}\n"))).collect())
    }

    /// Alive or not, and which task is stuck.
    pub fn liveness(&self) -> (bool, String) {
        let working = self.working.lock();
        let stuck = working.values().filter(|(_, since)| since.elapsed() > PATIENCE);
        let lines: String =
            stuck.map(|(what, since)| format!("stuck for {} s: {what}\n", since.elapsed().as_secs())).collect();
        (lines.is_empty(), lines)
    }

    /// What pages show; unset before there is anything.
    pub fn running(&self) -> Option<&Arc<Running>> {
        self.running.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_missing() {
        let health = Health::starting(&["the source", "a translation"]);
        health.lacks("the source", "Pod: connection refused");
        let (ready, why) = health.readiness();
        assert_eq!(
            (ready, &*why),
            (false, "waiting for a translation\nwaiting for the source: Pod: connection refused\n")
        );
        health.has("the source");
        health.has("a translation");
        health.note(vec!["held back: a.n".into()]);
        assert_eq!(health.readiness(), (true, "held back: a.n\n".into()));
    }

    #[test]
    fn alive_until_a_task_hangs() {
        let health = Health::default();
        drop(health.works("quick"));
        let _at_work = health.works("slow");
        assert!(health.liveness().0);
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        health.working.lock().insert(7, ("a commit", long_ago));
        let (alive, why) = health.liveness();
        assert!(!alive && why.starts_with("stuck for 2") && why.contains("a commit"), "{why}");
    }
}
