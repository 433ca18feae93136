//! Who may talk to whom: what PeerAuthentication, and later RequestAuthentication and AuthorizationPolicy, mean for a
//! proxy and for the services it calls.
//!
//! ```text
//! policies (which objects hold for a workload) ──> peer_authentication: modes of the proxy's own ports
//!                                             └──> service_mtls: what clients expect of a service
//! ```
//!
//! It does not know transport sockets or filters: other stages make them from the modes.
//!
//! Nothing is rejected. A second policy for a whole namespace, and port modes without a selector, are left out with a
//! diagnostic.

pub mod peer_authentication;
pub mod policies;
pub mod service_mtls;

#[cfg(test)]
mod testing;

use trysail_sdk::{Ctx, Failure, Output};

/// Translates one function of this stage.
///
/// # Errors
/// [`Failure::UnknownFunction`] and [`Failure::BadArguments`] for calls that this stage does not have,
/// [`Failure::BadAnswer`] when a fact cannot be decoded.
pub fn translate(ctx: &Ctx, function: &str, args: &[String]) -> Result<Output, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let bad_arguments = || Failure::BadArguments(format!("{function}({})", args.join(", ")));
    match (function, args.as_slice()) {
        ("peer-authentication", []) => peer_authentication::effective(ctx),
        ("service-mtls-mode", [key, port, rest @ ..]) if matches!(rest, [] | ["passthrough"]) => {
            service_mtls::mode(ctx, key, port.parse().map_err(|_| bad_arguments())?, !rest.is_empty())
        }
        ("peer-authentication" | "service-mtls-mode", _) => Err(bad_arguments()),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
