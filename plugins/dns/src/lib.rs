//! Name tables (NDS), with which the agent beside a proxy answers DNS.
//!
//! ```text
//! services of each egress listener ── table ──> hosts with addresses of their own        (in `all` itself)
//!                                        ├────> host of a headless service               `host`
//!                                        └────> pods of a headless service with a name   `pods`
//! ```
//!
//! Functions:
//! - `all`: the table, one nameless resource.
//! - `host KEY PORT`: the entry of a headless service; no item without a usable endpoint.
//! - `addresses KEY PORT`: the addresses of a headless service whose host others claim too (for this stage).
//! - `pods KEY PORT`: entries of the pods of a headless service, `hostname.subdomain` in front of its domain.
//!
//! Only headless services depend on endpoints, so an endpoint that comes or goes changes their entries alone. The table
//! is the same for all proxies that see the same services with the same IP families.
//!
//! The agent makes short names (`a`, `a.ns`) of `shortname` and `namespace`, so each host is there once.
//!
//! Nothing rejects or warns: a host without addresses is left to the upstream resolver.

mod addresses;
mod headless;
mod table;
#[cfg(test)]
mod tests;

use trysail_sdk::{Ctx, Failure, Output};

/// The stage's function.
///
/// # Errors
/// Unknown function, missing arguments, undecodable answers.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let port = |text: &str| {
        text.parse::<u32>().map_err(|_| Failure::BadArguments(format!("dns/{function}: {text:?} is no port")))
    };
    match (function, args.as_slice()) {
        ("all", []) => table::all(ctx),
        ("host", [key, number]) => headless::host(ctx, key, port(number)?),
        ("addresses", [key, number]) => headless::addresses(ctx, key, port(number)?),
        ("pods", [key, number]) => headless::pods(ctx, key, port(number)?),
        ("all" | "host" | "addresses" | "pods", _) => {
            Err(Failure::BadArguments(format!("dns/{function}({})", args.join(", "))))
        }
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
