//! A key that an operator plugged in (`ROOT_CA_DIR`, the mounted secret `cacerts`).
//!
//! Two layouts: istiod's own (`ca-cert.pem ca-key.pem cert-chain.pem root-cert.pem [ca-crl.pem]`), and that of Kubernetes TLS
//! secrets (`tls.crt tls.key ca.crt`), which is taken when `tls.crt` is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Parts, RootError, keyring};
use crate::authority::Keyring;
use crate::x509::Certificate;

/// Operator's files.
pub struct Plugged {
    dir: PathBuf,
    /// New roots may come, and old ones go, while we run (`ISTIO_MULTIROOT_MESH`).
    accepts_new_roots: bool,
    /// What was read last, whether or not it could be used: nothing is tried, or complained of, twice.
    seen: Option<Files>,
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Files {
    signing: Vec<u8>,
    key: Vec<u8>,
    chain: Vec<u8>,
    roots: Vec<u8>,
    crl: Vec<u8>,
}

/// Is a signing key plugged in there?
///
/// # Errors
/// When a part of a set is there and the rest is not: starting with a key of our own would then surprise.
pub fn detect(dir: &Path) -> Result<bool, RootError> {
    let is_there = |name: &str| dir.join(name).exists();
    let names: &[&str] = if is_there("tls.crt") { &["tls.crt", "tls.key", "ca.crt"] } else { &CLASSIC };
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_there(name)).collect();
    match missing.len() {
        0 => Ok(true),
        n if n == names.len() => Ok(false),
        _ => Err(RootError::Incomplete { dir: dir.to_owned(), missing: missing.join(", ") }),
    }
}

const CLASSIC: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

impl Plugged {
    /// Files of a folder.
    pub fn new(dir: PathBuf, accepts_new_roots: bool) -> Plugged {
        Plugged { dir, accepts_new_roots, seen: None }
    }

    pub(crate) fn open(&mut self, now: SystemTime) -> Result<Keyring, RootError> {
        let files = self.read()?;
        let keyring = files.keyring(now)?;
        self.seen = Some(files);
        Ok(keyring)
    }

    pub(crate) fn maintain(&mut self, current: &Keyring, now: SystemTime) -> Result<Option<Keyring>, RootError> {
        let files = self.read()?;
        if self.seen.as_ref() == Some(&files) {
            return Ok(None);
        }
        self.seen = Some(files.clone());
        let fresh = files.keyring(now)?;
        if fresh.public.root_pem != current.public.root_pem {
            if !self.accepts_new_roots {
                return Err(RootError::NewRoot(
                    "another root certificate is not taken while running: multi root is disabled (ISTIO_MULTIROOT_MESH)",
                ));
            }
            let set = |keyring: &Keyring| keyring.public.roots.iter().cloned().collect::<BTreeSet<String>>();
            let (old, new) = (set(current), set(&fresh));
            if !old.is_subset(&new) && !new.is_subset(&old) {
                return Err(RootError::NewRoot(
                    "the new root certificates neither contain the old ones nor are contained in them: proxies would not \
                     trust each other in between; publish both first",
                ));
            }
        }
        let is_same = fresh.public == current.public && fresh.key.spki() == current.key.spki();
        Ok((!is_same).then_some(fresh))
    }

    fn read(&self) -> Result<Files, RootError> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            fs::read(&path).map_err(|error| RootError::Read { path, error })
        };
        if self.dir.join("tls.crt").exists() {
            let (signing, roots) = (read("tls.crt")?, read("ca.crt")?);
            let mut chain = signing.clone();
            chain.push(b'\n');
            chain.extend_from_slice(&roots);
            return Ok(Files { signing, key: read("tls.key")?, chain, roots, crl: Vec::new() });
        }
        let [signing, key, chain, roots] = CLASSIC.map(read);
        let crl = if self.dir.join("ca-crl.pem").exists() { read("ca-crl.pem")? } else { Vec::new() };
        Ok(Files { signing: signing?, key: key?, chain: chain?, roots: roots?, crl })
    }
}

impl Files {
    fn keyring(&self, now: SystemTime) -> Result<Keyring, RootError> {
        let parts =
            Parts { signing: &self.signing, key: &self.key, chain: &self.chain, roots: &self.roots, crl: &self.crl };
        let mut keyring = keyring(&parts, now)?;
        // The chain file need not hold the signing certificate when that is the first below the root; clients need it.
        let signing = Certificate::to_pem(&keyring.signing);
        if !keyring.public.chain.contains(&signing) && !keyring.public.roots.contains(&signing) {
            let mut public = (*keyring.public).clone();
            public.chain.insert(0, signing);
            keyring.public = public.into();
        }
        Ok(keyring)
    }
}
