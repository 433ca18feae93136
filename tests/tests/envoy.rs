//! Real Envoys take what the control plane sends and pass traffic by it.
//!
//! Each test has a mesh of its own in network namespaces of its own, so they run side by side. They need root; without it they
//! say that they were skipped.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use trysail_tests::bootstrap::Variant;
use trysail_tests::control_plane::ControlPlane;
use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::{Config, Mesh, PATIENCE};
use trysail_tests::workload::{DELAY, Reply, STATUS};
use trysail_tests::{eventually, netns, sds, workspace};

#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

/// Brings up a mesh on a copy of a folder, with a client that stands outside of it.
async fn start(test: &str, folder: &Folder, variant: Variant, client: PodSpec) -> Option<Mesh> {
    start_with(test, folder, variant, client, false).await
}

/// The same; with `secure` sidecars come over TLS and have certificates of the control plane.
async fn start_with(test: &str, folder: &Folder, variant: Variant, client: PodSpec, secure: bool) -> Option<Mesh> {
    let plain = Config::new(folder.path().to_owned(), netns::or_skip(test)?);
    let config = Config { outside: vec![client], variant, secure, ..plain };
    Some(Mesh::start(config).await.expect("the mesh comes up"))
}

/// Ends a test: Envoy must have accepted all that it was sent.
async fn finish(mesh: Mesh) {
    let rejections = mesh.rejections().await.unwrap();
    assert!(rejections.is_empty(), "{rejections:#?}\ncontrol plane:\n{}", printed(mesh.control_plane()));
}

fn printed(control_plane: &ControlPlane) -> String {
    control_plane.lines().join("\n")
}

fn client(namespace: &str) -> PodSpec {
    PodSpec { namespace: namespace.into(), ..PodSpec::outside("client", Ipv4Addr::new(10, 244, 0, 10)) }
}

fn from(version: &str) -> impl Fn(&Reply) -> bool {
    move |reply| reply.status == 200 && reply.said("version") == version
}

/// Which versions answered so many calls.
async fn versions(mesh: &Mesh, n_calls: usize) -> BTreeMap<String, usize> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..n_calls {
        let reply = mesh.get("page-v1", "reviews", "/", &[]).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        *seen.entry(reply.said("version").to_owned()).or_default() += 1;
    }
    seen
}

async fn example(test: &str, variant: Variant) {
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    let Some(mesh) = start(test, &folder, variant, client("default")).await else { return };

    let reply = mesh.until("client", "frontend", "v1 answers", from("v1")).await.unwrap();
    assert_eq!(reply.said("app"), "backend", "the route of frontend leads to the backend");

    // Mutual TLS: the server's sidecar names whose certificate the client showed, and its own.
    let certificates = reply.sent("x-forwarded-client-cert");
    for name in [sds::spiffe("default", "client"), sds::spiffe("default", "backend")] {
        assert!(certificates.contains(&name), "{certificates}");
    }

    folder.edit("frontend-vs.yaml", "subset: v1", "subset: v2");
    mesh.until("client", "frontend", "v2 answers after the edit", from("v2")).await.unwrap();

    // A subset that vanishes while a route leads to it.
    folder.edit("backend-dr.yaml", "name: v2", "name: v9");
    mesh.until("client", "frontend", "no cluster for the route", |reply| reply.status == 503).await.unwrap();
    let direct = mesh.get("client", "backend", "/", &[]).await.unwrap();
    assert_eq!(direct.status, 200, "other routes go on");
    folder.edit("backend-dr.yaml", "name: v9", "name: v2");
    mesh.until("client", "frontend", "the subset is back", from("v2")).await.unwrap();

    // The only endpoint of a subset goes and comes back.
    let ready = "  - 10.244.0.13\n  conditions:\n    ready: true";
    let not_ready = "  - 10.244.0.13\n  conditions:\n    ready: false";
    folder.edit("backend.yaml", ready, not_ready);
    mesh.until("client", "frontend", "no endpoint", |reply| reply.status == 503).await.unwrap();
    folder.edit("backend.yaml", not_ready, ready);
    mesh.until("client", "frontend", "the endpoint is back", from("v2")).await.unwrap();

    // Something that is no YAML changes nothing, and is reported.
    let good = folder.read("frontend-vs.yaml");
    folder.write("frontend-vs.yaml", &good.replace("spec:", "spec: ["));
    let said = || async {
        let text = printed(mesh.control_plane());
        anyhow::ensure!(text.contains("frontend-vs.yaml"), "nothing was said of the file:\n{text}");
        Ok(())
    };
    eventually("a report of the broken file", PATIENCE, said).await.unwrap();
    let reply = mesh.get("client", "frontend", "/", &[]).await.unwrap();
    assert!(from("v2")(&reply), "{} {}", reply.status, reply.body);
    folder.write("frontend-vs.yaml", &good.replace("subset: v2", "subset: v1"));
    mesh.until("client", "frontend", "v1 answers again", from("v1")).await.unwrap();
    finish(mesh).await;
}

