//! Bindings of the 0.2 line: one module a hook point, all over the same imports.

/// The imports that all worlds have.
#[allow(missing_docs, clippy::all)]
pub mod imports {
    wit_bindgen::generate!({
        path: "../../wit/stage-0.2.0",
        world: "imports",
        default_bindings_module: "trysail_sdk::component::line_0_2::imports",
        generate_all,
    });
}

use self::imports::trysail::stage::{answers, configuration, facts, fragment, log, types};
use crate::{Ctx, Edit, EditFn, Failure, Host, Level, Position, Severity};

/// A hook point: bindings of its world, and its function over the imports.
macro_rules! hook {
    ($($(#[$doc:meta])* $point:ident = $world:literal, $module:literal;)+) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs, clippy::all)]
            pub mod $point {
                wit_bindgen::generate!({
                    path: "../../wit/stage-0.2.0",
                    world: $world,
                    pub_export_macro: true,
                    default_bindings_module: $module,
                    with: {
                        "trysail:stage/facts@0.2.0": super::imports::trysail::stage::facts,
                        "trysail:stage/answers@0.2.0": super::imports::trysail::stage::answers,
                        "trysail:stage/configuration@0.2.0": super::imports::trysail::stage::configuration,
                        "trysail:stage/fragment@0.2.0": super::imports::trysail::stage::fragment,
                        "trysail:stage/log@0.2.0": super::imports::trysail::stage::log,
                        "trysail:stage/types@0.2.0": super::imports::trysail::stage::types,
                    },
                    generate_all,
                });

                pub use self::exports::trysail::stage::$point::Guest;
                pub use super::imports::trysail::stage::types::{Failure, Outcome, Target};
                pub use super::run;
            }
        )+
    };
}

hook! {
    /// `clusters`.
    clusters = "clusters-plugin", "trysail_sdk::component::line_0_2::clusters";
    /// `endpoints`.
    endpoints = "endpoints-plugin", "trysail_sdk::component::line_0_2::endpoints";
    /// `routes`.
    routes = "routes-plugin", "trysail_sdk::component::line_0_2::routes";
    /// `virtual-hosts`.
    virtual_hosts = "virtual-hosts-plugin", "trysail_sdk::component::line_0_2::virtual_hosts";
    /// `route-configurations`.
    route_configurations = "route-configurations-plugin", "trysail_sdk::component::line_0_2::route_configurations";
    /// `listeners`.
    listeners = "listeners-plugin", "trysail_sdk::component::line_0_2::listeners";
    /// `filter-chains`.
    filter_chains = "filter-chains-plugin", "trysail_sdk::component::line_0_2::filter_chains";
    /// `connection-managers`.
    connection_managers = "connection-managers-plugin", "trysail_sdk::component::line_0_2::connection_managers";
    /// `access-logs`.
    access_logs = "access-logs-plugin", "trysail_sdk::component::line_0_2::access_logs";
    /// `transport-sockets`.
    transport_sockets = "transport-sockets-plugin", "trysail_sdk::component::line_0_2::transport_sockets";
    /// `authn-filters`.
    authn_filters = "authn-filters-plugin", "trysail_sdk::component::line_0_2::authn_filters";
    /// `authz-filters`.
    authz_filters = "authz-filters-plugin", "trysail_sdk::component::line_0_2::authz_filters";
    /// `rate-limit-filters`.
    rate_limit_filters = "rate-limit-filters-plugin", "trysail_sdk::component::line_0_2::rate_limit_filters";
    /// `observability-filters`.
    observability_filters = "observability-filters-plugin", "trysail_sdk::component::line_0_2::observability_filters";
    /// `http-filters`.
    http_filters = "http-filters-plugin", "trysail_sdk::component::line_0_2::http_filters";
    /// `network-filters`.
    network_filters = "network-filters-plugin", "trysail_sdk::component::line_0_2::network_filters";
    /// `new-clusters`.
    new_clusters = "new-clusters-plugin", "trysail_sdk::component::line_0_2::new_clusters";
    /// `new-listeners`.
    new_listeners = "new-listeners-plugin", "trysail_sdk::component::line_0_2::new_listeners";
    /// `patch`.
    patch = "patch-plugin", "trysail_sdk::component::line_0_2::patch";
}

/// The host behind the imports.
struct Imports;

impl Host for Imports {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        let arg = |i: usize| args.get(i).copied().unwrap_or_default();
        let list = |from: usize| -> Vec<String> { args.iter().skip(from).map(|text| (*text).to_owned()).collect() };
        let truth = |holds: bool| holds.then(Vec::new);
        match query {
            "mesh-config" => facts::mesh_config(&list(0)),
            "features" => facts::features(&list(0)),
            "setting" => facts::setting(arg(0)),
            "service" => facts::service(arg(0)),
            "services-of-host" => facts::services_of_host(arg(0)),
            "services-in-namespace" => facts::services_in_namespace(arg(0)),
            "endpoints" => facts::endpoints(arg(0), arg(1)),
            "has-ready-endpoints" => truth(facts::has_ready_endpoints(arg(0), arg(1), &list(2))),
            "service-accounts" => facts::service_accounts(arg(0)),
            "targets-at" => facts::targets_at(arg(0)),
            "workload-at" => facts::workload_at(arg(0)),
            "namespace" => facts::namespace(arg(0)),
            "network-gateways" => facts::network_gateways(),
            "network-ranges" => facts::network_ranges(),
            "object" => facts::object(arg(0), arg(1)),
            "selectors" => facts::selectors(arg(0), arg(1)),
            "selector-namespaces" => facts::selector_namespaces(arg(0)),
            "proxy" => facts::proxy(arg(0)),
            "proxy-in-namespaces" => facts::proxy_in_namespaces(&list(0)),
            "proxy-labels-match" => truth(facts::proxy_labels_match(&list(0))),
            "proxy-has-address" => truth(facts::proxy_has_address(&list(0))),
            "proxy-version-at-least" => truth(facts::proxy_version_at_least(arg(0))),
            "proxy-version-matches" => truth(facts::proxy_version_matches(arg(0))),
            "proxy-metadata-match" => truth(facts::proxy_metadata_match(&list(0))),
            "proxy-targets" => facts::proxy_targets(),
            "proxy-config" => facts::proxy_config(&list(0)),
            unknown => panic!("plugins cannot ask {unknown}"),
        }
    }

    fn report(&self, level: Level, message: &str) {
        log::report(
            match level {
                Level::Debug => log::Level::Debug,
                Level::Info => log::Level::Info,
                Level::Warn => log::Level::Warn,
                Level::Error => log::Level::Error,
            },
            message,
        );
    }

    fn configuration(&self) -> String {
        configuration::json()
    }

    fn ask_json(&self, query: &str, args: &[&str]) -> Option<String> {
        answers::json(query, &args.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }
}

impl crate::Fragment for Imports {
    fn items(&self) -> Vec<(String, Vec<u8>)> {
        fragment::items().into_iter().map(|item| (item.key, item.message)).collect()
    }

    fn items_json(&self) -> Vec<(String, String)> {
        fragment::items_json().into_iter().map(|item| (item.key, item.message)).collect()
    }
}

/// Runs a plugin's function over the imports. Called by [`export_hooks!`](crate::export_hooks).
pub fn run(apply: EditFn, target: types::Target) -> Result<types::Outcome, types::Failure> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|info| log::report(log::Level::Error, &info.to_string()))));
    let types::Target { direction, service, port, name, attributes } = target;
    let target = crate::Target { direction, service, port, name, attributes };
    match apply(&Ctx::new(&Imports), &target, &Imports) {
        Ok(edits) => Ok(types::Outcome {
            edits: edits.edits.into_iter().map(lower).collect(),
            diagnostics: edits.diagnostics.into_iter().map(lower_diagnostic).collect(),
        }),
        Err(Failure::BadConfiguration(text)) => Err(types::Failure::BadConfiguration(text)),
        Err(Failure::BadAnswer(text)) => Err(types::Failure::BadAnswer(text)),
        Err(other) => Err(types::Failure::Other(other.to_string())),
    }
}

