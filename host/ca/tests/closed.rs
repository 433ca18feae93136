//! What the advisories on istiod tell of this area: each has its test, named after it (more in the suites `secure` and `seeing`).
//! Failures of outside parties close, never open.

#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use prost::Message as _;
use serde_json::json;
use tonic::async_trait;
use trysail_ca::authenticate::{
    Authenticator, Authenticators, Credentials, Forwarded, KubernetesToken, Oidc, ReviewError, TokenReview, fetch,
};
use trysail_ca::key::SigningKey;
use trysail_ca::registration::{NotSigned, Registration, RequestSigner, SignRequest};
use trysail_ca::sds::{Access, SecretStore};
use trysail_ca::trust::Trust;
use trysail_ca::x509::{Certificate, Leaf, SigningRequest, leaf, self_signed_root, signing_request};
use trysail_ca::{IssueError, Lifetimes};
use trysail_model::identity::{Proof, Review};
use trysail_model::{Caller, Identity, Object, ObjectRef, Proxy, ResourceName, Secrets as _};
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::Secret;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn bearer(token: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    credentials
}

/// A server that gives one answer to everything; how often it was asked.
fn answering(answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let n_asked = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (mut stream, mut request) = (stream, [0; 4096]);
            let _ = stream.read(&mut request);
            n_asked.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (address, asked)
}

fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len())
}

/// Shared caches handed the key of any gateway to any other: what one may have depends on the asker alone, whoever asked
/// before, and in whatever order.
#[test]
fn cve_2021_34824() {
    struct Gateways;
    impl Access for Gateways {
        fn may_read_secrets(&self, identity: &Identity) -> bool {
            *identity.service_account == *"gateway"
        }
    }
    let namespaces = ["a", "b", "c"];
    let store = SecretStore::new(Some(Arc::new(Gateways)));
    let secrets: Vec<Arc<Object>> = namespaces
        .iter()
        .map(|namespace| {
            let text = format!("KEY-OF-{namespace}");
            Arc::new(Object {
                reference: ObjectRef::new("Secret", namespace, "shop"),
                api_version: "v1".into(),
                creation_nanos: 0,
                labels: Arc::default(),
                annotations: Arc::default(),
                body: json!({"stringData": {"tls.crt": "c", "tls.key": text, "ca.crt": "roots"}}).into(),
                origin: "test".into(),
            })
        })
        .collect();
    store.apply(secrets.iter().map(|secret| (&secret.reference, Some(secret))));
    let names = ["kubernetes://shop", "kubernetes://a/shop", "kubernetes-gateway://a/shop", "kubernetes://shop-cacert"];
    let asked = (0..3usize, 0..3usize, prop::sample::select(vec!["gateway", "sidecar"]), 0..4usize);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
    let run = runner.run(&prop::collection::vec(asked, 1..30), |asks| {
        for (owner, claimed, account, name) in asks {
            // A node may say whatever it wants: who the caller is counts.
            let (owner, claimed) = (namespaces[owner], namespaces[claimed]);
            let id = format!("router~10.0.0.1~gw.{claimed}~{claimed}.svc.cluster.local");
            let proxy = Proxy::from_node(&id, serde_json::Map::new(), <[String; 3]>::default()).unwrap();
            let (identity, name) = (Identity::new("td", owner, account), ResourceName::from(names[name]));
            for (name, version) in store.visible(&identity, &proxy, &[name].into()) {
                let body = store.body(&identity, &proxy, &name, version).unwrap();
                let text = String::from_utf8_lossy(&body).into_owned();
                for other in namespaces.iter().filter(|other| **other != owner) {
                    prop_assert!(!text.contains(&format!("KEY-OF-{other}")), "{identity} was given {name} of {other}");
                }
                prop_assert!(account == "gateway" || !text.contains("KEY-OF-"), "{identity} may read no secret");
                prop_assert!(Secret::decode(body).is_ok());
            }
        }
        Ok(())
    });
    run.unwrap();
}

/// Whoever reached a port from the own machine could say who he is: no identity comes from an address.
#[tokio::test]
async fn ghsa_6c6p_h79f_g6p4() {
    let forwarded = |trusted: &[&str]| Forwarded { trusted: trusted.iter().map(|n| n.parse().unwrap()).collect() };
    for (trusted, is_trusted) in [(vec![], false), (vec!["10.0.0.0/8"], false), (vec!["127.0.0.0/8"], true)] {
        for address in ["127.0.0.1:1", "[::ffff:127.0.0.1]:1", "[::1]:1"] {
            let mut credentials = Credentials { address: Some(address.parse().unwrap()), ..Credentials::default() };
            let admin = "URI=spiffe://td/ns/istio-system/sa/istiod";
            credentials.headers.insert("x-forwarded-client-cert", admin.parse().unwrap());
            let proved = forwarded(&trusted).authenticate(&credentials).await;
            assert_eq!(proved.is_ok(), is_trusted && address != "[::1]:1", "{address} {trusted:?}");
        }
    }
}

