//! `inbound`: the RouteConfiguration that stands inside the connection manager of an inbound chain.
//!
//! Arguments: the service's key (or, for a Sidecar's ingress listener, the name that stands for it; empty for passthrough),
//! the workload's port (`0` or empty for passthrough), the service's port, and optionally the protocol (`GRPC`), which is
//! else looked up at the service. Nothing warns or rejects.

use trysail_sdk::facts::Protocol;
use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, VirtualHost, route_action::MaxStreamDuration,
};
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};

use crate::config::{HOOK, VIRTUAL_HOSTS};
use crate::service_default::to_cluster;

/// `inbound` ARGS. One item: every host goes to the workload itself.
pub fn route_configuration(ctx: &Ctx<'_>, args: &[&str]) -> Result<Output, Failure> {
    let inbound = plan(ctx, args)?;
    let key = inbound.cluster.clone();
    let message = Message::of(&RouteConfiguration { name: key.clone(), ..Default::default() });
    let message = if ctx.hooked(HOOK) {
        let args = [&[inbound.name.as_str()], args].concat();
        message.hole(VIRTUAL_HOSTS, CallRef::new("routes", "inbound-host", args).hooked(HOOK))
    } else {
        message.field(VIRTUAL_HOSTS, Message::of(&inbound.virtual_host()))
    };
    let message = message.fields(&RouteConfiguration { validate_clusters: Some(false), ..Default::default() });
    let mut output = Output::empty();
    output.item(Item::new(key, message));
    Ok(output)
}

/// `inbound-host` NAME ARGS: the virtual host by itself, for plugins.
pub fn virtual_host(ctx: &Ctx<'_>, args: &[&str]) -> Result<Output, Failure> {
    let host = plan(ctx, args)?.virtual_host();
    let mut output = Output::empty();
    output.item(Item::new(host.name.clone(), Message::of(&host)));
    Ok(output)
}

fn plan(ctx: &Ctx<'_>, args: &[&str]) -> Result<Inbound, Failure> {
    let (service, port, service_port, protocol) = match *args {
        [service, port, service_port] => (service, port, service_port, None),
        [service, port, service_port, protocol] => (service, port, service_port, Some(protocol)),
        _ => return Err(Failure::BadArguments(format!("inbound({})", args.join(", ")))),
    };
    let service_port = if service_port.is_empty() { 0 } else { crate::number(service_port)? };
    let cluster = match port {
        "" | "0" => "InboundPassthroughCluster".to_owned(),
        port => format!("inbound|{}||", crate::number(port)?),
    };
    let host = service.split_once('/').map_or(service, |(_, host)| host);
    let grpc = match protocol {
        Some(name) => Protocol::from_str_name(name).is_some_and(is_grpc),
        None if service.contains('/') => {
            let found = ctx.service(service)?;
            let port = found.iter().flat_map(|s| &s.ports).find(|p| p.port == service_port);
            port.is_some_and(|p| is_grpc(p.protocol()))
        }
        None => false,
    };
    let action = RouteAction {
        // The client decides how long it waits.
        timeout: Some(Duration::default()),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: Some(Duration::default()),
            grpc_timeout_header_max: Some(Duration::default()),
            grpc_timeout_header_offset: None,
        }),
        // A connection that the workload closed before it saw the request; streams of gRPC do not bear it.
        retry_policy: (!grpc).then(|| RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    };
    let routes = vec![to_cluster(cluster.clone(), host, service_port, action)];
    Ok(Inbound { cluster, name: format!("inbound|http|{service_port}"), routes })
}

/// An inbound route configuration and its one virtual host.
struct Inbound {
    cluster: String,
    name: String,
    routes: Vec<Route>,
}

impl Inbound {
    fn virtual_host(self) -> VirtualHost {
        VirtualHost { name: self.name, domains: vec!["*".to_owned()], routes: self.routes, ..Default::default() }
    }
}

fn is_grpc(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Grpc | Protocol::GrpcWeb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, decode_items};
    use trysail_sdk::facts::{Port, Service};

    fn only(args: &[&str], fake: &Fake) -> RouteConfiguration {
        decode_items(&fake.run("inbound", args)).remove(0)
    }

    #[test]
    fn passthrough() {
        let made = only(&["", "0", "0"], &Fake::default());
        assert_eq!(made.name, "InboundPassthroughCluster");
        assert_eq!(made.virtual_hosts[0].name, "inbound|http|0");
        assert_eq!(made.virtual_hosts[0].routes[0].decorator.as_ref().expect("set").operation, ":0/*");
    }

    #[test]
    fn grpc_is_not_retried() {
        let port = Port { port: 80, protocol: Protocol::Grpc.into(), ..Default::default() };
        let service = Service { ports: vec![port], ..Default::default() };
        let fake = Fake::default().answer("service", &["ns/a.test"], &service);
        let retried = |made: &RouteConfiguration| {
            let action = made.virtual_hosts[0].routes[0].action.clone();
            let Some(trysail_sdk::proto::envoy::config::route::v3::route::Action::Route(action)) = action else {
                panic!("no action")
            };
            action.retry_policy.is_some()
        };
        let made = only(&["ns/a.test", "8080", "80"], &fake);
        assert_eq!(made.name, "inbound|8080||");
        assert!(!retried(&made));
        assert!(retried(&only(&["ns/a.test", "8080", "80", "HTTP"], &fake)));
        assert!(retried(&only(&["ingress.ns", "8080", "80"], &fake)));
    }
}
