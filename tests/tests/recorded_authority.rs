//! What agents, ztunnels and gateways asked a real istiod 1.31 on the secure port, and what they heard (`live/` of the corpus):
//! asked again here, on a real API server. Where there are no recordings, the suite says so and is skipped.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/definitions.rs"]
mod definitions;
#[path = "support/secure.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Stream, ask, node, write};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use trysail_ca::x509::Certificate;
use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_tests::agent::{self, Certified, Issuer, asking};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::{aloud, control_plane, corpus, quiet};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A recording, where there is one.
fn recorded(test: &str, file: &str) -> Option<Value> {
    let found = corpus::folder().and_then(|folder| fs::read_to_string(folder.parent()?.join("live").join(file)).ok());
    if found.is_none() {
        eprintln!("{test}: skipped: no recordings beside the workspace, and TRYSAIL_CORPUS names none");
    }
    Some(serde_json::from_str(&found?).unwrap())
}

/// Tokens and certificates of those who ask.
struct World {
    client: Cluster,
    channel: Channel,
    replica: Replica,
    root: String,
}

impl World {
    async fn start(server: &ApiServer) -> World {
        let client = server.client().await.unwrap();
        client.define(&definitions::all()).await.unwrap();
        let account = |namespace: &str, name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}});
        let namespaces = ["istio-system", "shop", "amb"]
            .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        let accounts = [("istio-system", "ztunnel"), ("shop", "reviews"), ("shop", "productpage"), ("amb", "nobody")]
            .map(|(namespace, name)| account(namespace, name));
        let pod = |namespace: &str, name: &str, account: &str, node: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
                "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "a", "image": "a"}]},
                "status": {"phase": "Running"}})
        };
        let pods = [
            pod("istio-system", "ztunnel-a", "ztunnel", "node-a"),
            pod("istio-system", "ztunnel-b", "ztunnel", "node-b"),
            pod("shop", "reviews-1", "reviews", "node-a"),
            pod("shop", "productpage-1", "productpage", "node-a"),
        ];
        for all in [&namespaces[..], &accounts, &pods] {
            client.apply(all).await.unwrap();
        }
        let kubeconfig = server.kubeconfig().display().to_string();
        let args = ["--kubeconfig", &kubeconfig, "--namespace", "istio-system"];
        let environment = [
            ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
            ("TRYSAIL_CA_DIR", ""),
            ("TRYSAIL_CA_REQUESTS_PER_SECOND", "0"),
        ];
        let mut replica = Replica::start(&control_plane::binary(quiet).unwrap(), &args, &environment).unwrap();
        let address = replica.secure().unwrap();
        let secret = client.get(["v1", "Secret", "istio-system", "istio-ca-secret"]).await.unwrap().unwrap();
        let root = STANDARD.decode(secret["data"]["ca-cert.pem"].as_str().unwrap()).unwrap();
        let root = String::from_utf8(root).unwrap();
        let channel = agent::connect(address, &root, None).await.unwrap();
        World { client, channel, replica, root }
    }

    async fn token(&self, namespace: &str, account: &str, pod: Option<&str>) -> String {
        let uid = match pod {
            Some(pod) => {
                self.client.get(["v1", "Pod", namespace, pod]).await.unwrap().unwrap()["metadata"]["uid"].clone()
            }
            None => Value::Null,
        };
        let bound = pod.map(|pod| (pod, uid.as_str().unwrap()));
        self.client.token_of(namespace, account, "istio-ca", bound).await.unwrap()
    }

    /// A connection that shows a certificate of ours.
    async fn mutual(&mut self, namespace: &str, account: &str) -> Channel {
        let own: Certified = agent::certify(&self.channel, &self.token(namespace, account, None).await).await.unwrap();
        agent::connect(self.replica.secure().unwrap(), &self.root, Some(&own)).await.unwrap()
    }

    /// Who asks, by what the recording says of it: over which connection, with which `authorization`.
    async fn caller(&mut self, title: &str) -> (Channel, Option<String>) {
        let own = self.channel.clone();
        let bearer = |token: String| Some(format!("Bearer {token}"));
        let has = |part: &str| title.contains(part);
        if has("plaintext port 15010") {
            let at = format!("http://{}", self.replica.xds().unwrap());
            let plain = Endpoint::from_shared(at).unwrap().connect().await.unwrap();
            return (plain, if has("no token") { None } else { bearer(self.token("shop", "reviews", None).await) });
        }
        if has("mTLS client certificate of ztunnel") {
            return (self.mutual("istio-system", "ztunnel").await, None);
        }
        if has("client certificate issued before") || has("mTLS client certificate of reviews") {
            return (self.mutual("shop", "reviews").await, None);
        }
        let signed_by_hand = || Issuer::new().unwrap();
        let reviews = self.token("shop", "reviews", None).await;
        let authorization = if has("no token") {
            None
        } else if has("wrong audience") || has("default API-server audience") {
            bearer(self.client.token("shop", "reviews", "https://kubernetes.default.svc").await.unwrap())
        } else if has("expired token") {
            let mut claims = agent::claims("shop", "reviews");
            claims["exp"] = 1_000_000.into();
            bearer(signed_by_hand().sign(&claims).unwrap())
        } else if has("signed by another key") {
            bearer(signed_by_hand().token("shop", "reviews").unwrap())
        } else if has("is not a JWT") {
            bearer("nonsense".into())
        } else if has("wrong scheme") {
            Some(format!("Basic {reviews}"))
        } else if has("ztunnel on node-b") {
            bearer(self.token("istio-system", "ztunnel", Some("ztunnel-b")).await)
        } else if has("untrusted caller") {
            bearer(self.token("shop", "productpage", Some("productpage-1")).await)
        } else if has("token not bound to a pod") {
            bearer(self.token("istio-system", "ztunnel", None).await)
        } else if has("impersonation") || has("ztunnel") {
            bearer(self.token("istio-system", "ztunnel", Some("ztunnel-a")).await)
        } else if has("pod-bound") {
            bearer(self.token("shop", "reviews", Some("reviews-1")).await)
        } else {
            bearer(reviews)
        };
        (own, authorization)
    }
}

