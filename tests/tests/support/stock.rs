//! Scenarios of the conformance corpus for Envoys that have none of Istio's own filters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use trysail_tests::control_plane::FOR_STOCK_ENVOY;
use trysail_tests::corpus;

/// What the translation can do so far.
const AREAS: [&str; 8] =
    ["core", "service-entry", "sidecar-scope", "networks", "flags", "proxy-config", "gateways", "envoyfilter"];

/// Filters that stock Envoy has only with its contributed extensions.
const NOT_IN_STOCK: [(&str, &str); 1] = [("PILOT_ENABLE_MYSQL_FILTER", "false")];

/// The scenarios that need nothing but what there is.
pub fn scenarios(root: &Path) -> Vec<PathBuf> {
    let known: BTreeSet<String> = AREAS.into_iter().map(str::to_owned).collect();
    let areas = corpus::areas(root).unwrap().into_iter();
    areas.filter(|(_, areas)| areas.is_subset(&known)).map(|(scenario, _)| scenario).collect()
}

/// Whether it is refused for an extension of a type that the Envoy was not built with.
#[allow(dead_code, reason = "not every suite meets refusals")]
pub fn is_unknown_type(words: &str) -> bool {
    const UNKNOWN: &str = "Didn't find a registered implementation";
    words.contains(UNKNOWN) && !words.contains("with type URL: ''")
}

/// The variables of a scenario, with those of stock Envoy over its own.
pub fn variables(scenario: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(scenario.join("env.yaml")).unwrap_or_default();
    let mut variables: BTreeMap<String, String> = serde_yaml_ng::from_str(&text).unwrap_or_default();
    variables.extend(FOR_STOCK_ENVOY.iter().chain(&NOT_IN_STOCK).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    variables
}

/// Leaves of a copy what a running control plane reads.
#[allow(dead_code, reason = "not every suite runs one")]
pub fn only_what_is_served(copy: &Path) {
    // No sources of objects; and the variables come as its environment.
    for file in ["proxies.yaml", "env.yaml"] {
        fs::remove_file(copy.join(file)).unwrap();
    }
}

/// Copies what `render` reads of a scenario.
pub fn copy(scenario: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["input.yaml", "mesh.yaml", "networks.yaml", "proxies.yaml"] {
        if scenario.join(file).is_file() {
            fs::copy(scenario.join(file), to.join(file)).unwrap();
        }
    }
    fs::write(to.join("env.yaml"), serde_yaml_ng::to_string(&variables(scenario)).unwrap()).unwrap();
}
