//! Where our own key is kept. In a cluster that is the secret `istio-ca-secret` of type `istio.io/ca-root`; on a laptop a
//! folder with files of the same names.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The parts of the secret by name.
pub type CaSecret = BTreeMap<String, Vec<u8>>;

/// Name of the secret in a cluster.
pub const SECRET_NAME: &str = "istio-ca-secret";
/// Name of the secret with `USE_CACERTS_FOR_SELF_SIGNED_CA`: the one in which operators plug keys in.
pub const PLUGGED_NAME: &str = "cacerts";
/// An empty part of that secret which says that the key in it was made by the control plane.
pub const GENERATED: &str = "istio-generated";
/// Its type.
pub const SECRET_TYPE: &str = "istio.io/ca-root";
/// The signing certificate.
pub const CA_CERT: &str = "ca-cert.pem";
/// The signing key.
pub const CA_KEY: &str = "ca-key.pem";
/// The root certificate.
pub const ROOT_CERT: &str = "root-cert.pem";
/// Empty in a self-signed authority.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// Empty; istiod writes it too.
pub const KEY: &str = "key.pem";

/// The store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the authority's key in {place}")]
pub struct StoreError {
    action: &'static str,
    place: String,
    #[source]
    error: io::Error,
}

impl StoreError {
    /// `action` (such as `read`) failed in `place`, as people know it.
    pub fn new(action: &'static str, place: String, error: io::Error) -> StoreError {
        StoreError { action, place, error }
    }
}

/// Keeps the secret. Calls may block.
pub trait CaStore: Send {
    /// What is kept; `None` before the first time.
    ///
    /// # Errors
    /// When that cannot be told: making another key then would break the mesh in two.
    fn load(&self) -> Result<Option<CaSecret>, StoreError>;

    /// Keeps a secret unless there is one; what is kept afterwards.
    ///
    /// # Errors
    /// When neither.
    fn create(&self, secret: &CaSecret) -> Result<CaSecret, StoreError>;

    /// Replaces what is kept.
    ///
    /// # Errors
    /// When it is not kept.
    fn replace(&self, secret: &CaSecret) -> Result<(), StoreError>;
}

/// A folder that only its owner may read.
pub struct FolderStore {
    dir: PathBuf,
}

impl FolderStore {
    /// A folder, made when first needed.
    pub fn new(dir: PathBuf) -> FolderStore {
        FolderStore { dir }
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> StoreError {
        let place = self.dir.display().to_string();
        move |error| StoreError { action, place: place.clone(), error }
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl CaStore for FolderStore {
    fn load(&self) -> Result<Option<CaSecret>, StoreError> {
        let mut secret = CaSecret::new();
        for name in [CA_CERT, CA_KEY, ROOT_CERT] {
            match fs::read(self.dir.join(name)) {
                Ok(bytes) => {
                    secret.insert(name.to_owned(), bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed("read")(error)),
            }
        }
        match (secret.contains_key(CA_CERT), secret.contains_key(CA_KEY)) {
            (true, true) => Ok(Some(secret)),
            (false, false) => Ok(None),
            _ => Err(self.failed("read")(io::Error::other(format!("one of {CA_CERT} and {CA_KEY} is missing")))),
        }
    }

    fn create(&self, secret: &CaSecret) -> Result<CaSecret, StoreError> {
        let failed = self.failed("keep");
        if let Some(parent) = self.dir.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(&failed)?;
        }
        // All files at once: a folder beside it gets the name only when it is complete.
        // It is this attempt's own: of another thread of the process, too.
        static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let mut fresh = self.dir.as_os_str().to_owned();
        fresh.push(format!(".new-{}-{attempt}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_dir_all(&fresh);
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(&failed)?;
        let written = secret.iter().try_for_each(|(name, bytes)| write_private(&fresh.join(name), bytes));
        // Renaming onto an empty folder works, onto one with files does not: somebody else was first.
        let renamed = written.and_then(|()| fs::rename(&fresh, &self.dir));
        let _ = fs::remove_dir_all(&fresh);
        match (renamed, self.load()?) {
            (_, Some(kept)) => Ok(kept),
            (Err(error), None) => Err(failed(error)),
            (Ok(()), None) => Err(failed(io::Error::other("it is gone again"))),
        }
    }

    fn replace(&self, secret: &CaSecret) -> Result<(), StoreError> {
        let failed = self.failed("keep");
        for (name, bytes) in secret {
            let path = self.dir.join(name);
            if fs::read(&path).is_ok_and(|old| old == *bytes) {
                continue;
            }
            let fresh = self.dir.join(format!("{name}.new"));
            write_private(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)).map_err(&failed)?;
        }
        Ok(())
    }
}

/// A secret of a cluster in which the key is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPlace {
    /// File that says where the API server is; unset within a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the secret: the control plane's.
    pub namespace: String,
    /// Its name: [`SECRET_NAME`], or `cacerts`.
    pub name: String,
}

/// Opens a store in a cluster. Who talks to API servers is not in here.
pub type OpenSecret = dyn Fn(&SecretPlace) -> Result<Box<dyn CaStore>, StoreError> + Send + Sync;

/// Keeps it as long as the process lives.
#[derive(Default)]
pub struct MemoryStore(Mutex<Option<CaSecret>>);

impl CaStore for MemoryStore {
    fn load(&self) -> Result<Option<CaSecret>, StoreError> {
        Ok(self.0.lock().clone())
    }

    fn create(&self, secret: &CaSecret) -> Result<CaSecret, StoreError> {
        Ok(self.0.lock().get_or_insert_with(|| secret.clone()).clone())
    }

    fn replace(&self, secret: &CaSecret) -> Result<(), StoreError> {
        *self.0.lock() = Some(secret.clone());
        Ok(())
    }
}
