//! Clusters: CDS.
//!
//! ```text
//! all ── outbound ── service KEY ──> clusters of one service: each port, and each subset of the rule
//!     ├─ sni ── sni-service KEY     ──> the same without TLS, behind AUTO_PASSTHROUGH gateways
//!     ├─ fixed                  ──> clusters that do not depend on any service
//!     └─ inbound ─┬─ inbound-port ──> the cluster of one port of the proxy's own workload
//!                 └─ inbound-ingress
//! ```
//!
//! Functions:
//! - `all`, `outbound`, `sni`, `inbound`: plans; with the context of EnvoyFilter patches what these can touch is led through the
//!   stage `envoyfilter`.
//! - `subjects CONTEXT`: the calls that patches can touch, for reports.
//! - `service KEY [PORT,PORT..]`: outbound clusters of a service, of those ports only if they are named.
//! - `sni-service KEY`: clusters of a service that clients' own TLS is passed on to.
//! - `inbound-port PORT TARGET..`: the inbound cluster of a port of the workload, for the services that have it
//!   (`KEY|SERVICE PORT|ITS NAME`).
//! - `inbound-ingress INDEX`: the inbound cluster of an ingress listener of the Sidecar.
//! - `fixed SIDE`: `BlackHoleCluster`, `PassthroughCluster` and their like: outbound, inbound, or what is patched nowhere.
//! - `settings`, `proxy`: what clusters depend on besides services, condensed, so that each cluster call asks one question
//!   and not three.
//!
//! What a DestinationRule gets wrong costs the TLS of a cluster, never the cluster (diagnostics of severity error).

mod balance;
mod draft;
mod dynamic;
mod fixed;
mod inbound;
mod inference;
mod outbound;
mod pool;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use trysail_sdk::patching::{Context, Patched, Patching, Subject};
use trysail_sdk::{CallRef, Ctx, Failure, Output};

/// The stage's function.
///
/// # Errors
/// Unknown function, missing arguments, undecodable answers.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    match function {
        "all" => all(ctx),
        "subjects" => subjects(ctx, args),
        "outbound" => plan(ctx, args, outbound::subjects),
        "service" => outbound::service(ctx, args, false),
        "sni" => plan(ctx, args, outbound::sni_subjects),
        "sni-service" => outbound::service(ctx, args, true),
        "inbound" => plan(ctx, args, inbound::subjects),
        "inbound-ingress" => inbound::ingress(ctx, args),
        "inbound-port" => inbound::port(ctx, args),
        "fixed" => fixed::fixed(ctx, args),
        "settings" => settings::settings(ctx),
        "proxy" => settings::proxy(ctx),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

/// What one side of a proxy has: the functions of its plans, and its fixed clusters.
fn parts(context: Context) -> (&'static [&'static str], &'static str) {
    match context {
        Context::Outbound => (&["outbound"], fixed::OUTBOUND),
        Context::Inbound => (&["inbound"], fixed::INBOUND),
        Context::Gateway => (&["outbound", "sni"], fixed::OUTBOUND),
    }
}

fn own<'a>(function: &str, args: impl IntoIterator<Item = &'a str>) -> CallRef {
    CallRef::new("clusters", function, args)
}

fn all(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let contexts = Context::of_proxy(ctx.proxy("type").as_deref());
    if contexts.is_empty() {
        output.include(own("outbound", []));
        output.include(own("fixed", [fixed::OUTBOUND]));
    }
    for context in contexts {
        let patching = Patching::ask(ctx, Patched::Clusters, *context)?;
        let (plans, side) = parts(*context);
        for plan in plans {
            output.include(own(plan, Patching::arg(patching.as_ref())));
        }
        let fixed = own("fixed", [side]);
        output.include(match &patching {
            Some(patching) => patching.through(Subject::new(fixed)),
            None => fixed,
        });
        patching.and_then(|patching| patching.added()).into_iter().for_each(|added| output.include(added));
    }
    output.include(own("fixed", [fixed::UNPATCHED]));
    // Last, so that of two clusters of one name ours stays.
    output.include(CallRef::new("hooks", "new-clusters", [""; 0]));
    Ok(output)
}

/// Calls for clusters, each with the host that patches may name, if there is only that.
type Subjects = Vec<(Subject, String)>;

/// Includes the calls, led through patches where these can touch them.
fn plan(
    ctx: &Ctx<'_>,
    args: &[String],
    subjects: impl Fn(&Ctx<'_>) -> Result<Subjects, Failure>,
) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let patching = Patching::of_arg(ctx, Patched::Clusters, args)?;
    for (subject, host) in subjects(ctx)? {
        // Inbound clusters are few, and named by ports as well.
        let named = |patching: &&Patching| host.is_empty() || patching.covers_host(&host);
        output.include(match patching.as_ref().filter(named) {
            Some(patching) => patching.through(subject),
            None => subject.call,
        });
    }
    Ok(output)
}

fn subjects(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let context = args.first().and_then(|text| Context::parse(text));
    let context = context.ok_or_else(|| Failure::BadArguments("clusters/subjects needs a context".into()))?;
    let (plans, side) = parts(context);
    let mut found = vec![Subject::new(own("fixed", [side]))];
    for plan in plans {
        let subjects = match *plan {
            "inbound" => inbound::subjects(ctx)?,
            "sni" => outbound::sni_subjects(ctx)?,
            _ => outbound::subjects(ctx)?,
        };
        found.extend(subjects.into_iter().map(|(subject, _)| subject));
    }
    Ok(Subject::list(context, found))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
