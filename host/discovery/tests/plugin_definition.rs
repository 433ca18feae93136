//! The definition of our own kind, as it is installed, has the very schema that documents in folders are held against.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use serde_json::Value;

#[test]
fn a_cluster_and_a_folder_take_the_same_documents() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = fs::read_to_string(here.join("../../examples/helm/trysail/crds/plugins.yaml")).unwrap();
    let installed: Value = serde_yaml_ng::from_str(&installed).unwrap();
    let condensed = fs::read_to_string(here.join("schemas/plugins.trysail.io.json")).unwrap();
    let condensed: Value = serde_json::from_str(&condensed).unwrap();
    let [version] = &installed["spec"]["versions"].as_array().unwrap()[..] else { panic!("one version") };
    assert_eq!(version["name"], condensed["versions"][0]["name"]);
    assert_eq!(version["schema"]["openAPIV3Schema"], condensed["schemas"][0]);
    assert_eq!(installed["spec"]["names"]["plural"], condensed["plural"]);
}
