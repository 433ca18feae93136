//! Changes on their way in: from what happened to the new revision that streams are told of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as mpsc_std;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trysail_ca::sds::{SecretStore, is_secret};
use trysail_discovery::Update;
use trysail_facts::FactsSnapshot;
use trysail_model::ObjectRef;
use trysail_plugins::catalogue::Catalogue;
use trysail_stages::{Engine, EngineTranslator};

use super::files::Files;
use super::{Config, Report};
use crate::health::Health;
use crate::metrics;
use crate::omission::{Guard, Omissions};
use crate::terminal::Terminal;
use crate::trust::Followed;

/// What happened since the last push.
pub(super) enum Event {
    Source(Box<Update>),
    /// Somebody may read secrets who was not known to.
    Secrets,
    /// Proxies are to trust other roots.
    Roots,
    Settled,
    Plugins,
    Files,
}

/// An object, and what became of it.
type ObjectChange = (ObjectRef, Option<Arc<trysail_model::Object>>);

/// Tells the thread that looks after files and plugins that there is something to look at.
#[derive(Clone)]
pub(super) struct Wake {
    tx: mpsc_std::SyncSender<()>,
    images_moved: Arc<AtomicBool>,
}

impl Wake {
    pub(super) fn new() -> (Wake, mpsc_std::Receiver<()>) {
        // One call is as good as many.
        let (tx, rx) = mpsc_std::sync_channel(1);
        (Wake { tx, images_moved: Arc::default() }, rx)
    }

    /// There is something to look at.
    pub(super) fn up(&self) {
        // It is full when somebody called before, and closed at the end.
        let _ = self.tx.try_send(());
    }

    /// An image came, or will not.
    pub(super) fn images(&self) {
        self.images_moved.store(true, Ordering::Release);
        self.up();
    }
}

/// Takes changes in: facts, then stages.
pub(super) struct Committer {
    pub(super) engine: Arc<Engine>,
    /// Written here alone, and one commit at a time.
    pub(super) facts: Arc<ArcSwap<FactsSnapshot>>,
    pub(super) omissions: Mutex<Omissions>,
    pub(super) guard: Arc<Guard<EngineTranslator>>,
    pub(super) health: Arc<Health>,
    /// Secrets and who may have them: not among the facts, which stages see.
    pub(super) secrets: Arc<SecretStore>,
    /// Whom the mesh trusts: the secure port follows it.
    pub(super) trust: Arc<Followed>,
    pub(super) files: Mutex<Files>,
    pub(super) settings: Mutex<trysail_discovery::Settings>,
    pub(super) config: Config,
    pub(super) plugins: Option<Arc<Mutex<Catalogue>>>,
    /// Changes that the catalogue is to take in: it may be at work for long, since it compiles.
    pub(super) plugin_changes: Mutex<Vec<ObjectChange>>,
    /// Who looks after plugins.
    pub(super) wake: Wake,
    pub(super) report: Arc<Mutex<Report>>,
    pub(super) metrics: metrics::Commits,
    pub(super) terminal: Arc<Terminal>,
    /// The newest revision that the streams were told of.
    pub(super) served: Mutex<u64>,
    /// Nodes put together until the last collection.
    pub(super) collected: Mutex<u64>,
}

/// What a commit came to.
pub(super) struct Committed {
    pub(super) revision: u64,
    pub(super) reasons: Vec<String>,
    /// Secrets, or who may have them, changed.
    pub(super) secrets: bool,
}

/// Objects of one change that are named on the terminal.
const NAMED: usize = 50;

/// Kinds that the catalogue of plugins takes note of.
const OF_PLUGINS: [&str; 3] = [trysail_plugins::document::KIND, "ConfigMap", "Secret"];

/// Nodes put together between two collections.
const COLLECT_AFTER: u64 = 20_000;

