//! The shapes of secrets that istiod takes, and Envoy's form of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use trysail_model::{Object, ObjectRef};
use trysail_proto::any::pack;
use trysail_proto::envoy::config::core::v3::{DataSource, data_source};
use trysail_proto::envoy::extensions::private_key_providers::cryptomb::v3alpha::CryptoMbPrivateKeyMethodConfig;
use trysail_proto::envoy::extensions::private_key_providers::qat::v3alpha::QatPrivateKeyMethodConfig;
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, PrivateKeyProvider, Secret, TlsCertificate, private_key_provider, secret,
};

use super::name::{SecretName, Source};

/// Why there is nothing to serve. Never says what a value is, only which are there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// No such object.
    #[error("{0} not found")]
    NotFound(ObjectRef),
    /// Keys are there and empty.
    #[error("{object}: found keys {keys}, but they were empty")]
    Empty {
        /// Which.
        object: ObjectRef,
        /// Names of the keys.
        keys: String,
    },
    /// Other keys.
    #[error("{object}: expected keys {expected}; found: {found}")]
    Keys {
        /// Which.
        object: ObjectRef,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// What is served of a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// Certificate and key.
    Tls {
        /// Chain, PEM.
        chain: Vec<u8>,
        /// Key, PEM.
        key: Vec<u8>,
        /// OCSP response; unset without.
        staple: Option<Vec<u8>>,
    },
    /// Roots.
    Ca {
        /// PEM.
        roots: Vec<u8>,
        /// Revocation list, PEM; unset without.
        crl: Option<Vec<u8>>,
    },
}

type Data = BTreeMap<String, Vec<u8>>;

impl Material {
    /// Finds what a name stands for.
    ///
    /// # Errors
    /// See [`ShapeError`].
    pub fn find(name: &SecretName, get: impl Fn(&ObjectRef) -> Option<Arc<Object>>) -> Result<Material, ShapeError> {
        let kind = if name.source == Source::ConfigMap { "ConfigMap" } else { "Secret" };
        let reference = |object: &str| ObjectRef::new(kind, &name.namespace, object);
        let (whole, base) = (reference(&name.name), reference(name.base()));
        let not_found = |reference: &ObjectRef| ShapeError::NotFound(reference.clone());
        if name.source == Source::ConfigMap {
            let object = get(&base).ok_or_else(|| not_found(&base))?;
            return ca(&base, &texts(&object.body.read()));
        }
        if !name.is_ca_only() {
            let object = get(&whole).ok_or_else(|| not_found(&whole))?;
            return tls(&whole, &secret_data(&object.body.read()));
        }
        // A secret for the roots alone goes before the roots beside a certificate.
        match get(&whole) {
            Some(object) => ca(&whole, &secret_data(&object.body.read())),
            None => {
                let object = get(&base).ok_or_else(|| not_found(&base))?;
                ca(&base, &secret_data(&object.body.read()))
            }
        }
    }

    /// As Envoy takes it. `provider` is a `PrivateKeyProvider` of Istio's ProxyConfig, or null.
    pub fn to_envoy(self, name: &str, provider: &Value) -> Secret {
        let body = match self {
            Material::Ca { roots, crl } => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(roots)),
                crl: crl.map(inline),
                ..Default::default()
            }),
            Material::Tls { chain, key, staple } => {
                let mut certificate = TlsCertificate { certificate_chain: Some(inline(chain)), ..Default::default() };
                match accelerated(&key, provider) {
                    Some(provider) => certificate.private_key_provider = Some(provider),
                    None => {
                        certificate.private_key = Some(inline(key));
                        certificate.ocsp_staple = staple.map(inline);
                    }
                }
                secret::Type::TlsCertificate(certificate)
            }
        };
        Secret { name: name.to_owned(), r#type: Some(body) }
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes)), ..Default::default() }
}

/// What a dump may show: names and public parts. What is not known to be public is left out.
pub fn redact(secret: Secret) -> Secret {
    let r#type = match secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: certificate.certificate_chain,
            private_key: Some(inline(REDACTED.to_vec())),
            ..Default::default()
        })),
        Some(secret::Type::ValidationContext(roots)) => Some(secret::Type::ValidationContext(roots)),
        _ => None,
    };
    Secret { name: secret.name, r#type }
}

