//! What a stage or plugin is written with: outputs, typed queries, and the export as a component.
//!
//! A stage is a function from a [`Ctx`] (ask for facts) and arguments to an [`Output`]. The same code runs as a sandboxed
//! component and natively (tests, `trysail replay --native`): only the [`Host`] behind the context differs.
//!
//! It knows nothing of the host's crates, of any stage, or of wasmtime.

#[cfg(target_family = "wasm")]
pub mod component;
pub mod ctx;
pub mod destinations;
pub mod families;
pub mod fields;
pub mod hooks;
pub mod hosts;
pub mod output;
pub mod patching;

pub use ctx::{Ctx, Host, Level};
pub use fields::Fields;
pub use hooks::{Edit, EditFn, Edits, Fragment, Position, Target};
pub use output::{CallRef, Diagnostic, Entry, Failure, Item, Message, Outcome, Output, Part, Severity};

pub use prost;
pub use prost_types;
pub use serde_json;
pub use trysail_proto as proto;
/// Records of what has no public API: services, endpoints, workloads.
pub use trysail_proto::trysail::facts::v1 as facts;

/// A stage's function: name of the function, its arguments.
pub type StageFn = fn(&Ctx<'_>, &str, &[String]) -> Result<Output, Failure>;
/// A plugin's function: hook point, its arguments, the items of the fragment.
pub type HookFn = fn(&Ctx<'_>, &str, &[String], &[(String, Vec<u8>)]) -> Result<Outcome, Failure>;

/// Exports a [`StageFn`] as a component of the `stage` world.
#[macro_export]
macro_rules! export_stage {
    ($translate:path) => {
        #[doc(hidden)]
        struct Component;

        impl $crate::component::stage::exports::trysail::stage::translation::Guest for Component {
            fn translate(
                function: String,
                args: Vec<String>,
            ) -> Result<
                $crate::component::stage::trysail::stage::types::Output,
                $crate::component::stage::trysail::stage::types::Failure,
            > {
                $crate::component::run_stage($translate, &function, &args)
            }
        }

        $crate::component::stage::export!(Component with_types_in $crate::component::stage);
    };
}

/// Exports functions at the hook points that a plugin uses ([`EditFn`]s), as a component of the 0.2 line:
///
/// ```ignore
/// trysail_sdk::export_hooks! { clusters: apply, http_filters: insert }
/// ```
///
/// Hook points are written with underscores.
#[macro_export]
macro_rules! export_hooks {
    ($($point:ident: $apply:path),+ $(,)?) => {
        $(
            const _: () = {
                use $crate::component::line_0_2::$point as hook;

                struct Component;

                impl hook::Guest for Component {
                    fn apply(target: hook::Target) -> Result<hook::Outcome, hook::Failure> {
                        hook::run($apply, target)
                    }
                }

                hook::export!(Component with_types_in hook);
            };
        )+
    };
}

/// Has the plugin carry the JSON Schema of its configuration, against which the host holds what people write:
///
/// ```ignore
/// trysail_sdk::configuration_schema! { r#"{"type": "object", "required": ["limit"]}"# }
/// ```
#[macro_export]
macro_rules! configuration_schema {
    ($schema:expr) => {
        #[used]
        #[unsafe(link_section = "trysail-configuration-schema")]
        static CONFIGURATION_SCHEMA: [u8; $schema.len()] = {
            let (text, mut bytes, mut number) = ($schema.as_bytes(), [0; $schema.len()], 0);
            while number < bytes.len() {
                bytes[number] = text[number];
                number += 1;
            }
            bytes
        };
    };
}

/// Exports a [`HookFn`] and the hook points it wants as a component of the `plugin` world.
#[macro_export]
macro_rules! export_plugin {
    ($points:expr, $apply:path) => {
        #[doc(hidden)]
        struct Component;

        impl $crate::component::plugin::exports::trysail::stage::hooks::Guest for Component {
            fn points() -> Vec<String> {
                $points.iter().map(|point| point.to_string()).collect()
            }

            fn apply(
                point: String,
                args: Vec<String>,
            ) -> Result<
                $crate::component::plugin::exports::trysail::stage::hooks::Outcome,
                $crate::component::stage::trysail::stage::types::Failure,
            > {
                $crate::component::run_hook($apply, &point, &args)
            }
        }

        $crate::component::plugin::export!(Component with_types_in $crate::component::plugin);
    };
}
