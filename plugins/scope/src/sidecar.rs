//! The Sidecar object that applies to a proxy, its egress listeners, and what becomes of unknown destinations.
//!
//! An egress host that is not `namespace/dnsName` is left out with a diagnostic.

use trysail_sdk::facts::{EgressListener, EgressListeners, Object, SelectorSummary};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::outbound_traffic_policy::Mode;
use trysail_sdk::proto::istio::networking::v1alpha3::{IstioEgressListener, OutboundTrafficPolicy, Sidecar};
use trysail_sdk::proto::protocol;
use trysail_sdk::{Ctx, Failure, Output, Severity};

use crate::client::Client;
use crate::imports;

/// The kind of the objects.
const KIND: &str = "Sidecar";

/// `scope/sidecar`: the Sidecar that applies, without labels and annotations, or none.
///
/// Of the proxy's namespace: the oldest whose selector selects it, else the oldest without a selector. Else the oldest
/// without a selector of the root namespace. Gateways and waypoints have none.
pub fn sidecar(ctx: &Ctx) -> Result<Output, Failure> {
    let Some(key) = applying(ctx)? else { return Ok(Output::empty()) };
    // The document is handed on undecoded.
    let Some((object, ())) = ctx.object::<()>(KIND, &key)? else { return Ok(Output::empty()) };
    Ok(Output::value(&Object {
        r#ref: object.r#ref,
        api_version: object.api_version,
        spec: object.spec,
        ..Default::default()
    }))
}

/// `scope/egress`: the egress listeners of the Sidecar that applies, or one that imports everything.
///
/// Hosts are as written, `.` included: who resolves it has to ask for the proxy's namespace, and most need not.
pub fn egress(ctx: &Ctx) -> Result<Output, Failure> {
    let found = own_sidecar(ctx)?;
    let from_sidecar = found.is_some();
    let mut output = Output::empty();
    let mut listeners = Vec::new();
    if let Some((object, sidecar)) = &found {
        let reference = object.r#ref.clone().unwrap_or_default();
        for (index, egress) in sidecar.egress.iter().enumerate() {
            let listener = egress_listener(index, egress);
            for (n, host) in egress.hosts.iter().enumerate().filter(|(_, host)| imports::split(host).is_none()) {
                output.diagnose(
                    Severity::Error,
                    format!("{KIND} {}/{}", reference.namespace, reference.name),
                    format!("spec.egress[{index}].hosts[{n}]"),
                    format!("host {host:?} is not namespace/dnsName"),
                );
            }
            listeners.push(listener);
        }
    }
    if listeners.is_empty() {
        listeners.push(EgressListener { hosts: vec!["*/*".to_owned()], ..Default::default() });
    }
    let value = Output::value(&EgressListeners { listeners, from_sidecar });
    output.entries = value.entries;
    Ok(output)
}

/// The egress listeners, from the output of [`egress`].
pub fn listeners(ctx: &Ctx) -> Result<Vec<EgressListener>, Failure> {
    let found: Option<EgressListeners> = ctx.derived("scope", "egress", &[])?;
    Ok(found.unwrap_or_default().listeners)
}

/// `scope/outbound-policy`: what becomes of unknown destinations: the Sidecar's policy, else the mode of the mesh, else
/// `ALLOW_ANY`. Of the mesh's policy only the mode counts.
pub fn outbound_policy(ctx: &Ctx) -> Result<Output, Failure> {
    if let Some((_, Sidecar { outbound_traffic_policy: Some(policy), .. })) = own_sidecar(ctx)? {
        return Ok(Output::value(&policy));
    }
    let mesh = ctx.mesh_config(&["outbound_traffic_policy"])?.outbound_traffic_policy;
    let mode = mesh.map_or(Mode::AllowAny as i32, |policy| policy.mode);
    Ok(Output::value(&OutboundTrafficPolicy { mode, ..Default::default() }))
}

/// The applying Sidecar and its document, from the output of [`sidecar`].
fn own_sidecar(ctx: &Ctx) -> Result<Option<(Object, Sidecar)>, Failure> {
    let Some(object) = ctx.derived::<Object>("scope", "sidecar", &[])? else { return Ok(None) };
    let sidecar =
        Sidecar::decode(object.spec.as_slice()).map_err(|e| Failure::BadAnswer(format!("scope/sidecar: {e}")))?;
    Ok(Some((object, sidecar)))
}

/// `namespace/name` of the Sidecar that applies.
fn applying(ctx: &Ctx) -> Result<Option<String>, Failure> {
    let namespaces = ctx.selector_namespaces(KIND)?;
    let client = Client::new(ctx);
    let own_namespace = client.among(namespaces.iter().map(String::as_str));
    let own = match own_namespace {
        Some(namespace) => ctx.selectors(KIND, namespace)?,
        None => Vec::new(),
    };
    let root = match namespaces.is_empty() {
        true => String::new(),
        false => ctx.mesh_config(&["root_namespace"])?.root_namespace,
    };
    let of_root = match own_namespace != Some(root.as_str()) && namespaces.contains(&root) {
        true => ctx.selectors(KIND, &root)?,
        false => Vec::new(),
    };
    if own.is_empty() && of_root.is_empty() {
        return Ok(None);
    }
    // Gateways and waypoints have no Sidecar. They are told apart only where there is one.
    if ctx.proxy("type").is_some_and(|kind| kind != "sidecar") {
        return Ok(None);
    }
    let (selecting, general): (Vec<_>, Vec<_>) = own.iter().partition(|entry| entry.has_selector);
    let selected = selecting.into_iter().find(|entry| ctx.proxy_labels_match(&entry.selector));
    let of_root = of_root.iter().find(|entry| !entry.has_selector);
    Ok(selected.or(general.into_iter().next()).or(of_root).map(key))
}

fn key(entry: &SelectorSummary) -> String {
    format!("{}/{}", entry.namespace, entry.name)
}

fn egress_listener(index: usize, egress: &IstioEgressListener) -> EgressListener {
    let port = egress.port.clone().unwrap_or_default();
    EgressListener {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        has_port: egress.port.is_some(),
        port: port.number,
        protocol: protocol::parse(&port.protocol) as i32,
        port_name: port.name,
        bind: egress.bind.clone(),
        capture_mode: egress.capture_mode,
        hosts: egress.hosts.clone(),
    }
}

#[cfg(test)]
mod tests;
