//! A folder that is watched.
//!
//! ```text
//!  inotify --wake--> look at the whole tree --> what differs and is finished --> Ledger --> Change
//! ```
//!
//! Events only say *when* to look and which files a writer still holds open; *what* differs comes from a walk that
//! compares stamps. So a lost event, an overflow or a link that nobody watches costs time and never correctness, and
//! a slow walk without any event closes the last gap.
//!
//! **Invariant:** a save is one change. A file is left alone while it is being written, an editor's steps (move away, write
//! anew) are waited for, and files that were saved together are taken together; all within bounds of [`Timing`](crate::Timing).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use rustc_hash::FxHashMap;
use trysail_model::Rejection;

use crate::scan;
use crate::watch::tracker::{Look, Tracker};
use crate::{Changes, Config, LoadError, Settings, Status};

mod tracker;

/// How often a folder is looked at that is gone or cannot be watched.
const POLL: Duration = Duration::from_millis(50);

/// A new folder is looked at once more after this time, for what was put into it before it was watched.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// What happened in a watched folder.
#[derive(Clone, Debug)]
pub struct Change {
    /// True for the first one, which holds everything that the folder held at the start.
    pub initial: bool,
    /// Objects added, updated and deleted, all from one moment.
    pub changes: Changes,
    /// Mesh configuration and the like, as they are now.
    pub settings: Settings,
    /// Everything in force and everything wrong, as it is now.
    pub status: Arc<Status>,
    /// Rejections that were not there before: what to log.
    pub reported: Vec<Rejection>,
    /// Rejections that are not there any more.
    pub resolved: Vec<Rejection>,
}

/// A watch on a folder; it ends when this is dropped.
#[derive(Debug)]
pub struct FolderSource {
    status: Arc<Mutex<Arc<Status>>>,
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl FolderSource {
    /// Reads a folder and watches it.
    ///
    /// `on_change` runs on the source's own thread, first with all that the folder holds. Fails only when the folder
    /// cannot be read now; one that disappears later keeps its last state in force.
    pub fn start(
        dir: &Path,
        config: Config,
        on_change: impl FnMut(Change) + Send + 'static,
    ) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError { path: dir.to_owned(), source };
        scan::identity(dir).map_err(unreadable)?;
        let (messages, inbox) = mpsc::channel();
        let status = Arc::new(Mutex::new(Arc::new(Status::default())));
        let mut worker = Worker {
            dir: std::path::absolute(dir).map_err(unreadable)?,
            tracker: Tracker::new(config.clone()),
            config,
            messages: messages.clone(),
            watcher: None,
            watched: None,
            watch_error: None,
            writers: FxHashMap::default(),
            second_look: None,
            status: status.clone(),
            on_change,
            is_initial: true,
        };
        let run = move || worker.run(&inbox);
        let thread = thread::Builder::new().name("folder-source".to_owned()).spawn(run).map_err(unreadable)?;
        Ok(FolderSource { status, messages, thread: Some(thread) })
    }

