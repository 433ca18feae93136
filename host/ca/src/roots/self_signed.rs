//! A key of our own: made once, kept in a store, its certificate renewed in time with the same key.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::store::{CA_CERT, CA_KEY, CERT_CHAIN, CaSecret, CaStore, KEY, ROOT_CERT};
use super::{Parts, RootError, keyring};
use crate::authority::Keyring;
use crate::key::SigningKey;
use crate::x509::{Certificate, self_signed_root, time_to_renewal};

/// When the root is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Time between two looks, `CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL`; zero means never.
    pub interval: Duration,
    /// The last part of its life in which it is renewed, in percent, `..._GRACE_PERIOD_PERCENTILE`.
    pub grace_percent: u32,
    /// The first look comes after a random part of the interval, so that replicas do not renew together.
    pub jitter: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Rotation { interval: Duration::from_secs(3600), grace_percent: 20, jitter: true }
    }
}

/// A key of our own.
pub struct SelfSigned {
    store: Box<dyn CaStore>,
    organization: String,
    lifetime: Duration,
    rsa_bits: u32,
    rotation: Rotation,
    next_look: Option<SystemTime>,
}

impl SelfSigned {
    /// A key in a store, for an organisation (the trust domain), whose certificate is valid for a lifetime.
    pub fn new(
        store: Box<dyn CaStore>,
        organization: String,
        lifetime: Duration,
        rsa_bits: u32,
        rotation: Rotation,
    ) -> SelfSigned {
        SelfSigned { store, organization, lifetime, rsa_bits, rotation, next_look: None }
    }

    pub(crate) fn open(&mut self, now: SystemTime) -> Result<Keyring, RootError> {
        let delay = if self.rotation.jitter { random_part(self.rotation.interval) } else { self.rotation.interval };
        self.next_look = (!self.rotation.interval.is_zero()).then(|| now + delay);
        let secret = match self.store.load()? {
            Some(secret) => secret,
            None => {
                let key = SigningKey::generate_rsa(self.rsa_bits)?;
                let root = self_signed_root(&self.organization, self.lifetime, &key, now)?;
                // Another replica may have been faster; then its key is ours.
                self.store.create(&secret(&root, key.to_pem()))?
            }
        };
        match from_secret(&secret, now) {
            // We slept through its end; with the same key whoever trusts the old one learns of the new one.
            Err(RootError::Chain(crate::x509::ChainError::Time(_))) => {
                let (keyring, secret) = self.renewed(&secret, now)?;
                self.store.replace(&secret)?;
                Ok(keyring)
            }
            other => other,
        }
    }

    pub(crate) fn maintain(&mut self, current: &Keyring, now: SystemTime) -> Result<Option<Keyring>, RootError> {
        if self.next_look.is_none_or(|due| now < due) {
            return Ok(None);
        }
        self.next_look = Some(now + self.rotation.interval);
        let Some(stored) = self.store.load()? else {
            // Somebody took it away. What is in force goes on, and is put back for the next start.
            self.store.create(&secret(&current.signing, current.key.to_pem()))?;
            return Ok(None);
        };
        if stored.get(CA_CERT).is_some_and(|pem| pem.as_slice() != current.signing.to_pem().as_bytes()) {
            // Another replica renewed it.
            return from_secret(&stored, now).map(Some);
        }
        if !time_to_renewal(&current.signing, self.rotation.grace_percent, now).is_zero() {
            return Ok(None);
        }
        let (keyring, secret) = self.renewed(&stored, now)?;
        // Stored first: a root that is lost at the next start must not be published.
        self.store.replace(&secret)?;
        Ok(Some(keyring))
    }

    /// A new certificate for the same key. As with istiod, other parts of the secret stay.
    fn renewed(&self, stored: &CaSecret, now: SystemTime) -> Result<(Keyring, CaSecret), RootError> {
        let key = SigningKey::from_pem(stored.get(CA_KEY).map_or(&[][..], Vec::as_slice))?;
        let root = self_signed_root(&self.organization, self.lifetime, &key, now)?;
        let mut secret = stored.clone();
        secret.insert(CA_CERT.into(), root.to_pem().into_bytes());
        Ok((from_secret(&secret, now)?, secret))
    }
}

fn secret(root: &Certificate, key: &str) -> CaSecret {
    let pem = root.to_pem().into_bytes();
    [
        (CA_CERT, pem.clone()),
        (CA_KEY, key.as_bytes().to_vec()),
        (ROOT_CERT, pem),
        (CERT_CHAIN, Vec::new()),
        (KEY, Vec::new()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn from_secret(secret: &CaSecret, now: SystemTime) -> Result<Keyring, RootError> {
    let part = |name: &str| secret.get(name).map_or(&[][..], Vec::as_slice);
    // The certificate is its own root; the store's root-cert.pem is as old as the key.
    let parts = Parts { signing: part(CA_CERT), key: part(CA_KEY), chain: &[], roots: part(CA_CERT), crl: &[] };
    keyring(&parts, now)
}

fn random_part(whole: Duration) -> Duration {
    use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
    let mut bytes = [0; 4];
    // Without randomness the first look comes after a whole interval, which is no harm.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => whole.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => whole,
    }
}
