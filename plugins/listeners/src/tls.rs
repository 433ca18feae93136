//! TLS that ends at the proxy: mTLS of inbound chains with the workload's certificate, and the TLS settings of Sidecar
//! ingress listeners and of gateways' servers.
//!
//! Nothing here warns or rejects; unknown cipher suites are left out.

use trysail_sdk::proto::envoy::config::core::v3::{DataSource, data_source};
use trysail_sdk::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters,
    certificate_validation_context, common_tls_context, tls_parameters,
};
use trysail_sdk::proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, mesh_config};
use trysail_sdk::proto::istio::networking::v1alpha3::{ServerTlsSettings, server_tls_settings};
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

use crate::{node, parts, secrets};

const TCP_ALPN: [&str; 3] = ["istio-peer-exchange", "h2", "http/1.1"];
const HTTP_ALPN: [&str; 2] = ["h2", "http/1.1"];

/// Cipher suites that both ends of a mesh connection accept.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// Those of FIPS 140-2.
const FIPS_CIPHERS: [&str; 4] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// Cipher suites that settings may name.
const KNOWN_CIPHERS: [&str; 16] = [
    "ALL",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// `listeners/mtls-socket` `http` or `tcp`: the transport socket of chains that ask clients for their mesh identity.
pub fn mtls_socket(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let tcp = args.first().is_some_and(|a| a == "tcp");
    let [exchange, no_exchange_alpn, any_trust_domain] =
        ctx.flags(["PILOT_ENABLE_METADATA_EXCHANGE", "PILOT_DISABLE_MX_ALPN", "PILOT_SKIP_VALIDATE_TRUST_DOMAIN"])?;
    let mesh = ctx.mesh_config(&["mesh_mTLS", "trust_domain", "trust_domain_aliases", "ca_certificates"])?;
    let settings = mesh.mesh_m_tls.clone().unwrap_or_default();
    let ciphers = if settings.cipher_suites.is_empty() { owned(&CIPHERS) } else { settings.cipher_suites };
    let mut common = CommonTlsContext {
        alpn_protocols: if tcp && exchange && !no_exchange_alpn { owned(&TCP_ALPN) } else { owned(&HTTP_ALPN) },
        tls_params: Some(TlsParameters {
            cipher_suites: ciphers,
            tls_minimum_protocol_version: min_version(settings.min_protocol_version),
            tls_maximum_protocol_version: tls_parameters::TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    let sans = if any_trust_domain { Vec::new() } else { trust_domains(&mesh) };
    let metadata = |key: &str| ctx.proxy_metadata(key).unwrap_or_default();
    let files = Files {
        chain: metadata("TLS_SERVER_CERT_CHAIN"),
        key: metadata("TLS_SERVER_KEY"),
        root: metadata("TLS_SERVER_ROOT_CERT"),
        server: file_server(ctx),
    };
    files.apply(&mut common, sans, true, &ServerTlsSettings::default());
    comply(ctx, &mut common)?;
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    let mut output = Output::empty();
    output.item(Item::new("mtls-socket", Message::of(&parts::tls_socket(&context))));
    Ok(output)
}

/// What runs inside of TLS that ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// HTTP/3: TLS is a part of QUIC.
    Http3,
    /// Whatever a gateway passes on as TCP.
    Tcp,
}

/// The context of a listener with TLS settings of its own: a Sidecar's ingress listener, or a gateway's server.
pub fn server(ctx: &Ctx<'_>, settings: &ServerTlsSettings, inside: Inside) -> Result<DownstreamTlsContext, Failure> {
    use server_tls_settings::TlSmode;
    let mode = TlSmode::try_from(settings.mode).unwrap_or(TlSmode::Passthrough);
    // Envoy cannot ask for certificates over QUIC.
    let required = matches!(mode, TlSmode::Mutual | TlSmode::IstioMutual) && inside != Inside::Http3;
    let validates = required || mode == TlSmode::OptionalMutual;
    let alpn = match inside {
        Inside::Http3 => owned(&["h3"]),
        Inside::Tcp if mode == TlSmode::IstioMutual && !ctx.flags(["PILOT_DISABLE_MX_ALPN"])?[0] => owned(&TCP_ALPN),
        Inside::Tcp | Inside::Http => owned(&HTTP_ALPN),
    };
    let mut common = CommonTlsContext { alpn_protocols: alpn, ..Default::default() };
    let exact: Vec<StringMatcher> = settings.subject_alt_names.iter().map(|san| exact_match(san)).collect();

    if mode == TlSmode::IstioMutual {
        let metadata = |key: &str| ctx.proxy_metadata(key).unwrap_or_default();
        let files = Files {
            chain: metadata("TLS_SERVER_CERT_CHAIN"),
            key: metadata("TLS_SERVER_KEY"),
            root: metadata("TLS_SERVER_ROOT_CERT"),
            server: file_server(ctx),
        };
        files.apply(&mut common, exact, validates, settings);
    } else if !settings.credential_name.is_empty() || !settings.credential_names.is_empty() {
        credentials(ctx, &mut common, settings, mode, exact)?;
    } else {
        let files = Files {
            chain: settings.server_certificate.clone(),
            key: settings.private_key.clone(),
            root: settings.ca_certificates.clone(),
            server: file_server(ctx),
        };
        files.apply(&mut common, exact, validates, settings);
    }
    if matches!(mode, TlSmode::Simple | TlSmode::Mutual | TlSmode::OptionalMutual) {
        let defaults = ctx.mesh_config(&["tls_defaults"])?.tls_defaults;
        parameters(&mut common, defaults, settings);
    }
    comply(ctx, &mut common)?;
    Ok(DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(required),
        ..Default::default()
    })
}

/// The mesh's defaults under the listener's own parameters.
fn parameters(common: &mut CommonTlsContext, defaults: Option<mesh_config::TlsConfig>, settings: &ServerTlsSettings) {
    let mut params = TlsParameters::default();
    if let Some(defaults) = defaults {
        params.ecdh_curves = defaults.ecdh_curves;
        params.cipher_suites = defaults.cipher_suites;
        if defaults.min_protocol_version != 0 {
            params.tls_minimum_protocol_version = min_version(defaults.min_protocol_version);
        }
    }
    // Both enumerations count from "automatic" over TLS 1.0 to 1.3.
    if settings.min_protocol_version != 0 {
        params.tls_minimum_protocol_version = settings.min_protocol_version;
    }
    if settings.max_protocol_version != 0 {
        params.tls_maximum_protocol_version = settings.max_protocol_version;
    }
    let mut own: Vec<String> = Vec::new();
    for cipher in &settings.cipher_suites {
        if KNOWN_CIPHERS.contains(&cipher.as_str()) && !own.contains(cipher) {
            own.push(cipher.clone());
        }
    }
    if !own.is_empty() {
        params.cipher_suites = own;
    }
    if params != TlsParameters::default() {
        common.tls_params = Some(params);
    }
}

/// Certificates by the names of secrets, which istiod serves.
fn credentials(
    ctx: &Ctx<'_>,
    common: &mut CommonTlsContext,
    settings: &ServerTlsSettings,
    mode: server_tls_settings::TlSmode,
    exact: Vec<StringMatcher>,
) -> Result<(), Failure> {
    use server_tls_settings::TlSmode;
    let names: Vec<&String> = if settings.credential_names.is_empty() {
        vec![&settings.credential_name]
    } else {
        settings.credential_names.iter().collect()
    };
    for name in &names {
        common.tls_certificate_sds_secret_configs.push(secrets::served(ctx, name)?.unwrap_or_default());
    }
    let ca = if settings.ca_cert_credential_name.is_empty() {
        names.first().map(|name| format!("{name}-cacert")).unwrap_or_default()
    } else {
        settings.ca_cert_credential_name.clone()
    };
    if matches!(mode, TlSmode::Mutual | TlSmode::OptionalMutual) {
        let context = CertificateValidationContext {
            verify_certificate_spki: settings.verify_certificate_spki.clone(),
            verify_certificate_hash: settings.verify_certificate_hash.clone(),
            ..validation(exact, settings.insecure_skip_verify)
        };
        common.validation_context_type = Some(combined(context, secrets::served(ctx, &ca)?));
    } else if !exact.is_empty() {
        common.validation_context_type =
            Some(common_tls_context::ValidationContextType::ValidationContext(validation(exact, None)));
    }
    Ok(())
}

/// Certificates by the paths of files, or the workload's own where no path is given.
struct Files {
    chain: String,
    key: String,
    root: String,
    /// Secrets of files come from the agent's file server.
    server: bool,
}

impl Files {
    fn apply(
        &self,
        common: &mut CommonTlsContext,
        sans: Vec<StringMatcher>,
        validates: bool,
        settings: &ServerTlsSettings,
    ) {
        let pair = |chain: &str, key: &str| {
            let name =
                if chain.is_empty() || key.is_empty() { String::new() } else { format!("file-cert:{chain}~{key}") };
            self.secret(name, "default")
        };
        common.tls_certificate_sds_secret_configs = if settings.tls_certificates.is_empty() {
            vec![pair(&self.chain, &self.key)]
        } else {
            settings.tls_certificates.iter().map(|c| pair(&c.server_certificate, &c.private_key)).collect()
        };
        if validates {
            let root = if self.root.is_empty() { String::new() } else { format!("file-root:{}", self.root) };
            let mut context = validation(sans, settings.insecure_skip_verify);
            if !settings.ca_crl.is_empty() {
                context.crl = Some(DataSource {
                    specifier: Some(data_source::Specifier::Filename(settings.ca_crl.clone())),
                    ..Default::default()
                });
            }
            common.validation_context_type = Some(combined(context, Some(self.secret(root, "ROOTCA"))));
        }
    }

    fn secret(&self, file: String, fallback: &str) -> SdsSecretConfig {
        match (file.is_empty(), self.server) {
            (true, _) => secrets::own(fallback),
            (false, true) => secrets::from(secrets::AGENT_FILES, &file),
            (false, false) => secrets::from(secrets::AGENT, &file),
        }
    }
}

#[allow(deprecated)] // Envoy's newer field has other semantics for URI SANs; proxies of all versions read this one.
fn validation(sans: Vec<StringMatcher>, insecure: Option<bool>) -> CertificateValidationContext {
    use certificate_validation_context::TrustChainVerification;
    let mut context = CertificateValidationContext { match_subject_alt_names: sans, ..Default::default() };
    if insecure == Some(true) {
        context.trust_chain_verification = TrustChainVerification::AcceptUntrusted as i32;
    }
    context
}

fn combined(
    context: CertificateValidationContext,
    roots: Option<SdsSecretConfig>,
) -> common_tls_context::ValidationContextType {
    common_tls_context::ValidationContextType::CombinedValidationContext(
        common_tls_context::CombinedCertificateValidationContext {
            default_validation_context: Some(context),
            validation_context_sds_secret_config: roots,
            ..Default::default()
        },
    )
}

fn file_server(ctx: &Ctx<'_>) -> bool {
    node::is_true(ctx, "FILE_CREDENTIAL")
}

fn min_version(configured: i32) -> i32 {
    let newest = mesh_config::tls_config::TlsProtocol::Tlsv13 as i32;
    let version =
        if configured == newest { tls_parameters::TlsProtocol::TlSv13 } else { tls_parameters::TlsProtocol::TlSv12 };
    version as i32
}

/// Identities of the mesh's trust domains, each once.
fn trust_domains(mesh: &MeshConfig) -> Vec<StringMatcher> {
    let mut seen: Vec<&str> = Vec::new();
    let all = std::iter::once(&mesh.trust_domain)
        .chain(&mesh.trust_domain_aliases)
        .chain(mesh.ca_certificates.iter().flat_map(|c| &c.trust_domains));
    for domain in all {
        if !domain.is_empty() && !seen.contains(&domain.as_str()) {
            seen.push(domain);
        }
    }
    let prefix = |domain: &&str| StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Prefix(format!("spiffe://{domain}/"))),
        ..Default::default()
    };
    seen.iter().map(prefix).collect()
}

