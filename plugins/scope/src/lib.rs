//! What a proxy's configuration is about: the Sidecar that applies, and through it the services, VirtualServices and
//! DestinationRules that the proxy sees. Everything else is translated from what this stage selects.
//!
//! ```text
//! sidecar ──> egress ──> virtual-services(listener) ──> services(listener | all)
//!    └──> outbound-policy        service-key(host)      destination-rule(service)
//!
//! gateways ──> merged-gateway ──> gateway-routes, gateway-hosts          gateway-virtual-services(gateway)
//! ```
//!
//! Each arrow is a derived question: `services` depends on the *answer* of `egress`, so proxies of all namespaces in
//! which no Sidecar object applies share one list of services. What concerns the proxy is asked as late and as narrow
//! as can be; [`client`] explains how.
//!
//! It does not know what becomes of the things it selects: clusters, listeners and routes are other stages.
//!
//! Nothing is rejected. An egress host that is not `namespace/dnsName`, a subset that two merged DestinationRules both
//! define, and a VirtualService destination whose ports the service does not have are left out with a diagnostic.

pub mod client;
pub mod destination_rule;
pub mod gateways;
pub mod imports;
pub mod services;
pub mod sidecar;
pub mod virtual_services;

#[cfg(test)]
mod testing;

use trysail_sdk::facts::EgressListener;
use trysail_sdk::{Ctx, Failure, Output};

/// Translates one function of this stage.
///
/// # Errors
/// [`Failure::UnknownFunction`] and [`Failure::BadArguments`] for calls that this stage does not have,
/// [`Failure::BadAnswer`] when a fact cannot be decoded.
pub fn translate(ctx: &Ctx, function: &str, args: &[String]) -> Result<Output, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match (function, args.as_slice()) {
        ("sidecar", []) => sidecar::sidecar(ctx),
        ("egress", []) => sidecar::egress(ctx),
        ("outbound-policy", []) => sidecar::outbound_policy(ctx),
        ("services", ["all"]) => services::all(ctx),
        ("services", [index]) => services::of_listener(ctx, &listener(ctx, index)?),
        ("service-key", [host]) => services::key_of_host(ctx, host),
        ("virtual-services", [index]) => virtual_services::of_listener(ctx, &listener(ctx, index)?),
        ("destination-rule", [key]) => destination_rule::effective(ctx, key, destination_rule::Direction::Outbound),
        ("destination-rule", [key, "inbound"]) => {
            destination_rule::effective(ctx, key, destination_rule::Direction::Inbound)
        }
        ("gateways", []) => gateways::selecting(ctx),
        ("merged-gateway", []) => gateways::merged(ctx),
        ("gateway-routes", []) => gateways::routes(ctx),
        ("gateway-virtual-services", [gateway]) => gateways::virtual_services(ctx, gateway),
        ("gateway-hosts", []) => gateways::hosts(ctx),
        ("gateway-check", [gateway]) => gateways::check(ctx, gateway),
        ("unknown-gateways", []) => gateways::unknown(ctx),
        (
            "sidecar"
            | "egress"
            | "outbound-policy"
            | "services"
            | "service-key"
            | "virtual-services"
            | "destination-rule"
            | "gateways"
            | "merged-gateway"
            | "gateway-routes"
            | "gateway-virtual-services"
            | "gateway-hosts"
            | "gateway-check"
            | "unknown-gateways",
            _,
        ) => Err(Failure::BadArguments(format!("{function}({})", args.join(", ")))),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

/// The egress listener of that index.
fn listener(ctx: &Ctx, index: &str) -> Result<EgressListener, Failure> {
    let bad = || Failure::BadArguments(format!("no egress listener {index:?}"));
    let index: usize = index.parse().map_err(|_| bad())?;
    sidecar::listeners(ctx)?.into_iter().nth(index).ok_or_else(bad)
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
