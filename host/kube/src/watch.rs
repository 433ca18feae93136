//! The watch on one kind: a task that lasts as long as the source.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};

use crate::definitions::Definitions;
use crate::gather::Told;
use crate::known::Known;
use crate::read::{Read, Reader};
use crate::watched::Watched;

/// What all watches share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) config: Arc<trysail_discovery::Config>,
    pub(crate) page: u32,
    pub(crate) told_tx: mpsc::UnboundedSender<(usize, Told)>,
}

/// How often a list that is older than what is known is made again before it is taken for the truth.
const STALE_LISTS: u32 = 30;
/// How long between two of them.
const STALE_PAUSE: Duration = Duration::from_secs(2);
/// A server ends a watch after so long, and one that does not is taken for dead soon after.
const WATCH_SECONDS: u32 = 120;
/// Failures in a row after which everything is listed anew: whatever a watch hangs on, a list does not.
const FAILURES: u32 = 5;
/// How often a kind is looked for whose definition is there already: serving it takes a moment.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// A watch that failed and then did not for so long works again; longer than it takes to find that nobody is there.
const CALM: Duration = Duration::from_secs(13);
/// Between two attempts when nothing works, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Why a stream of events is not followed any further.
enum End {
    /// The kind is not served (any more).
    Undefined,
    /// List again.
    Again,
    /// Nobody listens.
    Closed,
}

/// The watch on one kind.
pub(crate) struct KindWatch {
    at: usize,
    watched: Watched,
    shared: Shared,
    definitions_rx: watch::Receiver<Definitions>,
    known: Known,
    /// Lists in a row that were older than what is known.
    n_stale: u32,
    /// How long to wait after the next failure.
    pause: Duration,
    /// That it fails stands in the log already.
    is_said: bool,
}

impl KindWatch {
    pub(crate) fn new(
        at: usize,
        watched: Watched,
        shared: Shared,
        definitions_rx: watch::Receiver<Definitions>,
    ) -> KindWatch {
        KindWatch {
            at,
            watched,
            shared,
            definitions_rx,
            known: Known::default(),
            n_stale: 0,
            pause: LOOK_PAUSE,
            is_said: false,
        }
    }

    /// Runs until nobody listens.
    pub(crate) async fn run(mut self) {
        loop {
            let end = match self.version().await {
                Some(version) => self.follow(&version).await,
                None => End::Undefined,
            };
            let listens = match end {
                End::Again => true,
                End::Closed => false,
                End::Undefined => {
                    let gone = self.known.replace(Vec::new());
                    self.tell(Told::Undefined(gone)) && self.definitions_rx.changed().await.is_ok()
                }
            };
            if !listens {
                return;
            }
        }
    }

    fn tell(&self, told: Told) -> bool {
        self.shared.told_tx.send((self.at, told)).is_ok()
    }

