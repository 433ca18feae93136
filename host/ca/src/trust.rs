//! Whom the mesh trusts, as its configuration says now: trust domain, aliases, and roots beside the authority's own.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use crate::authority::PublicBundle;
use crate::x509::Certificate;

/// A root of the mesh configuration (`caCertificates`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// Certificates, PEM.
    pub pem: String,
    /// Trust domains that it vouches for; empty for the mesh's own.
    pub domains: Vec<String>,
    /// External signers whose root it is.
    pub signers: Vec<String>,
}

/// What the mesh configuration says of trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The trust domain that identities are issued in.
    pub domain: String,
    /// Other names of it: who proves an identity there is one of ours.
    pub aliases: Vec<String>,
    /// Roots beside the authority's own.
    pub anchors: Vec<Anchor>,
    /// Where further roots are published, as SPIFFE bundles (`spiffeBundleUrl`).
    pub bundle_urls: Vec<String>,
}

/// What is trusted now, and from now on.
pub type TrustRx = watch::Receiver<Arc<Trust>>;

/// istiod's default.
const DEFAULT_DOMAIN: &str = "cluster.local";

impl Trust {
    /// A trust domain that has no other name, and no roots but the authority's.
    pub fn of(domain: &str) -> Trust {
        Trust { domain: domain.to_owned(), ..Trust::default() }
    }

    /// The same for ever, where nothing changes it.
    pub fn fixed(self) -> TrustRx {
        watch::Sender::new(Arc::new(self)).subscribe()
    }

    /// Reads a mesh configuration. What of it cannot be used is left out; the second part says so, a sentence each.
    pub fn read(mesh: &Value) -> (Trust, Vec<String>) {
        let texts = |value: Option<&Value>| -> Vec<String> {
            let list = value.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned).collect()
        };
        let domain = mesh.get("trustDomain").and_then(Value::as_str).filter(|domain| !domain.is_empty());
        let mut trust = Trust {
            domain: domain.unwrap_or(DEFAULT_DOMAIN).to_owned(),
            aliases: texts(mesh.get("trustDomainAliases")),
            ..Trust::default()
        };
        let mut problems = Vec::new();
        let all = mesh.get("caCertificates").and_then(Value::as_array).into_iter().flatten();
        for (index, one) in all.enumerate() {
            let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
            match (text("pem"), text("spiffeBundleUrl")) {
                ("", "") => problems.push(format!("caCertificates[{index}]: neither pem nor spiffeBundleUrl")),
                ("", url) => trust.bundle_urls.push(url.to_owned()),
                (pem, _) => match roots(pem) {
                    Ok(_) => trust.anchors.push(Anchor {
                        pem: pem.to_owned(),
                        domains: texts(one.get("trustDomains")),
                        signers: texts(one.get("certSigners")),
                    }),
                    Err(reason) => problems.push(format!("caCertificates[{index}].pem: {reason}")),
                },
            }
        }
        (trust, problems)
    }

    /// Is it our trust domain, by this name or another?
    pub fn is_ours(&self, domain: &str) -> bool {
        self.names().any(|name| name == domain)
    }

    /// All names of our trust domain.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.domain).chain(&self.aliases).map(String::as_str)
    }

    /// The roots that vouch for our own trust domain beside the authority's.
    pub fn own_anchors(&self) -> impl Iterator<Item = &Anchor> {
        self.anchors
            .iter()
            .filter(|anchor| anchor.domains.is_empty() || anchor.domains.iter().any(|domain| self.is_ours(domain)))
    }

    /// The root of an external signer, PEM.
    pub fn root_of(&self, signer: &str) -> Option<&str> {
        let anchor = self.anchors.iter().find(|anchor| anchor.signers.iter().any(|name| name == signer));
        anchor.map(|anchor| anchor.pem.as_str())
    }

    /// What proxies are told to trust: the authority's roots, those of the configuration, and those fetched; sorted, each once.
    pub fn combined(&self, bundle: &PublicBundle, fetched: &[String]) -> Vec<String> {
        let own = std::iter::once(&bundle.root_pem).filter(|pem| !pem.is_empty());
        let all: BTreeSet<&String> = own.chain(self.anchors.iter().map(|anchor| &anchor.pem)).chain(fetched).collect();
        all.into_iter().cloned().collect()
    }
}

