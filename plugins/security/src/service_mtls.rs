//! What clients expect of a service when their DestinationRule does not say: the mode behind automatic mutual TLS.

use trysail_sdk::facts::{MtlsMode, PeerPolicy, Resolution};
use trysail_sdk::{Ctx, Failure, Output};

use crate::peer_authentication;

/// Label value of endpoints without a sidecar. An endpoint without the label has none either.
const NO_SIDECAR: [&str; 2] = ["", "disabled"];

/// `security/service-mtls-mode KEY PORT [passthrough]`: an estimate for the whole service from the policies of its
/// namespace and of the mesh; those for single workloads and ports are not looked at, since a service may have several.
///
/// UNKNOWN for services outside the mesh. DISABLE for a service whose endpoints clients reach by their own addresses
/// (headless, or load balancing PASSTHROUGH, which the caller knows from the DestinationRule) unless every endpoint
/// has a sidecar: there the client cannot choose by endpoint.
pub fn mode(ctx: &Ctx, key: &str, port: u32, passthrough: bool) -> Result<Output, Failure> {
    let policy = |mode: MtlsMode| Ok(Output::value(&PeerPolicy { mode: mode as i32, ..Default::default() }));
    let Some(service) = ctx.service(key)? else { return policy(MtlsMode::MtlsUnknown) };
    if service.mesh_external {
        return policy(MtlsMode::MtlsUnknown);
    }
    if passthrough || service.resolution() == Resolution::Passthrough {
        let endpoints = ctx.endpoints(key, port)?;
        if endpoints.is_empty() || endpoints.iter().any(|endpoint| NO_SIDECAR.contains(&endpoint.tls_mode.as_str())) {
            return policy(MtlsMode::MtlsDisable);
        }
    }
    policy(peer_authentication::of_namespace(ctx, &service.namespace)?)
}

#[cfg(test)]
mod tests;
