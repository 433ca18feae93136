//! The entry points that `tests/fuzz` fuzzes, over some thousand mutations of good inputs: the same ones in each run.
//!
//! What is looked for is a panic, an endless loop, or a broken promise; what comes of an input is no matter.

#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use prost::Message as _;
use serde_json::json;
use trysail_ca::key::SigningKey;
use trysail_ca::x509::{self_signed_root, signing_request};
use trysail_proto::istio::v1::auth::IstioCertificateRequest;

#[path = "support/dice.rs"]
mod dice;
#[path = "support/entries.rs"]
mod entries;

use dice::Dice;

/// The seed with one to three things done to it.
fn mutated(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 if bytes.len() > 1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, u8::try_from(dice.below(256)).unwrap()),
            3 => {
                let end = at + dice.below((bytes.len() - at).min(64));
                let part = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, part));
            }
            _ => bytes.truncate((at + 1).max(bytes.len() / 2)),
        }
    }
    bytes
}

fn fuzz(n: usize, seed: &[u8], run: impl Fn(&[u8]) -> bool) {
    let mut dice = Dice(1);
    assert!(run(seed), "the seed is good");
    let good = (0..n).filter(|_| run(&mutated(seed, &mut dice))).count();
    assert!(good < n, "all {n} were good: nothing was mutated");
}

fn text(run: impl Fn(&str) -> bool) -> impl Fn(&[u8]) -> bool {
    move |bytes| run(&String::from_utf8_lossy(bytes))
}

fn key() -> SigningKey {
    SigningKey::generate_p256().unwrap()
}

fn csr() -> String {
    signing_request(&[entries::CALLER.to_owned()], &key()).unwrap()
}

#[test]
fn requests() {
    let (pem, der) = (csr(), pem::parse(csr()).unwrap().into_contents());
    fuzz(2000, pem.as_bytes(), entries::signing_request);
    fuzz(2000, &der, entries::signing_request);
    let message = IstioCertificateRequest { csr: csr(), validity_duration: 3600, metadata: None };
    fuzz(500, &message.encode_to_vec(), entries::create_certificate);
}

#[test]
fn tokens_and_headers() {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"alg": "ES256", "kid": "k"}));
    let claims = part(json!({"iss": "issuer", "aud": ["istio-ca"], "sub": "a", "exp": 1e12}));
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": "AA", "y": "AA"}]});
    let token = format!("{head}.{claims}.{}\n{keys}", URL_SAFE_NO_PAD.encode([7; 64]));
    fuzz(3000, token.as_bytes(), text(entries::token));
    let header = format!("By=x;URI=spiffe://a/ns/b/sa/c,Hash=1;Subject=\"CN=\\\"x\";URI={}", entries::CALLER);
    fuzz(2000, header.as_bytes(), text(entries::forwarded));
}

#[test]
fn certificates_and_keys() {
    let key = key();
    let root = self_signed_root("td", Duration::from_secs(3600), &key, SystemTime::now()).unwrap();
    fuzz(1000, &root.der, entries::certificates);
    fuzz(1000, (root.to_pem() + &root.to_pem()).as_bytes(), entries::certificates);
    fuzz(1000, format!("{}=====\n{}", root.to_pem(), key.to_pem()).as_bytes(), entries::keyring);
    let bundle = json!({"trustDomain": "td", "trustDomainAliases": ["a"], "caCertificates": [{"pem": root.to_pem(),
        "certSigners": ["a/b"], "trustDomains": ["td"]}, {"spiffeBundleUrl": "http://x"}],
        "keys": [{"use": "x509-svid", "x5c": [STANDARD.encode(&root.der)]}]});
    fuzz(1000, bundle.to_string().as_bytes(), entries::trust);
}

#[test]
fn secrets() {
    let body = json!({"data": {"tls.crt": STANDARD.encode("certificate"), "tls.key": STANDARD.encode("CANARY"),
        "ca.crt": STANDARD.encode("roots"), "ca.crl": STANDARD.encode("list")}, "stringData": {"tls.ocsp-staple": "x"},
        "defaultConfig": {"privateKeyProvider": {"cryptomb": {"pollDelay": "0.01s"}}}, "PROXY_CONFIG": {"a": 1}});
    for name in ["kubernetes://shop", "kubernetes://shop-cacert", "configmap://edge/shop"] {
        let body = if name.starts_with("configmap") { json!({"data": {"ca.crt": "roots"}}) } else { body.clone() };
        fuzz(1000, format!("{name}\n{body}").as_bytes(), text(entries::gateway_secret));
    }
}
