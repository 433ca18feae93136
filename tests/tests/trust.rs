//! Whom the mesh trusts, while it changes: trust domains, roots that proxies are told, keys that an operator replaces under load.
//! The program itself, over TLS.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/secure.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use support::{CLUSTER, PATIENCE, Server, Stream, ask, node, write};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use trysail_ca::x509::Certificate;
use trysail_proto::envoy::service::discovery::v3::DiscoveryResponse;
use trysail_proto::prost::Message;
use trysail_tests::agent::{self, Certified, Issuer};
use trysail_tests::eventually;

const PROXY_CONFIG: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

fn mesh(server: &Server, mesh: &serde_json::Value) {
    write(&server.folder.path().join("config"), "mesh.yaml", &mesh.to_string());
}

/// A certificate for `shop/reviews`, and the URI in it.
async fn certify(channel: &Channel, token: &str) -> anyhow::Result<(Certified, String)> {
    let certified = agent::certify(channel, token).await?;
    let leaf = Certificate::all_from_pem(certified.chain_pem.as_bytes())?.remove(0);
    Ok((certified, leaf.uris().remove(0)))
}

/// Does a certificate of ours prove anything on a new connection?
async fn proves(server: &Server, own: &Certified) -> anyhow::Result<()> {
    let channel = agent::connect(server.secure, &own.root_pem, Some(own)).await?;
    let request = ask(node("sidecar", "shop", Some("reviews")), CLUSTER, &[]);
    Stream::open(&channel, None, request).await?.next().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_domain_gets_another_name_while_we_serve() {
    let issuer = Issuer::new().unwrap();
    let server = support::start(&issuer, &[], &[], "");
    let channel = server.channel().await;
    let token = issuer.token("shop", "reviews").unwrap();
    let (before, uri) = certify(&channel, &token).await.unwrap();
    assert_eq!(uri, "spiffe://cluster.local/ns/shop/sa/reviews");
    let request = ask(node("sidecar", "shop", Some("reviews")), CLUSTER, &[]);
    let mut stream = Stream::open(&channel, Some(&token), request).await.unwrap();
    stream.next().await.unwrap();

    mesh(&server, &json!({"trustDomain": "new.example", "trustDomainAliases": ["cluster.local"]}));
    let renamed = || async {
        let (certified, uri) = certify(&channel, &token).await?;
        ensure!(uri == "spiffe://new.example/ns/shop/sa/reviews", "{uri}");
        Ok(certified)
    };
    let after = eventually("certificates of the new name", PATIENCE, renamed).await.unwrap();
    // Both names are ours now, for those who come anew; nobody was sent away.
    eventually("the new name counts", PATIENCE, || proves(&server, &after)).await.unwrap();
    proves(&server, &before).await.unwrap();
    stream.requests.send(ask(node("sidecar", "shop", Some("reviews")), support::CLUSTER, &[])).await.unwrap();
    stream.next().await.unwrap();

    // Without the alias the old name is nobody's.
    mesh(&server, &json!({"trustDomain": "new.example"}));
    let forgotten = || async {
        ensure!(proves(&server, &before).await.is_err(), "the old name still counts");
        Ok(())
    };
    eventually("the old name is forgotten", PATIENCE, forgotten).await.unwrap();
    proves(&server, &after).await.unwrap();
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "trysail_proto::prost")]
struct ProxyConfig {
    #[prost(string, repeated, tag = "34")]
    ca_certificates_pem: Vec<String>,
}

fn told(response: &DiscoveryResponse) -> Vec<String> {
    assert_eq!((response.type_url.as_str(), response.resources.len()), (PROXY_CONFIG, 1));
    ProxyConfig::decode(&*response.resources[0].value).unwrap().ca_certificates_pem
}

/// An authority of an operator.
struct Root {
    pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, name);
    params
}

