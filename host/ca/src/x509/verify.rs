//! Signatures, and chains from a signing certificate to a root.

use std::time::SystemTime;

use aws_lc_rs::signature::{
    RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY, UnparsedPublicKey,
};
use const_oid::db::rfc5912::{RSA_ENCRYPTION, SHA_256_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION};
use der::{Encode, Reader, SliceReader};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::Certificate;

/// A signature does not hold, or is of a kind that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// Why a signing certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It may not sign certificates.
    #[error("certificate is not authorized to sign other certificates")]
    NotACa,
    /// Not valid now.
    #[error("certificate of {0} is expired or not yet valid")]
    Time(String),
    /// No root at the end of the way.
    #[error("no chain leads from the certificate of {0} to a root certificate")]
    NoPath(String),
}

/// Checks a signature of a certificate or request. Keys: RSA of 1024 to 8192 bits, ECDSA on P-256, P-384, P-521, Ed25519.
///
/// # Errors
/// When it does not hold.
pub fn check_signature(
    key: &SubjectPublicKeyInfoOwned,
    algorithm: &AlgorithmIdentifierOwned,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    let key_bytes = key.subject_public_key.as_bytes().ok_or(BadSignature)?;
    let (key_id, algorithm_id) = (id(&key.algorithm)?, id(algorithm)?);
    let known = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    for candidate in known.all {
        let fits =
            candidate.public_key_alg_id().as_ref() == key_id && candidate.signature_alg_id().as_ref() == algorithm_id;
        if fits && candidate.verify_signature(key_bytes, message, signature).is_ok() {
            return Ok(());
        }
    }
    // Keys of 1024 bits, which istiod takes too; TLS itself does not.
    let legacy = match algorithm.oid {
        _ if key.algorithm.oid != RSA_ENCRYPTION => return Err(BadSignature),
        SHA_256_WITH_RSA_ENCRYPTION => &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        SHA_512_WITH_RSA_ENCRYPTION => &RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        _ => return Err(BadSignature),
    };
    UnparsedPublicKey::new(legacy, key_bytes).verify(message, signature).map_err(|_| BadSignature)
}

/// An algorithm identifier without the sequence around it, which is how the provider spells them.
fn id(algorithm: &AlgorithmIdentifierOwned) -> Result<Vec<u8>, BadSignature> {
    let whole = algorithm.to_der().map_err(|_| BadSignature)?;
    let mut reader = SliceReader::new(&whole).map_err(|_| BadSignature)?;
    let inner = reader.sequence(|inner| inner.read_slice(inner.remaining_len()).map(<[u8]>::to_vec));
    inner.map_err(|_| BadSignature)
}

/// Longest chain from a signing certificate to its root.
const MAX_DEPTH: usize = 8;

/// Checks that a signing certificate leads to one of the roots.
///
/// # Errors
/// See [`ChainError`].
pub fn chain_to_root(
    signing: &Certificate,
    intermediates: &[Certificate],
    roots: &[Certificate],
    now: SystemTime,
) -> Result<(), ChainError> {
    let mut at = signing;
    for _ in 0..MAX_DEPTH {
        if !at.is_ca() {
            return Err(ChainError::NotACa);
        }
        if !at.is_valid_at(now) {
            return Err(ChainError::Time(subject(at)));
        }
        if roots.contains(at) || roots.iter().any(|root| root.is_valid_at(now) && is_issued_by(at, root)) {
            return Ok(());
        }
        let issuer = intermediates.iter().find(|candidate| *candidate != at && is_issued_by(at, candidate));
        at = issuer.ok_or_else(|| ChainError::NoPath(subject(at)))?;
    }
    Err(ChainError::NoPath(subject(signing)))
}

/// Checks that a leaf leads to one of the roots, through authorities.
///
/// # Errors
/// See [`ChainError`].
pub fn leaf_to_root(
    leaf: &Certificate,
    intermediates: &[Certificate],
    roots: &[Certificate],
    now: SystemTime,
) -> Result<(), ChainError> {
    if !leaf.is_valid_at(now) {
        return Err(ChainError::Time(subject(leaf)));
    }
    let issues = |issuer: &&Certificate| issuer.is_ca() && issuer.is_valid_at(now) && is_issued_by(leaf, issuer);
    if roots.iter().any(|root| issues(&root)) {
        return Ok(());
    }
    let issuer = intermediates.iter().find(issues).ok_or_else(|| ChainError::NoPath(subject(leaf)))?;
    chain_to_root(issuer, intermediates, roots, now)
}

fn is_issued_by(certificate: &Certificate, issuer: &Certificate) -> bool {
    let (tbs, issuer_tbs) = (&certificate.parsed.tbs_certificate, &issuer.parsed.tbs_certificate);
    if tbs.issuer != issuer_tbs.subject {
        return false;
    }
    let Ok(mut reader) = SliceReader::new(&certificate.der) else { return false };
    let signed = reader.sequence(|inner| {
        let signed = inner.tlv_bytes()?;
        inner.read_slice(inner.remaining_len())?;
        Ok(signed)
    });
    let (Ok(signed), Some(signature)) = (signed, certificate.parsed.signature.as_bytes()) else { return false };
    let key = &issuer_tbs.subject_public_key_info;
    check_signature(key, &certificate.parsed.signature_algorithm, signed, signature).is_ok()
}

fn subject(certificate: &Certificate) -> String {
    format!("{:?}", certificate.parsed.tbs_certificate.subject.to_string())
}
