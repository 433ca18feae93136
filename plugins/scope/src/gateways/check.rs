//! What istiod drops without a word: VirtualServices bound to a Gateway that does not exist or has no server for them, and
//! servers without a certificate. These calls have no items, only diagnostics, and ask nothing about the proxy but which
//! VirtualServices it sees.

use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{VirtualServiceSummaries, VirtualServiceSummary};
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{Gateway, ServerTlsSettings};
use trysail_sdk::{Ctx, Failure, Output, Severity, hosts};

use super::{KIND, title};

/// `scope/gateway-check GATEWAY`: looks at a Gateway and at the VirtualServices that are bound to it.
pub fn check(ctx: &Ctx, key: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some((object, gateway)) = ctx.object::<Gateway>(KIND, key)? else { return Ok(output) };
    for (i, server) in gateway.servers.iter().enumerate() {
        if server.tls.as_ref().is_some_and(lacks_certificate) {
            let why = "names no certificate: neither credentialName nor serverCertificate and privateKey";
            output.diagnose(Severity::Error, title(&object), format!("spec.servers[{i}].tls"), why);
        }
    }
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let served = gateway.servers.iter().map(|server| hosts::of_server(&server.hosts, namespace));
    let served: BTreeSet<String> = served.flatten().collect();
    let bound: Option<VirtualServiceSummaries> = ctx.derived("scope", "gateway-virtual-services", &[key])?;
    for rule in bound.unwrap_or_default().virtual_services {
        for (i, host) in rule.hosts.iter().enumerate() {
            if !served.iter().any(|server| takes(server, host, &rule.namespace)) {
                let why = format!("no server of Gateway {key} takes {host}");
                output.diagnose(Severity::Warning, rule_title(&rule), format!("spec.hosts[{i}]"), why);
            }
        }
    }
    Ok(output)
}

/// Does TLS end here without anything to show?
fn lacks_certificate(tls: &ServerTlsSettings) -> bool {
    let terminates = matches!(tls.mode(), TlSmode::Simple | TlSmode::Mutual | TlSmode::OptionalMutual);
    let files = !tls.server_certificate.is_empty() && !tls.private_key.is_empty();
    let named = !tls.credential_name.is_empty() || !tls.credential_names.is_empty() || !tls.tls_certificates.is_empty();
    // HTTP that only redirects has no need of one.
    terminates && !tls.https_redirect && !files && !named
}

/// Does a server's host, with or without a namespace, take a host of a VirtualService of that namespace?
fn takes(server: &str, host: &str, namespace: &str) -> bool {
    let name = match server.split_once('/') {
        Some((of, name)) if of == namespace => name,
        Some(_) => return false,
        None => server,
    };
    hosts::overlap(name, host)
}

fn rule_title(rule: &VirtualServiceSummary) -> String {
    format!("VirtualService {}/{}", rule.namespace, rule.name)
}

/// `scope/unknown-gateways`: reports VirtualServices that name a Gateway which does not exist.
pub fn unknown(ctx: &Ctx) -> Result<Output, Failure> {
    let mut output = Output::empty();
    // Each namespace is asked for once: there may be thousands of Gateways in one.
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for gateway in ctx.virtual_service_gateways()? {
        let (namespace, name) = gateway.split_once('/').unwrap_or_default();
        if !known.contains_key(namespace) {
            let names = ctx.selectors(KIND, namespace)?.into_iter().map(|known| known.name).collect();
            known.insert(namespace.to_owned(), names);
        }
        if known.get(namespace).is_some_and(|names| names.contains(name)) {
            continue;
        }
        let mut reported = BTreeSet::new();
        let viewers = ctx.gateway_virtual_service_namespaces(&gateway)?;
        for viewer in viewers.iter().map(String::as_str).chain(["*"]) {
            for rule in ctx.gateway_virtual_services(&gateway, viewer)? {
                if reported.insert((rule.namespace.clone(), rule.name.clone())) {
                    let why = format!("there is no Gateway {gateway}");
                    output.diagnose(Severity::Warning, rule_title(&rule), "spec.gateways", why);
                }
            }
        }
    }
    Ok(output)
}