/// The request of a recording; none of a kind that cannot be made here.
fn signing_request(request: &Value, title: &str) -> Option<String> {
    if let Some(literal) = request["csr_literal"].as_str() {
        return Some(literal.to_owned());
    }
    let key = match request["key"].as_str().unwrap() {
        "ecdsa256" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ecdsa384" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "rsa2048" => rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
        // Nobody makes such keys any more but OpenSSL.
        _ => return by_openssl(),
    };
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = request["csr_cn"].as_str().filter(|name| !name.is_empty()) {
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
    }
    let texts = |field: &str| request[field].as_array().cloned().unwrap_or_default();
    let uris = texts("csr_uris").into_iter().map(|uri| rcgen::SanType::URI(uri.as_str().unwrap().try_into().unwrap()));
    let dns =
        texts("csr_dns").into_iter().map(|dns| rcgen::SanType::DnsName(dns.as_str().unwrap().try_into().unwrap()));
    params.subject_alt_names = uris.chain(dns).collect();
    if title.contains("CA=true") {
        // rcgen writes no basic constraints into requests; any other extension is as good as that.
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    }
    Some(params.serialize_request(&key.unwrap()).unwrap().pem().unwrap())
}

fn by_openssl() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let args = ["req", "-new", "-nodes", "-subj", "/", "-newkey", "rsa:1024", "-keyout", "key.pem", "-out", "csr.pem"];
    let made = Command::new("openssl").args(args).current_dir(dir.path()).output().ok()?;
    made.status.success().then(|| fs::read_to_string(dir.path().join("csr.pem")).unwrap())
}

/// The properties of a certificate that a recording tells.
fn properties(certificate: &Certificate) -> Value {
    let tbs = &certificate.parsed.tbs_certificate;
    let extensions: Vec<Value> = tbs
        .extensions
        .iter()
        .flatten()
        .map(|one| json!({"critical": one.critical, "oid": one.extn_id.to_string(), "value_len": one.extn_value.as_bytes().len()}))
        .collect();
    let or_null = |names: Vec<String>| if names.is_empty() { Value::Null } else { json!(names) };
    json!({
        "extensions": extensions,
        "subject": tbs.subject.to_string(),
        "issuer": tbs.issuer.to_string(),
        "is_ca": certificate.is_ca(),
        "uri_sans": or_null(certificate.uris()),
        "dns_sans": or_null(certificate.dns_names()),
        "lifetime_s": certificate.not_after().duration_since(certificate.not_before()).unwrap().as_secs(),
        "subject_key_id_len": certificate.subject_key_id().unwrap_or_default().len(),
    })
}

fn checked(recorded: &Value) -> Value {
    let fields =
        ["extensions", "subject", "issuer", "is_ca", "uri_sans", "dns_sans", "lifetime_s", "subject_key_id_len"];
    Value::Object(fields.iter().map(|field| ((*field).to_owned(), recorded[field].clone())).collect())
}