struct Fixed(Result<Review, ReviewError>);

#[async_trait]
impl TokenReview for Fixed {
    async fn review(&self, _: &str, _: &str, _: &[String]) -> Result<Review, ReviewError> {
        self.0.clone()
    }
}

/// When an issuer's keys could not be fetched, a key counted that everybody has: a failed fetch must let nobody in. So for the
/// keys, the reviewer of tokens, and the published roots.
#[tokio::test]
async fn cve_2026_31837() {
    let good_set = json!({"keys": []}).to_string();
    let failing = [
        http("500 Internal Server Error", "", &good_set),
        http("404 Not Found", "", ""),
        http("200 OK", "", "no keys"),
        http("200 OK", "", "{}"),
        http("200 OK", "", &good_set),
        http("200 OK", "", &"x".repeat(2 << 20)),
        http("301 Moved Permanently", "location: http://127.0.0.1:1/\r\n", ""),
        "nonsense\r\n\r\n".to_owned(),
        String::new(),
    ];
    // A token of a key that its sender made up, as of the key that was public.
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let audiences = ["istio-ca".to_owned()];
    for answer in failing {
        let (address, asked) = answering(answer.clone());
        let start = answer.chars().take(40).collect::<String>();
        for rule in [
            json!({"issuer": "joe", "jwksUri": format!("http://{address}/keys")}),
            json!({"issuer": format!("http://{address}")}),
        ] {
            let oidc = Oidc::new(&rule.to_string(), &audiences, Trust::of("td").fixed()).unwrap();
            assert!(oidc.authenticate(&bearer(token)).await.is_err(), "{start}");
        }
        assert!(asked.load(Ordering::SeqCst) >= 2, "{start}");
        let bundle = fetch(&format!("http://{address}/")).await.map_err(|error| error.to_string());
        assert!(bundle.and_then(|json| trysail_ca::trust::bundle_roots(&json)).is_err(), "{start}");
    }
    // Nobody there at all.
    let rule = json!({"issuer": "joe", "jwksUri": "http://127.0.0.1:1/keys"}).to_string();
    let oidc: Arc<dyn Authenticator> = Arc::new(Oidc::new(&rule, &audiences, Trust::of("td").fixed()).unwrap());
    let review = |answer| -> Arc<dyn Authenticator> {
        Arc::new(KubernetesToken {
            reviewer: Arc::new(Fixed(answer)),
            cluster: "Kubernetes".into(),
            aliases: std::collections::BTreeMap::new(),
            audiences: audiences.to_vec(),
            trust: Trust::of("td").fixed(),
        })
    };
    let down = review(Err(ReviewError::Failed("timeout".into())));
    let empty = review(Ok(Review::default()));
    let all = Authenticators { list: vec![oidc, down, empty], trust: None };
    assert!(all.authenticate(&bearer(token)).await.is_err());
}

