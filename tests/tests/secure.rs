//! The secure port as agents and gateways meet it: the program itself, over TLS.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/secure.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{CLUSTER, PATIENCE, Server, Stream, ask, node, write};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use trysail_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_proto::prost::Message as _;
use trysail_proto::prost_types::{Struct, Value as WireValue, value::Kind};
use trysail_tests::agent::{self, Certified, Issuer, with_token};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

fn objects(certificate: &str) -> String {
    let data = json!({"tls.crt": certificate, "tls.key": "-----CANARY-KEY-----", "ca.crt": "roots"});
    let secret = |namespace: &str, name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name}, "stringData": data});
    let rbac = "rbac.authorization.k8s.io/v1";
    let all = [
        secret("edge", "shop-cert"),
        secret("shop", "shop-cert"),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"namespace": "edge", "name": "sds"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"namespace": "edge", "name": "sds"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "sds"},
            "subjects": [{"kind": "ServiceAccount", "name": "gateway"}]}),
    ];
    all.map(|object| object.to_string()).join("\n---\n")
}

fn start(issuer: &Issuer, environment: &[(&str, &str)]) -> Server {
    support::start(issuer, environment, &[], &objects("first"))
}

async fn first(channel: &Channel, token: Option<&str>, node: Node) -> Result<DiscoveryResponse, Status> {
    Stream::open(channel, token, ask(node, CLUSTER, &[])).await?.next().await
}

/// `corpus/live/ads/errors/tls-*`: codes and words are istiod's.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_the_configuration_of_its_identity_only() {
    let issuer = Issuer::new().unwrap();
    let server = start(&issuer, &[]);
    let channel = server.channel().await;
    let reviews = || node("sidecar", "shop", Some("reviews"));
    let good = issuer.token("shop", "reviews").unwrap();
    assert_eq!(first(&channel, Some(&good), reviews()).await.unwrap().type_url, CLUSTER);

    let expired = json!({"exp": 1_000_000});
    let merged = |changes: Value| {
        let mut claims = agent::claims("shop", "reviews");
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        issuer.sign(&claims).unwrap()
    };
    let stranger = Issuer::new().unwrap().token("shop", "reviews").unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap());
    let bad = [
        None,
        Some(merged(expired)),
        Some(merged(json!({"aud": ["kubernetes"]}))),
        Some(merged(json!({"iss": "https://other.test"}))),
        Some(merged(json!({"sub": "reviews"}))),
        Some(merged(json!({"exp": null}))),
        Some(stranger),
        Some(unsigned),
        Some("nonsense".to_owned()),
        Some(String::new()),
    ];
    for token in bad {
        let status = first(&channel, token.as_deref(), reviews()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication failure"), "{token:?}");
    }
    let others = [("istio-system", "ztunnel"), ("shop", "productpage"), ("default", "reviews")];
    for (namespace, account) in others {
        let token = issuer.token(namespace, account).unwrap();
        let status = first(&channel, Some(&token), reviews()).await.unwrap_err();
        let text = format!(
            "authorization failed: no identities ([spiffe://cluster.local/ns/{namespace}/sa/{account}]) matched shop/reviews"
        );
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, &*text));
    }
    // istiod lets any account of the namespace in when the node does not say which it is.
    let status = first(&channel, Some(&good), node("sidecar", "shop", None)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let lenient = start(&issuer, &[("TRYSAIL_ACCEPT_UNNAMED_ACCOUNTS", "true")]);
    assert!(first(&lenient.channel().await, Some(&good), node("sidecar", "shop", None)).await.is_ok());
}

