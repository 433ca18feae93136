//! What the authority issues, judged by other implementations: requests by rcgen and OpenSSL, chains by webpki and OpenSSL.

#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use trysail_ca::authenticate::{JwkSet, Token};
use trysail_ca::authority::{BACK_DATING, Lifetime, Lifetimes};
use trysail_ca::key::SigningKey;
use trysail_ca::roots::{FolderStore, MemoryStore, Plugged, RootError, Roots, Rotation, SelfSigned, detect};
use trysail_ca::sds::SecretName;
use trysail_ca::x509::{Certificate, CsrError, SigningRequest, self_signed_root};
use trysail_ca::{Authority, IssueError, Order};

const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn self_signed(store: MemoryStore, rotation: Rotation) -> Roots {
    Roots::SelfSigned(SelfSigned::new(Box::new(store), "cluster.local".into(), YEAR * 10, 2048, rotation))
}

fn authority() -> Authority {
    let roots = self_signed(MemoryStore::default(), Rotation::default());
    Authority::open(roots, Lifetimes::default(), SystemTime::now()).unwrap()
}

fn order(spki: Vec<u8>, seconds: i64) -> Order {
    Order { spki, names: vec![REVIEWS.into()], common_name: false, lifetime: Lifetime::Workload(seconds) }
}

fn csr(algorithm: &'static rcgen::SignatureAlgorithm, name: &str) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !name.is_empty() {
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
    }
    // What a request says of itself counts for nothing.
    params.subject_alt_names = vec![
        rcgen::SanType::URI("spiffe://cluster.local/ns/istio-system/sa/istiod".try_into().unwrap()),
        rcgen::SanType::DnsName("evil.example.com".try_into().unwrap()),
    ];
    params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
}

fn issued(authority: &Authority, order: &Order) -> Certificate {
    Certificate::from_der(&authority.issue(order, SystemTime::now()).unwrap().der).unwrap()
}

#[test]
fn a_leaf_is_the_callers_and_as_istiod_makes_it() {
    let authority = authority();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let request = SigningRequest::from_pem(&csr(algorithm, "")).unwrap();
        assert!(!request.has_common_name);
        let leaf = issued(&authority, &order(request.spki.clone(), 3600));
        assert_eq!(leaf.uris(), [REVIEWS]);
        assert_eq!((leaf.dns_names(), leaf.is_ca(), leaf.spki()), (vec![], false, request.spki));
        assert_eq!(
            leaf.not_after().duration_since(leaf.not_before()).unwrap(),
            Duration::from_secs(3600) + BACK_DATING
        );
        let tbs = &leaf.parsed.tbs_certificate;
        assert!(tbs.subject.0.is_empty());
        let extensions: Vec<(String, bool, usize)> = tbs
            .extensions
            .iter()
            .flatten()
            .map(|extension| (extension.extn_id.to_string(), extension.critical, extension.extn_value.as_bytes().len()))
            .collect();
        // As recorded from istiod.
        let expected = [
            ("2.5.29.15", true, 4),
            ("2.5.29.37", false, 22),
            ("2.5.29.19", true, 2),
            ("2.5.29.35", false, 24),
            ("2.5.29.17", true, 45),
        ];
        assert_eq!(extensions, expected.map(|(oid, critical, length)| (oid.to_owned(), critical, length)));
    }
}

#[test]
fn the_root_is_as_istiod_makes_it() {
    let bundle = authority().bundle();
    let root = Certificate::all_from_pem(bundle.root_pem.as_bytes()).unwrap().remove(0);
    assert_eq!((bundle.chain.len(), bundle.roots.len(), root.is_ca()), (0, 1, true));
    assert_eq!(root.parsed.tbs_certificate.subject.to_string(), "O=cluster.local");
    assert_eq!(root.not_after().duration_since(root.not_before()).unwrap(), YEAR * 10);
    let extensions: Vec<_> = root
        .parsed
        .tbs_certificate
        .extensions
        .iter()
        .flatten()
        .map(|e| (e.critical, e.extn_value.as_bytes().len()))
        .collect();
    assert_eq!(extensions, [(true, 4), (true, 5), (false, 22)]);
}

#[test]
fn a_common_name_is_the_callers_too() {
    let authority = authority();
    let request = SigningRequest::from_pem(&csr(&rcgen::PKCS_ECDSA_P256_SHA256, "evil")).unwrap();
    assert!(request.has_common_name);
    let order = Order { common_name: true, ..order(request.spki, 0) };
    assert_eq!(issued(&authority, &order).parsed.tbs_certificate.subject.to_string(), format!("CN={REVIEWS}"));
    let long =
        Order { names: vec![format!("{REVIEWS}-with-a-name-that-is-longer-than-sixty-four-characters")], ..order };
    assert!(issued(&authority, &long).parsed.tbs_certificate.subject.0.is_empty());
}

