//! Which policy objects of a kind hold: for the mesh, for a namespace, for a workload.
//!
//! All kinds of policy are looked up alike: objects of the root namespace hold for the mesh, objects without a selector
//! for their namespace, objects with one for the workloads it selects. Lists are oldest first.

use trysail_sdk::facts::SelectorSummary;
use trysail_sdk::{Ctx, Failure};

/// Does it hold for the whole of its namespace? A selector without labels selects everything.
pub fn is_general(policy: &SelectorSummary) -> bool {
    policy.selector.is_empty()
}

/// `namespace/name`.
pub fn key(policy: &SelectorSummary) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

/// The oldest object that holds for the whole of a namespace.
pub fn of_namespace(ctx: &Ctx, kind: &str, namespace: &str) -> Result<Option<String>, Failure> {
    Ok(ctx.selectors(kind, namespace)?.iter().find(|policy| is_general(policy)).map(key))
}

/// The mesh's root namespace.
pub fn root_namespace(ctx: &Ctx) -> Result<String, Failure> {
    Ok(ctx.mesh_config(&["root_namespace"])?.root_namespace)
}
