//! The export of a stage or plugin as a component: the only code that knows the generated bindings.
#![allow(unsafe_code, reason = "the generated bindings cross the component boundary")]

pub mod line_0_2;

/// Bindings of the `stage` world.
#[allow(missing_docs, clippy::all)]
pub mod stage {
    wit_bindgen::generate!({
        path: "../../wit/stage-0.1.0",
        world: "stage",
        pub_export_macro: true,
        default_bindings_module: "trysail_sdk::component::stage",
        generate_all,
    });
}

/// Bindings of the `plugin` world.
#[allow(missing_docs, clippy::all)]
pub mod plugin {
    wit_bindgen::generate!({
        path: "../../wit/stage-0.1.0",
        world: "plugin",
        pub_export_macro: true,
        default_bindings_module: "trysail_sdk::component::plugin",
        with: {
            "trysail:stage/facts@0.1.0": super::stage::trysail::stage::facts,
            "trysail:stage/log@0.1.0": super::stage::trysail::stage::log,
            "trysail:stage/types@0.1.0": super::stage::trysail::stage::types,
        },
        generate_all,
    });
}

use crate::{Ctx, Failure, HookFn, Host, Level, Outcome, Output, Part, Severity, StageFn};
use stage::trysail::stage::{facts, log, types};

/// The host behind a component's imports.
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
            "service-index" => facts::service_index(arg(0)),
            "service-index-namespaces" => facts::service_index_namespaces(),
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
            "envoy-filter" => facts::envoy_filter(arg(0)),
            "selector-namespaces" => facts::selector_namespaces(arg(0)),
            "virtual-service-index" => facts::virtual_service_index(arg(0)),
            "virtual-service-index-namespaces" => facts::virtual_service_index_namespaces(),
            "gateway-virtual-services" => facts::gateway_virtual_services(arg(0), arg(1)),
            "gateway-virtual-service-namespaces" => facts::gateway_virtual_service_namespaces(arg(0)),
            "gateway-destinations" => facts::gateway_destinations(arg(0), arg(1)),
            "virtual-service-gateways" => facts::virtual_service_gateways(),
            "destination-rules-matching" => facts::destination_rules_matching(arg(0)),
            "proxy" => facts::proxy(arg(0)),
            "proxy-in-namespaces" => facts::proxy_in_namespaces(&list(0)),
            "proxy-labels-match" => truth(facts::proxy_labels_match(&list(0))),
            "proxy-has-address" => truth(facts::proxy_has_address(&list(0))),
            "proxy-version-at-least" => truth(facts::proxy_version_at_least(arg(0))),
            "proxy-version-matches" => truth(facts::proxy_version_matches(arg(0))),
            "proxy-metadata-match" => truth(facts::proxy_metadata_match(&list(0))),
            "proxy-targets" => facts::proxy_targets(),
            "proxy-config" => facts::proxy_config(&list(0)),
            "derived" => facts::derived(arg(0), arg(1), &list(2)),
            "derived-items" => facts::derived_items(arg(0), arg(1), arg(2), &list(3)),
            "derived-item" => facts::derived_item(arg(0), arg(1), arg(2), &list(3)),
            "hooked" => truth(facts::hooked(arg(0))),
            "derived-exists" => truth(facts::derived_exists(arg(0), arg(1), &list(2))),
            unknown => unreachable!("the SDK asks no {unknown}"),
        }
    }

    fn report(&self, level: Level, message: &str) {
        let level = match level {
            Level::Debug => log::Level::Debug,
            Level::Info => log::Level::Info,
            Level::Warn => log::Level::Warn,
            Level::Error => log::Level::Error,
        };
        log::report(level, message);
    }
}

/// Hands panic messages to the host: a panic is otherwise a bare `unreachable` trap.
fn report_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|info| log::report(log::Level::Error, &info.to_string()))));
}

fn lower_call(call: crate::CallRef) -> types::CallRef {
    types::CallRef { stage: call.stage, function: call.function, args: call.args, field: call.field, hook: call.hook }
}

fn lower(output: Output) -> types::Output {
    let part = |part: Part| match part {
        Part::Bytes(bytes) => types::Part::Bytes(bytes),
        Part::Open(number) => types::Part::Open(number),
        Part::Close => types::Part::Close,
        Part::Call(call) => types::Part::Call(lower_call(call)),
    };
    let entry = |entry: crate::Entry| match entry {
        crate::Entry::Include(call) => types::Entry::Include(lower_call(call)),
        crate::Entry::Item(item) => types::Entry::Item(types::Item {
            key: item.key,
            parts: item.message.parts.into_iter().map(part).collect(),
            claims: item.claims,
            refs: item.refs,
        }),
    };
    let diagnostic = |d: crate::Diagnostic| types::Diagnostic {
        severity: match d.severity {
            Severity::Info => types::Severity::Info,
            Severity::Warning => types::Severity::Warning,
            Severity::Error => types::Severity::Error,
        },
        object: d.object,
        field: d.field,
        message: d.message,
        code: d.code,
    };
    types::Output {
        entries: output.entries.into_iter().map(entry).collect(),
        diagnostics: output.diagnostics.into_iter().map(diagnostic).collect(),
    }
}

fn lower_failure(failure: Failure) -> types::Failure {
    match failure {
        Failure::UnknownFunction(text) => types::Failure::UnknownFunction(text),
        Failure::BadArguments(text) => types::Failure::BadArguments(text),
        Failure::BadAnswer(text) => types::Failure::BadAnswer(text),
        // This line knows no other reasons.
        Failure::BadConfiguration(text) | Failure::Other(text) => types::Failure::BadAnswer(text),
    }
}

/// Runs a stage's function over the imports. Called by [`export_stage!`](crate::export_stage).
pub fn run_stage(translate: StageFn, function: &str, args: &[String]) -> Result<types::Output, types::Failure> {
    report_panics();
    translate(&Ctx::new(&Imports), function, args).map(lower).map_err(lower_failure)
}

/// Runs a plugin's function over the imports. Called by [`export_plugin!`](crate::export_plugin).
pub fn run_hook(
    apply: HookFn,
    point: &str,
    args: &[String],
) -> Result<plugin::exports::trysail::stage::hooks::Outcome, types::Failure> {
    report_panics();
    let items = plugin::trysail::stage::fragment::items();
    let items: Vec<(String, Vec<u8>)> = items.into_iter().map(|item| (item.key, item.message)).collect();
    match apply(&Ctx::new(&Imports), point, args, &items) {
        Ok(Outcome::Unchanged) => Ok(plugin::exports::trysail::stage::hooks::Outcome::Unchanged),
        Ok(Outcome::Replaced(output)) => Ok(plugin::exports::trysail::stage::hooks::Outcome::Replaced(lower(output))),
        Ok(Outcome::Edited(_)) => Err(types::Failure::BadAnswer("edits need the 0.2 line".to_owned())),
        Err(failure) => Err(lower_failure(failure)),
    }
}
