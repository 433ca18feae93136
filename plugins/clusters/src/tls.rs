//! TLS towards the hosts of a cluster.
//!
//! Rejects, with a diagnostic, leaving the cluster without TLS: MUTUAL without certificate and key.
//! Ignores silently, as istiod: a `credentialName` in a rule that sidecars without a workload selector read, because all of
//! them would wait for a secret they may not have.

use std::borrow::Cow;

use trysail_sdk::Fields;
use trysail_sdk::prost::{Message as _, Name as _};
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::DiscoveryType;
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, ApiConfigSource, ApiVersion, ConfigSource, DataSource, GrpcService, ProxyProtocolConfig,
    UpstreamHttpProtocolOptions, api_config_source::ApiType, config_source, data_source, grpc_service,
};
use trysail_sdk::proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use trysail_sdk::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    tls_parameters::{CompliancePolicy, TlsProtocol},
};
use trysail_sdk::proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use trysail_sdk::proto::istio::networking::v1alpha3::ClientTlsSettings;
use trysail_sdk::proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::traffic_policy::ProxyProtocol;

use crate::draft::{Draft, Transport};
use crate::settings::{ProxyTraits, Settings};
use crate::wire::{self, seconds};

/// Names of secrets that the agent beside the proxy provides: identity and roots of the mesh.
const SECRET_IDENTITY: &str = "default";
const SECRET_ROOTS: &str = "ROOTCA";
/// Cluster of the agent's secret service, in the proxy's bootstrap.
const AGENT: &str = "sds-grpc";
/// Cluster of a secret service for certificate files, in the proxy's bootstrap.
const AGENT_FILES: &str = "sds-files-grpc";
/// Cluster of the secret service behind the credential socket.
pub const EXTERNAL: &str = "sds-external";
const PREFIX_EXTERNAL: &str = "sds://";
const PREFIX_CONFIG_MAP: &str = "configmap://";
const SUFFIX_ROOTS: &str = "-cacert";

/// Fields of the common TLS context.
const ALPN_PROTOCOLS: u32 = 4;
const COMBINED_VALIDATION: u32 = 8;
/// Field of a validation context, and of a matcher of strings in it.
const SUBJECT_ALT_NAMES: u32 = 9;
const EXACT: u32 = 1;
/// Field of a PROXY protocol's transport: the socket inside.
const INNER_SOCKET: u32 = 2;

const SOCKET_TLS: &str = "envoy.transport_sockets.tls";
const SOCKET_RAW: &str = "envoy.transport_sockets.raw_buffer";
const SOCKET_PROXY: &str = "envoy.transport_sockets.upstream_proxy_protocol";

/// Ciphers that FIPS 140-2 allows.
const FIPS_CIPHERS: [&str; 4] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// What TLS of a cluster depends on.
pub struct Situation<'a> {
    /// The mesh's settings.
    pub settings: &'a Settings,
    /// The proxy's.
    pub proxy: &'a ProxyTraits,
    /// The service is outside of the mesh.
    pub external: bool,
    /// The service is of a ServiceEntry: its SANs stand in for those that a rule leaves out.
    pub entry: bool,
    /// The rule selects workloads.
    pub selective: bool,
    /// SNI of mutual TLS; empty: the cluster's name.
    pub sni: &'a str,
}

/// The TLS that holds.
pub struct Choice<'a> {
    /// Its settings.
    pub tls: Cow<'a, ClientTlsSettings>,
    /// Nobody asked for it: hosts without a sidecar get plaintext.
    pub automatic: bool,
}

/// Completes what a rule says, or else what mutual TLS among sidecars needs. `accounts`: identities of the service's workloads;
/// `mutual`: whether its workloads take mutual TLS. Both are asked for only where they matter.
pub fn choose<'a, E>(
    at: &Situation<'_>,
    asked: Option<&'a ClientTlsSettings>,
    accounts: impl FnOnce() -> Result<Vec<String>, E>,
    mutual: impl FnOnce() -> Result<bool, E>,
) -> Result<Option<Choice<'a>>, E> {
    let own_certificate = !at.proxy.cert_chain.is_empty();
    let Some(asked) = asked else {
        if at.external || !at.settings.auto_mtls || !mutual()? {
            return Ok(None);
        }
        let (sans, sni) = (accounts()?, at.sni.to_owned());
        let tls = if own_certificate { with_files(at.proxy, sans, sni, None) } else { istio_mutual(sans, sni, None) };
        return Ok(Some(Choice { tls: Cow::Owned(tls), automatic: true }));
    };
    let as_asked = |tls| Ok(Some(Choice { tls: Cow::Borrowed(tls), automatic: false }));
    if matches!(asked.mode(), TlSmode::Disable | TlSmode::Simple) {
        return as_asked(asked);
    }
    if own_certificate {
        // Who runs proxies with certificates of their own means them for the mesh; other hosts may want others.
        if at.settings.rule_tls_for_external && at.external {
            return as_asked(asked);
        }
        let tls = with_files(at.proxy, asked.subject_alt_names.clone(), asked.sni.clone(), asked.insecure_skip_verify);
        return Ok(Some(Choice { tls: Cow::Owned(tls), automatic: false }));
    }
    if asked.mode() != TlSmode::IstioMutual {
        return as_asked(asked);
    }
    let sni = if asked.sni.is_empty() { at.sni } else { &asked.sni };
    let sans = if asked.subject_alt_names.is_empty() { accounts()? } else { asked.subject_alt_names.clone() };
    let tls = istio_mutual(sans, sni.to_owned(), asked.insecure_skip_verify);
    Ok(Some(Choice { tls: Cow::Owned(tls), automatic: false }))
}

