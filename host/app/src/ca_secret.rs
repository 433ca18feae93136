//! The authority's key in a secret of the cluster, where istiod keeps it and finds it. It is the signer process that reads and
//! writes it, over a connection of its own: the key does not pass through the process that runs plugins.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use trysail_ca::roots::{CaSecret, CaStore, GENERATED, SECRET_NAME, SECRET_TYPE, SecretPlace, StoreError};
use trysail_kube::{Connection, KeptError, KeptSecret};

/// A secret of a cluster as the place of the key.
struct ClusterStore {
    runtime: tokio::runtime::Runtime,
    /// The first that is there is taken; of none, the last is made.
    secrets: Vec<KeptSecret>,
    /// Which of them is in use.
    current: AtomicUsize,
    /// Is a mark made in it that tells it from one that an operator made?
    is_marked: bool,
    place: String,
    /// Of what was loaded last: whoever replaces something else would undo what another replica did.
    version: Mutex<String>,
}

/// Opens it. Nothing is asked of the API server yet.
///
/// # Errors
/// When there is no way to an API server.
pub fn open(place: &SecretPlace) -> Result<Box<dyn CaStore>, StoreError> {
    let name = format!("secret {}/{}", place.namespace, place.name);
    let failed = |error: io::Error| StoreError::new("reach", name.clone(), error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let connection = Connection { kubeconfig: place.kubeconfig.clone(), ..Connection::default() };
    let client = wait(&runtime, trysail_kube::connect(&connection)).map_err(|error| failed(io::Error::other(error)))?;
    // As with istiod, whoever has a key in the old place keeps it there.
    let is_marked = place.name != SECRET_NAME;
    let names: &[&str] = if is_marked { &[SECRET_NAME, &place.name] } else { &[SECRET_NAME] };
    let secrets: Vec<KeptSecret> =
        names.iter().map(|name| KeptSecret::new(client.clone(), &place.namespace, name, SECRET_TYPE)).collect();
    let current = AtomicUsize::new(secrets.len() - 1);
    Ok(Box::new(ClusterStore { runtime, secrets, current, is_marked, place: name, version: Mutex::default() }))
}

/// Waits on a thread of its own: the caller's may be one of another runtime, which must not wait for this one.
fn wait<T: Send>(runtime: &tokio::runtime::Runtime, what: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| runtime.block_on(what));
        match waiting.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl ClusterStore {
    fn wait<T: Send>(
        &self,
        action: &'static str,
        what: impl Future<Output = Result<T, KeptError>> + Send,
    ) -> Result<T, StoreError> {
        let failed = |error| StoreError::new(action, self.place.clone(), io::Error::other(error));
        wait(&self.runtime, what).map_err(failed)
    }
}

impl CaStore for ClusterStore {
    fn load(&self) -> Result<Option<CaSecret>, StoreError> {
        for (index, secret) in self.secrets.iter().enumerate() {
            if let Some((parts, version)) = self.wait("read", secret.load())? {
                *self.version.lock() = version;
                self.current.store(index, Ordering::Relaxed);
                return Ok(Some(parts));
            }
        }
        Ok(None)
    }

    fn create(&self, secret: &CaSecret) -> Result<CaSecret, StoreError> {
        // Somebody else's, if there is one by now.
        let mut parts = secret.clone();
        if self.is_marked {
            parts.insert(GENERATED.to_owned(), Vec::new());
        }
        if let Some(last) = self.secrets.last() {
            self.wait("keep", last.create(&parts))?;
        }
        let gone = || StoreError::new("read", self.place.clone(), io::Error::other("it is gone again"));
        self.load()?.ok_or_else(gone)
    }

    fn replace(&self, secret: &CaSecret) -> Result<(), StoreError> {
        let version = self.version.lock().clone();
        let Some(current) = self.secrets.get(self.current.load(Ordering::Relaxed)) else { return Ok(()) };
        self.wait("keep", current.replace(secret, &version))
    }
}
