//! `ProxyConfig.proxyHeaders` as HTTP connection managers need it.

use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use trysail_sdk::proto::istio::mesh::v1alpha1::{ForwardClientCertDetails, proxy_config};
use trysail_sdk::{Ctx, Failure};

/// Header options of a direction.
pub struct Headers {
    /// Name in the `server` header; empty for Envoy's own.
    pub server_name: String,
    /// Whether that header is overwritten.
    pub server_transformation: hcm::ServerHeaderTransformation,
    /// What becomes of `x-forwarded-client-cert`.
    pub forward_client_cert: i32,
    /// Which parts of the client's certificate go into it.
    pub client_cert_details: hcm::SetCurrentClientCertDetails,
    /// False switches request ids off; unset is Envoy's default.
    pub generate_request_id: Option<bool>,
    /// `x-envoy-*` headers are left out.
    pub suppress_debug_headers: bool,
    /// Metadata exchange headers go to hosts of the mesh only.
    pub exchange_in_mesh_only: bool,
    /// `x-forwarded-port` is set.
    pub forwarded_port: bool,
    /// `x-forwarded-host` is appended by routes.
    pub forwarded_host: bool,
    /// Routes count attempts in a header.
    pub attempt_count: bool,
    /// HTTP/1 header names keep their case.
    pub preserve_case: bool,
}

impl Headers {
    /// Asks for the effective options. Towards the proxy's own workload the `server` header has Envoy's own name; inbound
    /// and at gateways (`for_others`) it is Istio's.
    pub fn of(ctx: &Ctx<'_>, for_others: bool) -> Result<Self, Failure> {
        let options = ctx.proxy_config(&["proxy_headers"])?.proxy_headers.unwrap_or_default();
        Ok(Self::from_options(options, for_others))
    }

    fn from_options(options: proxy_config::ProxyHeaders, for_others: bool) -> Self {
        let mut server_name = if for_others { "istio-envoy".to_owned() } else { String::new() };
        let mut server_transformation = hcm::ServerHeaderTransformation::Overwrite;
        if let Some(server) = options.server {
            if server.disabled == Some(true) {
                server_name.clear();
                server_transformation = hcm::ServerHeaderTransformation::PassThrough;
            } else if !server.value.is_empty() {
                server_name = server.value;
            }
        }
        let forward_client_cert = match ForwardClientCertDetails::try_from(options.forwarded_client_cert) {
            Ok(ForwardClientCertDetails::Undefined) | Err(_) => hcm::ForwardClientCertDetails::AppendForward as i32,
            // Both enumerations have the same values in the same order; Istio's begins with "undefined".
            Ok(details) => details as i32 - 1,
        };
        let details = options.set_current_client_cert_details.unwrap_or_default();
        Headers {
            server_name,
            server_transformation,
            forward_client_cert,
            client_cert_details: hcm::SetCurrentClientCertDetails {
                subject: Some(details.subject.unwrap_or(true)),
                cert: details.cert.unwrap_or(false),
                chain: details.chain.unwrap_or(false),
                dns: details.dns.unwrap_or(true),
                uri: details.uri.unwrap_or(true),
                ..Default::default()
            },
            generate_request_id: (options.request_id.and_then(|r| r.disabled) == Some(true)).then_some(false),
            suppress_debug_headers: options.envoy_debug_headers.and_then(|h| h.disabled) == Some(true),
            exchange_in_mesh_only: options
                .metadata_exchange_headers
                .is_some_and(|m| m.mode == proxy_config::proxy_headers::MetadataExchangeMode::InMesh as i32),
            forwarded_port: options.x_forwarded_port.and_then(|p| p.enabled) == Some(true),
            forwarded_host: options.x_forwarded_host.and_then(|h| h.enabled) == Some(true),
            attempt_count: options.attempt_count.and_then(|a| a.disabled) != Some(true),
            preserve_case: options.preserve_http1_header_case == Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_both_directions() {
        let inbound = Headers::from_options(Default::default(), true);
        assert_eq!(inbound.server_name, "istio-envoy");
        assert_eq!(inbound.forward_client_cert, hcm::ForwardClientCertDetails::AppendForward as i32);
        assert!(inbound.client_cert_details.dns && !inbound.client_cert_details.cert && inbound.attempt_count);
        assert_eq!(Headers::from_options(Default::default(), false).server_name, "");
    }

    #[test]
    fn a_disabled_server_header_passes_through() {
        let options = proxy_config::ProxyHeaders {
            server: Some(proxy_config::proxy_headers::Server { disabled: Some(true), value: "x".into() }),
            forwarded_client_cert: ForwardClientCertDetails::SanitizeSet as i32,
            ..Default::default()
        };
        let headers = Headers::from_options(options, true);
        assert_eq!(headers.server_name, "");
        assert_eq!(headers.server_transformation, hcm::ServerHeaderTransformation::PassThrough);
        assert_eq!(headers.forward_client_cert, hcm::ForwardClientCertDetails::SanitizeSet as i32);
    }
}