fn istio_mutual(subject_alt_names: Vec<String>, sni: String, insecure_skip_verify: Option<bool>) -> ClientTlsSettings {
    let mode = TlSmode::IstioMutual.into();
    ClientTlsSettings { mode, subject_alt_names, sni, insecure_skip_verify, ..Default::default() }
}

fn with_files(
    proxy: &ProxyTraits,
    sans: Vec<String>,
    sni: String,
    insecure_skip_verify: Option<bool>,
) -> ClientTlsSettings {
    ClientTlsSettings {
        mode: TlSmode::Mutual.into(),
        ca_certificates: proxy.root.clone(),
        client_certificate: proxy.cert_chain.clone(),
        private_key: proxy.key.clone(),
        subject_alt_names: sans,
        sni,
        insecure_skip_verify,
        ..Default::default()
    }
}

/// Puts TLS on a cluster. `accounts` as for [`choose`]; `is_sidecar` is asked only for named credentials.
///
/// # Errors
/// Why the cluster goes without TLS, unless asking failed.
pub fn apply<E>(
    at: &Situation<'_>,
    draft: &mut Draft,
    choice: Option<&Choice<'_>>,
    accounts: impl FnOnce() -> Result<Vec<String>, E>,
    is_sidecar: impl FnOnce() -> bool,
) -> Result<Result<(), &'static str>, E> {
    let Some(choice) = choice else { return Ok(Ok(())) };
    let context = match context(at, draft, &choice.tls, accounts, is_sidecar)? {
        Ok(context) => context,
        Err(why) => return Ok(Err(why)),
    };
    let Some(context) = context else { return Ok(Ok(())) };
    let socket = wire::transport(SOCKET_TLS, &UpstreamTlsContext::type_url(), &context);
    let by_host = choice.automatic && choice.tls.mode() == TlSmode::IstioMutual;
    // Hosts of ORIGINAL_DST clusters have no metadata to match by.
    draft.transport = if by_host && draft.kind() != Some(DiscoveryType::OriginalDst) {
        Transport::ByHost { mutual: socket, plain: wire::raw_buffer(SOCKET_RAW) }
    } else {
        Transport::Socket(socket)
    };
    Ok(Ok(()))
}

/// The encoded TLS context; none without TLS. Sets SNI and SAN from the request's host where nobody set them.
fn context<E>(
    at: &Situation<'_>,
    draft: &mut Draft,
    tls: &ClientTlsSettings,
    accounts: impl FnOnce() -> Result<Vec<String>, E>,
    is_sidecar: impl FnOnce() -> bool,
) -> Result<Result<Option<Vec<u8>>, &'static str>, E> {
    let secret = !tls.credential_name.is_empty() && !tls.credential_name.starts_with(PREFIX_CONFIG_MAP);
    let from_credential = matches!(tls.mode(), TlSmode::Simple | TlSmode::Mutual);
    if secret && from_credential && !at.selective && is_sidecar() {
        return Ok(Ok(None));
    }
    match tls.mode() {
        TlSmode::Disable => Ok(Ok(None)),
        TlSmode::IstioMutual => Ok(Ok(Some(mesh(at, draft, tls)))),
        TlSmode::Simple | TlSmode::Mutual => {
            let sans =
                if at.entry && tls.subject_alt_names.is_empty() { accounts()? } else { tls.subject_alt_names.clone() };
            let mut context = match custom_context(at, draft, tls, &sans) {
                Ok(context) => context,
                Err(why) => return Ok(Err(why)),
            };
            if let Some(params) = context.common_tls_context.as_mut().and_then(|common| common.tls_params.as_mut()) {
                comply(&at.settings.compliance, params);
            }
            Ok(Ok(Some(context.encode_to_vec())))
        }
    }
}

