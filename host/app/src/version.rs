//! The version, as istiod's `version` command and page print it.

/// Trysail's version and the Istio release it stands for.
pub const ISTIO: &str = "1.31.0";

/// One line.
pub fn line() -> String {
    format!("{ISTIO}-trysail-{}\n", env!("CARGO_PKG_VERSION"))
}