impl Root {
    fn new(name: &str) -> Root {
        let (params, key) = (params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Root { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A new intermediate, plugged in at once with these roots, as kubelet does: by a link that is renamed.
    fn plug(&self, folder: &Path, name: &str, roots: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let intermediate = params(name).signed_by(&key, &self.issuer).unwrap().pem();
        let dir = folder.join(format!("keys-{name}-{}", roots.len()));
        std::fs::create_dir_all(&dir).unwrap();
        let chain = format!("{intermediate}{}", self.pem);
        let files = [("ca-cert.pem", &intermediate), ("ca-key.pem", &key.serialize_pem())].map(|(n, t)| (n, t.clone()));
        for (file, text) in files.into_iter().chain([("cert-chain.pem", chain), ("root-cert.pem", roots.to_owned())]) {
            std::fs::write(dir.join(file), text).unwrap();
        }
        let fresh = folder.join("plugged.new");
        symlink(&dir, &fresh).unwrap();
        std::fs::rename(&fresh, folder.join("plugged")).unwrap();
        intermediate
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_told_all_roots_together() {
    let issuer = Issuer::new().unwrap();
    let server = support::start(&issuer, &[("ISTIO_MULTIROOT_MESH", "true")], &[], "");
    let channel = server.channel().await;
    let token = issuer.token("shop", "reviews").unwrap();
    let request = ask(node("sidecar", "shop", Some("reviews")), PROXY_CONFIG, &[]);
    let mut stream = Stream::open(&channel, Some(&token), request).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(told(&first), [server.root()]);
    stream.acknowledge(&first, &[]).await;

    // Of the mesh configuration; what is none is left out and said.
    let (federated, published) = (Root::new("federated"), Root::new("published"));
    let written = json!({"caCertificates": [{"pem": federated.pem}, {"pem": "nonsense"}]});
    mesh(&server, &written);
    let second = stream.next().await.unwrap();
    let mut expected = vec![server.root(), federated.pem.clone()];
    expected.sort();
    assert_eq!(told(&second), expected);
    stream.acknowledge(&second, &[]).await;
    assert!(server.log.lock().unwrap().contains("caCertificates[1].pem: no PEM block"));

    // Of a SPIFFE bundle that somebody publishes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/bundle", listener.local_addr().unwrap());
    let der = pem::parse(&published.pem).unwrap().into_contents();
    let bundle = json!({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)]}]}).to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{bundle}",
                bundle.len()
            );
        }
    });
    mesh(&server, &json!({"caCertificates": [{"pem": federated.pem}, {"spiffeBundleUrl": url}]}));
    let third = stream.next().await.unwrap();
    let written = Certificate::all_from_pem(published.pem.as_bytes()).unwrap().remove(0).to_pem();
    expected.push(written);
    expected.sort();
    assert_eq!(told(&third), expected);

    // A client whose certificate one of them vouches for is let in, since they are of our trust domain.
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![rcgen::SanType::URI("spiffe://cluster.local/ns/shop/sa/reviews".try_into().unwrap())];
    let chain_pem = leaf.signed_by(&key, &federated.issuer).unwrap().pem();
    let federated = Certified { chain_pem, key_pem: key.serialize_pem(), root_pem: server.root() };
    eventually("a federated root counts", PATIENCE, || proves(&server, &federated)).await.unwrap();
}

const N_CLIENTS: usize = 4;

/// Clients that get certificates one after the other, verify them by the roots that came with them, and prove themselves.
struct Load {
    stop: Arc<AtomicBool>,
    /// By client.
    issued: Arc<[AtomicUsize; N_CLIENTS]>,
    clients: Vec<JoinHandle<anyhow::Result<Certified>>>,
}

