//! Where Envoy gets secrets from: the agent beside it, this control plane, or a secret service of the user's.
//!
//! Only names are known here. A credential of an external service that the mesh does not know leads nowhere: it is an
//! error, and the chain that needs it has a gap in its place, as istiod leaves it. Envoy does not take such a listener, so
//! what it has stays.

use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::core::v3::{
    AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, api_config_source, config_source,
    grpc_service,
};
use trysail_sdk::proto::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::extension_provider::Provider;
use trysail_sdk::{Ctx, Failure};

use crate::{naming, node};

/// Cluster of the agent.
pub const AGENT: &str = "sds-grpc";
/// Cluster of the agent's file server.
pub const AGENT_FILES: &str = "sds-files-grpc";
/// Cluster of the secret service behind the socket that the pod's `credential` metadata promises.
const SOCKET: &str = "sds-external";
/// Credentials of an external secret service.
const EXTERNAL: &str = "sds://";
/// The workload's own certificate.
const BUILTIN: &str = "builtin://";
/// A certificate that never validates.
const INVALID: &str = "invalid://";

/// The workload's own certificate or roots, which the agent has. Envoy waits for these without a limit, since nothing
/// works without them.
pub fn own(name: &str) -> SdsSecretConfig {
    over_grpc(name, AGENT, "", Some(Duration::default()))
}

/// A secret of a cluster that has the protocol.
pub fn from(cluster: &str, name: &str) -> SdsSecretConfig {
    over_grpc(name, cluster, "", None)
}

/// A credential by its name; none when it is of an external service that the mesh does not know. The secret may not exist,
/// so Envoy does not wait for it forever.
pub fn served(ctx: &Ctx<'_>, name: &str) -> Result<Option<SdsSecretConfig>, Failure> {
    match name {
        "builtin://" => return Ok(Some(own("default"))),
        "builtin://-cacert" => return Ok(Some(own("ROOTCA"))),
        _ => {}
    }
    let Some(inner) = name.strip_prefix(EXTERNAL) else { return Ok(Some(over_ads(name))) };
    if node::is_true(ctx, "credential") {
        // Services behind the socket expect the name with its prefix.
        return Ok(Some(from(SOCKET, name)));
    }
    let Some((service, port)) = provider(ctx)? else { return Ok(Some(over_ads(inner))) };
    let host = host_of(ctx, &service)?;
    Ok(host.map(|host| over_grpc(inner, &naming::outbound_cluster(port, "", &host), &host, None)))
}

/// Service and port of the mesh's first external secret service.
fn provider(ctx: &Ctx<'_>) -> Result<Option<(String, u32)>, Failure> {
    let mesh = ctx.mesh_config(&["extension_providers"])?;
    Ok(mesh.extension_providers.into_iter().find_map(|p| match p.provider {
        Some(Provider::Sds(sds)) => Some((sds.service, sds.port)),
        _ => None,
    }))
}

/// The host of a service that is named `namespace/host`, or by a host that is in one namespace only.
fn host_of(ctx: &Ctx<'_>, service: &str) -> Result<Option<String>, Failure> {
    Ok(match service.split_once('/') {
        Some(_) => ctx.service(service)?.map(|found| found.host),
        None => (ctx.services_of_host(service)?.len() == 1).then(|| service.to_owned()),
    })
}

/// A secret of this control plane.
fn over_ads(name: &str) -> SdsSecretConfig {
    let typed = ["kubernetes://", "kubernetes-gateway://", "configmap://"];
    let name = if name.starts_with(BUILTIN) {
        "default".to_owned()
    } else if name.starts_with(INVALID) {
        INVALID.to_owned()
    } else if typed.iter().any(|prefix| name.starts_with(prefix)) {
        name.to_owned()
    } else {
        format!("kubernetes://{name}")
    };
    let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    SdsSecretConfig { name, sds_config: Some(source(ads, None)) }
}

fn over_grpc(name: &str, cluster: &str, authority: &str, wait: Option<Duration>) -> SdsSecretConfig {
    let target =
        grpc_service::EnvoyGrpc { cluster_name: cluster.into(), authority: authority.into(), ..Default::default() };
    let service =
        GrpcService { target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)), ..Default::default() };
    let api = ApiConfigSource {
        api_type: api_config_source::ApiType::Grpc as i32,
        transport_api_version: ApiVersion::V3 as i32,
        set_node_on_first_message_only: true,
        grpc_services: vec![service],
        ..Default::default()
    };
    let api = config_source::ConfigSourceSpecifier::ApiConfigSource(api);
    SdsSecretConfig { name: name.into(), sds_config: Some(source(api, wait)) }
}

fn source(from: config_source::ConfigSourceSpecifier, wait: Option<Duration>) -> ConfigSource {
    ConfigSource {
        initial_fetch_timeout: wait,
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(from),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answers;
    use trysail_sdk::facts::Strings;
    use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, mesh_config};

    fn name(host: &Answers, credential: &str) -> String {
        served(&Ctx::new(host), credential).expect("an answer").map(|secret| secret.name).unwrap_or_default()
    }

    #[test]
    fn names_say_where_secrets_are() {
        let host = Answers::default();
        let found =
            ["shop", "kubernetes-gateway://a/b", "builtin://", "builtin://-cacert", "invalid://x", "sds://shop"]
                .map(|credential| name(&host, credential));
        assert_eq!(
            found,
            ["kubernetes://shop", "kubernetes-gateway://a/b", "default", "ROOTCA", "invalid://", "kubernetes://shop"]
        );
    }

    #[test]
    fn external_services_are_a_socket_or_a_provider() {
        let socket = Answers::default().text("proxy", &["metadata:credential"], "true");
        assert_eq!(name(&socket, "sds://shop"), "sds://shop");
        let sds =
            mesh_config::extension_provider::SdsProvider { service: "sds.test".into(), port: 80, ..Default::default() };
        let provider = mesh_config::ExtensionProvider { name: "sds".into(), provider: Some(Provider::Sds(sds)) };
        let mesh = MeshConfig { extension_providers: vec![provider], ..Default::default() };
        let known = Answers::default().message("mesh-config", &[], &mesh).message(
            "services-of-host",
            &["sds.test"],
            &Strings { values: vec!["ns/sds.test".into()] },
        );
        assert_eq!(name(&known, "sds://shop"), "shop");
        let unknown = Answers::default().message("mesh-config", &[], &mesh);
        assert_eq!(name(&unknown, "sds://shop"), "");
    }
}
