//! Which images are at hand, which are on their way, and which cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use trysail_model::images::PULL_SECRET;
use trysail_model::{ImageError, ImageRequest, Images, Object, ObjectRef, with_causes};

use crate::credentials::Login;
use crate::{Access, Cache, Credentials, Error, Image, Metrics, registry};

/// Settings.
pub struct Config {
    /// How registries are reached.
    pub access: Access,
    /// What is kept on disk; nothing when unset.
    pub cache: Option<Cache>,
    /// The control plane's namespace: the operator's credentials are for its documents alone.
    pub root_namespace: String,
    /// The operator's credentials: docker's file.
    pub docker_config: Option<PathBuf>,
    /// When another attempt is made.
    pub retry: Retry,
    /// Called when an image came, or another reason why it does not come.
    pub on_moved: Box<dyn Fn() + Send + Sync>,
    /// Counters.
    pub metrics: Metrics,
}

/// When another attempt is made: after twice as long each time, a quarter more or less.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub max: Duration,
    /// Failures that may pass by themselves, and are not told before there are more.
    pub untold: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { first: Duration::from_secs(1), max: Duration::from_secs(300), untold: 2 }
    }
}

/// Images that are got at once; more have to wait.
const AT_ONCE: usize = 4;
/// Where in pull secrets docker's JSON is.
const SECRET_KEY: &str = ".dockerconfigjson";

/// The images. Dropping it ends whatever is on its way.
pub struct Store {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    config: Config,
    state: Mutex<State>,
    slots: Semaphore,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageRequest, Entry>,
    /// Pull secrets by namespace and name, or why they are none.
    secrets: BTreeMap<(String, String), Result<Credentials, String>>,
}

struct Entry {
    at: At,
    /// Who gets it.
    task: Option<AbortHandle>,
}

#[derive(Clone)]
enum At {
    /// Somebody gets it; and why it did not come so far.
    Awaited(Option<ImageError>),
    /// It came and was not taken notice of; or there is nowhere else to keep it.
    Held { component: Arc<[u8]>, is_kept: bool },
    /// It is in the cache.
    Kept,
}

impl Entry {
    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Store {
    /// A store whose work is done on this runtime.
    pub fn new(config: Config, runtime: Handle) -> Store {
        let shared = Shared { config, state: Mutex::default(), slots: Semaphore::new(AT_ONCE) };
        Store { shared: Arc::new(shared), runtime }
    }

    fn start(&self, request: &ImageRequest) -> AbortHandle {
        self.runtime.spawn(get(Arc::downgrade(&self.shared), request.clone())).abort_handle()
    }
}

impl Images for Store {
    fn secret(&self, reference: &ObjectRef, secret: Option<&Arc<Object>>) {
        let mut state = self.shared.state.lock();
        let key = (reference.namespace.to_string(), reference.name.to_string());
        match secret.filter(|secret| *secret.body.part("type") == *PULL_SECRET) {
            Some(secret) => drop(state.secrets.insert(key.clone(), pull_secret(secret))),
            None if state.secrets.remove(&key).is_some() => {}
            None => return,
        }
        // Who waits for it need not wait for the next attempt as well.
        for (request, entry) in &mut state.images {
            let is_its = request.namespace == key.0 && request.pull_secret.as_ref() == Some(&key.1);
            if is_its && matches!(entry.at, At::Awaited(_)) {
                entry.stop();
                entry.task = Some(self.start(request));
            }
        }
    }

    fn get(&self, request: &ImageRequest) -> Option<Result<Arc<[u8]>, ImageError>> {
        let Config { access, cache, metrics, .. } = &self.shared.config;
        let known = self.shared.state.lock().images.get(request).map(|entry| entry.at.clone());
        match &known {
            Some(At::Awaited(error)) => return error.clone().map(Err),
            Some(At::Held { component, .. }) => return Some(Ok(component.clone())),
            Some(At::Kept) | None => {}
        }
        let checked = Image::parse(&request.image).and_then(|image| access.allows(&image).map(|()| image));
        let image = match checked {
            Ok(image) => image,
            Err(error) => return Some(Err(in_words(&error))),
        };
        let kept = cache.as_ref().and_then(|cache| cache.component(&request.namespace, &image, access.max_bytes));
        let mut state = self.shared.state.lock();
        let Some(component) = kept else {
            let task = Some(self.start(request));
            state.images.insert(request.clone(), Entry { at: At::Awaited(None), task });
            return None;
        };
        if known.is_none() {
            metrics.came("cached");
            tracing::info!(image = %image, "image of a plugin found on disk");
        }
        state.images.insert(request.clone(), Entry { at: At::Kept, task: None });
        Some(Ok(component[..].into()))
    }