impl Load {
    fn start(server: &Arc<Server>, token: &str, root: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let issued: Arc<[AtomicUsize; N_CLIENTS]> = Arc::default();
        let client = |n: usize| {
            let (server, token, root, stop) = (server.clone(), token.to_owned(), root.to_owned(), stop.clone());
            let issued = issued.clone();
            tokio::spawn(async move {
                let mut own: Option<Certified> = None;
                let mut roots = root;
                loop {
                    // As an agent: the roots that it was told last, and its certificate to renew by.
                    let channel = agent::connect(server.secure, &roots, own.as_ref()).await.context("no connection")?;
                    let (csr, key_pem) = agent::signing_request()?;
                    let request = match &own {
                        Some(_) => tonic::Request::new(agent::asking(&csr, 3600, &[])),
                        None => agent::with_token(agent::asking(&csr, 3600, &[]), &token),
                    };
                    let chain = agent::create(&channel, request).await.context("no certificate")?;
                    let all: Vec<Certificate> = chain
                        .iter()
                        .map(|pem| Ok(Certificate::all_from_pem(pem.as_bytes())?.remove(0)))
                        .collect::<anyhow::Result<_>>()?;
                    let (told, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(Certificate::is_self_issued);
                    roots = told.iter().map(Certificate::to_pem).collect();
                    verify(&rest, &told).context("the chain leads to no root")?;
                    let chain_pem = rest.iter().map(Certificate::to_pem).collect();
                    let fresh = Certified { chain_pem, key_pem, root_pem: roots.clone() };
                    issued[n].fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        return Ok(fresh);
                    }
                    own = Some(fresh);
                }
            })
        };
        let clients = (0..N_CLIENTS).map(client).collect();
        Load { stop, issued, clients }
    }

    /// Waits until every client has got some more certificates, or failed.
    async fn goes_on(&self) {
        let counts = || self.issued.iter().map(|n| n.load(Ordering::Relaxed));
        let before: Vec<usize> = counts().collect();
        let more = || async {
            let all = counts().zip(&before).all(|(now, before)| now >= before + 3);
            ensure!(all || self.clients.iter().any(JoinHandle::is_finished), "{before:?}, and no more");
            Ok(())
        };
        eventually("certificates are issued", PATIENCE, more).await.unwrap();
    }

    /// Not one request failed; the last certificate of each.
    async fn end(self) -> Vec<Certified> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            all.push(client.await.unwrap().unwrap_or_else(|error| panic!("a request failed: {error:#}")));
        }
        all
    }
}

/// Another implementation's verdict.
fn verify(chain: &[Certificate], roots: &[Certificate]) -> anyhow::Result<()> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.der.clone()))?;
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider).build()?;
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|one| CertificateDer::from(one.der.clone())).collect();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now())?;
    Ok(())
}

/// Waits until what is issued leads over an intermediate to these roots.
async fn in_force(server: &Server, token: &str, trusted: &str, intermediate: &str, roots: &str) {
    let look = || async {
        let channel = agent::connect(server.secure, trusted, None).await?;
        let (csr, _) = agent::signing_request()?;
        let chain = agent::create(&channel, agent::with_token(agent::asking(&csr, 60, &[]), token)).await?;
        let parse = |text: &str| Certificate::all_from_pem(text.as_bytes()).unwrap();
        ensure!(parse(&chain[1]) == parse(intermediate), "another intermediate");
        let tail: Vec<Certificate> =
            chain.iter().flat_map(|pem| parse(pem)).filter(Certificate::is_self_issued).collect();
        ensure!(parse(roots).iter().all(|root| tail.contains(root)), "other roots");
        Ok(())
    };
    eventually("the new key is in force", PATIENCE, look).await.unwrap();
}

