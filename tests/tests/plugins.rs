//! A user's plugin, compiled from `examples/local-rate-limit`, by traffic through real Envoys: loaded, replaced and removed while
//! everything runs, beside one that traps.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::net::Ipv4Addr;
use std::path::Path;

use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::{Config, Mesh, PATIENCE};
use trysail_tests::{eventually, netns, workspace};

#[allow(dead_code, reason = "another suite uses the rest of it")]
#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

/// Requests sent one right after the other: more than a second's allowance, however slow the machine.
const BURST: usize = 12;
/// The header that the plugin puts into refusals, and what a later version of it puts there.
const HEADERS: [&str; 2] = ["x-local-rate-limit", "x-other-rate-limit"];

const LABELLED: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels: {example.trysail.dev/rate-limit: '1'}\n";
const PLAIN: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n";

/// The component of a guest crate.
fn component(package: &str) -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let modules = trysail_guests::compile(&workspace(), &trysail_guests::folder(target), &[package]).unwrap();
    trysail_guests::encode(&trysail_guests::module(&modules, package)).unwrap()
}

/// Another version of a component: a text in it replaced by one of the same length.
fn other_version(component: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = component.to_vec();
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, at)| *at == from.as_bytes()).map(|(i, _)| i).collect();
    assert!(!places.is_empty(), "{from:?} is in it");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

/// Puts a file in place whole, as an operator should.
fn put(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join("fresh"), bytes).unwrap();
    std::fs::rename(folder.join("fresh"), folder.join(name)).unwrap();
}

/// How many of a burst of calls were refused, each with the header. All others must be good.
async fn refused(mesh: &Mesh, host: &str, header: &str) -> anyhow::Result<usize> {
    let mut n_refused = 0;
    for _ in 0..BURST {
        let reply = mesh.get("client", host, "/", &[]).await?;
        match reply.status {
            200 => {}
            429 => n_refused += usize::from(reply.headers.contains_key(header)),
            other => anyhow::bail!("{host} answered {other}: {}", reply.body),
        }
    }
    Ok(n_refused)
}

/// Waits until calls are refused with the header, or none is. A listener that changes closes connections, which is an error for
/// a moment.
async fn until_refused(mesh: &Mesh, host: &str, header: Option<&str>, what: &str) {
    let ask = || async {
        let n_refused = refused(mesh, host, header.unwrap_or(HEADERS[0])).await?;
        let others = refused(mesh, host, HEADERS[1]).await?;
        let fits = if header.is_some() { n_refused > 0 } else { n_refused + others == 0 };
        anyhow::ensure!(fits, "{n_refused} and {others} of {BURST} calls were refused");
        Ok(())
    };
    eventually(what, PATIENCE, ask).await.unwrap();
}

async fn until_said(mesh: &Mesh, words: &[&str]) {
    let ask = || async {
        let lines = mesh.control_plane().lines();
        let found = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        anyhow::ensure!(found, "nothing with {words:?} in:\n{}", lines.join("\n"));
        Ok(())
    };
    eventually("what the control plane says", PATIENCE, ask).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_comes_changes_and_goes_under_traffic() {
    let Some(interception) = netns::or_skip("a_plugin_comes_changes_and_goes_under_traffic") else { return };
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    // The same service once more, in a namespace without the label.
    let other =
        folder.read("frontend.yaml").replace("metadata:\n  name: ", "metadata:\n  namespace: elsewhere\n  name: ");
    let other = other.replace("10.96.0.11", "10.96.0.91").replace("10.244.0.11", "10.244.0.91");
    let other = other.replace("namespace: default", "namespace: elsewhere").replace("frontend-v1", "lonely-v1");
    folder.write("elsewhere.yaml", &format!("{}---\n{other}", PLAIN.replace("default", "elsewhere")));
    let plugins = tempfile::tempdir().unwrap();
    let limit = component("local-rate-limit");
    put(plugins.path(), "limit.wasm", &limit);
    let config = Config {
        outside: vec![PodSpec::outside("client", Ipv4Addr::new(10, 244, 0, 10))],
        plugins: Some(plugins.path().to_owned()),
        ..Config::new(folder.path().to_owned(), interception)
    };
    let mesh = Mesh::start(config).await.unwrap();
    let (here, there) = ("backend", "frontend.elsewhere");
    for host in [here, there] {
        mesh.until("client", host, "an answer", |reply| reply.status == 200).await.unwrap();
    }
    until_refused(&mesh, here, None, "no label, no limit").await;

    folder.write("namespace.yaml", LABELLED);
    until_refused(&mesh, here, Some(HEADERS[0]), "the label limits").await;
    assert_eq!(refused(&mesh, there, HEADERS[0]).await.unwrap(), 0, "no other namespace");
    folder.write("namespace.yaml", PLAIN);
    until_refused(&mesh, here, None, "the limit goes with the label").await;
    folder.write("namespace.yaml", LABELLED);
    until_refused(&mesh, here, Some(HEADERS[0]), "and comes back").await;

    // Another version, and beside it one that traps wherever it is called: it is named, and left out.
    put(plugins.path(), "limit.wasm", &other_version(&limit, HEADERS[0], HEADERS[1]));
    until_refused(&mesh, here, Some(HEADERS[1]), "the new version is in force").await;
    put(plugins.path(), "rascal.wasm", &component("hostile-guests"));
    until_said(&mesh, &["plugin rascal at", "asked to, at http-filters"]).await;
    until_refused(&mesh, here, Some(HEADERS[1]), "the other plugin goes on").await;
    assert_eq!(refused(&mesh, there, HEADERS[1]).await.unwrap(), 0);

    std::fs::remove_file(plugins.path().join("limit.wasm")).unwrap();
    until_refused(&mesh, here, None, "the limit goes with the plugin").await;
    std::fs::remove_file(plugins.path().join("rascal.wasm")).unwrap();
    for host in [here, there] {
        mesh.until("client", host, "an answer", |reply| reply.status == 200).await.unwrap();
    }
    let rejections = mesh.rejections().await.unwrap();
    assert!(rejections.is_empty(), "{rejections:#?}\n{}", mesh.control_plane().lines().join("\n"));
}