/// What all mutual TLS of the mesh has in common: versions and the proxy's identity.
pub fn mesh_context(compliance: &str) -> CommonTlsContext {
    let mut params = versions();
    comply(compliance, &mut params);
    CommonTlsContext {
        tls_params: Some(params),
        tls_certificate_sds_secret_configs: vec![agent_secret(SECRET_IDENTITY, AGENT)],
        ..Default::default()
    }
}

/// The mesh's roots.
pub fn mesh_roots() -> SdsSecretConfig {
    agent_secret(SECRET_ROOTS, AGENT)
}

/// Mutual TLS of the mesh. Nearly every cluster has it, so it is put together from parts that are encoded already: the fields
/// of [`UpstreamTlsContext`] by their numbers.
fn mesh(at: &Situation<'_>, draft: &mut Draft, tls: &ClientTlsSettings) -> Vec<u8> {
    if draft.dynamic {
        names_from_request(draft, tls);
    }
    let settings = at.settings;
    let h2 = draft.http.is_h2();
    let sni = if tls.sni.is_empty() && !draft.dynamic { &draft.cluster.name } else { &tls.sni };
    Fields::of(|context| {
        context.nested(1, |common| {
            common.raw(&settings.mesh_tls);
            if settings.metadata_exchange && !settings.no_exchange_alpn {
                common.text(ALPN_PROTOCOLS, "istio-peer-exchange");
            }
            common.text(ALPN_PROTOCOLS, "istio");
            if h2 {
                common.text(ALPN_PROTOCOLS, "h2");
            }
            common.nested(COMBINED_VALIDATION, |validation| {
                validation.nested(1, |names| {
                    for san in &tls.subject_alt_names {
                        names.nested(SUBJECT_ALT_NAMES, |name| name.text(EXACT, san));
                    }
                });
                validation.bytes(2, &settings.mesh_roots);
            });
        });
        if !sni.is_empty() {
            context.text(2, sni);
        }
    })
}

fn custom_context(
    at: &Situation<'_>,
    draft: &mut Draft,
    tls: &ClientTlsSettings,
    sans: &[String],
) -> Result<UpstreamTlsContext, &'static str> {
    names_from_request(draft, tls);
    let mutual = tls.mode() == TlSmode::Mutual;
    let skip = tls.insecure_skip_verify == Some(true);
    let mut common = CommonTlsContext { tls_params: Some(versions()), ..Default::default() };
    if tls.credential_name.is_empty() {
        let server = if at.proxy.file_credential_socket { AGENT_FILES } else { AGENT };
        if mutual {
            if tls.client_certificate.is_empty() || tls.private_key.is_empty() {
                return Err("client certificate and private key must not be empty");
            }
            let name = format!("file-cert:{}~{}", tls.client_certificate, tls.private_key);
            common.tls_certificate_sds_secret_configs.push(agent_secret(&name, server));
        }
        common.validation_context_type = Some(if skip {
            ValidationContextType::ValidationContext(CertificateValidationContext::default())
        } else {
            let roots = if tls.ca_certificates.is_empty() { "system" } else { &tls.ca_certificates };
            let mut context = names(sans);
            if !tls.ca_crl.is_empty() {
                let file = data_source::Specifier::Filename(tls.ca_crl.clone());
                context.crl = Some(DataSource { specifier: Some(file), ..Default::default() });
            }
            validation(context, agent_secret(&format!("file-root:{roots}"), server))
        });
    } else {
        if mutual {
            common.tls_certificate_sds_secret_configs.push(named_secret(at, &tls.credential_name));
        }
        if !skip {
            let roots = format!("{}{SUFFIX_ROOTS}", tls.credential_name);
            common.validation_context_type = Some(validation(names(sans), named_secret(at, &roots)));
        }
    }
    if let (Some(defaults), Some(params)) = (&at.settings.tls_defaults, &mut common.tls_params) {
        params.ecdh_curves.clone_from(&defaults.ecdh_curves);
        params.cipher_suites.clone_from(&defaults.cipher_suites);
    }
    if draft.http.is_h2() {
        common.alpn_protocols = vec!["h2".to_owned()];
    }
    Ok(UpstreamTlsContext { common_tls_context: Some(common), sni: tls.sni.clone(), ..Default::default() })
}

/// SNI from the request's host unless it is set; and with it the SAN, unless SANs are set or nothing is verified. Of dynamic
/// clusters the SAN always.
fn names_from_request(draft: &mut Draft, tls: &ClientTlsSettings) {
    let skip = tls.insecure_skip_verify == Some(true);
    let auto_sni = tls.sni.is_empty();
    let auto_san = !skip && (draft.dynamic || (auto_sni && tls.subject_alt_names.is_empty()));
    if draft.dynamic && !(auto_sni && auto_san) {
        crate::dynamic::allow_insecure(&mut draft.cluster);
    }
    if auto_sni || auto_san {
        draft.http.used = true;
        let options = draft.http.upstream.get_or_insert_with(UpstreamHttpProtocolOptions::default);
        options.auto_sni |= auto_sni;
        options.auto_san_validation |= auto_san;
    }
}

