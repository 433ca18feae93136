//! EnvoyFilter as Istio applies it: the compatibility path for patches of generated configuration.
//!
//! It holds which patches a proxy has, in which order, what they match, and what each operation does. It deliberately knows
//! nothing of how what it patches is made: it gets the finished messages of other stages' calls, after the plugins there,
//! and looks only at those of their fields that EnvoyFilter can match.
//!
//! ```text
//!                 filters ──> patches KIND CONTEXT ──> scope KIND CONTEXT ──> asked by plans: what must be led through here?
//!                                      │
//! clusters|listeners|routes CONTEXT HOSTS HOOK STAGE FUNCTION ARGS ──> that call's items, patched
//! added-clusters|added-listeners CONTEXT ──> whole ones that patches add
//! extension-config NAME ──> ECDS
//! referenced-services ──> hosts that gateways need clusters for
//! report ──> diagnostics, made when somebody asks for them
//! ```
//!
//! Patches work on the wire: a message is a list of encoded fields, and merging is appending, so nothing is decoded that no
//! patch is about and fields that nobody here knows stay. Which fields a merge replaces the host says with the patch.
//!
//! Nothing rejects. A patch whose value is no message of Envoy does nothing, like one of another type than what it
//! merges into; istiod gives up all patches of the listener or cluster there.
//!
//! **Invariant:** a call reads the patches of one kind and context, so proxies with the same patches share what is made here,
//! and proxies without any never come here.

mod chains;
mod clusters;
mod edit;
mod listeners;
mod nearest;
mod patch;
mod report;
mod routes;
mod select;
#[cfg(test)]
mod testing;
mod wire;

use trysail_sdk::patching::{Context, Patched, Through};
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Part};

use patch::{Notes, Patch};

/// Answers a call of this stage.
///
/// # Errors
/// Unknown function, missing arguments, undecodable answers.
pub fn translate(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let bad = || Failure::BadArguments(format!("envoyfilter/{function}({})", args.join(", ")));
    match (function, args) {
        ("filters", []) => select::filters(ctx),
        ("patches", [kind, context]) => {
            select::patches(ctx, Patched::parse(kind).ok_or_else(bad)?, Context::parse(context).ok_or_else(bad)?)
        }
        ("scope", [kind, context]) => {
            select::scope(ctx, Patched::parse(kind).ok_or_else(bad)?, Context::parse(context).ok_or_else(bad)?)
        }
        ("clusters" | "listeners" | "routes", args) => {
            let patched = Patched::parse(function).ok_or_else(bad)?;
            through(ctx, patched, &Through::parse(args).ok_or_else(bad)?)
        }
        ("added-clusters", [context]) => added(ctx, Patched::Clusters, Context::parse(context).ok_or_else(bad)?),
        ("added-listeners", [context]) => added(ctx, Patched::Listeners, Context::parse(context).ok_or_else(bad)?),
        ("extension-config", [name]) => select::extension_config(ctx, name),
        ("referenced-services", []) => select::referenced_services(ctx),
        ("report", []) => report::report(ctx),
        (
            "filters"
            | "patches"
            | "scope"
            | "added-clusters"
            | "added-listeners"
            | "extension-config"
            | "referenced-services"
            | "report",
            _,
        ) => Err(bad()),
        _ => Err(Failure::UnknownFunction(function.to_owned())),
    }
}

/// The items of a call, patched. What no patch changes keeps its claims and references; of the others the gate finds out.
fn through(ctx: &Ctx<'_>, patched: Patched, of: &Through) -> Result<Output, Failure> {
    let found = select::selected(ctx, patched, of.context)?;
    let patches = Patch::all(&found)?;
    let subject = Subject::ask(ctx, patched, of.context)?;
    let mut output = Output::empty();
    for item in ctx.derived_items(&of.call)? {
        let made = subject.apply(&patches, &of.hosts, &item.message, &mut Notes::default());
        let Some(bytes) = made else { continue };
        let refs = if bytes == item.message { item.refs } else { Vec::new() };
        let key = match patched {
            // Envoy asked for the routes by this name, whatever became of the name within.
            Patched::Routes => item.key,
            Patched::Clusters | Patched::Listeners => wire::name_of(&bytes),
        };
        output.item(Item { claims: item.claims, refs, ..Item::new(key, message(bytes)) });
    }
    Ok(output)
}

/// What decides, besides a message and its patches, what becomes of it.
struct Subject {
    patched: Patched,
    context: Context,
    /// Of a gateway's routes: by route configuration the ports of its servers as written.
    ports: Vec<(String, Vec<u32>)>,
}

impl Subject {
    fn ask(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Self, Failure> {
        let ports = match (patched, context) {
            (Patched::Routes, Context::Gateway) => routes::server_ports(ctx)?,
            _ => Vec::new(),
        };
        Ok(Subject { patched, context, ports })
    }

    /// The message after the patches; none if one removes it.
    fn apply(&self, patches: &[Patch<'_>], hosts: &[String], message: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
        match self.patched {
            Patched::Clusters => clusters::apply(patches, hosts, message, notes),
            Patched::Listeners => listeners::apply(patches, message, notes),
            Patched::Routes => Some(routes::apply(patches, self.context, &self.ports, message, notes)),
        }
    }
}

/// Whole clusters or listeners that patches add.
fn added(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Output, Failure> {
    let found = select::selected(ctx, patched, context)?;
    let mut output = Output::empty();
    for patch in Patch::all(&found)?.iter().filter(|patch| patch.adds_whole(patched, context)) {
        let bytes = patch.value().to_vec();
        let name = wire::name_of(&bytes);
        // Without a name a listener counts as removed, and a cluster is none.
        if !name.is_empty() {
            output.item(Item::new(name, message(bytes)));
        }
    }
    Ok(output)
}

fn message(bytes: Vec<u8>) -> Message {
    Message { parts: vec![Part::Bytes(bytes)] }
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_stage!(translate);