fn exact_match(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(string_matcher::MatchPattern::Exact(text.into())), ..Default::default() }
}

/// Narrows parameters to what the compliance policy of the control plane allows.
fn comply(ctx: &Ctx<'_>, common: &mut CommonTlsContext) -> Result<(), Failure> {
    let policy = ctx.features(&["COMPLIANCE_POLICY"])?.swap_remove(0);
    match policy.as_str() {
        "fips-140-2" => {
            let params = common.tls_params.get_or_insert_default();
            params.tls_minimum_protocol_version = tls_parameters::TlsProtocol::TlSv12 as i32;
            params.tls_maximum_protocol_version = tls_parameters::TlsProtocol::TlSv12 as i32;
            params.cipher_suites.retain(|c| FIPS_CIPHERS.contains(&c.as_str()));
            params.ecdh_curves.clear();
        }
        "fips-140-3" => {
            // Envoy's own policy overrides the other parameters.
            let params = common.tls_params.get_or_insert_default();
            params.compliance_policies = vec![tls_parameters::CompliancePolicy::Fips202205 as i32];
        }
        "pqc" => {
            let params = common.tls_params.get_or_insert_default();
            params.tls_minimum_protocol_version = tls_parameters::TlsProtocol::TlSv13 as i32;
            params.cipher_suites = owned(&FIPS_CIPHERS);
            params.ecdh_curves = vec!["X25519MLKEM768".into()];
        }
        _ => {}
    }
    Ok(())
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, items};
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::any::unpack;
    use trysail_sdk::proto::envoy::config::core::v3::{TransportSocket, transport_socket};
    use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;

    fn socket(host: &Answers, protocol: &str) -> CommonTlsContext {
        let ctx = Ctx::new(host);
        let output = mtls_socket(&ctx, &[protocol.to_owned()]).expect("a socket");
        let socket = TransportSocket::decode(items(&ctx, &output)[0].1.as_slice()).expect("decodes");
        let Some(transport_socket::ConfigType::TypedConfig(any)) = socket.config_type else { panic!("no config") };
        let context: DownstreamTlsContext = unpack(&any).expect("a context").expect("decodes");
        assert_eq!(context.require_client_certificate, Some(true));
        context.common_tls_context.expect("set")
    }

    #[test]
    fn only_tcp_offers_metadata_exchange() {
        let host = Answers::default();
        assert_eq!(socket(&host, "tcp").alpn_protocols, TCP_ALPN);
        assert_eq!(socket(&host, "http").alpn_protocols, HTTP_ALPN);
    }

    #[test]
    fn certificates_of_the_workload_may_be_files() {
        let host = Answers::default().text("proxy", &["metadata:TLS_SERVER_CERT_CHAIN"], "/c.pem").text(
            "proxy",
            &["metadata:TLS_SERVER_KEY"],
            "/k.pem",
        );
        let common = socket(&host, "http");
        assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "file-cert:/c.pem~/k.pem");
        let Some(common_tls_context::ValidationContextType::CombinedValidationContext(combined)) =
            common.validation_context_type
        else {
            panic!("no validation")
        };
        assert_eq!(combined.validation_context_sds_secret_config.expect("set").name, "ROOTCA");
    }

    #[test]
    fn each_trust_domain_counts_once() {
        let mesh = MeshConfig {
            trust_domain: "a".into(),
            trust_domain_aliases: vec!["b".into(), "a".into(), String::new()],
            ..Default::default()
        };
        assert_eq!(trust_domains(&mesh).len(), 2);
    }

    #[test]
    fn a_sidecar_names_secrets_and_parameters() {
        let settings = ServerTlsSettings {
            mode: TlSmode::Simple as i32,
            credential_name: "shop".into(),
            cipher_suites: vec!["AES128-SHA".into(), "unknown".into()],
            min_protocol_version: 3,
            ..Default::default()
        };
        let common = server(&Ctx::new(&Answers::default()), &settings, Inside::Http)
            .expect("a context")
            .common_tls_context
            .expect("set");
        assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "kubernetes://shop");
        let params = common.tls_params.expect("set");
        assert_eq!(params.cipher_suites, ["AES128-SHA"]);
        assert_eq!(params.tls_minimum_protocol_version, tls_parameters::TlsProtocol::TlSv12 as i32);
    }
}
