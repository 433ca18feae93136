//! The source: all watches together.

use std::sync::Arc;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use trysail_discovery::{Update, kinds};

use crate::definitions::watch_definitions;
use crate::gather::Gatherer;
use crate::watch::{KindWatch, Shared};
use crate::watched::{Watched, is_ignored};

/// How a cluster is read.
#[derive(Clone, Debug)]
pub struct Config {
    /// How objects are read; `read_kinds` are the kinds that are watched.
    pub objects: trysail_discovery::Config,
    /// Custom kinds that are left out, `PILOT_IGNORE_RESOURCES`.
    pub ignored: Vec<String>,
    /// Those that are not after all, `PILOT_INCLUDE_RESOURCES`.
    pub included: Vec<String>,
    /// Objects per page of a list.
    pub page: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config { objects: trysail_discovery::Config::default(), ignored: Vec::new(), included: Vec::new(), page: 250 }
    }
}

/// How far the first lists are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Kinds that have not listed yet, with what is wrong, if anything is.
    pub waiting: Vec<String>,
}

/// A watch on a cluster; it ends when this is dropped.
pub struct ClusterSource {
    tasks: Vec<JoinHandle<()>>,
    progress_rx: watch::Receiver<Progress>,
}

/// Events taken together at most, so that none waits for ever.
const BATCH: usize = 20_000;

impl ClusterSource {
    /// Starts to watch. The first update comes when everything has been listed, however long that takes.
    pub fn start(client: Client, config: Config, updates_tx: mpsc::UnboundedSender<Update>) -> ClusterSource {
        let Config { objects, ignored, included, page } = config;
        let reads = |kind: &Watched| {
            let left_out = kind.definition().is_some_and(|definition| is_ignored(&definition, &ignored, &included));
            objects.reads(kind.kind.name) && !left_out
        };
        let watched: Vec<Watched> = kinds::all().map(Watched::new).filter(reads).collect();
        let gatherer = Gatherer::new(watched.iter().map(|watched| watched.kind.name), &objects);
        let (told_tx, mut told_rx) = mpsc::unbounded_channel();
        let (definitions_tx, definitions_rx) = watch::channel(None);
        let (progress_tx, progress_rx) = watch::channel(Progress { waiting: gatherer.waiting() });
        let shared = Shared { client: client.clone(), config: Arc::new(objects), page, told_tx };
        let mut tasks = vec![tokio::spawn(watch_definitions(client, page, definitions_tx))];
        for (at, watched) in watched.into_iter().enumerate() {
            let watch = KindWatch::new(at, watched, shared.clone(), definitions_rx.clone());
            tasks.push(tokio::spawn(watch.run()));
        }
        tasks.push(tokio::spawn(async move {
            let mut gatherer = gatherer;
            let mut batch = Vec::new();
            while told_rx.recv_many(&mut batch, BATCH).await > 0 {
                for (kind, told) in batch.drain(..) {
                    gatherer.hear(kind, told);
                }
                let progress = Progress { waiting: gatherer.waiting() };
                progress_tx.send_if_modified(|before| {
                    let moved = *before != progress;
                    *before = progress;
                    moved
                });
                if let Some(update) = gatherer.flush()
                    && updates_tx.send(update).is_err()
                {
                    return;
                }
            }
        }));
        ClusterSource { tasks, progress_rx }
    }

    /// How far the first lists are, as it changes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress_rx.clone()
    }
}

impl Drop for ClusterSource {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
