//! The version, as istiod's `version` command and pages print it.

use serde_json::{Value, json};

use crate::env::Environment;

/// The Istio release that Trysail stands for.
pub const ISTIO: &str = "1.31.0";

/// What stands for a commit: istioctl splits [`line()`] at its hyphens, from behind.
const REVISION: &str = concat!("trysail.", env!("CARGO_PKG_VERSION"));
const STATUS: &str = "Clean";

/// One line, `<version>-<revision>-<status>`.
pub fn line() -> String {
    format!("{ISTIO}-{REVISION}-{STATUS}")
}

/// The parts, by the names that istioctl reads.
pub fn info() -> Value {
    json!({"version": ISTIO, "revision": REVISION, "golang_version": "", "status": STATUS, "tag": ISTIO})
}

/// Which control plane answers, as JSON: `istioctl proxy-status` and `version` read it.
pub fn identifier(environment: &dyn Environment) -> String {
    json!({"Component": "istiod", "ID": environment.get("POD_NAME").unwrap_or_default(), "Info": info()}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istioctl_can_split_the_line() {
        let line = line();
        let mut parts = line.rsplitn(3, '-');
        let (status, revision, version) = (parts.next(), parts.next(), parts.next());
        assert_eq!((status, revision, version), (Some(STATUS), Some(REVISION), Some(ISTIO)));
    }
}
