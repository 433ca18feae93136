//! What else a cluster has for the certificate authority, on the real API server: signers that sign in its place, node proxies
//! that ask for the pods of their node, roots in a ClusterTrustBundle, a key in `cacerts`.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use trysail_ca::key::SigningKey;
use trysail_ca::x509::{Certificate, Leaf, SigningRequest, leaf, self_signed_root};
use trysail_tests::agent::{self, Certified, asking, signing_request_of, with_token};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::sds::spiffe;
use trysail_tests::{aloud, control_plane, eventually, quiet};
use x509_cert::der::Decode as _;
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::CertReq;

#[path = "support/definitions.rs"]
mod definitions;

const PATIENCE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const DOMAIN: &str = "signers.example";

/// One server; each test has a control plane namespace of its own.
async fn server() -> &'static ApiServer {
    static SERVER: OnceCell<ApiServer> = OnceCell::const_new();
    let start = || async {
        let flags = ["--feature-gates=ClusterTrustBundle=true", "--runtime-config=certificates.k8s.io/v1beta1=true"];
        let config = cluster::Config { rights: cluster::Rights::All, flags: flags.map(str::to_owned).to_vec() };
        let server = ApiServer::start(config, aloud).await?;
        server.client().await?.define(&definitions::all()).await?;
        Ok::<_, anyhow::Error>(server)
    };
    SERVER.get_or_try_init(start).await.unwrap()
}

fn start(server: &ApiServer, namespace: &str, environment: &[(&str, &str)]) -> Replica {
    let kubeconfig = server.kubeconfig().display().to_string();
    let args = ["--kubeconfig", &kubeconfig, "--namespace", namespace];
    let mut all = vec![("POD_NAME", namespace), ("PILOT_DEBOUNCE_AFTER", "20ms"), ("TRYSAIL_CA_DIR", "")];
    all.extend([("ISTIOD_CUSTOM_HOST", agent::SERVER_NAME)]);
    all.extend(environment);
    Replica::start(&control_plane::binary(quiet).unwrap(), &args, &all).unwrap()
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}})
}

fn part(secret: &Value, name: &str) -> String {
    String::from_utf8(STANDARD.decode(secret["data"][name].as_str().unwrap()).unwrap()).unwrap()
}

/// The controller of some signers, each named after what it does.
struct Signer {
    root: Certificate,
    key: SigningKey,
}

impl Signer {
    fn new() -> Signer {
        let key = SigningKey::generate_p256().unwrap();
        Signer { root: self_signed_root("Signer", YEAR, &key, SystemTime::now()).unwrap(), key }
    }

    fn sign(&self, spki: &[u8], names: &[String], lifetime: Duration) -> String {
        let now = SystemTime::now();
        let wanted = Leaf { spki, names, common_name: None, not_before: now, not_after: now + lifetime };
        leaf(&wanted, &self.root, &self.key).unwrap().to_pem()
    }

    /// What becomes of a request: a part of its status.
    fn answer(&self, request: &Value) -> Option<Value> {
        let signer = request["spec"]["signerName"].as_str()?.strip_prefix(DOMAIN)?.strip_prefix('/')?;
        let csr = STANDARD.decode(request["spec"]["request"].as_str()?).unwrap();
        let csr_der = pem::parse(&csr).unwrap().into_contents();
        let asked = SigningRequest::from_der(&csr_der).unwrap();
        let expiration = request["spec"]["expirationSeconds"].as_u64().unwrap_or(600);
        let lifetime = Duration::from_secs(expiration);
        let names = asked_names(&csr_der);
        let certificate = |chain: String| Some(json!({"certificate": STANDARD.encode(chain)}));
        match signer {
            "mesh" | "other" => certificate(self.sign(&asked.spki, &names, lifetime)),
            "with-root" => certificate(self.sign(&asked.spki, &names, lifetime) + &self.root.to_pem()),
            "no-root" => certificate(self.sign(&asked.spki, &names, lifetime)),
            "another-key" => certificate(
                self.sign(SigningKey::generate_p256().unwrap().spki(), &names, lifetime) + &self.root.to_pem(),
            ),
            "another-name" => {
                certificate(self.sign(&asked.spki, &[spiffe("kube-system", "admin")], lifetime) + &self.root.to_pem())
            }
            "failing" => Some(
                json!({"conditions": [{"type": "Failed", "status": "True", "reason": "Broken", "message": "out of ink"}]}),
            ),
            _ => None,
        }
    }

