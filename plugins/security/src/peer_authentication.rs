//! PeerAuthentication: which connections the proxy's own workload accepts.
//!
//! The mesh's policy (root namespace, no selector) is overridden by the namespace's (no selector), and this by the
//! workload's (selector; not in the root namespace). Of each the oldest counts; a mode that is not set is inherited.
//! Ports have modes of their own in a workload's policy only.

use std::collections::BTreeMap;

use trysail_sdk::facts::{MtlsMode, PeerPolicy};
use trysail_sdk::proto::istio::security::v1beta1::PeerAuthentication;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::MutualTls;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::mutual_tls::Mode;
use trysail_sdk::{Ctx, Failure, Output, Severity};

use crate::policies;

/// The kind of the objects.
const KIND: &str = "PeerAuthentication";

/// `security/peer-authentication`: the modes of the proxy's own ports; PERMISSIVE when no policy says otherwise.
pub fn effective(ctx: &Ctx) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let root = policies::root_namespace(ctx)?;
    let mut mode = MtlsMode::MtlsPermissive;
    if let Some(key) = policies::of_namespace(ctx, KIND, &root)? {
        mode = set_mode(body(ctx, &key)?.mtls.as_ref()).unwrap_or(mode);
    }
    let mut ports = BTreeMap::new();
    let namespaces = ctx.selector_namespaces(KIND)?;
    // Of the root namespace only the mesh's policy counts, also for workloads there.
    let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).filter(|namespace| *namespace != root).collect();
    if let Some(namespace) = ctx.proxy_in_namespaces(&namespaces) {
        let own = ctx.selectors(KIND, &namespace)?;
        let (general, selecting): (Vec<_>, Vec<_>) = own.iter().partition(|policy| policies::is_general(policy));
        if let Some((first, others)) = general.split_first() {
            let policy = body(ctx, &policies::key(first))?;
            mode = set_mode(policy.mtls.as_ref()).unwrap_or(mode);
            if !policy.port_level_mtls.is_empty() {
                let why = "port modes need a selector";
                output.diagnose(Severity::Warning, object(&policies::key(first)), "spec.portLevelMtls", why);
            }
            for other in others {
                let why = format!("the namespace's policy is the older {}", first.name);
                output.diagnose(Severity::Warning, object(&policies::key(other)), "", why);
            }
        }
        if let Some(selected) = selecting.into_iter().find(|policy| ctx.proxy_labels_match(&policy.selector)) {
            let policy = body(ctx, &policies::key(selected))?;
            mode = set_mode(policy.mtls.as_ref()).unwrap_or(mode);
            let of_port = |mtls: &MutualTls| set_mode(Some(mtls)).unwrap_or(mode) as i32;
            ports = policy.port_level_mtls.iter().map(|(port, mtls)| (*port, of_port(mtls))).collect();
        }
    }
    output.entries = Output::value(&PeerPolicy { mode: mode as i32, ports }).entries;
    Ok(output)
}

/// The mode that the policies of a namespace and of the mesh give it, whatever single workloads have; PERMISSIVE when
/// there is none.
pub fn of_namespace(ctx: &Ctx, namespace: &str) -> Result<MtlsMode, Failure> {
    let root = policies::root_namespace(ctx)?;
    let inherits = match policies::of_namespace(ctx, KIND, namespace)? {
        Some(key) => set_mode(body(ctx, &key)?.mtls.as_ref()),
        None => None,
    };
    if let Some(mode) = inherits {
        return Ok(mode);
    }
    let of_mesh = match policies::of_namespace(ctx, KIND, &root)? {
        Some(key) if namespace != root => set_mode(body(ctx, &key)?.mtls.as_ref()),
        _ => None,
    };
    Ok(of_mesh.unwrap_or(MtlsMode::MtlsPermissive))
}

/// A mode that is set; none when it is to be inherited.
fn set_mode(mtls: Option<&MutualTls>) -> Option<MtlsMode> {
    match mtls?.mode() {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::MtlsDisable),
        Mode::Permissive => Some(MtlsMode::MtlsPermissive),
        Mode::Strict => Some(MtlsMode::MtlsStrict),
    }
}

/// The document; an empty one, which sets nothing, when it is gone.
fn body(ctx: &Ctx, key: &str) -> Result<PeerAuthentication, Failure> {
    Ok(ctx.object(KIND, key)?.map(|(_, policy)| policy).unwrap_or_default())
}

fn object(key: &str) -> String {
    format!("{KIND} {key}")
}

#[cfg(test)]
mod tests;