/// Whether our answer is as recorded; what is different else.
fn compare(case: &Value, answer: &Result<Vec<String>, Status>) -> Result<(), String> {
    match (answer, case.get("error")) {
        (Err(status), Some(error)) => {
            let code = i32::try_from(error["code_number"].as_i64().unwrap()).unwrap();
            let same_text = status.message() == error["message"] || status.code() == Code::Unimplemented;
            let same = status.code() == Code::from_i32(code) && same_text;
            if same { Ok(()) } else { Err(format!("{:?} {}, not {error}", status.code(), status.message())) }
        }
        (Ok(chain), None) => {
            if json!(chain.len()) != case["cert_chain_entries"] || !chain.iter().all(|one| one.ends_with('\n')) {
                return Err(format!("{} entries, not {}", chain.len(), case["cert_chain_entries"]));
            }
            let all = chain.iter().flat_map(|pem| Certificate::all_from_pem(pem.as_bytes()).unwrap());
            for (ours, theirs) in all.zip(case["certificates"].as_array().unwrap()) {
                let (ours, theirs) = (properties(&ours), checked(theirs));
                if ours != theirs {
                    return Err(format!("{ours}\n  not {theirs}"));
                }
            }
            Ok(())
        }
        (answer, error) => Err(format!("{answer:?}, not {error:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_as_recorded() {
    let Some(cases) = recorded("certificates_as_recorded", "ca/create-certificate.json") else { return };
    let config = cluster::Config { rights: cluster::Rights::All, ..Default::default() };
    let server = ApiServer::start(config, aloud).await.unwrap();
    let mut world = World::start(&server).await;
    let mut different = BTreeMap::new();
    let mut n_compared = 0;
    for case in cases.as_array().unwrap() {
        let (title, run) = (case["title"].as_str().unwrap(), case["run"].as_i64().unwrap_or(1));
        if case["note"].as_str().is_some_and(|note| note.starts_with("artefact")) {
            continue;
        }
        let request = &case["request"];
        let Some(csr) = signing_request(request, title) else { continue };
        let (channel, authorization) = world.caller(title).await;
        let metadata: Vec<(&str, &str)> = request["metadata"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let seconds = request["validity_duration_seconds"].as_i64().unwrap();
        let mut message: Request<IstioCertificateRequest> = Request::new(asking(&csr, seconds, &metadata));
        if let Some(authorization) = authorization {
            message.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        if run == 2 || title.contains("clusterid") {
            let cluster = if title.contains("another unknown cluster") { "unknown" } else { "Kubernetes" };
            message.metadata_mut().insert("clusterid", cluster.parse().unwrap());
        }
        n_compared += 1;
        if let Err(why) = compare(case, &agent::create(&channel, message).await) {
            different.insert(format!("{title} (run {run})"), why);
        }
    }
    // istiod signs for whatever trust domain a node proxy names; here that is refused (a unit test has the switch).
    let strict = different.remove("impersonation: foreign trust domain (run 2)").unwrap_or_default();
    assert!(strict.contains("request impersonation authentication failure"), "{strict}");
    assert!(different.is_empty(), "{different:#?}");
    assert!(n_compared >= 50, "{n_compared} compared");
}

/// A key and certificate of an authority, in the layout of `cacerts`.
fn plug(folder: &std::path::Path) {
    let params = |name: &str, pathlen| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Lab");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(pathlen);
        params
    };
    let key = || rcgen::KeyPair::generate().unwrap();
    let root = params("Root CA", rcgen::BasicConstraints::Unconstrained);
    let (root_key, own_key) = (key(), key());
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(root, root_key);
    let own =
        params("Intermediate CA 1", rcgen::BasicConstraints::Constrained(0)).signed_by(&own_key, &issuer).unwrap();
    let own_pem = own.pem();
    for (file, text) in [
        ("root-cert.pem", root_pem.clone()),
        ("ca-cert.pem", own_pem.clone()),
        ("ca-key.pem", own_key.serialize_pem()),
        ("cert-chain.pem", format!("{own_pem}{root_pem}")),
    ] {
        fs::write(folder.join(file), text).unwrap();
    }
}

/// `ca/plugin-ca.json`: certificates of an authority that is plugged in, and the longest lifetime.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugged_in_authority_as_recorded() {
    let Some(cases) = recorded("a_plugged_in_authority_as_recorded", "ca/plugin-ca.json") else { return };
    let home = tempfile::tempdir().unwrap();
    plug(home.path());
    let issuer = Issuer::new().unwrap();
    let server = support::start(&issuer, &[("ROOT_CA_DIR", &home.path().display().to_string())], &[], "");
    let root = fs::read_to_string(home.path().join("root-cert.pem")).unwrap();
    let channel = agent::connect(server.secure, &root, None).await.unwrap();
    let token = issuer.token("shop", "reviews").unwrap();
    for case in cases.as_array().unwrap() {
        let request = &case["request"];
        let title = case["title"].as_str().unwrap();
        let csr = signing_request(request, title).unwrap();
        let seconds = request["validity_duration_seconds"].as_i64().unwrap();
        let mut message: Request<IstioCertificateRequest> = Request::new(asking(&csr, seconds, &[]));
        message.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = agent::create(&channel, message).await;
        // Of those that were plugged in only whose they are is ours to say.
        let mut leaf_alone = case.clone();
        if let Some(certificates) = leaf_alone.get_mut("certificates").and_then(Value::as_array_mut) {
            certificates.truncate(1);
        }
        compare(&leaf_alone, &answer).unwrap_or_else(|why| panic!("{title}: {why}"));
        let Ok(chain) = answer else { continue };
        let subjects: Vec<String> = chain
            .iter()
            .flat_map(|pem| Certificate::all_from_pem(pem.as_bytes()).unwrap())
            .map(|one| one.parsed.tbs_certificate.subject.to_string())
            .collect();
        let expected: Vec<&str> =
            case["certificates"].as_array().unwrap().iter().map(|one| one["subject"].as_str().unwrap()).collect();
        assert_eq!(subjects, expected, "{title}");
    }
}

/// `ads/sds-gateway-tls.json`: a gateway asks for names of all kinds one after the other, while its secret comes and goes.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_as_recorded() {
    let Some(recording) = recorded("secrets_as_recorded", "ads/sds-gateway-tls.json") else { return };
    let issuer = Issuer::new().unwrap();
    let secret = |namespace: &str, name: &str, certificate: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name},
            "stringData": {"tls.crt": certificate, "tls.key": "key"}})
    };
    let rbac = "rbac.authorization.k8s.io/v1";
    let rest = [
        secret("shop", "other", "other"),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"namespace": "istio-system", "name": "sds"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"namespace": "istio-system", "name": "sds"},
            "roleRef": {"kind": "Role", "name": "sds"}, "subjects": [{"kind": "ServiceAccount", "name": "istio-ingressgateway"}]}),
    ];
    let server =
        support::start(&issuer, &[("PILOT_DEBOUNCE_AFTER", "20ms")], &[], &rest.map(|o| o.to_string()).join("\n---\n"));
    let folder = server.folder.path().join("config");
    let put = |certificate: &str| {
        write(&folder, "shop-cert.yaml", &secret("istio-system", "shop-cert", certificate).to_string())
    };
    put("first");
    let token = issuer.token("istio-system", "istio-ingressgateway").unwrap();
    let channel = server.channel().await;
    let own = node("router", "istio-system", Some("istio-ingressgateway"));
    let (mut stream, mut nonce, mut version) = (None::<Stream>, String::new(), String::new());
    let mut expected = "first";
    for event in recording["events"].as_array().unwrap() {
        match (event["note"].as_str(), event["dir"].as_str()) {
            (Some("secret rotated"), _) => (expected, _) = ("second", put("second")),
            (Some("secret deleted"), _) => fs::remove_file(folder.join("shop-cert.yaml")).unwrap(),
            (Some("secret created again"), _) => {
                // The deletion has to be seen before: what is deleted and there again at once is only rotated.
                while !server.log.lock().unwrap().contains("- Secret istio-system/shop-cert") {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                (expected, _) = ("third", put("third"));
            }
            (_, Some("->")) => {
                let names: Vec<&str> =
                    event["resource_names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
                let Some(open) = &stream else {
                    stream =
                        Some(Stream::open(&channel, Some(&token), ask(own.clone(), SECRET, &names)).await.unwrap());
                    continue;
                };
                let request = DiscoveryRequest {
                    type_url: SECRET.into(),
                    resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
                    response_nonce: nonce.clone(),
                    version_info: version.clone(),
                    ..DiscoveryRequest::default()
                };
                open.requests.send(request).await.unwrap();
            }
            (_, Some("<-")) => {
                let response = stream.as_mut().unwrap().next().await.unwrap();
                (nonce, version) = (response.nonce.clone(), response.version_info.clone());
                assert_eq!(json!(response.resources.len()), event["resource_count"], "{event}");
                let text = String::from_utf8_lossy(&response.resources[0].value).into_owned();
                let name = event["resources"][0]["name"].as_str().unwrap();
                assert!(text.contains(name) && text.contains(expected), "{event}: {text}");
            }
            _ => {}
        }
    }
}