/// The certificates of a text, every one of which may sign others.
fn roots(pem: &str) -> Result<Vec<Certificate>, String> {
    let all = Certificate::all_from_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    if all.iter().all(Certificate::is_ca) { Ok(all) } else { Err("not the certificate of an authority".into()) }
}

/// The roots in a SPIFFE bundle (a JSON Web Key Set with X.509 authorities), each a PEM block.
///
/// # Errors
/// When it is none, or a part of it is broken: half a bundle would lock out whom the other half vouches for.
pub fn bundle_roots(json: &[u8]) -> Result<Vec<String>, String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let document: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let keys = document.get("keys").and_then(Value::as_array).ok_or("no keys")?;
    let mut found = Vec::new();
    for key in keys.iter().filter(|key| key.get("use").and_then(Value::as_str) == Some("x509-svid")) {
        let chain = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let [certificate] = chain else { return Err("a key without exactly one certificate (x5c)".into()) };
        let der = STANDARD.decode(certificate.as_str().unwrap_or_default()).map_err(|error| error.to_string())?;
        let certificate = Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if !certificate.is_ca() {
            return Err("not the certificate of an authority".into());
        }
        found.push(certificate.to_pem());
    }
    if found.is_empty() { Err("no X.509 authority in it".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;
    use crate::x509::self_signed_root;
    use serde_json::json;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_configuration_is_read_and_what_is_unusable_is_said() {
        let key = SigningKey::generate_p256().unwrap();
        let root = self_signed_root("other", Duration::from_secs(3600), &key, SystemTime::now()).unwrap().to_pem();
        let mesh = json!({"trustDomain": "td", "trustDomainAliases": ["old", ""], "caCertificates": [
            {"pem": root, "certSigners": ["example.com/signer"]},
            {"pem": root, "trustDomains": ["away"]},
            {"pem": "nonsense"},
            {"spiffeBundleUrl": "https://bundle.example"},
            {},
        ]});
        let (trust, problems) = Trust::read(&mesh);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("caCertificates[2].pem: no PEM block"), "{problems:?}");
        assert_eq!((trust.domain.as_str(), trust.aliases.len(), trust.anchors.len()), ("td", 1, 2));
        assert!(trust.is_ours("old") && trust.is_ours("td") && !trust.is_ours("away") && !trust.is_ours(""));
        assert_eq!((trust.own_anchors().count(), trust.bundle_urls.len()), (1, 1));
        assert_eq!(trust.root_of("example.com/signer"), Some(root.as_str()));
        assert_eq!(trust.root_of("example.com/other"), None);
        assert_eq!(Trust::read(&json!({"trustDomain": ""})).0.domain, "cluster.local");
        let bundle = PublicBundle { root_pem: "own".into(), ..PublicBundle::default() };
        assert_eq!(trust.combined(&bundle, &["fetched".into()]), [root.as_str(), "fetched", "own"]);
    }

    #[test]
    fn a_spiffe_bundle_is_taken_whole_or_not_at_all() {
        use base64::Engine as _;
        let key = SigningKey::generate_p256().unwrap();
        let root = self_signed_root("other", Duration::from_secs(3600), &key, SystemTime::now()).unwrap();
        let x5c = base64::engine::general_purpose::STANDARD.encode(&root.der);
        let bundle = |x5c: &Value| json!({"keys": [{"use": "jwt-svid"}, {"use": "x509-svid", "x5c": x5c}]}).to_string();
        assert_eq!(bundle_roots(bundle(&json!([x5c])).as_bytes()), Ok(vec![root.to_pem()]));
        for bad in [json!([]), json!([x5c, x5c]), json!(["?"]), json!([1]), json!("x"), Value::Null] {
            assert!(bundle_roots(bundle(&bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(bundle_roots(b"{}").is_err() && bundle_roots(br#"{"keys": []}"#).is_err());
    }
}
