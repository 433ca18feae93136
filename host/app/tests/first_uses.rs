//! The ten first uses of EnvoyFilter, each beside the plugin that takes its place: both lead to the same configuration.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trysail::plugin::{self, Change, Command, On, Rehearsal};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The example mesh with one more document.
fn mesh(document: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(examples().join("frontend-backend")).unwrap().flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    fs::copy(document, folder.path().join(document.file_name().unwrap())).unwrap();
    folder
}

/// What proxies are sent, by proxy and type: resources by name.
type Sent = BTreeMap<(String, String), BTreeMap<String, Value>>;

fn sent(folder: &Path) -> Sent {
    let rehearsal = Rehearsal::of_folder(folder, None, &On::default()).unwrap();
    rehearsal.sent().unwrap()
}

/// What a plugin changes, as the rehearsal tells it.
fn changes(folder: &Path) -> Vec<(String, Vec<Change>)> {
    let found = Rehearsal::of_folder(folder, None, &On::default()).unwrap().run().unwrap();
    assert_eq!(found.errors, Vec::<String>::new());
    let said: Vec<&String> = found.said.iter().flat_map(|(_, said)| said).collect();
    assert!(said.iter().all(|line| !line.contains("lugin")), "{said:?}");
    found.changes
}

/// What differs on purpose, because it is better: authorization stands among what authorizes, not behind fault injection.
fn in_one_order(mut sent: Sent, use_name: &str) -> Sent {
    if use_name == "07-external-authorization" {
        fn sort(value: &mut Value) {
            match value {
                Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| {
                    if let ("http_filters", Value::Array(filters)) = (name.as_str(), &mut *value) {
                        filters.sort_by_key(|filter| filter["name"].to_string());
                    }
                    sort(value);
                }),
                Value::Array(items) => items.iter_mut().for_each(sort),
                _ => {}
            }
        }
        sent.values_mut().flat_map(BTreeMap::values_mut).for_each(sort);
    }
    sent
}

fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(test).unwrap().join().unwrap();
}

#[test]
fn each_envoy_filter_is_imported_as_a_plugin_that_does_the_same() {
    on_a_big_stack(|| {
        let mut n_uses = 0;
        for of in fs::read_dir(examples().join("plugins")).unwrap().flatten().map(|entry| entry.path()) {
            let file = of.join("envoyfilter.yaml");
            if !file.is_file() {
                continue;
            }
            n_uses += 1;
            let made = tempfile::NamedTempFile::new().unwrap();
            let same = plugin::run(Command::Import {
                file,
                out: Some(made.path().to_owned()),
                check: Some(examples().join("frontend-backend")),
                root_namespace: "istio-system".to_owned(),
            });
            let documents = fs::read_to_string(made.path()).unwrap();
            assert!(same.unwrap(), "{}: {documents}", of.display());
            assert!(documents.contains("kind: Plugin") && !documents.contains("kind: EnvoyFilter"), "{documents}");
        }
        assert_eq!(n_uses, 10);
    });
}

#[test]
fn each_plugin_does_what_its_envoy_filter_did() {
    on_a_big_stack(|| {
        let mut uses: Vec<PathBuf> =
            fs::read_dir(examples().join("plugins")).unwrap().flatten().map(|e| e.path()).collect();
        uses.retain(|path| path.join("envoyfilter.yaml").is_file());
        uses.sort();
        assert_eq!(uses.len(), 10);
        for of in uses {
            let name = of.file_name().unwrap().to_str().unwrap().to_owned();
            let (old, new) = (mesh(&of.join("envoyfilter.yaml")), mesh(&of.join("plugin.yaml")));
            let plain = sent(&examples().join("frontend-backend"));
            let (by_filter, by_plugin) = (sent(old.path()), sent(new.path()));
            assert_ne!(by_filter, plain, "{name}: the EnvoyFilter does something");
            let (by_filter, by_plugin) = (in_one_order(by_filter, &name), in_one_order(by_plugin, &name));
            for (of, resources) in &by_filter {
                for (resource, value) in resources {
                    let ours = by_plugin.get(of).and_then(|ours| ours.get(resource));
                    assert_eq!(ours, Some(value), "{name}: {of:?} {resource}");
                }
            }
            assert_eq!(by_filter.len(), by_plugin.len(), "{name}");
            let changes = changes(new.path());
            assert!(changes.iter().any(|(_, changes)| !changes.is_empty()), "{name}: it changes something");
            let foreign = changes.iter().filter(|(proxy, _)| proxy.contains("frontend") && name != "05-buffers");
            assert!(foreign.clone().all(|(_, changes)| changes.is_empty()), "{name}: and nobody else's: {foreign:?}");
        }
    });
}
