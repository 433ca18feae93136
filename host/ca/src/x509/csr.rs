//! Certificate signing requests. Of one only the public key counts: who asks is known from elsewhere.

use const_oid::db::rfc4519::{COMMON_NAME, ORGANIZATION_NAME};
use const_oid::db::rfc5280::ID_CE_SUBJECT_ALT_NAME;
use const_oid::db::rfc5912::ID_EXTENSION_REQ;
use der::asn1::BitString;
use der::{Decode, Encode, Reader, SliceReader};
use spki::AlgorithmIdentifierOwned;
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::CertReqInfo;

use super::verify::check_signature;

/// Longest request in bytes that is looked at; the largest honest one (RSA of 8192 bits) has about 3 kB.
const MAX_LENGTH: usize = 64 << 10;

/// Why a request is refused; the texts are istiod's, which clients and their operators see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// No PEM block.
    #[error("certificate signing request is not properly encoded")]
    Encoding,
    /// The block holds something else.
    #[error("failed to parse X.509 certificate signing request")]
    Parse,
    /// It is not signed by the key that it names: whoever sent it need not have that key.
    #[error("certificate signing request is not signed by its own key")]
    Signature,
    /// It asks for something else than the caller's names, which matters where somebody signs it as it is.
    #[error("unable to validate SAN Identities in CSR")]
    Names,
}

/// A request that is well-formed and signed by the key in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    /// The encoded public key.
    pub spki: Vec<u8>,
    /// The request's subject has a common name; istiod then puts one into the certificate, though not that one.
    pub has_common_name: bool,
    /// What it asks for.
    wishes: Wishes,
}

/// What a request asks for beside a certificate of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wishes {
    /// The URIs among the alternative names.
    uris: Vec<String>,
    /// A subject, other names, other extensions or attributes, or what cannot be read.
    others: bool,
}

impl SigningRequest {
    /// Reads and checks a PEM text. Total over whatever a client sends.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn from_pem(text: &[u8]) -> Result<SigningRequest, CsrError> {
        if text.len() > MAX_LENGTH {
            return Err(CsrError::Encoding);
        }
        let block = pem::parse(text).map_err(|_| CsrError::Encoding)?;
        // istiod does not look at the label either: what is something else does not parse.
        SigningRequest::from_der(block.contents())
    }

    /// Reads and checks DER.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn from_der(der: &[u8]) -> Result<SigningRequest, CsrError> {
        let (signed, algorithm, signature) = parts(der).map_err(|_| CsrError::Parse)?;
        let info = CertReqInfo::from_der(signed).map_err(|_| CsrError::Parse)?;
        let spki = info.public_key.to_der().map_err(|_| CsrError::Parse)?;
        let signature = signature.as_bytes().ok_or(CsrError::Parse)?;
        check_signature(&info.public_key, &algorithm, signed, signature).map_err(|_| CsrError::Signature)?;
        let has_common_name = info
            .subject
            .0
            .iter()
            .flat_map(|rdn| rdn.0.iter())
            .any(|attribute| attribute.oid == COMMON_NAME && !attribute.value.value().is_empty());
        let wishes = Wishes::of(&info);
        Ok(SigningRequest { spki, has_common_name, wishes })
    }

    /// Checks that it asks for names of that list and nothing else, as proxies' requests do.
    ///
    /// # Errors
    /// [`CsrError::Names`] if not.
    pub fn check_names(&self, names: &[String]) -> Result<(), CsrError> {
        let Wishes { uris, others } = &self.wishes;
        // Istio's agents and ztunnel ask for one; who asks for none would get a certificate of nobody.
        let [uri] = &uris[..] else { return Err(CsrError::Names) };
        if !others && names.contains(uri) { Ok(()) } else { Err(CsrError::Names) }
    }
}

impl Wishes {
    fn of(info: &CertReqInfo) -> Wishes {
        let mut wishes = Wishes::default();
        // Istio's agent writes an organisation without a name.
        let attributes = info.subject.0.iter().flat_map(|rdn| rdn.0.iter());
        wishes.others |=
            attributes.into_iter().any(|one| one.oid != ORGANIZATION_NAME || !one.value.value().is_empty());
        for attribute in info.attributes.iter() {
            let extensions = match (attribute.oid == ID_EXTENSION_REQ, attribute.values.get(0)) {
                (true, Some(value)) if attribute.values.len() == 1 => value.decode_as::<Extensions>(),
                _ => {
                    wishes.others = true;
                    continue;
                }
            };
            let Ok(extensions) = extensions else {
                wishes.others = true;
                continue;
            };
            for extension in extensions {
                let names = SubjectAltName::from_der(extension.extn_value.as_bytes());
                match names.ok().filter(|_| extension.extn_id == ID_CE_SUBJECT_ALT_NAME) {
                    Some(names) => names.0.into_iter().for_each(|name| match name {
                        GeneralName::UniformResourceIdentifier(uri) => wishes.uris.push(uri.as_str().to_owned()),
                        _ => wishes.others = true,
                    }),
                    None => wishes.others = true,
                }
            }
        }
        wishes
    }
}

/// The signed bytes as they stand, since decoding and encoding them again might change them; algorithm; signature.
fn parts(der: &[u8]) -> der::Result<(&[u8], AlgorithmIdentifierOwned, BitString)> {
    let mut outer = SliceReader::new(der)?;
    let parts = outer.sequence(|inner| {
        let signed = inner.tlv_bytes()?;
        Ok((signed, AlgorithmIdentifierOwned::decode(inner)?, BitString::decode(inner)?))
    })?;
    outer.finish(parts)
}