#[test]
fn lifetimes_are_defaulted_clamped_and_refused() {
    let authority = authority();
    let spki = SigningKey::generate_p256().unwrap().spki().to_vec();
    let lifetime = |seconds| {
        let leaf = issued(&authority, &order(spki.clone(), seconds));
        leaf.not_after().duration_since(leaf.not_before()).unwrap().as_secs()
    };
    assert_eq!([1, 0, -1, i64::MIN, 7_776_000].map(lifetime), [121, 86_520, 86_520, 86_520, 7_776_120]);
    for (seconds, text) in
        [(7_862_400, "2184h0m0s"), (630_720_000, "175200h0m0s"), (i64::MAX, "2562047788015215h30m7s")]
    {
        let error = authority.issue(&order(spki.clone(), seconds), SystemTime::now()).unwrap_err();
        assert_eq!(error.to_string(), format!("requested TTL {text} is greater than the max allowed TTL 2160h0m0s"));
        assert_eq!(error.label(), "TTL_ERROR");
    }
    // Not longer than the signing certificate, and not at all once that has ended.
    let soon = SystemTime::now() + YEAR * 10 - Duration::from_secs(3600);
    let leaf = Certificate::from_der(&authority.issue(&order(spki.clone(), 86_400), soon).unwrap().der).unwrap();
    let signing = Certificate::all_from_pem(authority.bundle().signing.as_bytes()).unwrap().remove(0);
    assert_eq!(leaf.not_after(), signing.not_after());
    let late = authority.issue(&order(spki.clone(), 60), SystemTime::now() + YEAR * 11);
    assert!(matches!(late, Err(IssueError::Generation(_))), "{late:?}");
    let serving =
        Order { lifetime: Lifetime::Serving, names: vec!["istiod.istio-system.svc".into()], ..order(spki, 0) };
    let serving = issued(&authority, &serving);
    assert_eq!(
        (serving.not_after(), serving.dns_names()),
        (signing.not_after(), vec!["istiod.istio-system.svc".to_owned()])
    );
}

#[test]
fn requests_that_are_none_are_refused_with_istiods_words() {
    let good = csr(&rcgen::PKCS_ECDSA_P256_SHA256, "");
    let certificate = authority().bundle().root_pem.clone();
    let mut forged = pem::parse(&good).unwrap().into_contents();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let cases: [(&[u8], CsrError); 6] = [
        (b"", CsrError::Encoding),
        (b"not pem", CsrError::Encoding),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", CsrError::Parse),
        (certificate.as_bytes(), CsrError::Parse),
        (&[b'x'; 100_000], CsrError::Encoding),
        (&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged)).into_bytes(), CsrError::Signature),
    ];
    for (text, error) in cases {
        assert_eq!(SigningRequest::from_pem(text), Err(error));
    }
    assert_eq!(CsrError::Encoding.to_string(), "certificate signing request is not properly encoded");
    assert_eq!(CsrError::Parse.to_string(), "failed to parse X.509 certificate signing request");
}

#[test]
fn the_root_is_renewed_with_the_same_key_before_it_ends() {
    let now = SystemTime::now();
    let rotation = Rotation { interval: Duration::from_secs(3600), grace_percent: 20, jitter: false };
    let authority = Authority::open(self_signed(MemoryStore::default(), rotation), Lifetimes::default(), now).unwrap();
    let spki = SigningKey::generate_p256().unwrap().spki().to_vec();
    let before = authority.bundle();
    assert!(!authority.maintain(now + YEAR * 7).unwrap(), "not due");
    assert!(authority.maintain(now + YEAR * 9).unwrap());
    let after = authority.bundle();
    assert_ne!(before.root_pem, after.root_pem);
    let [old, new] =
        [&before, &after].map(|bundle| Certificate::all_from_pem(bundle.root_pem.as_bytes()).unwrap().remove(0));
    assert_eq!(old.spki(), new.spki());
    assert!(new.not_after() > old.not_after());
    // Leaves of either time verify with either root.
    let leaf = authority.issue(&order(spki, 60), now + YEAR * 9).unwrap().der;
    for root in [old, new] {
        verify(&leaf, &[], &[root], now + YEAR * 9);
    }
}

fn verify(leaf: &[u8], chain: &[Certificate], roots: &[Certificate], now: SystemTime) {
    use rustls::pki_types::{CertificateDer, UnixTime};
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.der.clone())).unwrap();
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(store.into(), provider).build().unwrap();
    let chain: Vec<_> = chain.iter().map(|c| CertificateDer::from(c.der.clone())).collect();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    verifier.verify_client_cert(&CertificateDer::from(leaf.to_vec()), &chain, now).unwrap();
}

