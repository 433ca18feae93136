//! Routes: what a sidecar or gateway does with an HTTP request once a listener has taken it (RDS, and the inline routes of inbound
//! chains).
//!
//! It holds the choice of virtual hosts for an outbound route name, the translation of VirtualServices, and the default
//! routes of services that have none. It deliberately does not know which services and VirtualServices a proxy may see
//! (the scope stage), nor which listeners refer to a route configuration (the listeners stage).
//!
//! ```text
//! config [route name]                as below, led through the stage `envoyfilter` where its patches can touch it
//! unpatched [route name]             plan: one RouteConfiguration, reads summaries only
//!   ├─ virtual-host [name, ...]      only where a plugin stands at hook `virtual-host`, else part of the plan
//!   ├─ catch-all [name]              the same, for hosts that nobody knows
//!   ├─ virtual-service [key, port]   all routes of one VirtualService on one port; hook `routes`
//!   ├─ service-default [key, port]   the one route of a service that has no VirtualService; hook `routes`
//!   └─ session [key]                 a service's sticky sessions, spliced into its virtual hosts
//! unpatched [gateway's route name]   plan: the same at a gateway
//!   ├─ gateway-host [name, route name]  only where a plugin stands at hook `virtual-host`, as above
//!   └─ gateway-routes [key, port, gateway, flags, part]  routes of one VirtualService there; hook `routes`
//! inbound [key, port, service port]  inline RouteConfiguration of an inbound chain
//!   └─ inbound-host [name, ...]      its virtual host, as above
//! ```
//!
//! **Invariant:** route items never depend on the proxy's namespace or DNS domain, except through the predicates that a
//! VirtualService asks for by its own source matches, because they are what proxies share.

mod action;
mod addresses;
mod catch_all;
mod config;
mod delegate;
mod destination;
mod domains;
mod gateway;
mod hash;
mod headers;
mod inbound;
mod matching;
mod policy;
mod service_default;
mod session;
mod shadow;
mod virtual_hosts;
mod virtual_service;

#[cfg(test)]
mod testing;

use trysail_sdk::patching::{Context, Patched, Patching, ROUTE_CONFIGURATIONS, Subject};
use trysail_sdk::{CallRef, Ctx, Failure, Output};

use virtual_service::{Part, Place};

/// The stage: see the crate's diagram for its functions and their arguments.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match (function, args.as_slice()) {
        ("config", [route_name]) => patched(ctx, route_name),
        ("unpatched", [route_name]) => unpatched(ctx, route_name, is_gateway(ctx)),
        ("virtual-service", [key, port]) => {
            virtual_service::routes(ctx, key, Place { port: number(port)?, ..Place::default() }, Part::All)
        }
        ("gateway-routes", [key, port, gateway, flags, part]) => {
            let part = Part::parse(part).ok_or_else(|| Failure::BadArguments(format!("{part:?} is no part")))?;
            let (tls, http3) = (flags.contains('t'), flags.contains('3'));
            let at = Place { port: number(port)?, gateway: Some(gateway), tls, http3 };
            virtual_service::routes(ctx, key, at, part)
        }
        ("service-default", [key, port]) => service_default::route(ctx, key, number(port)?, None),
        ("service-default", [key, port, host]) => service_default::route(ctx, key, number(port)?, Some(host)),
        ("session", [key]) => session::virtual_host_fields(ctx, key),
        ("virtual-host", args) => config::virtual_host(args),
        ("gateway-host", [name, route_name]) => gateway::virtual_host(ctx, name, route_name),
        ("catch-all", [_name]) => config::catch_all(ctx),
        ("inbound", args) => inbound::route_configuration(ctx, args),
        ("inbound-host", [_name, args @ ..]) => inbound::virtual_host(ctx, args),
        (
            "config" | "unpatched" | "virtual-service" | "gateway-routes" | "service-default" | "session"
            | "gateway-host" | "catch-all" | "inbound-host",
            _,
        ) => Err(Failure::BadArguments(format!("{function}({})", args.join(", ")))),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

fn is_gateway(ctx: &Ctx<'_>) -> bool {
    ctx.proxy("type").as_deref() == Some("router")
}

/// A route configuration, led through the patches of EnvoyFilters if these can touch it.
fn patched(ctx: &Ctx<'_>, route_name: &str) -> Result<Output, Failure> {
    let gateway = is_gateway(ctx);
    let context = if gateway { Context::Gateway } else { Context::Outbound };
    let before_patches = || CallRef::new("routes", "unpatched", [route_name]).hooked(ROUTE_CONFIGURATIONS);
    if let Some(patching) = Patching::ask(ctx, Patched::Routes, context)?
        && patching.covers(route_name, route_name.parse().unwrap_or_default())
    {
        let mut output = Output::empty();
        output.include(patching.through(Subject::new(before_patches())));
        return Ok(output);
    }
    // A call of its own only where a plugin wants it.
    if ctx.hooked(ROUTE_CONFIGURATIONS) {
        let mut output = Output::empty();
        output.include(before_patches());
        return Ok(output);
    }
    unpatched(ctx, route_name, gateway)
}

fn unpatched(ctx: &Ctx<'_>, route_name: &str, gateway: bool) -> Result<Output, Failure> {
    if gateway { gateway::route_configuration(ctx, route_name) } else { config::route_configuration(ctx, route_name) }
}

fn number(text: &str) -> Result<u32, Failure> {
    text.parse().map_err(|_| Failure::BadArguments(format!("{text:?} is no port")))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