    /// What is in force and what is wrong, as of the last change.
    pub fn status(&self) -> Arc<Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FolderSource {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<F> {
    dir: PathBuf,
    config: Config,
    tracker: Tracker,
    messages: Sender<Message>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the folder that is watched; another one may have taken its place.
    watched: Option<(u64, u64)>,
    watch_error: Option<String>,
    /// Files that someone writes to and has not closed yet, with the time of the last write.
    writers: FxHashMap<PathBuf, Instant>,
    second_look: Option<Instant>,
    status: Arc<Mutex<Arc<Status>>>,
    on_change: F,
    is_initial: bool,
}

impl<F: FnMut(Change)> Worker<F> {
    fn run(&mut self, inbox: &Receiver<Message>) {
        let mut wake = Instant::now();
        loop {
            match inbox.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Message::Event(event)) => {
                    if !self.note(event) {
                        continue;
                    }
                    if !self.settle(inbox) {
                        return;
                    }
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            wake = self.look();
        }
    }

    /// Waits until the folder comes to rest; false when asked to stop.
    fn settle(&mut self, inbox: &Receiver<Message>) -> bool {
        let timing = self.config.timing;
        let end = Instant::now() + timing.max_wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(timing.quiet.min(left)) {
                Ok(Message::Event(event)) => {
                    self.note(event);
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
            if Instant::now() >= end {
                return true;
            }
        }
    }

    /// Remembers what an event says; true when it is worth a look.
    fn note(&mut self, event: notify::Result<notify::Event>) -> bool {
        let Ok(event) = event else { return true };
        if event.need_rescan() {
            // Events are lost: who writes is unknown from here on.
            self.writers.clear();
            return true;
        }
        let concerns = |path: &PathBuf| match path.strip_prefix(&self.dir) {
            // Names with two dots are those of a mounted ConfigMap, to which the visible files are links.
            Ok(inside) => inside.iter().all(|name| {
                let name = name.to_string_lossy();
                name.starts_with("..") || !scan::is_ignored(&name)
            }),
            Err(_) => false,
        };
        let paths: Vec<_> = event.paths.iter().filter(|path| concerns(path)).cloned().collect();
        if paths.is_empty() {
            return false;
        }
        match event.kind {
            // Our own reading is an event too.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.writers.retain(|path, _| !paths.contains(path));
            }
            EventKind::Access(_) => return false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.writers.extend(paths.into_iter().map(|path| (path, Instant::now())));
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.writers.retain(|path, _| !paths.contains(path));
                self.second_look = Some(Instant::now() + SECOND_LOOK);
            }
            EventKind::Create(CreateKind::Folder) => self.second_look = Some(Instant::now() + SECOND_LOOK),
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {}
        }
        true
    }

    /// Looks at the folder, tells what changed, and says when to look again without an event.
    fn look(&mut self) -> Instant {
        let identity = scan::identity(&self.dir);
        if identity.as_ref().ok() != self.watched.as_ref() || self.watcher.is_none() {
            self.watch(identity.as_ref().ok().copied());
        }
        let now = Instant::now();
        let open_grace = self.config.timing.open_grace;
        self.writers.retain(|_, last| now.duration_since(*last) < open_grace);
        let scan = identity.and_then(|_| scan::scan(&self.dir, &self.config));
        let is_gone = scan.is_err();
        let mut changes = Changes::default();
        let mut unreadable = None;
        let mut again = None;
        match scan {
            Ok(scan) => {
                let writers = &self.writers;
                let open_until = |path: &Path| writers.get(path).map(|last| *last + open_grace);
                match self.tracker.look(scan, now, open_until) {
                    Look::Taken { changes: taken, pending } => {
                        changes = taken;
                        again = pending;
                    }
                    Look::Hold { until } => return until,
                }
            }
            Err(error) => unreadable = Some(format!("{}: {error}; its last state stays in force", self.dir.display())),
        }
        self.publish(changes, unreadable);
        let rescan = if is_gone || self.watch_error.is_some() { POLL } else { self.config.timing.rescan };
        self.second_look = self.second_look.filter(|at| *at > Instant::now());
        [again, self.second_look].into_iter().flatten().fold(Instant::now() + rescan, Instant::min)
    }

    /// Watches the folder that stands there now, and its parent for when another one takes its place.
    fn watch(&mut self, identity: Option<(u64, u64)>) {
        self.watched = identity;
        self.watcher = None;
        self.writers.clear();
        if identity.is_none() {
            return;
        }
        let messages = self.messages.clone();
        let start = || -> notify::Result<RecommendedWatcher> {
            let mut watcher = notify::recommended_watcher(move |event| {
                // An error means that the source has been stopped.
                let _ = messages.send(Message::Event(event));
            })?;
            watcher.watch(&self.dir, RecursiveMode::Recursive)?;
            if let Some(parent) = self.dir.parent() {
                // Not being allowed to is no loss but of time.
                let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
            }
            Ok(watcher)
        };
        match start() {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watch_error = None;
            }
            Err(error) => {
                self.watch_error = Some(format!("{} is polled, since watching it failed: {error}", self.dir.display()))
            }
        }
    }

    fn publish(&mut self, changes: Changes, unreadable: Option<String>) {
        let mut status = self.tracker.status();
        status.unreadable = unreadable;
        status.watch_error.clone_from(&self.watch_error);
        let before = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.is_initial && changes.is_empty() && *before == status {
            return;
        }
        let status = Arc::new(status);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status.clone();
        let missing_in = |from: &Status, of: &Status| -> Vec<Rejection> {
            of.rejections
                .iter()
                .filter(|rejection| from.rejections.binary_search(rejection).is_err())
                .cloned()
                .collect()
        };
        (self.on_change)(Change {
            initial: self.is_initial,
            changes,
            settings: self.tracker.settings(),
            reported: missing_in(&before, &status),
            resolved: missing_in(&status, &before),
            status,
        });
        self.is_initial = false;
    }
}

#[cfg(test)]
mod tests;
