//! The tracing part of HTTP connection managers: the one part of an HTTP listener that is the workload's own, because
//! its tags name the workload. Everything else leaves a hole for it.
//!
//! Nothing here warns or rejects: values out of range are replaced as istiod does (a sampling above 100 % becomes 1 %).

use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing;
use trysail_sdk::proto::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind, metadata_key, metadata_kind};
use trysail_sdk::proto::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use trysail_sdk::proto::envoy::r#type::v3::Percent;
use trysail_sdk::proto::istio::mesh::v1alpha1::tracing as configured;
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

/// `listeners/tracing`: the tracing message, or nothing when tracing is off.
pub fn translate(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    if !ctx.mesh_config(&["enable_tracing"])?.enable_tracing {
        return Ok(output);
    }
    let tracing = ctx.proxy_config(&["tracing"])?.tracing.unwrap_or_default();
    let mut tags = if tracing.enable_istio_tags.unwrap_or(true) {
        let mut tags = workload_tags(ctx);
        tags.extend(dry_run_tags());
        tags
    } else {
        Vec::new()
    };
    tags.extend(tracing.custom_tags.iter().filter_map(|(name, tag)| custom(name, tag)));
    tags.sort_by(|a, b| a.tag.cmp(&b.tag));

    let full = Percent { value: 100.0 };
    let message = Tracing {
        client_sampling: Some(full),
        random_sampling: Some(Percent { value: sampling(ctx, tracing.sampling)? }),
        overall_sampling: Some(full),
        max_path_tag_length: (tracing.max_path_tag_length != 0).then_some(tracing.max_path_tag_length),
        custom_tags: tags,
        ..Default::default()
    };
    output.item(Item::new("tracing", Message::of(&message)));
    Ok(output)
}

/// Percent of requests that are sampled at random.
fn sampling(ctx: &Ctx<'_>, configured: f64) -> Result<f64, Failure> {
    if configured == 0.0 {
        let values = ctx.features(&["PILOT_TRACE_SAMPLING"])?;
        return Ok(values[0].parse().unwrap_or(1.0));
    }
    Ok(if configured > 100.0 { 1.0 } else { configured })
}

/// Tags that say whose spans these are. Missing values have the words that dashboards know.
fn workload_tags(ctx: &Ctx<'_>) -> Vec<CustomTag> {
    let or =
        |value: Option<String>, default: &str| value.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned());
    [
        ("istio.canonical_revision", or(ctx.proxy("label:service.istio.io/canonical-revision"), "latest")),
        ("istio.canonical_service", or(ctx.proxy("label:service.istio.io/canonical-name"), "unknown")),
        ("istio.mesh_id", or(ctx.proxy_metadata("MESH_ID"), "unknown")),
        ("istio.namespace", or(ctx.proxy_metadata("NAMESPACE"), "default")),
        ("istio.cluster_id", or(ctx.proxy_metadata("CLUSTER_ID"), "unknown")),
    ]
    .into_iter()
    .map(|(tag, value)| literal(tag, &value))
    .collect()
}

/// Tags with the verdict of dry-run authorization policies; without such policies Envoy leaves them out.
fn dry_run_tags() -> impl Iterator<Item = CustomTag> {
    ["allow", "deny"].into_iter().flat_map(|action| {
        [("name", "effective_policy_id"), ("result", "engine_result")].map(|(what, key)| {
            let segment = metadata_key::path_segment::Segment::Key(format!("istio_dry_run_{action}_shadow_{key}"));
            let metadata = custom_tag::Metadata {
                kind: Some(MetadataKind { kind: Some(metadata_kind::Kind::Request(metadata_kind::Request {})) }),
                metadata_key: Some(MetadataKey {
                    key: "envoy.filters.http.rbac".into(),
                    path: vec![metadata_key::PathSegment { segment: Some(segment) }],
                }),
                default_value: String::new(),
            };
            CustomTag {
                tag: format!("istio.authorization.dry_run.{action}_policy.{what}"),
                r#type: Some(custom_tag::Type::Metadata(metadata)),
            }
        })
    })
}

fn literal(tag: &str, value: &str) -> CustomTag {
    CustomTag { tag: tag.into(), r#type: Some(custom_tag::Type::Literal(custom_tag::Literal { value: value.into() })) }
}

/// A tag of the proxy configuration; one without a kind is left out.
fn custom(name: &str, tag: &configured::CustomTag) -> Option<CustomTag> {
    use configured::custom_tag::Type;
    let kind = match tag.r#type.clone()? {
        Type::Literal(l) => custom_tag::Type::Literal(custom_tag::Literal { value: l.value }),
        Type::Environment(e) => {
            custom_tag::Type::Environment(custom_tag::Environment { name: e.name, default_value: e.default_value })
        }
        Type::Header(h) => {
            custom_tag::Type::RequestHeader(custom_tag::Header { name: h.name, default_value: h.default_value })
        }
    };
    Some(CustomTag { tag: name.into(), r#type: Some(kind) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, items};
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, ProxyConfig, Tracing as Configured};

    fn traced(enable_tracing: bool, tracing: Configured) -> Option<Tracing> {
        let default_config = Some(ProxyConfig { tracing: Some(tracing), ..Default::default() });
        let mesh = MeshConfig { enable_tracing, default_config, ..Default::default() };
        let host = Answers::default().message("mesh-config", &[], &mesh);
        let ctx = Ctx::new(&host);
        let output = translate(&ctx).expect("an output");
        items(&ctx, &output).first().map(|(_, bytes)| Tracing::decode(bytes.as_slice()).expect("decodes"))
    }

    #[test]
    fn tags_are_sorted_and_have_defaults() {
        let found = traced(true, Configured { sampling: 120.0, ..Default::default() }).expect("tracing");
        let tags: Vec<&str> = found.custom_tags.iter().map(|t| t.tag.as_str()).collect();
        assert_eq!(tags.len(), 9);
        assert!(tags.is_sorted());
        assert_eq!(found.random_sampling.expect("set").value, 1.0);
    }

    #[test]
    fn it_can_be_off_or_without_tags() {
        assert!(traced(false, Configured::default()).is_none());
        let bare = traced(true, Configured { enable_istio_tags: Some(false), ..Default::default() }).expect("tracing");
        assert!(bare.custom_tags.is_empty());
    }
}