/// `corpus/live/ca/create-certificate.json`.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_the_callers() {
    let issuer = Issuer::new().unwrap();
    let server = start(&issuer, &[]);
    let channel = server.channel().await;
    let token = issuer.token("shop", "reviews").unwrap();
    let own = agent::certify(&channel, &token).await.unwrap();
    assert_eq!(own.root_pem, server.root());
    // With the certificate instead of a token: renewal, and streams.
    let mutual = agent::connect(server.secure, &server.root(), Some(&own)).await.unwrap();
    let (csr, _) = agent::signing_request().unwrap();
    let message =
        |csr: &str, seconds| IstioCertificateRequest { csr: csr.into(), validity_duration: seconds, metadata: None };
    assert_eq!(agent::create(&mutual, Request::new(message(&csr, 60))).await.unwrap().len(), 2);
    assert!(first(&mutual, None, node("sidecar", "shop", Some("reviews"))).await.is_ok());
    let status = first(&mutual, None, node("sidecar", "shop", Some("productpage"))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let refused = async |request| {
        let status: Status = agent::create(&channel, request).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let is = |code, text: &str| (code, text.to_owned());
    let unknown = is(Code::Unauthenticated, "request authenticate failure");
    assert_eq!(refused(Request::new(message(&csr, 60))).await, unknown);
    assert_eq!(refused(with_token(message(&csr, 60), "x")).await, unknown);
    let too_long = "CSR signing error (requested TTL 2184h0m0s is greater than the max allowed TTL 2160h0m0s)";
    assert_eq!(refused(with_token(message(&csr, 7_862_400), &token)).await, is(Code::InvalidArgument, too_long));
    let not_pem = "CSR signing error (certificate signing request is not properly encoded)";
    assert_eq!(refused(with_token(message("", 60), &token)).await, is(Code::InvalidArgument, not_pem));
    let not_csr = "CSR signing error (failed to parse X.509 certificate signing request)";
    assert_eq!(refused(with_token(message(&server.root(), 60), &token)).await, is(Code::InvalidArgument, not_csr));
    let wanted = WireValue { kind: Some(Kind::StringValue("spiffe://cluster.local/ns/shop/sa/other".into())) };
    let impersonating = IstioCertificateRequest {
        metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), wanted)].into() }),
        ..message(&csr, 60)
    };
    let status = refused(with_token(impersonating, &token)).await;
    assert_eq!(status, is(Code::Unauthenticated, "request impersonation authentication failure"));

    // A certificate of somebody else's root proves nothing: the handshake already fails.
    let foreign = trysail_tests::sds::Authority::new().unwrap().identity("shop", "reviews").unwrap();
    let foreign =
        Certified { chain_pem: foreign.chain_pem().into(), key_pem: foreign.key_pem().into(), root_pem: String::new() };
    let result = match agent::connect(server.secure, &server.root(), Some(&foreign)).await {
        Ok(channel) => agent::create(&channel, Request::new(message(&csr, 60))).await.map(drop).map_err(drop),
        Err(_) => Err(()),
    };
    assert!(result.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_those_who_may_have_them_and_nowhere_else() {
    let issuer = Issuer::new().unwrap();
    let server = start(&issuer, &[]);
    let channel = server.channel().await;
    let token = issuer.token("edge", "gateway").unwrap();
    let names = ["kubernetes://shop-cert", "kubernetes://missing"];
    let request = ask(node("router", "edge", Some("gateway")), SECRET, &names);
    let mut gateway = Stream::open(&channel, Some(&token), request).await.unwrap();
    let response = gateway.next().await.unwrap();
    let decoded: Vec<Secret> = response.resources.iter().map(|any| Secret::decode(&*any.value).unwrap()).collect();
    assert_eq!(decoded.iter().map(|secret| &*secret.name).collect::<Vec<_>>(), ["kubernetes://shop-cert"]);
    assert!(String::from_utf8_lossy(&response.resources[0].value).contains("-----CANARY-KEY-----"));
    gateway.acknowledge(&response, &names).await;

    // Others hear nothing, whatever they ask: not the same namespace, not the account without the right.
    for (namespace, account, name) in [
        ("edge", "shop-keeper", "kubernetes://shop-cert"),
        ("shop", "gateway", "kubernetes://edge/shop-cert"),
        ("shop", "gateway", "kubernetes-gateway://edge/shop-cert"),
    ] {
        let token = issuer.token(namespace, account).unwrap();
        let own = node("router", namespace, Some(account));
        let mut other = Stream::open(&channel, Some(&token), ask(own.clone(), SECRET, &[name])).await.unwrap();
        // The answer to a later question is the first thing that it hears.
        other.requests.send(ask(own, CLUSTER, &[])).await.unwrap();
        let heard = other.next().await.unwrap();
        assert_eq!(heard.type_url, CLUSTER, "{namespace}/{account} {name}");
    }

    // Rotated: pushed.
    write(&server.folder.path().join("config"), "objects.yaml", &objects("second"));
    let rotated = gateway.next().await.unwrap();
    assert!(String::from_utf8_lossy(&rotated.resources[0].value).contains("second"));

    // The canary is in no log at the finest level, and on no page.
    let log = server.log.lock().unwrap().clone();
    assert!(log.contains("shop-cert"), "something was logged");
    assert!(!log.contains("CANARY"), "a secret was logged");
    let page =
        std::process::Command::new("curl").args(["-s", &format!("http://{}/metrics", server.monitoring)]).output();
    if let Ok(page) = page {
        assert!(!String::from_utf8_lossy(&page.stdout).contains("CANARY"));
    }
}

/// A crash before authentication, found by fuzzing a year later: whatever arrives on the secure port, others are served.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23635() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let issuer = Issuer::new().unwrap();
    let server = start(&issuer, &[]);
    let channel = server.channel().await;
    // Before TLS, and in its first message.
    let hello = [&[0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff][..], &[0xff; 5000]].concat();
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 70_000],
        &[0xff; 70_000],
        &hello,
        b"",
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.secure).await.unwrap();
        // It may be closed before all is written.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut Vec::new())).await;
    }
    // Within TLS and gRPC, by callers that nobody knows: the first message of a stream, headers of authentication, requests.
    let deep = |depth: usize| {
        (0..depth).fold(WireValue { kind: Some(Kind::BoolValue(true)) }, |inner, _| {
            let fields = [("a".to_owned(), inner)].into();
            WireValue { kind: Some(Kind::StructValue(Struct { fields })) }
        })
    };
    let mut nodes = vec![Node::default(), node("", "", None), node("sidecar", &"n".repeat(100_000), Some(""))];
    for id in ["", "~~~", "sidecar~x~y~z", "sidecar~10.0.0.1~a.b~c~d", "\u{0}~\u{0}~\u{0}~\u{0}", "ztunnel~::~.~."] {
        nodes.push(Node { id: id.into(), ..node("sidecar", "shop", Some("reviews")) });
    }
    let fields = [("LABELS", deep(60)), ("INSTANCE_IPS", deep(1)), ("ISTIO_VERSION", WireValue { kind: None })];
    let fields = fields.map(|(name, value)| (name.to_owned(), value)).into();
    nodes.push(Node { metadata: Some(Struct { fields }), ..node("sidecar", "shop", None) });
    let tokens = [None, Some(""), Some("."), Some("a.b.c"), Some("e30.e30.e30"), Some("\u{7f}"), Some("%00")];
    for (n, node) in nodes.into_iter().enumerate() {
        let request = ask(node, if n % 2 == 0 { CLUSTER } else { "\u{0}" }, &["", "\u{0}"]);
        for token in tokens {
            assert!(first_of(&channel, token, request.clone()).await.is_err(), "{token:?}");
        }
    }
    for token in tokens.into_iter().flatten() {
        let message =
            IstioCertificateRequest { csr: "\u{0}".repeat(100_000), validity_duration: i64::MIN, metadata: None };
        let status = agent::create(&channel, with_token(message, token)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?}");
    }
    let token = issuer.token("shop", "reviews").unwrap();
    assert!(first(&channel, Some(&token), node("sidecar", "shop", Some("reviews"))).await.is_ok());
    assert!(!server.log.lock().unwrap().contains("panicked"));
}

