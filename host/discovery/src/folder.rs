//! A folder read once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Object, Rejection};

use crate::scan::{self, Scan};
use crate::{Config, Ledger, Status};

/// What a folder holds beside objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Mesh configuration as it was written: `mesh.yaml`, or key `mesh` of the control plane's ConfigMap.
    pub mesh: Option<Arc<Value>>,
    /// Mesh networks: `networks.yaml`, or key `meshNetworks` of the ConfigMap.
    pub networks: Option<Arc<Value>>,
    /// Environment variables: `env.yaml`.
    pub env: Option<Arc<Value>>,
    /// Proxies to render for: `proxies.yaml`, a list.
    pub proxies: Option<Arc<Value>>,
}

/// A folder's contents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folder {
    /// Objects in force, sorted by kind, namespace and name.
    pub objects: Vec<Arc<Object>>,
    /// Mesh configuration and the like.
    pub settings: Settings,
    /// What was refused and what is odd.
    pub status: Status,
}

/// A folder that cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the configuration folder {}", path.display())]
pub struct LoadError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Reads a folder once.
///
/// Fails only when the folder itself cannot be read; what is wrong with its contents is in the status.
pub fn load_folder(dir: &Path, config: &Config) -> Result<Folder, LoadError> {
    let scan = scan::scan(dir, config).map_err(|source| LoadError { path: dir.to_owned(), source })?;
    let mut ledger = Ledger::new(config.mode);
    ledger.apply(scan.files.iter().map(|(path, found)| {
        let text = scan::read(found, config);
        let text = text.as_ref().map(|(_, text)| text.as_str()).map_err(String::as_str);
        (path.clone(), Some(scan::interpret(path, text, config)))
    }));
    let mut status = ledger.status(|kind| config.reads(kind));
    report_unreadable(&scan, &mut status, |_| false);
    Ok(Folder { objects: ledger.objects().cloned().collect(), settings: ledger.settings(), status })
}

/// Adds the folders within the folder that could not be read; `keeps` tells whether what one held is still in force.
pub(crate) fn report_unreadable(scan: &Scan, status: &mut Status, keeps: impl Fn(&str) -> bool) {
    for (path, reason) in &scan.unreadable {
        status.rejections.push(Rejection {
            origin: path.clone(),
            document: 0,
            object: None,
            field: String::new(),
            reason: format!("folder cannot be read: {reason}"),
            kept_last_good: keeps(path),
        });
    }
    status.rejections.sort();
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn map(name: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name:?}}}\n")
    }

    #[test]
    fn nested_folders_of_yaml_and_json_are_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
            fs::write(path, text).expect("writes");
        };
        write("a.yaml", &format!("{}---\n{}", map("one"), map("two")));
        write("deep/er/b.yml", &map("three"));
        write("deep/c.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}"#);
        write("deep/d.yaml", "apiVersion: example.com/v1\nkind: Thing\n");
        write("expected/e.yaml", &map("no"));
        write(".git/f.yaml", &map("no"));
        write("README.md", "no");
        write("mesh.yaml", "rootNamespace: r\n");
        write("env.yaml", "A: b\n");
        write("proxies.yaml", "- name: p\n");
        let config = Config { read_kinds: Some(["Namespace".to_owned()].into()), ..Config::scenario() };
        let folder = load_folder(dir.path(), &config).expect("loads");
        let names: Vec<_> = folder.objects.iter().map(|object| object.reference.to_string()).collect();
        assert_eq!(names, ["ConfigMap default/one", "ConfigMap default/three", "ConfigMap default/two", "Namespace n"]);
        assert_eq!(folder.status.rejections, []);
        assert_eq!(folder.status.unknown_kinds, ["example.com/v1/Thing".to_owned()].into());
        assert_eq!(folder.status.unread_kinds, [("ConfigMap".to_owned(), 3)].into());
        assert_eq!(folder.settings.mesh.as_deref().map(|mesh| mesh["rootNamespace"].clone()), Some("r".into()));
        assert_eq!(folder.settings.env.as_deref().map(|env| env["A"].clone()), Some("b".into()));
        assert!(folder.settings.proxies.is_some_and(|proxies| proxies.is_array()));
        assert_eq!(folder.settings.networks, None);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.yaml"), map("one")).expect("writes");
        fs::write(dir.path().join("b.yaml"), [0xff, 0xfe]).expect("writes");
        fs::write(dir.path().join("c.yaml"), format!("# {}", "x".repeat(300))).expect("writes");
        symlink("nowhere", dir.path().join("d.yaml")).expect("links");
        symlink(".", dir.path().join("loop")).expect("links");
        let config = Config { max_file_bytes: 200, ..Config::default() };
        let folder = load_folder(dir.path(), &config).expect("loads");
        assert_eq!(folder.objects.len(), 1);
        let reasons: Vec<_> = folder.status.rejections.iter().map(ToString::to_string).collect();
        for (at, part) in
            ["is not UTF-8", "more than the 200 allowed", "cannot be read", "a link leads back"].into_iter().enumerate()
        {
            assert!(reasons[at].contains(part), "{reasons:?}");
        }
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let error = load_folder(Path::new("/nonexistent/folder"), &Config::default()).expect_err("fails");
        assert!(error.to_string().contains("/nonexistent/folder"));
    }
}
