//! Clusters: CDS.
//!
//! ```text
//! all ── outbound ── service KEY ──> clusters of one service: each port, and each subset of the rule
//!     ├─ sni ── sni-service KEY     ──> the same without TLS, behind AUTO_PASSTHROUGH gateways
//!     ├─ fixed                  ──> clusters that do not depend on any service
//!     └─ inbound ── inbound-port ──> the cluster of one port of the proxy's own workload
//! ```
//!
//! Functions:
//! - `all`, `outbound`, `sni`, `inbound`: plans.
//! - `service KEY [PORT,PORT..]`: outbound clusters of a service, of those ports only if they are named.
//! - `sni-service KEY`: clusters of a service that clients' own TLS is passed on to.
//! - `inbound-port PORT TARGET..`: the inbound cluster of a port of the workload, for the services that have it
//!   (`KEY|SERVICE PORT|ITS NAME`).
//! - `fixed`: `BlackHoleCluster`, `PassthroughCluster` and their like.
//! - `settings`, `proxy`: what clusters depend on besides services, condensed, so that each cluster call asks one question
//!   and not three.
//!
//! What a DestinationRule gets wrong costs the TLS of a cluster, never the cluster (diagnostics of severity error).

mod balance;
mod draft;
mod dynamic;
mod fixed;
mod inbound;
mod inference;
mod outbound;
mod pool;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use trysail_sdk::{CallRef, Ctx, Failure, Output};

/// The stage's function.
///
/// # Errors
/// Unknown function, missing arguments, undecodable answers.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match function {
        "all" => all(ctx),
        "outbound" => outbound::plan(ctx),
        "service" => outbound::service(ctx, args, false),
        "sni" => outbound::sni_plan(ctx),
        "sni-service" => outbound::service(ctx, args, true),
        "inbound" => inbound::plan(ctx),
        "inbound-port" => inbound::port(ctx, args),
        "fixed" => fixed::fixed(ctx),
        "settings" => settings::settings(ctx),
        "proxy" => settings::proxy(ctx),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

fn all(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let call = |function: &str| CallRef::new("clusters", function, [""; 0]);
    output.include(call("outbound"));
    output.include(call("fixed"));
    match ctx.proxy("type").as_deref() {
        Some("sidecar") => output.include(call("inbound")),
        Some("router") => output.include(call("sni")),
        _ => {}
    }
    Ok(output)
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