/// Fetches were led to metadata services: what an issuer's address answers is no reason to ask elsewhere.
#[tokio::test]
async fn cve_2026_41413() {
    let (inner, asked) = answering(http("200 OK", "", r#"{"keys": []}"#));
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let (outer, _) = answering(http(status, &format!("location: http://{inner}/latest/meta-data\r\n"), ""));
        assert!(fetch(&format!("http://{outer}/keys")).await.is_err(), "{status}");
    }
    for uri in ["file:///etc/passwd", "gopher://x/", "//x", "unix:/x", ""] {
        assert!(fetch(uri).await.is_err(), "{uri:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "a redirect was followed");
}

/// Secrets went to whoever was of the namespace: the service account counts too (release note
/// `verify-sa-for-gateway-secrets`). What the reviewer does not answer is a no.
#[test]
fn verify_sa_for_gateway_secrets() {
    struct Down;
    impl Access for Down {
        fn may_read_secrets(&self, _: &Identity) -> bool {
            false
        }
    }
    let secret = Arc::new(Object {
        reference: ObjectRef::new("Secret", "edge", "shop"),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: json!({"stringData": {"tls.crt": "c", "tls.key": "k"}}).into(),
        origin: "test".into(),
    });
    let id = "router~10.0.0.1~gw.edge~edge.svc.cluster.local";
    let proxy = Proxy::from_node(id, serde_json::Map::new(), <[String; 3]>::default()).unwrap();
    // Without a reviewer roles decide, and there are none.
    for store in [SecretStore::new(Some(Arc::new(Down))), SecretStore::new(None)] {
        store.apply([(&secret.reference, Some(&secret))]);
        let identity = Identity::new("td", "edge", "gateway");
        assert!(store.visible(&identity, &proxy, &["kubernetes://shop".into()].into()).is_empty());
    }
}

/// Identities of other trust domains are nobody's here, however they are proved; by switch they are what they were in istiod.
#[tokio::test]
async fn identities_of_other_trust_domains_are_nobodys() {
    struct Proved(&'static str);
    #[async_trait]
    impl Authenticator for Proved {
        fn name(&self) -> &'static str {
            "test"
        }

        async fn authenticate(&self, _: &Credentials) -> Result<Caller, trysail_ca::authenticate::Failure> {
            Ok(Caller { proof: Proof::Forwarded, identities: vec![self.0.to_owned()], pod: None })
        }
    }
    let trust = Trust { aliases: vec!["old".into()], ..Trust::of("td") }.fixed();
    for (identity, is_ours) in [
        ("spiffe://td/ns/a/sa/b", true),
        ("spiffe://old/ns/a/sa/b", true),
        ("spiffe://tdx/ns/a/sa/b", false),
        ("td", false),
    ] {
        let list: Vec<Arc<dyn Authenticator>> = vec![Arc::new(Proved(identity))];
        let strict = Authenticators { list: list.clone(), trust: Some(trust.clone()) };
        assert_eq!(strict.authenticate(&Credentials::default()).await.is_ok(), is_ours, "{identity}");
        let lax = Authenticators { list, trust: None };
        assert!(lax.authenticate(&Credentials::default()).await.is_ok());
    }
}

/// A signer that gives one answer.
struct Told(Result<String, NotSigned>);

#[async_trait]
impl RequestSigner for Told {
    async fn sign(&self, _: SignRequest) -> Result<String, NotSigned> {
        self.0.clone()
    }
}

/// An external signer is believed nothing but a certificate of the caller's key and name that leads to a known root.
#[tokio::test]
async fn an_external_signer_closes_when_it_fails_or_lies() {
    let name = "spiffe://td/ns/shop/sa/reviews".to_owned();
    let client = SigningKey::generate_p256().unwrap();
    let csr_pem = signing_request(std::slice::from_ref(&name), &client).unwrap();
    let csr = SigningRequest::from_pem(csr_pem.as_bytes()).unwrap();
    let key = SigningKey::generate_p256().unwrap();
    let now = SystemTime::now();
    let root = self_signed_root("Signer", YEAR, &key, now).unwrap();
    let stranger_key = SigningKey::generate_p256().unwrap();
    let stranger = self_signed_root("Signer", YEAR, &stranger_key, now).unwrap();
    let signed = |names: &[&str], spki: &[u8], by: (&Certificate, &SigningKey), life: Duration| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf_of =
            Leaf { spki, names: &names, common_name: None, not_before: now - YEAR, not_after: now - YEAR + life };
        leaf(&leaf_of, by.0, by.1).unwrap().to_pem()
    };
    let own = (&root, &key);
    let good = signed(&[&name], client.spki(), own, YEAR * 2);
    let other = signed(&["spiffe://td/ns/kube-system/sa/admin"], client.spki(), own, YEAR * 2);
    let both = signed(&[&name, "spiffe://td/ns/a/sa/b"], client.spki(), own, YEAR * 2);
    let dns = signed(&[&name, "istiod.istio-system.svc"], client.spki(), own, YEAR * 2);
    let old = signed(&[&name], client.spki(), own, YEAR / 2);
    let foreign_key = signed(&[&name], stranger_key.spki(), own, YEAR * 2);
    let foreign_root = signed(&[&name], client.spki(), (&stranger, &stranger_key), YEAR * 2);
    let ask = async |answer: Result<String, NotSigned>, root_pem: Option<String>| {
        let registration = Registration {
            signer: Arc::new(Told(answer)),
            default_signer: "example.com/mesh".into(),
            domain: String::new(),
            lifetimes: Lifetimes::default(),
            trust: Trust::of("td").fixed(),
            root_pem,
        };
        registration.issue(&csr, &csr_pem, std::slice::from_ref(&name), "", 60).await
    };
    let known = || Some(root.to_pem());
    assert_eq!(ask(Ok(good.clone()), known()).await.unwrap(), [good.clone(), root.to_pem()]);
    // What the signer says of itself counts only where nobody said more.
    assert_eq!(ask(Ok(good.clone() + &root.to_pem()), None).await.unwrap().len(), 2);
    let wrong = foreign_root.clone() + &stranger.to_pem();
    assert!(matches!(ask(Ok(wrong), known()).await, Err(IssueError::Generation(_))));
    for (bad, why) in [
        (Err(NotSigned("timeout".into())), "no answer"),
        (Ok(String::new()), "an empty one"),
        (Ok("nonsense".into()), "no certificate"),
        (Ok(root.to_pem()), "an authority"),
        (Ok(other), "another name"),
        (Ok(both), "one name more"),
        (Ok(dns), "a DNS name more"),
        (Ok(old), "expired"),
        (Ok(foreign_key), "another key"),
        (Ok(foreign_root), "another root"),
    ] {
        let refused = ask(bad, known()).await;
        assert!(matches!(refused, Err(IssueError::Generation(_))), "{why}: {refused:?}");
    }
    assert!(matches!(ask(Ok(good), None).await, Err(IssueError::Generation(_))), "no root is known");
}