    /// Signs what is approved until the task is aborted.
    fn run(self: Arc<Self>, client: Cluster) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut done = BTreeSet::new();
            loop {
                let all = client.list("certificates.k8s.io/v1", "CertificateSigningRequest").await.unwrap_or_default();
                for request in all {
                    let name = request["metadata"]["name"].as_str().unwrap().to_owned();
                    let conditions = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
                    if !conditions.iter().any(|one| one["type"] == "Approved") || done.contains(&name) {
                        continue;
                    }
                    if let Some(mut status) = self.answer(&request) {
                        let mut conditions = conditions;
                        conditions.extend(status["conditions"].as_array().cloned().unwrap_or_default());
                        status["conditions"] = conditions.into();
                        // A caller that is gone has taken its request along.
                        let _ = set_status(&client, request, status).await;
                        done.insert(name);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }
}

async fn set_status(client: &Cluster, mut request: Value, status: Value) -> anyhow::Result<()> {
    let name = request["metadata"]["name"].as_str().context("no name")?.to_owned();
    request["status"] = status;
    request["apiVersion"] = "certificates.k8s.io/v1".into();
    request["kind"] = "CertificateSigningRequest".into();
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/status");
    let put = hyper::Request::put(path).header("content-type", "application/json");
    client.raw().request::<Value>(put.body(request.to_string().into_bytes())?).await?;
    Ok(())
}

/// The names that a request asks for, as its signer reads them.
fn asked_names(csr_der: &[u8]) -> Vec<String> {
    let attributes = CertReq::from_der(csr_der).unwrap().info.attributes;
    let values = attributes.iter().flat_map(|attribute| attribute.values.iter());
    let extensions = values.filter_map(|value| value.decode_as::<Extensions>().ok()).flatten();
    let names = extensions.filter_map(|extension| SubjectAltName::from_der(extension.extn_value.as_bytes()).ok());
    let text = |name| match name {
        GeneralName::UniformResourceIdentifier(uri) => uri.as_str().to_owned(),
        GeneralName::DnsName(dns) => dns.as_str().to_owned(),
        other => panic!("{other:?}"),
    };
    names.flat_map(|names| names.0).map(text).collect()
}

async fn ask(channel: &Channel, token: &str, uris: &[&str], metadata: &[(&str, &str)]) -> Result<Certified, Status> {
    let (csr, key_pem) = signing_request_of(uris).unwrap();
    let mut chain = agent::create(channel, with_token(asking(&csr, 3600, metadata), token)).await?;
    let root_pem = chain.pop().unwrap();
    Ok(Certified { chain_pem: chain.concat(), key_pem, root_pem })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_signer_signs_in_our_place() {
    let server = server().await;
    let client = server.client().await.unwrap();
    let signer = Arc::new(Signer::new());
    let root = signer.root.to_pem();
    let working = signer.clone().run(server.client().await.unwrap());
    let signers: Vec<String> = ["mesh", "other"].iter().map(|name| format!("{DOMAIN}/{name}")).collect();
    let mesh = json!({"caCertificates": [{"pem": root, "certSigners": signers}]});
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "signed", "name": "istio"},
        "data": {"mesh": mesh.to_string()}});
    client.apply(&[namespace("signed"), config, account("signed", "shop"), account("signed", "other")]).await.unwrap();
    let environment = [
        ("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"),
        ("K8S_SIGNER", "signers.example/mesh"),
        ("CERT_SIGNER_DOMAIN", DOMAIN),
    ];
    let mut replica = start(server, "signed", &environment);
    let address = replica.secure().unwrap();
    let own_root =
        part(&client.get(["v1", "Secret", "signed", "istio-ca-secret"]).await.unwrap().unwrap(), "ca-cert.pem");
    let channel = agent::connect(address, &own_root, None).await.unwrap();
    let token = client.token("signed", "shop", "istio-ca").await.unwrap();
    let own = spiffe("signed", "shop");

