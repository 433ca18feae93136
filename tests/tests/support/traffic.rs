//! What the suites of real traffic share: a mesh of one YAML text, and checks with names.

#![allow(dead_code, reason = "not every suite asks in every way")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use trysail_tests::bootstrap::Variant;
use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::{Config, Mesh};
use trysail_tests::netns::{self, Interception};
use trysail_tests::objects::{App, AppPod, ServicePort, port};
use trysail_tests::tls::Outside;
use trysail_tests::workload::{Call, Reply};

/// HTTP on port 80.
pub const HTTP: &[ServicePort<'_>] = &[port("http", 80, 8080)];

/// HTTP on port 80, lines of TCP on port 9000.
pub const HTTP_AND_LINES: &[ServicePort<'_>] = &[port("http", 80, 8080), port("tcp-lines", 9000, 9000)];

/// Subsets of the service `web` by the label `version`.
pub const VERSIONS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
";

/// An app of the namespace `shop` that speaks HTTP on port 80.
pub const fn app<'a>(name: &'a str, ip: &'a str, pods: &'a [AppPod<'a>]) -> App<'a> {
    App { name, namespace: "shop", ip, ports: HTTP, pods }
}

/// What a suite needs besides YAML.
#[derive(Default)]
pub struct Setting {
    /// Variant of xDS.
    pub variant: Variant,
    /// Environment of the control plane.
    pub environment: &'static [(&'static str, &'static str)],
    /// Pods that the mesh does not know.
    pub outside: Vec<PodSpec>,
    /// Names that the sidecars' resolver knows.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// Certificates of workloads that speak TLS themselves.
    pub tls: Option<Outside>,
    /// Sidecars and gateways come over TLS with a token, and have certificates of the control plane.
    pub secure: bool,
    /// Sidecars take inbound connections as they come, without a change of addresses.
    pub transparent: bool,
}

/// A running mesh, and what was found out in it.
pub struct Traffic {
    /// The mesh.
    pub mesh: Mesh,
    n_checks: usize,
    wrong: Vec<String>,
    folder: tempfile::TempDir,
}

impl Traffic {
    /// Brings up a mesh of this YAML; none where there is no redirection here, with a word of why.
    pub async fn start(test: &str, yaml: &str, setting: Setting) -> Option<Traffic> {
        if netns::or_skip(test)? != Interception::Redirect {
            eprintln!("{test}: skipped: traffic cannot be redirected to sidecars here");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), "{}\n").unwrap();
        for (i, document) in yaml.split("\n---\n").filter(|document| !document.trim().is_empty()).enumerate() {
            let name = if document.contains("kind: MeshConfig") { "mesh.yaml".into() } else { format!("{i:03}.yaml") };
            let document = document.replace("kind: MeshConfig\n", "");
            std::fs::write(folder.path().join(name), document).unwrap();
        }
        let interception = if setting.transparent { Interception::Tproxy } else { Interception::Redirect };
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let config = Config {
            outside: setting.outside,
            variant: setting.variant,
            environment: setting.environment.iter().map(own).collect(),
            names: setting.names,
            tls: setting.tls,
            secure: setting.secure,
            ..Config::new(folder.path().to_owned(), interception)
        };
        let mesh = Mesh::start(config).await.expect("the mesh comes up");
        let refused: Vec<String> =
            mesh.control_plane().lines().into_iter().filter(|line| line.contains("refused:")).collect();
        assert!(refused.is_empty(), "{}", refused.join("\n"));
        Some(Traffic { mesh, n_checks: 0, wrong: Vec::new(), folder })
    }

    /// A GET from a pod.
    pub async fn get(&self, from: &str, to: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.request("GET", from, to, host, path, headers).await
    }

    /// A request from a pod to an address. A connection that is refused or reset is an answer with status 0.
    pub async fn request(
        &self,
        method: &str,
        from: &str,
        to: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        let call = Call { to: to.parse().expect("an address"), host, method, path, headers };
        self.mesh.call(from, call).await.unwrap_or_else(|error| Reply {
            status: 0,
            headers: BTreeMap::new(),
            body: format!("{error:#}"),
            who: serde_json::Value::Null,
        })
    }

    /// Bytes from a pod, and what came back; empty when the connection was refused or reset.
    pub async fn send(&self, from: &str, to: &str, bytes: &str) -> String {
        let to: SocketAddr = to.parse().expect("an address");
        self.mesh.send(from, to, bytes.as_bytes()).await.unwrap_or_default()
    }

    /// Which of the workloads answered so many times, by what they say under the key.
    pub async fn answers(
        &self,
        n: usize,
        key: &str,
        from: &str,
        to: &str,
        host: &str,
        headers: &[(&str, &str)],
    ) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        for _ in 0..n {
            let reply = self.get(from, to, host, "/", headers).await;
            let who = if reply.who.is_null() { reply.status.to_string() } else { reply.said(key).to_owned() };
            *seen.entry(who).or_default() += 1;
        }
        seen
    }

    /// Edits the one document that holds `whose`, as an editor would: a new file takes the old one's place.
    pub fn edit(&self, whose: &str, old: &str, new: &str) {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut holding = files.filter_map(|file| Some((std::fs::read_to_string(&file).ok()?, file)));
        let (text, file) = holding.find(|(text, _)| text.contains(whose)).expect("the document is there");
        assert!(text.contains(old), "{whose} does not hold {old:?}");
        let unfinished = self.folder.path().join(".edit.tmp");
        std::fs::write(&unfinished, text.replace(old, new)).unwrap();
        std::fs::rename(unfinished, file).unwrap();
    }

    /// A named assertion; the rest goes on, so that one run tells all.
    pub fn check(&mut self, name: &str, holds: bool, found: &dyn std::fmt::Debug) {
        self.n_checks += 1;
        if holds {
            println!("ok: {name}");
        } else {
            self.wrong.push(format!("{name}: found {found:?}"));
        }
    }

    /// A named assertion of equality.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, found: T, wanted: T) {
        let holds = found == wanted;
        self.check(name, holds, &found);
    }

    /// Ends the suite: every check held, and Envoy accepted all that it was sent.
    pub async fn finish(self, at_least: usize) {
        let Traffic { mesh, n_checks, mut wrong, folder: _folder } = self;
        let rejections = mesh.rejections().await.unwrap();
        wrong.extend(rejections.into_iter().map(|rejection| format!("rejected: {rejection}")));
        assert!(wrong.is_empty(), "{}\ncontrol plane:\n{}", wrong.join("\n"), mesh.control_plane().lines().join("\n"));
        println!("{n_checks} checks");
        assert!(n_checks >= at_least, "only {n_checks} checks ran");
    }
}
