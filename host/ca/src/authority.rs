//! The authority itself: a signing key with its certificate, and what it agrees to sign.
//!
//! Synchronous and without a network: it runs in the signer process. It decides lifetimes and contents by itself, so that
//! whoever asks it can at most get leaves, never another authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::key::SigningKey;
use crate::roots::{RootError, Roots};
use crate::x509::{self, Certificate};

/// How far back a certificate's validity begins, since clocks differ.
pub const BACK_DATING: Duration = Duration::from_secs(120);

/// What everybody may know of the authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicBundle {
    /// The signing certificate, PEM.
    pub signing: String,
    /// The certificates between signing certificate and root, each a PEM block, in the order in which clients get them.
    pub chain: Vec<String>,
    /// The roots, each a PEM block.
    pub roots: Vec<String>,
    /// The roots as the operator wrote them: what is published.
    pub root_pem: String,
    /// Revocation list, PEM; empty without one.
    pub crl_pem: String,
}

/// What to issue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The encoded public key of the subject.
    #[serde(with = "crate::wire::base64")]
    pub spki: Vec<u8>,
    /// Alternative names: SPIFFE ids, DNS names, addresses.
    pub names: Vec<String>,
    /// Put the first name into the subject too, if it is short enough for that.
    pub common_name: bool,
    /// How long it shall be valid.
    pub lifetime: Lifetime,
}

/// A lifetime that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// A workload's wish in seconds: nothing or less means the default, too much is refused.
    Workload(i64),
    /// Our own serving certificate: as long as possible.
    Serving,
}

/// A leaf, and the bundle of the key that signed it: which is not the present one any more where both were replaced meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The leaf, DER.
    pub der: Vec<u8>,
    /// What leads from it to a root.
    pub bundle: Arc<PublicBundle>,
}

/// Why nothing was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum IssueError {
    /// There is no signing key yet, or the signer does not answer.
    #[error("Istio CA is not ready")]
    NotReady,
    /// The request is not acceptable; the text says why.
    #[error("{0}")]
    Csr(String),
    /// Too long a lifetime.
    #[error("requested TTL {} is greater than the max allowed TTL {}", crate::wire::go_duration(*.requested), crate::wire::go_duration(*.allowed))]
    Ttl {
        /// Seconds asked for.
        requested: i64,
        /// Seconds allowed.
        allowed: i64,
    },
    /// The signing certificate is of no use any more, or something cannot be encoded.
    #[error("{0}")]
    Generation(String),
}

impl IssueError {
    /// istiod's name of the kind, the label of `citadel_server_csr_sign_err_count`.
    pub fn label(&self) -> &'static str {
        match self {
            IssueError::NotReady => "CA_NOT_READY",
            IssueError::Csr(_) => "CSR_ERROR",
            IssueError::Ttl { .. } => "TTL_ERROR",
            IssueError::Generation(_) => "CERT_GEN_ERROR",
        }
    }
}

/// Limits on lifetimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetimes {
    /// For those who do not ask, `DEFAULT_WORKLOAD_CERT_TTL`.
    pub default: Duration,
    /// The longest, `MAX_WORKLOAD_CERT_TTL`.
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Lifetimes { default: Duration::from_secs(24 * 3600), max: Duration::from_secs(90 * 24 * 3600) }
    }
}

impl Lifetimes {
    /// The lifetime for a workload that wishes for so many seconds: nothing or less means the default.
    ///
    /// # Errors
    /// [`IssueError::Ttl`] for too much.
    pub fn of(&self, seconds: i64) -> Result<Duration, IssueError> {
        let max = self.max.as_secs();
        match u64::try_from(seconds) {
            Err(_) | Ok(0) => Ok(self.default),
            Ok(seconds) if seconds <= max => Ok(Duration::from_secs(seconds)),
            Ok(_) => Err(IssueError::Ttl { requested: seconds, allowed: i64::try_from(max).unwrap_or(i64::MAX) }),
        }
    }
}

/// A key with its certificate and what leads from it to a root. Checked when it is made.
#[derive(Debug)]
pub struct Keyring {
    /// The key.
    pub key: SigningKey,
    /// Its certificate.
    pub signing: Certificate,
    /// What is public of it.
    pub public: Arc<PublicBundle>,
}

/// The authority.
pub struct Authority {
    keyring: ArcSwap<Keyring>,
    lifetimes: Lifetimes,
    /// Where keys come from; whoever holds it changes the keyring.
    roots: Mutex<Roots>,
}

impl Authority {
    /// Loads or makes the key.
    ///
    /// # Errors
    /// When what is there cannot be used; see [`RootError`].
    pub fn open(mut roots: Roots, lifetimes: Lifetimes, now: SystemTime) -> Result<Authority, RootError> {
        let keyring = roots.open(now)?;
        Ok(Authority { keyring: ArcSwap::from_pointee(keyring), lifetimes, roots: Mutex::new(roots) })
    }

    /// What is public.
    pub fn bundle(&self) -> Arc<PublicBundle> {
        self.keyring.load().public.clone()
    }

    /// Looks for other files and for what is due to be renewed. True when the keyring changed.
    ///
    /// # Errors
    /// When what is new cannot be used; then what was in force stays.
    pub fn maintain(&self, now: SystemTime) -> Result<bool, RootError> {
        let mut roots = self.roots.lock();
        let fresh = roots.maintain(&self.keyring.load(), now)?;
        let changed = fresh.is_some();
        if let Some(fresh) = fresh {
            self.keyring.store(Arc::new(fresh));
        }
        Ok(changed)
    }

    /// Issues a leaf.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn issue(&self, order: &Order, now: SystemTime) -> Result<Issued, IssueError> {
        let keyring = self.keyring.load();
        let failed = |text: String| IssueError::Generation(text);
        let first = order.names.first().ok_or_else(|| failed("a certificate without a name is not issued".into()))?;
        let lifetime = self.lifetime(order.lifetime)?;
        let expires = keyring.signing.not_after();
        if expires <= now {
            return Err(failed("the signing certificate has expired".into()));
        }
        // RFC 5280 allows common names of 64 characters.
        let common_name = (order.common_name && first.len() <= 64).then_some(first.as_str());
        // An end that no calendar has is later than the signing certificate's in any case.
        let not_after = now.checked_add(lifetime).map_or(expires, |wanted| wanted.min(expires));
        let leaf = x509::Leaf {
            spki: &order.spki,
            names: &order.names,
            common_name,
            not_before: now - BACK_DATING,
            not_after,
        };
        let issued = x509::leaf(&leaf, &keyring.signing, &keyring.key);
        let issued = issued.map_err(|error| failed(error.to_string()))?;
        Ok(Issued { der: issued.der, bundle: keyring.public.clone() })
    }

    fn lifetime(&self, wanted: Lifetime) -> Result<Duration, IssueError> {
        match wanted {
            Lifetime::Serving => Ok(Duration::MAX),
            Lifetime::Workload(seconds) => self.lifetimes.of(seconds),
        }
    }
}
