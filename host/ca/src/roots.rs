//! Where the signing key comes from: files that an operator plugged in, or a key of our own.

mod plugged;
mod self_signed;
mod store;

pub use plugged::{Plugged, detect};
pub use self_signed::{Rotation, SelfSigned};
pub use store::{
    CaSecret, CaStore, FolderStore, GENERATED, MemoryStore, OpenSecret, PLUGGED_NAME, SECRET_NAME, SECRET_TYPE,
    SecretPlace, StoreError,
};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::authority::{Keyring, PublicBundle};
use crate::key::{KeyError, SigningKey};
use crate::x509::{Certificate, ChainError, PemError, chain_to_root};

/// Why a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Some files of a set are there and others are not.
    #[error("incomplete signing CA bundle in {dir}: {missing} missing")]
    Incomplete {
        /// The folder.
        dir: PathBuf,
        /// The names of what is missing, with commas.
        missing: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A file has no certificate in it.
    #[error("{what}: {error}")]
    Pem {
        /// Which one.
        what: &'static str,
        /// What is wrong.
        error: PemError,
    },
    /// A key is not usable.
    #[error("the signing key")]
    Key(#[from] KeyError),
    /// Key and certificate are not of each other.
    #[error("the signing certificate is not for the signing key")]
    Mismatch,
    /// The certificate does not lead to the roots.
    #[error("the signing certificate: {0}")]
    Chain(#[from] ChainError),
    /// A new root that is not accepted.
    #[error("{0}")]
    NewRoot(&'static str),
    /// A revocation list that is none.
    #[error("the revocation list is not a valid PEM-encoded CRL")]
    Crl,
    /// The place where our own key is kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the signing key comes from.
pub enum Roots {
    /// From an operator's files.
    Plugged(Plugged),
    /// Made here.
    SelfSigned(SelfSigned),
}

impl Roots {
    pub(crate) fn open(&mut self, now: SystemTime) -> Result<Keyring, RootError> {
        match self {
            Roots::Plugged(plugged) => plugged.open(now),
            Roots::SelfSigned(own) => own.open(now),
        }
    }

    pub(crate) fn maintain(&mut self, current: &Keyring, now: SystemTime) -> Result<Option<Keyring>, RootError> {
        match self {
            Roots::Plugged(plugged) => plugged.maintain(current, now),
            Roots::SelfSigned(own) => own.maintain(current, now),
        }
    }
}

/// The parts of a keyring as PEM.
pub(crate) struct Parts<'a> {
    pub(crate) signing: &'a [u8],
    pub(crate) key: &'a [u8],
    /// Empty for a key that is its own root.
    pub(crate) chain: &'a [u8],
    pub(crate) roots: &'a [u8],
    pub(crate) crl: &'a [u8],
}

/// Checks that all belongs together.
pub(crate) fn keyring(parts: &Parts<'_>, now: SystemTime) -> Result<Keyring, RootError> {
    let read = |what, text: &[u8]| Certificate::all_from_pem(text).map_err(|error| RootError::Pem { what, error });
    let signing = read("the signing certificate", parts.signing)?.swap_remove(0);
    let is_blank = |text: &[u8]| text.iter().all(u8::is_ascii_whitespace);
    let chain = if is_blank(parts.chain) { Vec::new() } else { read("the certificate chain", parts.chain)? };
    let roots = read("the root certificates", parts.roots)?;
    let key = SigningKey::from_pem(parts.key)?;
    if key.spki() != signing.spki() {
        return Err(RootError::Mismatch);
    }
    chain_to_root(&signing, &chain, &roots, now)?;
    if !is_blank(parts.crl) && !is_crl(parts.crl) {
        return Err(RootError::Crl);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let public = PublicBundle {
        signing: signing.to_pem(),
        chain: chain.iter().map(Certificate::to_pem).collect(),
        roots: roots.iter().map(Certificate::to_pem).collect(),
        root_pem: text(parts.roots),
        crl_pem: text(parts.crl),
    };
    Ok(Keyring { key, signing, public: Arc::new(public) })
}

fn is_crl(text: &[u8]) -> bool {
    use der::Decode as _;
    pem::parse_many(text).is_ok_and(|blocks| {
        !blocks.is_empty()
            && blocks.iter().all(|block| x509_cert::crl::CertificateList::from_der(block.contents()).is_ok())
    })
}