/// Who asks for too many certificates waits and is refused; others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_a_limit_of_its_own() {
    let issuer = Issuer::new().unwrap();
    // 10 at once.
    let server = start(&issuer, &[("TRYSAIL_CA_REQUESTS_PER_SECOND", "0.5")]);
    let channel = server.channel().await;
    let (greedy, modest) = (issuer.token("shop", "reviews").unwrap(), issuer.token("shop", "productpage").unwrap());
    let (csr, _) = agent::signing_request().unwrap();
    let ask = async |token: &str| agent::create(&channel, with_token(agent::asking(&csr, 60, &[]), token)).await;
    let mut n_issued = 0;
    let refused = loop {
        match ask(&greedy).await {
            Ok(_) => n_issued += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // Some more come while it asks, on a slow machine.
    assert!((10..60).contains(&n_issued), "{n_issued} issued");
    for _ in 0..5 {
        ask(&modest).await.unwrap();
    }
}

async fn first_of(
    channel: &Channel,
    token: Option<&str>,
    request: DiscoveryRequest,
) -> Result<DiscoveryResponse, Status> {
    Stream::open(channel, token, request).await?.next().await
}

/// Versions, ciphers and curves by flags and policy, as a client finds them.
#[tokio::test(flavor = "multi_thread")]
async fn policies_say_what_is_spoken() {
    use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
    use rustls::version::{TLS12, TLS13};
    let issuer = Issuer::new().unwrap();
    let spoken = async |server: &Server, provider: &rustls::crypto::CryptoProvider, version| {
        let builder = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(provider.clone()));
        let mut roots = rustls::RootCertStore::empty();
        let der = pem::parse(server.root()).unwrap().into_contents();
        roots.add(der.into()).unwrap();
        let config =
            builder.with_protocol_versions(&[version]).ok()?.with_root_certificates(roots).with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(server.secure).await.unwrap();
        let name = agent::SERVER_NAME.try_into().unwrap();
        let connected = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await;
        connected.ok().and_then(|stream| stream.get_ref().1.negotiated_cipher_suite()).map(|suite| suite.suite())
    };
    let all = aws_lc_rs::default_provider();
    let only = |suites: &[rustls::SupportedCipherSuite], groups: &[&'static dyn rustls::crypto::SupportedKxGroup]| {
        rustls::crypto::CryptoProvider { cipher_suites: suites.to_vec(), kx_groups: groups.to_vec(), ..all.clone() }
    };
    let default = start(&issuer, &[]);
    assert!(spoken(&default, &all, &TLS12).await.is_some() && spoken(&default, &all, &TLS13).await.is_some());
    let fips = start(&issuer, &[("COMPLIANCE_POLICY", "fips-140-2")]);
    assert_eq!(spoken(&fips, &all, &TLS13).await, None);
    assert!(spoken(&fips, &all, &TLS12).await.is_some());
    let chacha = [cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256];
    assert_eq!(spoken(&fips, &only(&chacha, &all.kx_groups), &TLS12).await, None);
    assert_eq!(spoken(&fips, &only(&all.cipher_suites, &[kx_group::X25519]), &TLS12).await, None);
    let newest = support::start(&issuer, &[], &["--tls-min-version=1.3"], &objects("first"));
    assert_eq!(spoken(&newest, &all, &TLS12).await, None);
    assert!(spoken(&newest, &all, &TLS13).await.is_some());
    let post_quantum = start(&issuer, &[("COMPLIANCE_POLICY", "pqc")]);
    assert!(spoken(&post_quantum, &only(&all.cipher_suites, &[kx_group::X25519MLKEM768]), &TLS13).await.is_some());
    assert_eq!(spoken(&post_quantum, &only(&all.cipher_suites, &[kx_group::X25519]), &TLS13).await, None);
}

