//! What endpoints depend on besides services and rules, condensed to one small record.
//!
//! Its fingerprint changes only when something here does, however the mesh configuration or the feature variables change
//! otherwise.

use trysail_sdk::prost;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::DefaultTrafficPolicy;
use trysail_sdk::proto::istio::networking::v1alpha3::{LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting};
use trysail_sdk::{Ctx, Failure, Output};

/// From the mesh configuration and the feature variables (named in capitals).
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Settings {
    /// Preference of localities.
    #[prost(message, optional, tag = "1")]
    pub locality: Option<LocalityLoadBalancerSetting>,
    /// Preference of zones.
    #[prost(message, optional, tag = "2")]
    pub zone_aware: Option<ZoneAwareLoadBalancerSetting>,
    /// Blocks for rules that have none. They count for inline endpoints only, as in istiod.
    #[prost(message, optional, tag = "3")]
    pub default_policy: Option<DefaultTrafficPolicy>,
    /// `PILOT_SEND_UNHEALTHY_ENDPOINTS`
    #[prost(bool, tag = "10")]
    pub unhealthy_always: bool,
    /// `PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS`
    #[prost(bool, tag = "11")]
    pub unhealthy_by_default: bool,
    /// `ISTIO_DUAL_STACK`
    #[prost(bool, tag = "12")]
    pub dual_stack: bool,
    /// `PILOT_ENABLE_TELEMETRY_LABEL` and `PILOT_ENDPOINT_TELEMETRY_LABEL`
    #[prost(bool, tag = "13")]
    pub telemetry: bool,
    /// `LABEL_CANONICAL_SERVICES_FOR_MESH_EXTERNAL_SERVICE_ENTRIES`
    #[prost(bool, tag = "14")]
    pub canonical_external: bool,
    /// `PILOT_PREFER_SENDING_HBONE`
    #[prost(bool, tag = "15")]
    pub prefer_tunnel: bool,
    /// `PILOT_DRAINING_LABEL`
    #[prost(string, tag = "16")]
    pub draining_label: String,
    /// `PILOT_PERSISTENT_SESSION_LABEL`
    #[prost(string, tag = "17")]
    pub session_label: String,
}

impl Settings {
    /// Asks for them.
    pub fn ask(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        Ok(ctx.derived("endpoints", "settings", &[])?.unwrap_or_default())
    }
}

/// The function `settings`.
pub fn settings(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mesh = ctx.mesh_config(&["locality_lb_setting", "zone_aware_lb_setting", "default_traffic_policy"])?;
    let texts = ctx.features(&[
        "PILOT_SEND_UNHEALTHY_ENDPOINTS",
        "PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS",
        "ISTIO_DUAL_STACK",
        "PILOT_ENABLE_TELEMETRY_LABEL",
        "PILOT_ENDPOINT_TELEMETRY_LABEL",
        "LABEL_CANONICAL_SERVICES_FOR_MESH_EXTERNAL_SERVICE_ENTRIES",
        "PILOT_PREFER_SENDING_HBONE",
        "PILOT_DRAINING_LABEL",
        "PILOT_PERSISTENT_SESSION_LABEL",
    ])?;
    let flag = |i: usize| texts[i] == "true";
    Ok(Output::value(&Settings {
        locality: mesh.locality_lb_setting,
        zone_aware: mesh.zone_aware_lb_setting,
        default_policy: mesh.default_traffic_policy,
        unhealthy_always: flag(0),
        unhealthy_by_default: flag(1),
        dual_stack: flag(2),
        telemetry: flag(3) && flag(4),
        canonical_external: flag(5),
        prefer_tunnel: flag(6),
        draining_label: texts[7].clone(),
        session_label: texts[8].clone(),
    }))
}
