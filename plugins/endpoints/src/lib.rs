//! Endpoints of clusters: EDS, and the inline endpoints of DNS clusters.
//!
//! ```text
//! endpoints of a service port ── select ── which of them this proxy may use
//!                             ── networks ── those of other networks become their gateways
//!                             ── locality ── priorities and weights by where the proxy is
//!                             ── assembly ── ClusterLoadAssignment
//! ```
//!
//! Functions:
//! - `cluster NAME`: the assignment of an EDS cluster; an empty one for clusters, services, ports unknown to the proxy,
//!   because Envoy waits for an answer to each name.
//! - `assignment NAME`: the inline assignment of a DNS cluster; no item when there is no endpoint, and then no cluster.
//! - `peer-modes NAMESPACE`: whose sidecars do not take mutual TLS (for this stage).
//! - `settings`: what assignments depend on besides services, condensed (for this stage).
//! - `tunnels KEY`: ports of a service whose endpoints all take HBONE (for the clusters stage).
//!
//! Nothing here rejects anything: an endpoint that cannot be used is left out, as istiod does.

mod assembly;
mod cluster;
mod locality;
mod networks;
mod peers;
mod select;
mod settings;
#[cfg(test)]
mod tests;

use trysail_sdk::{Ctx, Failure, Output};

/// The stage's function.
///
/// # Errors
/// Unknown function, missing arguments, undecodable answers.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let arg = args.first().map(String::as_str).filter(|arg| !arg.is_empty());
    let arg = || arg.ok_or_else(|| Failure::BadArguments(format!("endpoints/{function} needs an argument")));
    match function {
        "cluster" => cluster::cluster(ctx, arg()?),
        "assignment" => cluster::assignment(ctx, arg()?),
        "peer-modes" => peers::peer_modes(ctx, arg()?),
        "settings" => settings::settings(ctx),
        "tunnels" => select::tunnels(ctx, arg()?),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