    // By the default signer, by one that the caller names, and by one whose answer has its root.
    for (metadata, whose) in [(None, "mesh"), (Some("other"), "other"), (Some("with-root"), "with-root")] {
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|signer| ("CertSigner", *signer)).collect();
        let certified =
            ask(&channel, &token, &[&own], &metadata).await.unwrap_or_else(|error| panic!("{whose}: {error}"));
        assert_eq!(certified.root_pem, root, "{whose}");
        let leaf = Certificate::all_from_pem(certified.chain_pem.as_bytes()).unwrap().remove(0);
        assert_eq!(leaf.uris(), [own.as_str()], "{whose}");
        if whose == "mesh" {
            // It proves who we are, on the port whose own certificate is of another root.
            let mutual = agent::connect(address, &own_root, Some(&certified)).await.unwrap();
            let (csr, _) = signing_request_of(&[&own]).unwrap();
            agent::create(&mutual, tonic::Request::new(asking(&csr, 0, &[]))).await.unwrap();
        }
    }

    // What is asked for counts here, since somebody else signs it as it is.
    let other = spiffe("signed", "other");
    for uris in [&[other.as_str()][..], &[], &[&own, &other]] {
        let refused = ask(&channel, &token, uris, &[]).await.unwrap_err();
        let text = "CSR signing error (unable to validate SAN Identities in CSR)";
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text), "{uris:?}");
    }
    // A signer that fails, or answers with something else than was asked, gives nothing.
    for (name, said) in [
        ("failing", "out of ink"),
        ("no-root", "no root certificate of signer signers.example/no-root"),
        ("another-key", "the certificate is for another key"),
        ("another-name", "spiffe://cluster.local/ns/kube-system/sa/admin"),
    ] {
        let refused = ask(&channel, &token, &[&own], &[("CertSigner", name)]).await.unwrap_err();
        assert!(refused.code() == Code::Internal && refused.message().contains(said), "{name}: {refused}");
    }
    let outside = ask(&channel, &token, &[&own], &[("CertSigner", "../kubernetes.io/kube-apiserver-client")]).await;
    assert_eq!(outside.unwrap_err().code(), Code::InvalidArgument);

    // No request is left behind, and one that its caller no longer waits for does not stay either.
    let silent = async { ask(&channel, &token, &[&own], &[("CertSigner", "silent")]).await };
    assert!(tokio::time::timeout(Duration::from_secs(1), silent).await.is_err(), "nobody signs that");
    let requests = || async {
        let all = client.list("certificates.k8s.io/v1", "CertificateSigningRequest").await?;
        let left: Vec<&str> = all.iter().filter_map(|one| one["spec"]["signerName"].as_str()).collect();
        ensure!(left.iter().all(|name| name.ends_with("/silent")), "{left:?}");
        Ok(())
    };
    eventually("no request is left", PATIENCE, requests).await.unwrap();

    // Its own certificate by a signer of the cluster: then there is no key of its own.
    let provider = format!("k8s.io/{DOMAIN}/mesh");
    let mut more = environment.to_vec();
    more.push(("PILOT_CERT_PROVIDER", &provider));
    let mut keyless = start(server, "signed", &more);
    let address = keyless.secure().unwrap();
    let channel = agent::connect(address, &root, None).await.unwrap();
    assert_eq!(ask(&channel, &token, &[&own], &[]).await.unwrap().root_pem, root);
    working.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_proxy_gets_certificates_of_its_own_node() {
    let server = server().await;
    let client = server.client().await.unwrap();
    let pod = |name: &str, account: &str, node: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "nodes", "name": name},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "a", "image": "a"}]},
            "status": {"phase": "Running"}})
    };
    let accounts = ["ztunnel", "here", "away", "untrusted"].map(|name| account("nodes", name));
    client.apply(&[namespace("nodes")]).await.unwrap();
    client.apply(&accounts).await.unwrap();
    let pods = [
        pod("ztunnel-a", "ztunnel", "node-a"),
        pod("untrusted-a", "untrusted", "node-a"),
        pod("here", "here", "node-a"),
        pod("away", "away", "node-b"),
    ];
    client.apply(&pods).await.unwrap();
    let mut replica = start(server, "nodes", &[("CA_TRUSTED_NODE_ACCOUNTS", "nodes/ztunnel")]);
    let address = replica.secure().unwrap();
    let root = part(&client.get(["v1", "Secret", "nodes", "istio-ca-secret"]).await.unwrap().unwrap(), "ca-cert.pem");
    let channel = agent::connect(address, &root, None).await.unwrap();
    let token = async |account: &str, name: Option<&str>| {
        let uid = match name {
            Some(name) => client.get(["v1", "Pod", "nodes", name]).await.unwrap().unwrap()["metadata"]["uid"].clone(),
            None => Value::Null,
        };
        let bound = name.map(|name| (name, uid.as_str().unwrap()));
        client.token_of("nodes", account, "istio-ca", bound).await.unwrap()
    };
    let ask = async |token: &str, account: &str, cluster: Option<&'static str>| {
        let (csr, _) = signing_request_of(&[]).unwrap();
        let wanted = if account.contains("//") { account.to_owned() } else { spiffe("nodes", account) };
        let mut request = with_token(asking(&csr, 60, &[("ImpersonatedIdentity", &wanted)]), token);
        if let Some(cluster) = cluster {
            request.metadata_mut().insert("clusterid", cluster.parse().unwrap());
        }
        let chain = agent::create(&channel, request).await?;
        Ok::<_, Status>(Certificate::all_from_pem(chain[0].as_bytes()).unwrap().remove(0).uris())
    };
    let ztunnel = token("ztunnel", Some("ztunnel-a")).await;
    let cluster = Some("Kubernetes");
    assert_eq!(ask(&ztunnel, "here", cluster).await.unwrap(), [spiffe("nodes", "here")]);
    let (unbound, untrusted) = (token("ztunnel", None).await, token("untrusted", Some("untrusted-a")).await);
    for (token, account, cluster, why) in [
        (&ztunnel, "away", cluster, "it runs on another node"),
        (&ztunnel, "here", None, "no cluster is named"),
        (&ztunnel, "here", Some("other"), "another cluster"),
        (&ztunnel, "spiffe://foreign/ns/nodes/sa/here", cluster, "another trust domain"),
        (&unbound, "here", cluster, "the token is bound to no pod"),
        (&untrusted, "here", cluster, "not a node proxy"),
    ] {
        let refused = ask(token, account, cluster).await.expect_err(why);
        // With a cluster that nobody knows, the token is nobody's.
        let text = if why == "another cluster" {
            "request authenticate failure"
        } else {
            "request impersonation authentication failure"
        };
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, text), "{why}");
    }
    // The last pod of the account is gone, and with it the right.
    client.delete(["v1", "Pod", "nodes", "here"]).await.unwrap();
    let refused = || async {
        ensure!(ask(&ztunnel, "here", cluster).await.is_err(), "still issued");
        Ok(())
    };
    eventually("certificates end with the pod", PATIENCE, refused).await.unwrap();
}

