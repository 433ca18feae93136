//! What is issued: leaves for workloads and for our own ports, and self-signed roots.
//!
//! Order and flags of the extensions are istiod's, so that whoever compares finds nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use const_oid::db::rfc5912::ID_EXTENSION_REQ;
use der::asn1::{Any, BitString, GeneralizedTime, Ia5String, OctetString, SetOfVec, UtcTime};
use der::{Decode, Encode};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::attr::Attribute;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::name::{Name, RdnSequence};
use x509_cert::request::{CertReq, CertReqInfo};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate as Written, TbsCertificate, Version};

use super::{Certificate, to_pem};
use crate::key::{KeyError, SigningKey};

/// A leaf to issue.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// The encoded key of the subject.
    pub spki: &'a [u8],
    /// Alternative names: SPIFFE ids become URIs, addresses IP names, the rest DNS names.
    pub names: &'a [String],
    /// The subject's common name; unset for an empty subject.
    pub common_name: Option<&'a str>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// Issues a leaf.
///
/// # Errors
/// When the key or a name cannot be put into a certificate, or signing fails.
pub fn leaf(leaf: &Leaf<'_>, issuer: &Certificate, key: &SigningKey) -> Result<Certificate, KeyError> {
    let names = leaf.names.iter().map(|name| general_name(name)).collect::<Result<Vec<_>, _>>()?;
    let mut extensions = vec![
        extension(true, &KeyUsage(KeyUsages::DigitalSignature | KeyUsages::KeyEncipherment))?,
        extension(false, &ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH, ID_KP_CLIENT_AUTH]))?,
        extension(true, &BasicConstraints { ca: false, path_len_constraint: None })?,
    ];
    if let Some(id) = issuer.subject_key_id() {
        let id = AuthorityKeyIdentifier { key_identifier: Some(OctetString::new(id)?), ..Default::default() };
        extensions.push(extension(false, &id)?);
    }
    extensions.push(extension(true, &SubjectAltName(names))?);
    let subject = match leaf.common_name {
        Some(name) => common_name(name)?,
        None => Name::default(),
    };
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: serial_number()?,
        signature: key.algorithm(),
        issuer: issuer.parsed.tbs_certificate.subject.clone(),
        validity: validity(leaf.not_before, leaf.not_after)?,
        subject,
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(leaf.spki)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    sign(tbs, key)
}

/// Issues a self-signed root of an organisation, valid from now on.
///
/// # Errors
/// When signing fails.
pub fn self_signed_root(
    organization: &str,
    lifetime: Duration,
    key: &SigningKey,
    now: SystemTime,
) -> Result<Certificate, KeyError> {
    let spki = SubjectPublicKeyInfoOwned::from_der(key.spki())?;
    let id = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, spki.subject_public_key.raw_bytes());
    let extensions = vec![
        extension(true, &KeyUsage(KeyUsages::KeyCertSign.into()))?,
        extension(true, &BasicConstraints { ca: true, path_len_constraint: None })?,
        extension(false, &SubjectKeyIdentifier(OctetString::new(id.as_ref())?))?,
    ];
    let subject = attribute("O", organization)?;
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: serial_number()?,
        signature: key.algorithm(),
        issuer: subject.clone(),
        validity: validity(now, now + lifetime)?,
        subject,
        subject_public_key_info: spki,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    sign(tbs, key)
}

/// A request for a certificate of these names (as in [`Leaf::names`]) for a key of our own, PEM.
///
/// # Errors
/// When a name cannot be put into a request, or signing fails.
pub fn signing_request(names: &[String], key: &SigningKey) -> Result<String, KeyError> {
    let names = names.iter().map(|name| general_name(name)).collect::<Result<Vec<_>, _>>()?;
    let extensions = vec![extension(false, &SubjectAltName(names))?];
    let mut values = SetOfVec::new();
    values.insert(Any::encode_from(&extensions)?)?;
    let mut attributes = SetOfVec::new();
    attributes.insert(Attribute { oid: ID_EXTENSION_REQ, values })?;
    let info = CertReqInfo {
        version: x509_cert::request::Version::V1,
        subject: Name::default(),
        public_key: SubjectPublicKeyInfoOwned::from_der(key.spki())?,
        attributes,
    };
    let signature = BitString::from_bytes(&key.sign(&info.to_der()?)?)?;
    let request = CertReq { info, algorithm: key.algorithm(), signature };
    Ok(to_pem("CERTIFICATE REQUEST", &request.to_der()?))
}

fn sign(tbs: TbsCertificate, key: &SigningKey) -> Result<Certificate, KeyError> {
    let message = tbs.to_der()?;
    let signature = BitString::from_bytes(&key.sign(&message)?)?;
    let signature_algorithm = tbs.signature.clone();
    let parsed = Written { tbs_certificate: tbs, signature_algorithm, signature };
    let der = parsed.to_der()?;
    Ok(Certificate { der, parsed })
}

fn extension<T: Encode + const_oid::AssociatedOid>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

fn general_name(name: &str) -> der::Result<GeneralName> {
    if name.starts_with("spiffe://") {
        return Ok(GeneralName::UniformResourceIdentifier(Ia5String::new(name)?));
    }
    Ok(match name.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => GeneralName::IpAddress(OctetString::new(v4.octets())?),
        Ok(std::net::IpAddr::V6(v6)) => GeneralName::IpAddress(OctetString::new(v6.octets())?),
        Err(_) => GeneralName::DnsName(Ia5String::new(name)?),
    })
}

fn common_name(name: &str) -> der::Result<Name> {
    attribute("CN", name)
}

/// A name of one attribute; printable text where that is enough, as Go writes it.
fn attribute(kind: &str, value: &str) -> der::Result<Name> {
    use der::asn1::{PrintableString, Utf8StringRef};
    use x509_cert::attr::AttributeTypeAndValue;
    use x509_cert::name::RelativeDistinguishedName;
    const ORGANIZATION: ObjectIdentifier = const_oid::db::rfc4519::ORGANIZATION_NAME;
    const COMMON: ObjectIdentifier = const_oid::db::rfc4519::COMMON_NAME;
    let value = match PrintableString::new(value) {
        Ok(printable) => Any::encode_from(&printable)?,
        Err(_) => Any::encode_from(&Utf8StringRef::new(value)?)?,
    };
    let oid = if kind == "CN" { COMMON } else { ORGANIZATION };
    let mut set = SetOfVec::new();
    set.insert(AttributeTypeAndValue { oid, value })?;
    Ok(RdnSequence(vec![RelativeDistinguishedName(set)]))
}

/// 128 random bits, positive.
fn serial_number() -> Result<SerialNumber, KeyError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Random)?;
    // A number of no bits at all is not allowed, and would come once in the life of a universe.
    bytes[15] |= 1;
    Ok(SerialNumber::new(&bytes)?)
}

fn validity(from: SystemTime, to: SystemTime) -> der::Result<Validity> {
    Ok(Validity { not_before: time(from)?, not_after: time(to)? })
}

/// UTCTime until 2049, GeneralizedTime after, in whole seconds (RFC 5280, section 4.1.2.5).
fn time(at: SystemTime) -> der::Result<Time> {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = Duration::from_secs(seconds);
    match UtcTime::from_unix_duration(at) {
        Ok(time) => Ok(Time::UtcTime(time)),
        Err(_) => Ok(Time::GeneralTime(GeneralizedTime::from_unix_duration(at)?)),
    }
}
