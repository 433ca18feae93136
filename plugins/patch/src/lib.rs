//! The built-in plugin `patch`: configuration in place of code.
//!
//! ```text
//! configuration ─ patches: [{hook, direction, service, port, name, attributes, proxyType, item} ─ which fragments
//!                           {operations | merge | set | insert | remove | put}]               ─ what becomes of them
//! ```
//!
//! It knows no field of Envoy's: fields are paths, and the host checks what comes of them. A selector says what a fragment is
//! about (a service, a port), not where it stands in the output.

mod config;

use trysail_sdk::{Ctx, Edits, Failure, Fragment, Target};

pub use config::Config;

macro_rules! hooks {
    ($($function:ident = $name:literal),+ $(,)?) => {
        $(
            #[doc = concat!("The patches at `", $name, "`.")]
            ///
            /// # Errors
            /// A configuration that is not what the plugin takes.
            pub fn $function(ctx: &Ctx<'_>, target: &Target, _fragment: &dyn Fragment) -> Result<Edits, Failure> {
                at($name, ctx, target)
            }
        )+

        #[cfg(target_family = "wasm")]
        trysail_sdk::export_hooks! { $($function: $function),+ }

        /// The hook points that patches may name.
        pub const HOOKS: &[&str] = &[$($name),+];
    };
}

hooks! {
    clusters = "clusters",
    endpoints = "endpoints",
    routes = "routes",
    virtual_hosts = "virtual-hosts",
    route_configurations = "route-configurations",
    listeners = "listeners",
    filter_chains = "filter-chains",
    connection_managers = "connection-managers",
    access_logs = "access-logs",
    transport_sockets = "transport-sockets",
    authn_filters = "authn-filters",
    authz_filters = "authz-filters",
    rate_limit_filters = "rate-limit-filters",
    observability_filters = "observability-filters",
    http_filters = "http-filters",
    network_filters = "network-filters",
    new_clusters = "new-clusters",
    new_listeners = "new-listeners",
    patch = "patch",
}

/// What a configuration has to look like: the host holds documents against it before they are in force.
pub const SCHEMA: &str = include_str!("schema.json");

#[cfg(target_family = "wasm")]
trysail_sdk::configuration_schema! { SCHEMA }

fn at(hook: &str, ctx: &Ctx<'_>, target: &Target) -> Result<Edits, Failure> {
    let config: Config = ctx.configuration()?;
    let mut edits = Edits::none();
    for (number, patch) in config.patches.iter().enumerate() {
        patch.check(number)?;
        if patch.hook == hook && patch.selects(ctx, target) {
            edits.edits.extend(patch.edits());
        }
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::serde_json::Value;

    #[test]
    fn the_schema_says_what_the_code_takes() {
        let schema: Value = trysail_sdk::serde_json::from_str(SCHEMA).expect("it is JSON");
        let patch = &schema["properties"]["patches"]["items"];
        let hooks: Vec<&str> =
            patch["properties"]["hook"]["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(hooks, HOOKS);
        // What serde says that it expects, of a field that there is not.
        let odd = trysail_sdk::serde_json::from_str::<Config>(r#"{"patches": [{"odd": 1}]}"#).expect_err("it is odd");
        let odd = odd.to_string();
        let (_, expected) = odd.split_once("expected one of ").expect("it names the fields");
        let mut taken: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let mut said: Vec<&str> =
            patch["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        taken.sort_unstable();
        said.sort_unstable();
        assert_eq!(said, taken);
    }
}
