//! Which workloads have mutual TLS switched off by PeerAuthentication.
//!
//! `peer-modes NAMESPACE` condenses the policies of a namespace to what clients must know: none at all in the usual case
//! that nobody switches mutual TLS off, so that endpoints do not depend on policies that say only STRICT or PERMISSIVE.

use std::collections::BTreeMap;

use trysail_sdk::facts::SelectorSummary;
use trysail_sdk::prost;
use trysail_sdk::proto::istio::security::v1beta1::PeerAuthentication;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::MutualTls;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::mutual_tls::Mode;
use trysail_sdk::{Ctx, Failure, Output};

const KIND: &str = "PeerAuthentication";

/// Whose sidecars refuse mutual TLS.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct PeerModes {
    /// What holds for workloads that no rule selects.
    #[prost(bool, tag = "1")]
    pub off: bool,
    /// Policies with a selector, oldest first; the first that selects a workload holds.
    #[prost(message, repeated, tag = "2")]
    pub rules: Vec<PeerRule>,
}

/// One policy with a selector.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct PeerRule {
    /// Labels of the workloads it selects, `key=value`.
    #[prost(string, repeated, tag = "1")]
    pub selector: Vec<String>,
    /// What holds for ports that are not named.
    #[prost(bool, tag = "2")]
    pub off: bool,
    /// Ports of the workload that are named and where it is off.
    #[prost(uint32, repeated, tag = "3")]
    pub off_ports: Vec<u32>,
    /// Ports that are named and where it is not.
    #[prost(uint32, repeated, tag = "4")]
    pub on_ports: Vec<u32>,
}

impl PeerModes {
    /// Is mutual TLS off at this port of a workload with these labels?
    pub fn off_at(&self, labels: &BTreeMap<String, String>, port: u32) -> bool {
        let has = |pair: &String| {
            pair.split_once('=').is_some_and(|(key, value)| labels.get(key).is_some_and(|own| own == value))
        };
        match self.rules.iter().find(|rule| rule.selector.iter().all(has)) {
            Some(rule) => rule.off_ports.contains(&port) || (rule.off && !rule.on_ports.contains(&port)),
            None => self.off,
        }
    }
}

/// The function `peer-modes`.
pub fn peer_modes(ctx: &Ctx<'_>, namespace: &str) -> Result<Output, Failure> {
    let root = ctx.mesh_config(&["root_namespace"])?.root_namespace;
    let own = if namespace == root { Vec::new() } else { ctx.selectors(KIND, namespace)? };
    let mut off = false;
    // The namespace's policy overrides the mesh's where it states a mode.
    for candidates in [&ctx.selectors(KIND, &root)?, &own] {
        if let Some(policy) = candidates.iter().find(|p| selects_all(p)) {
            off = stated(mutual_tls(ctx, policy)?.mtls.as_ref()).unwrap_or(off);
        }
    }
    let mut modes = PeerModes { off, rules: Vec::new() };
    for policy in own.iter().filter(|p| !selects_all(p)) {
        let spec = mutual_tls(ctx, policy)?;
        let base = stated(spec.mtls.as_ref()).unwrap_or(off);
        let is_off = |mode: &MutualTls| stated(Some(mode)).unwrap_or(base);
        let (off_ports, on_ports): (Vec<_>, Vec<_>) = spec.port_level_mtls.iter().partition(|(_, mode)| is_off(mode));
        let numbers = |ports: Vec<(&u32, &MutualTls)>| ports.into_iter().map(|(port, _)| *port).collect();
        let selector = policy.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        modes.rules.push(PeerRule { selector, off: base, off_ports: numbers(off_ports), on_ports: numbers(on_ports) });
    }
    let any = modes.off || modes.rules.iter().any(|rule| rule.off || !rule.off_ports.is_empty());
    Ok(if any { Output::value(&modes) } else { Output::empty() })
}

fn selects_all(policy: &SelectorSummary) -> bool {
    policy.selector.is_empty()
}

fn mutual_tls(ctx: &Ctx<'_>, policy: &SelectorSummary) -> Result<PeerAuthentication, Failure> {
    let found = ctx.object::<PeerAuthentication>(KIND, &format!("{}/{}", policy.namespace, policy.name))?;
    Ok(found.map(|(_, spec)| spec).unwrap_or_default())
}

/// Whether a mode that is stated is DISABLE.
fn stated(mtls: Option<&MutualTls>) -> Option<bool> {
    mtls.map(|m| m.mode()).filter(|mode| *mode != Mode::Unset).map(|mode| mode == Mode::Disable)
}
