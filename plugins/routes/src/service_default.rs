//! `service-default`: the one route of a service port that no VirtualService routes.
//!
//! Nothing warns or rejects.

use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::route::v3::{
    Decorator, Route, RouteAction, RouteMatch, route, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

use crate::destination::destination_rule;
use crate::domains::with_port;
use crate::{hash, policy};

/// Name of routes that no VirtualService made.
const NAME: &str = "default";

/// One item: everything goes to the service's own cluster. `host` is the service's name where the route is to have it
/// otherwise than the key: istiod writes hosts with capitals in lower case, though clusters keep them.
pub fn route(ctx: &Ctx<'_>, service_key: &str, port: u32, host: Option<&str>) -> Result<Output, Failure> {
    let Some((_, own_host)) = service_key.split_once('/') else {
        return Err(Failure::BadArguments(format!("{service_key:?} is no service key")));
    };
    let host = host.unwrap_or(own_host);
    let mesh = ctx.mesh_config(&["default_http_retry_policy"])?;
    let rule = destination_rule(ctx, service_key)?;
    let hash_policy = rule.as_ref().and_then(|rule| hash::for_port(rule, port)).and_then(hash::policy);
    #[allow(deprecated)]
    let action = RouteAction {
        timeout: Some(Duration::default()),
        max_grpc_timeout: Some(Duration::default()),
        // A hash alone does not stop retries on other hosts here, only in VirtualServices.
        retry_policy: policy::retries(mesh.default_http_retry_policy.as_ref(), false),
        hash_policy: hash_policy.into_iter().collect(),
        ..Default::default()
    };
    let cluster = format!("outbound|{port}||{host}");
    let mut output = Output::empty();
    output.item(Item::new(NAME, Message::of(&to_cluster(cluster, host, port, action))));
    Ok(output)
}

/// The route that takes everything to a cluster.
pub fn to_cluster(cluster: String, host: &str, port: u32, action: RouteAction) -> Route {
    Route {
        name: NAME.to_owned(),
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }),
        decorator: Some(Decorator { operation: format!("{}/*", with_port(host, port)), propagate: None }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
            ..action
        })),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, decode_items};
    use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;
    use trysail_sdk::proto::istio::networking::v1alpha3::HttpRetry;

    #[test]
    fn retries_come_from_the_mesh() {
        let fake = Fake::default();
        let routes: Vec<Route> = decode_items(&fake.run("service-default", &["ns/a.test", "80"]));
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].decorator.as_ref().expect("set").operation, "a.test:80/*");
        let Some(route::Action::Route(action)) = &routes[0].action else { panic!("no action") };
        assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("outbound|80||a.test".into())));
        assert_eq!(action.retry_policy.as_ref().and_then(|p| p.num_retries), Some(2));

        let off = MeshConfig { default_http_retry_policy: Some(HttpRetry::default()), ..Default::default() };
        let fake = Fake::default().answer("mesh-config", &["default_http_retry_policy"], &off);
        let routes: Vec<Route> = decode_items(&fake.run("service-default", &["ns/a.test", "80"]));
        let Some(route::Action::Route(action)) = &routes[0].action else { panic!("no action") };
        assert_eq!(action.retry_policy, None);
    }
}
