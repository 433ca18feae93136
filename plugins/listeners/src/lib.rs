//! The stage that makes listeners (LDS) of sidecars and gateways.
//!
//! It holds the plan of outbound and inbound listeners, their filter chains, and the filters that every chain has. It
//! deliberately knows nothing of routes (they are named, or a hole), of clusters beyond their names, and of policies
//! beyond the mTLS mode of inbound ports.
//!
//! ```text
//! all ─┬─ outbound (plan) ─── outbound-listener ─┬─ tcp and tls chains ── l4-rules
//!      │                                         └─ http chain ── http-head, hooks, http-tail ── stats, tracing
//!      ├─ http-proxy
//!      ├─ virtual-outbound ── unknown-destination
//!      ├─ connect-originate
//!      ├─ gateway (plan) ─── gateway-listener ─── chains of servers
//!      └─ inbound, inbound-bound (plan) ─┬─ inbound-passthrough
//!                                        └─ inbound-chains ─┬─ metadata-exchange, hooks, mtls-socket
//!                                                           ├─ inbound-http ── routes/inbound
//!                                                           └─ inbound-tcp
//! ```
//!
//! **Invariant:** the outbound plan asks nothing that is one workload's own, so that workloads with the same scope
//! share it and all its listeners; what is their own is behind `tracing` and the addresses of endpoints.

mod access_log;
mod chain;
mod connection;
mod dns;
mod gateway;
mod gateway_chain;
mod headers;
mod http;
mod inbound;
mod inbound_chain;
mod json;
mod matrix;
mod naming;
mod net;
mod network;
mod node;
mod outbound;
mod parts;
mod plan;
mod routed;
mod secrets;
mod stats;
mod tcp;
#[cfg(test)]
mod testing;
mod tls;
mod tracing;
mod tunnel;
mod unknown;

use trysail_sdk::{Ctx, Failure, Output};

/// Answers a call of this stage.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match function {
        "all" => all(ctx),
        "outbound" => plan::translate(ctx),
        "outbound-listener" => outbound::translate(ctx, args),
        "l4-rules" => tcp::l4_rules(ctx, args),
        "http-proxy" => outbound::http_proxy(ctx),
        "virtual-outbound" => unknown::listener(ctx),
        "unknown-destination" => unknown::destination(ctx),
        "inbound" => inbound::redirected(ctx),
        "inbound-bound" => inbound::bound(ctx),
        "inbound-chains" => inbound_chain::chains(ctx, args),
        "inbound-passthrough" => inbound_chain::passthrough(ctx, args),
        "inbound-http" => inbound_chain::http(ctx, args),
        "inbound-tcp" => inbound_chain::tcp(ctx, args),
        "gateway" => gateway::plan(ctx),
        "gateway-listener" => gateway::listener(ctx, args),
        "gateway-https-chain" => gateway_chain::https(ctx, args),
        "gateway-tcp-chain" => gateway_chain::tcp(ctx, args),
        "gateway-tls-chain" => gateway_chain::passed_on(ctx, args),
        "gateway-sni-chains" => gateway_chain::all_services(ctx, args),
        "sni-chains" => gateway_chain::one_service(ctx, args),
        "connect-originate" => tunnel::originate(ctx),
        "metadata-exchange" => network::metadata_exchange_call(ctx),
        "mtls-socket" => tls::mtls_socket(ctx, args),
        "http-head" => http::head(ctx, args),
        "http-tail" => http::tail(ctx, args),
        "stats" => stats::translate(ctx, args),
        "tracing" => tracing::translate(ctx),
        other => Err(Failure::UnknownFunction(other.into())),
    }
}

/// `listeners/all`: the root of LDS. Of two listeners on one address the first one stays. Waypoints
/// have none yet, nor has any sidecar of a mesh without a port for redirected connections.
fn all(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let kind = ctx.proxy("type");
    if kind.as_deref() == Some("router") {
        output.include(parts::own("gateway", [""; 0]));
        output.include(parts::own("connect-originate", ["connect_originate"]).hooked("listener"));
        return Ok(output);
    }
    if kind.is_some_and(|kind| kind != "sidecar") || ctx.mesh_config(&["proxy_listen_port"])?.proxy_listen_port <= 0 {
        return Ok(output);
    }
    // First those that redirected connections come to: a service on their address, which istiod sends all the same, must not
    // cost the workload every other connection. The names are for plugins that see the listener.
    output.include(parts::own("virtual-outbound", ["virtualOutbound"]).hooked("listener"));
    output.include(parts::own("inbound", ["virtualInbound"]).hooked("listener"));
    output.include(parts::own("outbound", [""; 0]));
    output.include(parts::own("http-proxy", [""; 0]));
    output.include(parts::own("inbound-bound", ["virtualInbound"]).hooked("listener"));
    output.include(parts::own("connect-originate", ["connect_originate"]).hooked("listener"));
    Ok(output)
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