impl Committer {
    /// Commits what happened. The new revision and why, or nothing when no answer can have moved.
    pub(super) fn commit(&self, events: Vec<Event>) -> Option<Committed> {
        let span = tracing::info_span!("commit", revision = tracing::field::Empty).entered();
        let began = Instant::now();
        let mut reasons = Vec::new();
        let mut change = trysail_facts::Change::default();
        let mut objects: BTreeMap<ObjectRef, Option<Arc<trysail_model::Object>>> = BTreeMap::new();
        let (mut settings_moved, mut access_moved) = (false, false);
        for event in events {
            match event {
                Event::Source(update) => {
                    settings_moved |= update.settings_moved;
                    self.take(&update, &mut objects);
                    self.report.lock().folder = update.status;
                    *self.settings.lock() = update.settings;
                }
                Event::Secrets => {
                    reasons.push("secret".to_owned());
                    access_moved = true;
                }
                Event::Roots => {
                    reasons.push("global".to_owned());
                    access_moved = true;
                }
                Event::Settled => reasons.push("unknown".to_owned()),
                Event::Plugins => reasons.push("global".to_owned()),
                Event::Files => {
                    let fresh = Files::read(&self.config);
                    let mut files = self.files.lock();
                    files.mesh = fresh.mesh.or(files.mesh.take());
                    files.networks = fresh.networks.or(files.networks.take());
                    settings_moved = true;
                }
            }
        }
        let changes = objects.iter().map(|(reference, object)| (reference, object.as_ref()));
        reasons.extend(self.metrics.changes(&self.facts.load(), changes));
        if settings_moved {
            reasons.push("global".to_owned());
        }
        let mut omissions = self.omissions.lock();
        let mut omitted = omissions.apply(objects.iter().map(|(reference, object)| (reference, object.as_ref())));
        if self.plugins.is_some() {
            let is_its = |(reference, _): &(&ObjectRef, _)| OF_PLUGINS.contains(&&*reference.kind);
            let changes = objects.iter().filter(is_its).map(|(reference, object)| (reference.clone(), object.clone()));
            let mut waiting = self.plugin_changes.lock();
            waiting.extend(changes);
            if !waiting.is_empty() {
                self.wake.up();
            }
        }
        let mut secrets =
            access_moved | self.secrets.apply(objects.iter().map(|(reference, object)| (reference, object.as_ref())));
        for (reference, object) in objects {
            match object {
                _ if is_secret(&reference) => {}
                Some(object) => change.upserted.push(object),
                None => change.deleted.push(reference),
            }
        }
        if settings_moved {
            let (files, settings) = (self.files.lock(), self.settings.lock());
            let mesh = files.mesh(&settings);
            secrets |= self.secrets.configure(&mesh);
            self.trust.configure(&mesh, &self.terminal);
            omitted |= omissions.configure(&mesh, &self.config.settings.system_namespace);
            change.mesh = Some(mesh);
            change.networks = Some(files.networks(&settings));
        }
        if !change.upserted.is_empty() || !change.deleted.is_empty() || settings_moved {
            // Before anybody can be served the new state: who must not have it has to be known.
            self.guard.update(omissions.clone());
            let (next, affected) = self.facts.load().apply(&change);
            let next = Arc::new(next);
            // Who is held back is judged by the labels of the new state, too.
            self.facts.store(next.clone());
            let advance = self.engine.advance(next, &affected);
            self.metrics.took(began.elapsed());
            self.terminal.advanced(&advance);
        }
        if omitted {
            self.report.lock().untranslated = omissions.objects().cloned().collect();
            report_omissions(&omissions, &self.terminal, &self.health);
        }
        drop(omissions);
        self.collect();
        let revision = self.engine.revision();
        self.report.lock().revision = revision;
        span.record("revision", revision);
        // A slow call's end has moved the revision before it was told here.
        let served = std::mem::replace(&mut *self.served.lock(), revision);
        (revision != served || secrets || omitted).then_some(Committed { revision, reasons, secrets })
    }

    /// Drops what was made for proxies that are gone and states that are past, once there is enough of it to be worth a look
    /// at everything.
    fn collect(&self) {
        let made = self.engine.counters().read().assembled;
        let mut collected = self.collected.lock();
        if made.saturating_sub(*collected) > COLLECT_AFTER {
            *collected = made;
            self.engine.collect(2);
        }
    }