/// The key is in a process of its own, which is replaced when it dies, with the same key.
#[tokio::test(flavor = "multi_thread")]
async fn the_signer_is_a_process_of_its_own() {
    let issuer = Issuer::new().unwrap();
    let server = start(&issuer, &[]);
    let channel = server.channel().await;
    let token = issuer.token("shop", "reviews").unwrap();
    let root = agent::certify(&channel, &token).await.unwrap().root_pem;
    let mut stream = Stream::open(&channel, Some(&token), ask(node("sidecar", "shop", Some("reviews")), CLUSTER, &[]))
        .await
        .unwrap();
    stream.next().await.unwrap();
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.child.id())).unwrap_or_default();
    let signers: Vec<&str> = children.split_whitespace().collect();
    let [signer] = signers[..] else { panic!("one child was expected: {children:?}") };
    let environment = std::fs::read(format!("/proc/{signer}/environ")).unwrap_or_default();
    assert!(environment.is_empty(), "the signer needs nothing of the environment");
    Command::new("kill").args(["-9", signer]).status().unwrap();
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(own) = agent::certify(&channel, &token).await {
                return own;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert_eq!(again.await.expect("another signer").root_pem, root);
    // Streams did not notice: this one still answers.
    let other = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.listener.v3.Listener".into(),
        ..DiscoveryRequest::default()
    };
    stream.requests.send(other).await.unwrap();
    assert!(stream.next().await.unwrap().type_url.ends_with("Listener"));
}
