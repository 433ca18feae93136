//! Private keys: reading, making, signing.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::KeySize;
use const_oid::db::{rfc5912, rfc8410};
use der::asn1::Any;
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use spki::AlgorithmIdentifierOwned;

use crate::x509::to_pem;

/// A key cannot be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no private key in the PEM text, or it is of no known kind.
    #[error("no usable private key: {0}")]
    Unusable(String),
    /// RSA keys have 2048, 3072, 4096 or 8192 bits.
    #[error("RSA keys of {0} bits are not made (2048, 3072, 4096 and 8192 are)")]
    Size(u32),
    /// There is no randomness.
    #[error("the system gives no random numbers")]
    Random,
    /// The provider refused to sign.
    #[error("signing failed")]
    Sign(#[source] rustls::Error),
    /// A part of a certificate cannot be encoded.
    #[error("not encodable: {0}")]
    Encoding(#[from] der::Error),
}

/// A key that signs certificates.
///
/// **Invariant:** it is neither printed nor serialised but by [`SigningKey::to_pem`], for the place where it is kept.
pub struct SigningKey {
    key: Arc<dyn rustls::sign::SigningKey>,
    scheme: SignatureScheme,
    spki: Vec<u8>,
    pem: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// In order of preference; a key fits one of each kind.
const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::RSA_PKCS1_SHA256,
];

impl SigningKey {
    /// Reads the first private key of a PEM text: PKCS #8, PKCS #1 (`RSA PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// When there is none, or it is of no kind that can sign.
    pub fn from_pem(text: &[u8]) -> Result<SigningKey, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text).map_err(|error| KeyError::Unusable(error.to_string()))?;
        SigningKey::new(&der, String::from_utf8_lossy(text).into_owned())
    }

    fn new(der: &PrivateKeyDer<'_>, pem: String) -> Result<SigningKey, KeyError> {
        let unusable = |_| KeyError::Unusable("neither RSA of 2048 bits or more, ECDSA nor Ed25519".into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(der).map_err(unusable)?;
        let scheme = SCHEMES.into_iter().find(|scheme| key.choose_scheme(&[*scheme]).is_some());
        let scheme = scheme.ok_or_else(|| KeyError::Unusable("no signature scheme fits".into()))?;
        let spki = key.public_key().ok_or_else(|| KeyError::Unusable("its public key is not known".into()))?;
        let spki = spki.as_ref().to_vec();
        Ok(SigningKey { key, scheme, spki, pem })
    }

    /// Makes an RSA key.
    ///
    /// # Errors
    /// For a size that is not offered.
    pub fn generate_rsa(bits: u32) -> Result<SigningKey, KeyError> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            8192 => KeySize::Rsa8192,
            _ => return Err(KeyError::Size(bits)),
        };
        let key = aws_lc_rs::rsa::KeyPair::generate(size).map_err(|_| KeyError::Random)?;
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().map_err(|_| KeyError::Random)?;
        SigningKey::from_pem(to_pem("PRIVATE KEY", der.as_ref()).as_bytes())
    }

    /// Makes an ECDSA key on P-256.
    ///
    /// # Errors
    /// Without randomness.
    pub fn generate_p256() -> Result<SigningKey, KeyError> {
        let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = aws_lc_rs::signature::EcdsaKeyPair::generate(algorithm).map_err(|_| KeyError::Random)?;
        let der = key.to_pkcs8v1().map_err(|_| KeyError::Random)?;
        SigningKey::from_pem(to_pem("PRIVATE KEY", der.as_ref()).as_bytes())
    }

    /// The encoded public key.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The key as it was read or made.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// What a certificate that it signs says about the signature.
    pub fn algorithm(&self) -> AlgorithmIdentifierOwned {
        let oid = match self.scheme {
            SignatureScheme::ED25519 => rfc8410::ID_ED_25519,
            SignatureScheme::ECDSA_NISTP521_SHA512 => rfc5912::ECDSA_WITH_SHA_512,
            SignatureScheme::ECDSA_NISTP384_SHA384 => rfc5912::ECDSA_WITH_SHA_384,
            SignatureScheme::ECDSA_NISTP256_SHA256 => rfc5912::ECDSA_WITH_SHA_256,
            _ => rfc5912::SHA_256_WITH_RSA_ENCRYPTION,
        };
        // RSA's parameters are a NULL that must be there; the others have none (RFC 4055, RFC 5758).
        let parameters = (oid == rfc5912::SHA_256_WITH_RSA_ENCRYPTION).then(Any::null);
        AlgorithmIdentifierOwned { oid, parameters }
    }

    /// Signs.
    ///
    /// # Errors
    /// When the provider fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signer = self.key.choose_scheme(&[self.scheme]);
        let signer = signer.ok_or_else(|| KeyError::Unusable("no signature scheme fits".into()))?;
        signer.sign(message).map_err(KeyError::Sign)
    }
}
