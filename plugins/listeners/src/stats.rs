//! The filter that counts requests and connections for the mesh's default metrics providers. What Telemetry objects
//! say about metrics is the business of the telemetry stage, which will fill this hole.
//!
//! Providers that are not declared, or that count in another way than Prometheus, are passed over as istiod does.

use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::extension_provider::Provider;
use trysail_sdk::proto::stats::PluginConfig;
use trysail_sdk::{Ctx, Failure, Item, Output};

use crate::parts::filter_of;

/// `listeners/stats` `inbound`, `outbound` or `gateway`: the filters, good for HTTP and for TCP.
pub fn translate(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let mesh = ctx.mesh_config(&["default_providers", "extension_providers"])?;
    let mut names = mesh.default_providers.unwrap_or_default().metrics;
    names.sort();
    names.dedup();
    for name in names {
        let declared = mesh.extension_providers.iter().find(|p| p.name.eq_ignore_ascii_case(&name));
        if !matches!(declared.and_then(|p| p.provider.as_ref()), Some(Provider::Prometheus(_))) {
            continue;
        }
        // Of strangers a host header that names no service is not believed.
        let config = PluginConfig {
            disable_host_header_fallback: args.first().is_some_and(|a| a != "outbound"),
            ..Default::default()
        };
        output.item(Item::new(name, filter_of("istio.stats", &pack(&config))));
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answers;
    use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, mesh_config};

    #[test]
    fn only_prometheus_counts_here() {
        let provider =
            |name: &str, provider| mesh_config::ExtensionProvider { name: name.into(), provider: Some(provider) };
        let mesh = MeshConfig {
            default_providers: Some(mesh_config::DefaultProviders {
                metrics: vec!["prometheus".into(), "missing".into(), "envoy".into()],
                ..Default::default()
            }),
            extension_providers: vec![
                provider("Prometheus", Provider::Prometheus(Default::default())),
                provider("envoy", Provider::EnvoyFileAccessLog(Default::default())),
            ],
            ..Default::default()
        };
        let host = Answers::default().message("mesh-config", &[], &mesh);
        assert_eq!(translate(&Ctx::new(&host), &["inbound".into()]).expect("filters").entries.len(), 1);
        assert!(translate(&Ctx::new(&Answers::default()), &[]).expect("filters").entries.is_empty());
    }
}