    fn take(&self, update: &Update, objects: &mut BTreeMap<ObjectRef, Option<Arc<trysail_model::Object>>>) {
        let mut lines = Vec::new();
        for (sign, object) in
            update.added.iter().map(|object| ("+", object)).chain(update.updated.iter().map(|object| ("~", object)))
        {
            lines.push((sign, object.reference.clone()));
            objects.insert(object.reference.clone(), Some(object.clone()));
        }
        for reference in &update.deleted {
            lines.push(("-", reference.clone()));
            objects.insert(reference.clone(), None);
        }
        for (sign, reference) in lines.iter().take(NAMED) {
            self.terminal.say(&format!("{sign} {reference}"));
        }
        if lines.len() > NAMED {
            self.terminal.say(&format!("and {} more objects", lines.len() - NAMED));
        }
        for rejection in &update.reported {
            self.metrics.refused(rejection.object.as_ref());
            self.terminal.problem(&format!("refused: {rejection}"));
        }
        for rejection in &update.resolved {
            self.terminal.say(&format!("mended: {}", rejection.origin));
        }
    }

    /// Brings the plugins up to date with their documents and folder. True when something changed.
    pub(super) fn scan_plugins(&self) -> bool {
        let Some(plugins) = &self.plugins else { return false };
        let mut plugins = plugins.lock();
        let changes = std::mem::take(&mut *self.plugin_changes.lock());
        plugins.apply(changes.iter().map(|(reference, object)| (reference, object.as_ref())));
        if self.wake.images_moved.swap(false, Ordering::AcqRel) {
            plugins.image_moved();
        }
        let Some(advance) = plugins.refresh(&self.engine) else { return false };
        let status = plugins.status();
        for plugin in &status {
            let (name, points) = (&plugin.name, plugin.points.join(", "));
            match &plugin.error {
                Some(error) => self.terminal.problem(&format!("plugin {name}: {error}")),
                None if plugin.is_pending => self.terminal.say(&format!("plugin {name}: its component is on its way")),
                None if plugin.is_shadow => {
                    self.terminal.say(&format!("plugin {name} watched at {points}; nothing of it is sent"))
                }
                None => self.terminal.say(&format!("plugin {name} in force at {points}")),
            }
            if plugin.is_last_resort {
                self.terminal.problem(&format!("plugin {name} uses the hook patch: it depends on what is generated, and may break when that changes"));
            }
        }
        self.terminal.advanced(&advance);
        self.report.lock().plugins = status;
        true
    }
}

/// Between two looks at files.
const LOOK: Duration = Duration::from_millis(250);

/// Says which objects protect something and are not translated, where people look.
pub(super) fn report_omissions(omissions: &Omissions, terminal: &Terminal, health: &Health) {
    let lines: Vec<String> = omissions
        .objects()
        .map(|object| {
            format!(
                "untranslated: {object}: proxies that it selects are held back (--accept-untranslated={})",
                object.kind
            )
        })
        .collect();
    lines.iter().take(NAMED).for_each(|line| terminal.problem(line));
    health.note(lines);
}

/// Looks for changes of single files and of plugins: a few `stat` calls, four times a second, and whenever somebody says so. On a
/// thread of their own, since a new plugin has to be compiled.
pub(super) fn poll(
    committer: &Arc<Committer>,
    events: mpsc::UnboundedSender<Vec<Event>>,
    woken_rx: mpsc_std::Receiver<()>,
) -> Result<()> {
    let committer = Arc::downgrade(committer);
    let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut last = None;
    let run = move || {
        while let Some(committer) = committer.upgrade() {
            let now = [&committer.config.mesh_config, &committer.config.networks_config].map(stamp);
            let mut found = Vec::new();
            if last.replace(now).is_some_and(|last| last != now) {
                found.push(Event::Files);
            }
            if committer.scan_plugins() {
                found.push(Event::Plugins);
            }
            if !found.is_empty() && events.send(found).is_err() {
                return;
            }
            drop(committer);
            // Also when nobody is left who could: the committer is gone then.
            if woken_rx.recv_timeout(LOOK) == Err(mpsc_std::RecvTimeoutError::Disconnected) {
                std::thread::sleep(LOOK);
            }
        }
    };
    let spawned = std::thread::Builder::new().name("files".into()).spawn(run);
    spawned.context("cannot start a thread").map(drop)
}