#[test]
fn our_own_key_is_kept_and_never_made_twice() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("ca");
    let open = || {
        let store = Box::new(FolderStore::new(dir.clone()));
        let roots = Roots::SelfSigned(SelfSigned::new(store, "td".into(), YEAR, 2048, Rotation::default()));
        Authority::open(roots, Lifetimes::default(), SystemTime::now()).unwrap().bundle().root_pem.clone()
    };
    let all: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|root| *root == all[0] && *root == open()));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("ca-key.pem"))), (0o700, 0o600));
}

/// Root and intermediate of an operator, in istiod's layout.
fn plug(dir: &Path, root: &(Certificate, SigningKey)) -> Certificate {
    // Two domain components and a comma: names that are lost when they are taken apart and put together again.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example, Inc.");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "mesh");
    let issuer_key = rcgen::KeyPair::from_pem(root.1.to_pem()).unwrap();
    let mut issuer_params = rcgen::CertificateParams::default();
    issuer_params.distinguished_name = rcgen::DistinguishedName::new();
    issuer_params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, rcgen::DnValue::PrintableString("Root".try_into().unwrap()));
    let issuer = rcgen::Issuer::new(issuer_params, issuer_key);
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("ca-cert.pem", &intermediate.pem());
    write("cert-chain.pem", &(intermediate.pem() + &root.0.to_pem()));
    write("root-cert.pem", &root.0.to_pem());
    write("ca-key.pem", &key.serialize_pem());
    Certificate::from_der(intermediate.der()).unwrap()
}

fn root() -> (Certificate, SigningKey) {
    let key = SigningKey::generate_p256().unwrap();
    (self_signed_root("Root", YEAR, &key, SystemTime::now()).unwrap(), key)
}

#[test]
fn plugged_files_are_taken_watched_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(!detect(dir).unwrap());
    let first_root = root();
    let intermediate = plug(dir, &first_root);
    assert!(detect(dir).unwrap());
    let now = SystemTime::now();
    let open = |multi| Authority::open(Roots::Plugged(Plugged::new(dir.into(), multi)), Lifetimes::default(), now);
    let authority = open(false).unwrap();
    let bundle = authority.bundle();
    assert_eq!((bundle.chain.len(), bundle.roots.len()), (2, 1));
    let spki = SigningKey::generate_p256().unwrap().spki().to_vec();
    let leaf = authority.issue(&order(spki, 60), now).unwrap().der;
    verify(&leaf, &[intermediate], std::slice::from_ref(&first_root.0), now);

    // The same root, another intermediate.
    assert!(!authority.maintain(now).unwrap());
    plug(dir, &first_root);
    assert!(authority.maintain(now).unwrap());
    assert_ne!(authority.bundle().chain[0], bundle.chain[0]);
    // Garbage, and a key of something else: what was in force stays, and it is said once.
    let key = std::fs::read(dir.join("ca-key.pem")).unwrap();
    std::fs::write(dir.join("ca-key.pem"), SigningKey::generate_p256().unwrap().to_pem()).unwrap();
    assert!(matches!(authority.maintain(now), Err(RootError::Mismatch)));
    assert!(!authority.maintain(now).unwrap());
    std::fs::write(dir.join("ca-key.pem"), "garbage").unwrap();
    assert!(matches!(authority.maintain(now), Err(RootError::Key(_))));
    std::fs::write(dir.join("ca-key.pem"), key).unwrap();
    assert!(!authority.maintain(now).unwrap());

    // Another root: only with overlap, and only when that is switched on.
    let multi = open(true).unwrap();
    let second_root = root();
    // A root is not valid before it was made, and a busy machine takes its time up to here.
    let now = SystemTime::now();
    plug(dir, &second_root);
    assert!(matches!(authority.maintain(now), Err(RootError::NewRoot(_))));
    assert!(matches!(multi.maintain(now), Err(RootError::NewRoot(_))));
    let both = first_root.0.to_pem() + &second_root.0.to_pem();
    std::fs::write(dir.join("root-cert.pem"), &both).unwrap();
    assert!(multi.maintain(now).unwrap());
    assert_eq!(multi.bundle().roots.len(), 2);
    std::fs::write(dir.join("root-cert.pem"), second_root.0.to_pem()).unwrap();
    assert!(multi.maintain(now).unwrap());

    std::fs::remove_file(dir.join("cert-chain.pem")).unwrap();
    let error = detect(dir).unwrap_err().to_string();
    assert!(error.contains("cert-chain.pem missing"), "{error}");
}

