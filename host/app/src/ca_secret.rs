//! The authority's key in a secret of the cluster, where istiod keeps it and finds it. It is the signer process that reads and
//! writes it, over a connection of its own: the key does not pass through the process that runs plugins.

use std::io;

use parking_lot::Mutex;
use trysail_ca::roots::{CaSecret, CaStore, SECRET_TYPE, SecretPlace, StoreError};
use trysail_kube::{Connection, KeptError, KeptSecret};

/// A secret of a cluster as the place of the key.
struct ClusterStore {
    runtime: tokio::runtime::Runtime,
    secret: KeptSecret,
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
    let secret = KeptSecret::new(client, &place.namespace, &place.name, SECRET_TYPE);
    Ok(Box::new(ClusterStore { runtime, secret, place: name, version: Mutex::default() }))
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
        let found = self.wait("read", self.secret.load())?;
        Ok(found.map(|(parts, version)| {
            *self.version.lock() = version;
            parts
        }))
    }

    fn create(&self, secret: &CaSecret) -> Result<CaSecret, StoreError> {
        // Somebody else's, if there is one by now.
        self.wait("keep", self.secret.create(secret))?;
        let gone = || StoreError::new("read", self.place.clone(), io::Error::other("it is gone again"));
        self.load()?.ok_or_else(gone)
    }

    fn replace(&self, secret: &CaSecret) -> Result<(), StoreError> {
        let version = self.version.lock().clone();
        self.wait("keep", self.secret.replace(secret, &version))
    }
}