    /// The version to watch; unset when the server does not know the kind.
    async fn version(&mut self) -> Option<String> {
        let newest = self.watched.kind.versions.first()?;
        let Some(definition) = self.watched.definition() else { return Some((*newest).to_owned()) };
        let mut looks = 0;
        loop {
            let known = self.definitions_rx.wait_for(Option::is_some).await.ok()?.clone()?;
            if !known.contains(&definition) {
                return None;
            }
            match self.served().await {
                Ok(Some(version)) => return Some(version),
                Ok(None) if looks == LOOKS => {
                    let versions = self.watched.kind.versions.join(", ");
                    tracing::error!(
                        definition,
                        versions,
                        "defined, but in none of the versions that are read; left out"
                    );
                    return None;
                }
                Ok(None) => looks += 1,
                Err(error) => drop(self.tell(Told::Failing(error.to_string()))),
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// The newest of our versions that the server serves.
    async fn served(&self) -> Result<Option<String>, kube::Error> {
        let groups = self.shared.client.list_api_groups().await?;
        let group = groups.groups.into_iter().find(|group| group.name == self.watched.kind.group);
        let served: Vec<String> =
            group.into_iter().flat_map(|group| group.versions).map(|version| version.version).collect();
        let plural = self.watched.kind.plural();
        for version in self.watched.kind.versions.iter().filter(|version| served.iter().any(|known| known == *version))
        {
            let resource = self.watched.resource(version);
            let known = self.shared.client.list_api_group_resources(&resource.api_version).await;
            let known = match known {
                Ok(known) => known.resources,
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(error),
            };
            if known.iter().any(|known| known.name == plural) {
                return Ok(Some((*version).to_owned()));
            }
        }
        Ok(None)
    }

    async fn follow(&mut self, version: &str) -> End {
        let resource = self.watched.resource(version);
        let mut events = self.events(&resource);
        let definition = self.watched.definition();
        let mut definitions = self.definitions_rx.clone();
        let mut listed: Option<Vec<Read>> = None;
        let mut n_failures = 0;
        let mut is_failing = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // A watch that goes on where it was says nothing of it, but one that cannot does so sooner than this.
                () = tokio::time::sleep(CALM), if is_failing => {
                    (is_failing, n_failures) = (false, 0);
                    self.recovered();
                    if !self.tell(Told::Fine) {
                        return End::Closed;
                    }
                    continue;
                }
                // A kind that is gone answers no watch any more, or does so for ever.
                Ok(known) = definitions.wait_for(|known| match (&definition, known) {
                    (Some(definition), Some(known)) => !known.contains(definition),
                    _ => false,
                }), if definition.is_some() => {
                    drop(known);
                    return End::Undefined;
                }
            };
            let Some(event) = event else { return End::Again };
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if is_undefined(&error) && definition.is_some() {
                        return End::Undefined;
                    }
                    n_failures += 1;
                    if !std::mem::replace(&mut self.is_said, true) {
                        tracing::warn!(kind = self.watched.kind.name, "cannot watch: {}", words(&error));
                    }
                    is_failing = true;
                    if !self.tell(Told::Failing(words(&error))) {
                        return End::Closed;
                    }
                    // The client's own pauses begin anew with each list, so these come on top.
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    if n_failures == FAILURES || is_expired(&error) {
                        return End::Again;
                    }
                    continue;
                }
            };
            if std::mem::take(&mut is_failing) && !matches!(event, Event::Init) && !self.tell(Told::Fine) {
                return End::Closed;
            } else if matches!(event, Event::Init) {
                is_failing = n_failures > 0;
            }
            if !matches!(event, Event::Init) {
                n_failures = 0;
                self.recovered();
            }
            let told = match event {
                Event::Init => {
                    listed = Some(Vec::new());
                    None
                }
                Event::InitApply(read) => {
                    listed.get_or_insert_default().extend(read);
                    None
                }
                Event::InitDone => {
                    let all = listed.take().unwrap_or_default();
                    match self.list(all) {
                        Some(moved) => Some(Told::Listed(moved)),
                        None => {
                            tokio::time::sleep(STALE_PAUSE).await;
                            return End::Again;
                        }
                    }
                }
                Event::Apply(read) => read.and_then(|read| self.known.apply(read)).map(Told::Moved),
                Event::Delete(read) => {
                    read.and_then(|read| self.known.delete(&read.reference, read.uid)).map(Told::Moved)
                }
            };
            if told.is_some_and(|told| !self.tell(told)) {
                return End::Closed;
            }
        }
    }

    fn recovered(&mut self) {
        self.pause = LOOK_PAUSE;
        if std::mem::take(&mut self.is_said) {
            tracing::info!(kind = self.watched.kind.name, "watching again");
        }
    }

    /// Takes a list in; nothing when it is too old.
    fn list(&mut self, all: Vec<Read>) -> Option<Vec<crate::known::Moved>> {
        if self.n_stale >= STALE_LISTS {
            tracing::error!(
                kind = self.watched.kind.name,
                "the server's state went back in time, and stays there: it is taken"
            );
            self.n_stale = 0;
            return Some(self.known.replace(all));
        }
        match self.known.list(all) {
            Ok(moved) => {
                self.n_stale = 0;
                Some(moved)
            }
            Err(crate::known::Stale) => {
                self.n_stale += 1;
                tracing::warn!(
                    kind = self.watched.kind.name,
                    "the server is behind what it said before; listing again"
                );
                None
            }
        }
    }

    /// Events with what was read of their objects.
    fn events(&self, resource: &ApiResource) -> BoxStream<'static, Result<Event<Option<Read>>, watcher::Error>> {
        let mut config = watcher::Config::default().page_size(self.shared.page).timeout(WATCH_SECONDS);
        if let Some(fields) = self.watched.fields {
            config = config.fields(fields);
        }
        let client = self.shared.client.clone();
        let mut reader = Reader::new(resource.clone(), self.shared.config.clone());
        if self.watched.metadata_only {
            let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, resource);
            let events = kube::runtime::watcher(api, config).default_backoff();
            events.map(move |event| Ok(map(event?, |object| reader.metadata(object)))).boxed()
        } else {
            let api: Api<DynamicObject> = Api::all_with(client, resource);
            let events = kube::runtime::watcher(api, config).default_backoff();
            events.map(move |event| Ok(map(event?, |object| reader.object(object)))).boxed()
        }
    }
}

fn map<K, T>(event: Event<K>, read: impl FnOnce(K) -> T) -> Event<T> {
    match event {
        Event::Apply(object) => Event::Apply(read(object)),
        Event::Delete(object) => Event::Delete(read(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(read(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// The code that a server gave, if one did.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn is_undefined(error: &watcher::Error) -> bool {
    code(error) == Some(404)
}

fn is_expired(error: &watcher::Error) -> bool {
    code(error) == Some(410)
}

/// An error with its causes, in one line.
fn words(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}