/// Envoys that come over TLS with a token speak mutual TLS, and nothing else, by certificates that the control plane issued.
#[tokio::test(flavor = "multi_thread")]
async fn strict_mutual_tls_with_certificates_of_our_own() {
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    folder.write(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n",
    );
    let test = "strict_mutual_tls_with_certificates_of_our_own";
    let Some(mesh) = start_with(test, &folder, Variant::Delta, client("default"), true).await else { return };
    let reply = mesh.until("client", "frontend", "v1 answers", from("v1")).await.unwrap();
    let certificates = reply.sent("x-forwarded-client-cert");
    for name in [sds::spiffe("default", "client"), sds::spiffe("default", "backend")] {
        assert!(certificates.contains(&name), "{certificates}");
    }
    finish(mesh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn example_mesh_by_delta() {
    example("example_mesh_by_delta", Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn example_mesh_by_state_of_the_world() {
    example("example_mesh_by_state_of_the_world", Variant::Sotw).await;
}

/// A VirtualService of `reviews` with these routes.
fn reviews(http: &str) -> String {
    let indented: String = http.trim().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: books
spec:
  hosts: [reviews]
  http:
{indented}"
    )
}

async fn bookstore(test: &str, variant: Variant) {
    let folder = Folder::copy(&workspace().join("tests/meshes/bookstore"));
    let plain = PodSpec { sidecar: false, ..client("books") };
    let Some(mut mesh) = start(test, &folder, variant, plain).await else { return };

    // Without rules all versions answer, and every pair of sidecars speaks mutual TLS.
    mesh.until("page-v1", "reviews", "an answer", |reply| reply.status == 200).await.unwrap();
    assert_eq!(versions(&mesh, 60).await.len(), 3);
    for (caller, host) in [("page-v1", "details"), ("reviews-v2", "ratings")] {
        let reply = mesh.until(caller, host, "an answer", |reply| reply.status == 200).await.unwrap();
        let account = caller.split('-').next().unwrap();
        assert!(reply.sent("x-forwarded-client-cert").contains(&sds::spiffe("books", account)), "{}", reply.body);
    }

    let to = |subset: &str| format!("route:\n  - destination: {{host: reviews, subset: {subset}}}");
    folder.write("reviews-vs.yaml", &reviews(&format!("- {}", to("v1"))));
    mesh.until("page-v1", "reviews", "v1 only", from("v1")).await.unwrap();
    assert_eq!(versions(&mesh, 20).await, BTreeMap::from([("v1".into(), 20)]));

    // Weights.
    let weights = "- route:
  - destination: {host: reviews, subset: v2}
    weight: 80
  - destination: {host: reviews, subset: v3}
    weight: 20";
    folder.write("reviews-vs.yaml", &reviews(weights));
    mesh.until("page-v1", "reviews", "not v1", |reply| ["v2", "v3"].contains(&reply.said("version"))).await.unwrap();
    let seen = versions(&mesh, 100).await;
    let n_v2 = seen.get("v2").copied().unwrap_or_default();
    assert!(seen.len() == 2 && (60..=95).contains(&n_v2), "80 to 20 gave {seen:?}");

    // A header decides.
    let by_header = format!("- match:\n  - headers:\n      end-user: {{exact: jason}}\n  {}\n- {}", to("v3"), to("v1"));
    folder.write("reviews-vs.yaml", &reviews(&by_header));
    mesh.until("page-v1", "reviews", "v1 for anybody", from("v1")).await.unwrap();
    assert_eq!(versions(&mesh, 10).await, BTreeMap::from([("v1".into(), 10)]));
    let reply = mesh.get("page-v1", "reviews", "/", &[("end-user", "jason")]).await.unwrap();
    assert_eq!(reply.said("version"), "v3");

    // Faults: an abort, then a delay.
    let abort = format!("- fault:\n    abort: {{httpStatus: 418, percentage: {{value: 100}}}}\n  {}", to("v1"));
    folder.write("reviews-vs.yaml", &reviews(&abort));
    mesh.until("page-v1", "reviews", "an abort", |reply| reply.status == 418).await.unwrap();
    let delay = format!("- fault:\n    delay: {{fixedDelay: 400ms, percentage: {{value: 100}}}}\n  {}", to("v1"));
    folder.write("reviews-vs.yaml", &reviews(&delay));
    mesh.until("page-v1", "reviews", "no abort", from("v1")).await.unwrap();
    let began = std::time::Instant::now();
    mesh.get("page-v1", "reviews", "/", &[]).await.unwrap();
    // Envoy's timers are coarse.
    assert!(began.elapsed().as_millis() >= 350, "{:?}", began.elapsed());

    // A timeout, and a server that is slower or faster than it.
    let timeout = format!("- timeout: 500ms\n  {}", to("v1"));
    folder.write("reviews-vs.yaml", &reviews(&timeout));
    let slow = || async {
        let reply = mesh.get("page-v1", "reviews", "/", &[(DELAY, "3000")]).await?;
        anyhow::ensure!(reply.status == 504, "{} {}", reply.status, reply.body);
        Ok(())
    };
    eventually("a timeout", PATIENCE, slow).await.unwrap();
    let reply = mesh.get("page-v1", "reviews", "/", &[(DELAY, "50")]).await.unwrap();
    assert!(from("v1")(&reply), "{} {}", reply.status, reply.body);
    let reply = mesh.get("page-v1", "reviews", "/", &[(STATUS, "404")]).await.unwrap();
    assert_eq!((reply.status, reply.said("version")), (404, "v1"), "the workload's own status comes through");

    // An endpoint is added: a second pod of v1.
    let added = PodSpec {
        name: "reviews-v1-b".into(),
        ip: Ipv4Addr::new(10, 244, 1, 41),
        ..mesh.pod("reviews-v1").spec.clone()
    };
    mesh.add(added).unwrap().ready(PATIENCE).await.unwrap();
    let endpoints = folder.read("reviews-endpoints.yaml");
    folder.write(
        "reviews-v1-b.yaml",
        &folder::pod_like(&folder.read("reviews.yaml"), "reviews-v1", "reviews-v1-b", "10.244.1.31", "10.244.1.41"),
    );
    folder.write("reviews-endpoints.yaml", &format!("{endpoints}{}", ENDPOINT));
    mesh.once("page-v1", "reviews", "the new pod answers", |reply| reply.said("pod") == "reviews-v1-b").await.unwrap();
    // And removed: only the first is left.
    folder.write("reviews-endpoints.yaml", &endpoints);
    mesh.until("page-v1", "reviews", "only the first pod answers", |reply| reply.said("pod") == "reviews-v1")
        .await
        .unwrap();

    // Mutual TLS is permissive at first: a pod without a sidecar may call. Then it is strict.
    mesh.until("client", "details", "plaintext is let in", |reply| reply.status == 200).await.unwrap();
    folder.write("strict.yaml", STRICT);
    let refused = || async {
        let answer = mesh.get("client", "details", "/", &[]).await;
        anyhow::ensure!(answer.is_err(), "plaintext was answered");
        Ok(())
    };
    eventually("plaintext is refused", PATIENCE, refused).await.unwrap();
    mesh.until("page-v1", "details", "mutual TLS goes on", |reply| reply.status == 200).await.unwrap();
    assert!(
        !mesh.pod("details-v1").stats("ssl.handshake").await.unwrap().is_empty(),
        "the server's sidecar counts handshakes"
    );
    finish(mesh).await;
}

const ENDPOINT: &str = "- addresses: [10.244.1.41]
  conditions: {ready: true, serving: true, terminating: false}
  targetRef: {kind: Pod, name: reviews-v1-b, namespace: books}
";

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: books
spec:
  mtls: {mode: STRICT}
";

#[tokio::test(flavor = "multi_thread")]
async fn bookstore_by_delta() {
    bookstore("bookstore_by_delta", Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bookstore_by_state_of_the_world() {
    bookstore("bookstore_by_state_of_the_world", Variant::Sotw).await;
}