/// Wraps what carries the traffic into the PROXY protocol.
pub fn proxy_protocol(draft: &mut Draft, asked: Option<&ProxyProtocol>) {
    let Some(asked) = asked else { return };
    let config = ProxyProtocolConfig { version: asked.version, ..Default::default() };
    let outer = ProxyProtocolUpstreamTransport { config: Some(config), ..Default::default() };
    let wrap = |inner: Vec<u8>| {
        let transport = Fields::of(|transport| {
            transport.raw(&outer.encode_to_vec());
            transport.bytes(INNER_SOCKET, &inner);
        });
        wire::transport(SOCKET_PROXY, &ProxyProtocolUpstreamTransport::type_url(), &transport)
    };
    draft.transport = match std::mem::take(&mut draft.transport) {
        Transport::Plain => Transport::Socket(wrap(wire::raw_buffer("raw_buffer"))),
        Transport::Socket(socket) => Transport::Socket(wrap(socket)),
        Transport::ByHost { mutual, plain } => Transport::ByHost { mutual: wrap(mutual), plain: wrap(plain) },
    };
}

fn versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    }
}

fn comply(policy: &str, params: &mut TlsParameters) {
    match policy {
        "fips-140-2" => {
            params.tls_minimum_protocol_version = TlsProtocol::TlSv12.into();
            params.tls_maximum_protocol_version = TlsProtocol::TlSv12.into();
            params.cipher_suites.retain(|cipher| FIPS_CIPHERS.contains(&cipher.as_str()));
            params.ecdh_curves.clear();
        }
        "fips-140-3" => params.compliance_policies = vec![CompliancePolicy::Fips202205.into()],
        "pqc" => {
            params.tls_minimum_protocol_version = TlsProtocol::TlSv13.into();
            // Said although TLS 1.3 does not use them: with OpenSSL Envoy takes its TLS 1.3 ciphers from here.
            params.cipher_suites = FIPS_CIPHERS.map(str::to_owned).to_vec();
            params.ecdh_curves = vec!["X25519MLKEM768".to_owned()];
        }
        _ => {}
    }
}

#[allow(deprecated, reason = "istiod sends the untyped form, which old proxies know too")]
fn names(sans: &[String]) -> CertificateValidationContext {
    let exact =
        |san: &String| StringMatcher { match_pattern: Some(MatchPattern::Exact(san.clone())), ..Default::default() };
    CertificateValidationContext { match_subject_alt_names: sans.iter().map(exact).collect(), ..Default::default() }
}

fn validation(context: CertificateValidationContext, roots: SdsSecretConfig) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(roots),
        ..Default::default()
    })
}

/// A secret of the agent. Clusters wait for the mesh's own, since nothing works without them.
fn agent_secret(name: &str, cluster: &str) -> SdsSecretConfig {
    let own = matches!(name, SECRET_IDENTITY | SECRET_ROOTS);
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(over_grpc(cluster, own.then(|| seconds(0)))) }
}

/// A secret by the name of its credential: from the pod's socket, or from the control plane.
fn named_secret(at: &Situation<'_>, name: &str) -> SdsSecretConfig {
    match name {
        "builtin://" => return agent_secret(SECRET_IDENTITY, AGENT),
        "builtin://-cacert" => return agent_secret(SECRET_ROOTS, AGENT),
        _ => {}
    }
    let name = match name.strip_prefix(PREFIX_EXTERNAL) {
        // Servers behind the socket expect the name with its prefix.
        Some(_) if at.proxy.credential_socket => {
            return SdsSecretConfig { name: name.to_owned(), sds_config: Some(over_grpc(EXTERNAL, None)) };
        }
        Some(inner) => inner,
        None => name,
    };
    let typed = [PREFIX_CONFIG_MAP, "kubernetes://", "kubernetes-gateway://", "invalid://"];
    let name = if typed.iter().any(|prefix| name.starts_with(prefix)) {
        name.to_owned()
    } else {
        format!("kubernetes://{name}")
    };
    // No timeout of its own: a secret that does not exist must not hold back the cluster.
    SdsSecretConfig { name, sds_config: Some(wire::ads(None)) }
}

fn over_grpc(cluster: &str, initial_fetch_timeout: Option<trysail_sdk::prost_types::Duration>) -> ConfigSource {
    let target = grpc_service::EnvoyGrpc { cluster_name: cluster.to_owned(), ..Default::default() };
    let source = ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        }],
        ..Default::default()
    };
    ConfigSource {
        initial_fetch_timeout,
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::ApiConfigSource(source)),
        ..Default::default()
    }
}
