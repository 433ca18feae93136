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
pub(super) fn intercept(pod: &Netns, how: Interception) -> Result<()> {
    match how {
        Interception::None => Ok(()),
        Interception::Redirect => load(pod, &outbound(REDIRECTED)),
        Interception::Tproxy => {
            load(pod, &outbound(""))?;
            load(pod, &transparent())?;
            // Packets with the mark are for this machine, whatever their address.
            pod.ip(&[
                format!("rule add fwmark {INBOUND_MARK} lookup 133"),
                "route add local default dev lo table 133".into(),
            ])
        }
    }
}

/// Loads rules.
///
/// # Errors
/// When no loader takes them.
pub(super) fn load(pod: &Netns, rules: &str) -> Result<()> {
    let mut words = Vec::new();
    for loader in LOADERS {
        match feed(Command::new("ip").args(["netns", "exec", pod.name(), loader]), rules) {
            Ok(()) => return Ok(()),
            Err(error) => words.push(format!("{loader}: {error:#}")),
        }
    }
    bail!("cannot redirect traffic in {}: {}", pod.name(), words.join("; "))
}

/// Tries the rules where they do no harm.
pub(super) fn probe(say: Say) -> Interception {
    match Netns::new(&unique_prefix(), "probe").and_then(|pod| intercept(&pod, Interception::Redirect)) {
        Ok(()) => Interception::Redirect,
        Err(error) => {
            say(&format!("no redirection here ({error:#}): sidecars run with INTERCEPTION_MODE: NONE"));
            Interception::None
        }
    }
}

/// Inbound traffic by a change of its address.
const REDIRECTED: &str = "-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
";

/// Mark of packets of connections to the workload.
const INBOUND_MARK: u32 = 1337;

/// Mark of packets that a sidecar sends to its own pod's address.
const OUTBOUND_MARK: u32 = 1338;

/// Chains and order are those of Istio: 127.0.0.6 is the address from which a sidecar calls its own workload, and a sidecar
/// that calls its own pod's address goes through inbound again.
fn outbound(inbound: &str) -> String {
    let uid = SIDECAR_UID;
    // Where inbound addresses are not changed, a mark takes this rule's place, which would send Envoy's own calls of its workload
    // back to it.
    let to_itself = if inbound.is_empty() {
        String::new()
    } else {
        format!(
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --uid-owner {uid} -j ISTIO_IN_REDIRECT\n"
        )
    };
    format!(
        "*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A OUTPUT -p tcp -j ISTIO_OUTPUT
{inbound}-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
{to_itself}-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT"
    )
}

/// Inbound traffic as it is: Envoy's socket takes connections to every address, and what it sends to the workload bears the
/// client's address and the mark, by which the answers find back.
fn transparent() -> String {
    let uid = SIDECAR_UID;
    format!(
        "*mangle
:ISTIO_DIVERT - [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_TPROXY - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp -m mark --mark {INBOUND_MARK} -j CONNMARK --save-mark
-A OUTPUT -p tcp -o lo -m mark --mark {INBOUND_MARK} -j RETURN
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner {uid} -j MARK --set-mark {OUTBOUND_MARK}
-A OUTPUT -p tcp -m connmark --mark {INBOUND_MARK} -j CONNMARK --restore-mark
-A ISTIO_DIVERT -j MARK --set-mark {INBOUND_MARK}
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_INBOUND -p tcp -m mark --mark {INBOUND_MARK} -j RETURN
-A ISTIO_INBOUND -p tcp -s 127.0.0.6/32 -i lo -j RETURN
-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark {OUTBOUND_MARK} -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
-A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark {INBOUND_MARK}/0xffffffff --on-port 15006
COMMIT"
    )
}