/// `live/ca/restart-and-rotation.json`: the same key, another certificate, for all replicas and in all namespaces.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_root_is_renewed_for_all_replicas() {
    let server = server().await;
    let client = server.client().await.unwrap();
    client.apply(&[namespace("renewed"), account("renewed", "shop")]).await.unwrap();
    let environment = [
        ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "2s"),
        ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "100"),
        ("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "false"),
    ];
    let mut replicas = [start(server, "renewed", &environment), start(server, "renewed", &environment)];
    for replica in &mut replicas {
        replica.secure().unwrap();
    }
    let place = ["v1", "Secret", "renewed", "istio-ca-secret"];
    let read = || async { client.get(place).await.unwrap().context("no secret") };
    let first = eventually("the secret", PATIENCE, read).await.unwrap();
    let renewed = || async {
        let now = read().await?;
        ensure!(part(&now, "ca-cert.pem") != part(&first, "ca-cert.pem"), "not renewed yet");
        Ok(now)
    };
    let now = eventually("another certificate", PATIENCE, renewed).await.unwrap();
    for kept in ["ca-key.pem", "root-cert.pem"] {
        assert_eq!(part(&now, kept), part(&first, kept), "{kept} stays");
    }
    // It is renewed over and over: what each replica issues leads to the certificate of some moment after the first.
    let token = client.token("renewed", "shop", "istio-ca").await.unwrap();
    for replica in &mut replicas {
        let address = replica.secure().unwrap();
        let later = || async {
            let channel = agent::connect(address, &part(&now, "ca-cert.pem"), None).await?;
            let root = ask(&channel, &token, &[], &[]).await?.root_pem;
            ensure!(root != part(&first, "ca-cert.pem"), "still the first");
            Ok(())
        };
        eventually("the replica has it", PATIENCE, later).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_are_in_a_cluster_trust_bundle_by_flag() {
    let server = server().await;
    let client = server.client().await.unwrap();
    client.apply(&[namespace("bundled")]).await.unwrap();
    let environment = [("ENABLE_CLUSTER_TRUST_BUNDLE_API", "true"), ("USE_CACERTS_FOR_SELF_SIGNED_CA", "true")];
    let mut first = start(server, "bundled", &environment);
    first.line("certificate authority: self-signed, kept in secret bundled/cacerts").unwrap();
    first.secure().unwrap();
    // The key is where operators plug one in, and says that it is none of theirs.
    let made = client.get(["v1", "Secret", "bundled", "cacerts"]).await.unwrap().unwrap();
    assert_eq!(made["data"]["istio-generated"], "");
    assert_eq!(client.get(["v1", "Secret", "bundled", "istio-ca-secret"]).await.unwrap(), None);
    let root = part(&made, "ca-cert.pem");
    let place = ["certificates.k8s.io/v1beta1", "ClusterTrustBundle", "", "istio.io:istiod-ca:root-cert"];
    let is_there = || async {
        let found = client.get(place).await?.context("there is none")?;
        ensure!(found["spec"]["trustBundle"] == root.as_str(), "{}", found["spec"]);
        ensure!(found["spec"]["signerName"] == "istio.io/istiod-ca", "{}", found["spec"]);
        Ok(())
    };
    eventually("the bundle", PATIENCE, is_there).await.unwrap();
    // It comes back, and is put right.
    let forged = self_signed_root("Forged", YEAR, &SigningKey::generate_p256().unwrap(), SystemTime::now()).unwrap();
    client.merge(place, &json!({"spec": {"trustBundle": forged.to_pem()}})).await.unwrap();
    eventually("the right one", PATIENCE, is_there).await.unwrap();
    client.delete(place).await.unwrap();
    eventually("it again", PATIENCE, is_there).await.unwrap();
    // The control planes of the other tests write into all namespaces.
    let map = client.get(["v1", "ConfigMap", "bundled", "istio-ca-root-cert"]).await.unwrap();
    assert!(map.is_none_or(|map| map["data"]["root-cert.pem"] != root.as_str()), "not both");
    // Another replica finds the same key; one without the flag prefers the old place, and makes that.
    let mut second = start(server, "bundled", &environment);
    agent::connect(second.secure().unwrap(), &root, None).await.unwrap();
    let unchanged = client.get(["v1", "Secret", "bundled", "cacerts"]).await.unwrap().unwrap();
    assert_eq!(unchanged["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
}