fn plugged(folder: &tempfile::TempDir, root: &Root, roots: &str) -> (Arc<Server>, Issuer) {
    let issuer = Issuer::new().unwrap();
    root.plug(folder.path(), "first", roots);
    let dir = folder.path().join("plugged").display().to_string();
    let environment =
        [("ROOT_CA_DIR", dir.as_str()), ("ISTIO_MULTIROOT_MESH", "true"), ("TRYSAIL_CA_REQUESTS_PER_SECOND", "0")];
    (Arc::new(support::start(&issuer, &environment, &[], "")), issuer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intermediate_is_replaced_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new("root");
    let (server, issuer) = plugged(&folder, &root, &root.pem);
    let token = issuer.token("shop", "reviews").unwrap();
    let channel = agent::connect(server.secure, &root.pem, None).await.unwrap();
    let request = ask(node("sidecar", "shop", Some("reviews")), CLUSTER, &[]);
    let mut stream = Stream::open(&channel, Some(&token), request.clone()).await.unwrap();
    stream.next().await.unwrap();
    let load = Load::start(&server, &token, &root.pem);
    for name in ["second", "third"] {
        load.goes_on().await;
        let intermediate = root.plug(folder.path(), name, &root.pem);
        in_force(&server, &token, &root.pem, &intermediate, &root.pem).await;
    }
    load.goes_on().await;
    load.end().await;
    // Our own certificate was replaced, too; a stream from before does not notice.
    stream.requests.send(request).await.unwrap();
    stream.next().await.unwrap();
}

/// A revocation list that is plugged in counts without a restart, for those that it names.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new("root");
    // The root itself signs, so that its list is about what we issue.
    let dir = folder.path().join("plugged");
    std::fs::create_dir(&dir).unwrap();
    let key = root.issuer.key().serialize_pem();
    for (file, text) in
        [("ca-cert.pem", &root.pem), ("cert-chain.pem", &root.pem), ("root-cert.pem", &root.pem), ("ca-key.pem", &key)]
    {
        std::fs::write(dir.join(file), text).unwrap();
    }
    let issuer = Issuer::new().unwrap();
    let server = support::start(&issuer, &[("ROOT_CA_DIR", &dir.display().to_string())], &[], "");
    let channel = agent::connect(server.secure, &root.pem, None).await.unwrap();
    let token = issuer.token("shop", "reviews").unwrap();
    let (bad, _) = certify(&channel, &token).await.unwrap();
    let (good, _) = certify(&channel, &token).await.unwrap();
    for own in [&bad, &good] {
        proves(&server, own).await.unwrap();
    }
    let leaf = Certificate::all_from_pem(bad.chain_pem.as_bytes()).unwrap().remove(0);
    let serial = leaf.parsed.tbs_certificate.serial_number.as_bytes().to_vec();
    let time = |year| rcgen::date_time_ymd(year, 1, 1);
    let revoked = rcgen::RevokedCertParams {
        serial_number: rcgen::SerialNumber::from(serial),
        revocation_time: time(2025),
        reason_code: None,
        invalidity_date: None,
    };
    let list = rcgen::CertificateRevocationListParams {
        this_update: time(2025),
        next_update: time(2090),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root.issuer).unwrap().pem().unwrap();
    write(&dir, "ca-crl.pem", &list);
    let refused = || async {
        ensure!(proves(&server, &bad).await.is_err(), "still let in");
        Ok(())
    };
    eventually("the revoked certificate is refused", PATIENCE, refused).await.unwrap();
    proves(&server, &good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_under_load_with_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Root::new("old"), Root::new("new"));
    let (server, issuer) = plugged(&folder, &old, &old.pem);
    let token = issuer.token("shop", "reviews").unwrap();
    let load = Load::start(&server, &token, &old.pem);
    load.goes_on().await;
    // Proxies hear of the new root before anything is signed by it; then that signs; then the old one goes.
    let both = format!("{}{}", old.pem, new.pem);
    let intermediate = old.plug(folder.path(), "overlapping", &both);
    in_force(&server, &token, &both, &intermediate, &both).await;
    load.goes_on().await;
    let intermediate = new.plug(folder.path(), "signing", &both);
    in_force(&server, &token, &both, &intermediate, &both).await;
    load.goes_on().await;
    let intermediate = new.plug(folder.path(), "alone", &new.pem);
    in_force(&server, &token, &new.pem, &intermediate, &new.pem).await;
    load.goes_on().await;
    for last in load.end().await {
        proves(&server, &last).await.unwrap();
    }
}