    fn retain(&self, wanted: &BTreeSet<ImageRequest>) {
        self.shared.state.lock().images.retain(|request, entry| {
            let stays = wanted.contains(request);
            if !stays {
                entry.stop();
            }
            // Who wanted it has it by now.
            if matches!(entry.at, At::Held { is_kept: true, .. }) {
                entry.at = At::Kept;
            }
            stays
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.state.lock().images.values_mut().for_each(Entry::stop);
    }
}

/// Gets an image, however often it has to be tried.
async fn get(shared: std::sync::Weak<Shared>, request: ImageRequest) {
    for n_failed in 1_u32.. {
        let Some(shared) = shared.upgrade() else { return };
        let Config { metrics, retry, on_moved, .. } = &shared.config;
        let pause = match shared.attempt(&request).await {
            Ok(at) => {
                metrics.came("fetched");
                if let Some(entry) = shared.state.lock().images.get_mut(&request) {
                    *entry = Entry { at, task: None };
                }
                on_moved();
                return;
            }
            Err(error) => {
                metrics.came(error.word());
                let pause = retry.pause(n_failed);
                let text = with_causes(&error);
                tracing::warn!(
                    image = request.image,
                    namespace = request.namespace,
                    error = text,
                    ?pause,
                    "image of a plugin not fetched; it is tried again"
                );
                if !error.is_passing() || n_failed > retry.untold {
                    let told = At::Awaited(Some(in_words(&error)));
                    let mut state = shared.state.lock();
                    let Some(entry) = state.images.get_mut(&request) else { return };
                    let is_news = !matches!((&entry.at, &told), (At::Awaited(old), At::Awaited(new)) if old == new);
                    entry.at = told;
                    drop(state);
                    if is_news {
                        on_moved();
                    }
                }
                pause
            }
        };
        drop(shared);
        tokio::time::sleep(pause).await;
    }
}

impl Retry {
    fn pause(&self, n_failed: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << n_failed.saturating_sub(1).min(20));
        doubled.min(self.max).mul_f64(rand::rng().random_range(0.75..1.25))
    }
}

impl Shared {
    async fn attempt(&self, request: &ImageRequest) -> Result<At, Error> {
        let _slot = self.slots.acquire().await;
        let image = Image::parse(&request.image)?;
        let began = Instant::now();
        let login = self.login(request, &image)?;
        let registry::Fetched { component, blobs } =
            registry::fetch_as(&self.config.access, &image, login.as_ref()).await?;
        let millis = began.elapsed().as_millis() as u64;
        tracing::info!(image = %image, bytes = component.len(), millis, "image of a plugin fetched");
        let is_kept = self.config.cache.as_ref().is_some_and(|cache| {
            let written = blobs.iter().try_for_each(|(digest, blob)| cache.write(&request.namespace, digest, blob));
            // Then it is fetched again after a restart.
            written.inspect_err(|error| tracing::warn!(%image, %error, "an image cannot be kept on disk")).is_ok()
        });
        Ok(At::Held { component: component[..].into(), is_kept })
    }

    /// Who asks, as far as the registry is concerned.
    fn login(&self, request: &ImageRequest, image: &Image) -> Result<Option<Login>, Error> {
        if let Some(name) = &request.pull_secret {
            let namespace = &request.namespace;
            let state = self.state.lock();
            let secret = state.secrets.get(&(namespace.clone(), name.clone())).ok_or_else(|| {
                Error::PullSecret(format!("there is no Secret {name:?} of the type {PULL_SECRET} in {namespace}"))
            })?;
            let credentials =
                secret.as_ref().map_err(|error| Error::PullSecret(format!("Secret {namespace}/{name}: {error}")))?;
            let login = credentials.of(image).ok_or_else(|| {
                Error::PullSecret(format!("Secret {namespace}/{name} has nothing for {}", image.host()))
            })?;
            return Ok(Some(login.clone()));
        }
        // A tenant names the registry; the operator's credentials are not his to use.
        let file = self.config.docker_config.as_ref().filter(|_| request.namespace == self.config.root_namespace);
        let Some(file) = file else { return Ok(None) };
        let wrong = |why: String| Error::Credentials(format!("{}: {why}", file.display()));
        // Anew each time: tokens in it are replaced.
        let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let credentials = Credentials::parse(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(credentials.of(image).cloned())
    }
}

fn in_words(error: &Error) -> ImageError {
    match error {
        Error::PullSecret(text) => ImageError::PullSecret(text.clone()),
        other => ImageError::Image(with_causes(other)),
    }
}

/// The credentials in a secret.
fn pull_secret(secret: &Object) -> Result<Credentials, String> {
    let data = secret.body.part("data");
    let plain = secret.body.part("stringData");
    let json = match (data.get(SECRET_KEY).and_then(|v| v.as_str()), plain.get(SECRET_KEY).and_then(|v| v.as_str())) {
        (_, Some(text)) => text.as_bytes().to_vec(),
        (Some(text), None) => BASE64_STANDARD.decode(text).map_err(|_| format!("data[{SECRET_KEY:?}]: not base64"))?,
        (None, None) => return Err(format!("there is no data[{SECRET_KEY:?}]")),
    };
    Credentials::parse(&json).map_err(|error| format!("data[{SECRET_KEY:?}]: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let retry = Retry { first: Duration::from_secs(1), max: Duration::from_secs(10), untold: 0 };
        for (n_failed, seconds) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (100, 10.0), (u32::MAX, 10.0)] {
            let pause = retry.pause(n_failed).as_secs_f64();
            assert!(pause >= seconds * 0.75 && pause < seconds * 1.25, "{n_failed}: {pause}");
        }
    }
}
