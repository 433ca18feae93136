//! Certificates and certificate signing requests: reading, checking, writing.
//!
//! Structures come from `x509-cert`; signatures are checked and made by the one crypto provider. What is written is what
//! istiod writes, extension by extension.

mod csr;
mod issue;
mod verify;

pub use csr::{CsrError, SigningRequest};
pub use issue::{Leaf, leaf, self_signed_root, signing_request};
pub use verify::{ChainError, chain_to_root, check_signature, leaf_to_root};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use const_oid::db::rfc5280::{ID_CE_BASIC_CONSTRAINTS, ID_CE_SUBJECT_ALT_NAME, ID_CE_SUBJECT_KEY_IDENTIFIER};
use der::asn1::OctetString;
use der::{Decode, Encode};
use x509_cert::Certificate as Parsed;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};

/// A PEM text or what is in it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no block of the wanted kind.
    #[error("no PEM block {0:?} found")]
    Missing(&'static str),
    /// A block's content is not what its label says.
    #[error("PEM block {index} is not a valid X.509 certificate: {reason}")]
    Certificate {
        /// Number of the block, from 1.
        index: usize,
        /// What the decoder says.
        reason: String,
    },
    /// The text between the marks is no base64.
    #[error("malformed PEM: {0}")]
    Malformed(String),
}

/// A parsed certificate together with its bytes, which are what signatures and comparisons are about.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The bytes.
    pub der: Vec<u8>,
    /// The structure.
    pub parsed: Parsed,
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Certificate {
    /// Reads DER.
    ///
    /// # Errors
    /// When it is no certificate, in the decoder's words.
    pub fn from_der(der: &[u8]) -> Result<Certificate, der::Error> {
        Ok(Certificate { der: der.to_vec(), parsed: Parsed::from_der(der)? })
    }

    /// All certificates of a PEM text, in order; other blocks are passed over.
    ///
    /// # Errors
    /// When there is none, or one that cannot be read.
    pub fn all_from_pem(text: &[u8]) -> Result<Vec<Certificate>, PemError> {
        let blocks = pem::parse_many(text).map_err(|error| PemError::Malformed(error.to_string()))?;
        let blocks = blocks.iter().filter(|block| block.tag() == "CERTIFICATE").enumerate();
        let read = |(index, block): (usize, &pem::Pem)| {
            Certificate::from_der(block.contents())
                .map_err(|error| PemError::Certificate { index: index + 1, reason: error.to_string() })
        };
        let all: Vec<Certificate> = blocks.map(read).collect::<Result<_, _>>()?;
        if all.is_empty() { Err(PemError::Missing("CERTIFICATE")) } else { Ok(all) }
    }

    /// The certificate as one PEM block that ends in a newline.
    pub fn to_pem(&self) -> String {
        to_pem("CERTIFICATE", &self.der)
    }

    /// May it sign other certificates?
    pub fn is_ca(&self) -> bool {
        self.extension(ID_CE_BASIC_CONSTRAINTS)
            .and_then(|value| BasicConstraints::from_der(value).ok())
            .is_some_and(|constraints| constraints.ca)
    }

    /// Does it name itself as its issuer, as roots do?
    pub fn is_self_issued(&self) -> bool {
        let tbs = &self.parsed.tbs_certificate;
        tbs.subject == tbs.issuer && self.is_ca()
    }

    /// The subject's key identifier, if it has one.
    pub fn subject_key_id(&self) -> Option<Vec<u8>> {
        let value = self.extension(ID_CE_SUBJECT_KEY_IDENTIFIER)?;
        OctetString::from_der(value).ok().map(OctetString::into_bytes)
    }

    /// The URIs among its alternative names.
    pub fn uris(&self) -> Vec<String> {
        self.names(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
            _ => None,
        })
    }

    /// The DNS names among its alternative names.
    pub fn dns_names(&self) -> Vec<String> {
        self.names(|name| match name {
            GeneralName::DnsName(dns) => Some(dns.as_str().to_owned()),
            _ => None,
        })
    }

    fn names(&self, pick: impl Fn(&GeneralName) -> Option<String>) -> Vec<String> {
        let value = self.extension(ID_CE_SUBJECT_ALT_NAME);
        let names = value.and_then(|value| SubjectAltName::from_der(value).ok());
        names.iter().flat_map(|names| names.0.iter()).filter_map(pick).collect()
    }

    /// From when on it is valid.
    pub fn not_before(&self) -> SystemTime {
        UNIX_EPOCH + self.parsed.tbs_certificate.validity.not_before.to_unix_duration()
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + self.parsed.tbs_certificate.validity.not_after.to_unix_duration()
    }

    /// Valid at that time?
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before() <= now && now <= self.not_after()
    }

    /// The encoded key.
    pub fn spki(&self) -> Vec<u8> {
        // Encoding what was decoded cannot fail.
        self.parsed.tbs_certificate.subject_public_key_info.to_der().unwrap_or_default()
    }

    fn extension(&self, oid: const_oid::ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.parsed.tbs_certificate.extensions.as_ref()?;
        extensions.iter().find(|extension| extension.extn_id == oid).map(|extension| extension.extn_value.as_bytes())
    }
}

/// One PEM block with lines of 64 characters, as everybody writes it.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der.to_vec()), config)
}

/// How long from `now` until a certificate enters the last `grace_percent` of its life; zero when it is in it.
pub fn time_to_renewal(certificate: &Certificate, grace_percent: u32, now: SystemTime) -> Duration {
    let (from, to) = (certificate.not_before(), certificate.not_after());
    let life = to.duration_since(from).unwrap_or_default();
    let grace = life / 100 * grace_percent.min(100);
    to.checked_sub(grace).and_then(|due| due.duration_since(now).ok()).unwrap_or_default()
}