fn lower(edit: Edit) -> types::Edit {
    match edit {
        Edit::Set { item, path, value } => types::Edit::Set(types::FieldValue { item, path, value }),
        Edit::Merge { item, path, value } => types::Edit::Merge(types::FieldValue { item, path, value }),
        Edit::Insert { item, path, at, value } => {
            let at = match at {
                Position::First => types::Position::First,
                Position::Last => types::Position::Last,
                Position::Before(name) => types::Position::Before(name),
                Position::After(name) => types::Position::After(name),
            };
            types::Edit::Insert(types::Insertion { item, path, at, value })
        }
        Edit::Remove { item, path } => types::Edit::Remove(types::FieldPath { item, path }),
        Edit::Patch { item, operations } => types::Edit::Patch(types::JsonPatch { item, operations }),
        Edit::Put { key, message } => types::Edit::Put(types::Item { key, message }),
        Edit::PutJson { key, message } => types::Edit::PutJson(types::JsonItem { key, message }),
        Edit::Drop(key) => types::Edit::Drop(key),
    }
}

fn lower_diagnostic(diagnostic: crate::Diagnostic) -> types::Diagnostic {
    let severity = match diagnostic.severity {
        Severity::Info => types::Severity::Info,
        Severity::Warning => types::Severity::Warning,
        Severity::Error => types::Severity::Error,
    };
    let crate::Diagnostic { object, field, message, .. } = diagnostic;
    types::Diagnostic { severity, object, field, message }
}