/// What stands for a private key in dumps, as istiod writes it.
const REDACTED: &[u8] = b"[redacted]";

/// Hardware that signs for Envoy (`cryptomb`, `qat`).
fn accelerated(key: &[u8], provider: &Value) -> Option<PrivateKeyProvider> {
    let (kind, settings) = ["cryptomb", "qat"].into_iter().find_map(|kind| Some((kind, provider.get(kind)?)))?;
    let private_key = Some(inline(key.to_vec()));
    let poll_delay = settings.get("pollDelay").and_then(Value::as_str).and_then(delay);
    let config = match kind {
        "cryptomb" => pack(&CryptoMbPrivateKeyMethodConfig { private_key, poll_delay }),
        _ => pack(&QatPrivateKeyMethodConfig { private_key, poll_delay }),
    };
    Some(PrivateKeyProvider {
        provider_name: kind.to_owned(),
        config_type: Some(private_key_provider::ConfigType::TypedConfig(config)),
        fallback: settings.get("fallback").and_then(Value::as_bool).unwrap_or_default(),
    })
}

/// A duration as protobuf's JSON has it, `0.010s`.
fn delay(text: &str) -> Option<prost_types::Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    prost_types::Duration::try_from(std::time::Duration::try_from_secs_f64(seconds).ok()?).ok()
}

fn tls(object: &ObjectRef, data: &Data) -> Result<Material, ShapeError> {
    const PAIRS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];
    for (certificate, key) in PAIRS {
        if let (Some(chain), Some(key)) = (value(data, certificate), value(data, key)) {
            let staple = (certificate == "tls.crt").then(|| data.get("tls.ocsp-staple").cloned()).flatten();
            return Ok(Material::Tls { chain, key, staple });
        }
    }
    let empty = PAIRS.into_iter().find(|(a, b)| data.contains_key(*a) && data.contains_key(*b));
    Err(match empty {
        Some((a, b)) => ShapeError::Empty { object: object.clone(), keys: format!("{a} and {b}") },
        None => unexpected(object, data, "cert and key, or tls.crt and tls.key"),
    })
}

fn ca(object: &ObjectRef, data: &Data) -> Result<Material, ShapeError> {
    const PAIRS: [(&str, &str); 2] = [("cacert", "crl"), ("ca.crt", "ca.crl")];
    for (roots, crl) in PAIRS {
        if let Some(roots) = value(data, roots) {
            return Ok(Material::Ca { roots, crl: data.get(crl).cloned() });
        }
    }
    let empty = PAIRS.into_iter().find(|(roots, _)| data.contains_key(*roots));
    Err(match empty {
        Some((roots, _)) => ShapeError::Empty { object: object.clone(), keys: roots.to_owned() },
        None => unexpected(object, data, "cacert or ca.crt"),
    })
}

fn value(data: &Data, key: &str) -> Option<Vec<u8>> {
    data.get(key).filter(|value| !value.is_empty()).cloned()
}

fn unexpected(object: &ObjectRef, data: &Data, expected: &'static str) -> ShapeError {
    let mut found: Vec<&str> = data.keys().map(String::as_str).take(3).collect();
    let more = format!("and {} more", data.len().saturating_sub(3));
    if data.len() > 3 {
        found.push(&more);
    }
    ShapeError::Keys { object: object.clone(), expected, found: found.join(", ") }
}

/// Values of a Secret: base64 in `data`, plain in `stringData`, which goes before it as in an API server. What is no base64
/// is as if it were empty.
fn secret_data(body: &Value) -> Data {
    let encoded = body.get("data").and_then(Value::as_object).into_iter().flatten();
    let decode = |value: &Value| {
        let text: String = value.as_str().unwrap_or_default().split_whitespace().collect();
        STANDARD.decode(text).unwrap_or_default()
    };
    let mut data: Data = encoded.map(|(key, value)| (key.clone(), decode(value))).collect();
    let plain = body.get("stringData").and_then(Value::as_object).into_iter().flatten();
    data.extend(plain.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.as_bytes().to_vec()))));
    data
}

/// Values of a ConfigMap.
fn texts(body: &Value) -> Data {
    let data = body.get("data").and_then(Value::as_object).into_iter().flatten();
    data.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.as_bytes().to_vec()))).collect()
}
