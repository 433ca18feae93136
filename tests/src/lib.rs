//! Harness of the tests and of the demo: real Envoys in network namespaces, what Istio's agent gives them, workloads to call,
//! a control plane to serve them, and the comparison with the conformance corpus.
//!
//! It deliberately knows nothing of the control plane's inside: [`control_plane`] runs the `trysail` binary, as a user would.
//!
//! ```text
//! folder of YAML ──> kube: which pods, which services
//!        │                     │
//!        v                     v
//! control_plane <── xds ── pod: network namespace + Envoy (envoy, bootstrap) + workload ──> who answered
//!  (trysail discovery)           └── sds: certificates over a local socket
//! ```
//!
//! **Invariant:** nothing is left behind: child processes die with the thread that started them, network namespaces carry the
//! id of the process that made them, and each run first removes those whose process is gone.

pub mod admin;
pub mod ads;
pub mod agent;
pub mod bootstrap;
pub mod cluster;
pub mod control_plane;
pub mod corpus;
pub mod dns;
pub mod envoy;
pub mod kube;
pub mod live;
pub mod mesh;
pub mod netns;
pub mod objects;
pub mod pod;
pub mod replica;
pub mod sds;
pub mod simulation;
pub mod tls;
pub mod validate;
pub mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Top of the workspace.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Tells the user what is being done.
pub type Say = fn(&str);

/// Says nothing.
pub fn quiet(_line: &str) {}

/// Says it on the terminal.
pub fn aloud(line: &str) {
    println!("· {line}");
}

/// Asks until the answer is there. `what` names it in the error, with the last reason why it was not.
///
/// # Errors
/// When it is not there in time.
pub async fn eventually<T, F>(what: &str, patience: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > patience => {
                return Err(error).with_context(|| format!("{what}: not within {patience:?}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
