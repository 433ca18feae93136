//! The signing key in a process of its own.
//!
//! ```text
//!  the control plane (plugins run here)             the signer (nothing else runs here)
//!  Signer::issue ──order──▶ ┐                    ┌─▶ Authority: key, lifetimes, contents
//!  Signer::bundle ◀─bundle─ ┴── a socket pair ───┴── watches files, renews roots
//! ```
//!
//! **Invariant:** the key never crosses the socket; who takes over the control plane gets leaves as long as it is there,
//! and neither the key nor another authority. The child cannot be traced or dumped, and ends when the socket does.

mod child;
mod process;
mod protocol;

pub use child::run as run_child;
pub use process::{SignerProcess, SpawnError};
pub use protocol::{Place, Source, Start};

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tonic::async_trait;

use crate::authority::{Authority, IssueError, Issued, Order, PublicBundle};
use crate::trust::{Trust, TrustRx};
use crate::x509::Certificate;

/// Whoever signs.
#[async_trait]
pub trait Signer: Send + Sync {
    /// Issues a leaf.
    ///
    /// # Errors
    /// See [`IssueError`].
    async fn issue(&self, order: Order) -> Result<Issued, IssueError>;

    /// What is public of the authority, now and from now on.
    fn bundle(&self) -> watch::Receiver<Arc<PublicBundle>>;
}

/// Signs nothing: where everything is signed outside, and only the roots are known.
pub struct Outside {
    bundle: watch::Sender<Arc<PublicBundle>>,
}

impl Outside {
    /// Knows the root of an external signer as the mesh configuration says it, now and from now on.
    pub fn new(signer: String, mut trust: TrustRx) -> Outside {
        let known = |trust: &Trust, signer: &str| {
            let pem = trust.root_of(signer).unwrap_or_default();
            let roots = Certificate::all_from_pem(pem.as_bytes()).unwrap_or_default();
            Arc::new(PublicBundle {
                roots: roots.iter().map(Certificate::to_pem).collect(),
                root_pem: pem.to_owned(),
                ..PublicBundle::default()
            })
        };
        let bundle = watch::Sender::new(known(&trust.borrow(), &signer));
        let told = bundle.clone();
        tokio::spawn(async move {
            while trust.changed().await.is_ok() {
                told.send_replace(known(&trust.borrow_and_update(), &signer));
            }
        });
        Outside { bundle }
    }
}

#[async_trait]
impl Signer for Outside {
    async fn issue(&self, _: Order) -> Result<Issued, IssueError> {
        Err(IssueError::NotReady)
    }

    fn bundle(&self) -> watch::Receiver<Arc<PublicBundle>> {
        self.bundle.subscribe()
    }
}

/// Signs in this process: for tests, and for programs that run no plugins.
pub struct InProcess {
    authority: Arc<Authority>,
    bundle: watch::Sender<Arc<PublicBundle>>,
}

impl InProcess {
    /// Signs with an authority.
    pub fn new(authority: Authority) -> InProcess {
        let bundle = watch::Sender::new(authority.bundle());
        InProcess { authority: Arc::new(authority), bundle }
    }

    /// Opens an authority and looks after it, on a thread that ends with the handle.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn start(start: &Start, open_secret: &crate::roots::OpenSecret) -> Result<InProcess, crate::roots::RootError> {
        let signer = InProcess::new(child::open(start, open_secret)?);
        let (authority, bundle) = (Arc::downgrade(&signer.authority), signer.bundle.clone());
        let look = move || {
            while let Some(authority) = authority.upgrade() {
                match authority.maintain(SystemTime::now()) {
                    Ok(true) => drop(bundle.send_replace(authority.bundle())),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "the signing key stays as it is"),
                }
                drop(authority);
                std::thread::sleep(child::TICK);
            }
        };
        // Without the thread the key is good all the same; it is only not renewed.
        if let Err(error) = std::thread::Builder::new().name("roots".into()).spawn(look) {
            tracing::error!(%error, "nobody looks after the signing key");
        }
        Ok(signer)
    }

    /// Looks for other files and for what is due.
    ///
    /// # Errors
    /// When what is new cannot be used.
    pub fn maintain(&self, now: SystemTime) -> Result<(), crate::roots::RootError> {
        if self.authority.maintain(now)? {
            self.bundle.send_replace(self.authority.bundle());
        }
        Ok(())
    }
}

#[async_trait]
impl Signer for InProcess {
    async fn issue(&self, order: Order) -> Result<Issued, IssueError> {
        let authority = self.authority.clone();
        let issued = tokio::task::spawn_blocking(move || authority.issue(&order, SystemTime::now())).await;
        issued.unwrap_or(Err(IssueError::NotReady))
    }

    fn bundle(&self) -> watch::Receiver<Arc<PublicBundle>> {
        self.bundle.subscribe()
    }
}
