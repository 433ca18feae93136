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

use trysail_sdk::patching::{Context, Patched, Patching, Subject};
use trysail_sdk::{CallRef, Ctx, Failure, Output};

/// Answers a call of this stage.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match function {
        "all" => all(ctx),
        "subjects" => subjects(ctx, args),
        "outbound" => plan(ctx, args, plan::subjects),
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
        "inbound-routes" => inbound::routes(ctx),
        "gateway" => plan(ctx, args, gateway::subjects),
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
    let originate = parts::own("connect-originate", ["connect_originate"]).hooked("listener");
    if kind.as_deref() == Some("router") {
        let patching = Patching::ask(ctx, Patched::Listeners, Context::Gateway)?;
        output.include(parts::own("gateway", Patching::arg(patching.as_ref())));
        patching.and_then(|patching| patching.added()).into_iter().for_each(|added| output.include(added));
        output.include(originate);
        output.include(added());
        return Ok(output);
    }
    if kind.is_some_and(|kind| kind != "sidecar") || ctx.mesh_config(&["proxy_listen_port"])?.proxy_listen_port <= 0 {
        return Ok(output);
    }
    let outbound = Patching::ask(ctx, Patched::Listeners, Context::Outbound)?;
    let inbound = Patching::ask(ctx, Patched::Listeners, Context::Inbound)?;
    let led = |patching: &Option<Patching>, call: CallRef| match patching {
        Some(patching) => patching.through(Subject::new(call)),
        None => call,
    };
    // First those that redirected connections come to: a service on their address, which istiod sends all the same, must not
    // cost the workload every other connection.
    let [virtual_outbound, http_proxy] = single_outbound();
    let [redirected, bound] = single_inbound();
    output.include(led(&outbound, virtual_outbound));
    output.include(led(&inbound, redirected));
    output.include(parts::own("outbound", Patching::arg(outbound.as_ref())));
    output.include(led(&outbound, http_proxy));
    output.include(led(&inbound, bound));
    for patching in [outbound, inbound].into_iter().flatten() {
        patching.added().into_iter().for_each(|added| output.include(added));
    }
    output.include(originate);
    output.include(added());
    Ok(output)
}

/// Listeners of plugins: last, so that of two on one address ours stays.
fn added() -> CallRef {
    CallRef::new("hooks", "new-listeners", [""; 0])
}

/// Calls for outbound listeners that no plan has. Names as arguments are for plugins that see the listener.
fn single_outbound() -> [CallRef; 2] {
    let redirected = parts::own("virtual-outbound", ["virtualOutbound"]).hooked("listener");
    [redirected, parts::own("http-proxy", [""; 0])]
}

/// Calls for inbound listeners.
fn single_inbound() -> [CallRef; 2] {
    ["inbound", "inbound-bound"].map(|function| parts::own(function, ["virtualInbound"]).hooked("listener"))
}

/// A call for a listener of a plan.
struct Planned {
    call: CallRef,
    name: String,
    port: u32,
}

/// Includes the calls of a plan, led through the patches of EnvoyFilters where these can touch them.
fn plan(
    ctx: &Ctx<'_>,
    args: &[String],
    subjects: impl Fn(&Ctx<'_>, &mut Output) -> Result<Vec<Planned>, Failure>,
) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let patching = Patching::of_arg(ctx, Patched::Listeners, args)?;
    for Planned { call, name, port } in subjects(ctx, &mut output)? {
        output.include(match patching.as_ref().filter(|patching| patching.covers(&name, port)) {
            Some(patching) => patching.through(Subject::new(call)),
            None => call,
        });
    }
    Ok(output)
}

/// `listeners/subjects` CONTEXT: the calls that patches can touch, for reports.
fn subjects(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let context = args.first().and_then(|text| Context::parse(text));
    let context = context.ok_or_else(|| Failure::BadArguments("listeners/subjects needs a context".into()))?;
    let mut of_plan = Output::empty();
    let (planned, single) = match context {
        Context::Outbound => (plan::subjects(ctx, &mut of_plan)?, single_outbound().to_vec()),
        Context::Gateway => (gateway::subjects(ctx, &mut of_plan)?, Vec::new()),
        Context::Inbound => (Vec::new(), single_inbound().to_vec()),
    };
    let calls = planned.into_iter().map(|planned| planned.call).chain(single);
    Ok(Subject::list(context, calls.map(Subject::new)))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
