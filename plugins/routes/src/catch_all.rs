//! The last virtual host: what happens to a host that nobody knows.
//!
//! Decided by the outbound traffic policy in force for the proxy. Nothing warns or rejects.

use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteAction, RouteMatch, VirtualHost, route, route_action, route_match,
};
use trysail_sdk::proto::istio::networking::v1alpha3::{OutboundTrafficPolicy, outbound_traffic_policy::Mode};

/// `ALLOW_ANY_DYNAMIC_DNS`, which only the mesh configuration's own form of the policy names.
const ALLOW_ANY_DYNAMIC_DNS: i32 = 3;

/// The virtual host for `*`. `dynamic_dns` says whether the proxy can resolve names itself (sidecars only).
pub fn virtual_host(policy: &OutboundTrafficPolicy, dynamic_dns: bool, forwarded_host: bool) -> VirtualHost {
    let (name, action) = if policy.mode == ALLOW_ANY_DYNAMIC_DNS && dynamic_dns {
        ("allow_any_dynamic_dns", to_cluster("AllowAnyDynamicDNSCluster".to_owned(), forwarded_host))
    } else if policy.mode == i32::from(Mode::AllowAny) {
        let cluster = match &policy.egress_proxy {
            Some(proxy) => {
                let port = proxy.port.as_ref().map_or(0, |p| p.number);
                format!("outbound|{port}|{}|{}", proxy.subset, proxy.host)
            }
            None => "PassthroughCluster".to_owned(),
        };
        ("allow_any", to_cluster(cluster, forwarded_host))
    } else {
        ("block_all", route::Action::DirectResponse(DirectResponseAction { status: 502, ..Default::default() }))
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: name.to_owned(),
            r#match: Some(RouteMatch {
                path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            action: Some(action),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Unknown destinations get no timeout instead of a guessed one.
#[allow(deprecated)]
fn to_cluster(cluster: String, forwarded_host: bool) -> route::Action {
    route::Action::Route(RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster)),
        timeout: Some(Duration::default()),
        max_grpc_timeout: Some(Duration::default()),
        append_x_forwarded_host: forwarded_host,
        ..Default::default()
    })
}