/// Signing keys of every kind, by chains that another implementation verifies.
#[test]
fn signing_keys_of_all_kinds_are_taken() {
    let kinds = [
        (&rcgen::PKCS_ED25519, "1.3.101.112"),
        (&rcgen::PKCS_ECDSA_P256_SHA256, "1.2.840.10045.4.3.2"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "1.2.840.10045.4.3.3"),
        (&rcgen::PKCS_RSA_SHA256, "1.2.840.113549.1.1.11"),
    ];
    for (kind, algorithm) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap();
        for name in ["ca-cert.pem", "root-cert.pem", "cert-chain.pem"] {
            std::fs::write(dir.path().join(name), root.pem()).unwrap();
        }
        std::fs::write(dir.path().join("ca-key.pem"), key.serialize_pem()).unwrap();
        let (roots, now) = (Roots::Plugged(Plugged::new(dir.path().into(), false)), SystemTime::now());
        let authority = Authority::open(roots, Lifetimes::default(), now).unwrap();
        let request = SigningRequest::from_pem(&csr(&rcgen::PKCS_ECDSA_P256_SHA256, "")).unwrap();
        let leaf = issued(&authority, &order(request.spki, 60));
        assert_eq!(leaf.parsed.signature_algorithm.oid.to_string(), algorithm);
        verify(&leaf.der, &[], &[Certificate::from_der(root.der()).unwrap()], now);
    }
}

#[test]
fn the_layout_of_kubernetes_tls_secrets_is_taken_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plug(dir, &root());
    for (from, to) in [("ca-cert.pem", "tls.crt"), ("ca-key.pem", "tls.key"), ("root-cert.pem", "ca.crt")] {
        std::fs::rename(dir.join(from), dir.join(to)).unwrap();
    }
    assert!(detect(dir).unwrap());
    let roots = Roots::Plugged(Plugged::new(dir.into(), false));
    let bundle = Authority::open(roots, Lifetimes::default(), SystemTime::now()).unwrap().bundle();
    assert_eq!((bundle.chain.len(), bundle.roots.len()), (2, 1));
}

/// OpenSSL's requests and OpenSSL's verdict. Without the program there is nothing to ask.
#[test]
fn openssl_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(dir.path()).output().ok()?;
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if openssl(&["version"]).is_none() {
        eprintln!("skipped: there is no openssl program");
        return;
    }
    let authority = authority();
    std::fs::write(dir.path().join("root.pem"), &authority.bundle().root_pem).unwrap();
    let kinds: [&[&str]; 6] = [
        &["rsa:2048"],
        &["rsa:1024"],
        &["ed25519"],
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
    ];
    for kind in kinds {
        let mut args = vec!["req", "-new", "-nodes", "-subj", "/", "-keyout", "key.pem", "-out", "csr.pem", "-newkey"];
        args.extend(kind);
        openssl(&args).unwrap();
        let csr = std::fs::read(dir.path().join("csr.pem")).unwrap();
        let request = SigningRequest::from_pem(&csr).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let leaf = issued(&authority, &order(request.spki, 3600));
        std::fs::write(dir.path().join("leaf.pem"), leaf.to_pem()).unwrap();
        // Of RSA with 1024 bits OpenSSL thinks too little to say yes at its usual level.
        openssl(&["verify", "-auth_level", "0", "-purpose", "sslclient", "-CAfile", "root.pem", "leaf.pem"]).unwrap();
        let text = openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"]).unwrap();
        assert!(text.contains(&format!("URI:{REVIEWS}")), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Requests come from before any authentication of their content: whatever the bytes, an answer and no panic.
    #[test]
    fn any_bytes_are_survived(noise in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..300, flip in 1u8..) {
        let _ = SigningRequest::from_der(&noise);
        let _ = SigningRequest::from_pem(&noise);
        let _ = Certificate::all_from_pem(&noise);
        let _ = Certificate::from_der(&noise);
        let _ = SigningKey::from_pem(&noise);
        let text = String::from_utf8_lossy(&noise);
        let _ = Token::parse(&text).map(|token| token.verify(&JwkSet::default(), "i", &[], SystemTime::now()));
        let _ = serde_json::from_slice::<JwkSet>(&noise);
        let _ = SecretName::parse(&text, "n");
        let _ = text.parse::<trysail_model::Identity>();
        let mut der = pem::parse(csr(&rcgen::PKCS_ED25519, "x")).unwrap().into_contents();
        let good = SigningRequest::from_der(&der).unwrap();
        let at = at % der.len();
        der[at] ^= flip;
        // Nothing but the request itself is accepted, as far as what counts of it is concerned.
        if let Ok(other) = SigningRequest::from_der(&der) {
            prop_assert_eq!(other.spki, good.spki);
        }
    }
}
