//! The redirection rules of `istio-iptables`, for one pod.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Interception, Netns, SIDECAR_UID, feed, unique_prefix};
use crate::Say;

/// Programs that load the rules: whichever `iptables` is first on this machine, then the old interface to the kernel.
const LOADERS: [&str; 2] = ["iptables-restore", "iptables-legacy-restore"];

/// Sends the pod's outbound traffic to 15001 and its inbound traffic to 15006.
///
/// # Errors
/// When no loader takes the rules.
pub(super) fn redirect(pod: &Netns) -> Result<()> {
    let mut words = Vec::new();
    for loader in LOADERS {
        match feed(Command::new("ip").args(["netns", "exec", pod.name(), loader]), &rules()) {
            Ok(()) => return Ok(()),
            Err(error) => words.push(format!("{loader}: {error:#}")),
        }
    }
    bail!("cannot redirect traffic in {}: {}", pod.name(), words.join("; "))
}

/// Tries the rules where they do no harm.
pub(super) fn probe(say: Say) -> Interception {
    match Netns::new(&unique_prefix(), "probe").and_then(|pod| redirect(&pod)) {
        Ok(()) => Interception::Redirect,
        Err(error) => {
            say(&format!("no redirection here ({error:#}): sidecars run with INTERCEPTION_MODE: NONE"));
            Interception::None
        }
    }
}

/// Chains and order are those of Istio: 127.0.0.6 is the address from which a sidecar calls its own workload, and a sidecar
/// that calls its own pod's address goes through inbound again.
fn rules() -> String {
    let uid = SIDECAR_UID;
    format!(
        "*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --uid-owner {uid} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT"
    )
}
