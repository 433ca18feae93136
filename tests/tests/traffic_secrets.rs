//! Real traffic through a gateway whose certificates come from the control plane, over TLS with a token: rotated while clients
//! ask, without a failed request.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use trysail_tests::eventually;
use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::PATIENCE;
use trysail_tests::objects::{App, gateway_pod, pod, port};
use trysail_tests::tls::Outside;
use trysail_tests::workload::{Call, Session};

#[path = "support/traffic.rs"]
mod traffic;

use traffic::{Setting, Traffic, app};

const INGRESS: App<'_> = App {
    name: "ingress",
    namespace: "edge",
    ip: "10.96.7.1",
    ports: &[port("https", 443, 8443)],
    pods: &[gateway_pod("ingress", "10.244.7.1", "")],
};

/// Beside it, with another account: it may not read the secrets of its namespace.
const OTHER: App<'_> = App {
    name: "other",
    namespace: "edge",
    ip: "10.96.7.2",
    ports: &[port("https", 443, 8443)],
    pods: &[gateway_pod("other", "10.244.7.2", "")],
};

const WEB: App<'_> = app("web", "10.96.7.3", &[pod("web", "10.244.7.11", "version: v1")]);

const RULES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: sds, namespace: edge}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: sds, namespace: edge}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: sds}
subjects:
- {kind: ServiceAccount, name: ingress, namespace: edge}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: edge}
spec:
  selector: {app: ingress}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [one.example]
    tls: {mode: SIMPLE, credentialName: one}
  - port: {number: 443, name: https-mutual, protocol: HTTPS}
    hosts: [two.example]
    tls: {mode: MUTUAL, credentialName: two}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: refused, namespace: edge}
spec:
  selector: {app: other}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [one.example]
    tls: {mode: SIMPLE, credentialName: one}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [one.example, two.example]
  gateways: [edge/public, edge/refused]
  http:
  - route: [{destination: {host: web.shop.svc.cluster.local, port: {number: 80}}}]
"#;

const INGRESS_AT: &str = "10.244.7.1:8443";
const OTHER_AT: &str = "10.244.7.2:8443";
/// Requests of each of four clients, at least.
const REQUESTS: usize = 1500;
const ROTATIONS: usize = 40;
/// Requests on one connection.
const KEPT: usize = 20;

/// Puts another certificate, with another key, into the secret of a host; the certificate. Beside that of the second host
/// stands the root that its clients have to be of.
fn rotate(folder: &Path, outside: &Outside, host: &str, n: usize) -> Vec<u8> {
    let stem = format!("{host}-{n}");
    let certificate = outside.issue(&stem, &[&format!("{host}.example")]).unwrap();
    let read = |name: &str| std::fs::read_to_string(outside.file(name)).unwrap();
    let data = json!({"tls.crt": read(&format!("{stem}.pem")), "tls.key": read(&format!("{stem}-key.pem")), "ca.crt": read("ca.pem")});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "edge", "name": host}, "stringData": data});
    let fresh = folder.join(format!(".{host}.new"));
    std::fs::write(&fresh, secret.to_string()).unwrap();
    std::fs::rename(fresh, folder.join(format!("secret-{host}.yaml"))).unwrap();
    certificate
}

struct Load<'t> {
    t: &'t Traffic,
    outside: &'t Outside,
    rotated: AtomicBool,
    n_requests: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Load<'_> {
    async fn client(&self, host: &str) {
        while !self.rotated.load(Ordering::Relaxed) || self.n_requests.load(Ordering::Relaxed) < 4 * REQUESTS {
            if let Err(error) = self.connection(host).await {
                self.wrong.lock().unwrap().push(format!("{host}: {error:#}"));
                if self.wrong.lock().unwrap().len() > 20 {
                    return;
                }
            }
        }
    }

    async fn connection(&self, host: &str) -> anyhow::Result<()> {
        let call = Call { to: INGRESS_AT.parse()?, host, method: "GET", path: "/", headers: &[] };
        let config = if host == "two.example" { self.outside.client_with_certificate() } else { self.outside.client() };
        let mut session = Session::open(self.t.mesh.pod("stranger").netns(), call.to, Some((host, config))).await?;
        for _ in 0..KEPT {
            let reply = session.send(&call).await?;
            anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
            self.n_requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn rotations(&self) -> [Vec<u8>; 2] {
        let mut last = [Vec::new(), Vec::new()];
        for n in 1..=ROTATIONS {
            let (host, place) = if n % 2 == 0 { ("one", 0) } else { ("two", 1) };
            last[place] = rotate(self.t.mesh.folder(), self.outside, host, n);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.rotated.store(true, Ordering::Relaxed);
        last
    }
}

/// The certificate that a stranger is shown.
async fn shown(t: &Traffic, outside: &Outside, at: &str, host: &str) -> anyhow::Result<Vec<u8>> {
    let from = t.mesh.pod("stranger").netns();
    let session = Session::open(from, at.parse()?, Some((host, outside.client_with_certificate()))).await?;
    Ok(session.certificate().unwrap_or_default().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_under_load() {
    let certificates = tempfile::tempdir().unwrap();
    let outside = Outside::new(certificates.path(), &["unused.example"]).unwrap();
    let stranger = PodSpec { sidecar: false, ..PodSpec::outside("stranger", Ipv4Addr::new(10, 244, 9, 7)) };
    let setting = Setting { outside: vec![stranger], tls: Some(outside.clone()), secure: true, ..Setting::default() };
    let yaml = format!("{INGRESS}{OTHER}{WEB}{RULES}");
    let Some(mut t) = Traffic::start("certificates_are_rotated_under_load", &yaml, setting).await else { return };
    for host in ["one", "two"] {
        rotate(t.mesh.folder(), &outside, host, 0);
    }
    for host in ["one.example", "two.example"] {
        eventually("the gateway serves", PATIENCE, || async { shown(&t, &outside, INGRESS_AT, host).await.map(drop) })
            .await
            .unwrap();
    }

    let (rotated, n_requests, wrong) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
    let load = Load { t: &t, outside: &outside, rotated, n_requests, wrong };
    let clients = || async {
        tokio::join!(
            load.client("one.example"),
            load.client("two.example"),
            load.client("one.example"),
            load.client("two.example")
        )
    };
    let (last, _) = tokio::join!(load.rotations(), clients());
    let (n, wrong) = (load.n_requests.into_inner(), load.wrong.into_inner().unwrap());
    for (host, last) in ["one.example", "two.example"].into_iter().zip(last) {
        let newest = || async {
            anyhow::ensure!(shown(&t, &outside, INGRESS_AT, host).await? == last, "an older certificate");
            Ok(())
        };
        let newest = eventually("the last certificate is shown", PATIENCE, newest).await;
        t.check(&format!("{host}: the last certificate is shown"), newest.is_ok(), &newest);
    }
    t.check("so many requests", n >= 4 * REQUESTS, &n);
    t.check("none failed", wrong.is_empty(), &wrong);
    // The same namespace, the same name, another account: nothing.
    let refused = shown(&t, &outside, OTHER_AT, "one.example").await;
    t.check("who may not read secrets has no certificate to show", refused.is_err(), &refused.is_ok());
    t.finish(5).await;
}
